//! Where a cluster's endpoints come from.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::clusters::aggregate::v3::ClusterConfig as AggregateCluster;
use envoy_types::pb::envoy::extensions::clusters::common::dns::v3 as common_dns;
use envoy_types::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3::ClusterConfig as DynamicCluster;
use envoy_types::pb::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use envoy_types::pb::envoy::extensions::network::dns_resolver::{
    cares::v3::CaresDnsResolverConfig, getaddrinfo::v3::GetAddrInfoDnsResolverConfig,
};
use envoy_types::pb::google::protobuf as wkt;

use super::Compiler;
use super::dynamic_hosts;
use super::endpoint::Spread;
use super::host_cache::HostCache;
use super::names::ClusterId;
use amime_rules::Faults;
use amime_rules::values::{self, HostAddress, is, type_name, unpack};

/// Where endpoints come from.
#[derive(Clone, Debug)]
pub enum Discovery {
    Static,
    /// By EDS under this name.
    Eds(String),
    /// All addresses of each name are endpoints.
    StrictDns(Dns),
    /// One address of the one name is the endpoint; connections outlive a
    /// change of it.
    LogicalDns(Dns),
    /// The address that the client dialed, or that a header names.
    OriginalDst {
        header: Option<http::HeaderName>,
        port: Option<u16>,
    },
    /// The host that a request is for, as the cache resolves it.
    Dynamic(Arc<HostCache>),
    /// Other clusters, each for what those before it cannot take.
    Aggregate(Vec<ClusterId>),
}

/// How names are resolved, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    pub family: Family,
    pub servers: DnsServers,
    refresh: Duration,
    /// Bounds of the growing pause after failures.
    failure: Option<(Duration, Duration)>,
    respect_ttl: bool,
    /// Lowest pause by TTL.
    min_refresh: Duration,
    jitter: Duration,
}

/// Address families wanted of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
    /// IPv6, and IPv4 where there is none.
    #[default]
    Auto,
    /// IPv4, and IPv6 where there is none.
    V4Preferred,
    All,
}

/// Whom to ask for addresses; the default is what the system is set to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DnsServers {
    pub servers: Vec<SocketAddr>,
    pub tcp: bool,
    pub no_search: bool,
    pub timeout: Option<Duration>,
    pub tries: Option<u32>,
}

const REFRESH: Duration = Duration::from_secs(5);

impl Default for Dns {
    fn default() -> Self {
        Self {
            family: Family::default(),
            servers: DnsServers::default(),
            refresh: REFRESH,
            failure: None,
            respect_ttl: false,
            min_refresh: Duration::ZERO,
            jitter: Duration::ZERO,
        }
    }
}

impl Dns {
    /// The pause after a lookup that gave addresses valid for `ttl`.
    pub fn pause(&self, ttl: Option<Duration>) -> Duration {
        let ttl = ttl.filter(|ttl| self.respect_ttl && !ttl.is_zero());
        let pause = ttl.map_or(self.refresh, |ttl| ttl.max(self.min_refresh));
        let jitter = u64::try_from(self.jitter.as_millis()).unwrap_or(u64::MAX);
        pause + Duration::from_millis(fastrand::u64(0..=jitter))
    }

    /// The pause after the given number of failures in a row.
    pub fn failure_pause(&self, failures: u32) -> Duration {
        let Some((base, max)) = self.failure else { return self.refresh };
        let grown = base.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(max);
        let millis = u64::try_from(grown.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(fastrand::u64(0..=millis).max(1))
    }

    fn of_cluster(value: &pb::Cluster, faults: &mut Faults) -> Option<Self> {
        let failure = value.dns_failure_refresh_rate.as_ref();
        Some(Self {
            family: cluster_family(value.dns_lookup_family()),
            servers: servers_of_cluster(value, faults),
            refresh: refresh(value.dns_refresh_rate.as_ref(), "dns_refresh_rate", faults)?,
            failure: failure
                .map(|rate| failure_rate(rate.base_interval.as_ref(), rate.max_interval.as_ref())),
            respect_ttl: value.respect_dns_ttl,
            min_refresh: Duration::ZERO,
            jitter: value.dns_jitter.as_ref().map_or(Duration::ZERO, values::duration),
        })
    }

    /// As a cache of hosts resolves them.
    pub(crate) fn of_cache(value: &DnsCacheConfig, faults: &mut Faults) -> Option<Self> {
        const REFRESH: Duration = Duration::from_secs(60);
        const MIN_REFRESH: Duration = Duration::from_secs(5);
        let rate = value.dns_refresh_rate.as_ref();
        let lowest = value.dns_min_refresh_rate.as_ref();
        let failure = value.dns_failure_refresh_rate.as_ref();
        let typed = value.typed_dns_resolver_config.as_ref();
        let mut servers = typed.map(|typed| typed_servers(typed, faults)).unwrap_or_default();
        if let (None, Some(config)) = (typed, &value.dns_resolution_config) {
            servers.read("dns_resolution_config.resolvers", &config.resolvers, faults);
            servers.options(config.dns_resolver_options.as_ref());
        }
        servers.tcp |= value.use_tcp_for_dns_lookups;
        Some(Self {
            family: cluster_family(value.dns_lookup_family()),
            servers,
            refresh: match rate {
                Some(_) => refresh(rate, "dns_refresh_rate", faults)?,
                None => REFRESH,
            },
            failure: failure
                .map(|rate| failure_rate(rate.base_interval.as_ref(), rate.max_interval.as_ref())),
            respect_ttl: true,
            min_refresh: lowest.map_or(MIN_REFRESH, values::duration),
            jitter: Duration::ZERO,
        })
    }

    fn of_extension(value: &DnsCluster, faults: &mut Faults) -> Option<Self> {
        let failure = value.dns_failure_refresh_rate.as_ref();
        let typed = value.typed_dns_resolver_config.as_ref();
        Some(Self {
            family: family(value.dns_lookup_family()),
            servers: typed.map(|typed| typed_servers(typed, faults)).unwrap_or_default(),
            refresh: refresh(value.dns_refresh_rate.as_ref(), "dns_refresh_rate", faults)?,
            failure: failure
                .map(|rate| failure_rate(rate.base_interval.as_ref(), rate.max_interval.as_ref())),
            respect_ttl: value.respect_dns_ttl,
            min_refresh: value.dns_min_refresh_rate.as_ref().map_or(REFRESH, values::duration),
            jitter: value.dns_jitter.as_ref().map_or(Duration::ZERO, values::duration),
        })
    }
}

fn cluster_family(value: pb::cluster::DnsLookupFamily) -> Family {
    use pb::cluster::DnsLookupFamily as F;
    match value {
        F::V4Only => Family::V4,
        F::V6Only => Family::V6,
        F::V4Preferred => Family::V4Preferred,
        F::All => Family::All,
        F::Auto => Family::Auto,
    }
}

fn family(value: common_dns::DnsLookupFamily) -> Family {
    use common_dns::DnsLookupFamily as F;
    match value {
        F::V4Only => Family::V4,
        F::V6Only => Family::V6,
        F::V4Preferred => Family::V4Preferred,
        F::All => Family::All,
        F::Auto | F::Unspecified => Family::Auto,
    }
}

fn refresh(value: Option<&wkt::Duration>, field: &str, faults: &mut Faults) -> Option<Duration> {
    let refresh = value.map_or(REFRESH, values::duration);
    if refresh <= Duration::from_millis(1) && value.is_some() {
        faults.reject(field, "not above 1 ms");
        return None;
    }
    Some(refresh)
}

fn failure_rate(base: Option<&wkt::Duration>, max: Option<&wkt::Duration>) -> (Duration, Duration) {
    let base = base.map_or(REFRESH, values::duration);
    (base, max.map_or(base * 10, values::duration).max(base))
}

fn servers_of_cluster(value: &pb::Cluster, faults: &mut Faults) -> DnsServers {
    if let Some(typed) = &value.typed_dns_resolver_config {
        return typed_servers(typed, faults);
    }
    let mut servers = DnsServers { tcp: value.use_tcp_for_dns_lookups, ..DnsServers::default() };
    if let Some(config) = &value.dns_resolution_config {
        servers.read("dns_resolution_config.resolvers", &config.resolvers, faults);
        servers.options(config.dns_resolver_options.as_ref());
    } else {
        servers.read("dns_resolvers", &value.dns_resolvers, faults);
    }
    servers
}

fn typed_servers(typed: &core::TypedExtensionConfig, faults: &mut Faults) -> DnsServers {
    let mut servers = DnsServers::default();
    let Some(any) = &typed.typed_config else { return servers };
    faults.enter("typed_dns_resolver_config");
    if is::<CaresDnsResolverConfig>(any) {
        if let Some(config) = unpack::<CaresDnsResolverConfig>(any, faults) {
            // As a fallback they would come after the system's own.
            if config.use_resolvers_as_fallback {
                faults.ignore_if(!config.resolvers.is_empty(), "resolvers");
            } else {
                servers.read("resolvers", &config.resolvers, faults);
            }
            servers.options(config.dns_resolver_options.as_ref());
            let seconds = config.query_timeout_seconds.as_ref();
            servers.timeout = seconds.map(|seconds| Duration::from_secs(seconds.value));
            servers.tries = config.query_tries.as_ref().map(|tries| tries.value);
        }
    } else if !is::<GetAddrInfoDnsResolverConfig>(any) {
        faults.ignore("", format!("{} is not supported", type_name(any)));
    }
    faults.leave();
    servers
}

impl DnsServers {
    fn read(&mut self, field: &str, list: &[core::Address], faults: &mut Faults) {
        for (index, address) in list.iter().enumerate() {
            let found = faults.within(format!("{field}[{index}]"), |faults| {
                let found = values::datagram_address(address, faults)?;
                match found {
                    HostAddress::Ip(address) => Some(address),
                    HostAddress::Name(..) | HostAddress::Pipe(_) => {
                        faults.reject("", "not an IP address");
                        None
                    }
                }
            });
            self.servers.extend(found);
        }
    }

    fn options(&mut self, options: Option<&core::DnsResolverOptions>) {
        if let Some(options) = options {
            self.tcp |= options.use_tcp_for_dns_lookups;
            self.no_search |= options.no_default_search_domain;
        }
    }
}

impl Discovery {
    pub(crate) fn compile(value: &pb::Cluster, compiler: &mut Compiler<'_>) -> Option<Self> {
        use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
        let faults = &mut compiler.faults;
        let kind = match value.cluster_discovery_type.as_ref() {
            Some(ClusterDiscoveryType::ClusterType(custom)) => {
                faults.enter("cluster_type");
                let found = Self::extension(value, custom, compiler);
                compiler.faults.leave();
                return found;
            }
            Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind).ok(),
            None => Some(DiscoveryType::Static),
        };
        match kind {
            Some(DiscoveryType::Static) => Some(Self::Static),
            Some(DiscoveryType::Eds) => {
                let name = value.eds_cluster_config.as_ref().map_or("", |eds| &eds.service_name);
                let name = if name.is_empty() { &value.name } else { name };
                Some(Self::Eds(name.to_owned()))
            }
            Some(DiscoveryType::StrictDns) => Dns::of_cluster(value, faults).map(Self::StrictDns),
            Some(DiscoveryType::LogicalDns) => Dns::of_cluster(value, faults).map(Self::LogicalDns),
            Some(DiscoveryType::OriginalDst) => Some(original_dst(value)),
            None => {
                faults.reject("type", "unknown discovery type");
                None
            }
        }
    }

    fn extension(
        cluster: &pb::Cluster,
        custom: &pb::cluster::CustomClusterType,
        compiler: &mut Compiler<'_>,
    ) -> Option<Self> {
        let faults = &mut compiler.faults;
        match custom.typed_config.as_ref() {
            Some(any) if is::<DynamicCluster>(any) => {
                let config: DynamicCluster = unpack(any, faults)?;
                dynamic_hosts::of_cluster(cluster, &config, compiler).map(Self::Dynamic)
            }
            Some(any) if is::<AggregateCluster>(any) => {
                let config: AggregateCluster = unpack(any, faults)?;
                if config.clusters.is_empty() {
                    faults.reject("clusters", "missing");
                }
                if cluster.lb_policy() != pb::cluster::LbPolicy::ClusterProvided {
                    faults.reject("", "the lb_policy of an aggregate is CLUSTER_PROVIDED");
                }
                let members = config.clusters.iter().map(|name| compiler.names.cluster(name));
                Some(Self::Aggregate(members.collect()))
            }
            Some(any) if is::<DnsCluster>(any) => {
                let config: DnsCluster = unpack(any, faults)?;
                let dns = Dns::of_extension(&config, faults)?;
                Some(if config.all_addresses_in_single_endpoint {
                    Self::LogicalDns(dns)
                } else {
                    Self::StrictDns(dns)
                })
            }
            _ => {
                faults.reject("", format!("`{}` is not supported", custom.name));
                None
            }
        }
    }

    /// What becomes of the addresses of a name.
    pub fn spread(&self) -> Spread {
        match self {
            Self::LogicalDns(dns) if dns.family == Family::All => Spread::Together,
            Self::LogicalDns(_) => Spread::First,
            _ => Spread::Each,
        }
    }

    /// How the names of endpoints are resolved, if they may be names.
    pub fn dns(&self) -> Option<&Dns> {
        match self {
            Self::StrictDns(dns) | Self::LogicalDns(dns) => Some(dns),
            _ => None,
        }
    }
}

fn original_dst(value: &pb::Cluster) -> Discovery {
    let Some(pb::cluster::LbConfig::OriginalDstLbConfig(config)) = &value.lb_config else {
        return Discovery::OriginalDst { header: None, port: None };
    };
    let header = match (config.use_http_header, config.http_header_name.as_str()) {
        (false, _) => None,
        (true, "") => Some(http::HeaderName::from_static("x-envoy-original-dst-host")),
        (true, name) => name.parse().ok(),
    };
    let port = config.upstream_port_override.as_ref();
    Discovery::OriginalDst { header, port: port.and_then(|port| u16::try_from(port.value).ok()) }
}
