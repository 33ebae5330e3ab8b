//! HTTP connection managers.

use std::sync::Arc;
use std::time::Duration;

use amime_telemetry::ListenerTelemetry;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use http::HeaderValue;
use ipnet::IpNet;

use super::filters::{FilterChain, HttpFilter};
use super::names::RouteConfigId;
use super::route::RouteTable;
use super::unheeded;
use super::{Compiler, Node};
use amime_rules::Faults;
use amime_rules::h1::Http1;
use amime_rules::h2::H2Settings;
use amime_rules::local_reply::LocalReplies;
use amime_rules::peer_metadata::PeerExchange;
use amime_rules::values::{self, bool_or, u32_or};

/// A compiled `HttpConnectionManager`.
#[derive(Debug)]
pub struct HttpConfig {
    pub stat_prefix: String,
    pub codec: Codec,
    pub routes: RouteSource,
    /// In the order in which requests pass them.
    pub filters: Vec<HttpFilter>,
    /// Changes of what the proxy answers itself.
    pub local_replies: Option<LocalReplies>,
    pub telemetry: ListenerTelemetry,
    pub server_name: HeaderValue,
    pub server_header: ServerHeader,
    pub remote: RemoteAddress,
    pub request_id: RequestId,
    pub path: PathNormalization,
    pub client_cert: ClientCert,
    pub via: Option<HeaderValue>,
    pub http1: Http1,
    /// Clients that wait for a 100 get the upstream's.
    pub proxy_100_continue: bool,
    pub h2: H2Settings,
    pub max_headers_kb: u32,
    pub max_headers: usize,
    /// What may be buffered of one message.
    pub buffer_limit: usize,
    /// What is told of our own cluster and node upstream.
    pub user_agent: Option<UserAgent>,
    pub underscores: Underscores,
    pub timeouts: Timeouts,
    /// A request whose headers make no sense costs an HTTP/1 client no more
    /// than that request.
    pub forgiving: bool,
    /// Connections end when the proxy drains, not only with their listener.
    pub drains: bool,
    pub max_requests_per_connection: Option<u32>,
    /// Upgrade types allowed, lower case.
    pub upgrades: Vec<String>,
    pub strip_port: StripPort,
    pub strip_trailing_dot: bool,
    pub suppress_envoy_headers: bool,
    pub append_forwarded_port: bool,
    pub scheme: Option<amime_rules::head::Scheme>,
    /// Exchange of workload metadata with peers in headers.
    pub peer_exchange: PeerExchange,
    /// Tell Istio peers the HTTP version by ALPN.
    pub istio_alpn: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Auto,
    Http1,
    Http2,
    Http3,
}

/// Values of the headers that `add_user_agent` adds.
#[derive(Debug)]
pub struct UserAgent {
    /// Also of `x-envoy-downstream-service-cluster`.
    pub cluster: HeaderValue,
    pub node: Option<HeaderValue>,
}

/// Where routes come from.
#[derive(Debug)]
pub enum RouteSource {
    Inline(Arc<RouteTable>),
    Rds(RouteConfigId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerHeader {
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

/// How the client's address and origin are found.
#[derive(Debug)]
pub struct RemoteAddress {
    pub use_remote: bool,
    pub trusted_hops: u32,
    pub skip_append: bool,
    /// Ranges that count as internal.
    pub internal: Vec<IpNet>,
}

#[derive(Clone, Copy, Debug)]
pub struct RequestId {
    pub generate: bool,
    pub preserve_external: bool,
    pub always_in_response: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct PathNormalization {
    pub normalize: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscapedSlashes {
    Keep,
    Reject,
    Redirect,
    Unescape,
}

/// What happens to `x-forwarded-client-cert`.
#[derive(Clone, Debug)]
pub struct ClientCert {
    pub forward: ForwardClientCert,
    pub cert: bool,
    pub chain: bool,
    pub subject: bool,
    pub uri: bool,
    pub dns: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardClientCert {
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underscores {
    Allow,
    Reject,
    Drop,
}

/// `None`: no limit.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    pub idle: Option<Duration>,
    pub stream_idle: Option<Duration>,
    pub request: Option<Duration>,
    pub request_headers: Option<Duration>,
    pub max_connection: Option<Duration>,
    /// Most of it that is added at random, as a fraction.
    pub max_connection_jitter: f64,
    pub max_stream: Option<Duration>,
    /// For clients of HTTP/1 to notice that their connection is about to end.
    pub drain: Duration,
    /// Most of it that is added at random, as a fraction.
    pub drain_jitter: f64,
    /// How long a client may take to read the last response; `None`: it is
    /// not waited for.
    pub delayed_close: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StripPort {
    No,
    Matching,
    Any,
}

/// Envoy's defaults.
const DRAIN: Duration = Duration::from_secs(5);
const DELAYED_CLOSE: Duration = Duration::from_secs(1);

impl HttpConfig {
    pub fn compile(
        value: &pb::HttpConnectionManager,
        mut telemetry: ListenerTelemetry,
        compiler: &mut Compiler<'_>,
    ) -> Option<Self> {
        let routes = routes(value, compiler);
        telemetry.access_logs = compiler.access_logs(&value.access_log);
        let chain = FilterChain::compile(&value.http_filters, compiler);
        telemetry.istio_stats = chain.istio_stats.clone();
        refuse_unsupported(value, &mut compiler.faults);
        let common = value.common_http_protocol_options.unwrap_or_default();
        let user_agent = bool_or(value.add_user_agent.as_ref(), false);
        let user_agent = user_agent.then(|| UserAgent::of(compiler.node)).flatten();
        let buffer_limit = compiler.buffer_limit;
        let faults = &mut compiler.faults;
        let local_replies = value.local_reply_config.as_ref().map(|config| {
            faults.within("local_reply_config", |faults| LocalReplies::compile(config, faults))
        });
        Some(Self {
            stat_prefix: value.stat_prefix.clone(),
            codec: codec(value, compiler.quic, faults)?,
            routes: routes?,
            filters: chain.filters,
            local_replies,
            telemetry,
            server_name: server_name(&value.server_name, faults)?,
            server_header: server_header(value),
            remote: remote_address(value, faults),
            request_id: RequestId {
                generate: bool_or(value.generate_request_id.as_ref(), true),
                preserve_external: value.preserve_external_request_id,
                always_in_response: value.always_set_request_id_in_response,
            },
            path: path_normalization(value),
            client_cert: client_cert(value),
            via: HeaderValue::from_str(&value.via).ok().filter(|via| !via.is_empty()),
            http1: faults.within("http_protocol_options", |faults| {
                Http1::compile(value.http_protocol_options.as_ref(), faults)
            }),
            proxy_100_continue: value.proxy_100_continue,
            h2: H2Settings::compile(value.http2_protocol_options.as_ref()),
            max_headers_kb: u32_or(value.max_request_headers_kb.as_ref(), 60).min(8192),
            buffer_limit,
            user_agent,
            max_headers: u32_or(common.max_headers_count.as_ref(), 100) as usize,
            underscores: underscores(&common),
            timeouts: timeouts(value, &common),
            forgiving: forgiving(value),
            drains: true,
            max_requests_per_connection: common
                .max_requests_per_connection
                .map(|max| max.value)
                .filter(|max| *max > 0),
            upgrades: upgrades(value, faults),
            strip_port: strip_port(value),
            strip_trailing_dot: value.strip_trailing_host_dot,
            suppress_envoy_headers: chain.suppress_envoy_headers,
            append_forwarded_port: value.append_x_forwarded_port,
            scheme: scheme_override(value.scheme_header_transformation.as_ref()),
            peer_exchange: chain.peer_exchange,
            istio_alpn: chain.istio_alpn,
        })
    }
}

impl UserAgent {
    fn of(node: &Node) -> Option<Self> {
        let value = |text: &str| HeaderValue::from_str(text).ok();
        Some(Self {
            cluster: value(&node.cluster)?,
            node: value(&node.id).filter(|id| !id.is_empty()),
        })
    }
}

fn upgrades(value: &pb::HttpConnectionManager, faults: &mut Faults) -> Vec<String> {
    let own_filters = value.upgrade_configs.iter().any(|upgrade| !upgrade.filters.is_empty());
    faults.reject_if(own_filters, "upgrade_configs.filters");
    let enabled = value.upgrade_configs.iter().filter(|it| bool_or(it.enabled.as_ref(), true));
    enabled.map(|upgrade| upgrade.upgrade_type.to_ascii_lowercase()).collect()
}

fn server_header(value: &pb::HttpConnectionManager) -> ServerHeader {
    use pb::http_connection_manager::ServerHeaderTransformation as Transformation;
    match value.server_header_transformation() {
        Transformation::Overwrite => ServerHeader::Overwrite,
        Transformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
        Transformation::PassThrough => ServerHeader::PassThrough,
    }
}

fn underscores(common: &core::HttpProtocolOptions) -> Underscores {
    use core::http_protocol_options::HeadersWithUnderscoresAction as Action;
    match common.headers_with_underscores_action() {
        Action::Allow => Underscores::Allow,
        Action::RejectRequest => Underscores::Reject,
        Action::DropHeader => Underscores::Drop,
    }
}

fn strip_port(value: &pb::HttpConnectionManager) -> StripPort {
    use pb::http_connection_manager::StripPortMode;
    match value.strip_port_mode.as_ref() {
        Some(StripPortMode::StripAnyHostPort(true)) => StripPort::Any,
        _ if value.strip_matching_host_port => StripPort::Matching,
        _ => StripPort::No,
    }
}

fn refuse_unsupported(value: &pb::HttpConnectionManager, faults: &mut Faults) {
    unheeded::of_http_manager(value, faults);
    faults.reject_if(
        !value.original_ip_detection_extensions.is_empty(),
        "original_ip_detection_extensions",
    );
    faults.reject_if(
        !value.early_header_mutation_extensions.is_empty(),
        "early_header_mutation_extensions",
    );
    faults.reject_if(value.forward_client_cert_matcher.is_some(), "forward_client_cert_matcher");
}

fn codec(value: &pb::HttpConnectionManager, quic: bool, faults: &mut Faults) -> Option<Codec> {
    use pb::http_connection_manager::CodecType;
    Some(match value.codec_type() {
        CodecType::Auto => Codec::Auto,
        CodecType::Http1 => Codec::Http1,
        CodecType::Http2 => Codec::Http2,
        CodecType::Http3 if quic => Codec::Http3,
        CodecType::Http3 => {
            faults.reject("codec_type", "HTTP/3 needs a QUIC listener");
            return None;
        }
    })
}

fn server_name(name: &str, faults: &mut Faults) -> Option<HeaderValue> {
    let name = if name.is_empty() { "envoy" } else { name };
    match HeaderValue::from_str(name) {
        Ok(value) => Some(value),
        Err(_) => {
            faults.reject("server_name", "not a header value");
            None
        }
    }
}

fn routes(value: &pb::HttpConnectionManager, compiler: &mut Compiler<'_>) -> Option<RouteSource> {
    use pb::http_connection_manager::RouteSpecifier;
    match value.route_specifier.as_ref() {
        Some(RouteSpecifier::RouteConfig(config)) => {
            compiler.faults.enter("route_config");
            let table = RouteTable::compile(config, compiler);
            compiler.faults.leave();
            Some(RouteSource::Inline(Arc::new(table)))
        }
        Some(RouteSpecifier::Rds(rds)) => {
            let timeout = values::fetch_timeout(rds.config_source.as_ref());
            compiler.required.routes.insert(rds.route_config_name.clone(), timeout);
            let id = compiler.names.route_config(&rds.route_config_name);
            Some(RouteSource::Rds(id))
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            compiler.faults.reject("scoped_routes", "not supported");
            None
        }
        None => {
            compiler.faults.reject("route_specifier", "missing");
            None
        }
    }
}

fn remote_address(value: &pb::HttpConnectionManager, faults: &mut Faults) -> RemoteAddress {
    // Without configuration no client counts as internal, as in Envoy 1.33
    // and later.
    let ranges = value.internal_address_config.iter().flat_map(|config| &config.cidr_ranges);
    let internal = ranges.filter_map(|range| values::cidr(range, faults)).collect();
    let sockets = value.internal_address_config.as_ref().is_some_and(|config| config.unix_sockets);
    faults.ignore_if(sockets, "internal_address_config.unix_sockets");
    RemoteAddress {
        use_remote: bool_or(value.use_remote_address.as_ref(), false),
        trusted_hops: value.xff_num_trusted_hops,
        skip_append: value.skip_xff_append,
        internal,
    }
}

fn path_normalization(value: &pb::HttpConnectionManager) -> PathNormalization {
    use pb::http_connection_manager::PathWithEscapedSlashesAction as Action;
    PathNormalization {
        normalize: bool_or(value.normalize_path.as_ref(), false),
        merge_slashes: value.merge_slashes,
        escaped_slashes: match value.path_with_escaped_slashes_action() {
            Action::ImplementationSpecificDefault | Action::KeepUnchanged => EscapedSlashes::Keep,
            Action::RejectRequest => EscapedSlashes::Reject,
            Action::UnescapeAndRedirect => EscapedSlashes::Redirect,
            Action::UnescapeAndForward => EscapedSlashes::Unescape,
        },
    }
}

fn client_cert(value: &pb::HttpConnectionManager) -> ClientCert {
    use pb::http_connection_manager::ForwardClientCertDetails as Details;
    let set = value.set_current_client_cert_details.unwrap_or_default();
    ClientCert {
        forward: match value.forward_client_cert_details() {
            Details::Sanitize => ForwardClientCert::Sanitize,
            Details::ForwardOnly => ForwardClientCert::ForwardOnly,
            Details::AppendForward => ForwardClientCert::AppendForward,
            Details::SanitizeSet => ForwardClientCert::SanitizeSet,
            Details::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
        },
        cert: set.cert,
        chain: set.chain,
        subject: bool_or(set.subject.as_ref(), false),
        uri: set.uri,
        dns: set.dns,
    }
}

fn timeouts(value: &pb::HttpConnectionManager, common: &core::HttpProtocolOptions) -> Timeouts {
    Timeouts {
        idle: values::timeout(common.idle_timeout.as_ref(), Some(Duration::from_secs(3600))),
        stream_idle: values::timeout(
            value.stream_idle_timeout.as_ref(),
            Some(Duration::from_secs(300)),
        ),
        request: values::timeout(value.request_timeout.as_ref(), None),
        request_headers: values::timeout(value.request_headers_timeout.as_ref(), None),
        max_connection: values::timeout(common.max_connection_duration.as_ref(), None),
        max_connection_jitter: values::jitter(common.max_connection_duration_jitter.as_ref()),
        max_stream: values::timeout(common.max_stream_duration.as_ref(), None),
        drain: value.drain_timeout.as_ref().map_or(DRAIN, values::duration),
        drain_jitter: values::jitter(value.drain_timeout_jitter.as_ref()),
        delayed_close: values::timeout(value.delayed_close_timeout.as_ref(), Some(DELAYED_CLOSE)),
    }
}

/// The setting of HTTP/1 goes before that of all versions.
fn forgiving(value: &pb::HttpConnectionManager) -> bool {
    let http1 = value.http_protocol_options.as_ref();
    let own = http1.and_then(|it| it.override_stream_error_on_invalid_http_message.as_ref());
    bool_or(own.or(value.stream_error_on_invalid_http_message.as_ref()), false)
}

fn scheme_override(
    value: Option<&core::SchemeHeaderTransformation>,
) -> Option<amime_rules::head::Scheme> {
    use core::scheme_header_transformation::Transformation;
    let Some(Transformation::SchemeToOverwrite(scheme)) = value?.transformation.as_ref() else {
        return None;
    };
    match scheme.as_str() {
        "https" => Some(amime_rules::head::Scheme::Https),
        _ => Some(amime_rules::head::Scheme::Http),
    }
}
