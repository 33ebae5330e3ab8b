//! Takes secrets out of printed configuration.

use serde_json::{Value, json};

/// Base64 of `[redacted]`, which is what Envoy prints.
const REDACTED: &str = "W3JlZGFjdGVkXQ==";

/// Fields whose content is secret wherever they stand.
const SECRET_FIELDS: [&str; 6] =
    ["private_key", "password", "pkcs12", "session_ticket_keys", "generic_secret", "hmac_secret"];

/// Replaces every secret in `value`, at any depth.
pub(super) fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                if SECRET_FIELDS.contains(&name.as_str()) && !is_reference(value) {
                    *value = json!({ "inline_bytes": REDACTED });
                } else {
                    redact(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

/// A file name or an SDS reference is no secret and helps to find faults.
fn is_reference(value: &Value) -> bool {
    let names = ["filename", "environment_variable", "sds_config"];
    value.as_object().is_some_and(|fields| names.iter().any(|name| fields.contains_key(*name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_replaced_at_any_depth_and_file_names_are_not() {
        let mut value = json!({"a": [{"private_key": {"inline_string": "KEY"}}],
            "b": {"private_key": {"filename": "/key.pem"}}, "generic_secret": {"secret": 1}});
        redact(&mut value);
        let text = value.to_string();
        assert!(!text.contains("KEY") && !text.contains("\"secret\""), "{text}");
        assert!(text.contains("/key.pem"));
    }
}
