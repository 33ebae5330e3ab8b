//! What the tests of this crate share: translating YAML, and short summaries.

use std::fmt::Write;

use amime_translate::Dump;
use amime_translate::offline::{NamedText, translate};
use serde_json::{Value, json};

/// A sidecar in `default` with this address and app label.
pub(crate) fn sidecar(ip: &str, app: &str) -> Value {
    json!({
        "type": "sidecar",
        "ips": [ip],
        "id": format!("{app}.default"),
        "dns_domain": "default.svc.cluster.local",
        "config_namespace": "default",
        "labels": {"app": app},
        "metadata": {"NAMESPACE": "default", "CLUSTER_ID": "Kubernetes"},
        "extensions": ["envoy.filters.http.router"],
    })
}

/// The ingress gateway.
pub(crate) fn gateway() -> Value {
    json!({
        "type": "router",
        "ips": ["10.0.9.9"],
        "id": "gateway.istio-system",
        "dns_domain": "istio-system.svc.cluster.local",
        "config_namespace": "istio-system",
        "labels": {"istio": "ingressgateway"},
        "metadata": {"NAMESPACE": "istio-system", "LABELS": {"istio": "ingressgateway"}},
        "extensions": ["envoy.filters.http.router"],
    })
}

/// Translates one text without mesh settings; every object must be readable.
#[track_caller]
pub(crate) fn dump(yaml: &str, proxy: &Value) -> Dump {
    dump_in_mesh(yaml, "{}", proxy)
}

#[track_caller]
pub(crate) fn dump_in_mesh(yaml: &str, mesh: &str, proxy: &Value) -> Dump {
    let file = NamedText { name: "test.yaml", text: yaml };
    let mesh = NamedText { name: "mesh.yaml", text: mesh };
    let translated = translate(&[file], Some(mesh), &proxy.to_string()).expect("input");
    assert_eq!(translated.skipped, [], "every object can be read");
    translated.dump
}

pub(crate) fn json_of<M: prost::Message + prost::Name>(message: &M) -> Value {
    amime_xds::json::to_json(message).expect("JSON")
}

/// The route configuration of this name.
#[track_caller]
pub(crate) fn routes(dump: &Dump, name: &str) -> Value {
    let found = dump.routes.iter().find(|routes| routes.name == name);
    json_of(found.unwrap_or_else(|| panic!("no routes {name}")))
}

#[track_caller]
pub(crate) fn cluster(dump: &Dump, name: &str) -> Value {
    let found = dump.clusters.iter().find(|cluster| cluster.name == name);
    json_of(found.unwrap_or_else(|| panic!("no cluster {name}")))
}

/// One line a virtual host and a route: what matches, where it goes.
pub(crate) fn routes_summary(routes: &Value) -> String {
    let mut out = String::new();
    for host in list(routes, "virtual_hosts") {
        let domains: Vec<&str> = list(host, "domains").iter().filter_map(Value::as_str).collect();
        writeln!(out, "{} [{}]", text(host, "name"), domains.join(" ")).expect("text");
        for route in list(host, "routes") {
            let mut matched = route["match"].clone();
            matched.as_object_mut().expect("a match").remove("case_sensitive");
            writeln!(out, "  {matched} -> {}", target(route)).expect("text");
        }
    }
    out
}

fn target(route: &Value) -> String {
    let action = &route["route"];
    if let Some(cluster) = action["cluster"].as_str() {
        return cluster.to_owned();
    }
    let weighted = list(&action["weighted_clusters"], "clusters");
    if !weighted.is_empty() {
        let part = |c: &Value| format!("{}={}", text(c, "name"), c["weight"]);
        return weighted.iter().map(part).collect::<Vec<_>>().join(" ");
    }
    for kind in ["redirect", "direct_response"] {
        if route.get(kind).is_some() {
            return format!("{kind} {}", route[kind]);
        }
    }
    "nothing".to_owned()
}

/// One line a listener and a chain: what matches, what it does.
pub(crate) fn listeners_summary(dump: &Dump) -> String {
    let mut out = String::new();
    for listener in &dump.listeners {
        let listener = json_of(listener);
        let inspectors: Vec<&str> = list(&listener, "listener_filters")
            .iter()
            .map(|filter| text(filter, "name").rsplit('.').next().unwrap_or_default())
            .collect();
        writeln!(out, "{} [{}]", text(&listener, "name"), inspectors.join(" ")).expect("text");
        for chain in list(&listener, "filter_chains") {
            writeln!(out, "  {}", chain_summary(chain)).expect("text");
        }
        if let Some(chain) = listener.get("default_filter_chain") {
            writeln!(out, "  default {}", chain_summary(chain)).expect("text");
        }
    }
    out
}

fn chain_summary(chain: &Value) -> String {
    let matched = chain.get("filter_chain_match").cloned().unwrap_or(json!({}));
    let tls = if chain.get("transport_socket").is_some() { " tls" } else { "" };
    let filters = list(chain, "filters");
    let last = &filters.last().expect("a filter")["typed_config"];
    let target =
        [&last["rds"]["route_config_name"], &last["route_config"]["name"], &last["cluster"]];
    let kind = if last.get("http_filters").is_some() { "http" } else { "tcp" };
    let target = target.into_iter().find_map(Value::as_str).unwrap_or("several");
    format!("{matched}{tls} {kind} {target}")
}

pub(crate) fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}
