//! Dynamic forward proxies: clusters whose hosts are those that requests name,
//! and the filters that wait until these are resolved.
//!
//! A cluster and its filters share a cache by having the same settings; the
//! cache itself is in [`crate::host_cache`].
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/http/http_proxy>

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3::{
    ClusterConfig, cluster_config::ClusterImplementationSpecifier,
};
use envoy_types::pb::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use envoy_types::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as http_filter;
use envoy_types::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as sni;
use http::{HeaderName, HeaderValue};

use super::Compiler;
use super::cluster::upstream_options;
use super::discovery::Dns;
use super::host_cache::HostCache;
use amime_rules::Faults;
use amime_rules::values::{self, is};

/// A compiled `DnsCacheConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    pub name: String,
    pub dns: Dns,
    /// How long a host is kept that nobody uses.
    pub host_ttl: Duration,
    pub max_hosts: usize,
    /// Requests that may wait for lookups.
    pub max_pending: u32,
    /// `None`: as long as the resolver takes.
    pub query_timeout: Option<Duration>,
    /// Names that failed are looked up again unasked.
    pub refresh_failed: bool,
    /// Names to look up at the start.
    pub known: Vec<(String, u16)>,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            name: String::new(),
            dns: Dns::default(),
            host_ttl: Duration::from_secs(300),
            max_hosts: 1024,
            max_pending: 1024,
            query_timeout: Some(Duration::from_secs(5)),
            refresh_failed: true,
            known: Vec::new(),
        }
    }
}

/// What a route says of the host.
#[derive(Debug)]
pub enum NewHost {
    Literal(HeaderValue),
    Header(HeaderName),
}

/// What the server name of TLS connections stands for.
#[derive(Clone, Debug)]
pub struct ServerNameHosts {
    pub cache: Arc<HostCache>,
    pub port: u16,
}

impl CacheSettings {
    fn compile(value: &DnsCacheConfig, faults: &mut Faults) -> Option<Self> {
        let default = Self::default();
        faults.ignore_if(value.key_value_config.is_some(), "key_value_config");
        // It keeps requests from addresses.
        faults.reject_if(value.resolved_address_filter.is_some(), "resolved_address_filter");
        let known = value.preresolve_hostnames.iter();
        let known = known.filter_map(|one| Some((one.address.clone(), values::port(one)?)));
        let timeout = value.dns_query_timeout.as_ref();
        let breaker = value.dns_cache_circuit_breaker.as_ref();
        let settings = Self {
            name: value.name.clone(),
            dns: Dns::of_cache(value, faults)?,
            host_ttl: value.host_ttl.as_ref().map_or(default.host_ttl, values::duration),
            max_hosts: values::u32_or(value.max_hosts.as_ref(), 1024) as usize,
            max_pending: breaker
                .map_or(1024, |it| values::u32_or(it.max_pending_requests.as_ref(), 1024)),
            query_timeout: values::timeout(timeout, default.query_timeout),
            refresh_failed: !value.disable_dns_refresh_on_failure,
            known: known.collect(),
        };
        let wrong = [
            ("name", settings.name.is_empty()),
            ("max_hosts", settings.max_hosts == 0),
            ("host_ttl", settings.host_ttl.is_zero()),
            ("preresolve_hostnames", settings.known.len() > settings.max_hosts),
        ];
        for (field, _) in wrong.iter().filter(|(_, wrong)| *wrong) {
            faults.reject(field, "out of range");
        }
        Some(settings)
    }

    fn cache(value: &DnsCacheConfig, compiler: &mut Compiler<'_>) -> Option<Arc<HostCache>> {
        compiler.faults.enter("dns_cache_config");
        let settings = Self::compile(value, &mut compiler.faults);
        compiler.faults.leave();
        let stats = compiler.telemetry.dns_cache(&value.name);
        Some(compiler.host_caches.of(settings?, stats))
    }
}

/// The cluster with what such clusters have unless told otherwise: servers are
/// asked for the host of the request, and must have its name.
pub(crate) fn with_defaults(cluster: &pb::Cluster) -> Cow<'_, pb::Cluster> {
    let is_dynamic = match cluster.cluster_discovery_type.as_ref() {
        Some(pb::cluster::ClusterDiscoveryType::ClusterType(custom)) => {
            custom.typed_config.as_ref().is_some_and(is::<ClusterConfig>)
        }
        _ => false,
    };
    if !is_dynamic || cluster.upstream_http_protocol_options.is_some() {
        return Cow::Borrowed(cluster);
    }
    let mut cluster = cluster.clone();
    let checked = core::UpstreamHttpProtocolOptions {
        auto_sni: true,
        auto_san_validation: true,
        ..Default::default()
    };
    cluster.upstream_http_protocol_options = Some(checked);
    Cow::Owned(cluster)
}

/// The hosts of a cluster.
pub(crate) fn of_cluster(
    cluster: &pb::Cluster,
    value: &ClusterConfig,
    compiler: &mut Compiler<'_>,
) -> Option<Arc<HostCache>> {
    let faults = &mut compiler.faults;
    faults.ignore_if(value.allow_coalesced_connections, "allow_coalesced_connections");
    let provided = pb::cluster::LbPolicy::ClusterProvided;
    if cluster.lb_policy() != provided && cluster.load_balancing_policy.is_none() {
        faults.reject("lb_policy", "only CLUSTER_PROVIDED goes with the type of the cluster");
    }
    let checks = upstream_options(cluster);
    if !(value.allow_insecure_cluster_options || checks.auto_sni && checks.auto_san_validation) {
        let reason = "auto_sni and auto_san_validation must be set unless \
                      allow_insecure_cluster_options is";
        faults.reject("upstream_http_protocol_options", reason);
    }
    // Each host has an endpoint of its own, of which no set is made.
    faults.ignore_if(cluster.outlier_detection.is_some(), "outlier_detection");
    faults.ignore_if(!cluster.health_checks.is_empty(), "health_checks");
    match value.cluster_implementation_specifier.as_ref() {
        Some(ClusterImplementationSpecifier::DnsCacheConfig(config)) => {
            CacheSettings::cache(config, compiler)
        }
        Some(ClusterImplementationSpecifier::SubClustersConfig(_)) => {
            faults.reject("sub_clusters_config", "not supported");
            None
        }
        None => {
            faults.reject("dns_cache_config", "missing");
            None
        }
    }
}

/// The cache of the HTTP filter.
pub(crate) fn of_filter(
    value: &http_filter::FilterConfig,
    compiler: &mut Compiler<'_>,
) -> Option<Arc<HostCache>> {
    use http_filter::filter_config::ImplementationSpecifier;
    let faults = &mut compiler.faults;
    faults.ignore_if(value.save_upstream_address, "save_upstream_address");
    faults.ignore_if(
        value.allow_dynamic_host_from_filter_state,
        "allow_dynamic_host_from_filter_state",
    );
    match value.implementation_specifier.as_ref() {
        Some(ImplementationSpecifier::DnsCacheConfig(config)) => {
            CacheSettings::cache(config, compiler)
        }
        Some(ImplementationSpecifier::SubClusterConfig(_)) => {
            faults.reject("sub_cluster_config", "not supported");
            None
        }
        None => {
            faults.reject("dns_cache_config", "missing");
            None
        }
    }
}

/// The cache of the filter for TLS connections.
pub(crate) fn of_server_name(
    value: &sni::FilterConfig,
    compiler: &mut Compiler<'_>,
) -> Option<ServerNameHosts> {
    const DEFAULT_PORT: u16 = 443;
    compiler.faults.ignore_if(value.save_upstream_address, "save_upstream_address");
    let Some(config) = &value.dns_cache_config else {
        compiler.faults.reject("dns_cache_config", "missing");
        return None;
    };
    let port = match value.port_specifier {
        Some(sni::filter_config::PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
        None => Some(DEFAULT_PORT),
    };
    let Some(port) = port.filter(|port| *port > 0) else {
        compiler.faults.reject("port_value", "not a port");
        return None;
    };
    CacheSettings::cache(config, compiler).map(|cache| ServerNameHosts { cache, port })
}

impl NewHost {
    /// What a route says; `None` when it says nothing.
    pub(crate) fn compile(
        value: &http_filter::PerRouteConfig,
        faults: &mut Faults,
    ) -> Option<Self> {
        use http_filter::per_route_config::HostRewriteSpecifier as Rewrite;
        let (field, compiled) = match value.host_rewrite_specifier.as_ref()? {
            Rewrite::HostRewriteLiteral(host) => {
                ("host_rewrite_literal", host.parse().ok().map(Self::Literal))
            }
            Rewrite::HostRewriteHeader(name) => {
                ("host_rewrite_header", name.parse().ok().map(Self::Header))
            }
        };
        if compiled.is_none() {
            faults.reject(field, "not a header's name or value");
        }
        compiled
    }
}
