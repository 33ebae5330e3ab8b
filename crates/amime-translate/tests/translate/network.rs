//! Endpoints of other networks stand behind gateways.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use crate::support::{dump_in_mesh, json_of, list, sidecar, text};

const SERVICE: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: default}
spec:
  hosts: [web.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints:
  - {address: 10.0.0.1, serviceAccount: web}
  - {address: 10.0.0.2, network: here, serviceAccount: web}
  - {address: 10.0.0.3, network: far, serviceAccount: web}
  - {address: 10.0.0.4, network: far, serviceAccount: web, weight: 3}
  - {address: 10.0.0.5, network: far}
  - {address: 10.0.0.6, network: other, serviceAccount: web}
";

/// A gateway into a network, which listens at these addresses.
fn gateway(network: &str, port: u16, addresses: &[&str]) -> String {
    let ingress: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
    format!(
        "---
apiVersion: v1
kind: Service
metadata:
  name: into-{network}
  namespace: istio-system
  labels: {{topology.istio.io/network: {network}, networking.istio.io/gatewayPort: '15444'}}
spec: {{type: LoadBalancer, clusterIP: 10.1.0.9, ports: [{{name: tls, port: {port}}}]}}
status: {{loadBalancer: {{ingress: {}}}}}
",
        json!(ingress)
    )
}

/// A client with this metadata.
fn client(metadata: &Value) -> Value {
    let mut proxy = sidecar("10.0.9.1", "client");
    proxy["metadata"] = metadata.clone();
    proxy
}

#[track_caller]
fn check(yaml: &str, proxy: &Value, cluster: &str, want: Expect) {
    let dump = dump_in_mesh(yaml, "{}", proxy);
    let found = dump.endpoints.iter().find(|endpoints| endpoints.cluster_name == cluster);
    let mut lines = String::new();
    for group in list(&json_of(found.expect("endpoints")), "endpoints") {
        for endpoint in list(group, "lb_endpoints") {
            let address = &endpoint["endpoint"]["address"]["socket_address"];
            let mode = &endpoint["metadata"]["filter_metadata"]["envoy.transport_socket_match"];
            lines += &format!(
                "{}:{} weight {} {}\n",
                text(address, "address"),
                address["port_value"],
                endpoint["load_balancing_weight"],
                text(mode, "tlsMode"),
            );
        }
        lines += &format!("in all {}\n", group["load_balancing_weight"]);
    }
    want.assert_eq(&lines);
}

const CLUSTER: &str = "outbound|80||web.example.com";

#[test]
fn gateways_stand_in_for_the_endpoints_of_their_network() {
    let far = gateway("far", 15444, &["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
    let here = gateway("here", 15444, &["192.0.2.9"]);
    let yaml = [SERVICE, &far, &here].concat();
    check(
        &yaml,
        &client(&json!({"NETWORK": "here"})),
        CLUSTER,
        expect![[r#"
        10.0.0.1:80 weight 3 istio
        10.0.0.2:80 weight 3 istio
        10.0.0.6:80 weight 3 istio
        192.0.2.1:15444 weight 5 istio
        192.0.2.2:15444 weight 5 istio
        in all 19
    "#]],
    );
    // A client of no network reaches none directly that has gateways.
    check(
        &yaml,
        &client(&json!({})),
        CLUSTER,
        expect![[r#"
        10.0.0.1:80 weight 3 istio
        10.0.0.6:80 weight 3 istio
        192.0.2.1:15444 weight 5 istio
        192.0.2.2:15444 weight 5 istio
        192.0.2.9:15444 weight 3 istio
        in all 19
    "#]],
    );
}

#[test]
fn networks_without_gateways_are_reached_directly() {
    let closed = gateway("far", 80, &["192.0.2.1"]);
    let yaml = [SERVICE, &closed].concat();
    check(
        &yaml,
        &client(&json!({"NETWORK": "here"})),
        CLUSTER,
        expect![[r#"
        10.0.0.1:80 weight 1 istio
        10.0.0.2:80 weight 1 istio
        10.0.0.3:80 weight 1 istio
        10.0.0.4:80 weight 3 istio
        10.0.0.5:80 weight 1 
        10.0.0.6:80 weight 1 istio
        in all 8
    "#]],
    );
}

#[test]
fn clients_of_the_home_network_need_not_name_it() {
    let home = "---
apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: here}}
";
    let here = gateway("here", 15444, &["192.0.2.9"]);
    let yaml = [SERVICE, home, &here].concat();
    check(
        &yaml,
        &client(&json!({})),
        CLUSTER,
        expect![[r#"
        10.0.0.1:80 weight 1 istio
        10.0.0.2:80 weight 1 istio
        10.0.0.3:80 weight 1 istio
        10.0.0.4:80 weight 3 istio
        10.0.0.5:80 weight 1 
        10.0.0.6:80 weight 1 istio
        in all 8
    "#]],
    );
    check(
        &yaml,
        &client(&json!({"NETWORK": "far"})),
        CLUSTER,
        expect![[r#"
        10.0.0.3:80 weight 1 istio
        10.0.0.4:80 weight 3 istio
        10.0.0.5:80 weight 1 
        10.0.0.6:80 weight 1 istio
        192.0.2.9:15444 weight 2 istio
        in all 8
    "#]],
    );
}

#[test]
fn proxies_see_the_networks_that_they_ask_for() {
    let far = gateway("far", 15444, &["192.0.2.1"]);
    let yaml = [SERVICE, &far].concat();
    let metadata = json!({"NETWORK": "here", "REQUESTED_NETWORK_VIEW": "here,other"});
    check(
        &yaml,
        &client(&metadata),
        CLUSTER,
        expect![[r#"
        10.0.0.1:80 weight 1 istio
        10.0.0.2:80 weight 1 istio
        10.0.0.6:80 weight 1 istio
        in all 3
    "#]],
    );
}
