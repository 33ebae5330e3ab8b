//! Statistics and what operators read of them, on real traffic.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use crate::running::{Running, ask, within_patience};

/// Answers 503 under `/bad` and 200 elsewhere, one connection a request.
fn backend() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut lines = BufReader::new(stream.try_clone().expect("a copy")).lines();
            let first = lines.next().and_then(Result::ok).unwrap_or_default();
            while lines.next().and_then(Result::ok).is_some_and(|line| !line.is_empty()) {}
            let status = if first.contains(" /bad") { "503 Busy" } else { "200 OK" };
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
            // The client may have left.
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

fn bootstrap(port: u16) -> String {
    format!(
        r#"
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
static_resources:
  listeners:
  - name: main
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          route_config:
            name: inline
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: /bad}}
                route: {{cluster: app, retry_policy: {{retry_on: 5xx, num_retries: 2, retry_back_off: {{base_interval: 0.001s, max_interval: 0.002s}}}}}}
              - match: {{prefix: /dead}}
                route: {{cluster: dead}}
              - match: {{path: /direct}}
                direct_response: {{status: 418}}
              - match: {{path: /away}}
                redirect: {{path_redirect: /there}}
              - match: {{prefix: /ok}}
                route: {{cluster: app}}
          http_filters:
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: app
    type: STATIC
    load_assignment: {{cluster_name: app, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}
  - name: dead
    type: STATIC
    load_assignment: {{cluster_name: dead, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}}}}}]}}]}}
"#
    )
}

#[test]
fn stats_have_envoys_names_and_values() {
    let dir = tempfile::tempdir().expect("directory");
    let (_running, admin) = Running::start(dir.path(), &bootstrap(backend()));
    let listeners = ask(&admin, "GET", "/listeners");
    let address = listeners.lines().find_map(|line| line.strip_prefix("main::"));
    let address = address.expect("listens").to_owned();
    let statuses = ["/ok", "/ok", "/bad", "/dead", "/direct", "/away", "/none"].map(|path| {
        let answer = ask(&address, "GET", path);
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    });
    assert_eq!(statuses, ["200", "200", "503", "503", "418", "301", "404"]);
    // What Envoy 1.40 counts for the same requests.
    let want = [
        ("cluster.app.upstream_rq_200", 2),
        ("cluster.app.upstream_rq_2xx", 2),
        ("cluster.app.upstream_rq_503", 1),
        ("cluster.app.upstream_rq_5xx", 1),
        ("cluster.app.upstream_rq_completed", 3),
        ("cluster.app.upstream_rq_total", 5),
        ("cluster.app.upstream_rq_retry", 2),
        ("cluster.app.upstream_rq_retry_limit_exceeded", 1),
        ("cluster.app.retry.upstream_rq_503", 2),
        ("cluster.app.retry.upstream_rq_5xx", 2),
        ("cluster.app.membership_total", 1),
        ("cluster.app.membership_healthy", 1),
        ("cluster.dead.upstream_rq_503", 1),
        ("cluster.dead.upstream_cx_connect_fail", 1),
        ("http.ingress.downstream_rq_total", 7),
        ("http.ingress.downstream_rq_completed", 7),
        ("http.ingress.downstream_rq_2xx", 2),
        ("http.ingress.downstream_rq_3xx", 1),
        ("http.ingress.downstream_rq_4xx", 2),
        ("http.ingress.downstream_rq_5xx", 2),
        ("http.ingress.rq_total", 7),
        ("http.ingress.rq_direct_response", 2),
        ("http.ingress.no_route", 1),
        ("cluster_manager.cluster_added", 2),
        ("listener_manager.listener_added", 1),
        ("listener_manager.listener_create_success", 1),
    ];
    until_counted(&admin, &want);
    let metrics = ask(&admin, "GET", "/stats/prometheus");
    let retries =
        "envoy_cluster_retry_upstream_rq{envoy_response_code=\"503\",envoy_cluster_name=\"app\"} 2";
    assert!(metrics.contains(retries), "{metrics}");
    // Routes that stand in the listener are shown as Envoy shows them.
    let dump = ask(&admin, "GET", "/config_dump?resource=static_route_configs");
    assert!(
        dump.contains("RoutesConfigDump.StaticRouteConfig") && dump.contains("inline"),
        "{dump}"
    );
}

/// A request is counted when its end is recorded, which the client does not
/// wait for.
fn until_counted(admin: &str, want: &[(&str, u64)]) {
    let last = std::cell::RefCell::new(String::new());
    let counted = || {
        let stats = ask(admin, "GET", "/stats");
        let missing = want.iter().map(|(name, value)| format!("{name}: {value}"));
        let missing: Vec<_> =
            missing.filter(|line| !stats.lines().any(|have| have == line)).collect();
        let done = missing.is_empty().then_some(());
        last.replace(format!("{missing:#?}"));
        done
    };
    if !within_patience(counted) {
        panic!("never counted: {} in {}", last.borrow(), ask(admin, "GET", "/stats?usedonly"));
    }
}
