//! Field masks of `/config_dump`: only the fields that an operator asks for.

use serde_json::{Map, Value};

/// Paths of fields, as `cluster.name`.
pub(super) struct Mask(Vec<Vec<String>>);

impl Mask {
    /// Reads `a.b,c`.
    pub(super) fn parse(text: &str) -> Self {
        let paths = text.split(',').filter(|path| !path.is_empty());
        Self(paths.map(|path| path.split('.').map(str::to_owned).collect()).collect())
    }

    /// Keeps the fields named and the type of each message; `None` if nothing
    /// of the value is named.
    pub(super) fn keep(&self, value: &Value) -> Option<Value> {
        let paths: Vec<_> = self.0.iter().map(Vec::as_slice).collect();
        keep(value, &paths)
    }
}

fn keep(value: &Value, paths: &[&[String]]) -> Option<Value> {
    if paths.iter().any(|path| path.is_empty()) {
        return Some(value.clone());
    }
    match value {
        Value::Object(fields) => {
            let mut kept = Map::new();
            for (name, field) in fields {
                let below = paths.iter().filter(|path| path[0] == *name);
                let below: Vec<_> = below.map(|path| &path[1..]).collect();
                if let Some(field) = (!below.is_empty()).then(|| keep(field, &below)).flatten() {
                    kept.insert(name.clone(), field);
                }
            }
            if kept.is_empty() {
                return None;
            }
            if let Some(name) = fields.get("@type") {
                kept.insert("@type".to_owned(), name.clone());
            }
            Some(Value::Object(kept))
        }
        Value::Array(items) => {
            let kept: Vec<_> = items.iter().filter_map(|item| keep(item, paths)).collect();
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn named_fields_stay_with_the_types_of_their_messages() {
        let value = json!({"@type": "t", "cluster": {"@type": "c", "name": "a", "type": 1},
            "list": [{"x": 1, "y": 2}, {"y": 3}], "other": true});
        let mask = Mask::parse("cluster.name,list.x");
        let want =
            json!({"@type": "t", "cluster": {"@type": "c", "name": "a"}, "list": [{"x": 1}]});
        assert_eq!(mask.keep(&value), Some(want));
        assert_eq!(Mask::parse("no.such").keep(&value), None);
        assert_eq!(Mask::parse("other.deeper").keep(&value), None);
    }
}
