//! `/server_info` and `/memory`.

use std::time::SystemTime;

use amime_xds::TypeUrl;
use envoy_types::pb::envoy::config::core::v3::Node;
use prost::{Message, Name};
use serde_json::{Value, json};

use super::Context;
use crate::json::Work;

/// The command line, as Envoy's `CommandLineOptions` shows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct CommandLine {
    pub(crate) concurrency: usize,
    pub(crate) config_path: String,
    pub(crate) log_level: String,
    pub(crate) service_node: String,
    pub(crate) service_cluster: String,
    pub(crate) drain_s: u64,
    /// Options that only `/server_info` shows, by Envoy's names.
    pub(crate) others: serde_json::Map<String, Value>,
}

/// `LIVE`, `DRAINING`, `PRE_INITIALIZING` or `INITIALIZING`.
pub(super) fn state(context: &Context) -> &'static str {
    if context.ready.is_draining() {
        return "DRAINING";
    }
    match context.readiness() {
        Ok(()) => "LIVE",
        Err(_) => "INITIALIZING",
    }
}

/// Envoy's `envoy.admin.v3.ServerInfo`.
pub(super) async fn server_info(context: &Context) -> Value {
    let options = &context.options;
    let uptime = format!("{}s", context.telemetry.uptime().as_secs());
    let version = amime_core::build::VERSION;
    let mut work = Work::default();
    let node = context.bootstrap.node.clone().unwrap_or_default();
    work.print(&Node::type_url(), node.encode_to_vec().into());
    let mut node = context.converter.print(&work).await.pop().unwrap_or_default();
    if let Value::Object(fields) = &mut node {
        fields.remove("@type");
    }
    let mut shown = options.others.clone();
    let more = json!({
        "concurrency": options.concurrency,
        "config_path": options.config_path,
        "log_level": options.log_level,
        "service_node": options.service_node,
        "service_cluster": options.service_cluster,
        "drain_time": format!("{}s", options.drain_s),
        "mode": "Serve",
        "disable_hot_restart": true,
    });
    if let Value::Object(more) = more {
        shown.extend(more);
    }
    json!({
        "version": format!("amime/{version}/Clean/RELEASE/aws-lc"),
        "state": state(context),
        "hot_restart_version": "disabled",
        "command_line_options": shown,
        "node": node,
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
    })
}

/// Brings the gauges up to date that nothing counts by itself.
pub(super) fn refresh_gauges(context: &Context) {
    context.runtime.refresh_gauges();
    let (dump, server) = (context.runtime.dump(), context.telemetry.server());
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let warming = |type_url| {
        count(dump.resources.iter().filter(|one| one.type_url == type_url && one.warming).count())
    };
    server.cluster_manager_active_clusters.set(count(dump.clusters.len()));
    server.cluster_manager_warming_clusters.set(warming(TypeUrl::Cluster));
    server.listener_manager_total_listeners_active.set(count(dump.listeners.len()));
    server.listener_manager_total_listeners_warming.set(warming(TypeUrl::Listener));
    server.listener_manager_workers_started.set(1);
    server.server_concurrency.set(count(context.options.concurrency));
    let resident = i64::try_from(resident_bytes().1).unwrap_or(i64::MAX);
    server.server_memory_allocated.set(resident);
    server.server_memory_heap_size.set(resident);
    server.server_memory_physical_size.set(resident);
    server.server_total_connections.set(count(context.runtime.connections()));
    server.server_state.set(match state(context) {
        "LIVE" => 0,
        "DRAINING" => 1,
        _ => 3,
    });
    // As Envoy shows it when there is none.
    server.server_days_until_first_cert_expiring.set(i64::from(u32::MAX));
    let cert = context.identity.as_ref().and_then(|identity| identity.cert.current());
    if let Some(cert) = cert {
        let left = cert.not_after().duration_since(SystemTime::now()).unwrap_or_default();
        let days = i64::try_from(left.as_secs() / 86_400).unwrap_or(i64::MAX);
        server.server_days_until_first_cert_expiring.set(days);
    }
}

/// Envoy's `envoy.admin.v3.Memory`, as far as the kernel tells it.
pub(super) fn memory() -> Value {
    let (total, resident) = resident_bytes();
    json!({
        "allocated": resident.to_string(),
        "heap_size": resident.to_string(),
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": resident.to_string(),
        "total_virtual_bytes": total.to_string(),
    })
}

/// Bytes of address space and of resident memory.
fn resident_bytes() -> (u64, u64) {
    // Pages: total, resident, shared, text, lib, data.
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = statm.split_whitespace().map(|n| n.parse::<u64>().unwrap_or_default());
    let mut bytes = || pages.next().unwrap_or_default() * 4096;
    (bytes(), bytes())
}
