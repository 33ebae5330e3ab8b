//! Everything that is known while configuration for one proxy is made.
//!
//! What is expensive is computed when it is first asked for, so that the
//! routes of one port do not pay for the clusters of the mesh.

use std::cell::OnceCell;
use std::sync::Arc;

use amime_api::mesh::MeshConfig;
use amime_core::{Hostname, Locality};
use amime_model::labels::{CLUSTER, add_topology, declared_locality, locality_in};
use amime_model::{
    AddressView, Labels, MergedRule, PeerPolicy, Service, ServiceTarget, SidecarScope, Snapshot,
    selects,
};

use crate::envoy_filter::Patches;
use crate::gateway::MergedGateway;
use crate::proxy::{Proxy, ProxyKind};
use crate::proxy_settings::ProxySettings;

/// The cluster of proxies that name none.
const DEFAULT_CLUSTER: &str = "Kubernetes";

/// One translation.
pub(crate) struct Context<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) proxy: &'a Proxy,
    pub(crate) mesh: &'a MeshConfig,
    pub(crate) scope: Arc<SidecarScope>,
    /// Labels of the workload.
    pub(crate) labels: Labels,
    /// Where it runs.
    pub(crate) locality: Locality,
    pub(crate) view: AddressView,
    pub(crate) settings: ProxySettings,
    targets: OnceCell<Vec<ServiceTarget>>,
    gateway: OnceCell<MergedGateway>,
    peer_policy: OnceCell<PeerPolicy>,
    patches: OnceCell<Patches>,
}

/// Which side of a connection a rule is looked up for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Inbound,
    Outbound,
}

impl<'a> Context<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot, proxy: &'a Proxy) -> Self {
        let mut labels = snapshot.workload_labels(&proxy.namespace, &proxy.ips, &proxy.labels);
        let (network, node) = (proxy.text("NETWORK"), proxy.text("NODE_NAME"));
        let declared = declared_locality(&labels);
        let known = if proxy.locality.is_empty() { &declared } else { &proxy.locality };
        add_topology(&mut labels, known, network, node);
        if !proxy.cluster_id.is_empty() {
            labels.insert(CLUSTER.to_owned(), proxy.cluster_id.clone());
        }
        let scope = match proxy.kind {
            ProxyKind::Sidecar => snapshot.sidecar_scope(&proxy.namespace, &labels),
            ProxyKind::Router => snapshot.gateway_scope(&proxy.namespace),
        };
        Self {
            snapshot,
            proxy,
            mesh: snapshot.mesh(),
            scope,
            locality: locality_in(&labels),
            labels,
            view: proxy.address_view(),
            settings: ProxySettings::of(snapshot.mesh(), proxy),
            targets: OnceCell::new(),
            gateway: OnceCell::new(),
            peer_policy: OnceCell::new(),
            patches: OnceCell::new(),
        }
    }

    /// Service ports that the workload serves.
    pub(crate) fn targets(&self) -> &[ServiceTarget] {
        self.targets.get_or_init(|| {
            // Where it runs counts, not whose configuration it follows.
            let namespace = self.source_namespace();
            self.snapshot.service_targets(namespace, &self.proxy.ips, &self.labels)
        })
    }

    /// The gateway servers that the workload runs.
    pub(crate) fn gateway(&self) -> &MergedGateway {
        self.gateway.get_or_init(|| MergedGateway::build(self))
    }

    /// Peer authentication of the workload.
    pub(crate) fn peer_policy(&self) -> &PeerPolicy {
        self.peer_policy
            .get_or_init(|| self.snapshot.authn().for_workload(&self.proxy.namespace, &self.labels))
    }

    /// What users change in the proxy's configuration.
    pub(crate) fn patches(&self) -> &Patches {
        self.patches.get_or_init(|| Patches::of(self))
    }

    /// The service a host means to this proxy.
    pub(crate) fn service(&self, host: &str) -> Option<&Arc<Service>> {
        self.scope.service(&Hostname::new(host))
    }

    /// The rule for a host: one that selects this workload, else the last one
    /// that selects nobody in particular.
    pub(crate) fn destination_rule(
        &self,
        hostname: &Hostname,
        direction: Direction,
    ) -> Option<&'a MergedRule> {
        let service = self.scope.service(hostname)?;
        let rules = self.snapshot.destination_rules().for_service(&self.proxy.namespace, service);
        let mut general = None;
        for rule in rules {
            match &rule.spec().workload_selector {
                None => general = Some(rule),
                Some(selector)
                    if direction == Direction::Outbound
                        && rule.config.namespace() == self.scope.namespace
                        && selects(&selector.match_labels, &self.labels) =>
                {
                    return Some(rule);
                }
                Some(_) => {}
            }
        }
        general
    }

    /// Cluster that everything is in.
    pub(crate) fn cluster_id(&self) -> &str {
        match self.proxy.cluster_id.as_str() {
            "" => DEFAULT_CLUSTER,
            own => own,
        }
    }

    /// Namespace that `sourceNamespace` conditions are compared with.
    pub(crate) fn source_namespace(&self) -> &str {
        match self.proxy.text("NAMESPACE") {
            "" => &self.proxy.namespace,
            namespace => namespace,
        }
    }

    /// Port of the listener behind the redirection of outbound connections.
    pub(crate) fn outbound_port(&self) -> u32 {
        u32::try_from(self.mesh.proxy_listen_port).unwrap_or(15001)
    }

    /// Port of the listener behind the redirection of inbound connections.
    pub(crate) fn inbound_port(&self) -> u32 {
        u32::try_from(self.mesh.proxy_inbound_listen_port).unwrap_or(15006)
    }

    /// Primary wildcard address of the proxy.
    pub(crate) fn wildcard(&self) -> String {
        self.proxy.wildcards().swap_remove(0)
    }
}
