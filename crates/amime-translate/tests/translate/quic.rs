//! HTTP/3 beside the HTTPS servers of gateways.

use serde_json::{Value, json};

use crate::support::{dump, gateway, json_of, list, routes, text};

const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: ingress, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  ports:
  - {name: https, port: 443, targetPort: 8443}
  - {name: http3, port: 443, targetPort: 8443, protocol: UDP}
  - {name: other, port: 444, targetPort: 8444}
  - {name: more, port: 445, targetPort: 8445}
  - {name: more-udp, port: 445, targetPort: 8445, protocol: UDP}
---
apiVersion: v1
kind: Pod
metadata: {name: gateway, namespace: istio-system, labels: {istio: ingressgateway}}
spec: {containers: [{name: gateway}]}
status: {podIP: 10.0.9.9, phase: Running, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 443, name: one, protocol: HTTPS}, hosts: [one.test], tls: {mode: SIMPLE, credentialName: one}}
  - {port: {number: 443, name: two, protocol: HTTPS}, hosts: [two.test], tls: {mode: OPTIONAL_MUTUAL, credentialName: two}}
  - {port: {number: 443, name: mutual, protocol: HTTPS}, hosts: [mutual.test], tls: {mode: MUTUAL, credentialName: mutual}}
  - {port: {number: 443, name: through, protocol: HTTPS}, hosts: [through.test], tls: {mode: PASSTHROUGH}}
  - {port: {number: 444, name: tcp-only, protocol: HTTPS}, hosts: [tcp.test], tls: {mode: SIMPLE, credentialName: one}}
  - {port: {number: 445, name: opaque, protocol: TLS}, hosts: [opaque.test], tls: {mode: SIMPLE, credentialName: one}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: all, namespace: istio-system}
spec:
  hosts: [one.test, mutual.test, tcp.test]
  gateways: [edge]
  http: [{route: [{destination: {host: web.test}}]}]
"#;

/// The gateway under a control plane that was told to offer HTTP/3.
fn offered(extensions: &[&str]) -> Value {
    let mut proxy = gateway();
    proxy["quic_listeners"] = json!(true);
    proxy["extensions"] = json!(extensions);
    proxy
}

const QUIC: [&str; 2] = ["envoy.filters.http.router", "envoy.transport_sockets.quic"];

fn names(proxy: &Value) -> Vec<String> {
    dump(OBJECTS, proxy).listeners.iter().map(|listener| listener.name.clone()).collect()
}

fn alt_svc(routes: &Value) -> Vec<&str> {
    let routes = list(routes, "virtual_hosts").iter().flat_map(|host| list(host, "routes"));
    let headers = routes.flat_map(|route| list(route, "response_headers_to_add"));
    headers.map(|header| text(&header["header"], "value")).collect()
}

#[test]
fn https_servers_have_listeners_for_quic_where_their_service_takes_datagrams() {
    let dump = dump(OBJECTS, &offered(&QUIC));
    let listeners: Vec<_> = dump.listeners.iter().map(json_of).collect();
    let quic: Vec<_> =
        listeners.iter().filter(|listener| text(listener, "name").starts_with("udp_")).collect();
    assert_eq!(quic.len(), 1);
    let listener = quic[0];
    assert_eq!(text(listener, "name"), "udp_0.0.0.0_8443");
    assert_eq!(listener["address"]["socket_address"]["protocol"], json!("UDP"));
    let udp = json!({"quic_options": {}, "downstream_socket_config": {}});
    assert_eq!(listener["udp_listener_config"], udp);
    assert!(listener.get("listener_filters").is_none());
    // Neither what demands a certificate of clients, nor what is not HTTP here.
    let chains = list(listener, "filter_chains");
    let hosts: Vec<_> = chains.iter().map(|c| &c["filter_chain_match"]["server_names"]).collect();
    assert_eq!(hosts, [&json!(["one.test"]), &json!(["two.test"])]);
    let socket = &chains[0]["transport_socket"];
    assert_eq!(text(socket, "name"), "envoy.transport_sockets.quic");
    let tls = &socket["typed_config"]["downstream_tls_context"];
    assert_eq!(tls["common_tls_context"]["alpn_protocols"], json!(["h3"]));
    assert_eq!(tls["require_client_certificate"], json!(false));
    let manager = &list(&chains[0], "filters")[0]["typed_config"];
    assert_eq!(manager["codec_type"], json!("HTTP3"));
    assert_eq!(manager["http3_protocol_options"], json!({}));
    assert_eq!(manager["rds"]["route_config_name"], json!("https.443.one.edge.istio-system"));
}

#[test]
fn answers_tell_of_http3_where_it_is() {
    let dump = dump(OBJECTS, &offered(&QUIC));
    let one = routes(&dump, "https.443.one.edge.istio-system");
    assert_eq!(alt_svc(&one), ["h3=\":443\"; ma=86400"]);
    for elsewhere in ["https.443.mutual.edge.istio-system", "https.444.tcp-only.edge.istio-system"]
    {
        let routes = routes(&dump, elsewhere);
        assert!(!list(&routes, "virtual_hosts").is_empty());
        assert_eq!(alt_svc(&routes), [""; 0]);
    }
}

#[test]
fn nothing_of_it_is_there_unasked_or_where_the_proxy_cannot() {
    let without: Vec<String> = ["0.0.0.0_8443", "0.0.0.0_8444"].map(str::to_owned).into();
    assert_eq!(names(&gateway()), without);
    assert_eq!(names(&offered(&["envoy.filters.http.router"])), without);
    let dump = dump(OBJECTS, &offered(&["envoy.filters.http.router"]));
    assert_eq!(alt_svc(&routes(&dump, "https.443.one.edge.istio-system")), [""; 0]);
}
