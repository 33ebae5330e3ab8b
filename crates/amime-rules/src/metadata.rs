//! Filters that write dynamic metadata: from headers, and fixed.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/header_to_metadata_filter>

use std::collections::BTreeMap;

use amime_telemetry::DynamicMetadata;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use envoy_types::pb::envoy::extensions::filters::http::{
    header_to_metadata::v3 as headers, set_metadata::v3 as set,
};
use envoy_types::pb::google::protobuf as wkt;
use headers::config::{KeyValuePair, ValueEncode, ValueType};
use http::{HeaderMap, HeaderName};
use prost::Message;
use regex::bytes::Regex;
use wkt::value::Kind;

use super::faults::Faults;
use super::matcher::joined;
use super::redirect::substitution;
use super::route_match::cookie_of;

/// The namespace of values from headers for which none is named.
const NAMESPACE: &str = "envoy.filters.http.header_to_metadata";

/// Values that are longer are left out.
const MAX_VALUE: usize = 8 * 1024;

/// A compiled `header_to_metadata` filter.
#[derive(Debug)]
pub struct HeaderToMetadata {
    pub request: Vec<Rule>,
    pub response: Vec<Rule>,
}

/// One header or cookie, and what becomes of it.
#[derive(Debug)]
pub struct Rule {
    source: Source,
    present: Option<Entry>,
    missing: Option<Entry>,
    remove: bool,
}

#[derive(Debug)]
enum Source {
    Header(HeaderName),
    Cookie(String),
}

#[derive(Debug)]
struct Entry {
    namespace: String,
    key: String,
    /// Instead of the header's own.
    value: String,
    rewrite: Option<(Regex, String)>,
    kind: ValueType,
    base64: bool,
}

impl HeaderToMetadata {
    pub fn compile(value: &headers::Config, faults: &mut Faults) -> Self {
        faults.ignore_if(!value.stat_prefix.is_empty(), "stat_prefix");
        let mut rules = |list: &[headers::config::Rule], field: &str| {
            let rules = list.iter().enumerate().filter_map(|(index, rule)| {
                faults.within(format!("{field}[{index}]"), |faults| Rule::compile(rule, faults))
            });
            rules.collect()
        };
        Self {
            request: rules(&value.request_rules, "request_rules"),
            response: rules(&value.response_rules, "response_rules"),
        }
    }
}

impl Rule {
    fn compile(value: &headers::config::Rule, faults: &mut Faults) -> Option<Self> {
        let source = match (value.header.as_str(), value.cookie.as_str()) {
            ("", "") => {
                faults.reject("header", "neither a header nor a cookie is named");
                return None;
            }
            ("", cookie) => Source::Cookie(cookie.to_owned()),
            (header, "") => match header.parse() {
                Ok(name) => Source::Header(name),
                Err(_) => {
                    faults.reject("header", format!("`{header}` is not a header"));
                    return None;
                }
            },
            _ => {
                faults.reject("cookie", "both a header and a cookie are named");
                return None;
            }
        };
        if value.on_header_present.is_none() && value.on_header_missing.is_none() {
            faults.reject("on_header_present", "nothing is done");
        }
        let missing = value.on_header_missing.as_ref();
        if missing.is_some_and(|missing| missing.value.is_empty()) {
            faults.reject("on_header_missing.value", "missing");
        }
        let mut entry = |pair: Option<&KeyValuePair>| Entry::compile(pair?, faults);
        Some(Self {
            source,
            present: entry(value.on_header_present.as_ref()),
            missing: entry(missing),
            remove: value.remove,
        })
    }

    /// Notes what the headers say.
    pub fn apply(&self, headers: &mut HeaderMap, found: &mut BTreeMap<String, wkt::Struct>) {
        let value = match &self.source {
            Source::Header(name) => joined(headers, name).map(std::borrow::Cow::into_owned),
            Source::Cookie(name) => cookie_of(headers, name).map(|value| value.as_bytes().to_vec()),
        };
        let present = value.is_some();
        if present
            && self.remove
            && let Source::Header(name) = &self.source
        {
            headers.remove(name);
        }
        let entry = if present { &self.present } else { &self.missing };
        if let Some(entry) = entry
            && let Some(kind) = entry.value(value.unwrap_or_default())
        {
            let fields = &mut found.entry(entry.namespace.clone()).or_default().fields;
            fields.insert(entry.key.clone(), wkt::Value { kind: Some(kind) });
        }
    }
}

impl Entry {
    fn compile(value: &KeyValuePair, faults: &mut Faults) -> Option<Self> {
        let rewrite = value.regex_value_rewrite.as_ref();
        let rewrite = match rewrite {
            Some(rewrite) => Some(substitution(rewrite, faults)?),
            None => None,
        };
        let namespace = match value.metadata_namespace.as_str() {
            "" => NAMESPACE,
            namespace => namespace,
        };
        Some(Self {
            namespace: namespace.to_owned(),
            key: value.key.clone(),
            value: value.value.clone(),
            rewrite,
            kind: value.r#type(),
            base64: value.encode() == ValueEncode::Base64,
        })
    }

    fn value(&self, found: Vec<u8>) -> Option<Kind> {
        let value = match (self.value.as_str(), &self.rewrite) {
            ("", None) => found,
            ("", Some((regex, text))) => regex.replace_all(&found, text.as_bytes()).into_owned(),
            (fixed, _) => fixed.as_bytes().to_vec(),
        };
        if value.is_empty() || value.len() >= MAX_VALUE {
            return None;
        }
        let value = match self.base64 {
            true => {
                let bare = value.trim_ascii_end();
                let end = bare.iter().rposition(|byte| *byte != b'=').map_or(0, |at| at + 1);
                STANDARD_NO_PAD.decode(&bare[..end]).ok().filter(|value| !value.is_empty())?
            }
            false => value,
        };
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        match self.kind {
            ValueType::String => Some(Kind::StringValue(text(&value))),
            ValueType::Number => text(&value).trim().parse().ok().map(Kind::NumberValue),
            ValueType::ProtobufValue => wkt::Value::decode(&*value).ok()?.kind,
        }
    }
}

/// A compiled `set_metadata` filter.
#[derive(Debug)]
pub struct SetMetadata(Vec<(String, wkt::Struct, bool)>);

impl SetMetadata {
    pub fn compile(value: &set::Config, faults: &mut Faults) -> Self {
        let older =
            value.value.clone().map(|fields| (value.metadata_namespace.clone(), fields, true));
        let mut all: Vec<_> = older.into_iter().collect();
        for (index, entry) in value.metadata.iter().enumerate() {
            faults.within(format!("metadata[{index}]"), |faults| {
                faults.ignore_if(entry.typed_value.is_some(), "typed_value");
            });
            let fields = entry.value.clone();
            all.extend(
                fields.map(|fields| {
                    (entry.metadata_namespace.clone(), fields, entry.allow_overwrite)
                }),
            );
        }
        Self(all)
    }

    pub fn apply(&self, metadata: &mut DynamicMetadata) {
        for (namespace, fields, overwrite) in &self.0 {
            metadata.merge(namespace, fields, *overwrite);
        }
    }
}
