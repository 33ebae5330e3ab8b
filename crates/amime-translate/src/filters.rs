//! The fixed filters that Istio puts into every chain, and which of them a
//! proxy gets.

use amime_xds::istio::peer_metadata::{
    self, Discovery, DiscoveryMethod, IstioHeaders, Propagation, PropagationMethod,
    WorkloadDiscovery,
};
use amime_xds::istio::{alpn, metadata_exchange, stats};
use envoy_types::pb::envoy::config::cluster::v3::Filter as ClusterFilter;
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, ListenerFilter, filter, listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::grpc_stats::v3::{
    FilterConfig as GrpcStats, filter_config::PerMethodStatSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::original_src::v3::OriginalSrc;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use prost::Name;

use crate::context::Context;
use crate::proto::{any, u32_value};
use crate::proxy::{Proxy, ProxyKind};

pub(crate) const TLS_INSPECTOR: &str = "envoy.filters.listener.tls_inspector";
pub(crate) const HTTP_INSPECTOR: &str = "envoy.filters.listener.http_inspector";
pub(crate) const HTTP_CONNECTION_MANAGER: &str = "envoy.filters.network.http_connection_manager";
pub(crate) const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";
pub(crate) const FAULT: &str = "envoy.filters.http.fault";
pub(crate) const CORS: &str = "envoy.filters.http.cors";

const STATS: &str = "istio.stats";
const ALPN: &str = "istio.alpn";
const METADATA_EXCHANGE: &str = "istio.metadata_exchange";
/// The HTTP side of metadata exchange is a filter of its own in the proxy.
const PEER_METADATA: &str = "envoy.filters.http.peer_metadata";

/// Initial buffer of the TLS inspector, as Istio sets it.
const TLS_INSPECTOR_BUFFER_BYTES: u32 = 512;
/// Mark on sockets that must not be redirected again.
const REDIRECT_MARK: u32 = 1337;

/// On which side of the proxy a chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListenerClass {
    Inbound,
    Outbound,
    Gateway,
}

impl ListenerClass {
    /// Class of a proxy's listeners for traffic that leaves it.
    pub(crate) fn outbound_of(proxy: &Proxy) -> Self {
        match proxy.kind {
            ProxyKind::Sidecar => Self::Outbound,
            ProxyKind::Router => Self::Gateway,
        }
    }
}

/// A network filter with a typed configuration.
pub(crate) fn network<M: Name>(name: &str, config: &M) -> Filter {
    Filter {
        name: name.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(any(config))),
    }
}

/// An HTTP filter with a typed configuration.
pub(crate) fn http<M: Name>(name: &str, config: &M) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(config))),
        ..Default::default()
    }
}

fn listener<M: Name>(name: &str, config: &M) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(any(config))),
        ..Default::default()
    }
}

pub(crate) fn tls_inspector() -> ListenerFilter {
    let config = TlsInspector {
        initial_read_buffer_size: u32_value(TLS_INSPECTOR_BUFFER_BYTES),
        ..Default::default()
    };
    listener(TLS_INSPECTOR, &config)
}

pub(crate) fn http_inspector() -> ListenerFilter {
    listener(HTTP_INSPECTOR, &HttpInspector::default())
}

pub(crate) fn proxy_protocol() -> ListenerFilter {
    listener("envoy.filters.listener.proxy_protocol", &ProxyProtocol::default())
}

pub(crate) fn original_dst() -> ListenerFilter {
    listener("envoy.filters.listener.original_dst", &OriginalDst::default())
}

pub(crate) fn original_src() -> ListenerFilter {
    let config = OriginalSrc { mark: REDIRECT_MARK, ..Default::default() };
    listener("envoy.filters.listener.original_src", &config)
}

/// Metadata exchange in front of a TCP chain that speaks mutual TLS.
pub(crate) fn tcp_metadata_exchange(proxy: &Proxy) -> Option<Filter> {
    proxy.has_extension(METADATA_EXCHANGE).then(|| network(METADATA_EXCHANGE, &exchange_config()))
}

/// The same towards an upstream.
pub(crate) fn cluster_metadata_exchange(proxy: &Proxy) -> Option<ClusterFilter> {
    proxy.has_extension(METADATA_EXCHANGE).then(|| ClusterFilter {
        name: METADATA_EXCHANGE.to_owned(),
        typed_config: Some(any(&exchange_config())),
        ..Default::default()
    })
}

fn exchange_config() -> metadata_exchange::MetadataExchange {
    metadata_exchange::MetadataExchange {
        protocol: "istio-peer-exchange".into(),
        enable_discovery: true,
        ..Default::default()
    }
}

/// Istio's metrics, for a TCP chain.
pub(crate) fn tcp_stats(proxy: &Proxy, class: ListenerClass) -> Option<Filter> {
    proxy.has_extension(STATS).then(|| network(STATS, &stats_config(class)))
}

fn stats_config(class: ListenerClass) -> stats::PluginConfig {
    stats::PluginConfig {
        disable_host_header_fallback: class != ListenerClass::Outbound,
        ..Default::default()
    }
}

/// Peer metadata for HTTP.
fn peer_metadata(proxy: &Proxy, class: ListenerClass, in_mesh_only: bool) -> Option<HttpFilter> {
    if !proxy.has_extension(PEER_METADATA) && !proxy.has_extension(METADATA_EXCHANGE) {
        return None;
    }
    let method = |way| DiscoveryMethod { method_specifier: Some(way) };
    let discovery = vec![
        method(Discovery::IstioHeaders(IstioHeaders::default())),
        method(Discovery::WorkloadDiscovery(WorkloadDiscovery {})),
    ];
    let skip_external_clusters = in_mesh_only && class != ListenerClass::Inbound;
    let way = Propagation::IstioHeaders(IstioHeaders { skip_external_clusters });
    let propagation = vec![PropagationMethod { method_specifier: Some(way) }];
    let config = match class {
        ListenerClass::Inbound => peer_metadata::Config {
            downstream_discovery: discovery,
            downstream_propagation: propagation,
            ..Default::default()
        },
        ListenerClass::Outbound | ListenerClass::Gateway => peer_metadata::Config {
            upstream_discovery: discovery,
            upstream_propagation: propagation,
            ..Default::default()
        },
    };
    Some(http(METADATA_EXCHANGE, &config))
}

/// Which ALPN list goes with which HTTP version towards mesh workloads.
fn alpn_override() -> HttpFilter {
    let entry = |protocol: alpn::Protocol, list: [&str; 3]| alpn::AlpnOverride {
        upstream_protocol: protocol.into(),
        alpn_override: list.map(str::to_owned).to_vec(),
    };
    let config = alpn::FilterConfig {
        alpn_override: vec![
            entry(alpn::Protocol::Http10, ["istio-http/1.0", "istio", "http/1.0"]),
            entry(alpn::Protocol::Http11, ["istio-http/1.1", "istio", "http/1.1"]),
            entry(alpn::Protocol::Http2, ["istio-h2", "istio", "h2"]),
        ],
    };
    http(ALPN, &config)
}

/// The HTTP filters of a connection manager, in Istio's order.
pub(crate) fn http_filters(
    context: &Context<'_>,
    class: ListenerClass,
    grpc_web: bool,
) -> Vec<HttpFilter> {
    let Context { proxy, settings, .. } = context;
    let mut filters = Vec::new();
    filters.extend(peer_metadata(proxy, class, settings.exchanges_in_mesh_only()));
    if grpc_web {
        filters.push(http("envoy.filters.http.grpc_web", &GrpcWeb::default()));
    }
    filters.push(grpc_stats());
    if class != ListenerClass::Inbound && proxy.has_extension(ALPN) {
        filters.push(alpn_override());
    }
    filters.push(http(FAULT, &HttpFault::default()));
    filters.push(http(CORS, &Cors::default()));
    if proxy.has_extension(STATS) {
        filters.push(http(STATS, &stats_config(class)));
    }
    let suppress_envoy_headers = settings.suppresses_envoy_headers();
    let router = Router { suppress_envoy_headers, ..Default::default() };
    filters.push(http("envoy.filters.http.router", &router));
    filters
}

fn grpc_stats() -> HttpFilter {
    let config = GrpcStats {
        emit_filter_state: true,
        per_method_stat_specifier: Some(PerMethodStatSpecifier::StatsForAllMethods(
            envoy_types::pb::google::protobuf::BoolValue { value: false },
        )),
        ..Default::default()
    };
    http("envoy.filters.http.grpc_stats", &config)
}
