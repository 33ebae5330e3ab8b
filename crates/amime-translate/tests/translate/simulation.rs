//! Situations, and where calls end up in them: the behaviour that users of
//! Istio rely on, whatever resources it is made of.

mod call;
mod clients;
mod edge;

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use self::call::{Call, Tls, reached};
use crate::support::{dump, dump_in_mesh, gateway, sidecar};

#[track_caller]
fn check(yaml: &str, proxy: &Value, calls: &[Call<'_>], want: Expect) {
    check_in_mesh(yaml, "{}", proxy, calls, want);
}

#[track_caller]
fn check_in_mesh(yaml: &str, mesh: &str, proxy: &Value, calls: &[Call<'_>], want: Expect) {
    let dump = dump_in_mesh(yaml, mesh, proxy);
    let lines = calls.iter().map(|call| {
        let kind = if call.http { "http" } else { "tcp" };
        format!(
            "{kind} {:?} {}:{}{} -> {}\n",
            call.tls,
            call.host,
            call.port,
            call.path,
            reached(&dump, call)
        )
    });
    want.assert_eq(&lines.collect::<String>());
}

/// A workload on three ports, one of each kind, under a mutual TLS mode.
fn workload(mode: &str) -> String {
    format!(
        r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: own, namespace: default}}
spec:
  hosts: [own.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints: [{{address: 10.0.0.1}}]
  ports: [{{name: tcp, number: 70, protocol: TCP}}, {{name: http, number: 80, protocol: HTTP}}, {{name: any, number: 81}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: istio-system}}
spec: {{mtls: {{mode: {mode}}}}}
"
    )
}

fn to_workload() -> Vec<Call<'static>> {
    let mut calls = Vec::new();
    for port in [70, 80, 81, 82] {
        for tls in [Tls::Plaintext, Tls::Own, Tls::Mutual] {
            calls.extend([true, false].map(|http| Call::inbound(port, http, tls)));
        }
    }
    calls
}

#[test]
fn strict_ports_take_mesh_tls_only() {
    check(
        &workload("STRICT"),
        &sidecar("10.0.0.1", "own"),
        &to_workload(),
        expect![[r#"
            http Plaintext :70/ -> no filter chain
            tcp Plaintext :70/ -> no filter chain
            http Own :70/ -> other TLS expected
            tcp Own :70/ -> other TLS expected
            http Mutual :70/ -> virtualInbound 0.0.0.0_70 inbound|70||
            tcp Mutual :70/ -> virtualInbound 0.0.0.0_70 inbound|70||
            http Plaintext :80/ -> no filter chain
            tcp Plaintext :80/ -> no filter chain
            http Own :80/ -> other TLS expected
            tcp Own :80/ -> other TLS expected
            http Mutual :80/ -> virtualInbound 0.0.0.0_80 inbound|http|80 default inbound|80||
            tcp Mutual :80/ -> not HTTP
            http Plaintext :81/ -> no filter chain
            tcp Plaintext :81/ -> no filter chain
            http Own :81/ -> other TLS expected
            tcp Own :81/ -> other TLS expected
            http Mutual :81/ -> virtualInbound 0.0.0.0_81 inbound|http|81 default inbound|81||
            tcp Mutual :81/ -> virtualInbound 0.0.0.0_81 inbound|81||
            http Plaintext :82/ -> no filter chain
            tcp Plaintext :82/ -> no filter chain
            http Own :82/ -> other TLS expected
            tcp Own :82/ -> other TLS expected
            http Mutual :82/ -> virtualInbound virtualInbound-catchall-http inbound|http|0 default InboundPassthroughCluster
            tcp Mutual :82/ -> virtualInbound virtualInbound InboundPassthroughCluster
        "#]],
    );
}

#[test]
fn permissive_ports_take_both() {
    check(
        &workload("PERMISSIVE"),
        &sidecar("10.0.0.1", "own"),
        &to_workload(),
        expect![[r#"
            http Plaintext :70/ -> virtualInbound 0.0.0.0_70 inbound|70||
            tcp Plaintext :70/ -> virtualInbound 0.0.0.0_70 inbound|70||
            http Own :70/ -> virtualInbound 0.0.0.0_70 inbound|70||
            tcp Own :70/ -> virtualInbound 0.0.0.0_70 inbound|70||
            http Mutual :70/ -> virtualInbound 0.0.0.0_70 inbound|70||
            tcp Mutual :70/ -> virtualInbound 0.0.0.0_70 inbound|70||
            http Plaintext :80/ -> virtualInbound 0.0.0.0_80 inbound|http|80 default inbound|80||
            tcp Plaintext :80/ -> not HTTP
            http Own :80/ -> no filter chain
            tcp Own :80/ -> no filter chain
            http Mutual :80/ -> virtualInbound 0.0.0.0_80 inbound|http|80 default inbound|80||
            tcp Mutual :80/ -> not HTTP
            http Plaintext :81/ -> virtualInbound 0.0.0.0_81 inbound|http|81 default inbound|81||
            tcp Plaintext :81/ -> virtualInbound 0.0.0.0_81 inbound|81||
            http Own :81/ -> virtualInbound 0.0.0.0_81 inbound|81||
            tcp Own :81/ -> virtualInbound 0.0.0.0_81 inbound|81||
            http Mutual :81/ -> virtualInbound 0.0.0.0_81 inbound|http|81 default inbound|81||
            tcp Mutual :81/ -> virtualInbound 0.0.0.0_81 inbound|81||
            http Plaintext :82/ -> virtualInbound virtualInbound-catchall-http inbound|http|0 default InboundPassthroughCluster
            tcp Plaintext :82/ -> virtualInbound virtualInbound InboundPassthroughCluster
            http Own :82/ -> virtualInbound virtualInbound InboundPassthroughCluster
            tcp Own :82/ -> virtualInbound virtualInbound InboundPassthroughCluster
            http Mutual :82/ -> virtualInbound virtualInbound-catchall-http inbound|http|0 default InboundPassthroughCluster
            tcp Mutual :82/ -> virtualInbound virtualInbound InboundPassthroughCluster
        "#]],
    );
}

const ROUTED: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: prod}
spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}, {name: http-alt, port: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: made, namespace: prod, creationTimestamp: '2020-01-01T00:00:00Z'}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules:
  - {name: rest, backendRefs: [{name: web-v1, port: 80}]}
  - name: exact
    matches: [{path: {type: Exact, value: /new}}]
    backendRefs: [{kind: Hostname, group: networking.istio.io, name: out.example.com, port: 443}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: used, namespace: shop, creationTimestamp: '2021-01-01T00:00:00Z'}
spec:
  parentRefs: [{group: '', kind: Service, name: web, namespace: prod}]
  rules: [{name: ours, backendRefs: [{name: copy, port: 80}]}]
";

fn client(namespace: &str) -> Value {
    let mut proxy = sidecar("10.0.0.9", "client");
    proxy["config_namespace"] = json!(namespace);
    proxy["metadata"]["NAMESPACE"] = json!(namespace);
    proxy
}

#[test]
fn a_route_of_the_gateway_api_is_its_owners_or_its_clients() {
    let host = "web.prod.svc.cluster.local";
    let calls = [
        Call::http(80, host),
        Call { path: "/new", ..Call::http(80, host) },
        Call { path: "/new", ..Call::http(8080, host) },
    ];
    check(
        ROUTED,
        &client("prod"),
        &calls,
        expect![[r#"
            http Plaintext web.prod.svc.cluster.local:80/ -> 0.0.0.0_80 80 web.prod.svc.cluster.local:80 rest outbound|80||web-v1.prod.svc.cluster.local
            http Plaintext web.prod.svc.cluster.local:80/new -> 0.0.0.0_80 80 web.prod.svc.cluster.local:80 exact outbound|443||out.example.com
            http Plaintext web.prod.svc.cluster.local:8080/new -> 0.0.0.0_8080 8080 web.prod.svc.cluster.local:8080 default outbound|8080||web.prod.svc.cluster.local
        "#]],
    );
    check(
        ROUTED,
        &client("shop"),
        &calls,
        expect![[r#"
            http Plaintext web.prod.svc.cluster.local:80/ -> 0.0.0.0_80 80 web.prod.svc.cluster.local:80 ours outbound|80||copy.shop.svc.cluster.local
            http Plaintext web.prod.svc.cluster.local:80/new -> 0.0.0.0_80 80 web.prod.svc.cluster.local:80 ours outbound|80||copy.shop.svc.cluster.local
            http Plaintext web.prod.svc.cluster.local:8080/new -> 0.0.0.0_8080 8080 web.prod.svc.cluster.local:8080 ours outbound|80||copy.shop.svc.cluster.local
        "#]],
    );
    check(
        ROUTED,
        &client("elsewhere"),
        &calls,
        expect![[r#"
            http Plaintext web.prod.svc.cluster.local:80/ -> 0.0.0.0_80 80 web.prod.svc.cluster.local:80 rest outbound|80||web-v1.prod.svc.cluster.local
            http Plaintext web.prod.svc.cluster.local:80/new -> 0.0.0.0_80 80 web.prod.svc.cluster.local:80 exact outbound|443||out.example.com
            http Plaintext web.prod.svc.cluster.local:8080/new -> 0.0.0.0_8080 8080 web.prod.svc.cluster.local:8080 default outbound|8080||web.prod.svc.cluster.local
        "#]],
    );
}

const INGRESSES: &str = r"
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: a, namespace: shop, creationTimestamp: '2020-01-01T00:00:00Z', annotations: {kubernetes.io/ingress.class: istio}}
spec:
  tls: [{hosts: [shop.example.com], secretName: certificate}]
  rules:
  - host: shop.example.com
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: front, port: {number: 80}}}}
      - {path: /cart, pathType: Prefix, backend: {service: {name: cart, port: {name: http}}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: foreign, namespace: shop}
spec:
  ingressClassName: nginx
  rules: [{host: other.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: front, port: {number: 80}}}}]}}]
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {ports: [{name: http, port: 9080}]}
";

#[test]
fn an_ingress_of_ours_is_served_with_and_without_tls() {
    let tls = |path| Call { tls: Tls::Own, path, ..Call::http(443, "shop.example.com") };
    let calls = [
        Call::http(80, "shop.example.com"),
        Call { path: "/cart/1", ..Call::http(80, "shop.example.com") },
        tls("/"),
        tls("/cart"),
        Call::http(80, "other.example.com"),
    ];
    check(
        INGRESSES,
        &gateway(),
        &calls,
        expect![[r#"
            http Plaintext shop.example.com:80/ -> 0.0.0.0_80 http.80 shop.example.com:80 outbound|80||front.shop.svc.cluster.local
            http Plaintext shop.example.com:80/cart/1 -> 0.0.0.0_80 http.80 shop.example.com:80 outbound|9080||cart.shop.svc.cluster.local
            http Own shop.example.com:443/ -> 0.0.0.0_443 https.443.https-443-ingress-a-shop-0.a-istio-autogenerated-k8s-ingress-shop.istio-system shop.example.com:443 outbound|80||front.shop.svc.cluster.local
            http Own shop.example.com:443/cart -> 0.0.0.0_443 https.443.https-443-ingress-a-shop-0.a-istio-autogenerated-k8s-ingress-shop.istio-system shop.example.com:443 outbound|9080||cart.shop.svc.cluster.local
            http Plaintext other.example.com:80/ -> no virtual host
        "#]],
    );
}

/// A gateway that is bound to a service, whose port 80 leads to 8080.
const BOUND: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: istio-system, annotations: {internal.istio.io/gateway-service: edge.istio-system.svc.cluster.local}}
spec:
  servers:
  - {hosts: [a.example.com], port: {number: 80, name: http, protocol: HTTP}}
  - {hosts: [a.example.com], port: {number: 82, name: http-82, protocol: HTTP}}
---
apiVersion: v1
kind: Service
metadata: {name: edge, namespace: istio-system}
spec: {clusterIP: 10.1.0.9, selector: {istio: ingressgateway}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: default}
spec: {hosts: [a.example.com], gateways: [istio-system/edge], http: [{route: [{destination: {host: web}}]}]}
";

#[test]
fn a_gateway_bound_to_a_service_has_its_ports_only() {
    let calls = [80, 8080, 82].map(|port| Call::http(port, "a.example.com"));
    check(
        BOUND,
        &gateway(),
        &calls,
        expect![[r#"
            http Plaintext a.example.com:80/ -> no listener
            http Plaintext a.example.com:8080/ -> 0.0.0.0_8080 http.8080 a.example.com:80 outbound|80||web.default.svc.cluster.local
            http Plaintext a.example.com:82/ -> no listener
        "#]],
    );
}

#[test]
fn unknown_hosts_are_resolved_if_the_proxy_can() {
    let mesh = "outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}";
    let calls = [
        Call::http(80, "new.example.com"),
        Call { tls: Tls::Own, ..Call::http(443, "new.example.com") },
        Call { http: false, ..Call::http(25, "") },
    ];
    check_in_mesh(
        "",
        mesh,
        &resolving(),
        &calls,
        expect![[r#"
            http Plaintext new.example.com:80/ -> virtualOutbound virtualOutbound-catchall-tcp-http allow_any_dynamic_dns allow_any_dynamic_dns AllowAnyDynamicDNSCluster
            http Own new.example.com:443/ -> virtualOutbound virtualOutbound-catchall-tcp PassthroughCluster
            tcp Plaintext :25/ -> virtualOutbound virtualOutbound-catchall-tcp PassthroughCluster
        "#]],
    );
    check_in_mesh(
        "",
        mesh,
        &sidecar("10.0.0.1", "a"),
        &calls[..1],
        expect![[r#"
            http Plaintext new.example.com:80/ -> virtualOutbound virtualOutbound-catchall-tcp PassthroughCluster
        "#]],
    );
}

#[test]
fn values_that_are_no_format_do_not_break_the_routes() {
    let yaml = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: default}
spec:
  hosts: [a.example.com]
  http: [{headers: {request: {set: {x-share: '100%', x-peer: '%DOWNSTREAM_REMOTE_ADDRESS%', x-bad: 'a%b'}}}, route: [{destination: {host: web}}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}]}
";
    let dump = dump(yaml, &sidecar("10.0.0.1", "a"));
    let routes = crate::support::routes(&dump, "80").to_string();
    for value in ["100%%", "%DOWNSTREAM_REMOTE_ADDRESS%", "a%%b"] {
        assert!(routes.contains(&format!("{value:?}")), "{value}: {routes}");
    }
}

/// Hosts below a wildcard that the proxy is to resolve, and how to reach them.
fn wildcard(policy: &str) -> String {
    format!(
        r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: wild, namespace: default}}
spec:
  hosts: ['*.wild.example.com']
  location: MESH_EXTERNAL
  resolution: DYNAMIC_DNS
  ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 443, name: tls, protocol: TLS}}, {{number: 90, name: tcp, protocol: TCP}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: wild, namespace: default}}
spec: {{host: '*.wild.example.com', trafficPolicy: {policy}}}
"
    )
}

/// Our own proxy, by the extensions that it names.
fn resolving() -> Value {
    let mut proxy = sidecar("10.0.0.1", "a");
    proxy["extensions"] = amime_xds::extensions::OWN.iter().map(|(_, name)| *name).collect();
    proxy
}

#[test]
fn hosts_below_a_wildcard_are_resolved_by_host_or_server_name() {
    let calls = [
        Call::http(80, "a.wild.example.com"),
        Call { tls: Tls::Own, http: false, ..Call::http(443, "a.wild.example.com") },
        Call { tls: Tls::Own, http: false, ..Call::http(443, "a.example.com") },
    ];
    check(
        &wildcard("{}"),
        &resolving(),
        &calls,
        expect![[r#"
            http Plaintext a.wild.example.com:80/ -> 0.0.0.0_80 80 *.wild.example.com:80 default outbound|80||*.wild.example.com
            tcp Own a.wild.example.com:443/ -> 0.0.0.0_443 outbound|443||*.wild.example.com
            tcp Own a.example.com:443/ -> 0.0.0.0_443 PassthroughFilterChain PassthroughCluster
        "#]],
    );
    let dump = dump(&wildcard("{}"), &resolving());
    let names: Vec<&str> = dump.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    assert!(!names.contains(&"outbound|90||*.wild.example.com"), "bytes name no host");
    let listener = dump.listeners.iter().find(|l| l.name == "0.0.0.0_443").expect("a listener");
    let filters = listener.filter_chains[0].filters.iter().map(|filter| filter.name.as_str());
    assert_eq!(
        filters.collect::<Vec<_>>(),
        [
            "istio.stats",
            "envoy.filters.network.sni_dynamic_forward_proxy",
            "envoy.filters.network.tcp_proxy"
        ]
    );
}

#[test]
fn names_of_resolved_servers_are_checked_unless_told_otherwise() {
    let insecure = |policy: &str| {
        let dump = dump(&wildcard(policy), &resolving());
        let cluster = crate::support::cluster(&dump, "outbound|80||*.wild.example.com");
        let config = &cluster["cluster_type"]["typed_config"];
        config["allow_insecure_cluster_options"].as_bool().unwrap_or(false)
    };
    assert!(insecure("{}"), "there is nothing to check in plaintext");
    assert!(!insecure("{tls: {mode: SIMPLE}}"));
    assert!(insecure("{tls: {mode: SIMPLE, sni: a.example.com}}"));
    assert!(insecure("{tls: {mode: SIMPLE, insecureSkipVerify: true}}"));
}

#[test]
fn unknown_hosts_are_reached_over_tls_if_the_mesh_wants_it() {
    let mesh = "outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS, tls: {mode: SIMPLE}}";
    let dump = dump_in_mesh("", mesh, &resolving());
    let cluster = crate::support::cluster(&dump, "AllowAnyDynamicDNSCluster");
    assert_eq!(cluster["transport_socket"]["name"], "envoy.transport_sockets.tls");
    let config = &cluster["cluster_type"]["typed_config"];
    assert_eq!(config.get("allow_insecure_cluster_options"), None);
}
