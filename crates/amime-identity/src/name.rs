//! Distinguished names in the text form that operators know.
//!
//! Spec: <https://www.rfc-editor.org/rfc/rfc2253>

use std::fmt::Write;

use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// Types that have a short name; others are printed by number.
const SHORT: [(&str, &str); 15] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

/// The name, its most specific part first.
pub(crate) fn text(name: &X509Name<'_>) -> String {
    let mut parts: Vec<_> = name.iter_rdn().collect();
    parts.reverse();
    let mut out = String::new();
    for part in parts {
        for (index, attribute) in part.iter().enumerate() {
            if !out.is_empty() {
                out.push(if index == 0 { ',' } else { '+' });
            }
            write_attribute(attribute, &mut out);
        }
    }
    out
}

fn write_attribute(attribute: &AttributeTypeAndValue<'_>, out: &mut String) {
    let number = attribute.attr_type().to_id_string();
    let short = SHORT.iter().find(|(have, _)| *have == number);
    match (short, attribute.as_str()) {
        (Some((_, short)), Ok(value)) => {
            out.push_str(short);
            out.push('=');
            write_escaped(value, out);
        }
        // What has no text form is shown as the bytes it is.
        (short, _) => {
            out.push_str(short.map_or(number.as_str(), |(_, short)| short));
            out.push_str("=#");
            let value = attribute.attr_value();
            for byte in value.data {
                let _ = write!(out, "{byte:02X}");
            }
        }
    }
}

fn write_escaped(value: &str, out: &mut String) {
    let last = value.len().saturating_sub(1);
    for (at, character) in value.char_indices() {
        match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => out.extend(['\\', character]),
            '#' if at == 0 => out.push_str("\\#"),
            ' ' if at == 0 || at == last => out.push_str("\\ "),
            ' '..='~' => out.push(character),
            other => {
                let mut bytes = [0; 4];
                for byte in other.encode_utf8(&mut bytes).bytes() {
                    // A write to a `String` cannot fail.
                    let _ = write!(out, "\\{byte:02X}");
                }
            }
        }
    }
}
