//! Fields that are accepted but not acted on yet: one table, so that nothing is ignored in silence.
//!
//! Paths are those of the object's JSON; `[]` stands for any list index and `*` for any key.

use std::fmt;

use serde_json::Value;

use crate::kind::Kind;
use crate::resource::Resource;

/// A field that was given and has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldWarning {
    /// Kind and name of the object.
    pub object: String,
    /// Path of the field.
    pub path: String,
    /// Why, or what happens instead.
    pub reason: &'static str,
}

impl fmt::Display for FieldWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.path, self.reason)
    }
}

/// Table: kind, path below the object, reason.
const UNHONOURED: &[(Kind, &str, &str)] = &[];

/// Fields of `resource` that are accepted but not acted on, in table order.
pub fn unhonoured(resource: &Resource) -> Vec<FieldWarning> {
    let mut found = Vec::new();
    for (kind, pattern, reason) in UNHONOURED.iter().filter(|(kind, ..)| *kind == resource.kind()) {
        let segments: Vec<&str> = pattern.split('.').collect();
        for (key, value) in resource.raw() {
            if segments.first() == Some(&key.as_str()) {
                let mut paths = Vec::new();
                walk(value, key.clone(), &segments[1..], &mut paths);
                found.extend(paths.into_iter().map(|path| FieldWarning {
                    object: format!("{kind} {}", resource.name()),
                    path,
                    reason,
                }));
            }
        }
    }
    found
}

/// Collects the paths below `value` that match `segments`.
fn walk(value: &Value, path: String, segments: &[&str], found: &mut Vec<String>) {
    match (value, segments) {
        (Value::Null, _) => {}
        (Value::Array(items), ["[]", rest @ ..]) => {
            for (index, item) in items.iter().enumerate() {
                walk(item, format!("{path}[{index}]"), rest, found);
            }
        }
        (_, []) => found.push(path),
        (Value::Object(fields), [segment, rest @ ..]) => {
            for (key, value) in fields.iter().filter(|(key, _)| *segment == "*" || key == segment) {
                walk(value, format!("{path}.{key}"), rest, found);
            }
        }
        _ => {}
    }
}
