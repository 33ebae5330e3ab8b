//! Unix sockets of Sidecars and service entries, and TLS of a Sidecar's own.

use serde_json::{Value, json};

use crate::support::{cluster, dump, json_of, list, routes, sidecar, text};

const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.1.0.1
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: default, labels: {app: web}}
spec: {serviceAccountName: web, containers: [{name: web}]}
status: {podIP: 10.0.0.1, phase: Running, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: web, namespace: default}
spec:
  workloadSelector: {labels: {app: web}}
  ingress:
    - port: {number: 8080, protocol: HTTP, name: http}
      defaultEndpoint: unix:///run/app
    - port: {number: 8443, protocol: HTTPS, name: https}
      defaultEndpoint: unix://@app
      tls: {mode: MUTUAL, serverCertificate: /etc/c.pem, privateKey: /etc/k.pem, caCertificates: /etc/ca.pem}
    - port: {number: 9443, protocol: TLS, name: tls}
      defaultEndpoint: 127.0.0.1:9000
      tls: {mode: SIMPLE, credentialName: web-cert}
  egress:
    - port: {number: 0, protocol: HTTP, name: http}
      bind: unix:///run/egress
      hosts: ["./*"]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  portLevelMtls: {8443: {mode: DISABLE}, 9443: {mode: DISABLE}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: socket, namespace: default}
spec:
  hosts: [socket.test]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: "unix:///run/entry"}]
"#;

fn address(of: &Value) -> &Value {
    &list(&list(of, "endpoints")[0], "lb_endpoints")[0]["endpoint"]["address"]
}

#[test]
fn unix_sockets_stand_where_addresses_do() {
    let dump = dump(OBJECTS, &sidecar("10.0.0.1", "web"));
    let pipe = |path: &str| json!({"pipe": {"path": path}});
    let listeners: Vec<_> = dump.listeners.iter().map(json_of).collect();
    let egress = listeners.iter().find(|listener| text(listener, "name").starts_with("unix:"));
    let egress = egress.expect("a listener at the socket");
    assert_eq!(egress["address"], pipe("/run/egress"));
    assert_ne!(egress["bind_to_port"], json!(false), "no redirection ends at a path");
    let reached = routes(&dump, "unix:///run/egress").to_string();
    for host in ["web.default.svc.cluster.local", "socket.test"] {
        assert!(reached.contains(&format!("outbound|80||{host}")), "{host} in {reached}");
    }
    for (name, path) in [("inbound|8080||", "/run/app"), ("inbound|8443||", "@app")] {
        let inbound = cluster(&dump, name);
        assert_eq!(*address(&inbound["load_assignment"]), pipe(path));
        assert_eq!(inbound["type"], json!("STATIC"));
    }
    let endpoints = dump.endpoints.iter().map(json_of);
    let entry = endpoints.into_iter().find(|one| text(one, "cluster_name").contains("socket.test"));
    assert_eq!(*address(&entry.expect("endpoints")), pipe("/run/entry"));
}

#[test]
fn tls_of_a_sidecars_own_ends_where_mutual_tls_is_off() {
    let dump = dump(OBJECTS, &sidecar("10.0.0.1", "web"));
    let listeners: Vec<_> = dump.listeners.iter().map(json_of).collect();
    let inbound = listeners.iter().find(|one| one["name"] == "virtualInbound").expect("one");
    let on_port = |port: u32| {
        let chains = list(inbound, "filter_chains").iter();
        let mut found =
            chains.filter(|chain| chain["filter_chain_match"]["destination_port"] == json!(port));
        let chain = found.next().expect("a chain");
        assert!(found.next().is_none(), "one chain: nothing but TLS is taken");
        assert_eq!(chain["filter_chain_match"]["transport_protocol"], json!("tls"));
        chain.clone()
    };
    let mutual = on_port(8443);
    let context = &mutual["transport_socket"]["typed_config"];
    assert_eq!(context["require_client_certificate"], json!(true));
    let common = &context["common_tls_context"];
    let certificate = &list(common, "tls_certificate_sds_secret_configs")[0];
    assert_eq!(certificate["name"], json!("file-cert:/etc/c.pem~/etc/k.pem"));
    let roots =
        &common["combined_validation_context"]["validation_context_sds_secret_config"]["name"];
    assert_eq!(*roots, json!("file-root:/etc/ca.pem"));
    let filter =
        |chain: &Value| text(list(chain, "filters").last().expect("one"), "name").to_owned();
    assert_eq!(filter(&mutual), "envoy.filters.network.http_connection_manager");
    let simple = on_port(9443);
    let context = &simple["transport_socket"]["typed_config"];
    assert_eq!(context["require_client_certificate"], json!(false));
    let certificates = &context["common_tls_context"]["tls_certificate_sds_secret_configs"];
    assert_eq!(certificates[0]["name"], json!("kubernetes://web-cert"));
    assert_eq!(filter(&simple), "envoy.filters.network.tcp_proxy");
}
