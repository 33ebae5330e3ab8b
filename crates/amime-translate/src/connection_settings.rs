//! What `connectionSettings` of a proxy's configuration limits.
//!
//! Of the fields, those for clusters and for numbers of connections are read
//! by nobody, as upstream.

use amime_api::mesh::{
    ConnectionProfile, ConnectionSettings, EscapedSlashesAction as Slashes,
    UnderscoresAction as Underscores,
};
use amime_core::Duration;
use envoy_types::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use envoy_types::pb::envoy::config::core::v3::{Http2ProtocolOptions, HttpProtocolOptions};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::PathWithEscapedSlashesAction;
use envoy_types::pb::google::protobuf as wkt;

use crate::proto::{duration, u32_value};
use crate::proxy::ProxyKind;

/// Fills in what gateways have by the profile for the edge.
pub(crate) fn with_profile(
    mut settings: ConnectionSettings,
    kind: ProxyKind,
) -> ConnectionSettings {
    if settings.profile != ConnectionProfile::Edge || kind != ProxyKind::Router {
        return settings;
    }
    let own = &mut settings;
    let minutes = |count: u64| Duration::from_secs(60 * count);
    own.listener_per_connection_buffer_limit_bytes.get_or_insert(32 << 10);
    own.http_idle_timeout.get_or_insert(minutes(60));
    own.http_stream_idle_timeout.get_or_insert(minutes(5));
    own.http_request_timeout.get_or_insert(minutes(5));
    own.http_request_headers_timeout.get_or_insert(minutes(1));
    own.http_max_concurrent_streams.get_or_insert(100);
    own.http2_initial_stream_window_size.get_or_insert(64 << 10);
    own.http2_initial_connection_window_size.get_or_insert(1 << 20);
    own.http_merge_slashes.get_or_insert(true);
    if own.http_headers_with_underscores_action == Underscores::default() {
        own.http_headers_with_underscores_action = Underscores::HeadersWithUnderscoresRejectRequest;
    }
    if own.http_path_with_escaped_slashes_action == Slashes::default() {
        own.http_path_with_escaped_slashes_action = Slashes::UnescapeAndRedirect;
    }
    settings
}

/// Limits the connections of a connection manager.
pub(crate) fn apply(settings: &ConnectionSettings, manager: &mut HttpConnectionManager) {
    set_common(settings, &mut manager.common_http_protocol_options);
    let time = |value: Option<Duration>| value.map(|value| duration(value.std()));
    let set = |field: &mut Option<wkt::Duration>, value| *field = time(value).or(field.take());
    set(&mut manager.stream_idle_timeout, settings.http_stream_idle_timeout);
    set(&mut manager.request_timeout, settings.http_request_timeout);
    set(&mut manager.request_headers_timeout, settings.http_request_headers_timeout);
    set(&mut manager.drain_timeout, settings.http_drain_timeout);
    let streams = settings.http_max_concurrent_streams;
    let stream = settings.http2_initial_stream_window_size;
    let connection = settings.http2_initial_connection_window_size;
    if streams.or(stream).or(connection).is_some() {
        let options: &mut Http2ProtocolOptions =
            manager.http2_protocol_options.get_or_insert_default();
        options.max_concurrent_streams = streams.and_then(u32_value);
        options.initial_stream_window_size = stream.and_then(u32_value);
        options.initial_connection_window_size = connection.and_then(u32_value);
    }
    if let Some(merge) = settings.http_merge_slashes {
        manager.merge_slashes = merge;
    }
    use PathWithEscapedSlashesAction as Action;
    manager.path_with_escaped_slashes_action = match settings.http_path_with_escaped_slashes_action
    {
        Slashes::PathWithEscapedSlashesUnspecified => return,
        Slashes::KeepUnchanged => Action::KeepUnchanged,
        Slashes::RejectRequest => Action::RejectRequest,
        Slashes::UnescapeAndRedirect => Action::UnescapeAndRedirect,
        Slashes::UnescapeAndForward => Action::UnescapeAndForward,
    }
    .into();
}

fn set_common(settings: &ConnectionSettings, options: &mut Option<HttpProtocolOptions>) {
    use HeadersWithUnderscoresAction as Action;
    let time = |value: Option<Duration>| value.map(|value| duration(value.std()));
    let idle = time(settings.http_idle_timeout);
    let connection = time(settings.http_max_connection_duration);
    let stream = time(settings.http_max_stream_duration);
    let underscores = match settings.http_headers_with_underscores_action {
        Underscores::HeadersWithUnderscoresUnspecified => None,
        Underscores::HeadersWithUnderscoresAllow => Some(Action::Allow),
        Underscores::HeadersWithUnderscoresRejectRequest => Some(Action::RejectRequest),
        Underscores::HeadersWithUnderscoresDropHeader => Some(Action::DropHeader),
    };
    let given = idle.is_some() || connection.is_some() || stream.is_some();
    if !given && underscores.is_none() {
        return;
    }
    let options = options.get_or_insert_default();
    options.idle_timeout = idle.or(options.idle_timeout.take());
    options.max_connection_duration = connection;
    options.max_stream_duration = stream;
    options.headers_with_underscores_action = underscores.unwrap_or_default().into();
}
