//! Unknown HTTP hosts that the proxy resolves itself (`ALLOW_ANY_DYNAMIC_DNS`).
//!
//! Filter and cluster have to name one cache with equal settings, so they are
//! made here, side by side.

use amime_model::UnknownDestinations;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CustomClusterType, DnsLookupFamily,
};
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3::ClusterConfig;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3::cluster_config::ClusterImplementationSpecifier;
use envoy_types::pb::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use envoy_types::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3::FilterConfig;
use envoy_types::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3::filter_config::ImplementationSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;

use crate::context::Context;
use crate::filters::http;
use crate::proto::{address as to_address, any, extension, u32_value};
use crate::proxy::ProxyKind;

const CLUSTER: &str = "envoy.clusters.dynamic_forward_proxy";
const FILTER: &str = "envoy.filters.http.dynamic_forward_proxy";
const CACHE: &str = "allow_any_dynamic_dns_cache";
/// Most hosts that are resolved at a time.
const MAX_HOSTS: u32 = 1024;
/// Where the proxy's own DNS answers.
const DNS_PROXY: (&str, u32) = ("127.0.0.1", 15053);

/// True if unknown HTTP hosts are resolved: sidecars that can do it, where the
/// mesh wants it; others let them through to where they were going.
pub(crate) fn is_on(context: &Context<'_>) -> bool {
    context.scope.unknown == UnknownDestinations::ByName
        && context.proxy.kind == ProxyKind::Sidecar
        && [CLUSTER, FILTER].iter().all(|name| context.proxy.has_extension(name))
}

/// The filter that waits until the host of a request is resolved.
pub(crate) fn filter(context: &Context<'_>) -> HttpFilter {
    let cache = ImplementationSpecifier::DnsCacheConfig(cache(context));
    let config = FilterConfig { implementation_specifier: Some(cache), ..FilterConfig::default() };
    http(FILTER, &config)
}

/// The kind of a cluster whose hosts are those of the requests.
pub(crate) fn discovery(context: &Context<'_>) -> ClusterDiscoveryType {
    let cache = ClusterImplementationSpecifier::DnsCacheConfig(cache(context));
    let config = ClusterConfig {
        // The cluster speaks plaintext, so there is no name to verify.
        allow_insecure_cluster_options: true,
        cluster_implementation_specifier: Some(cache),
        ..ClusterConfig::default()
    };
    ClusterDiscoveryType::ClusterType(CustomClusterType {
        name: CLUSTER.to_owned(),
        typed_config: Some(any(&config)),
    })
}

fn cache(context: &Context<'_>) -> DnsCacheConfig {
    let family = match (context.proxy.supports_v4(), context.proxy.supports_v6()) {
        (true, true) => DnsLookupFamily::All,
        (false, true) => DnsLookupFamily::V6Only,
        (_, false) => DnsLookupFamily::V4Only,
    };
    let (address, port) = DNS_PROXY;
    let resolver = CaresDnsResolverConfig {
        resolvers: vec![to_address(address, port)],
        ..CaresDnsResolverConfig::default()
    };
    DnsCacheConfig {
        name: CACHE.to_owned(),
        dns_lookup_family: family.into(),
        max_hosts: u32_value(MAX_HOSTS),
        typed_dns_resolver_config: context
            .proxy
            .flag("DNS_CAPTURE")
            .then(|| extension("envoy.network.dns_resolver.cares", &resolver)),
        ..DnsCacheConfig::default()
    }
}
