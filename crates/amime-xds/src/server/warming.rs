//! Clusters that a client was sent and has no endpoints for.
//!
//! Owns the list of them; the pusher holds listeners and routes back until it
//! is empty. Clients acknowledge a cluster before its endpoints are there, and
//! what points at it by then finds nobody.
//!
//! Invariant: every way that a cluster can cease to wait takes it off the
//! list: its endpoints were sent, it was refused, it is gone, or time is up.

use std::collections::{BTreeMap, BTreeSet};

use crate::Resource;

/// `Cluster.DiscoveryType.EDS`.
const EDS: i32 = 3;

/// A cluster whose endpoints are discovered on their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdsCluster {
    /// Name of the cluster.
    pub name: String,
    /// Name that its endpoints are subscribed under.
    pub endpoints: String,
}

/// The two fields of a cluster that matter here; decoding the others for each
/// client would cost more than translating some of them.
#[derive(Clone, PartialEq, prost::Message)]
struct Discovered {
    #[prost(int32, tag = "2")]
    r#type: i32,
    #[prost(message, optional, tag = "3")]
    eds: Option<Eds>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Eds {
    #[prost(string, tag = "2")]
    service_name: String,
}

impl EdsCluster {
    /// What `cluster` asks for; `None` when it needs no endpoint discovery.
    pub(super) fn of(cluster: &Resource) -> Option<Self> {
        let message = <Discovered as prost::Message>::decode(cluster.body.clone()).ok()?;
        if message.r#type != EDS {
            return None;
        }
        let service = message.eds.map(|eds| eds.service_name).filter(|name| !name.is_empty());
        let name = cluster.name.clone();
        Some(Self { endpoints: service.unwrap_or_else(|| name.clone()), name })
    }
}

/// The clusters that wait, and the endpoints that each waits for.
#[derive(Debug, Default)]
pub(super) struct Warming(BTreeMap<String, String>);

impl Warming {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds clusters that were just sent.
    pub(super) fn sent(&mut self, clusters: Vec<EdsCluster>) {
        self.0.extend(clusters.into_iter().map(|cluster| (cluster.name, cluster.endpoints)));
    }

    /// Forgets the clusters whose endpoints are `told`.
    pub(super) fn settle(&mut self, told: impl Fn(&str) -> bool) {
        self.0.retain(|_, endpoints| !told(endpoints));
    }

    /// Forgets clusters that the client refused.
    pub(super) fn refused(&mut self, rejected: &BTreeMap<String, String>) {
        self.0.retain(|cluster, _| !rejected.contains_key(cluster));
    }

    /// Forgets clusters that are not `present` any more; with `only`, others
    /// than those named are known to be.
    pub(super) fn keep(&mut self, present: &[Resource], only: Option<&BTreeSet<String>>) {
        if self.0.is_empty() {
            return;
        }
        let present: BTreeSet<&str> = present.iter().map(|c| c.name.as_str()).collect();
        self.0.retain(|cluster, _| {
            present.contains(cluster.as_str()) || only.is_some_and(|only| !only.contains(cluster))
        });
    }
}
