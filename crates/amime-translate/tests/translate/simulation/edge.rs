//! Gateways: which server, which port, whose routes.

use expect_test::expect;

use super::call::{Call, Tls};
use super::check;
use crate::support::gateway;

/// A gateway that is bound by labels.
fn bound(name: &str, namespace: &str, servers: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{selector: {{istio: ingressgateway}}, servers: [{servers}]}}
"
    )
}

/// A virtual service for these gateways with these rules.
fn rules(name: &str, namespace: &str, host: &str, gateways: &str, rules: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{hosts: ['{host}'], gateways: [{gateways}], {rules}}}
"
    )
}

fn to(host: &str, port: u32) -> String {
    format!("route: [{{destination: {{host: {host}, port: {{number: {port}}}}}}}]")
}

const PLAIN: &str = "{hosts: [a.example.com], port: {number: 80, name: http, protocol: HTTP}}";
const BYTES: &str = "{hosts: [a.example.com], port: {number: 80, name: tcp, protocol: TCP}}";

/// A service of the gateway's whose port 80 leads elsewhere.
fn service(name: &str, target: u32, labels: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: istio-system, labels: {{{labels}}}}}
spec: {{clusterIP: 10.1.0.1, selector: {{istio: ingressgateway}}, ports: [{{name: http, port: 80, targetPort: {target}}}]}}
"
    )
}

#[test]
fn services_that_say_so_do_not_translate_ports() {
    let fixed = "experimental.istio.io/disable-gateway-port-translation: 'true'";
    let other = PLAIN.replace("number: 80", "number: 8081");
    let http = format!("http: [{{{}}}]", to("web", 80));
    let yaml = [
        service("a", 8081, fixed),
        service("b", 8080, ""),
        bound("one", "default", PLAIN),
        bound("two", "default", &other),
        rules("web", "default", "a.example.com", "one, two", &http),
    ];
    let calls = [80, 8080, 8081].map(|port| Call::http(port, "a.example.com"));
    check(
        &yaml.concat(),
        &gateway(),
        &calls,
        expect![[r#"
        http Plaintext a.example.com:80/ -> no listener
        http Plaintext a.example.com:8080/ -> 0.0.0.0_8080 http.8080 a.example.com:80 outbound|80||web.default.svc.cluster.local
        http Plaintext a.example.com:8081/ -> 0.0.0.0_8081 http.8081 a.example.com:8081 outbound|80||web.default.svc.cluster.local
    "#]],
    );
}

#[test]
fn the_first_gateway_decides_on_the_protocol_of_a_port() {
    let routed =
        rules("t", "default", "*", "istio-system/edge", &format!("tcp: [{{{}}}]", to("db", 90)));
    let call = [Call { http: false, ..Call::http(80, "") }];
    let edge = bound("edge", "istio-system", BYTES);
    let before = bound("edge", "alpha", BYTES);
    let after = bound("edge", "zeta", BYTES);
    check(
        &[edge.clone(), before, routed.clone()].concat(),
        &gateway(),
        &call,
        expect![[r#"
        tcp Plaintext :80/ -> no listener
    "#]],
    );
    check(
        &[edge.clone(), after, routed.clone()].concat(),
        &gateway(),
        &call,
        expect![[r#"
        tcp Plaintext :80/ -> 0.0.0.0_80 outbound|90||db.default.svc.cluster.local
    "#]],
    );
    let plain = bound("plain", "istio-system", PLAIN);
    let http = [Call::http(80, "a.example.com")];
    check(
        &[edge, plain.clone(), routed].concat(),
        &gateway(),
        &http,
        expect![[r#"
        http Plaintext a.example.com:80/ -> 0.0.0.0_80 outbound|90||db.default.svc.cluster.local
    "#]],
    );
    check(
        &[bound("z", "istio-system", BYTES), plain].concat(),
        &gateway(),
        &http,
        expect![[r#"
        http Plaintext a.example.com:80/ -> no route
    "#]],
    );
}

#[test]
fn hosts_of_a_server_may_be_for_one_namespace() {
    let http = format!("http: [{{{}}}]", to("web", 80));
    let mut yaml = String::new();
    for namespace in ["red", "blue"] {
        let server = PLAIN.replace("a.example.com", &format!("{namespace}/*.example.com"));
        yaml += &bound(namespace, "default", &server);
        let gateway = format!("default/{namespace}");
        yaml += &rules("r", namespace, &format!("{namespace}.example.com"), &gateway, &http);
        yaml += &rules("x", namespace, "stray.example.com", "default/red", &http);
    }
    let calls = ["red", "blue", "stray"].map(|name| format!("{name}.example.com"));
    let calls: Vec<Call<'_>> = calls.iter().map(|host| Call::http(80, host)).collect();
    check(
        &yaml,
        &gateway(),
        &calls,
        expect![[r#"
        http Plaintext red.example.com:80/ -> 0.0.0.0_80 http.80 red.example.com:80 outbound|80||web.red.svc.cluster.local
        http Plaintext blue.example.com:80/ -> 0.0.0.0_80 http.80 blue.example.com:80 outbound|80||web.blue.svc.cluster.local
        http Plaintext stray.example.com:80/ -> 0.0.0.0_80 http.80 stray.example.com:80 outbound|80||web.red.svc.cluster.local
    "#]],
    );
}

#[test]
fn tls_goes_through_by_name_or_ends_here() {
    let server = |hosts: &str, port: &str, tls: &str| {
        format!(
            "{{hosts: ['{hosts}'], port: {{number: 443, name: {port}, protocol: TLS}}, tls: {tls}}}"
        )
    };
    let servers = [
        server("through.example.com", "a", "{mode: PASSTHROUGH}"),
        server("ends.example.com", "b", "{mode: SIMPLE, credentialName: c}"),
    ];
    let by_name = |host: &str| {
        format!("tls: [{{match: [{{port: 443, sniHosts: [{host}]}}], {}}}]", to("web", 443))
    };
    let yaml = [
        bound("edge", "istio-system", &servers.join(", ")),
        rules(
            "a",
            "default",
            "through.example.com",
            "istio-system/edge",
            &by_name("through.example.com"),
        ),
        // The same name again cannot be reached, and must not break the listener.
        rules(
            "b",
            "default",
            "through.example.com",
            "istio-system/edge",
            &by_name("through.example.com"),
        ),
        rules(
            "c",
            "default",
            "ends.example.com",
            "istio-system/edge",
            &format!("tcp: [{{{}}}]", to("db", 90)),
        ),
    ];
    let tls = |host| Call { tls: Tls::Own, http: false, ..Call::http(443, host) };
    let calls = [tls("through.example.com"), tls("ends.example.com"), tls("other.example.com")];
    check(
        &yaml.concat(),
        &gateway(),
        &calls,
        expect![[r#"
        tcp Own through.example.com:443/ -> 0.0.0.0_443 outbound|443||web.default.svc.cluster.local
        tcp Own ends.example.com:443/ -> 0.0.0.0_443 outbound|90||db.default.svc.cluster.local
        tcp Own other.example.com:443/ -> no filter chain
    "#]],
    );
}

#[test]
fn routes_of_several_virtual_services_for_a_host_follow_each_other() {
    let http = |prefix: &str, host: &str| {
        format!("http: [{{match: [{{uri: {{prefix: {prefix}}}}}], {}}}]", to(host, 80))
    };
    let yaml = [
        bound("edge", "istio-system", PLAIN),
        rules("a", "default", "*", "istio-system/edge", &http("/", "rest")),
        rules("b", "default", "a.example.com", "istio-system/edge", &http("/b", "b")),
    ];
    let calls = ["/", "/b/1"].map(|path| Call { path, ..Call::http(80, "a.example.com") });
    check(
        &yaml.concat(),
        &gateway(),
        &calls,
        expect![[r#"
        http Plaintext a.example.com:80/ -> 0.0.0.0_80 http.80 a.example.com:80 outbound|80||rest.default.svc.cluster.local
        http Plaintext a.example.com:80/b/1 -> 0.0.0.0_80 http.80 a.example.com:80 outbound|80||b.default.svc.cluster.local
    "#]],
    );
}

#[test]
fn clusters_of_the_mesh_are_reached_by_their_own_name() {
    let server = "{hosts: ['*.default.svc.cluster.local'], port: {number: 15443, name: tls, protocol: TLS}, tls: {mode: AUTO_PASSTHROUGH}}";
    let yaml = format!(
        "{}---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec: {{clusterIP: 10.1.0.2, ports: [{{name: http, port: 80}}]}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web, namespace: default}}
spec: {{host: web, subsets: [{{name: v1, labels: {{version: v1}}}}]}}
",
        bound("cross", "istio-system", server)
    );
    let names = ["", "v1", "v2"]
        .map(|subset| format!("outbound_.80_.{subset}_.web.default.svc.cluster.local"));
    let calls: Vec<Call<'_>> = names
        .iter()
        .map(|name| Call { tls: Tls::Mutual, http: false, ..Call::http(15443, name) })
        .collect();
    check(
        &yaml,
        &gateway(),
        &calls,
        expect![[r#"
        tcp Mutual outbound_.80_._.web.default.svc.cluster.local:15443/ -> 0.0.0.0_15443 outbound_.80_._.web.default.svc.cluster.local
        tcp Mutual outbound_.80_.v1_.web.default.svc.cluster.local:15443/ -> 0.0.0.0_15443 outbound_.80_.v1_.web.default.svc.cluster.local
        tcp Mutual outbound_.80_.v2_.web.default.svc.cluster.local:15443/ -> no filter chain
    "#]],
    );
}
