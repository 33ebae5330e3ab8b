//! Patches of clusters.

use amime_api::networking::{ApplyTo, ClusterMatch, PatchOperation};
use amime_xds::json::{Lists, merge_any};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{TransportSocket, transport_socket};

use super::{Patch, Patches, Side};
use crate::names::{InboundName, OutboundName};

/// Changes the clusters of one side of a proxy.
pub(crate) struct ClusterPatcher<'p> {
    patches: Vec<&'p Patch>,
    side: Side,
}

impl<'p> ClusterPatcher<'p> {
    pub(crate) fn new(patches: &'p Patches, side: Side) -> Self {
        Self { patches: patches.on(side, &[ApplyTo::Cluster]), side }
    }

    /// The cluster as patched; `None` if it is removed.
    ///
    /// `hosts` are the services behind an inbound cluster, which does not name
    /// any.
    pub(crate) fn patch(
        &self,
        mut cluster: Cluster,
        hosts: &dyn Fn(u32) -> Vec<String>,
    ) -> Option<Cluster> {
        for patch in &self.patches {
            let merges = patch.merges();
            let removes = patch.operation == PatchOperation::Remove;
            if !(removes || merges.is_some()) || !matches(&cluster.name, patch, hosts) {
                continue;
            }
            if removes {
                return None;
            }
            merge(&mut cluster, patch, merges.unwrap_or(Lists::Append));
        }
        Some(cluster)
    }

    /// Clusters that patches add.
    pub(crate) fn additions(&self) -> impl Iterator<Item = Cluster> {
        let added = self.patches.iter().filter(|patch| {
            patch.operation == PatchOperation::Add
                && self.side.takes_additions(patch.matched.context)
        });
        added.filter_map(|patch| patch.message())
    }
}

fn matches(name: &str, patch: &Patch, hosts: &dyn Fn(u32) -> Vec<String>) -> bool {
    let Some(ClusterMatch { port_number, service, subset, name: wanted }) = &patch.matched.cluster
    else {
        return true;
    };
    if !wanted.is_empty() {
        return wanted == name;
    }
    let (port, own_subset, own_hosts) = if let Some(name) = OutboundName::parse(name) {
        (name.port, name.subset, vec![name.hostname.as_str().to_owned()])
    } else if let Some(InboundName { port }) = InboundName::parse(name) {
        (port, String::new(), hosts(port))
    } else {
        (0, String::new(), Vec::new())
    };
    (subset.is_empty() || *subset == own_subset)
        && (service.is_empty() || own_hosts.contains(service))
        && (*port_number == 0 || *port_number == port)
}

fn merge(cluster: &mut Cluster, patch: &Patch, lists: Lists) {
    let Some(value) = patch.message::<Cluster>() else { return };
    match value.transport_socket {
        Some(socket) => merge_socket(cluster, socket, lists),
        None => patch.merge_into(cluster),
    }
}

/// A patch with a transport socket is about nothing else.
fn merge_socket(cluster: &mut Cluster, patch: TransportSocket, lists: Lists) {
    let mut choices = cluster.transport_socket_matches.iter_mut().peekable();
    let own = if choices.peek().is_some() {
        let mut sockets = choices.filter_map(|choice| choice.transport_socket.as_mut());
        // Beside choices there must be no socket for all.
        let Some(own) = sockets.find(|own| own.name == patch.name) else { return };
        Some(own)
    } else {
        cluster.transport_socket.as_mut().filter(|own| own.name == patch.name)
    };
    match own {
        Some(own) => merge_config(own, &patch, lists),
        None => cluster.transport_socket = Some(patch),
    }
}

/// Merges the configurations of two sockets of one name.
pub(super) fn merge_config(own: &mut TransportSocket, patch: &TransportSocket, lists: Lists) {
    use transport_socket::ConfigType::TypedConfig;
    if let (Some(TypedConfig(own)), Some(TypedConfig(patch))) =
        (&mut own.config_type, &patch.config_type)
    {
        // Another type says nothing about this socket.
        drop(merge_any(own, patch, lists));
    }
}
