//! The table of endpoints, from `/clusters?format=json`.

use serde_json::Value;

use super::PADDING;
use super::dump::{at, camel_case, field, list, number, text};
use crate::table::Table;

/// Which endpoints to show; empty fields let all pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct EndpointFilter {
    /// Address.
    pub(crate) address: String,
    /// Port; 0 for all.
    pub(crate) port: u16,
    /// Name of the cluster.
    pub(crate) cluster: String,
    /// `HEALTHY`, `UNHEALTHY` …
    pub(crate) status: String,
}

impl EndpointFilter {
    fn passes(&self, host: &Value, cluster: &str) -> bool {
        let is = |want: &str, got: &str| want.is_empty() || want.eq_ignore_ascii_case(got);
        is(&self.address, &address(host))
            && (self.port == 0 || port(host) == u64::from(self.port))
            && is(&self.cluster, cluster)
            && is(&self.status, status(host))
    }
}

/// istioctl's table, ordered by address, port and cluster.
pub(crate) fn table(clusters: &Value, filter: &EndpointFilter) -> Table {
    let mut rows = Vec::new();
    for cluster in list(clusters, "cluster_statuses") {
        let name = text(cluster, "name");
        let hosts = list(cluster, "host_statuses").iter().filter(|h| filter.passes(h, name));
        rows.extend(hosts.map(|host| (address(host), port(host), name, host)));
    }
    rows.sort_by(|a, b| (&a.0, a.1, a.2).cmp(&(&b.0, b.1, b.2)));
    let mut table = Table::new(PADDING, ["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"]);
    for (address, port, cluster, host) in rows {
        let endpoint = if port == 0 { address } else { format!("{address}:{port}") };
        let failed = at(host, &["health_status", "failed_outlier_check"]) == true;
        let outlier = if failed { "FAILED" } else { "OK" };
        table.row([&endpoint, status(host), outlier, cluster]);
    }
    table
}

/// The clusters that have an endpoint which passes.
pub(crate) fn select(clusters: &Value, filter: &EndpointFilter) -> Value {
    list(clusters, "cluster_statuses")
        .iter()
        .filter(|cluster| {
            let name = text(cluster, "name");
            list(cluster, "host_statuses").iter().any(|host| filter.passes(host, name))
        })
        .map(camel_case)
        .collect()
}

fn address(host: &Value) -> String {
    let address = field(host, "address");
    if let Some(ip) = at(address, &["socket_address", "address"]).as_str() {
        return ip.to_owned();
    }
    if let Some(path) = at(address, &["pipe", "path"]).as_str() {
        return format!("unix://{path}");
    }
    let internal = field(address, "envoy_internal_address");
    match text(internal, "server_listener_name") {
        "" => "unknown".to_owned(),
        listener => format!("envoy://{listener}/{}", text(internal, "endpoint_id")),
    }
}

fn port(host: &Value) -> u64 {
    number(at(host, &["address", "socket_address"]), "port_value")
}

fn status(host: &Value) -> &str {
    match text(field(host, "health_status"), "eds_health_status") {
        "" => "UNKNOWN",
        status => status,
    }
}
