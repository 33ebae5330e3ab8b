//! Messages out of JSON values, to be added to others or merged into them.
//!
//! Merging is protobuf's, as Istio's control plane does it: what the patch
//! sets wins, messages merge field by field, lists grow, map entries are
//! replaced. A duration is one value, so it is replaced as well.

use envoy_types::pb::google::protobuf::Any;
use prost::bytes::Bytes;
use prost::{Message, Name};
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, ReflectMessage, Value};

use super::{JsonError, descriptor, find, transcode};

const DURATION: &str = "google.protobuf.Duration";

/// What happens to a list that the patch has too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lists {
    /// The patch's items come behind.
    Append,
    /// The patch's items are the list.
    Replace,
}

/// A message of any type, read from JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonMessage(DynamicMessage);

impl JsonMessage {
    /// Reads `value` as the message with this full name; fields that the type
    /// does not have are left out.
    ///
    /// # Errors
    /// [`JsonError::Malformed`] for a value of the wrong form, or a packed
    /// message of an unknown type; [`JsonError::UnknownType`].
    pub fn read(type_name: &str, value: &serde_json::Value) -> Result<Self, JsonError> {
        read(type_name, value, false)
    }

    /// The same, but an unknown field is an error.
    ///
    /// # Errors
    /// Those of [`JsonMessage::read`], and the first unknown field.
    pub fn read_strictly(type_name: &str, value: &serde_json::Value) -> Result<Self, JsonError> {
        read(type_name, value, true)
    }

    /// The message itself.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn to<M: Message + Name + Default>(&self) -> Result<M, JsonError> {
        if self.0.descriptor().full_name() != M::full_name() {
            return Err(JsonError::UnknownType(M::full_name()));
        }
        transcode(&self.0)
    }

    /// Merges it into a message of its type.
    ///
    /// # Errors
    /// When `target` is of another type; it is as before then.
    pub fn merge_into<M: Message + Name + Default>(
        &self,
        target: &mut M,
        lists: Lists,
    ) -> Result<(), JsonError> {
        let descriptor = descriptor::<M>()?;
        if self.0.descriptor() != descriptor {
            return Err(JsonError::UnknownType(M::full_name()));
        }
        let mut merged = decode(descriptor, target.encode_to_vec().into())?;
        merge(&mut merged, &self.0, lists);
        *target = transcode(&merged)?;
        Ok(())
    }
}

/// Merges a packed message into another of the same type.
///
/// # Errors
/// When the types differ or are not known; `target` is as before then.
pub fn merge_any(target: &mut Any, patch: &Any, lists: Lists) -> Result<(), JsonError> {
    let name = |any: &Any| any.type_url.rsplit('/').next().unwrap_or_default().to_owned();
    let (own, other) = (name(target), name(patch));
    let unknown = || JsonError::UnknownType(other.clone());
    let descriptor = find(&other).filter(|_| own == other).ok_or_else(unknown)?;
    let mut merged = decode(descriptor.clone(), target.value.clone().into())?;
    merge(&mut merged, &decode(descriptor, patch.value.clone().into())?, lists);
    target.value = merged.encode_to_vec();
    Ok(())
}

fn read(
    type_name: &str,
    value: &serde_json::Value,
    strict: bool,
) -> Result<JsonMessage, JsonError> {
    let descriptor = find(type_name).ok_or_else(|| JsonError::UnknownType(type_name.to_owned()))?;
    let options = DeserializeOptions::new().deny_unknown_fields(strict);
    let message = DynamicMessage::deserialize_with_options(descriptor, value, &options);
    message.map(JsonMessage).map_err(|e| malformed(type_name, &e))
}

fn malformed(type_name: &str, error: &dyn std::fmt::Display) -> JsonError {
    JsonError::Malformed { type_name: type_name.to_owned(), message: error.to_string() }
}

fn decode(descriptor: MessageDescriptor, body: Bytes) -> Result<DynamicMessage, JsonError> {
    let type_name = descriptor.full_name().to_owned();
    DynamicMessage::decode(descriptor, body).map_err(|e| malformed(&type_name, &e))
}

fn merge(target: &mut DynamicMessage, patch: &DynamicMessage, lists: Lists) {
    for (field, value) in patch.fields() {
        match value {
            Value::List(items) => {
                let Value::List(own) = target.get_field_mut(&field) else { continue };
                if lists == Lists::Replace {
                    own.clear();
                }
                own.extend(items.iter().cloned());
            }
            Value::Map(entries) => {
                let Value::Map(own) = target.get_field_mut(&field) else { continue };
                own.extend(entries.iter().map(|(key, value)| (key.clone(), value.clone())));
            }
            Value::Message(inner) if inner.descriptor().full_name() != DURATION => {
                let Value::Message(own) = target.get_field_mut(&field) else { continue };
                merge(own, inner, lists);
            }
            other => target.set_field(&field, other.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use serde_json::json;

    use super::*;
    use crate::json::to_json;

    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

    fn cluster(value: serde_json::Value) -> JsonMessage {
        JsonMessage::read(CLUSTER, &value).expect("valid")
    }

    #[track_caller]
    fn check(
        own: serde_json::Value,
        patch: serde_json::Value,
        lists: Lists,
        want: serde_json::Value,
    ) {
        let mut target: Cluster = cluster(own).to().expect("a cluster");
        cluster(patch).merge_into(&mut target, lists).expect("the same type");
        assert_eq!(to_json(&target).expect("printable"), want);
    }

    #[test]
    fn messages_merge_and_durations_are_replaced() {
        check(
            json!({"name": "a", "connect_timeout": "1.5s", "common_lb_config": {"close_connections_on_host_set_change": true}}),
            json!({"connect_timeout": "2s", "common_lb_config": {"update_merge_window": "1s"}}),
            Lists::Append,
            json!({"name": "a", "connect_timeout": "2s", "common_lb_config": {"close_connections_on_host_set_change": true, "update_merge_window": "1s"}}),
        );
    }

    #[test]
    fn lists_grow_or_are_replaced() {
        let (own, patch) = (json!({"dns_resolvers": [{}]}), json!({"dns_resolvers": [{}]}));
        check(own.clone(), patch.clone(), Lists::Append, json!({"dns_resolvers": [{}, {}]}));
        check(own, patch, Lists::Replace, json!({"dns_resolvers": [{}]}));
    }

    #[test]
    fn of_a_choice_the_patch_decides() {
        check(
            json!({"ring_hash_lb_config": {"minimum_ring_size": "7"}}),
            json!({"maglev_lb_config": {}}),
            Lists::Append,
            json!({"maglev_lb_config": {}}),
        );
    }

    #[test]
    fn unknown_fields_are_errors_only_if_asked() {
        let value = json!({"nmae": "x"});
        assert!(JsonMessage::read(CLUSTER, &value).is_ok());
        let error = JsonMessage::read_strictly(CLUSTER, &value).expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "not of type envoy.config.cluster.v3.Cluster: unrecognized field name 'nmae'"
        );
    }

    #[test]
    fn packed_messages_merge_if_they_are_of_one_type() {
        let any = |value: serde_json::Value| {
            let value = json!({"transport_socket": {"name": "t", "typed_config": value}});
            let cluster: Cluster = cluster(value).to().expect("a cluster");
            let socket = cluster.transport_socket.expect("given");
            let Some(
                envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType::TypedConfig(
                    any,
                ),
            ) = socket.config_type
            else {
                panic!("given");
            };
            any
        };
        const TLS: &str =
            "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
        let mut own = any(json!({"@type": TLS, "sni": "a"}));
        let more = any(json!({"@type": TLS, "max_session_keys": 3}));
        merge_any(&mut own, &more, Lists::Append).expect("the same type");
        assert_eq!(own, any(json!({"@type": TLS, "sni": "a", "max_session_keys": 3})));
        let raw = any(
            json!({"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}),
        );
        assert!(merge_any(&mut own, &raw, Lists::Append).is_err());
    }
}
