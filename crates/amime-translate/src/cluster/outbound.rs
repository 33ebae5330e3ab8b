//! Clusters of services and of their subsets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use amime_api::networking::{ClientTlsMode, SimpleLb, Subset as RuleSubset, TrafficPolicy};
use amime_core::Protocol;
use amime_model::{MergedRule, MtlsMode, Port, Resolution, Service};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, DnsLookupFamily, EdsClusterConfig,
    LbConfig, LbPolicy, OriginalDstLbConfig,
};
use envoy_types::pb::envoy::config::core::v3::{HealthStatus, HealthStatusSet};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use envoy_types::pb::google::protobuf::Value;

use super::Draft;
use super::policy::{self, ClusterPolicy};
use crate::context::{Context, Direction};
use crate::dynamic_dns;
use crate::endpoint::{Source, Subset};
use crate::filters::cluster_metadata_exchange;
use crate::names::{self, outbound_cluster, outbound_sni, stat_prefix};
use crate::origin::{OriginKind, config_path, fields, service_path};
use crate::proto::{
    ads, bool_json, duration, extension, list_value, string_value, struct_value, u32_value,
};
use crate::proxy::ProxyKind;

/// Queries on one UDP socket before a new one is opened.
const DNS_MAX_QUERIES: u32 = 100;
/// Spread of periodic resolution.
const DNS_JITTER: Duration = Duration::from_millis(100);

/// What an endpoint may be for a session to stay with it.
const SESSION_STATUSES: [HealthStatus; 4] =
    [HealthStatus::Healthy, HealthStatus::Draining, HealthStatus::Unknown, HealthStatus::Degraded];

/// How a cluster is addressed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// By its usual name, with mutual TLS where it belongs.
    Default,
    /// By SNI, for bytes that are encrypted already.
    Sni,
}

/// Clusters for the services of `hosts`, or for all in sight.
pub(super) fn clusters(context: &Context<'_>, hosts: Option<&BTreeSet<String>>) -> Vec<Cluster> {
    let services = context.scope.services.iter();
    let wanted = |s: &&Arc<Service>| hosts.is_none_or(|hosts| hosts.contains(s.hostname.as_str()));
    services
        .filter(wanted)
        .flat_map(|service| of_service(context, service, Mode::Default))
        .collect()
}

/// Clusters behind servers that pick them by SNI.
pub(super) fn sni_clusters(context: &Context<'_>) -> Vec<Cluster> {
    let services = context.scope.services.iter().filter(|service| !service.mesh_external);
    services.flat_map(|service| of_service(context, service, Mode::Sni)).collect()
}

fn of_service(context: &Context<'_>, service: &Arc<Service>, mode: Mode) -> Vec<Cluster> {
    // An alias has no endpoints; routes to it lead to what it stands for.
    if service.resolution == Resolution::Alias {
        return Vec::new();
    }
    let rule = context.destination_rule(&service.hostname, Direction::Outbound);
    let ports = service.ports.iter().filter(|port| port.protocol != Protocol::Udp);
    let mut clusters = Vec::new();
    for port in ports {
        let builder = Builder { context, service, port, rule, mode };
        if service.resolution == Resolution::DynamicDns {
            clusters.extend(builder.dynamic());
            continue;
        }
        let Some(whole) = builder.whole() else { continue };
        let original_dst = Some(discovery_type(DiscoveryType::OriginalDst));
        let discovery = match whole.cluster_discovery_type == original_dst {
            true => DiscoveryType::OriginalDst,
            false => builder.discovery(),
        };
        clusters.push(whole);
        let subsets = rule.map_or(&[][..], |rule| rule.spec().subsets.as_slice());
        clusters.extend(subsets.iter().filter_map(|subset| builder.subset(subset, discovery)));
    }
    clusters
}

struct Builder<'a, 'c> {
    context: &'a Context<'c>,
    service: &'a Arc<Service>,
    port: &'a Port,
    rule: Option<&'a MergedRule>,
    mode: Mode,
}

impl Builder<'_, '_> {
    fn name(&self, subset: &str) -> String {
        match self.mode {
            Mode::Default => outbound_cluster(self.port.number, subset, &self.service.hostname),
            Mode::Sni => outbound_sni(self.port.number, subset, &self.service.hostname),
        }
    }

    /// The cluster of the whole service.
    fn whole(&self) -> Option<Cluster> {
        let own = self.rule.and_then(|rule| rule.spec().traffic_policy.as_ref());
        let mut draft = self.draft("", self.discovery())?;
        if self.service.keeps_sessions() {
            // Endpoints that drain are kept for those who ask for them.
            let common = draft.cluster.common_lb_config.get_or_insert_default();
            common.override_host_status = Some(HealthStatusSet {
                statuses: SESSION_STATUSES.iter().map(|&status| status.into()).collect(),
            });
        }
        let mtls = self.assumed_mtls(own);
        self.apply(&mut draft, "", self.whole_policy(), mtls);
        if self.service.mesh_external {
            draft.istio.insert("external".to_owned(), bool_json(true));
        }
        Some(draft.finish())
    }

    /// The cluster of hosts that are resolved request by request, which has no
    /// subsets.
    fn dynamic(&self) -> Option<Cluster> {
        let able = dynamic_dns::resolves(self.context, self.service);
        if self.mode == Mode::Sni || !able || !dynamic_dns::serves(self.port.protocol) {
            return None;
        }
        let own = self.rule.and_then(|rule| rule.spec().traffic_policy.as_ref());
        let name = self.name("");
        let host = &self.service.hostname;
        let cluster = Cluster {
            alt_stat_name: stat_prefix(&name),
            name,
            cluster_discovery_type: Some(dynamic_dns::discovery_of(self.context, host, false)),
            lb_policy: LbPolicy::ClusterProvided.into(),
            ..Default::default()
        };
        let mut draft = Draft::new(self.context, cluster);
        draft.dynamic = true;
        policy::choose_protocol(self.context, &mut draft, self.port);
        self.apply(&mut draft, "", self.whole_policy(), self.assumed_mtls(own));
        // Envoy wants to be told that nobody checks whom it talks to.
        let insecure = !draft.checks_names();
        let discovery = dynamic_dns::discovery_of(self.context, host, insecure);
        draft.cluster.cluster_discovery_type = Some(discovery);
        if self.service.mesh_external {
            draft.istio.insert("external".to_owned(), bool_json(true));
        }
        Some(draft.finish())
    }

    /// Policy for the port, over the mesh's.
    fn whole_policy(&self) -> Option<TrafficPolicy> {
        let own = self.rule.and_then(|rule| rule.spec().traffic_policy.as_ref());
        let own = own.map(|policy| amime_model::port_policy(policy, self.port.number).0);
        policy::with_mesh_default(self.context, own)
    }

    /// The cluster of a subset; `discovery` is that of the whole service.
    fn subset(&self, subset: &RuleSubset, discovery: DiscoveryType) -> Option<Cluster> {
        let whole = self.whole_policy();
        let subset_policy = subset.traffic_policy.as_ref();
        let policy = amime_model::subset_policy(whole.as_ref(), subset_policy, self.port.number);
        let discovery = match is_passthrough(subset_policy) {
            true => DiscoveryType::OriginalDst,
            false => discovery,
        };
        let mut draft = self.draft(&subset.name, discovery)?;
        let mtls = self.assumed_mtls(subset_policy);
        self.apply(&mut draft, &subset.name, policy, mtls);
        draft.istio.insert("subset".to_owned(), string_value(subset.name.as_str()));
        Some(draft.finish())
    }

    /// Mutual TLS mode to assume; known to be none behind SNI.
    fn assumed_mtls(&self, policy: Option<&TrafficPolicy>) -> Option<MtlsMode> {
        let passthrough = is_passthrough(policy);
        self.context.snapshot.service_mtls_mode(self.service, self.port.number, passthrough)
    }

    fn apply(
        &self,
        draft: &mut Draft,
        subset: &str,
        policy: Option<TrafficPolicy>,
        mtls: Option<MtlsMode>,
    ) {
        // Where hosts are those of the requests, so are the names of servers.
        let sni = match draft.dynamic {
            true => String::new(),
            false => outbound_sni(self.port.number, subset, &self.service.hostname),
        };
        let cluster_policy = ClusterPolicy {
            policy: policy.as_ref(),
            port: Some(self.port),
            service: Some(self.service),
            sni,
            terminates: self.mode == Mode::Default,
            assumed_mtls: mtls,
            selects_workloads: self.rule.is_some_and(|r| r.spec().workload_selector.is_some()),
        };
        cluster_policy.apply_outbound(self.context, draft);
        if draft.cluster.cluster_discovery_type == Some(discovery_type(DiscoveryType::Eds)) {
            draft.cluster.eds_cluster_config = Some(EdsClusterConfig {
                service_name: draft.cluster.name.clone(),
                eds_config: Some(ads()),
            });
        }
        draft.cluster.filters.extend(cluster_metadata_exchange(self.context.proxy));
        self.describe(draft, policy.as_ref());
    }

    /// Says in the metadata where the cluster comes from.
    fn describe(&self, draft: &mut Draft, policy: Option<&TrafficPolicy>) {
        let path = match self.rule {
            Some(rule) => config_path(OriginKind::DestinationRule, &rule.config.name),
            None => service_path(self.service),
        };
        draft.istio.extend(fields(path, None));
        draft.istio.insert("services".to_owned(), list_value(vec![service_value(self.service)]));
        let tls = policy.and_then(|policy| policy.tls.as_ref()).map(|tls| tls.mode);
        if matches!(tls, Some(ClientTlsMode::Simple | ClientTlsMode::Mutual)) {
            // The upstream is no mesh workload: its ALPN must stay as it is.
            draft.istio.insert("alpn_override".to_owned(), string_value("false"));
        }
    }

    /// Name of its statistics, if the mesh gives them one.
    fn stat_name(&self, subset: &str) -> Option<String> {
        let pattern = self.context.mesh.outbound_cluster_stat_name.as_str();
        names::stat_name(pattern, self.service, subset, self.port, 0)
    }

    fn discovery(&self) -> DiscoveryType {
        match self.service.resolution {
            Resolution::Dns => DiscoveryType::StrictDns,
            Resolution::DnsRoundRobin => DiscoveryType::LogicalDns,
            // A gateway has no original destination to pass on.
            Resolution::Passthrough if self.context.proxy.kind == ProxyKind::Sidecar => {
                DiscoveryType::OriginalDst
            }
            _ => DiscoveryType::Eds,
        }
    }

    /// The bare cluster; `None` if Envoy would refuse it for want of endpoints.
    fn draft(&self, subset: &str, discovery: DiscoveryType) -> Option<Draft> {
        let name = self.name(subset);
        let mut cluster = Cluster {
            alt_stat_name: stat_prefix(&self.stat_name(subset).unwrap_or_else(|| name.clone())),
            name,
            cluster_discovery_type: Some(discovery_type(discovery)),
            common_lb_config: Some(CommonLbConfig::default()),
            ..Default::default()
        };
        match discovery {
            DiscoveryType::StrictDns | DiscoveryType::LogicalDns => {
                self.resolve_names(&mut cluster, subset)?;
            }
            DiscoveryType::OriginalDst => {
                let port = self.service.passthrough_ports.get(&self.port.number);
                cluster.lb_config = port.map(|port| {
                    LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
                        upstream_port_override: u32_value(*port),
                        ..Default::default()
                    })
                });
            }
            _ => {}
        }
        let mut draft = Draft::new(self.context, cluster);
        policy::choose_protocol(self.context, &mut draft, self.port);
        Some(draft)
    }

    #[expect(deprecated, reason = "the fields that every proxy in use understands")]
    fn resolve_names(&self, cluster: &mut Cluster, subset: &str) -> Option<()> {
        let own = Subset {
            service: self.service,
            port: self.port,
            name: subset,
            mtls_only: self.mode == Mode::Sni,
        };
        let endpoints = own.prioritised(self.context, Source::Cluster);
        if endpoints.is_empty() {
            return None;
        }
        cluster.load_assignment = Some(ClusterLoadAssignment {
            cluster_name: cluster.name.clone(),
            endpoints,
            ..Default::default()
        });
        cluster.dns_lookup_family = self.lookup_family().into();
        let cares = CaresDnsResolverConfig {
            udp_max_queries: u32_value(DNS_MAX_QUERIES),
            ..Default::default()
        };
        cluster.typed_dns_resolver_config =
            Some(extension("envoy.network.dns_resolver.cares", &cares));
        cluster.dns_jitter = Some(duration(DNS_JITTER));
        cluster.dns_refresh_rate = self.context.mesh.dns_refresh_rate.map(|d| duration(d.std()));
        cluster.respect_dns_ttl = true;
        Some(())
    }

    fn lookup_family(&self) -> DnsLookupFamily {
        match self.context.proxy.supports_v4() {
            true => DnsLookupFamily::V4Only,
            false => DnsLookupFamily::V6Only,
        }
    }
}

pub(super) fn discovery_type(kind: DiscoveryType) -> ClusterDiscoveryType {
    ClusterDiscoveryType::Type(kind.into())
}

fn is_passthrough(policy: Option<&TrafficPolicy>) -> bool {
    let lb = policy.and_then(|policy| policy.load_balancer.as_ref());
    lb.is_some_and(|lb| lb.simple == Some(SimpleLb::Passthrough))
}

/// A service as telemetry filters read it.
pub(super) fn service_value(service: &Service) -> Value {
    struct_value(BTreeMap::from([
        ("host".to_owned(), string_value(service.hostname.as_str())),
        ("name".to_owned(), string_value(service.name.as_str())),
        ("namespace".to_owned(), string_value(service.namespace.as_str())),
    ]))
}
