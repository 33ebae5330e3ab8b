//! `TypedStruct`: configuration of a type that the sender has no code for.
//!
//! The same message lives under two names; Envoy reads both.

use envoy_types::pb::google::protobuf::Struct;

use super::named;

/// `xds.type.v3.TypedStruct`
#[derive(Clone, PartialEq, prost::Message)]
pub struct TypedStruct {
    /// Type that `value` is the JSON form of.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The fields.
    #[prost(message, optional, tag = "2")]
    pub value: Option<Struct>,
}

named!(TypedStruct, "xds.type.v3", "TypedStruct");

/// `udpa.type.v1.TypedStruct`, the older name that existing configs use.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UdpaTypedStruct {
    /// Type that `value` is the JSON form of.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The fields.
    #[prost(message, optional, tag = "2")]
    pub value: Option<Struct>,
}

named!(UdpaTypedStruct, "udpa.type.v1", "TypedStruct");
