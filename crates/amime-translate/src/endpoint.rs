//! EDS: the endpoints behind each cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use amime_api::networking::{ClientTlsMode, DestinationRule, TrafficPolicy};
use amime_core::Locality;
use amime_model::{
    Endpoint, Health, Labels, MtlsMode, Port, Service, TLS_MODE_DISABLED, TLS_MODE_ISTIO,
};
use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Locality as EnvoyLocality, Metadata};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as EnvoyEndpoint, LbEndpoint, LocalityLbEndpoints,
};

use crate::cluster::with_mesh_default;
use crate::context::{Context, Direction};
use crate::locality::{self, LocalityGroup};
use crate::names::{LOCAL_CLUSTER, OutboundName};
use crate::network::Crossing;
use crate::origin::{ISTIO, TRANSPORT_SOCKET_MATCH, origin, service_path};
use crate::proto::{address, metadata, string_value, u32_value};

/// Endpoints of the cluster with this name; empty if we know none.
pub(crate) fn load_assignment(context: &Context<'_>, name: &str) -> ClusterLoadAssignment {
    let mut assignment =
        ClusterLoadAssignment { cluster_name: name.to_owned(), ..Default::default() };
    if name == LOCAL_CLUSTER {
        assignment.endpoints = of_own_kind(context).unwrap_or_default();
        return assignment;
    }
    let Some(parsed) = OutboundName::parse(name) else { return assignment };
    let Some(service) = context.scope.service(&parsed.hostname) else { return assignment };
    let Some(port) = service.port(parsed.port) else { return assignment };
    let subset = Subset { service, port, name: &parsed.subset, mtls_only: parsed.sni };
    assignment.endpoints = subset.prioritised(context, Source::Eds);
    assignment
}

/// Replicas of the proxy's own workload in its region, by the first port that
/// it serves; rules have no say in it, as nothing is sent there.
fn of_own_kind(context: &Context<'_>) -> Option<Vec<LocalityLbEndpoints>> {
    let target = context.targets().first()?;
    let service = context.scope.service(&target.service.hostname)?;
    let port = service.port(target.port.number)?;
    let subset = Subset { service, port, name: "", mtls_only: false };
    let is_own = |endpoint: &Endpoint| {
        // Deployments share their name while one version replaces another.
        let same = |label: &str| endpoint.labels.get(label) == context.labels.get(label);
        endpoint.workload == context.proxy.text("WORKLOAD_NAME")
            && REPLICA_SETS.into_iter().all(same)
            && endpoint.locality.region == context.locality.region
    };
    let groups = subset.localities(context, None, Source::Eds, is_own);
    Some(locality::plain(groups))
}

/// Labels by which the replicas of one version know each other.
const REPLICA_SETS: [&str; 2] = ["pod-template-hash", "rollouts-pod-template-hash"];

/// Where the endpoints will stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// In an assignment of their own, where only addresses are allowed.
    Eds,
    /// In the cluster, where names are resolved.
    Cluster,
}

/// One port of a service, or of a subset of it.
pub(crate) struct Subset<'a> {
    pub(crate) service: &'a Arc<Service>,
    pub(crate) port: &'a Port,
    /// Empty for the whole service.
    pub(crate) name: &'a str,
    /// Leave out endpoints without mutual TLS.
    pub(crate) mtls_only: bool,
}

impl Subset<'_> {
    /// The endpoints by locality, the near ones first if that is wanted.
    pub(crate) fn prioritised(
        &self,
        context: &Context<'_>,
        source: Source,
    ) -> Vec<LocalityLbEndpoints> {
        let rule = context.destination_rule(&self.service.hostname, Direction::Outbound);
        let spec = rule.map(|rule| rule.spec());
        let groups = self.localities(context, spec, source, |_| true);
        let policy = self.policy(context, spec);
        let lb = policy.as_ref().and_then(|policy| policy.load_balancer.as_ref());
        let detects = policy.as_ref().is_some_and(|policy| policy.outlier_detection.is_some());
        match locality::effective(context, lb, Some(self.service)) {
            Some(setting) => setting.apply(context, groups, detects),
            None => locality::plain(groups),
        }
    }

    /// The endpoints by locality, sorted.
    fn localities(
        &self,
        context: &Context<'_>,
        spec: Option<&DestinationRule>,
        source: Source,
        wanted: impl Fn(&Endpoint) -> bool,
    ) -> Vec<LocalityGroup> {
        let keep_unready = !self.panics(context, spec);
        let forced = spec.and_then(|rule| tls_mode(rule, self.name, self.port.number));
        let crossing = Crossing::of(context).filter(|_| source == Source::Eds);
        let mut groups: BTreeMap<String, Vec<(Arc<Endpoint>, bool)>> = BTreeMap::new();
        for endpoint in self.endpoints(context, spec) {
            let usable = match endpoint.health {
                Health::Healthy => true,
                Health::Unhealthy => keep_unready || self.service.publish_not_ready,
                Health::Draining => self.service.keeps_sessions(),
                Health::Terminating => false,
            };
            let placed = source == Source::Cluster || endpoint.port == 0 || endpoint.is_ip();
            if !usable || !placed || endpoint.address.is_empty() || !wanted(&endpoint) {
                continue;
            }
            let mtls = match forced {
                Some(mode) => mode == ClientTlsMode::IstioMutual,
                None => speaks_mtls(context, &endpoint),
            };
            if mtls || !self.mtls_only {
                groups.entry(endpoint.locality.to_string()).or_default().push((endpoint, mtls));
            }
        }
        let path = service_path(self.service);
        let groups = groups.into_values().map(|group| match &crossing {
            Some(crossing) => crossing.replaced(group),
            None => group,
        });
        groups
            .filter(|group| !group.is_empty())
            .map(|group| LocalityGroup {
                envoy: locality_endpoints(context, &group, &path),
                members: group.into_iter().map(|(endpoint, _)| endpoint).collect(),
            })
            .collect()
    }

    fn endpoints(
        &self,
        context: &Context<'_>,
        rule: Option<&DestinationRule>,
    ) -> Vec<Arc<Endpoint>> {
        let none = Labels::new();
        let labels = match rule.filter(|_| !self.name.is_empty()) {
            Some(rule) => {
                let subset = rule.subsets.iter().find(|subset| subset.name == self.name);
                subset.map_or(&none, |subset| &subset.labels)
            }
            None => &none,
        };
        context.snapshot.endpoints_on(self.service, self.port.number, labels)
    }

    /// True if traffic would be sent to unready endpoints in a panic.
    fn panics(&self, context: &Context<'_>, rule: Option<&DestinationRule>) -> bool {
        let policy = self.policy(context, rule);
        let outlier = policy.and_then(|policy| policy.outlier_detection);
        outlier.is_some_and(|outlier| outlier.min_health_percent > 0)
    }

    /// The policy that holds for the subset.
    fn policy(
        &self,
        context: &Context<'_>,
        rule: Option<&DestinationRule>,
    ) -> Option<TrafficPolicy> {
        let whole = rule.and_then(|rule| rule.traffic_policy.as_ref());
        let whole = whole.map(|policy| amime_model::port_policy(policy, self.port.number).0);
        let whole = with_mesh_default(context, whole);
        let mut subsets = rule.into_iter().flat_map(|rule| &rule.subsets);
        let subset = subsets.find(|s| !self.name.is_empty() && s.name == self.name);
        let own = subset.and_then(|subset| subset.traffic_policy.as_ref());
        amime_model::subset_policy(whole.as_ref(), own, self.port.number)
    }
}

/// The TLS mode a rule sets for a port; `None` if it sets none.
fn tls_mode(rule: &DestinationRule, subset: &str, port: u32) -> Option<ClientTlsMode> {
    let of = |policy: &TrafficPolicy| {
        let settings = policy.port_level_settings.iter();
        let own = settings
            .filter(|s| s.port.as_ref().is_some_and(|p| p.number == port))
            .find_map(|s| s.tls.as_ref());
        own.or(policy.tls.as_ref()).map(|tls| tls.mode)
    };
    let subset = rule.subsets.iter().find(|s| !subset.is_empty() && s.name == subset);
    let own = subset.and_then(|subset| subset.traffic_policy.as_ref()).and_then(of);
    own.or_else(|| rule.traffic_policy.as_ref().and_then(of))
}

fn speaks_mtls(context: &Context<'_>, endpoint: &Endpoint) -> bool {
    if endpoint.tls_mode != TLS_MODE_ISTIO {
        return false;
    }
    let policy = context.snapshot.authn().for_workload(&endpoint.namespace, &endpoint.labels);
    policy.mode_for(endpoint.port) != MtlsMode::Disable
}

fn locality_endpoints(
    context: &Context<'_>,
    group: &[(Arc<Endpoint>, bool)],
    path: &str,
) -> LocalityLbEndpoints {
    let weight = group.iter().fold(0_u32, |sum, (e, _)| sum.saturating_add(e.weight.max(1)));
    LocalityLbEndpoints {
        locality: group.first().map(|(endpoint, _)| envoy_locality(&endpoint.locality)),
        metadata: origin(path.to_owned(), None),
        lb_endpoints: group.iter().map(|(e, mtls)| lb_endpoint(context, e, *mtls)).collect(),
        load_balancing_weight: u32_value(weight),
        ..Default::default()
    }
}

pub(crate) fn envoy_locality(locality: &Locality) -> EnvoyLocality {
    EnvoyLocality {
        region: locality.region.clone(),
        zone: locality.zone.clone(),
        sub_zone: locality.subzone.clone(),
    }
}

fn lb_endpoint(context: &Context<'_>, endpoint: &Endpoint, mtls: bool) -> LbEndpoint {
    let health = match endpoint.health {
        Health::Healthy => HealthStatus::Healthy,
        Health::Unhealthy => HealthStatus::Unhealthy,
        Health::Draining | Health::Terminating => HealthStatus::Draining,
    };
    LbEndpoint {
        health_status: health.into(),
        metadata: endpoint_metadata(context, endpoint, mtls),
        load_balancing_weight: u32_value(endpoint.weight.max(1)),
        host_identifier: Some(HostIdentifier::Endpoint(EnvoyEndpoint {
            address: Some(address(&endpoint.address, endpoint.port)),
            ..Default::default()
        })),
    }
}

/// What picks the transport socket, and who the workload is.
fn endpoint_metadata(context: &Context<'_>, endpoint: &Endpoint, mtls: bool) -> Option<Metadata> {
    let mut namespaces = BTreeMap::new();
    if mtls && endpoint.tls_mode != TLS_MODE_DISABLED {
        let mode = string_value(endpoint.tls_mode.as_str());
        let fields = BTreeMap::from([("tlsMode".to_owned(), mode)]);
        namespaces.insert(TRANSPORT_SOCKET_MATCH.to_owned(), fields);
    }
    let (name, revision) = canonical_service(&endpoint.labels, &endpoint.workload);
    let revision = if revision == "latest" { "" } else { revision };
    let workload = format!(
        "{};{};{name};{revision};{}",
        endpoint.workload,
        endpoint.namespace,
        context.cluster_id()
    );
    let fields = BTreeMap::from([("workload".to_owned(), string_value(workload))]);
    namespaces.insert(ISTIO.to_owned(), fields);
    metadata(namespaces)
}

/// Name and revision under which a workload appears in telemetry.
fn canonical_service<'a>(labels: &'a Labels, workload: &'a str) -> (&'a str, &'a str) {
    let first = |keys: [&str; 3]| keys.iter().find_map(|key| labels.get(*key)).map(String::as_str);
    let name = first(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let revision =
        first(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    (name.unwrap_or(workload), revision.unwrap_or("latest"))
}
