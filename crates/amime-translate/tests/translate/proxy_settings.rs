//! What mesh-wide and proxy-own settings change in headers, addresses and names.

use amime_translate::Dump;
use serde_json::{Value, json};

use crate::support::{cluster, dump_in_mesh, gateway, json_of, list, sidecar, text};

const WEB: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default, labels: {app: web}}
spec: {containers: []}
status: {podIP: 10.0.0.2}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: default}
spec: {hosts: [web], http: [{rewrite: {uri: /new}, route: [{destination: {host: web}}]}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers: [{hosts: ['*'], port: {number: 80, name: http, protocol: HTTP}}]
";

/// Settings as part of the mesh's.
fn mesh(config: &str) -> String {
    format!("defaultConfig: {config}")
}

/// The connection manager of the last chain of a listener.
#[track_caller]
fn manager(dump: &Dump, listener: &str) -> Value {
    let found = dump.listeners.iter().find(|own| own.name == listener).expect("a listener");
    let listener = json_of(found);
    let filters = list(&listener, "filter_chains").iter().flat_map(|chain| list(chain, "filters"));
    let mut managers = filters.filter(|f| text(f, "name").ends_with("http_connection_manager"));
    managers.next_back().expect("a connection manager")["typed_config"].clone()
}

#[test]
fn headers_of_the_proxy_can_be_switched_off() {
    let off = "{proxyHeaders: {server: {disabled: true}, requestId: {disabled: true}, attemptCount: {disabled: true}, envoyDebugHeaders: {disabled: true}}}";
    let dump = dump_in_mesh(WEB, &mesh(off), &sidecar("10.0.0.2", "web"));
    for listener in ["virtualInbound", "0.0.0.0_80"] {
        let manager = manager(&dump, listener);
        assert_eq!(manager["server_header_transformation"], "PASS_THROUGH", "{listener}");
        assert_eq!(manager["generate_request_id"], false);
        let filters = list(&manager, "http_filters");
        let router = &filters.last().expect("a router")["typed_config"];
        assert_eq!(router["suppress_envoy_headers"], true);
    }
    let routes = crate::support::routes(&dump, "80").to_string();
    assert!(!routes.contains("include_request_attempt_count"), "{routes}");
}

#[test]
fn more_headers_can_be_asked_for() {
    let on = "{proxyHeaders: {server: {value: mine}, xForwardedHost: {enabled: true}, xForwardedPort: {enabled: true}, preserveHttp1HeaderCase: true}}";
    let dump = dump_in_mesh(WEB, &mesh(on), &sidecar("10.0.0.2", "web"));
    let manager = manager(&dump, "0.0.0.0_80");
    assert_eq!(manager["server_name"], "mine");
    assert_eq!(manager["append_x_forwarded_port"], true);
    let format = &manager["http_protocol_options"]["header_key_format"];
    assert_eq!(format["stateful_formatter"]["name"], "preserve_case");
    let routes = crate::support::routes(&dump, "80").to_string();
    assert_eq!(routes.matches("append_x_forwarded_host").count(), 2, "rewritten and unknown");
    for name in
        ["outbound|80||web.default.svc.cluster.local", "PassthroughCluster", "inbound|8080||"]
    {
        assert!(cluster(&dump, name).to_string().contains("preserve_case"), "{name}");
    }
}

#[test]
fn client_certificates_are_forwarded_as_asked_for() {
    let own = "{proxyHeaders: {forwardedClientCert: SANITIZE_SET, setCurrentClientCertDetails: {cert: true, dns: false}}}";
    let dump = dump_in_mesh(WEB, &mesh(own), &sidecar("10.0.0.2", "web"));
    let inbound = manager(&dump, "virtualInbound");
    assert_eq!(inbound["forward_client_cert_details"], "SANITIZE_SET");
    let parts = json!({"subject": true, "cert": true, "uri": true});
    assert_eq!(inbound["set_current_client_cert_details"], parts);
}

#[test]
fn a_gateway_knows_what_stands_before_it() {
    let topology = "{gatewayTopology: {numTrustedProxies: 2, forwardClientCertDetails: ALWAYS_FORWARD_ONLY, proxyProtocol: {}}}";
    let dump = dump_in_mesh(WEB, &mesh(topology), &gateway());
    let manager = manager(&dump, "0.0.0.0_80");
    assert_eq!(manager["xff_num_trusted_hops"], 2);
    assert_eq!(manager["forward_client_cert_details"], "ALWAYS_FORWARD_ONLY");
    assert_eq!(manager.get("set_current_client_cert_details"), None);
    let filters = &dump.listeners[0].listener_filters;
    assert_eq!(filters[0].name, "envoy.filters.listener.proxy_protocol");
}

#[test]
fn connections_have_the_limits_that_are_set() {
    let limits = "{connectionSettings: {httpIdleTimeout: 7s, httpMaxConnectionDuration: 1h, httpMaxStreamDuration: 9s, httpDrainTimeout: 2s, httpRequestTimeout: 3s, httpRequestHeadersTimeout: 4s, httpStreamIdleTimeout: 5s, httpMaxConcurrentStreams: 10, http2InitialStreamWindowSize: 65535, http2InitialConnectionWindowSize: 131072, httpHeadersWithUnderscoresAction: HEADERS_WITH_UNDERSCORES_DROP_HEADER, httpMergeSlashes: true, httpPathWithEscapedSlashesAction: REJECT_REQUEST, listenerPerConnectionBufferLimitBytes: 4096}}";
    let dump = dump_in_mesh(WEB, &mesh(limits), &sidecar("10.0.0.2", "web"));
    for listener in ["virtualInbound", "0.0.0.0_80"] {
        let manager = manager(&dump, listener);
        let common = json!({
            "idle_timeout": "7s",
            "max_connection_duration": "3600s",
            "max_stream_duration": "9s",
            "headers_with_underscores_action": "DROP_HEADER",
        });
        assert_eq!(manager["common_http_protocol_options"], common, "{listener}");
        let h2 = json!({
            "max_concurrent_streams": 10,
            "initial_stream_window_size": 65535,
            "initial_connection_window_size": 131_072,
        });
        assert_eq!(manager["http2_protocol_options"], h2);
        for (field, value) in [
            ("drain_timeout", json!("2s")),
            ("request_timeout", json!("3s")),
            ("request_headers_timeout", json!("4s")),
            ("stream_idle_timeout", json!("5s")),
            ("merge_slashes", json!(true)),
            ("path_with_escaped_slashes_action", json!("REJECT_REQUEST")),
        ] {
            assert_eq!(manager[field], value, "{field}");
        }
    }
    assert!(dump.listeners.iter().all(|own| own.per_connection_buffer_limit_bytes.is_none()));
    let dump = dump_in_mesh(WEB, &mesh(limits), &gateway());
    let buffered = dump.listeners[0].per_connection_buffer_limit_bytes.as_ref();
    assert_eq!(buffered.map(|bytes| bytes.value), Some(4096));
}

#[test]
fn gateways_have_a_profile_for_the_edge() {
    let edge = mesh("{connectionSettings: {profile: EDGE, httpRequestTimeout: 8s}}");
    let at_edge = manager(&dump_in_mesh(WEB, &edge, &gateway()), "0.0.0.0_80");
    assert_eq!(at_edge["request_timeout"], "8s", "what is said counts");
    assert_eq!(at_edge["stream_idle_timeout"], "300s");
    assert_eq!(at_edge["http2_protocol_options"]["max_concurrent_streams"], 100);
    assert_eq!(at_edge["path_with_escaped_slashes_action"], "UNESCAPE_AND_REDIRECT");
    let beside = dump_in_mesh(WEB, &edge, &sidecar("10.0.0.2", "web"));
    let beside = manager(&beside, "virtualInbound");
    assert_eq!(beside["request_timeout"], "8s");
    assert_eq!(beside["stream_idle_timeout"], "0s");
}

#[test]
fn a_proxy_can_have_settings_of_its_own() {
    let mut proxy = sidecar("10.0.0.2", "web");
    proxy["metadata"]["PROXY_CONFIG"] = json!({"proxyHeaders": {"server": {"value": "own"}}});
    let dump = dump_in_mesh(WEB, &mesh("{proxyHeaders: {server: {value: mesh}}}"), &proxy);
    assert_eq!(manager(&dump, "virtualInbound")["server_name"], "own");
}

#[test]
fn statistics_of_clusters_can_have_names_of_their_own() {
    let names = "{outboundClusterStatName: '%SERVICE%_%SERVICE_PORT_NAME%_%SERVICE_PORT%', inboundClusterStatName: '%SERVICE_FQDN%_%TARGET_PORT%'}";
    let dump = dump_in_mesh(WEB, names, &sidecar("10.0.0.2", "web"));
    let name = |of: &str| cluster(&dump, of)["alt_stat_name"].clone();
    assert_eq!(name("outbound|80||web.default.svc.cluster.local"), "web.default_http_80;");
    assert_eq!(name("inbound|8080||"), "web.default.svc.cluster.local_8080;");
}
