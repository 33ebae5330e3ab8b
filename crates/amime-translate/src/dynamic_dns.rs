//! Hosts that the proxy resolves itself, request by request: unknown ones
//! (`ALLOW_ANY_DYNAMIC_DNS`), and those of service entries with `DYNAMIC_DNS`.
//!
//! Filter and cluster have to name one cache with equal settings, so they are
//! made here, side by side.

use amime_core::{Hostname, Protocol};
use amime_model::{EgressListener, Resolution, Service, UnknownDestinations};
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CustomClusterType, DnsLookupFamily,
};
use envoy_types::pb::envoy::config::listener::v3::Filter;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3::ClusterConfig;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3::cluster_config::ClusterImplementationSpecifier;
use envoy_types::pb::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use envoy_types::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3::FilterConfig;
use envoy_types::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3::filter_config::ImplementationSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3::FilterConfig as SniFilterConfig;
use envoy_types::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3::filter_config::PortSpecifier;
use envoy_types::pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;

use crate::context::Context;
use crate::filters::{http, network};
use crate::proto::{address as to_address, any, extension, u32_value};
use crate::proxy::ProxyKind;

const CLUSTER: &str = "envoy.clusters.dynamic_forward_proxy";
const FILTER: &str = "envoy.filters.http.dynamic_forward_proxy";
const SNI_FILTER: &str = "envoy.filters.network.sni_dynamic_forward_proxy";
/// Cache of unknown hosts.
const UNKNOWN_HOSTS: &str = "allow_any_dfp_dns_cache";
/// Most unknown hosts that are resolved at a time.
const MAX_HOSTS: u32 = 1024;
/// Where the proxy's own DNS answers.
const DNS_PROXY: (&str, u32) = ("127.0.0.1", 15053);

/// True if unknown HTTP hosts are resolved: sidecars that can do it, where the
/// mesh wants it; others let them through to where they were going.
pub(crate) fn is_on(context: &Context<'_>) -> bool {
    context.scope.unknown == UnknownDestinations::ByName
        && context.proxy.kind == ProxyKind::Sidecar
        && is_able(context)
}

fn is_able(context: &Context<'_>) -> bool {
    [CLUSTER, FILTER].iter().all(|name| context.proxy.has_extension(name))
}

/// True for a service whose hosts the proxy is to resolve, and can.
pub(crate) fn resolves(context: &Context<'_>, service: &Service) -> bool {
    service.resolution == Resolution::DynamicDns
        && service.hostname.is_wildcard()
        && is_able(context)
}

/// True for a port on which such a service can be reached.
pub(crate) fn serves(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Tls)
}

/// The filter that waits until an unknown host of a request is resolved.
pub(crate) fn filter(context: &Context<'_>) -> HttpFilter {
    http_filter(unknown_hosts(context))
}

/// The filters for the services that requests on a port may be for.
pub(crate) fn filters_of(
    context: &Context<'_>,
    egress: &EgressListener,
    port: u32,
) -> Vec<HttpFilter> {
    let on_port = |service: &&std::sync::Arc<Service>| {
        let own = service.port(port).is_some_and(|port| serves(port.protocol));
        own && resolves(context, service)
    };
    let services = egress.services.iter().filter(on_port);
    services.map(|service| http_filter(hosts_of(context, &service.hostname))).collect()
}

fn http_filter(cache: DnsCacheConfig) -> HttpFilter {
    let cache = ImplementationSpecifier::DnsCacheConfig(cache);
    http(FILTER, &FilterConfig { implementation_specifier: Some(cache), ..Default::default() })
}

/// The filter that waits until the server name of a TLS connection is resolved.
pub(crate) fn sni_filter(context: &Context<'_>, service: &Service, port: u32) -> Option<Filter> {
    if !resolves(context, service) || !context.proxy.has_extension(SNI_FILTER) {
        return None;
    }
    let config = SniFilterConfig {
        dns_cache_config: Some(hosts_of(context, &service.hostname)),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    Some(network(SNI_FILTER, &config))
}

/// The kind of the cluster of unknown hosts.
pub(crate) fn discovery(context: &Context<'_>, insecure: bool) -> ClusterDiscoveryType {
    cluster_of(unknown_hosts(context), insecure)
}

/// The kind of a cluster whose hosts are those of the requests for `host`.
pub(crate) fn discovery_of(
    context: &Context<'_>,
    host: &Hostname,
    insecure: bool,
) -> ClusterDiscoveryType {
    cluster_of(hosts_of(context, host), insecure)
}

/// `insecure`: names of servers are not checked by themselves.
fn cluster_of(cache: DnsCacheConfig, insecure: bool) -> ClusterDiscoveryType {
    let config = ClusterConfig {
        allow_insecure_cluster_options: insecure,
        cluster_implementation_specifier: Some(ClusterImplementationSpecifier::DnsCacheConfig(
            cache,
        )),
        ..Default::default()
    };
    ClusterDiscoveryType::ClusterType(CustomClusterType {
        name: CLUSTER.to_owned(),
        typed_config: Some(any(&config)),
    })
}

fn hosts_of(context: &Context<'_>, host: &Hostname) -> DnsCacheConfig {
    DnsCacheConfig {
        name: format!("{host}_dfp_dns_cache"),
        dns_lookup_family: family(context).into(),
        ..Default::default()
    }
}

fn unknown_hosts(context: &Context<'_>) -> DnsCacheConfig {
    let (address, port) = DNS_PROXY;
    let resolver = CaresDnsResolverConfig {
        resolvers: vec![to_address(address, port)],
        ..CaresDnsResolverConfig::default()
    };
    DnsCacheConfig {
        name: UNKNOWN_HOSTS.to_owned(),
        dns_lookup_family: family(context).into(),
        max_hosts: u32_value(MAX_HOSTS),
        typed_dns_resolver_config: context
            .proxy
            .flag("DNS_CAPTURE")
            .then(|| extension("envoy.network.dns_resolver.cares", &resolver)),
        ..DnsCacheConfig::default()
    }
}

fn family(context: &Context<'_>) -> DnsLookupFamily {
    match (context.proxy.supports_v4(), context.proxy.supports_v6()) {
        (true, true) => DnsLookupFamily::All,
        (false, true) => DnsLookupFamily::V6Only,
        (_, false) => DnsLookupFamily::V4Only,
    }
}
