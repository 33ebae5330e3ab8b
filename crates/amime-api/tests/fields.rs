//! The table of fields for users is complete: each field of the types stands in it.

use std::collections::BTreeMap;

const DOCUMENT: &str = include_str!("../../../docs/fields.md");
const SOURCES: [&str; 9] = [
    include_str!("../src/networking/virtual_service.rs"),
    include_str!("../src/networking/destination_rule.rs"),
    include_str!("../src/networking/gateway.rs"),
    include_str!("../src/networking/service_entry.rs"),
    include_str!("../src/networking/sidecar.rs"),
    include_str!("../src/networking/envoy_filter.rs"),
    include_str!("../src/mesh/config.rs"),
    include_str!("../src/mesh/connection_settings.rs"),
    include_str!("../src/mesh/proxy.rs"),
];
/// Kinds of other tables: what workloads register with, and how proxies start.
const ELSEWHERE: [&str; 9] = [
    "StringMatchFields",
    "WorkloadGroup",
    "WorkloadGroupMeta",
    "ReadinessProbe",
    "HttpHealthCheckConfig",
    "HttpHeader",
    "TcpHealthCheckConfig",
    "ExecHealthCheckConfig",
    "GrpcHealthCheckConfig",
];
/// Messages of the proxy's own settings that the document goes into.
const OF_PROXIES: [&str; 3] = ["ProxyConfig", "GatewayTopology", "ProxyHeaders"];

/// JSON names of the fields of each message in a source file.
fn messages(source: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = None;
    let mut renamed = None;
    for line in source.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("pub struct ").and_then(|l| l.strip_suffix(" {")) {
            current = Some(name.to_owned());
        } else if line == "}" {
            current = None;
        } else if let Some(rest) = line.strip_prefix("#[serde(rename = \"") {
            renamed = rest.split('"').next().map(str::to_owned);
        } else if let (Some(message), Some((name, _))) = (&current, field(line)) {
            let name = renamed.take().unwrap_or_else(|| camel_case(name));
            found.entry(message.clone()).or_default().push(name);
        }
    }
    found
}

fn field(line: &str) -> Option<(&str, &str)> {
    let (name, kind) = line.strip_prefix("pub ")?.split_once(": ")?;
    let name = name.strip_prefix("r#").unwrap_or(name);
    name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_').then_some((name, kind))
}

fn camel_case(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut out, part| {
        let (head, tail) = part.split_at(1);
        out.push_str(&head.to_ascii_uppercase());
        out.push_str(tail);
        out
    })
}

/// Fields that have a row in the section of a message.
fn documented(message: &str) -> Vec<String> {
    let heading = format!("### {message}");
    let section = DOCUMENT.lines().skip_while(|line| *line != heading).skip(1);
    let rows = section.take_while(|line| !line.starts_with('#')).filter(|l| l.starts_with("| `"));
    let names = rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split(','));
    names.map(|name| name.trim().trim_matches('`').to_owned()).collect()
}

#[test]
fn every_field_has_a_row() {
    let mut missing = Vec::new();
    let mut extra = Vec::new();
    let (last, others) = SOURCES.split_last().expect("sources");
    let mut known: BTreeMap<String, Vec<String>> =
        others.iter().flat_map(|s| messages(s)).collect();
    known
        .extend(messages(last).into_iter().filter(|(name, _)| OF_PROXIES.contains(&name.as_str())));
    known.retain(|name, _| !ELSEWHERE.contains(&name.as_str()));
    assert!(known.len() > 60, "the sources are read: {}", known.len());
    for (message, fields) in &known {
        let rows = documented(message);
        let lacks = |field: &&String| !rows.contains(field);
        missing.extend(fields.iter().filter(lacks).map(|field| format!("{message}.{field}")));
        let unknown = rows.iter().filter(|row| !fields.contains(row));
        extra.extend(unknown.map(|row| format!("{message}.{row}")));
    }
    assert_eq!((missing, extra), (Vec::<String>::new(), Vec::<String>::new()));
}
