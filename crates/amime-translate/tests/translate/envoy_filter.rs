//! What patches of users change in what is generated.

use std::fmt::Write;

use amime_translate::Dump;
use expect_test::{Expect, expect};
use serde_json::{Value, json};

use crate::support::{dump, gateway, json_of, list, sidecar, text};

const WEB: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80}, {name: tcp, port: 90}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default, labels: {app: web}}
spec: {containers: []}
status: {podIP: 10.0.0.2}
";

/// An envoy filter with these patches and these other fields of its spec.
fn filter(name: &str, namespace: &str, spec: &str, patches: &str) -> String {
    let patches: String = patches.trim().lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}  configPatches:\n{patches}"
    )
}

fn patched(patches: &str) -> String {
    format!("{WEB}{}", filter("p", "default", "", patches))
}

#[track_caller]
fn check(yaml: &str, proxy: &Value, show: impl Fn(&Dump) -> String, want: Expect) {
    want.assert_eq(&show(&dump(yaml, proxy)));
}

/// A sidecar that does not say which extensions it has.
fn open_sidecar() -> Value {
    let mut proxy = sidecar("10.0.0.2", "web");
    proxy.as_object_mut().expect("an object").remove("extensions");
    proxy["metadata"]["ISTIO_VERSION"] = json!("1.28.1");
    proxy
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// One line a chain with a filter that is named in the patch tests, `x…`.
fn filters(dump: &Dump) -> String {
    let mut out = String::new();
    for listener in dump.listeners.iter().map(json_of) {
        let inspectors = list(&listener, "listener_filters").iter().map(|f| text(f, "name"));
        let inspectors: Vec<&str> = inspectors.map(last_part).collect();
        let chains = list(&listener, "filter_chains").iter();
        for chain in chains.chain(listener.get("default_filter_chain")) {
            let mut names = Vec::new();
            for filter in list(chain, "filters") {
                names.push(last_part(text(filter, "name")).to_owned());
                let inner = list(&filter["typed_config"], "http_filters").iter();
                names.extend(inner.map(|f| format!("/{}", last_part(text(f, "name")))));
            }
            if names.iter().any(|n| n.trim_start_matches('/').starts_with('x'))
                || inspectors.iter().any(|name| name.starts_with('x'))
            {
                let matched = chain["filter_chain_match"]["destination_port"].as_u64().unwrap_or(0);
                let name = text(&listener, "name");
                let (inspectors, names) = (inspectors.join(" "), names.join(" "));
                writeln!(out, "{name}:{matched} [{inspectors}] {names}").expect("text");
            }
        }
    }
    out
}

const LUA: &str =
    "typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}";

#[test]
fn http_filters_go_before_and_after_others() {
    let at = |side: &str, operation: &str, anchor: &str, name: &str| {
        format!(
            "- applyTo: HTTP_FILTER\n  match: {{context: {side}, listener: {{portNumber: 80, filterChain: {{filter: {{name: envoy.filters.network.http_connection_manager{anchor}}}}}}}}}\n  patch: {{operation: {operation}, value: {{name: {name}, {LUA}}}}}\n"
        )
    };
    let router = ", subFilter: {name: envoy.filters.http.router}";
    let fault = ", subFilter: {name: envoy.filters.http.fault}";
    check(
        &patched(
            &[
                at("SIDECAR_OUTBOUND", "INSERT_BEFORE", router, "x1"),
                at("SIDECAR_OUTBOUND", "INSERT_AFTER", fault, "x2"),
                at("SIDECAR_OUTBOUND", "INSERT_FIRST", "", "x3"),
                at("SIDECAR_OUTBOUND", "REPLACE", fault, "x4"),
                at("SIDECAR_INBOUND", "INSERT_BEFORE", router, "x5"),
                at("GATEWAY", "INSERT_BEFORE", router, "x6"),
            ]
            .concat(),
        ),
        &open_sidecar(),
        filters,
        expect![[r#"
            0.0.0.0_80:0 [http_inspector] http_connection_manager /x3 /metadata_exchange /grpc_stats /alpn /x4 /x2 /cors /stats /x1 /router
            virtualInbound:80 [original_dst tls_inspector http_inspector] metadata_exchange http_connection_manager /metadata_exchange /grpc_stats /fault /cors /stats /x5 /router
            virtualInbound:80 [original_dst tls_inspector http_inspector] metadata_exchange http_connection_manager /metadata_exchange /grpc_stats /fault /cors /stats /x5 /router
        "#]],
    );
}

#[test]
fn network_and_listener_filters_are_patched() {
    check(
        &patched(
            r"
- applyTo: NETWORK_FILTER
  match: {context: SIDECAR_OUTBOUND, listener: {name: 10.1.0.1_90, filterChain: {filter: {name: envoy.filters.network.tcp_proxy}}}}
  patch: {operation: INSERT_BEFORE, value: {name: x1, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}}}
- applyTo: LISTENER_FILTER
  match: {context: SIDECAR_INBOUND, listener: {listenerFilter: envoy.filters.listener.tls_inspector}}
  patch: {operation: INSERT_AFTER, value: {name: x2}}
- applyTo: FILTER_CHAIN
  match: {context: SIDECAR_INBOUND, listener: {filterChain: {transportProtocol: raw_buffer, destinationPort: 80}}}
  patch: {operation: REMOVE}
",
        ),
        &open_sidecar(),
        filters,
        expect![[r#"
            10.1.0.1_90:0 [] stats x1 tcp_proxy
            virtualInbound:15006 [original_dst tls_inspector x2 http_inspector] metadata_exchange stats tcp_proxy
            virtualInbound:0 [original_dst tls_inspector x2 http_inspector] metadata_exchange http_connection_manager /metadata_exchange /grpc_stats /fault /cors /stats /router
            virtualInbound:0 [original_dst tls_inspector x2 http_inspector] metadata_exchange http_connection_manager /metadata_exchange /grpc_stats /fault /cors /stats /router
            virtualInbound:0 [original_dst tls_inspector x2 http_inspector] metadata_exchange stats tcp_proxy
            virtualInbound:0 [original_dst tls_inspector x2 http_inspector] metadata_exchange stats tcp_proxy
            virtualInbound:0 [original_dst tls_inspector x2 http_inspector] metadata_exchange stats tcp_proxy
            virtualInbound:80 [original_dst tls_inspector x2 http_inspector] metadata_exchange http_connection_manager /metadata_exchange /grpc_stats /fault /cors /stats /router
            virtualInbound:90 [original_dst tls_inspector x2 http_inspector] metadata_exchange stats tcp_proxy
            virtualInbound:90 [original_dst tls_inspector x2 http_inspector] metadata_exchange stats tcp_proxy
            virtualInbound:90 [original_dst tls_inspector x2 http_inspector] metadata_exchange stats tcp_proxy
        "#]],
    );
}

fn cluster_names(dump: &Dump) -> String {
    let line = |c: &Value| {
        format!("{} {} {}\n", text(c, "name"), text(c, "connect_timeout"), text(c, "lb_policy"))
    };
    dump.clusters.iter().map(json_of).map(|cluster| line(&cluster)).collect()
}

#[test]
fn clusters_are_merged_removed_and_added() {
    check(
        &patched(
            r"
- applyTo: CLUSTER
  match: {context: SIDECAR_OUTBOUND, cluster: {service: web.default.svc.cluster.local, portNumber: 80}}
  patch: {operation: MERGE, value: {connect_timeout: 0.2s, lb_policy: RANDOM}}
- applyTo: CLUSTER
  match: {cluster: {name: outbound|90||web.default.svc.cluster.local}}
  patch: {operation: REMOVE}
- applyTo: CLUSTER
  match: {context: SIDECAR_INBOUND, cluster: {service: web.default.svc.cluster.local}}
  patch: {operation: MERGE, value: {connect_timeout: 3s}}
- applyTo: CLUSTER
  patch: {operation: ADD, value: {name: extra, type: STRICT_DNS, connect_timeout: 1s}}
",
        ),
        &open_sidecar(),
        cluster_names,
        expect![[r#"
            BlackHoleCluster 10s 
            InboundPassthroughCluster 10s CLUSTER_PROVIDED
            PassthroughCluster 10s CLUSTER_PROVIDED
            extra 1s 
            inbound|80|| 3s CLUSTER_PROVIDED
            inbound|90|| 3s CLUSTER_PROVIDED
            outbound|80||web.default.svc.cluster.local 0.200s RANDOM
        "#]],
    );
}

#[test]
fn a_transport_socket_is_merged_where_it_belongs() {
    let yaml = patched(
        r"
- applyTo: CLUSTER
  match: {cluster: {service: web.default.svc.cluster.local}}
  patch:
    operation: MERGE
    value:
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          max_session_keys: 7
",
    );
    let strict = "
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: default}
spec: {host: web, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}
";
    for (more, path) in
        [("", "/transport_socket_matches/0/transport_socket"), (strict, "/transport_socket")]
    {
        let dump = dump(&format!("{yaml}{more}"), &open_sidecar());
        let cluster = crate::support::cluster(&dump, "outbound|80||web.default.svc.cluster.local");
        let config = cluster.pointer(path).map(|socket| &socket["typed_config"]);
        let config = config.unwrap_or_else(|| panic!("{path} in {cluster}"));
        assert_eq!(config["max_session_keys"], 7, "{config}");
        assert_eq!(config["sni"], "outbound_.80_._.web.default.svc.cluster.local");
    }
}

fn virtual_hosts(dump: &Dump) -> String {
    let mut out = String::new();
    for routes in dump.routes.iter().map(json_of) {
        writeln!(out, "{}", text(&routes, "name")).expect("text");
        for host in list(&routes, "virtual_hosts") {
            let names: Vec<&str> =
                list(host, "routes").iter().map(|route| text(route, "name")).collect();
            writeln!(out, "  {} [{}]", text(host, "name"), names.join(" ")).expect("text");
        }
    }
    out
}

const NAMED: &str = r"
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: default}
spec:
  hosts: [web]
  http:
  - {name: old, match: [{uri: {prefix: /old}}], redirect: {uri: /new}}
  - {name: rest, route: [{destination: {host: web}}]}
";

#[test]
fn virtual_hosts_and_routes_are_patched() {
    check(
        &format!(
            "{NAMED}---{}",
            patched(
                r"
- applyTo: HTTP_ROUTE
  match: {routeConfiguration: {vhost: {name: 'web.default.svc.cluster.local:80', route: {action: ROUTE}}}}
  patch: {operation: INSERT_AFTER, value: {name: x1, match: {prefix: /x1}, direct_response: {status: 200}}}
- applyTo: HTTP_ROUTE
  match: {routeConfiguration: {vhost: {domainName: web.default, route: {name: rest}}}}
  patch: {operation: INSERT_FIRST, value: {name: x2, match: {prefix: /x2}, direct_response: {status: 200}}}
- applyTo: HTTP_ROUTE
  match: {routeConfiguration: {portNumber: 80, vhost: {route: {name: old}}}}
  patch: {operation: REMOVE}
- applyTo: VIRTUAL_HOST
  match: {context: SIDECAR_OUTBOUND, routeConfiguration: {name: '80'}}
  patch: {operation: ADD, value: {name: x3, domains: [x3.example.com]}}
- applyTo: VIRTUAL_HOST
  match: {routeConfiguration: {vhost: {name: allow_any}}}
  patch: {operation: REMOVE}
"
            )
        ),
        &open_sidecar(),
        virtual_hosts,
        expect![[r#"
            80
              web.default.svc.cluster.local:80 [x2 rest x1]
              x3 []
        "#]],
    );
}

#[test]
fn inbound_routes_are_patched_in_their_listener() {
    let yaml = patched(
        r"
- applyTo: HTTP_ROUTE
  match: {context: SIDECAR_INBOUND, routeConfiguration: {portNumber: 80}}
  patch: {operation: MERGE, value: {route: {timeout: 9s}}}
",
    );
    let dump = dump(&yaml, &open_sidecar());
    let inbound = dump.listeners.iter().find(|l| l.name == "virtualInbound").expect("there");
    let text = json_of(inbound).to_string();
    assert_eq!(text.matches(r#""timeout":"9s""#).count(), 2, "TLS and plaintext of port 80");
}

const SERVERS: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {hosts: [a.example.com], port: {number: 80, name: http, protocol: HTTP}}
  - {hosts: [a.example.com], port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: a}}
---
apiVersion: v1
kind: Service
metadata: {name: edge, namespace: istio-system}
spec: {clusterIP: 10.1.0.9, selector: {istio: ingressgateway}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: istio-system}
spec: {hosts: [a.example.com], gateways: [edge], http: [{name: a, route: [{destination: {host: web}}]}]}
";

#[test]
fn gateway_routes_are_found_by_port_port_name_and_gateway() {
    let route = |name: &str, matched: &str| {
        format!(
            "- applyTo: HTTP_ROUTE\n  match: {{context: GATEWAY, routeConfiguration: {{{matched}}}}}\n  patch: {{operation: ADD, value: {{name: {name}, match: {{prefix: /}}, direct_response: {{status: 200}}}}}}\n"
        )
    };
    let patches = [
        route("x1", "portNumber: 80"),
        route("x2", "portNumber: 8080"),
        route("x3", "portName: https"),
        route("x4", "gateway: istio-system/edge"),
        route("x5", "gateway: istio-system/other"),
        route("x6", "name: http.8080"),
    ];
    check(
        &format!("{SERVERS}{}", filter("p", "istio-system", "", &patches.concat())),
        &gateway(),
        virtual_hosts,
        expect![[r#"
            http.8080
              a.example.com:80 [a x1 x6]
            https.443.https.edge.istio-system
              a.example.com:443 [a x3 x4]
        "#]],
    );
}

#[test]
fn filters_apply_by_priority_then_namespace_then_name() {
    let add = |name: &str| {
        format!(
            "- applyTo: CLUSTER\n  match: {{cluster: {{name: BlackHoleCluster}}}}\n  patch: {{operation: MERGE, value: {{alt_stat_name: {name}}}}}\n"
        )
    };
    let ordered = |filters: &[String]| {
        let dump = dump(&format!("{WEB}{}", filters.concat()), &open_sidecar());
        let cluster = crate::support::cluster(&dump, "BlackHoleCluster");
        text(&cluster, "alt_stat_name").to_owned()
    };
    let of = |name: &str, ns: &str, spec: &str| filter(name, ns, spec, &add(name));
    // The last one is seen.
    assert_eq!(ordered(&[of("b", "default", ""), of("a", "default", "")]), "b");
    assert_eq!(ordered(&[of("z", "istio-system", ""), of("a", "default", "")]), "a");
    assert_eq!(ordered(&[of("z", "istio-system", "  priority: 1\n"), of("a", "default", "")]), "z");
    let other = "  workloadSelector: {labels: {app: other}}\n";
    assert_eq!(ordered(&[of("a", "default", ""), of("b", "default", other)]), "a");
    assert_eq!(ordered(&[of("a", "default", ""), of("b", "elsewhere", "")]), "a");
    let target = "  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: web}]\n";
    assert_eq!(ordered(&[of("a", "default", ""), of("b", "default", target)]), "a");
}

#[test]
fn a_patch_may_be_for_some_proxies_only() {
    let of = |proxy: &str| {
        patched(&format!(
            "- applyTo: CLUSTER\n  match: {{proxy: {proxy}, cluster: {{name: BlackHoleCluster}}}}\n  patch: {{operation: MERGE, value: {{alt_stat_name: seen}}}}\n"
        ))
    };
    for (proxy, seen) in [
        (r"{proxyVersion: '^1\.28.*'}", true),
        (r"{proxyVersion: '^1\.27.*'}", false),
        ("{metadata: {CLUSTER_ID: Kubernetes}}", true),
        ("{metadata: {CLUSTER_ID: other}}", false),
    ] {
        let dump = dump(&of(proxy), &open_sidecar());
        let cluster = crate::support::cluster(&dump, "BlackHoleCluster");
        assert_eq!(text(&cluster, "alt_stat_name") == "seen", seen, "{proxy}");
    }
}

#[test]
fn a_proxy_that_names_its_extensions_gets_no_others() {
    let patch = format!(
        "- applyTo: HTTP_FILTER\n  match: {{context: SIDECAR_OUTBOUND, listener: {{portNumber: 80, filterChain: {{filter: {{name: envoy.filters.network.http_connection_manager}}}}}}}}\n  patch: {{operation: INSERT_FIRST, value: {{name: x1, {LUA}}}}}\n"
    );
    let mut able = sidecar("10.0.0.2", "web");
    check(&patched(&patch), &able, filters, expect![[""]]);
    able["extensions"] = json!(["envoy.filters.http.router", "envoy.filters.http.lua"]);
    check(
        &patched(&patch),
        &able,
        filters,
        expect![[r#"
        0.0.0.0_80:0 [http_inspector] http_connection_manager /x1 /grpc_stats /fault /cors /router
    "#]],
    );
}

#[test]
fn extension_configurations_are_served_by_name() {
    let yaml = patched(&format!(
        "- applyTo: EXTENSION_CONFIG\n  patch: {{operation: ADD, value: {{name: script, {LUA}}}}}\n"
    ));
    let names: Vec<String> =
        dump(&yaml, &open_sidecar()).extensions.into_iter().map(|c| c.name).collect();
    assert_eq!(names, ["script"]);
}

#[test]
fn listeners_are_added_once_and_lists_replaced_if_asked() {
    let yaml = patched(
        r"
- applyTo: LISTENER
  patch: {operation: ADD, value: {name: x1, address: {socket_address: {address: 127.0.0.1, port_value: 9}}}}
- applyTo: VIRTUAL_HOST
  match: {routeConfiguration: {vhost: {name: 'web.default.svc.cluster.local:80'}}}
  patch: {operation: MERGE_AND_REPLACE_LIST, value: {domains: [only.example.com]}}
",
    );
    let dump = dump(&yaml, &open_sidecar());
    assert_eq!(dump.listeners.iter().filter(|listener| listener.name == "x1").count(), 1);
    let routes = crate::support::routes(&dump, "80");
    let host = list(&routes, "virtual_hosts").iter().find(|h| text(h, "name").starts_with("web"));
    assert_eq!(host.expect("there")["domains"], json!(["only.example.com"]));
}
