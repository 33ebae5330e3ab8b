//! One encoding for one content.
//!
//! Maps have no order on the wire, and the generated types keep them in hash
//! maps: encoding the same message twice gives different bytes. Versions are
//! hashes of the bytes, so entries are brought into the order of their keys
//! here, also inside packed messages. Everything else stays as it is.
//!
//! Input is our own encoding; bytes that do not parse are passed through.

include!(concat!(env!("OUT_DIR"), "/canonical.rs"));

/// Deeper messages are passed through as they are.
const MAX_DEPTH: usize = 64;

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Plain,
    Map,
    Any,
}

struct Field {
    number: u32,
    shape: Shape,
    of: u16,
}

struct Message {
    name: &'static str,
    fields: &'static [Field],
}

/// `body`, an encoded message of the type `full_name`, with its maps in order.
pub(crate) fn canonical(full_name: &str, body: Vec<u8>) -> Vec<u8> {
    match find(full_name) {
        Some(message) => rewrite(message, &body, 0).unwrap_or(body),
        None => body,
    }
}

fn find(full_name: &str) -> Option<&'static Message> {
    let at = MESSAGES.binary_search_by(|m| m.name.cmp(full_name)).ok()?;
    MESSAGES.get(at)
}

/// One field with its tag, and the payload if it has a length.
struct Record<'a> {
    number: u32,
    whole: &'a [u8],
    payload: Option<&'a [u8]>,
}

fn rewrite(message: &Message, body: &[u8], depth: usize) -> Option<Vec<u8>> {
    if depth > MAX_DEPTH {
        return Some(body.to_vec());
    }
    let mut out = Vec::with_capacity(body.len());
    let mut rest = body;
    let mut entries: Vec<Vec<u8>> = Vec::new();
    let mut entries_of = 0;
    while !rest.is_empty() {
        let record = take_record(&mut rest)?;
        let field = message.fields.iter().find(|f| f.number == record.number);
        if entries_of != record.number {
            flush(&mut entries, &mut out);
        }
        match (field, record.payload) {
            (Some(field), Some(payload)) => {
                let new = rewrite_payload(field, payload, depth)?;
                if field.shape == Shape::Map {
                    entries_of = record.number;
                    entries.push(framed(record.number, &new));
                } else {
                    out.extend(framed(record.number, &new));
                }
            }
            _ => out.extend_from_slice(record.whole),
        }
    }
    flush(&mut entries, &mut out);
    Some(out)
}

fn rewrite_payload(field: &Field, payload: &[u8], depth: usize) -> Option<Vec<u8>> {
    match field.shape {
        Shape::Any => rewrite_any(payload, depth + 1),
        Shape::Plain | Shape::Map => {
            rewrite(MESSAGES.get(usize::from(field.of))?, payload, depth + 1)
        }
    }
}

fn flush(entries: &mut Vec<Vec<u8>>, out: &mut Vec<u8>) {
    entries.sort_unstable();
    out.extend(entries.drain(..).flatten());
}

fn rewrite_any(body: &[u8], depth: usize) -> Option<Vec<u8>> {
    let (mut rest, mut url, mut value) = (body, None, None);
    while !rest.is_empty() {
        let record = take_record(&mut rest)?;
        match record.number {
            1 => url = record.payload,
            2 => value = record.payload,
            _ => return Some(body.to_vec()),
        }
    }
    let name = url.and_then(|u| std::str::from_utf8(u).ok()).and_then(|u| u.rsplit('/').next());
    let (Some(url), Some(value), Some(message)) = (url, value, name.and_then(find)) else {
        return Some(body.to_vec());
    };
    let mut out = framed(1, url);
    out.extend(framed(2, &rewrite(message, value, depth)?));
    Some(out)
}

fn framed(number: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 8);
    prost::encoding::encode_varint(u64::from(number) << 3 | 2, &mut out);
    prost::encoding::encode_varint(payload.len() as u64, &mut out);
    out.extend_from_slice(payload);
    out
}

fn take_record<'a>(rest: &mut &'a [u8]) -> Option<Record<'a>> {
    let start = *rest;
    let tag = prost::encoding::decode_varint(rest).ok()?;
    let number = u32::try_from(tag >> 3).ok()?;
    let mut payload = None;
    match tag & 7 {
        0 => {
            prost::encoding::decode_varint(rest).ok()?;
        }
        1 => *rest = rest.get(8..)?,
        2 => {
            let len = usize::try_from(prost::encoding::decode_varint(rest).ok()?).ok()?;
            let (head, tail) = rest.split_at_checked(len)?;
            (payload, *rest) = (Some(head), tail);
        }
        5 => *rest = rest.get(4..)?,
        _ => return None,
    }
    let whole = &start[..start.len() - rest.len()];
    Some(Record { number, whole, payload })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use envoy_types::pb::envoy::config::core::v3::Metadata;
    use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
    use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener};
    use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
    use prost::Message as _;

    use crate::Resource;
    use crate::istio::typed_struct::TypedStruct;

    fn object(n: usize) -> Struct {
        let fields = (0..n).map(|i| {
            let kind = Some(Kind::StringValue(format!("value {i}")));
            (format!("key-{i}"), Value { kind })
        });
        Struct { fields: fields.collect() }
    }

    /// A listener with maps at the top, in a nested message and inside an `Any`.
    fn listener() -> Listener {
        let typed = TypedStruct { type_url: "x/y".into(), value: Some(object(20)) };
        let any = envoy_types::util::pack_any(typed);
        let metadata: HashMap<_, _> = (0..10).map(|i| (format!("ns-{i}"), object(10))).collect();
        let filter = Filter { name: "f".into(), config_type: Some(ConfigType::TypedConfig(any)) };
        Listener {
            name: "l".into(),
            metadata: Some(Metadata { filter_metadata: metadata, ..Default::default() }),
            filter_chains: vec![
                FilterChain { name: "z".into(), filters: vec![filter], ..Default::default() },
                FilterChain { name: "a".into(), ..Default::default() },
            ],
            ..Default::default()
        }
    }

    #[test]
    fn equal_messages_have_equal_bytes() {
        let first = Resource::encode("l", &listener());
        for _ in 0..20 {
            assert_eq!(Resource::encode("l", &listener()), first);
        }
    }

    #[test]
    fn contents_and_order_of_lists_stay() {
        let decoded: Listener = Resource::encode("l", &listener()).decode().expect("still valid");
        assert_eq!(decoded.metadata, listener().metadata);
        let names: Vec<_> = decoded.filter_chains.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["z", "a"]);
        let mut other = listener();
        other.filter_chains.reverse();
        let reversed = Resource::encode("l", &other);
        assert_ne!(reversed.version, Resource::encode("l", &listener()).version);
    }

    #[test]
    fn bytes_that_do_not_parse_pass_through() {
        for body in [&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"\x0a\x7f", b"\x0b"] {
            let out = super::canonical("envoy.config.listener.v3.Listener", body.to_vec());
            assert_eq!(out, body);
        }
        let message = listener().encode_to_vec();
        assert_eq!(super::canonical("no.such.Message", message.clone()), message);
    }
}
