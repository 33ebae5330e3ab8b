//! Reading `/config_dump`.
//!
//! Envoy writes field names in snake case, protobuf's own JSON in camel case;
//! both are read.

use anyhow::{Context, bail};
use serde_json::{Map, Value};

/// Fields whose keys are data, not names of fields.
const VERBATIM: [&str; 10] = [
    "filter_metadata",
    "typed_filter_metadata",
    "typed_per_filter_config",
    "typed_extension_protocol_options",
    "metadata",
    "labels",
    "filterMetadata",
    "typedFilterMetadata",
    "typedPerFilterConfig",
    "typedExtensionProtocolOptions",
];

/// A whole `/config_dump`.
#[derive(Debug)]
pub(crate) struct ConfigDump(Value);

impl ConfigDump {
    /// Reads the text of a dump.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let value: Value = serde_json::from_str(text).context("the config dump is not JSON")?;
        if field(&value, "configs").as_array().is_none() {
            bail!("the config dump has no list of configs");
        }
        Ok(Self(value))
    }

    /// All of it.
    pub(crate) fn value(&self) -> &Value {
        &self.0
    }

    /// The parts of one type, `ClustersConfigDump`. An Envoy may give several
    /// of the same type.
    pub(crate) fn sections<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        list(&self.0, "configs").iter().filter(move |section| {
            text(section, "@type").rsplit('.').next().is_some_and(|name| name == kind)
        })
    }

    /// Resources of one type: `field` lists them, `path` leads into each.
    pub(crate) fn resources<'a>(
        &'a self,
        kind: &'a str,
        lists: &'a [(&'a str, &'a [&'a str])],
    ) -> Vec<&'a Value> {
        let mut found = Vec::new();
        for (name, path) in lists {
            for section in self.sections(kind) {
                let entries = list(section, name).iter().map(|entry| at(entry, path));
                found.extend(entries.filter(|resource| resource.is_object()));
            }
        }
        found
    }
}

/// A field by its snake-case name, in either spelling; null when absent.
pub(crate) fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    match value.get(name) {
        Some(found) => found,
        None if name.contains('_') => value.get(camel(name)).unwrap_or(&Value::Null),
        None => &Value::Null,
    }
}

/// A field of a field of …
pub(crate) fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(value, |value, name| field(value, name))
}

/// A field that is a string; empty when absent.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    field(value, name).as_str().unwrap_or_default()
}

/// A field that is a list; empty when absent.
pub(crate) fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    field(value, name).as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A list of strings.
pub(crate) fn strings<'a>(value: &'a Value, name: &str) -> Vec<&'a str> {
    list(value, name).iter().filter_map(Value::as_str).collect()
}

/// A number, which proto JSON may also write as a string.
pub(crate) fn number(value: &Value, name: &str) -> u64 {
    match field(value, name) {
        Value::String(text) => text.parse().unwrap_or(0),
        other => other.as_u64().unwrap_or(0),
    }
}

/// Name and namespace of the object that a resource was made of, `reviews.default`.
pub(crate) fn origin(resource: &Value) -> String {
    let path = ["metadata", "filter_metadata", "istio", "config"];
    let config = at(resource, &path).as_str().unwrap_or_default();
    // What no rule of the user's decided comes from the service itself.
    if !config.starts_with("/apis/networking.istio.io/") {
        return String::new();
    }
    match config.split('/').collect::<Vec<_>>()[..] {
        [_, _, _, _, _, namespace, _, name] => format!("{name}.{namespace}"),
        _ => String::new(),
    }
}

/// The value with camel-case names of fields, as istioctl prints resources.
pub(crate) fn camel_case(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| {
                let value = if VERBATIM.contains(&name.as_str()) {
                    value.clone()
                } else {
                    camel_case(value)
                };
                (camel(name), value)
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(camel_case).collect(),
        other => other.clone(),
    }
}

fn camel(name: &str) -> String {
    // Only names of fields look like this; `@type` and hosts stay.
    if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        return name.to_owned();
    }
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                out.push(c.to_ascii_uppercase());
                upper = false;
            }
            c => out.push(c),
        }
    }
    out
}
