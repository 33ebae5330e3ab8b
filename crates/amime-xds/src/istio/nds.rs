//! `istio.networking.nds.v1`: the table behind the agent's DNS proxy.

use std::collections::BTreeMap;

use super::named;

/// Host names and their addresses, one table a proxy.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NameTable {
    /// Host name (no trailing dot) → addresses.
    #[prost(btree_map = "string, message", tag = "1")]
    pub table: BTreeMap<String, NameInfo>,
}

named!(NameTable, "istio.networking.nds.v1", "NameTable");

/// What one name resolves to.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NameInfo {
    /// Addresses in textual form, v4 and v6 mixed.
    #[prost(string, repeated, tag = "1")]
    pub ips: Vec<String>,
    /// Registry that knows the service: `Kubernetes` or `External`.
    #[prost(string, tag = "2")]
    pub registry: String,
    /// Service name without namespace and domain; Kubernetes only.
    #[prost(string, tag = "3")]
    pub shortname: String,
    /// Namespace of the service; Kubernetes only.
    #[prost(string, tag = "4")]
    pub namespace: String,
}

named!(NameInfo, "istio.networking.nds.v1", "NameTable.NameInfo");
