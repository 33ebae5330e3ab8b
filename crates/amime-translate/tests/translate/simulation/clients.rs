//! Sidecars as clients and servers: addresses, names, policies.

use expect_test::expect;

use super::call::{Call, Tls};
use super::{check, check_in_mesh, client};
use crate::support::sidecar;

/// Ports of each kind.
const PORTS: &str = "[{name: http, port: 80}, {name: any, port: 81}, {name: tcp, port: 82}, {name: tls, port: 83}, {name: https, port: 84}]";

/// Calls to each of the ports at one address, by this host.
fn to_each<'c>(address: &'c str, host: &'c str) -> Vec<Call<'c>> {
    let at = |port, http, tls| Call { address, http, tls, ..Call::http(port, host) };
    vec![
        at(80, true, Tls::Plaintext),
        at(81, true, Tls::Plaintext),
        at(81, true, Tls::Own),
        at(81, false, Tls::Plaintext),
        at(82, false, Tls::Plaintext),
        at(83, false, Tls::Own),
        at(84, true, Tls::Own),
    ]
}

#[test]
fn pods_of_a_headless_service_are_reached_at_their_own_address() {
    let yaml = format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: db, namespace: default}}
spec: {{clusterIP: None, selector: {{app: db}}, ports: {PORTS}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: db, namespace: default, labels: {{kubernetes.io/service-name: db}}}}
addressType: IPv4
endpoints: [{{addresses: [10.0.0.7]}}]
ports: {PORTS}
"
    );
    check(
        &yaml,
        &sidecar("10.0.0.1", "a"),
        &to_each("10.0.0.7", "db.default"),
        expect![[r#"
        http Plaintext db.default:80/ -> 0.0.0.0_80 80 db.default.svc.cluster.local:80 default outbound|80||db.default.svc.cluster.local
        http Plaintext db.default:81/ -> 10.0.0.7_81 db.default.svc.cluster.local:81 db.default.svc.cluster.local:81 default outbound|81||db.default.svc.cluster.local
        http Own db.default:81/ -> 10.0.0.7_81 outbound|81||db.default.svc.cluster.local
        tcp Plaintext db.default:81/ -> 10.0.0.7_81 outbound|81||db.default.svc.cluster.local
        tcp Plaintext db.default:82/ -> 10.0.0.7_82 outbound|82||db.default.svc.cluster.local
        tcp Own db.default:83/ -> 10.0.0.7_83 outbound|83||db.default.svc.cluster.local
        http Own db.default:84/ -> 10.0.0.7_84 outbound|84||db.default.svc.cluster.local
    "#]],
    );
}

#[test]
fn an_alias_stands_for_its_service() {
    let yaml = format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: alias, namespace: default}}
spec: {{type: ExternalName, externalName: web.default.svc.cluster.local}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec: {{clusterIP: 10.1.0.3, ports: {PORTS}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: alias, namespace: default}}
spec:
  hosts: [alias.default.svc.cluster.local]
  http: [{{name: own, match: [{{uri: {{prefix: /own}}}}], route: [{{destination: {{host: web}}}}]}}]
"
    );
    let mut calls = to_each("10.1.0.3", "alias.default");
    // A rule for the alias holds for its full name only, and not for the service.
    for host in ["alias.default.svc.cluster.local", "alias.default", "web.default"] {
        calls.push(Call { address: "10.1.0.3", path: "/own", ..Call::http(80, host) });
    }
    check(
        &yaml,
        &sidecar("10.0.0.1", "a"),
        &calls,
        expect![[r#"
        http Plaintext alias.default:80/ -> 0.0.0.0_80 80 web.default.svc.cluster.local:80 default outbound|80||web.default.svc.cluster.local
        http Plaintext alias.default:81/ -> 10.1.0.3_81 web.default.svc.cluster.local:81 web.default.svc.cluster.local:81 default outbound|81||web.default.svc.cluster.local
        http Own alias.default:81/ -> 10.1.0.3_81 outbound|81||web.default.svc.cluster.local
        tcp Plaintext alias.default:81/ -> 10.1.0.3_81 outbound|81||web.default.svc.cluster.local
        tcp Plaintext alias.default:82/ -> 10.1.0.3_82 outbound|82||web.default.svc.cluster.local
        tcp Own alias.default:83/ -> 10.1.0.3_83 outbound|83||web.default.svc.cluster.local
        http Own alias.default:84/ -> 10.1.0.3_84 outbound|84||web.default.svc.cluster.local
        http Plaintext alias.default.svc.cluster.local:80/own -> 0.0.0.0_80 80 alias.default.svc.cluster.local:80 own outbound|80||web.default.svc.cluster.local
        http Plaintext alias.default:80/own -> 0.0.0.0_80 80 web.default.svc.cluster.local:80 default outbound|80||web.default.svc.cluster.local
        http Plaintext web.default:80/own -> 0.0.0.0_80 80 web.default.svc.cluster.local:80 default outbound|80||web.default.svc.cluster.local
    "#]],
    );
}

#[test]
fn what_nobody_declared_goes_on_or_not() {
    let yaml = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: default}
spec:
  hosts: [out.example.com]
  addresses: [192.0.2.1]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 82, name: tcp, protocol: TCP}, {number: 83, name: tls, protocol: TLS}]
";
    let calls = [
        Call::http(80, "new.example.com"),
        Call { tls: Tls::Own, ..Call::http(80, "new.example.com") },
        Call { http: false, ..Call::http(82, "") },
        Call { http: false, tls: Tls::Own, ..Call::http(83, "new.example.com") },
        Call::http(8080, "new.example.com"),
    ];
    let proxy = sidecar("10.0.0.1", "a");
    let only = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}";
    check_in_mesh(
        yaml,
        only,
        &proxy,
        &calls,
        expect![[r#"
        http Plaintext new.example.com:80/ -> 0.0.0.0_80 80 block_all block_all
        http Own new.example.com:80/ -> 0.0.0.0_80 PassthroughFilterChain BlackHoleCluster
        tcp Plaintext :82/ -> virtualOutbound virtualOutbound-catchall-tcp BlackHoleCluster
        tcp Own new.example.com:83/ -> virtualOutbound virtualOutbound-catchall-tcp BlackHoleCluster
        http Plaintext new.example.com:8080/ -> virtualOutbound virtualOutbound-catchall-tcp BlackHoleCluster
    "#]],
    );
    check(
        yaml,
        &proxy,
        &calls,
        expect![[r#"
        http Plaintext new.example.com:80/ -> 0.0.0.0_80 80 allow_any allow_any PassthroughCluster
        http Own new.example.com:80/ -> 0.0.0.0_80 PassthroughFilterChain PassthroughCluster
        tcp Plaintext :82/ -> virtualOutbound virtualOutbound-catchall-tcp PassthroughCluster
        tcp Own new.example.com:83/ -> virtualOutbound virtualOutbound-catchall-tcp PassthroughCluster
        http Plaintext new.example.com:8080/ -> virtualOutbound virtualOutbound-catchall-tcp PassthroughCluster
    "#]],
    );
}

#[test]
fn ranges_of_addresses_are_told_apart_by_the_longer_one() {
    let entry = |name: &str, range: &str| {
        format!(
            "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}.example.com]
  addresses: ['{range}']
  ports: [{{number: 9000, name: tcp, protocol: TCP}}]
"
        )
    };
    let at = |address| Call { address, http: false, ..Call::http(9000, "") };
    let yaml = [
        entry("wide", "10.8.0.0/16"),
        entry("narrow", "10.8.1.0/24"),
        entry("same", "10.8.1.7/24"),
    ];
    let calls = [at("10.8.0.1"), at("10.8.1.1"), at("10.9.0.1")];
    check(
        &yaml.concat(),
        &sidecar("10.0.0.1", "a"),
        &calls,
        expect![[r#"
        tcp Plaintext :9000/ -> 0.0.0.0_9000 outbound|9000||wide.example.com
        tcp Plaintext :9000/ -> 0.0.0.0_9000 outbound|9000||narrow.example.com
        tcp Plaintext :9000/ -> 0.0.0.0_9000 PassthroughFilterChain PassthroughCluster
    "#]],
    );
}

/// A Sidecar with TLS of its own on a port, under a mutual TLS mode for it.
fn own_tls(protocol: &str, tls: &str, mode: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: own, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: a}}}}
  ingress: [{{port: {{number: 9080, name: tls, protocol: {protocol}}}, defaultEndpoint: '0.0.0.0:8080', tls: {tls}}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: own, namespace: default}}
spec: {{selector: {{matchLabels: {{app: a}}}}, mtls: {{mode: STRICT}}, portLevelMtls: {{9080: {{mode: {mode}}}}}}}
"
    )
}

#[test]
fn a_sidecar_ends_tls_of_its_own_where_mutual_tls_is_off() {
    let simple = "{mode: SIMPLE, serverCertificate: c.pem, privateKey: k.pem}";
    let mutual =
        "{mode: MUTUAL, serverCertificate: c.pem, privateKey: k.pem, caCertificates: r.pem}";
    let calls =
        |http| [Tls::Plaintext, Tls::Own, Tls::Mutual].map(|tls| Call::inbound(9080, http, tls));
    let proxy = sidecar("10.0.0.1", "a");
    check(
        &own_tls("HTTPS", simple, "DISABLE"),
        &proxy,
        &calls(true),
        expect![[r#"
        http Plaintext :9080/ -> no filter chain
        http Own :9080/ -> virtualInbound 10.0.0.1_9080 inbound|http|9080 default inbound|9080||
        http Mutual :9080/ -> other TLS expected
    "#]],
    );
    check(
        &own_tls("TLS", mutual, "DISABLE"),
        &proxy,
        &calls(false),
        expect![[r#"
        tcp Plaintext :9080/ -> no filter chain
        tcp Own :9080/ -> virtualInbound 10.0.0.1_9080 inbound|9080||
        tcp Mutual :9080/ -> other TLS expected
    "#]],
    );
    check(
        &own_tls("TLS", mutual, "STRICT"),
        &proxy,
        &calls(false),
        expect![[r#"
        tcp Plaintext :9080/ -> no filter chain
        tcp Own :9080/ -> other TLS expected
        tcp Mutual :9080/ -> virtualInbound 10.0.0.1_9080 inbound|9080||
    "#]],
    );
}

#[test]
fn a_port_may_differ_from_its_workload() {
    let yaml = |mode: &str, port: &str| {
        format!(
            "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: own, namespace: default}}
spec: {{selector: {{matchLabels: {{app: a}}}}, mtls: {{mode: {mode}}}, portLevelMtls: {{9000: {{mode: {port}}}}}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: own, namespace: default}}
spec:
  hosts: [own.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints: [{{address: 10.0.0.1}}]
  ports: [{{number: 8000, name: http, protocol: HTTP}}]
"
        )
    };
    let calls: Vec<Call<'_>> = [8000, 9000]
        .into_iter()
        .flat_map(|port| [Tls::Plaintext, Tls::Mutual].map(|tls| Call::inbound(port, true, tls)))
        .collect();
    let proxy = sidecar("10.0.0.1", "a");
    check(
        &yaml("STRICT", "DISABLE"),
        &proxy,
        &calls,
        expect![[r#"
        http Plaintext :8000/ -> no filter chain
        http Mutual :8000/ -> virtualInbound 0.0.0.0_8000 inbound|http|8000 default inbound|8000||
        http Plaintext :9000/ -> virtualInbound virtualInbound-catchall-http inbound|http|0 default InboundPassthroughCluster
        http Mutual :9000/ -> virtualInbound virtualInbound InboundPassthroughCluster
    "#]],
    );
    check(
        &yaml("DISABLE", "STRICT"),
        &proxy,
        &calls,
        expect![[r#"
        http Plaintext :8000/ -> virtualInbound 0.0.0.0_8000 inbound|http|8000 default inbound|8000||
        http Mutual :8000/ -> not HTTP
        http Plaintext :9000/ -> no filter chain
        http Mutual :9000/ -> virtualInbound virtualInbound-catchall-http inbound|http|0 default InboundPassthroughCluster
    "#]],
    );
}

/// Services in two namespaces, and rules of both.
const RULES: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: prod}
spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: prod}
spec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wide, namespace: prod, creationTimestamp: '2020-01-01T00:00:00Z'}
spec: {hosts: ['*.prod.svc.cluster.local'], http: [{name: wide, route: [{destination: {host: web}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: narrow, namespace: shop, creationTimestamp: '2021-01-01T00:00:00Z'}
spec: {hosts: [web.prod.svc.cluster.local], http: [{name: narrow, route: [{destination: {host: web.prod.svc.cluster.local}}]}]}
";

#[test]
fn the_most_specific_rule_counts_and_a_sidecar_narrows_the_choice() {
    let calls = ["web", "shop", "none"].map(|name| format!("{name}.prod.svc.cluster.local"));
    let calls: Vec<Call<'_>> = calls.iter().map(|host| Call::http(80, host)).collect();
    check(
        RULES,
        &client("shop"),
        &calls,
        expect![[r#"
        http Plaintext web.prod.svc.cluster.local:80/ -> 0.0.0.0_80 80 web.prod.svc.cluster.local:80 narrow outbound|80||web.prod.svc.cluster.local
        http Plaintext shop.prod.svc.cluster.local:80/ -> 0.0.0.0_80 80 shop.prod.svc.cluster.local:80 wide outbound|80||web.prod.svc.cluster.local
        http Plaintext none.prod.svc.cluster.local:80/ -> 0.0.0.0_80 80 allow_any allow_any PassthroughCluster
    "#]],
    );
    let narrowed = "
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: own, namespace: shop}
spec: {egress: [{hosts: [prod/shop.prod.svc.cluster.local]}]}
";
    check(
        &format!("{RULES}{narrowed}"),
        &client("shop"),
        &calls,
        expect![[r#"
        http Plaintext web.prod.svc.cluster.local:80/ -> 0.0.0.0_80 80 allow_any allow_any PassthroughCluster
        http Plaintext shop.prod.svc.cluster.local:80/ -> 0.0.0.0_80 80 shop.prod.svc.cluster.local:80 wide outbound|80||web.prod.svc.cluster.local
        http Plaintext none.prod.svc.cluster.local:80/ -> 0.0.0.0_80 80 allow_any allow_any PassthroughCluster
    "#]],
    );
}

#[test]
fn the_mesh_limits_who_sees_service_entries() {
    let entry = |name: &str, namespace: &str, export: &str| {
        format!(
            "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{hosts: [{name}.com], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: DNS, {export}}}
"
        )
    };
    let namespace = |name: &str, labels: &str| {
        format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {labels}}}\n"
        )
    };
    let yaml = [
        namespace("shared", "{tier: shared}"),
        namespace("hidden", "{tier: hidden}"),
        entry("public", "shared", ""),
        entry("hidden", "hidden", "exportTo: ['*']"),
        entry("foreign", "other", "exportTo: ['*']"),
        entry("own", "default", "exportTo: ['*']"),
        entry("lent", "default", "exportTo: [other]"),
    ];
    let rules = "defaultVisibility: NAMESPACE, policies: [{visibility: PUBLIC, matchingRules: [{namespaceSelector: {matchLabels: {tier: shared}}}]}, {visibility: NONE, matchingRules: [{namespaceSelector: {matchExpressions: [{key: tier, operator: Exists}]}}]}]";
    let calls = ["public.com", "hidden.com", "foreign.com", "own.com", "lent.com"]
        .map(|host| Call::http(80, host));
    check_in_mesh(
        &yaml.concat(),
        &format!("{{serviceEntryVisibility: {{applyToSidecars: true, {rules}}}}}"),
        &sidecar("10.0.0.1", "a"),
        &calls,
        expect![[r#"
            http Plaintext public.com:80/ -> 0.0.0.0_80 80 public.com:80 default outbound|80||public.com
            http Plaintext hidden.com:80/ -> 0.0.0.0_80 80 allow_any allow_any PassthroughCluster
            http Plaintext foreign.com:80/ -> 0.0.0.0_80 80 allow_any allow_any PassthroughCluster
            http Plaintext own.com:80/ -> 0.0.0.0_80 80 own.com:80 default outbound|80||own.com
            http Plaintext lent.com:80/ -> 0.0.0.0_80 80 allow_any allow_any PassthroughCluster
        "#]],
    );
    check_in_mesh(
        &yaml.concat(),
        &format!("{{serviceEntryVisibility: {{{rules}}}}}"),
        &sidecar("10.0.0.1", "a"),
        &calls,
        expect![[r#"
            http Plaintext public.com:80/ -> 0.0.0.0_80 80 public.com:80 default outbound|80||public.com
            http Plaintext hidden.com:80/ -> 0.0.0.0_80 80 hidden.com:80 default outbound|80||hidden.com
            http Plaintext foreign.com:80/ -> 0.0.0.0_80 80 foreign.com:80 default outbound|80||foreign.com
            http Plaintext own.com:80/ -> 0.0.0.0_80 80 own.com:80 default outbound|80||own.com
            http Plaintext lent.com:80/ -> 0.0.0.0_80 80 allow_any allow_any PassthroughCluster
        "#]],
    );
}
