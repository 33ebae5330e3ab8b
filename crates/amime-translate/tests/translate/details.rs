//! Details that are easily missed, each compared with upstream's control plane.

use serde_json::{Value, json};

use crate::support::{
    cluster, dump, dump_in_mesh, gateway, json_of, list, listeners_summary, routes, sidecar, text,
};

/// A service on one port, with a pod behind it.
fn service(port: &str) -> String {
    format!(
        r"
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec: {{clusterIP: 10.1.0.1, selector: {{app: web}}, ports: [{port}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web-1, namespace: default, labels: {{app: web, version: v1, security.istio.io/tlsMode: istio}}}}
spec: {{serviceAccountName: web, containers: [{{name: web}}]}}
status: {{podIP: 10.0.0.1, phase: Running}}
---
"
    )
}

fn rule(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: web, namespace: default}}\nspec: {{host: web, {spec}}}\n---\n"
    )
}

/// A proxy that does not say which extensions it has.
fn silent(mut proxy: Value) -> Value {
    proxy.as_object_mut().expect("a proxy").remove("extensions");
    proxy
}

fn listener(dump: &amime_translate::Dump, name: &str) -> Value {
    let found = dump.listeners.iter().find(|listener| listener.name == name);
    json_of(found.unwrap_or_else(|| panic!("no listener {name}")))
}

fn chain_filters(listener: &Value) -> Vec<&Value> {
    let chains = list(listener, "filter_chains").iter();
    chains.flat_map(|chain| list(chain, "filters")).collect()
}

const HTTP_80: &str = "{name: http, port: 80, targetPort: 8080}";
const GATEWAY: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers:
";

#[test]
fn only_the_edge_believes_what_the_connection_says_about_its_client() {
    let believes = |listener: &Value| {
        chain_filters(listener)
            .into_iter()
            .find_map(|filter| filter["typed_config"]["use_remote_address"].as_bool())
    };
    let own = dump(&service(HTTP_80), &sidecar("10.0.0.9", "client"));
    assert_eq!(believes(&listener(&own, "0.0.0.0_80")), Some(false));
    let server = "  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}\n";
    let edge = dump(&format!("{GATEWAY}{server}"), &gateway());
    assert_eq!(believes(&listener(&edge, "0.0.0.0_80")), Some(true));
}

#[test]
fn a_datagram_port_is_served_over_tcp_as_well() {
    let port = "{name: dns, port: 53, protocol: UDP}";
    let dump = dump(&service(port), &sidecar("10.0.0.1", "web"));
    let summary = listeners_summary(&dump);
    assert!(
        summary.contains(
            r#"{"destination_port":53,"transport_protocol":"raw_buffer"} tcp inbound|53||"#
        ),
        "{summary}"
    );
}

fn ingress(port: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
         metadata: {{name: own, namespace: default}}\n\
         spec: {{workloadSelector: {{labels: {{app: web}}}}, ingress: [{{port: {port}{more}}}]}}\n---\n"
    )
}

#[test]
fn declared_listeners_match_their_port_and_are_named_after_the_sidecar() {
    let port = "{number: 8080, name: http, protocol: HTTP}, captureMode: NONE";
    let yaml =
        format!("{}{}", service(HTTP_80), ingress(port, ", defaultEndpoint: '127.0.0.1:9090'"));
    let dump = dump(&yaml, &sidecar("10.0.0.1", "web"));
    let own = listener(&dump, "10.0.0.1_8080");
    let ports: Vec<&Value> = list(&own, "filter_chains")
        .iter()
        .map(|chain| &chain["filter_chain_match"]["destination_port"])
        .collect();
    assert_eq!(ports, [&json!(8080), &json!(8080)]);
    assert!(own.to_string().contains("own.default:8080/*"), "{own}");
}

#[test]
fn tls_of_a_declared_listener_ends_only_where_mutual_tls_is_off() {
    let port = "{number: 8443, name: https, protocol: HTTPS}";
    let tls = ", tls: {mode: SIMPLE, serverCertificate: /c, privateKey: /k}";
    let own = ingress(port, tls);
    let inbound = |policy: &str| {
        let mut dump =
            dump(&format!("{}{own}{policy}", service(HTTP_80)), &sidecar("10.0.0.1", "web"));
        dump.listeners.retain(|listener| listener.name == "virtualInbound");
        listeners_summary(&dump)
    };
    let permissive = inbound("");
    assert!(
        permissive
            .contains(r#"{"destination_port":8443,"transport_protocol":"tls"} tcp inbound|8443||"#),
        "{permissive}"
    );
    let off = inbound(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {name: plain, namespace: default}\nspec: {mtls: {mode: DISABLE}}\n",
    );
    assert!(
        off.contains(
            r#"{"destination_port":8443,"transport_protocol":"tls"} tls http inbound|8443||"#
        ),
        "{off}"
    );
}

#[test]
fn namespaces_do_not_narrow_what_passes_by_its_own_name() {
    let server = "  - {port: {number: 15443, name: tls, protocol: TLS}, hosts: [default/*], \
                  tls: {mode: AUTO_PASSTHROUGH}}\n";
    let dump = dump(&format!("{}{GATEWAY}{server}", service(HTTP_80)), &gateway());
    let names = &listener(&dump, "0.0.0.0_15443")["filter_chains"][0]["filter_chain_match"];
    assert_eq!(names["server_names"], json!(["outbound_.80_._.web.default.svc.cluster.local"]));
}

#[test]
fn an_abort_without_a_share_aborts_nothing() {
    let route = "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
                 metadata: {name: web, namespace: default}\n\
                 spec: {hosts: [web], http: [{fault: {abort: {httpStatus: 500}}, \
                 route: [{destination: {host: web}}]}]}\n";
    let yaml = format!("{}{route}", service(HTTP_80));
    let routes = routes(&dump(&yaml, &sidecar("10.0.0.9", "client")), "80").to_string();
    assert!(routes.contains(r#""http_status":500"#), "{routes}");
    assert!(!routes.contains("percentage"), "{routes}");
}

#[test]
fn statistics_of_connections_have_the_names_of_the_mesh() {
    let mesh = "{outboundClusterStatName: 'to_%SERVICE%_%SERVICE_PORT%', \
                inboundClusterStatName: 'at_%SERVICE_NAME%_%SERVICE_PORT_NAME%'}";
    let yaml = service("{name: tcp-db, port: 9000}");
    let dump = dump_in_mesh(&yaml, mesh, &sidecar("10.0.0.1", "web"));
    let prefixes = |name: &str| {
        let listener = listener(&dump, name);
        let filters = chain_filters(&listener).into_iter();
        let own = filters.filter(|filter| text(filter, "name").ends_with("tcp_proxy"));
        own.map(|filter| text(&filter["typed_config"], "stat_prefix").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(prefixes("10.1.0.1_9000"), ["to_web.default_9000"]);
    assert!(prefixes("virtualInbound").contains(&"at_web_tcp-db".to_owned()));
}

#[test]
fn the_case_of_headers_matters_to_http_only() {
    let mesh = "{defaultConfig: {proxyHeaders: {preserveHttp1HeaderCase: true}}}";
    let yaml = service("{name: tcp-db, port: 9000}, {name: http, port: 80}");
    let dump = dump_in_mesh(&yaml, mesh, &sidecar("10.0.0.9", "client"));
    let options = |port: u32| {
        let name = format!("outbound|{port}||web.default.svc.cluster.local");
        cluster(&dump, &name).get("typed_extension_protocol_options").is_some()
    };
    assert_eq!((options(80), options(9000)), (true, false));
}

#[test]
fn subsets_of_a_port_that_passes_through_pass_through() {
    let policy = "trafficPolicy: {portLevelSettings: [{port: {number: 80}, \
                  loadBalancer: {simple: PASSTHROUGH}}]}, subsets: [{name: v1, labels: {version: v1}, \
                  trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}]";
    let dump =
        dump(&format!("{}{}", service(HTTP_80), rule(policy)), &sidecar("10.0.0.9", "client"));
    let subset = cluster(&dump, "outbound|80|v1|web.default.svc.cluster.local");
    assert_eq!(
        (text(&subset, "type"), text(&subset, "lb_policy")),
        ("ORIGINAL_DST", "CLUSTER_PROVIDED")
    );
}

#[test]
fn settings_of_a_subsets_port_leave_nothing_of_the_mesh() {
    let mesh = "{defaultTrafficPolicy: {connectionPool: {tcp: {connectTimeout: 4s}}}}";
    let policy = "subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, \
                  trafficPolicy: {portLevelSettings: [{port: {number: 80}, \
                  outlierDetection: {consecutive5xxErrors: 3}}]}}]";
    let yaml = format!("{}{}", service(HTTP_80), rule(policy));
    let dump = dump_in_mesh(&yaml, mesh, &sidecar("10.0.0.9", "client"));
    let limit = |subset: &str| {
        let name = format!("outbound|80|{subset}|web.default.svc.cluster.local");
        text(&cluster(&dump, &name), "connect_timeout").to_owned()
    };
    assert_eq!(["", "v1", "v2"].map(limit), ["4s", "4s", "10s"]);
}

#[test]
fn one_name_stands_behind_a_service_that_is_resolved_in_turn() {
    let entry = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: default}
spec:
  hosts: [out.example.com]
  resolution: DNS_ROUND_ROBIN
  ports: [{number: 80, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: default}
spec: {address: vm.example.com, labels: {app: web}}
";
    let dump = dump(&format!("{}{entry}", service(HTTP_80)), &sidecar("10.0.0.9", "client"));
    let own = cluster(&dump, "outbound|80||out.example.com");
    let places = list(&own["load_assignment"], "endpoints");
    let addresses: Vec<&Value> = places
        .iter()
        .flat_map(|place| list(place, "lb_endpoints"))
        .map(|endpoint| &endpoint["endpoint"]["address"]["socket_address"]["address"])
        .collect();
    assert_eq!(addresses, ["10.0.0.1"]);
}

#[test]
fn endpoints_that_drain_keep_their_sessions() {
    let labelled = service(HTTP_80).replacen(
        "namespace: default}",
        "namespace: default, labels: {istio.io/persistent-session: c}}",
        1,
    );
    let statuses = |yaml: &str| {
        let dump = dump(yaml, &sidecar("10.0.0.9", "client"));
        let common =
            &cluster(&dump, "outbound|80||web.default.svc.cluster.local")["common_lb_config"];
        list(&common["override_host_status"], "statuses").len()
    };
    assert_eq!((statuses(&labelled), statuses(&service(HTTP_80))), (4, 0));
}

#[test]
fn the_receiving_side_has_room_for_retries_too() {
    let policy = "trafficPolicy: {retryBudget: {percent: 25, minRetryConcurrency: 5}}";
    let dump = dump(&format!("{}{}", service(HTTP_80), rule(policy)), &sidecar("10.0.0.1", "web"));
    let thresholds = &cluster(&dump, "inbound|8080||")["circuit_breakers"]["thresholds"][0];
    assert_eq!(thresholds["retry_budget"]["min_retry_concurrency"], json!(5));
}

#[test]
fn mongodb_is_counted_by_proxies_that_can() {
    let yaml = service("{name: mongo, port: 27017}");
    let counts = |proxy: &Value| {
        let dump = dump(&yaml, proxy);
        let listener = listener(&dump, "10.1.0.1_27017");
        chain_filters(&listener).iter().any(|filter| text(filter, "name").ends_with("mongo_proxy"))
    };
    let own = sidecar("10.0.0.9", "client");
    assert_eq!((counts(&silent(own.clone())), counts(&own)), (true, false));
}

#[test]
fn endpoints_are_in_the_only_cluster_if_the_proxy_names_none() {
    let mut proxy = sidecar("10.0.0.9", "client");
    proxy["metadata"].as_object_mut().expect("metadata").remove("CLUSTER_ID");
    let dump = dump(&service(HTTP_80), &proxy);
    let endpoints = dump.endpoints.iter().map(|endpoint| json_of(endpoint).to_string());
    assert!(
        endpoints
            .into_iter()
            .all(|text| text.contains(";;Kubernetes") || text.contains(";v1;Kubernetes"))
    );
}

#[test]
fn rules_that_are_not_applied_yet_are_younger_than_what_is_there() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {name: a, namespace: default}\n\
         spec: {hosts: [a.example.com], addresses: [10.1.0.1], resolution: NONE, \
         ports: [{number: 9000, name: tcp, protocol: TCP}]}\n";
    let yaml = format!("{}{entry}", service("{name: tcp-db, port: 9000}"));
    let dump = dump(&yaml, &sidecar("10.0.0.9", "client"));
    let summary = listener(&dump, "10.1.0.1_9000").to_string();
    assert!(summary.contains("outbound|9000||web.default.svc.cluster.local"), "{summary}");
    assert!(!summary.contains("a.example.com"), "{summary}");
}
