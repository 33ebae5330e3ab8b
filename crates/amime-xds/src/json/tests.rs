//! Round trips, positions of faults, and messages that nobody knows.

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::google::protobuf::{Any, Duration};
use expect_test::{Expect, expect};
use serde_json::json;

use super::{any_to_json, from_json, from_yaml, to_json};
use crate::istio::{alpn, ca, metadata_exchange, nds, peer_metadata, stats};

const LISTENER: &str = "
name: virtualInbound
address: {socket_address: {address: 0.0.0.0, portValue: 15006}}
filter_chains:
- filters:
  - name: http
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: inbound
      stream_idle_timeout: 1.5s
      http_filters:
      - name: istio.stats
        typed_config:
          '@type': type.googleapis.com/stats.PluginConfig
          tcp_reporting_duration: 15s
          metrics: [{name: requests_total, dimensions: {a: b}, drop: true}]
      - name: odd
        typed_config:
          '@type': type.googleapis.com/udpa.type.v1.TypedStruct
          type_url: type.googleapis.com/foreign.Thing
          value: {depth: {of: [1, two, null]}}
";

#[track_caller]
fn check_error(yaml: &str, want: Expect) {
    let error = from_yaml::<Listener>(yaml).expect_err("must be refused");
    want.assert_eq(&error.to_string());
}

#[test]
fn a_listener_survives_the_round_trip() {
    let listener: Listener = from_yaml(LISTENER).expect("valid");
    let json = to_json(&listener).expect("printable");
    assert_eq!(from_json::<Listener>(&json.to_string()).expect("valid"), listener);
    let hcm = &json["filter_chains"][0]["filters"][0]["typed_config"];
    assert_eq!(hcm["stream_idle_timeout"], "1.500s");
    assert_eq!(hcm["http_filters"][0]["typed_config"]["metrics"][0]["dimensions"]["a"], "b");
    assert_eq!(hcm["http_filters"][1]["typed_config"]["value"]["depth"]["of"][1], "two");
}

#[test]
fn errors_have_a_position_and_name_the_field() {
    check_error("name: a\nadress: {}\n", expect!["1:1: unrecognized field name 'adress'"]);
    check_error(
        &LISTENER.replace("stat_prefix", "stat_prefiks"),
        expect!["8:7: unrecognized field name 'stat_prefiks'"],
    );
    check_error(&LISTENER.replace("1.5s", "soon"), expect!["10:28: failed to parse duration"]);
    check_error(
        &LISTENER.replace("v3.HttpConnectionManager", "v3.Nothing"),
        expect![
            "8:7: message 'envoy.extensions.filters.network.http_connection_manager.v3.Nothing' not found"
        ],
    );
    check_error("name: [", expect!["1:7: expected string scalar"]);
    let error = from_json::<Listener>("{\n  \"nam\": \"x\"\n}").expect_err("must be refused");
    expect!["2:7: unrecognized field name 'nam'"].assert_eq(&error.to_string());
}

#[test]
fn an_unknown_packed_message_is_shown_and_does_not_hide_the_rest() {
    let mut listener: Listener = from_yaml(LISTENER).expect("valid");
    let filter = &mut listener.filter_chains[0].filters[0];
    let any = Any { type_url: "type.googleapis.com/foreign.Filter".into(), value: vec![1, 255] };
    filter.config_type = Some(ConfigType::TypedConfig(any));
    let json = to_json(&listener).expect("printable");
    assert_eq!(json["name"], "virtualInbound");
    assert_eq!(
        json["filter_chains"][0]["filters"][0]["typed_config"],
        json!({
            "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
            "type_url": "type.googleapis.com/foreign.Filter",
            "value": {"hex": "01ff"},
        })
    );
}

#[test]
fn a_resource_prints_with_its_type() {
    let table = nds::NameTable { table: [("a.b".into(), nds::NameInfo::default())].into() };
    let url = <nds::NameTable as prost::Name>::type_url();
    let body = prost::Message::encode_to_vec(&table);
    assert_eq!(any_to_json(&url, &body), Ok(json!({"@type": url, "table": {"a.b": {}}})));
    assert!(any_to_json("x/not.Known", &[]).is_err());
    assert!(any_to_json(&url, &[0xff]).is_err());
}

/// Every field of our own messages, so that structs and descriptors agree.
#[test]
fn own_messages_agree_with_their_descriptors() {
    fn check<M: prost::Message + prost::Name + Default + PartialEq + std::fmt::Debug>(
        message: M,
        keys: &[&str],
    ) {
        let json = to_json(&message).expect("printable");
        let found: Vec<_> =
            json.as_object().expect("an object").keys().map(String::as_str).collect();
        let mut keys = keys.to_vec();
        let mut sorted = found.clone();
        keys.sort_unstable();
        sorted.sort_unstable();
        assert_eq!(sorted, keys, "{}", M::full_name());
        assert_eq!(from_json::<M>(&json.to_string()).expect("valid"), message);
    }
    let second = Some(Duration { seconds: 1, nanos: 0 });
    check(
        stats::PluginConfig {
            disable_host_header_fallback: true,
            tcp_reporting_duration: second,
            metrics: vec![stats::MetricConfig {
                dimensions: [("a".into(), "b".into())].into(),
                name: "n".into(),
                tags_to_remove: vec!["t".into()],
                r#match: "m".into(),
                drop: true,
            }],
            definitions: vec![stats::MetricDefinition {
                name: "n".into(),
                value: "v".into(),
                r#type: stats::MetricType::Histogram.into(),
            }],
            reporter: stats::Reporter::ServerGateway.into(),
            rotation_interval: second,
            graceful_deletion_interval: second,
        },
        &[
            "disable_host_header_fallback",
            "tcp_reporting_duration",
            "metrics",
            "definitions",
            "reporter",
            "rotation_interval",
            "graceful_deletion_interval",
        ],
    );
    let headers = peer_metadata::IstioHeaders { skip_external_clusters: true };
    let discovery = peer_metadata::Discovery::IstioHeaders(headers);
    let propagation = peer_metadata::Propagation::IstioHeaders(headers);
    let discovery = peer_metadata::DiscoveryMethod { method_specifier: Some(discovery) };
    let propagation = peer_metadata::PropagationMethod { method_specifier: Some(propagation) };
    check(
        peer_metadata::Config {
            downstream_discovery: vec![discovery],
            upstream_discovery: vec![discovery],
            downstream_propagation: vec![propagation],
            upstream_propagation: vec![propagation],
            shared_with_upstream: true,
            additional_labels: vec!["l".into()],
        },
        &[
            "downstream_discovery",
            "upstream_discovery",
            "downstream_propagation",
            "upstream_propagation",
            "shared_with_upstream",
            "additional_labels",
        ],
    );
    let over = alpn::AlpnOverride {
        upstream_protocol: alpn::Protocol::Http2.into(),
        alpn_override: vec!["h2".into()],
    };
    check(alpn::FilterConfig { alpn_override: vec![over] }, &["alpn_override"]);
    check(
        metadata_exchange::MetadataExchange {
            protocol: "istio-peer-exchange".into(),
            enable_discovery: true,
            additional_labels: vec!["l".into()],
        },
        &["protocol", "enable_discovery", "additional_labels"],
    );
    check(
        ca::IstioCertificateRequest {
            csr: "c".into(),
            validity_duration: 5,
            metadata: Some(Default::default()),
        },
        &["csr", "validity_duration", "metadata"],
    );
    check(ca::IstioCertificateResponse { cert_chain: vec!["c".into()] }, &["cert_chain"]);
    let info = nds::NameInfo {
        ips: vec!["10.0.0.1".into()],
        registry: "Kubernetes".into(),
        shortname: "s".into(),
        namespace: "n".into(),
    };
    check(info, &["ips", "registry", "shortname", "namespace"]);
}

#[test]
fn a_bootstrap_reads_from_json() {
    let bootstrap: Bootstrap = from_json(
        r#"{"node": {"id": "sidecar~1.1.1.1~a.b~b.svc.cluster.local", "metadata": {"A": {"b": 1}}},
            "admin": {"address": {"socketAddress": {"address": "127.0.0.1", "port_value": 15000}}}}"#,
    )
    .expect("valid");
    assert_eq!(bootstrap.node.expect("given").id, "sidecar~1.1.1.1~a.b~b.svc.cluster.local");
}
