//! Fields of listeners that are accepted and have no effect.
//!
//! Owns reporting them, so that none is passed over in silence; what is acted
//! on, and what would change where traffic goes and so refuses the resource,
//! is with the messages themselves. A test walks all fields and fails for one
//! that is neither acted on nor reported.

#[cfg(test)]
mod tests;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;

use amime_rules::Faults;
use amime_rules::values::{bool_or, is};

pub(crate) fn of_listener(value: &Listener, faults: &mut Faults) {
    let wait = value.per_connection_buffer_high_watermark_timeout.is_some();
    for (set, field) in [
        (!value.stat_prefix.is_empty(), "stat_prefix"),
        (value.stats_matcher.is_some(), "stats_matcher"),
        (wait, "per_connection_buffer_high_watermark_timeout"),
        (value.connection_balance_config.is_some(), "connection_balance_config"),
        (value.tcp_fast_open_queue_length.is_some(), "tcp_fast_open_queue_length"),
        (value.enable_mptcp, "enable_mptcp"),
        (
            value.max_connections_to_accept_per_socket_event.is_some(),
            "max_connections_to_accept_per_socket_event",
        ),
    ] {
        faults.ignore_if(set, field);
    }
}

pub(crate) fn of_proxy_protocol(value: &ProxyProtocol, faults: &mut Faults) {
    for (set, field) in [
        (!value.rules.is_empty(), "rules"),
        (value.pass_through_tlvs.is_some(), "pass_through_tlvs"),
        (!value.stat_prefix.is_empty(), "stat_prefix"),
        (value.tlv_location != 0, "tlv_location"),
    ] {
        faults.ignore_if(set, field);
    }
}

pub(crate) fn of_http_manager(value: &HttpConnectionManager, faults: &mut Faults) {
    let own_ids = value.request_id_extension.as_ref().is_some_and(|extension| {
        extension.typed_config.as_ref().is_some_and(|any| !is::<UuidRequestIdConfig>(any))
    });
    let mapped = value.represent_ipv4_remote_address_as_ipv4_mapped_ipv6;
    let http3 = value.http3_protocol_options.as_ref();
    let http3 = http3.is_some_and(|it| *it != core::Http3ProtocolOptions::default());
    let logs = value.access_log_flush_interval.is_some();
    for (set, field) in [
        (value.tracing.is_some(), "tracing"),
        (value.http1_safe_max_connection_duration, "http1_safe_max_connection_duration"),
        (http3, "http3_protocol_options"),
        (value.stream_flush_timeout.is_some(), "stream_flush_timeout"),
        (logs, "access_log_flush_interval"),
        (value.flush_access_log_on_new_request, "flush_access_log_on_new_request"),
        (value.access_log_options.is_some(), "access_log_options"),
        (mapped, "represent_ipv4_remote_address_as_ipv4_mapped_ipv6"),
        (own_ids, "request_id_extension"),
        (value.path_normalization_options.is_some(), "path_normalization_options"),
        (value.proxy_status_config.is_some(), "proxy_status_config"),
        (value.typed_header_validation_config.is_some(), "typed_header_validation_config"),
        (value.append_local_overload, "append_local_overload"),
        (
            bool_or(value.add_proxy_protocol_connection_state.as_ref(), false),
            "add_proxy_protocol_connection_state",
        ),
        (value.forward_proto_config.is_some(), "forward_proto_config"),
    ] {
        faults.ignore_if(set, field);
    }
    if let Some(http2) = &value.http2_protocol_options {
        faults.within("http2_protocol_options", |faults| of_http2(http2, faults));
    }
    if let Some(common) = &value.common_http_protocol_options {
        faults.within("common_http_protocol_options", |faults| of_http_options(common, faults));
    }
}

fn of_http2(value: &core::Http2ProtocolOptions, faults: &mut Faults) {
    let keepalive = value.connection_keepalive.as_ref();
    for (set, field) in [
        (value.allow_metadata, "allow_metadata"),
        // Frames wait with their streams, whose bytes are limited.
        (value.max_outbound_frames.is_some(), "max_outbound_frames"),
        (!value.custom_settings_parameters.is_empty(), "custom_settings_parameters"),
        (value.max_metadata_size.is_some(), "max_metadata_size"),
        (value.use_oghttp2_codec.is_some(), "use_oghttp2_codec"),
        (value.enable_huffman_encoding.is_some(), "enable_huffman_encoding"),
        (value.max_header_field_size_kb.is_some(), "max_header_field_size_kb"),
        (value.disallow_obs_text.is_some(), "disallow_obs_text"),
        (value.stream_reset_burst.is_some(), "stream_reset_burst"),
        (value.stream_reset_rate.is_some(), "stream_reset_rate"),
        (keepalive.is_some_and(|it| it.interval_jitter.is_some()), "interval_jitter"),
        (
            keepalive.is_some_and(|it| it.connection_idle_interval.is_some()),
            "connection_idle_interval",
        ),
    ] {
        faults.ignore_if(set, field);
    }
}

fn of_http_options(value: &core::HttpProtocolOptions, faults: &mut Faults) {
    // A limit of responses; those of clients are requests.
    faults.ignore_if(value.max_response_headers_kb.is_some(), "max_response_headers_kb");
}

pub(crate) fn of_tcp_proxy(value: &TcpProxy, faults: &mut Faults) {
    for (set, field) in [
        (value.upstream_idle_timeout.is_some(), "upstream_idle_timeout"),
        (!value.proxy_protocol_tlvs.is_empty(), "proxy_protocol_tlvs"),
        (value.proxy_protocol_tlv_merge_policy != 0, "proxy_protocol_tlv_merge_policy"),
        (value.upstream_connect_mode != 0, "upstream_connect_mode"),
        (value.max_early_data_bytes.is_some(), "max_early_data_bytes"),
        (value.check_drain_close.is_some(), "check_drain_close"),
    ] {
        faults.ignore_if(set, field);
    }
    let Some(tunneling) = &value.tunneling_config else { return };
    faults.within("tunneling_config", |faults| {
        for (set, field) in [
            (tunneling.propagate_response_headers, "propagate_response_headers"),
            (tunneling.propagate_response_trailers, "propagate_response_trailers"),
            (tunneling.request_id_extension.is_some(), "request_id_extension"),
            (!tunneling.request_id_header.is_empty(), "request_id_header"),
            (!tunneling.request_id_metadata_key.is_empty(), "request_id_metadata_key"),
            (!tunneling.formatters.is_empty(), "formatters"),
        ] {
            faults.ignore_if(set, field);
        }
    });
}
