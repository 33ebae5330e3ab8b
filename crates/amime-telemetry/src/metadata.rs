//! Dynamic metadata: what filters found out about a request, by namespace.
//!
//! Owns its merging and its text forms; who writes it is a filter's business.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/advanced/well_known_dynamic_metadata>

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use envoy_types::pb::google::protobuf as wkt;
use wkt::value::Kind;

use super::accesslog::json_string;

/// Dynamic metadata of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DynamicMetadata(BTreeMap<String, wkt::Struct>);

impl DynamicMetadata {
    /// All of a namespace.
    pub fn namespace(&self, name: &str) -> Option<&wkt::Struct> {
        self.0.get(name)
    }

    /// Puts fields into a namespace, in place of those of the same name.
    pub fn put(&mut self, namespace: &str, fields: &wkt::Struct) {
        let own = self.0.entry(namespace.to_owned()).or_default();
        own.fields.extend(fields.fields.clone());
    }

    /// Merges fields into a namespace: structs field by field, lists behind
    /// each other. False if there was something and nothing may change.
    pub fn merge(&mut self, namespace: &str, fields: &wkt::Struct, overwrite: bool) -> bool {
        match self.0.entry(namespace.to_owned()) {
            Entry::Vacant(entry) => drop(entry.insert(fields.clone())),
            Entry::Occupied(_) if !overwrite => return false,
            Entry::Occupied(mut entry) => update(entry.get_mut(), fields),
        }
        true
    }

    /// The struct at a path, of which the first part is the namespace.
    pub fn fields(&self, path: &[Box<str>]) -> Option<&wkt::Struct> {
        match self.at(path)? {
            Found::Struct(fields) => Some(fields),
            Found::Other(_) => None,
        }
    }

    /// The text at such a path, if it is one.
    pub fn text(&self, path: &[Box<str>]) -> Option<&str> {
        match self.at(path)? {
            Found::Other(Kind::StringValue(text)) => Some(text),
            _ => None,
        }
    }

    /// What the value at such a path is; `None` for a whole namespace as well.
    pub fn kind(&self, path: &[Box<str>]) -> Option<&Kind> {
        let (key, outer) = path.split_last()?;
        self.fields(outer)?.fields.get(&**key)?.kind.as_ref()
    }

    /// The value at a path, of which the first part is the namespace.
    fn at<'a>(&'a self, path: &[Box<str>]) -> Option<Found<'a>> {
        let (namespace, keys) = path.split_first()?;
        let mut found = Found::Struct(self.0.get(&**namespace)?);
        for key in keys {
            let Found::Struct(fields) = found else { return None };
            found = match fields.fields.get(&**key)?.kind.as_ref()? {
                Kind::StructValue(fields) => Found::Struct(fields),
                kind => Found::Other(kind),
            };
        }
        Some(found)
    }

    /// Appends the value at a path: a string as it is, anything else as JSON.
    /// False if there is none.
    pub fn write(&self, path: &[Box<str>], out: &mut Vec<u8>) -> bool {
        match self.at(path) {
            Some(Found::Other(Kind::StringValue(text))) => out.extend_from_slice(text.as_bytes()),
            Some(found) => found.write_json(out),
            None => return false,
        }
        true
    }

    /// Appends the value at a path as JSON. False if there is none.
    pub(crate) fn write_json(&self, path: &[Box<str>], out: &mut Vec<u8>) -> bool {
        self.at(path).is_some_and(|found| {
            found.write_json(out);
            true
        })
    }
}

fn update(into: &mut wkt::Struct, from: &wkt::Struct) {
    for (key, value) in &from.fields {
        let have = into.fields.entry(key.clone()).or_default();
        match (&mut have.kind, &value.kind) {
            (Some(Kind::StructValue(into)), Some(Kind::StructValue(from))) => update(into, from),
            (Some(Kind::ListValue(into)), Some(Kind::ListValue(from))) => {
                into.values.extend(from.values.iter().cloned());
            }
            (have, kind) => have.clone_from(kind),
        }
    }
}

enum Found<'a> {
    Struct(&'a wkt::Struct),
    Other(&'a Kind),
}

impl Found<'_> {
    fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Struct(fields) => write_struct(fields, out),
            Self::Other(kind) => write_kind(kind, out),
        }
    }
}

fn write_struct(value: &wkt::Struct, out: &mut Vec<u8>) {
    let sorted: BTreeMap<_, _> = value.fields.iter().collect();
    out.push(b'{');
    for (index, (key, value)) in sorted.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        json_string(key.as_bytes(), out);
        out.push(b':');
        write_value(value, out);
    }
    out.push(b'}');
}

fn write_value(value: &wkt::Value, out: &mut Vec<u8>) {
    match &value.kind {
        Some(kind) => write_kind(kind, out),
        None => out.extend_from_slice(b"null"),
    }
}

fn write_kind(kind: &Kind, out: &mut Vec<u8>) {
    match kind {
        Kind::NullValue(_) => out.extend_from_slice(b"null"),
        Kind::NumberValue(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Kind::StringValue(text) => json_string(text.as_bytes(), out),
        Kind::BoolValue(on) => out.extend_from_slice(on.to_string().as_bytes()),
        Kind::StructValue(fields) => write_struct(fields, out),
        Kind::ListValue(list) => {
            out.push(b'[');
            for (index, value) in list.values.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_value(value, out);
            }
            out.push(b']');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, Kind)]) -> wkt::Struct {
        let pair = |(key, kind): &(&str, Kind)| {
            ((*key).to_owned(), wkt::Value { kind: Some(kind.clone()) })
        };
        wkt::Struct { fields: pairs.iter().map(pair).collect() }
    }

    fn text(metadata: &DynamicMetadata, path: &[&str]) -> Option<String> {
        let path: Vec<Box<str>> = path.iter().map(|part| (*part).into()).collect();
        let mut out = vec![];
        metadata.write(&path, &mut out).then(|| String::from_utf8(out).expect("text"))
    }

    #[test]
    fn values_are_found_by_their_path() {
        let inner = Kind::StructValue(fields(&[("b", Kind::NumberValue(1.5))]));
        let mut metadata = DynamicMetadata::default();
        metadata.put("ns", &fields(&[("a", inner), ("s", Kind::StringValue("x\"".into()))]));
        assert_eq!(text(&metadata, &["ns", "a", "b"]).as_deref(), Some("1.5"));
        assert_eq!(text(&metadata, &["ns", "s"]).as_deref(), Some("x\""));
        assert_eq!(text(&metadata, &["ns"]).as_deref(), Some(r#"{"a":{"b":1.5},"s":"x\""}"#));
        assert_eq!(text(&metadata, &["ns", "s", "t"]), None);
        assert_eq!(text(&metadata, &["other"]), None);
    }

    #[test]
    fn merging_goes_into_structs_and_lists() {
        let list = |number| {
            let value = wkt::Value { kind: Some(Kind::NumberValue(number)) };
            Kind::ListValue(wkt::ListValue { values: vec![value] })
        };
        let nested = |key| Kind::StructValue(fields(&[(key, Kind::BoolValue(true))]));
        let mut metadata = DynamicMetadata::default();
        assert!(metadata.merge("n", &fields(&[("l", list(1.0)), ("s", nested("a"))]), false));
        assert!(!metadata.merge("n", &fields(&[("l", list(9.0))]), false));
        assert!(metadata.merge("n", &fields(&[("l", list(2.0)), ("s", nested("b"))]), true));
        let all = r#"{"l":[1,2],"s":{"a":true,"b":true}}"#;
        assert_eq!(text(&metadata, &["n"]).as_deref(), Some(all));
    }
}
