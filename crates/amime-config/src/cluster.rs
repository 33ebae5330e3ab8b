//! Clusters: discovery, load balancing, protocol, limits, transports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use amime_telemetry::{ClusterInfo, ServiceIdentity};
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as http_options;
use envoy_types::pb::google::protobuf as wkt;

use super::discovery::Discovery;
use super::dynamic_hosts;
use super::endpoint::metadata_contains;
use super::health_check::HealthCheck;
use super::lb_policy::LbSettings;
use super::names::ClusterId;
use super::outlier::{ErrorMatcher, Outlier};
use super::tls::{UpstreamTransport, upstream_transport};
use super::{Compiler, FetchTimeout};
use amime_rules::Faults;
use amime_rules::h1::Http1;
use amime_rules::h2::H2Settings;
use amime_rules::values::{self, HostAddress, unpack};

/// A compiled `Cluster`.
#[derive(Debug)]
pub struct ClusterConfig {
    pub id: ClusterId,
    pub name: Arc<str>,
    pub info: ClusterInfo,
    pub discovery: Discovery,
    /// How long to stay without the first endpoints by EDS.
    pub fetch_timeout: FetchTimeout,
    /// Not in force before names have been looked up once.
    pub wait_for_names: bool,
    pub lb: LbSettings,
    pub connect_timeout: Duration,
    pub http: HttpUpstream,
    /// Limits of default and of high priority.
    pub limits: [Limits; 2],
    pub outlier: Option<Outlier>,
    /// Endpoints have to pass all of them.
    pub checks: Vec<HealthCheck>,
    /// Endpoints count as none before their first check.
    pub ignore_unchecked: bool,
    pub eyeballs: HappyEyeballs,
    /// Source address of connections.
    pub bind: Option<SocketAddr>,
    pub keepalive: Option<Keepalive>,
    /// Each client's connection has upstream connections of its own.
    pub pool_per_client: bool,
    /// TCP connections to endpoints that fail end.
    pub close_on_failure: bool,
    /// How many connections there are for each request, if more than one.
    pub preconnect: Option<f64>,
    transports: Vec<TransportChoice>,
}

/// HTTP towards the cluster.
#[derive(Clone, Debug)]
pub struct HttpUpstream {
    pub protocol: UpstreamProtocol,
    /// `None`: connections may idle for ever.
    pub idle_timeout: Option<Duration>,
    pub max_requests_per_connection: Option<u32>,
    /// How long a connection takes requests.
    pub max_connection: Option<Duration>,
    pub h2: H2Settings,
    /// Ask for the request's host in TLS when the context names none.
    pub auto_sni: bool,
    pub h1: Http1,
    pub max_headers: usize,
    /// What passive checks take for errors, unless it is answers above 499.
    pub errors: Option<Arc<ErrorMatcher>>,
}

/// Which HTTP version is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    Http1,
    Http2,
    /// The client's.
    Downstream,
    /// By ALPN.
    Auto,
}

/// Circuit breaker thresholds; `u32::MAX` costs no counting.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: u32,
    pub pending: u32,
    pub requests: u32,
    pub retries: u32,
    /// Connections to one endpoint.
    pub per_host: u32,
    /// The admin port tells what is left.
    pub track_remaining: bool,
    pub(crate) retry_budget: Option<RetryBudget>,
}

/// Retries allowed as a share of requests in flight.
#[derive(Clone, Copy, Debug)]
pub struct RetryBudget {
    pub percent: f64,
    pub min: u32,
}

/// In which order the addresses of one endpoint are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HappyEyeballs {
    /// `None`: the family of the first address.
    pub first_is_v4: Option<bool>,
    /// Addresses of that family before each of the other.
    pub count: u32,
}

impl HappyEyeballs {
    fn compile(value: &pb::Cluster, faults: &mut Faults) -> Self {
        use pb::upstream_connection_options::FirstAddressFamilyVersion as Version;
        let options = value.upstream_connection_options.as_ref();
        let config = options.and_then(|options| options.happy_eyeballs_config.as_ref());
        let field = "upstream_connection_options.happy_eyeballs_config.first_address_family_count";
        let count = config.and_then(|config| config.first_address_family_count.as_ref());
        let count = values::u32_or(count, 1);
        if count == 0 {
            faults.reject(field, "zero");
        }
        let first = config.map(
            pb::upstream_connection_options::HappyEyeballsConfig::first_address_family_version,
        );
        let first_is_v4 = match first {
            Some(Version::V4) => Some(true),
            Some(Version::V6) => Some(false),
            _ => None,
        };
        Self { first_is_v4, count }
    }
}

/// TCP keep-alive probes.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
    pub probes: Option<u32>,
}

#[derive(Debug)]
struct TransportChoice {
    criteria: wkt::Struct,
    transport: UpstreamTransport,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Envoy's default thresholds.
const DEFAULT_LIMITS: Limits = Limits {
    connections: 1024,
    pending: 1024,
    requests: 1024,
    retries: 3,
    per_host: u32::MAX,
    track_remaining: false,
    retry_budget: None,
};

impl ClusterConfig {
    pub fn compile(value: &pb::Cluster, compiler: &mut Compiler<'_>) -> Option<Self> {
        let value = &*dynamic_hosts::with_defaults(value);
        compiler.auto_san_validation = upstream_options(value).auto_san_validation;
        let transports = transports(value, compiler);
        let id = compiler.names.cluster(&value.name);
        let discovery = Discovery::compile(value, compiler);
        let faults = &mut compiler.faults;
        let checks = HealthCheck::compile(&value.health_checks, faults);
        without_effect(value, faults);
        faults.ignore_if(!value.filters.is_empty(), "filters");
        faults.reject_if(value.transport_socket_matcher.is_some(), "transport_socket_matcher");
        let metadata = value.metadata.as_ref();
        let name: Arc<str> = value.name.as_str().into();
        Some(Self {
            id,
            info: ClusterInfo { name: name.clone(), service: service_of(metadata) },
            name,
            discovery: discovery?,
            fetch_timeout: values::fetch_timeout(
                value.eds_cluster_config.as_ref().and_then(|eds| eds.eds_config.as_ref()),
            ),
            wait_for_names: values::bool_or(value.wait_for_warm_on_init.as_ref(), true),
            lb: LbSettings::compile(value, faults)?,
            connect_timeout: value
                .connect_timeout
                .as_ref()
                .map_or(CONNECT_TIMEOUT, values::duration),
            http: HttpUpstream::compile(value, faults)?,
            limits: limits(value.circuit_breakers.as_ref(), faults),
            checks,
            ignore_unchecked: value
                .common_lb_config
                .as_ref()
                .is_some_and(|common| common.ignore_new_hosts_until_first_hc),
            eyeballs: HappyEyeballs::compile(value, faults),
            outlier: value
                .outlier_detection
                .as_ref()
                .map(|outlier| Outlier::compile(outlier, faults)),
            bind: bind(value.upstream_bind_config.as_ref(), faults),
            keepalive: keepalive(
                value.upstream_connection_options.as_ref().and_then(|o| o.tcp_keepalive.as_ref()),
            ),
            pool_per_client: value.connection_pool_per_downstream_connection,
            close_on_failure: value.close_connections_on_host_health_failure,
            preconnect: preconnect(value.preconnect_policy.as_ref(), faults),
            transports: transports?,
        })
    }

    /// The transport for an endpoint with `metadata`, and its index.
    pub fn transport_of(&self, metadata: Option<&core::Metadata>) -> (usize, UpstreamTransport) {
        let index = self
            .transports
            .iter()
            .position(|choice| metadata_contains(metadata, &choice.criteria))
            .expect("the last choice has no criteria");
        (index, self.transports[index].transport.clone())
    }
}

/// The cluster's transports, the default last and without criteria.
fn transports(value: &pb::Cluster, compiler: &mut Compiler<'_>) -> Option<Vec<TransportChoice>> {
    let mut choices = Vec::with_capacity(value.transport_socket_matches.len() + 1);
    let mut whole = true;
    for (index, choice) in value.transport_socket_matches.iter().enumerate() {
        compiler.faults.enter(format!("transport_socket_matches[{index}].transport_socket"));
        match upstream_transport(choice.transport_socket.as_ref(), compiler) {
            Some(transport) => choices.push(TransportChoice {
                criteria: choice.r#match.clone().unwrap_or_default(),
                transport,
            }),
            None => whole = false,
        }
        compiler.faults.leave();
    }
    compiler.faults.enter("transport_socket");
    let default = upstream_transport(value.transport_socket.as_ref(), compiler);
    compiler.faults.leave();
    choices.push(TransportChoice { criteria: wkt::Struct::default(), transport: default? });
    whole.then_some(choices)
}

fn service_of(metadata: Option<&core::Metadata>) -> Option<ServiceIdentity> {
    use wkt::value::Kind;
    let services = metadata?.filter_metadata.get("istio")?.fields.get("services")?;
    let Some(Kind::ListValue(list)) = &services.kind else { return None };
    let Some(Kind::StructValue(first)) = &list.values.first()?.kind else { return None };
    let text = |key: &str| -> Arc<str> {
        match first.fields.get(key).and_then(|value| value.kind.as_ref()) {
            Some(Kind::StringValue(text)) => text.as_str().into(),
            _ => "".into(),
        }
    };
    Some(ServiceIdentity { host: text("host"), name: text("name"), namespace: text("namespace") })
}

fn limits(value: Option<&pb::CircuitBreakers>, faults: &mut Faults) -> [Limits; 2] {
    let mut limits = [DEFAULT_LIMITS; 2];
    for threshold in value.iter().flat_map(|value| &value.thresholds) {
        let Some(slot) = priority_slot(threshold) else { continue };
        limits[slot] = Limits {
            connections: values::u32_or(threshold.max_connections.as_ref(), 1024),
            pending: values::u32_or(threshold.max_pending_requests.as_ref(), 1024),
            requests: values::u32_or(threshold.max_requests.as_ref(), 1024),
            retries: values::u32_or(threshold.max_retries.as_ref(), 3),
            per_host: u32::MAX,
            track_remaining: threshold.track_remaining,
            retry_budget: threshold.retry_budget.as_ref().map(|budget| RetryBudget {
                percent: budget.budget_percent.as_ref().map_or(20.0, |percent| percent.value),
                min: values::u32_or(budget.min_retry_concurrency.as_ref(), 3),
            }),
        };
        let pools = threshold.max_connection_pools.is_some();
        faults.ignore_if(pools, "circuit_breakers.thresholds.max_connection_pools");
    }
    for threshold in value.iter().flat_map(|value| &value.per_host_thresholds) {
        let Some(slot) = priority_slot(threshold) else { continue };
        limits[slot].per_host = values::u32_or(threshold.max_connections.as_ref(), u32::MAX);
        let others = threshold.max_pending_requests.is_some()
            || threshold.max_requests.is_some()
            || threshold.max_retries.is_some()
            || threshold.max_connection_pools.is_some()
            || threshold.retry_budget.is_some();
        if others {
            let field = "circuit_breakers.per_host_thresholds";
            faults.reject(field, "only max_connections may be limited");
        }
    }
    limits
}

fn priority_slot(threshold: &pb::circuit_breakers::Thresholds) -> Option<usize> {
    usize::try_from(threshold.priority).ok().filter(|slot| *slot < 2)
}

/// Names fields that have no effect here.
fn without_effect(value: &pb::Cluster, faults: &mut Faults) {
    faults.ignore_if(value.upstream_config.is_some(), "upstream_config");
    let common = value.common_lb_config.as_ref();
    faults.ignore_if(
        common.is_some_and(|common| common.close_connections_on_host_set_change),
        "common_lb_config.close_connections_on_host_set_change",
    );
}

/// Connections for each request to an endpoint, if more than one.
fn preconnect(value: Option<&pb::cluster::PreconnectPolicy>, faults: &mut Faults) -> Option<f64> {
    let value = value?;
    let predicts = value.predictive_preconnect_ratio.is_some();
    faults.ignore_if(predicts, "preconnect_policy.predictive_preconnect_ratio");
    let ratio = value.per_upstream_preconnect_ratio.as_ref()?.value;
    if !(1.0..=3.0).contains(&ratio) {
        faults.reject("preconnect_policy.per_upstream_preconnect_ratio", "not between 1 and 3");
    }
    Some(ratio).filter(|ratio| *ratio > 1.0)
}

fn bind(value: Option<&core::BindConfig>, faults: &mut Faults) -> Option<SocketAddr> {
    let source = value?.source_address.clone()?;
    let address = core::Address { address: Some(core::address::Address::SocketAddress(source)) };
    match values::address(Some(&address), faults)? {
        HostAddress::Ip(address) => Some(address),
        HostAddress::Name(..) | HostAddress::Pipe(_) => {
            faults.reject("upstream_bind_config.source_address", "not an IP address");
            None
        }
    }
}

/// What is taken from requests for TLS; looked up ahead of the protocol
/// options, as the transports are made with it.
pub(crate) fn upstream_options(value: &pb::Cluster) -> core::UpstreamHttpProtocolOptions {
    let options = value.typed_extension_protocol_options.get(HttpUpstream::KEY);
    let options = options.and_then(|any| unpack(any, &mut Faults::default()));
    let options = options.and_then(|options: http_options::HttpProtocolOptions| {
        options.upstream_http_protocol_options
    });
    options.or_else(|| value.upstream_http_protocol_options.clone()).unwrap_or_default()
}

pub(crate) fn keepalive(value: Option<&core::TcpKeepalive>) -> Option<Keepalive> {
    let value = value?;
    let seconds = |value: &wkt::UInt32Value| Duration::from_secs(u64::from(value.value));
    Some(Keepalive {
        time: value.keepalive_time.as_ref().map(seconds),
        interval: value.keepalive_interval.as_ref().map(seconds),
        probes: value.keepalive_probes.as_ref().map(|probes| probes.value),
    })
}

/// Names options of both HTTP versions that have no effect here.
fn common_unheeded(value: &core::HttpProtocolOptions, faults: &mut Faults) {
    for (set, field) in [
        (value.max_stream_duration.is_some(), "max_stream_duration"),
        (value.max_response_headers_kb.is_some(), "max_response_headers_kb"),
        (value.headers_with_underscores_action != 0, "headers_with_underscores_action"),
        (value.max_connection_duration_jitter.is_some(), "max_connection_duration_jitter"),
    ] {
        faults.ignore_if(set, field);
    }
}

impl HttpUpstream {
    const KEY: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

    fn compile(value: &pb::Cluster, faults: &mut Faults) -> Option<Self> {
        if let Some(any) = value.typed_extension_protocol_options.get(Self::KEY) {
            faults.enter("typed_extension_protocol_options");
            let compiled =
                unpack(any, faults).and_then(|options| Self::from_options(&options, faults));
            faults.leave();
            return compiled;
        }
        // The fields that predate protocol options.
        let h2 = value.http2_protocol_options.as_ref();
        let follow = value.protocol_selection
            == pb::cluster::ClusterProtocolSelection::UseDownstreamProtocol as i32;
        let protocol = match (h2, follow) {
            (_, true) => UpstreamProtocol::Downstream,
            (Some(_), false) => UpstreamProtocol::Http2,
            (None, false) => UpstreamProtocol::Http1,
        };
        let upstream = value.upstream_http_protocol_options.as_ref();
        let mut http = Self::new(protocol, value.common_http_protocol_options.as_ref(), h2);
        http.auto_sni = upstream.is_some_and(|upstream| upstream.auto_sni);
        let most = value.max_requests_per_connection.as_ref().map(|max| max.value);
        http.max_requests_per_connection =
            http.max_requests_per_connection.or(most.filter(|max| *max > 0));
        Some(http)
    }

    fn new(
        protocol: UpstreamProtocol,
        common: Option<&core::HttpProtocolOptions>,
        h2: Option<&core::Http2ProtocolOptions>,
    ) -> Self {
        let idle = common.and_then(|common| common.idle_timeout.as_ref());
        let requests = common.and_then(|common| common.max_requests_per_connection.as_ref());
        Self {
            protocol,
            idle_timeout: values::timeout(idle, Some(IDLE_TIMEOUT)),
            max_requests_per_connection: requests.map(|max| max.value).filter(|max| *max > 0),
            max_connection: values::timeout(
                common.and_then(|common| common.max_connection_duration.as_ref()),
                None,
            ),
            h2: H2Settings::compile(h2),
            auto_sni: false,
            h1: Http1::default(),
            max_headers: values::u32_or(
                common.and_then(|common| common.max_headers_count.as_ref()),
                100,
            ) as usize,
            errors: None,
        }
    }

    fn from_options(
        value: &http_options::HttpProtocolOptions,
        faults: &mut Faults,
    ) -> Option<Self> {
        use http_options::http_protocol_options::{
            UpstreamProtocolOptions as Options, explicit_http_config::ProtocolConfig,
        };
        for (set, field) in [
            (!value.http_filters.is_empty(), "http_filters"),
            (!value.request_mirror_policies.is_empty(), "request_mirror_policies"),
            (!value.hash_policy.is_empty(), "hash_policy"),
            (value.retry_policy.is_some(), "retry_policy"),
            (value.header_validation_config.is_some(), "header_validation_config"),
        ] {
            faults.ignore_if(set, field);
        }
        if let Some(common) = &value.common_http_protocol_options {
            faults.within("common_http_protocol_options", |faults| common_unheeded(common, faults));
        }
        let (protocol, h1, h2) = match value.upstream_protocol_options.as_ref() {
            Some(Options::ExplicitHttpConfig(explicit)) => {
                match explicit.protocol_config.as_ref() {
                    Some(ProtocolConfig::HttpProtocolOptions(h1)) => {
                        (UpstreamProtocol::Http1, Some(h1), None)
                    }
                    Some(ProtocolConfig::Http2ProtocolOptions(h2)) => {
                        (UpstreamProtocol::Http2, None, Some(h2))
                    }
                    Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                        faults.reject("explicit_http_config", "HTTP/3 is not supported");
                        return None;
                    }
                    None => (UpstreamProtocol::Http1, None, None),
                }
            }
            Some(Options::UseDownstreamProtocolConfig(config)) => (
                UpstreamProtocol::Downstream,
                config.http_protocol_options.as_ref(),
                config.http2_protocol_options.as_ref(),
            ),
            Some(Options::AutoConfig(config)) => (
                UpstreamProtocol::Auto,
                config.http_protocol_options.as_ref(),
                config.http2_protocol_options.as_ref(),
            ),
            None => (UpstreamProtocol::Http1, None, None),
        };
        let mut http = Self::new(protocol, value.common_http_protocol_options.as_ref(), h2);
        let upstream = value.upstream_http_protocol_options.as_ref();
        http.auto_sni = upstream.is_some_and(|upstream| upstream.auto_sni);
        http.h1 = Http1::compile(h1, faults);
        if let Some(outlier) = &value.outlier_detection {
            http.errors =
                ErrorMatcher::compile(outlier.error_matcher.as_ref(), faults).map(Arc::new);
        }
        Some(http)
    }
}
