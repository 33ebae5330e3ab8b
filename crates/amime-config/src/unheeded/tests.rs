//! Every field of the messages that make up a listener is acted on or reported.

use std::collections::BTreeSet;
use std::sync::Arc;

use amime_telemetry::{Telemetry, TelemetryOptions};
use amime_xds::json::{fields, from_yaml};
use envoy_types::pb::envoy::config::listener::v3::Listener;

use crate::host_cache::HostCaches;
use crate::listener::ListenerConfig;
use crate::names::Names;
use crate::secrets::{NoSecrets, SecretStore};
use crate::{Compiler, Node};

/// A field, a value for it that is not its default, and the field of the frame
/// that makes way for it, if any.
type Field = (&'static str, &'static str, Option<&'static str>);

const TYPE: &str = "type.googleapis.com/envoy.extensions";
const STDOUT: &str = r#"[{name: s, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog}}]"#;

/// What becomes of a listener: what it compiles to and the paths of its faults.
fn compiled(yaml: &str) -> (String, Vec<String>) {
    let message: Listener = from_yaml(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let telemetry = Telemetry::new(TelemetryOptions::default());
    let secrets = SecretStore::new(Arc::new(NoSecrets));
    let (node, mut names, mut caches) = (Node::default(), Names::default(), HostCaches::default());
    let mut compiler = Compiler::new(&mut names, &mut caches, &secrets, &telemetry, &node);
    let config = ListenerConfig::compile(&message, &mut compiler);
    let faults = compiler.faults.into_list().into_iter().map(|fault| fault.path);
    (without_identity(&format!("{config:?}")), faults.collect())
}

/// The identity of a chain is made of the bytes of its configuration, so it
/// says nothing of what is acted on.
fn without_identity(text: &str) -> String {
    let mut parts = text.split("identity: ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(part.trim_start_matches(|char: char| char.is_ascii_digit()));
    }
    out
}

/// Walks all fields of `message`: one of `known` has to change what the
/// listener compiles to or be reported by name, one of `exempt` is in every
/// frame or has nothing to say, and there are no others.
#[track_caller]
fn check(
    message: &str,
    frame: &[(&str, &str)],
    around: fn(&str) -> String,
    known: &[Field],
    exempt: &[&str],
) {
    let listed: BTreeSet<_> =
        known.iter().map(|(name, ..)| *name).chain(exempt.iter().copied()).collect();
    let there = fields(message).expect("a known message");
    let there: BTreeSet<_> = there.iter().map(String::as_str).collect();
    assert_eq!(listed, there, "fields of {message}");
    let text = |without: Option<&str>, more: &str| {
        let kept = frame.iter().filter(|(name, _)| Some(*name) != without);
        let kept: Vec<_> = kept.map(|(name, value)| format!("{name}: {value}")).collect();
        around(&format!("{{{}{}{more}}}", kept.join(", "), if kept.is_empty() { "" } else { ", " }))
    };
    let (plain, none) = compiled(&text(None, ""));
    assert_eq!((&plain, &none), (&compiled(&text(None, "")).0, &vec![]), "{message}");
    for (name, value, without) in known {
        let value = if *value == "LOG" { STDOUT } else { value };
        let (config, faults) = compiled(&text(*without, &format!("{name}: {value}")));
        let reported = faults.iter().any(|path| path.contains(name));
        assert!(reported || config != plain, "{message}.{name} has no effect: {faults:?}");
    }
}

fn listener(filter: &str) -> String {
    format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
         filter_chains: [{{filters: [{filter}]}}]}}"
    )
}

fn filter(name: &str, config: &str) -> String {
    let config = config.strip_prefix('{').expect("a mapping");
    format!("{{name: f, typed_config: {{\"@type\": {TYPE}.{name}, {config}}}")
}

const MANAGER: &str = "filters.network.http_connection_manager.v3.HttpConnectionManager";
const MANAGER_FRAME: [(&str, &str); 3] = [
    ("stat_prefix", "h"),
    ("route_config", "{name: r}"),
    (
        "http_filters",
        r#"[{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]"#,
    ),
];

fn manager(config: &str) -> String {
    listener(&filter(MANAGER, config))
}

fn plain_manager() -> String {
    let lines = MANAGER_FRAME.map(|(name, value)| format!("{name}: {value}"));
    filter(MANAGER, &format!("{{{}}}", lines.join(", ")))
}

#[test]
fn no_field_of_a_listener_is_passed_over() {
    let around = |fields: &str| {
        let fields = fields.strip_suffix('}').expect("a mapping").trim_end_matches(", ");
        format!("{fields}, filter_chains: [{{filters: [{}]}}]}}", plain_manager())
    };
    let frame =
        [("name", "l"), ("address", "{socket_address: {address: 127.0.0.1, port_value: 0}}")];
    check(
        "envoy.config.listener.v3.Listener",
        &frame,
        around,
        &[
            (
                "additional_addresses",
                "[{address: {socket_address: {address: 127.0.0.2, port_value: 1}}}]",
                None,
            ),
            ("stat_prefix", "x", None),
            ("stats_matcher", "{reject_all: true}", None),
            ("fcds_config", "{name: x}", None),
            ("filter_chain_matcher", "{}", None),
            ("use_original_dst", "true", None),
            ("default_filter_chain", "{name: x}", None),
            ("per_connection_buffer_limit_bytes", "5", None),
            ("per_connection_buffer_high_watermark_timeout", "5s", None),
            ("metadata", "{filter_metadata: {istio: {config: x}}}", None),
            ("deprecated_v1", "{bind_to_port: false}", None),
            ("drain_type", "MODIFY_ONLY", None),
            ("listener_filters", "[{name: envoy.filters.listener.tls_inspector}]", None),
            ("listener_filters_timeout", "5s", None),
            ("continue_on_listener_filters_timeout", "true", None),
            ("transparent", "true", None),
            ("freebind", "true", None),
            ("socket_options", "[{level: 1, name: 2, int_value: 3}]", None),
            ("tcp_fast_open_queue_length", "5", None),
            ("traffic_direction", "INBOUND", None),
            ("udp_listener_config", "{}", None),
            ("api_listener", "{}", None),
            ("connection_balance_config", "{exact_balance: {}}", None),
            ("enable_reuse_port", "false", None),
            ("access_log", "LOG", None),
            ("tcp_backlog_size", "5", None),
            ("max_connections_to_accept_per_socket_event", "5", None),
            ("bind_to_port", "false", None),
            ("internal_listener", "{}", None),
            ("enable_mptcp", "true", None),
            ("tcp_keepalive", "{keepalive_time: 5}", None),
        ],
        &[
            "name",
            "address",
            "filter_chains",
            // All it can say is the default.
            "reuse_port",
            // There is no limit of all listeners, and no overload manager.
            "ignore_global_conn_limit",
            "bypass_overload_manager",
        ],
    );
}

#[test]
fn no_field_of_a_filter_chain_is_passed_over() {
    let around = |fields: &str| {
        let fields = fields.strip_prefix('{').expect("a mapping");
        format!(
            "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
             filter_chains: [{{filters: [{}], {fields}]}}",
            plain_manager()
        )
    };
    check(
        "envoy.config.listener.v3.FilterChain",
        &[],
        around,
        &[
            ("filter_chain_match", "{destination_port: 5}", None),
            ("use_proxy_proto", "true", None),
            ("metadata", "{filter_metadata: {istio: {config: x}}}", None),
            ("transport_socket", "{name: other}", None),
            ("transport_socket_connect_timeout", "5s", None),
            ("name", "x", None),
        ],
        &["filters"],
    );
    let around = |fields: &str| {
        format!(
            "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
             filter_chains: [{{filters: [{}], filter_chain_match: {fields}}}]}}",
            plain_manager()
        )
    };
    let range = "[{address_prefix: 10.0.0.0, prefix_len: 8}]";
    check(
        "envoy.config.listener.v3.FilterChainMatch",
        &[],
        around,
        &[
            ("destination_port", "5", None),
            ("prefix_ranges", range, None),
            ("address_suffix", "x", None),
            ("direct_source_prefix_ranges", range, None),
            ("source_type", "EXTERNAL", None),
            ("source_prefix_ranges", range, None),
            ("source_ports", "[5]", None),
            ("server_names", "[a.test]", None),
            ("transport_protocol", "tls", None),
            ("application_protocols", "[h2]", None),
        ],
        // It says nothing without a suffix, which is refused.
        &["suffix_len"],
    );
}

#[test]
fn no_field_of_a_connection_manager_is_passed_over() {
    check(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &MANAGER_FRAME,
        manager,
        &[
            ("codec_type", "HTTP2", None),
            ("rds", "{route_config_name: r, config_source: {ads: {}}}", Some("route_config")),
            ("scoped_routes", "{name: r}", Some("route_config")),
            ("add_user_agent", "true", None),
            ("tracing", "{}", None),
            ("common_http_protocol_options", "{idle_timeout: 5s}", None),
            ("http1_safe_max_connection_duration", "true", None),
            ("http_protocol_options", "{accept_http_10: true}", None),
            ("http2_protocol_options", "{max_concurrent_streams: 5}", None),
            ("http3_protocol_options", "{allow_extended_connect: true}", None),
            ("server_name", "x", None),
            ("server_header_transformation", "PASS_THROUGH", None),
            ("scheme_header_transformation", "{scheme_to_overwrite: https}", None),
            ("max_request_headers_kb", "5", None),
            ("stream_idle_timeout", "5s", None),
            ("stream_flush_timeout", "5s", None),
            ("request_timeout", "5s", None),
            ("request_headers_timeout", "5s", None),
            ("drain_timeout", "6s", None),
            ("drain_timeout_jitter", "{value: 5}", None),
            ("delayed_close_timeout", "5s", None),
            ("access_log", "LOG", None),
            ("access_log_flush_interval", "5s", None),
            ("flush_access_log_on_new_request", "true", None),
            ("access_log_options", "{}", None),
            ("use_remote_address", "true", None),
            ("xff_num_trusted_hops", "5", None),
            ("original_ip_detection_extensions", "[{name: x}]", None),
            ("early_header_mutation_extensions", "[{name: x}]", None),
            (
                "internal_address_config",
                "{cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}",
                None,
            ),
            ("skip_xff_append", "true", None),
            ("via", "x", None),
            ("generate_request_id", "false", None),
            ("preserve_external_request_id", "true", None),
            ("always_set_request_id_in_response", "true", None),
            ("forward_client_cert_details", "APPEND_FORWARD", None),
            ("set_current_client_cert_details", "{cert: true}", None),
            ("forward_client_cert_matcher", "{}", None),
            ("proxy_100_continue", "true", None),
            ("represent_ipv4_remote_address_as_ipv4_mapped_ipv6", "true", None),
            ("upgrade_configs", "[{upgrade_type: websocket}]", None),
            ("normalize_path", "true", None),
            ("merge_slashes", "true", None),
            ("path_with_escaped_slashes_action", "REJECT_REQUEST", None),
            (
                "request_id_extension",
                r#"{typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"#,
                None,
            ),
            ("local_reply_config", "{body_format: {text_format: x}}", None),
            ("strip_matching_host_port", "true", None),
            ("strip_any_host_port", "true", None),
            ("stream_error_on_invalid_http_message", "true", None),
            ("path_normalization_options", "{}", None),
            ("strip_trailing_host_dot", "true", None),
            ("proxy_status_config", "{}", None),
            ("typed_header_validation_config", "{name: x}", None),
            ("append_x_forwarded_port", "true", None),
            ("append_local_overload", "true", None),
            ("add_proxy_protocol_connection_state", "true", None),
            ("forward_proto_config", "{}", None),
        ],
        &["stat_prefix", "route_config", "http_filters"],
    );
}

#[test]
fn no_field_of_the_common_http_options_is_passed_over() {
    let around = |fields: &str| {
        let mut lines = MANAGER_FRAME.map(|(name, value)| format!("{name}: {value}")).to_vec();
        lines.push(format!("common_http_protocol_options: {fields}"));
        manager(&format!("{{{}}}", lines.join(", ")))
    };
    check(
        "envoy.config.core.v3.HttpProtocolOptions",
        &[],
        around,
        &[
            ("idle_timeout", "5s", None),
            ("max_connection_duration", "5s", None),
            ("max_connection_duration_jitter", "{value: 5}", None),
            ("max_headers_count", "5", None),
            ("max_response_headers_kb", "5", None),
            ("max_stream_duration", "5s", None),
            ("headers_with_underscores_action", "REJECT_REQUEST", None),
            ("max_requests_per_connection", "5", None),
        ],
        &[],
    );
}

#[test]
fn no_field_of_the_http2_options_is_passed_over() {
    let around = |fields: &str| {
        let mut lines = MANAGER_FRAME.map(|(name, value)| format!("{name}: {value}")).to_vec();
        lines.push(format!("http2_protocol_options: {fields}"));
        manager(&format!("{{{}}}", lines.join(", ")))
    };
    check(
        "envoy.config.core.v3.Http2ProtocolOptions",
        &[],
        around,
        &[
            ("hpack_table_size", "5", None),
            ("max_concurrent_streams", "5", None),
            ("initial_stream_window_size", "70000", None),
            ("initial_connection_window_size", "70000", None),
            ("allow_connect", "true", None),
            ("allow_metadata", "true", None),
            ("max_outbound_frames", "5", None),
            ("max_outbound_control_frames", "5", None),
            ("max_consecutive_inbound_frames_with_empty_payload", "5", None),
            ("max_inbound_priority_frames_per_stream", "5", None),
            ("max_inbound_window_update_frames_per_data_frame_sent", "5", None),
            ("custom_settings_parameters", "[{identifier: 20, value: 1}]", None),
            ("connection_keepalive", "{interval: 5s}", None),
            ("use_oghttp2_codec", "true", None),
            ("max_metadata_size", "5", None),
            ("enable_huffman_encoding", "false", None),
            ("max_header_field_size_kb", "64", None),
            ("disallow_obs_text", "true", None),
            ("stream_reset_burst", "5", None),
            ("stream_reset_rate", "5", None),
        ],
        // Malformed messages cost their stream only, whatever is set.
        &[
            "stream_error_on_invalid_http_messaging",
            "override_stream_error_on_invalid_http_message",
        ],
    );
}

const PROXY: &str = "filters.network.tcp_proxy.v3.TcpProxy";

#[test]
fn no_field_of_a_tcp_proxy_is_passed_over() {
    check(
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        &[("stat_prefix", "t"), ("cluster", "c")],
        |fields| listener(&filter(PROXY, fields)),
        &[
            (
                "weighted_clusters",
                "{clusters: [{name: a, weight: 1}, {name: b, weight: 2}]}",
                Some("cluster"),
            ),
            ("on_demand", "{}", None),
            ("metadata_match", "{filter_metadata: {envoy.lb: {a: b}}}", None),
            ("idle_timeout", "5s", None),
            ("downstream_idle_timeout", "5s", None),
            ("upstream_idle_timeout", "5s", None),
            ("access_log", "LOG", None),
            ("max_connect_attempts", "5", None),
            ("backoff_options", "{base_interval: 5s}", None),
            ("hash_policy", "[{source_ip: {}}]", None),
            ("tunneling_config", "{hostname: x}", None),
            ("max_downstream_connection_duration", "5s", None),
            ("max_downstream_connection_duration_jitter_percentage", "{value: 5}", None),
            ("access_log_flush_interval", "5s", None),
            ("flush_access_log_on_connected", "true", None),
            ("access_log_options", "{flush_access_log_on_start: true}", None),
            ("proxy_protocol_tlvs", "[{type: 1}]", None),
            ("proxy_protocol_tlv_merge_policy", "APPEND_IF_EXISTS_OR_ADD", None),
            ("upstream_connect_mode", "ON_DOWNSTREAM_DATA", None),
            ("max_early_data_bytes", "5", None),
            ("check_drain_close", "true", None),
        ],
        &["stat_prefix", "cluster"],
    );
    check(
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TcpAccessLogOptions",
        &[],
        |fields| {
            let proxy = format!("{{stat_prefix: t, cluster: c, access_log_options: {fields}}}");
            listener(&filter(PROXY, &proxy))
        },
        &[
            ("access_log_flush_interval", "5s", None),
            ("flush_access_log_on_connected", "true", None),
            ("flush_access_log_on_start", "true", None),
        ],
        &[],
    );
    check(
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TunnelingConfig",
        &[("hostname", "x"), ("use_post", "true")],
        |fields| {
            let proxy = format!("{{stat_prefix: t, cluster: c, tunneling_config: {fields}}}");
            listener(&filter(PROXY, &proxy))
        },
        &[
            ("headers_to_add", "[{header: {key: a, value: b}}]", None),
            ("propagate_response_headers", "true", None),
            ("post_path", "/x", None),
            ("propagate_response_trailers", "true", None),
            ("request_id_extension", "{}", None),
            ("request_id_header", "x", None),
            ("request_id_metadata_key", "x", None),
            ("formatters", "[{name: x}]", None),
        ],
        &["hostname", "use_post"],
    );
}

#[test]
fn no_field_of_authorization_is_passed_over() {
    let around = |fields: &str| {
        let authorization = filter("filters.network.rbac.v3.RBAC", fields);
        listener(&format!("{authorization}, {}", plain_manager()))
    };
    check(
        "envoy.extensions.filters.network.rbac.v3.RBAC",
        &[("stat_prefix", "r"), ("shadow_rules", "{}")],
        around,
        &[
            ("rules", "{}", None),
            ("matcher", "{}", None),
            ("shadow_matcher", "{}", None),
            ("shadow_rules_stat_prefix", "x", None),
            ("enforcement_type", "CONTINUOUS", None),
            ("delay_deny", "5s", None),
        ],
        &["stat_prefix", "shadow_rules"],
    );
}

#[test]
fn no_field_of_the_proxy_protocol_is_passed_over() {
    let around = |fields: &str| {
        let proxy_protocol = filter("filters.listener.proxy_protocol.v3.ProxyProtocol", fields);
        format!(
            "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
             listener_filters: [{proxy_protocol}], filter_chains: [{{filters: [{}]}}]}}",
            plain_manager()
        )
    };
    check(
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
        &[],
        around,
        &[
            ("rules", "[{tlv_type: 1}]", None),
            ("allow_requests_without_proxy_protocol", "true", None),
            ("pass_through_tlvs", "{}", None),
            ("disallowed_versions", "[V1]", None),
            ("stat_prefix", "x", None),
            ("tlv_location", "FILTER_STATE", None),
        ],
        &[],
    );
}

const SECRETS: &str = "[{name: default, sds_config: {ads: {}}}]";

fn secured(context: &str) -> String {
    let context = context.strip_prefix('{').expect("a mapping");
    format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
         filter_chains: [{{filters: [{}], transport_socket: {{name: t, typed_config: \
         {{\"@type\": {TYPE}.transport_sockets.tls.v3.DownstreamTlsContext, {context}}}}}]}}",
        plain_manager()
    )
}

#[test]
fn no_field_of_downstream_tls_is_passed_over() {
    let common = "{tls_certificate_sds_secret_configs: [{name: default, sds_config: {ads: {}}}]}";
    check(
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        &[("common_tls_context", common)],
        secured,
        &[
            ("require_client_certificate", "true", None),
            ("require_sni", "true", None),
            ("session_ticket_keys", "{}", None),
            ("session_ticket_keys_sds_secret_config", "{name: x}", None),
            ("disable_stateless_session_resumption", "true", None),
            ("disable_stateful_session_resumption", "true", None),
            ("session_timeout", "5s", None),
            ("ocsp_staple_policy", "MUST_STAPLE", None),
            ("full_scan_certs_on_sni_mismatch", "true", None),
            ("prefer_client_ciphers", "true", None),
        ],
        &["common_tls_context"],
    );
    check(
        "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext",
        &[("tls_certificate_sds_secret_configs", SECRETS)],
        |fields| secured(&format!("{{common_tls_context: {fields}}}")),
        &[
            ("tls_params", "{tls_minimum_protocol_version: TLSv1_3}", None),
            ("tls_certificates", "[{}]", None),
            ("tls_certificate_provider_instance", "{}", None),
            ("custom_tls_certificate_selector", "{name: x}", None),
            ("tls_certificate_certificate_provider", "{}", None),
            ("tls_certificate_certificate_provider_instance", "{}", None),
            ("validation_context", "{trust_chain_verification: ACCEPT_UNTRUSTED}", None),
            ("validation_context_sds_secret_config", "{name: x, sds_config: {ads: {}}}", None),
            ("combined_validation_context", "{default_validation_context: {}}", None),
            ("validation_context_certificate_provider", "{}", None),
            ("validation_context_certificate_provider_instance", "{}", None),
            ("alpn_protocols", "[h2]", None),
            ("custom_handshaker", "{name: x}", None),
            ("key_log", "{path: /x}", None),
        ],
        &["tls_certificate_sds_secret_configs"],
    );
}
