//! Labels that say where a workload runs, whether or not it carries them.

use amime_core::Locality;

use crate::service::Labels;

/// Region.
pub const REGION: &str = "topology.kubernetes.io/region";
/// Zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Part of a zone.
pub const SUBZONE: &str = "topology.istio.io/subzone";
/// Network.
pub const NETWORK: &str = "topology.istio.io/network";
/// Cluster.
pub const CLUSTER: &str = "topology.istio.io/cluster";
/// Node.
pub const NODE: &str = "kubernetes.io/hostname";

/// Labels with which a workload says itself where it runs.
const DECLARED: [&str; 2] = ["topology.istio.io/locality", "istio-locality"];

/// The locality that a workload's own labels declare.
pub fn declared_locality(labels: &Labels) -> Locality {
    let value = DECLARED.iter().find_map(|label| labels.get(*label));
    value.map(|value| Locality::from_label(value)).unwrap_or_default()
}

/// Names of [`REGION`] and [`ZONE`] on nodes of old clusters.
const OLD_REGION: &str = "failure-domain.beta.kubernetes.io/region";
const OLD_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";

/// The locality that a node's labels name.
pub(crate) fn node_locality(labels: &Labels) -> Locality {
    let first = |names: &[&str]| {
        names.iter().find_map(|name| labels.get(*name)).cloned().unwrap_or_default()
    };
    Locality {
        region: first(&[REGION, OLD_REGION]),
        zone: first(&[ZONE, OLD_ZONE]),
        subzone: first(&[SUBZONE]),
    }
}

/// Adds what is known about where a workload runs; the network only if the
/// workload does not name its own.
pub fn add_topology(labels: &mut Labels, locality: &Locality, network: &str, node: &str) {
    let Locality { region, zone, subzone } = locality;
    for (label, value) in
        [(REGION, region.as_str()), (ZONE, zone), (SUBZONE, subzone), (NODE, node)]
    {
        if !value.is_empty() {
            labels.insert(label.to_owned(), value.to_owned());
        }
    }
    if !network.is_empty() {
        labels.entry(NETWORK.to_owned()).or_insert_with(|| network.to_owned());
    }
}

/// The locality that labels of [`add_topology`] name.
pub fn locality_in(labels: &Labels) -> Locality {
    let value = |label: &str| labels.get(label).cloned().unwrap_or_default();
    Locality { region: value(REGION), zone: value(ZONE), subzone: value(SUBZONE) }
}
