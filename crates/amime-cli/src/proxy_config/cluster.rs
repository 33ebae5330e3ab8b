//! The table of clusters.

use anyhow::ensure;
use serde_json::Value;

use super::PADDING;
use super::dump::{ConfigDump, origin, text};
use crate::table::Table;

/// Which clusters to show; empty fields let all pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClusterFilter {
    /// Part of the host name.
    pub(crate) fqdn: String,
    /// `inbound` or `outbound`.
    pub(crate) direction: String,
    /// Part of the subset's name.
    pub(crate) subset: String,
    /// Service port; 0 for all.
    pub(crate) port: u16,
}

/// A name such as `outbound|9080|v1|reviews.default.svc.cluster.local`.
struct SubsetKey<'a> {
    direction: &'a str,
    port: &'a str,
    subset: &'a str,
    host: &'a str,
}

impl<'a> SubsetKey<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let mut parts = name.splitn(4, '|');
        let (direction, port, subset, host) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        Some(Self { direction, port, subset, host })
    }
}

impl ClusterFilter {
    fn passes(&self, name: &str) -> bool {
        name.contains(&self.fqdn)
            && name.contains(&self.direction)
            && name.contains(&self.subset)
            && (self.port == 0 || name.contains(&format!("|{}|", self.port)))
    }
}

/// Clusters of the dump, ordered by host, subset, port and direction.
pub(crate) fn select<'a>(
    dump: &'a ConfigDump,
    filter: &ClusterFilter,
) -> anyhow::Result<Vec<&'a Value>> {
    let mut clusters = dump.resources(
        "ClustersConfigDump",
        &[("dynamic_active_clusters", &["cluster"]), ("static_clusters", &["cluster"])],
    );
    ensure!(!clusters.is_empty(), "no clusters found");
    clusters.sort_by_cached_key(|cluster| {
        let name = text(cluster, "name");
        match SubsetKey::parse(name) {
            Some(key) => (
                key.host.to_owned(),
                key.subset.to_owned(),
                key.port.parse().unwrap_or(0u32),
                key.direction.to_owned(),
            ),
            None => (name.to_owned(), String::new(), 0, String::new()),
        }
    });
    clusters.retain(|cluster| filter.passes(text(cluster, "name")));
    Ok(clusters)
}

/// istioctl's table.
pub(crate) fn table(clusters: &[&Value], named: bool) -> Table {
    let header = ["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"];
    let mut table = Table::new(PADDING, named.then_some("NAME").into_iter().chain(header));
    for cluster in clusters {
        let name = text(cluster, "name");
        let (host, port, subset, direction) = match SubsetKey::parse(name) {
            Some(SubsetKey { direction, port, subset, host }) => {
                (host, port, if subset.is_empty() { "-" } else { subset }, direction)
            }
            None => (name, "-", "-", "-"),
        };
        let row = [host, port, subset, direction, kind(cluster)].map(str::to_owned);
        let first = named.then(|| format!("cluster/{name}"));
        table.row(first.into_iter().chain(row).chain([origin(cluster)]));
    }
    table
}

/// `type`, or the name of a custom one; absent means static.
fn kind(cluster: &Value) -> &str {
    match text(cluster, "type") {
        "" if cluster.get("cluster_type").or(cluster.get("clusterType")).is_some() => "CUSTOM",
        "" => "STATIC",
        kind => kind,
    }
}
