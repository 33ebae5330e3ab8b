//! HTTP connection managers.

use amime_api::mesh::{PathNormalizationMode, SetCurrentClientCertDetails as Parts};
use amime_core::Protocol;
use envoy_types::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, Http3ProtocolOptions, HttpProtocolOptions,
};
use envoy_types::pb::envoy::config::listener::v3::Filter;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
    ServerHeaderTransformation, SetCurrentClientCertDetails, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, RequestIdExtension,
};
use envoy_types::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;

use super::access_log;
use super::tcp::idle_timeout;
use crate::connection_settings;
use crate::context::Context;
use crate::dynamic_dns;
use crate::filters::{HTTP_CONNECTION_MANAGER, ListenerClass, http_filters, network};
use crate::names::stat_prefix;
use crate::proto::{ads, any, bool_value, zero_duration};
use crate::proxy_settings::ServerHeader;

/// Where a connection manager finds its routes.
pub(crate) enum Routes {
    /// In the route configuration of this name.
    Named(String),
    /// Here.
    Inline(Box<RouteConfiguration>),
}

/// What a connection manager is made from.
pub(crate) struct HttpOptions {
    pub(crate) class: ListenerClass,
    pub(crate) protocol: Protocol,
    pub(crate) routes: Routes,
    /// Prefix of statistics; taken from the listener if empty.
    pub(crate) stat_prefix: String,
    /// Requests come in absolute form, as to a proxy.
    pub(crate) explicit_proxy: bool,
    /// Filters that resolve hosts of requests.
    pub(crate) resolvers: Vec<HttpFilter>,
    /// Over QUIC.
    pub(crate) http3: bool,
}

impl HttpOptions {
    pub(crate) fn new(class: ListenerClass, protocol: Protocol, routes: Routes) -> Self {
        let (stat_prefix, explicit_proxy, resolvers) = (String::new(), false, Vec::new());
        Self { class, protocol, routes, stat_prefix, explicit_proxy, resolvers, http3: false }
    }
}

/// The connection manager as a network filter of listener `name`.
pub(crate) fn filter(context: &Context<'_>, options: HttpOptions, name: &str) -> Filter {
    network(HTTP_CONNECTION_MANAGER, &manager(context, options, name))
}

fn manager(context: &Context<'_>, mut options: HttpOptions, name: &str) -> HttpConnectionManager {
    let prefix = match options.stat_prefix.as_str() {
        "" => format!("outbound_{name}"),
        own => own.to_owned(),
    };
    let outbound = options.class == ListenerClass::Outbound;
    let mut manager = HttpConnectionManager {
        codec_type: CodecType::Auto.into(),
        stat_prefix: stat_prefix(&prefix),
        generate_request_id: bool_value(false).filter(|_| !context.settings.request_id()),
        append_x_forwarded_port: context.settings.forwarded_port(),
        access_log: access_log::of_traffic(context.mesh),
        stream_idle_timeout: zero_duration(),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..Default::default()
        }],
        http_filters: http_filters(context, options.class, options.protocol == Protocol::GrpcWeb),
        request_id_extension: Some(request_id()),
        proxy_100_continue: true,
        use_remote_address: bool_value(uses_remote_address(&options)),
        common_http_protocol_options: idle_timeout(context)
            .map(|idle| HttpProtocolOptions { idle_timeout: Some(idle), ..Default::default() }),
        ..Default::default()
    };
    // The router, which is last, needs the host resolved.
    let router = manager.http_filters.pop();
    manager.http_filters.append(&mut options.resolvers);
    if outbound && dynamic_dns::is_on(context) {
        manager.http_filters.push(dynamic_dns::filter(context));
    }
    manager.http_filters.extend(router);
    if options.http3 {
        manager.codec_type = CodecType::Http3.into();
        manager.http3_protocol_options = Some(Http3ProtocolOptions::default());
    }
    set_server_header(context, options.class, &mut manager);
    set_codec_options(context, &options, &mut manager);
    set_client_certificate(context, options.class, &mut manager);
    normalise_paths(context, &mut manager);
    if let Some(limits) = &context.settings.connections {
        connection_settings::apply(limits, &mut manager);
    }
    manager.route_specifier = Some(match options.routes {
        Routes::Named(route_config_name) => {
            RouteSpecifier::Rds(Rds { config_source: Some(ads()), route_config_name })
        }
        Routes::Inline(routes) => RouteSpecifier::RouteConfig(*routes),
    });
    manager
}

/// At the edge the sender is whoever connects; in the mesh, `X-Forwarded-For`
/// says who it was, and headers for the proxy come from workloads.
fn uses_remote_address(options: &HttpOptions) -> bool {
    options.class == ListenerClass::Gateway
}

fn set_server_header(
    context: &Context<'_>,
    class: ListenerClass,
    manager: &mut HttpConnectionManager,
) {
    manager.server_name = match context.settings.server() {
        ServerHeader::Named(name) => name,
        // Envoy calls itself `envoy` where nobody set another name.
        ServerHeader::Usual if class == ListenerClass::Outbound => String::new(),
        ServerHeader::Usual => "istio-envoy".to_owned(),
        ServerHeader::Untouched => {
            let transformation = ServerHeaderTransformation::PassThrough;
            manager.server_header_transformation = transformation.into();
            String::new()
        }
    };
}

fn set_codec_options(
    context: &Context<'_>,
    options: &HttpOptions,
    manager: &mut HttpConnectionManager,
) {
    let accepts_http10 = context.proxy.flag("HTTP10");
    let header_key_format = context.settings.header_case();
    if accepts_http10
        || options.explicit_proxy
        || options.class == ListenerClass::Gateway
        || header_key_format.is_some()
    {
        manager.http_protocol_options = Some(Http1ProtocolOptions {
            header_key_format,
            accept_http_10: accepts_http10,
            allow_absolute_url: if options.explicit_proxy { bool_value(true) } else { None },
            ..Default::default()
        });
    }
    if options.class == ListenerClass::Inbound && options.protocol.is_http2() {
        manager.http2_protocol_options = Some(Http2ProtocolOptions::default());
    }
}

fn set_client_certificate(
    context: &Context<'_>,
    class: ListenerClass,
    manager: &mut HttpConnectionManager,
) {
    let settings = &context.settings;
    let (forwarding, parts) = match class {
        ListenerClass::Outbound => return,
        ListenerClass::Inbound => (settings.client_certificate(), settings.certificate_parts()),
        ListenerClass::Gateway => {
            manager.xff_num_trusted_hops = settings.trusted_proxies();
            let yes = Some(true);
            let parts = Parts { subject: yes, cert: yes, dns: yes, uri: yes, chain: None };
            (settings.gateway_client_certificate(), parts)
        }
    };
    manager.forward_client_cert_details = forwarding.into();
    // Elsewhere nothing is added to the header.
    let adds = [ForwardClientCertDetails::AppendForward, ForwardClientCertDetails::SanitizeSet];
    if class == ListenerClass::Inbound || adds.contains(&forwarding) {
        let is = |part: Option<bool>| part == Some(true);
        manager.set_current_client_cert_details = Some(SetCurrentClientCertDetails {
            subject: parts.subject.and_then(bool_value),
            cert: is(parts.cert),
            chain: is(parts.chain),
            dns: is(parts.dns),
            uri: is(parts.uri),
            ..Default::default()
        });
    }
}

fn normalise_paths(context: &Context<'_>, manager: &mut HttpConnectionManager) {
    use PathNormalizationMode as Mode;
    let mode = context.mesh.path_normalization.normalization;
    manager.normalize_path = bool_value(mode != Mode::None);
    manager.merge_slashes = matches!(mode, Mode::MergeSlashes | Mode::DecodeAndMergeSlashes);
    manager.path_with_escaped_slashes_action = match mode {
        Mode::DecodeAndMergeSlashes => PathWithEscapedSlashesAction::UnescapeAndForward,
        _ => PathWithEscapedSlashesAction::KeepUnchanged,
    }
    .into();
}

fn request_id() -> RequestIdExtension {
    let config = UuidRequestIdConfig {
        use_request_id_for_trace_sampling: bool_value(true),
        ..Default::default()
    };
    RequestIdExtension { typed_config: Some(any(&config)) }
}
