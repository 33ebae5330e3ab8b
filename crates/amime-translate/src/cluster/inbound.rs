//! Clusters for the ports of the workload itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use amime_api::mesh::InboundTrafficMode;
use amime_api::networking::{ConnectionPoolSettings, IstioIngressListener, RetryBudget};
use amime_core::{Hostname, Protocol};
use amime_model::{Port, ServiceTarget};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    CommonLbConfig, DiscoveryType, LbPolicy,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::google::protobuf::{Duration, Value};

use super::outbound::{discovery_type, service_value};
use super::{Draft, policy, special};
use crate::context::{Context, Direction};
use crate::names::{self, inbound_cluster, stat_prefix};
use crate::origin::{OriginKind, config_path, fields, service_path};
use crate::proto::{address, list_value};
use crate::proxy::Interception;

/// Cleanup of original destinations, as good as never.
const NEVER_SECONDS: i64 = 9_223_372_035;

/// One inbound cluster in the making.
struct Inbound<'a> {
    /// Port that names it.
    port: u32,
    /// Where it leads; empty for the original destination.
    bind: String,
    /// Port there.
    target: u32,
    protocol: Protocol,
    /// Services on the port, the oldest first.
    targets: Vec<&'a ServiceTarget>,
    /// Object behind it, if not a service.
    origin: Option<String>,
}

/// Clusters for the services the workload serves, or for what its Sidecar says.
pub(super) fn clusters(context: &Context<'_>) -> Vec<Cluster> {
    let ingress = context.scope.ingress();
    if !ingress.is_empty() {
        let listeners = ingress.iter().filter_map(|listener| from_ingress(context, listener));
        return listeners.map(|inbound| inbound.build(context)).collect();
    }
    // Without interception the proxy would take the application's own ports.
    if context.proxy.interception() == Interception::None {
        return Vec::new();
    }
    let bind = match context.mesh.inbound_traffic_policy.mode {
        InboundTrafficMode::Passthrough => String::new(),
        InboundTrafficMode::Localhost => context.proxy.loopbacks().swap_remove(0),
    };
    let mut by_port: BTreeMap<u32, Vec<&ServiceTarget>> = BTreeMap::new();
    for target in context.targets() {
        by_port.entry(target.target_port).or_default().push(target);
    }
    let inbound = by_port.into_iter().map(|(port, targets)| Inbound {
        port,
        bind: bind.clone(),
        target: port,
        protocol: targets[0].port.protocol,
        origin: Some(service_path(&targets[0].service)),
        targets,
    });
    inbound.map(|inbound| inbound.build(context)).collect()
}

fn from_ingress<'a>(
    context: &'a Context<'_>,
    listener: &IstioIngressListener,
) -> Option<Inbound<'a>> {
    let port = listener.port.as_ref()?;
    let (bind, target) = default_endpoint(context, &listener.default_endpoint)?;
    let targets = context.targets().iter().filter(|t| t.target_port == port.number).take(1);
    let sidecar = context.scope.sidecar.as_ref();
    Some(Inbound {
        port: port.number,
        bind,
        target,
        protocol: port.protocol.parse().unwrap_or(Protocol::Auto),
        targets: targets.collect(),
        origin: sidecar.map(|sidecar| config_path(OriginKind::Sidecar, &sidecar.name)),
    })
}

/// Address and port of a `defaultEndpoint`; `None` if it cannot be read.
fn default_endpoint(context: &Context<'_>, text: &str) -> Option<(String, u32)> {
    if text.is_empty() {
        return Some((String::new(), 0));
    }
    if text.starts_with("unix://") {
        return Some((text.to_owned(), 0));
    }
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let ip: IpAddr = host.trim_matches(['[', ']']).parse().ok()?;
    let own = |v4: bool| {
        let ips = context.proxy.ips.iter().filter_map(|ip| ip.parse::<IpAddr>().ok());
        ips.into_iter().find(|ip| ip.is_ipv4() == v4)
    };
    let loopback = |v4: bool| {
        let family = if v4 { "127.0.0.1" } else { "::1" };
        let all = context.proxy.loopbacks();
        all.iter().find(|ip| *ip == family).or_else(|| all.first()).cloned()
    };
    let address = if ip.is_unspecified() {
        own(ip.is_ipv4()).map(|ip| ip.to_string()).or_else(|| loopback(ip.is_ipv4()))
    } else if ip.is_loopback() {
        loopback(ip.is_ipv4())
    } else {
        None
    };
    Some((address.unwrap_or_default(), port))
}

impl Inbound<'_> {
    fn build(self, context: &Context<'_>) -> Cluster {
        let name = inbound_cluster(self.port);
        let discovery = match self.bind.is_empty() {
            true => DiscoveryType::OriginalDst,
            false => DiscoveryType::Static,
        };
        let mut draft = Draft::new(
            context,
            Cluster {
                alt_stat_name: stat_prefix(
                    &self.stat_name(context).unwrap_or_else(|| name.clone()),
                ),
                name,
                cluster_discovery_type: Some(discovery_type(discovery)),
                common_lb_config: Some(CommonLbConfig::default()),
                ..Default::default()
            },
        );
        let port = self.port();
        policy::choose_protocol(context, &mut draft, &port);
        if self.bind.is_empty() {
            draft.cluster.lb_policy = LbPolicy::ClusterProvided.into();
            draft.cluster.cleanup_interval = Some(Duration { seconds: NEVER_SECONDS, nanos: 0 });
        } else {
            draft.cluster.load_assignment = Some(self.assignment(&draft.cluster.name));
        }
        let (pool, budget) = self.limits(context);
        policy::apply_connection_pool(context, &mut draft, &pool, budget.as_ref());
        if !["127.0.0.1", "::1"].contains(&self.bind.as_str()) {
            draft.cluster.upstream_bind_config = Some(special::inbound_bind(context));
        }
        if let Some(origin) = &self.origin {
            draft.istio.extend(fields(origin.clone(), None));
        }
        draft.istio.insert("services".to_owned(), list_value(self.services()));
        draft.finish()
    }

    /// Name of its statistics, if the mesh gives them one.
    fn stat_name(&self, context: &Context<'_>) -> Option<String> {
        let target = self.targets.first()?;
        let pattern = context.mesh.inbound_cluster_stat_name.as_str();
        names::stat_name(pattern, &target.service, "", &target.port, self.port)
    }

    fn port(&self) -> Port {
        let name = String::new();
        Port { name, number: self.port, protocol: self.protocol, udp: false }
    }

    fn assignment(&self, name: &str) -> ClusterLoadAssignment {
        let endpoint = LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                address: Some(address(&self.bind, self.target)),
                ..Default::default()
            })),
            ..Default::default()
        };
        ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    /// Limits on the receiving side: those of the Sidecar, else of the rule for
    /// the service, so that a server is not narrower than its clients.
    fn limits(&self, context: &Context<'_>) -> (ConnectionPoolSettings, Option<RetryBudget>) {
        let own = context.scope.ingress().iter();
        let mut own = own.filter(|i| i.port.as_ref().is_some_and(|p| p.number == self.port));
        let sidecar = context.scope.sidecar.as_ref();
        let from_sidecar = own
            .find_map(|listener| listener.connection_pool.clone())
            .or_else(|| sidecar.and_then(|s| s.spec.inbound_connection_pool.clone()));
        let target = self.targets.first();
        let policy = target.and_then(|target| {
            let hostname: &Hostname = &target.service.hostname;
            let rule = context.destination_rule(hostname, Direction::Inbound)?;
            let policy = rule.spec().traffic_policy.as_ref()?;
            Some(amime_model::port_policy(policy, target.port.number).0)
        });
        let policy = policy::with_mesh_default(context, policy);
        let (pool, budget) = policy.map_or((None, None), |p| (p.connection_pool, p.retry_budget));
        (from_sidecar.or(pool).unwrap_or_default(), budget)
    }

    fn services(&self) -> Vec<Value> {
        let Some(first) = self.targets.first() else { return Vec::new() };
        let mut seen: Vec<&Hostname> = Vec::new();
        let mut services = Vec::new();
        for target in self.targets.iter().filter(|t| t.port.number == first.port.number) {
            if !seen.contains(&&target.service.hostname) {
                seen.push(&target.service.hostname);
                services.push(service_value(&target.service));
            }
        }
        services
    }
}
