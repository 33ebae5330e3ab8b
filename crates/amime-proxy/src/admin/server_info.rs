//! `/server_info` and `/memory`.

use amime_xds::json::to_json;
use serde_json::{Value, json};

use super::Context;

/// The command line, as Envoy's `CommandLineOptions` shows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct CommandLine {
    pub(crate) concurrency: usize,
    pub(crate) config_path: String,
    pub(crate) log_level: String,
    pub(crate) service_node: String,
    pub(crate) service_cluster: String,
    pub(crate) drain_s: u64,
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
pub(super) fn server_info(context: &Context) -> Value {
    let options = &context.options;
    let uptime = format!("{}s", context.telemetry.uptime().as_secs());
    let version = amime_core::build::VERSION;
    let node = context.bootstrap.node.as_ref().and_then(|node| to_json(node).ok());
    json!({
        "version": format!("amime/{version}/Clean/RELEASE/aws-lc"),
        "state": state(context),
        "hot_restart_version": "disabled",
        "command_line_options": {
            "concurrency": options.concurrency,
            "config_path": options.config_path,
            "log_level": options.log_level,
            "service_node": options.service_node,
            "service_cluster": options.service_cluster,
            "mode": "Serve",
            "drain_time": format!("{}s", options.drain_s),
        },
        "node": node,
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
    })
}

/// Envoy's `envoy.admin.v3.Memory`, as far as the kernel tells it.
pub(super) fn memory() -> Value {
    // Pages: total, resident, shared, text, lib, data.
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = statm.split_whitespace().map(|n| n.parse::<u64>().unwrap_or_default());
    let mut bytes = || pages.next().unwrap_or_default() * 4096;
    let (total, resident) = (bytes(), bytes());
    json!({
        "allocated": resident.to_string(),
        "heap_size": resident.to_string(),
        "total_physical_bytes": resident.to_string(),
        "total_virtual_bytes": total.to_string(),
    })
}
