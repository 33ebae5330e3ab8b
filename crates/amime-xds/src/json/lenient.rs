//! Makes messages printable that hold packed messages of unknown types.
//!
//! A dump must show what is there, not fail over one foreign filter.

use std::collections::BTreeMap;

use prost::{Message, Name};
use prost_reflect::{DynamicMessage, ReflectMessage, Value};

use super::find;
use crate::istio::typed_struct::TypedStruct;

const ANY: &str = "google.protobuf.Any";

/// Replaces every `Any` that cannot be expanded by one that can, at any depth.
pub(super) fn replace_unknown(message: &mut DynamicMessage) {
    if message.descriptor().full_name() == ANY {
        replace_any(message);
        return;
    }
    for (_, value) in message.fields_mut() {
        visit(value);
    }
}

fn visit(value: &mut Value) {
    match value {
        Value::Message(message) => replace_unknown(message),
        Value::List(values) => values.iter_mut().for_each(visit),
        Value::Map(values) => values.values_mut().for_each(visit),
        _ => {}
    }
}

fn replace_any(any: &mut DynamicMessage) {
    let url = text(any, "type_url");
    let body = match any.get_field_by_name("value").as_deref() {
        Some(Value::Bytes(body)) => body.clone(),
        _ => Default::default(),
    };
    let descriptor = url.rsplit('/').next().and_then(find);
    let inner = descriptor.and_then(|d| DynamicMessage::decode(d, body.clone()).ok());
    let (url, body) = match inner {
        Some(mut inner) => {
            replace_unknown(&mut inner);
            (url, inner.encode_to_vec())
        }
        None => (TypedStruct::type_url(), opaque(url, &body)),
    };
    any.set_field_by_name("type_url", Value::String(url));
    any.set_field_by_name("value", Value::Bytes(body.into()));
}

/// A `TypedStruct` in place of a message that we cannot read.
fn opaque(type_url: String, body: &[u8]) -> Vec<u8> {
    use envoy_types::pb::google::protobuf::value::Kind;
    use envoy_types::pb::google::protobuf::{Struct, Value};

    let hex: String = body.iter().map(|b| format!("{b:02x}")).collect();
    let value = Value { kind: Some(Kind::StringValue(hex)) };
    let fields = BTreeMap::from([("hex".to_owned(), value)]);
    let value = Some(Struct { fields: fields.into_iter().collect() });
    TypedStruct { type_url, value }.encode_to_vec()
}

fn text(message: &DynamicMessage, field: &str) -> String {
    match message.get_field_by_name(field).as_deref() {
        Some(Value::String(text)) => text.clone(),
        _ => String::new(),
    }
}
