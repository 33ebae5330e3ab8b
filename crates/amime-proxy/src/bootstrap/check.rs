//! What a bootstrap asks for, checked whole: every fault, not just the first.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use amime_engine::overload::OverloadPlan;
use amime_engine::runtime::{LocalCluster, Place, StaticReport};
use amime_rules::Faults;
use amime_xds::{Resource, TypeUrl};
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::core::v3::{
    Address, ConfigSource, Node, address, socket_address::PortSpecifier,
};

use super::ads::{self, AdsServer};
use super::sources::{AtHand, FileSource, Found, Origin, origin, references};

/// A bootstrap made ready to run.
#[derive(Default)]
pub(super) struct Plan {
    /// Static resources with the place where each stands.
    pub(super) resources: Vec<Placed>,
    pub(super) at_hand: AtHand,
    pub(super) ads: Option<AdsServer>,
    /// Where all listeners and all clusters come from, beside static ones.
    pub(super) listeners: Option<Origin>,
    pub(super) clusters: Option<Origin>,
    pub(super) admin: Option<SocketAddr>,
    /// The cluster that this proxy is part of.
    pub(super) local_cluster: Option<Arc<LocalCluster>>,
    /// What is done under pressure.
    pub(super) overload: OverloadPlan,
}

/// A static resource.
pub(super) struct Placed {
    /// As `static_resources.clusters[0]`.
    place: String,
    pub(super) resource: Resource,
    pub(super) references: Found,
}

impl Plan {
    /// Reads `bootstrap`; what is wrong with it goes to `faults`.
    pub(super) fn of(bootstrap: &Bootstrap, faults: &mut Faults) -> Self {
        let resources = bootstrap.static_resources.as_ref();
        let secrets = resources.into_iter().flat_map(|it| &it.secrets);
        let mut plan = Self {
            at_hand: AtHand {
                ads: bootstrap.dynamic_resources.as_ref().is_some_and(|it| it.ads_config.is_some()),
                secrets: secrets.map(|secret| secret.name.clone()).collect(),
            },
            ads: ads::server(bootstrap, faults),
            ..Self::default()
        };
        plan.admin = admin_address(bootstrap, faults);
        plan.overload = OverloadPlan::compile(
            bootstrap.overload_manager.as_ref(),
            bootstrap.layered_runtime.as_ref(),
            faults,
        );
        plan.local_cluster = local_cluster(bootstrap, faults);
        let dynamic = bootstrap.dynamic_resources.as_ref();
        let mut all = |source: Option<&ConfigSource>, field: &str| {
            let field = format!("dynamic_resources.{field}");
            faults.within(field, |faults| {
                let timeout = source?.initial_fetch_timeout.as_ref();
                // Nothing waits for all listeners or clusters but readiness.
                let limited = timeout.is_some_and(|it| it.seconds != 0 || it.nanos != 0);
                faults.ignore_if(limited, "initial_fetch_timeout");
                origin(source?, &plan.at_hand, faults)
            })
        };
        plan.clusters = all(dynamic.and_then(|it| it.cds_config.as_ref()), "cds_config");
        plan.listeners = all(dynamic.and_then(|it| it.lds_config.as_ref()), "lds_config");
        plan.resources = static_resources(bootstrap, &plan.at_hand, faults);
        plan
    }

    /// Files with all clusters or all listeners.
    pub(super) fn root_files(&self) -> Vec<(TypeUrl, FileSource)> {
        let of = |type_url, origin: &Option<Origin>| match origin {
            Some(Origin::File(file)) => Some((type_url, file.clone())),
            _ => None,
        };
        let clusters = of(TypeUrl::Cluster, &self.clusters);
        clusters.into_iter().chain(of(TypeUrl::Listener, &self.listeners)).collect()
    }

    /// Takes over what the runtime says about the static resources.
    pub(super) fn judge(&self, report: StaticReport, faults: &mut Faults) {
        for (type_url, rejection) in report.rejected {
            let place = self.place(type_url, &rejection.name);
            faults.reject(&place, rejection.error);
        }
        for (type_url, name, fault) in report.ignored {
            let place = self.place(type_url, &name);
            faults.ignore(&format!("{place}.{}", fault.path), fault.reason);
        }
    }

    fn place(&self, type_url: TypeUrl, name: &str) -> String {
        let is_it = |one: &&Placed| one.resource.type_url == type_url && one.resource.name == name;
        self.resources.iter().find(is_it).map_or_else(|| name.to_owned(), |one| one.place.clone())
    }
}

fn static_resources(bootstrap: &Bootstrap, at_hand: &AtHand, faults: &mut Faults) -> Vec<Placed> {
    let Some(resources) = &bootstrap.static_resources else { return vec![] };
    let mut all: Vec<(String, Resource)> = vec![];
    for (index, one) in resources.secrets.iter().enumerate() {
        all.push((format!("secrets[{index}]"), Resource::encode(&one.name, one)));
    }
    for (index, one) in resources.clusters.iter().enumerate() {
        all.push((format!("clusters[{index}]"), Resource::encode(&one.name, one)));
    }
    for (index, one) in resources.listeners.iter().enumerate() {
        // Envoy gives a nameless listener a random name; ours must be stable.
        let name = if one.name.is_empty() { format!("listener_{index}") } else { one.name.clone() };
        all.push((format!("listeners[{index}]"), Resource::encode(name, one)));
    }
    let mut names = BTreeSet::new();
    let mut placed = vec![];
    for (place, resource) in all {
        let place = format!("static_resources.{place}");
        let new = names.insert((resource.type_url, resource.name.clone()));
        if !new {
            faults.reject(&format!("{place}.name"), format!("{:?} is used twice", resource.name));
            continue;
        }
        let references =
            faults.within(place.clone(), |faults| references(&resource, at_hand, faults));
        placed.push(Placed { place, resource, references });
    }
    placed
}

/// The cluster that the proxy is part of, which must be a static one.
fn local_cluster(bootstrap: &Bootstrap, faults: &mut Faults) -> Option<Arc<LocalCluster>> {
    let name = &bootstrap.cluster_manager.as_ref()?.local_cluster_name;
    if name.is_empty() {
        return None;
    }
    let mut clusters = bootstrap.static_resources.iter().flat_map(|it| &it.clusters);
    let Some(cluster) = clusters.find(|one| one.name == *name) else {
        let reason = format!("there is no static cluster {name:?}");
        faults.reject("cluster_manager.local_cluster_name", reason);
        return None;
    };
    let groups = cluster.load_assignment.iter().flat_map(|it| &it.endpoints);
    if groups.into_iter().any(|group| group.priority > 0) {
        faults.reject("cluster_manager.local_cluster_name", "the cluster has several priorities");
    }
    Some(LocalCluster::new(name, place(bootstrap.node.as_ref())))
}

/// Where a node runs.
pub(crate) fn place(node: Option<&Node>) -> Option<Place> {
    let locality = node?.locality.as_ref()?;
    Some([&locality.region, &locality.zone, &locality.sub_zone].map(|part| part.as_str().into()))
}

/// The admin server's address, if the bootstrap asks for one.
fn admin_address(bootstrap: &Bootstrap, faults: &mut Faults) -> Option<SocketAddr> {
    let address = bootstrap.admin.as_ref()?.address.as_ref()?;
    let found = socket_address(address);
    if found.is_none() {
        faults.reject("admin.address", "not an IP address with a port");
    }
    found
}

fn socket_address(address: &Address) -> Option<SocketAddr> {
    let Some(address::Address::SocketAddress(socket)) = &address.address else { return None };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { return None };
    let ip: IpAddr = socket.address.parse().ok()?;
    Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
}
