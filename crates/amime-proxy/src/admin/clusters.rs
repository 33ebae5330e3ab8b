//! `/clusters`: endpoints of each cluster with their counters.

use std::fmt::Write;

use amime_core::unix::Shown;
use amime_engine::runtime::{ClusterDump, EndpointDump, RuntimeDump};
use serde_json::{Value, json};

/// Envoy's text form.
pub(super) fn text(dump: &RuntimeDump) -> String {
    let mut out = String::new();
    for cluster in &dump.clusters {
        // A write to a `String` cannot fail, here and below.
        let name = &cluster.name;
        let _ = writeln!(out, "{name}::observability_name::{name}");
        let limits = ["max_connections", "max_pending_requests", "max_requests", "max_retries"];
        for (limit, value) in limits.iter().zip(cluster.limits) {
            let _ = writeln!(out, "{name}::default_priority::{limit}::{value}");
        }
        for (limit, value) in limits.iter().zip([1024, 1024, 1024, 3]) {
            let _ = writeln!(out, "{name}::high_priority::{limit}::{value}");
        }
        let _ = writeln!(out, "{name}::added_via_api::{}", cluster.added_via_api);
        for endpoint in &cluster.endpoints {
            endpoint_text(&mut out, name, endpoint);
        }
    }
    out
}

fn endpoint_text(out: &mut String, cluster: &str, endpoint: &EndpointDump) {
    let mut line = |field: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(out, "{cluster}::{}::{field}::{value}", Shown(endpoint.address));
    };
    line("cx_active", &endpoint.cx_active);
    line("cx_connect_fail", &endpoint.cx_connect_fail);
    line("cx_total", &endpoint.cx_total);
    line("rq_active", &endpoint.rq_active);
    line("rq_error", &endpoint.rq_error);
    line("rq_success", &endpoint.rq_success);
    line("rq_timeout", &endpoint.rq_timeout);
    line("rq_total", &endpoint.rq_total);
    line("hostname", &endpoint.hostname);
    line("health_flags", &health_flags(endpoint));
    line("weight", &endpoint.weight);
    let [region, zone, sub_zone] = &endpoint.locality;
    line("region", region);
    line("zone", zone);
    line("sub_zone", sub_zone);
    line("canary", &false);
    line("priority", &endpoint.priority);
    line("success_rate", &endpoint.success_rate.unwrap_or(-1.0));
    line("local_origin_success_rate", &endpoint.local_success_rate.unwrap_or(-1.0));
}

fn health_flags(endpoint: &EndpointDump) -> String {
    if endpoint.health_flags.is_empty() {
        return "healthy".to_owned();
    }
    endpoint.health_flags.iter().map(|flag| format!("/{flag}")).collect()
}

/// Envoy's JSON form, `envoy.admin.v3.Clusters`.
pub(super) fn json(dump: &RuntimeDump) -> Value {
    let statuses: Vec<_> = dump.clusters.iter().map(cluster_json).collect();
    json!({ "cluster_statuses": statuses })
}

fn cluster_json(cluster: &ClusterDump) -> Value {
    let [connections, pending, requests, retries] = cluster.limits;
    let hosts: Vec<_> = cluster.endpoints.iter().map(endpoint_json).collect();
    json!({
        "name": cluster.name,
        "added_via_api": cluster.added_via_api,
        "host_statuses": hosts,
        "circuit_breakers": {"thresholds": [
            {
                "max_connections": connections,
                "max_pending_requests": pending,
                "max_requests": requests,
                "max_retries": retries,
            },
            {
                "priority": "HIGH",
                "max_connections": 1024,
                "max_pending_requests": 1024,
                "max_requests": 1024,
                "max_retries": 3,
            },
        ]},
        "observability_name": cluster.name,
    })
}

fn endpoint_json(endpoint: &EndpointDump) -> Value {
    let counter = |name: &str, value: u64| json!({"name": name, "value": value.to_string()});
    let gauge =
        |name: &str, value: u64| json!({"type": "GAUGE", "name": name, "value": value.to_string()});
    let [region, zone, sub_zone] = &endpoint.locality;
    let mut health = json!({
        "eds_health_status": if endpoint.eds_healthy { "HEALTHY" } else { "UNHEALTHY" },
    });
    for flag in &endpoint.health_flags {
        // The fields that have other names than the flags.
        let field = match *flag {
            "failed_active_hc" => "failed_active_health_check",
            "degraded_active_hc" => "failed_active_degraded_check",
            "failed_eds_health" | "degraded_eds_health" | "eds_status_draining" => continue,
            same => same,
        };
        health[field] = json!(true);
    }
    let mut status = json!({
        "address": super::listeners::socket_address(endpoint.address),
        "stats": [
            counter("cx_connect_fail", endpoint.cx_connect_fail),
            counter("cx_total", endpoint.cx_total),
            counter("rq_error", endpoint.rq_error),
            counter("rq_success", endpoint.rq_success),
            counter("rq_timeout", endpoint.rq_timeout),
            counter("rq_total", endpoint.rq_total),
            gauge("cx_active", endpoint.cx_active),
            gauge("rq_active", endpoint.rq_active),
        ],
        "health_status": health,
        "weight": endpoint.weight,
        "hostname": endpoint.hostname,
        "priority": endpoint.priority,
        "locality": {"region": region, "zone": zone, "sub_zone": sub_zone},
    });
    if let Some(rate) = endpoint.success_rate {
        status["success_rate"] = json!({"value": rate});
    }
    if let Some(rate) = endpoint.local_success_rate {
        status["local_origin_success_rate"] = json!({"value": rate});
    }
    status
}
