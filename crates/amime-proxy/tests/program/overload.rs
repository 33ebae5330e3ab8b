//! What the program does when it runs out of something.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use crate::running::{Running, ask, wait};

const HTTP: &str = r#"
static_resources:
  listeners:
  - name: main
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: hi}}}]}]}
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
"#;

fn bootstrap(monitors: &str, actions: &str) -> String {
    format!(
        "node: {{id: test, cluster: test}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, \
         port_value: 0}}}}}}\noverload_manager: {{refresh_interval: 0.02s, resource_monitors: \
         [{monitors}], actions: [{actions}]}}\n{HTTP}"
    )
}

fn monitor(kind: &str) -> String {
    let package = "type.googleapis.com/envoy.extensions.resource_monitors";
    format!("{{name: m, typed_config: {{\"@type\": {package}.{kind}}}}}")
}

fn action(name: &str, threshold: f64) -> String {
    format!(
        "{{name: envoy.overload_actions.{name}, triggers: [{{name: m, threshold: {{value: \
         {threshold}}}}}]}}"
    )
}

fn press(dir: &Path, pressure: &str) {
    std::fs::write(dir.join("next"), pressure).expect("written");
    std::fs::rename(dir.join("next"), dir.join("pressure")).expect("moved");
}

fn listener(admin: &str) -> String {
    let listeners = ask(admin, "GET", "/listeners");
    let line = listeners.lines().find_map(|line| line.strip_prefix("main::"));
    line.expect("the listener").to_owned()
}

fn until_stat(admin: &str, line: &str) {
    wait(line, || {
        ask(admin, "GET", "/stats").lines().any(|have| have.ends_with(line)).then_some(())
    });
}

/// A request on a connection that stays; nothing if it is closed at once.
fn keep(address: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let mut answer = [0; 4096];
    let sent = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let count = sent.and_then(|()| stream.read(&mut answer)).unwrap_or(0);
    (stream, String::from_utf8_lossy(&answer[..count]).into_owned())
}

#[test]
fn actions_begin_and_end_with_the_pressure() {
    let dir = tempfile::tempdir().expect("directory");
    press(dir.path(), "0.1");
    let file = dir.path().join("pressure");
    let injected = monitor(&format!(
        "injected_resource.v3.InjectedResourceConfig, filename: {}",
        file.display()
    ));
    let actions = [
        action("disable_http_keepalive", 0.4),
        action("stop_accepting_requests", 0.6),
        action("reject_incoming_connections", 0.8),
        action("stop_accepting_connections", 0.9),
    ];
    let (_running, admin) = Running::start(dir.path(), &bootstrap(&injected, &actions.join(", ")));
    let address = listener(&admin);
    let first = keep(&address).1;
    assert!(first.contains("200 OK") && !first.contains("connection: close"), "{first}");

    press(dir.path(), "0.5");
    until_stat(&admin, "overload.envoy.overload_actions.disable_http_keepalive.active: 1");
    wait("the last answer", || keep(&address).1.contains("connection: close").then_some(()));

    press(dir.path(), "0.7");
    wait("no requests", || keep(&address).1.ends_with("envoy overloaded").then_some(()));

    press(dir.path(), "0.85");
    wait("no connections", || keep(&address).1.is_empty().then_some(()));
    until_stat(&admin, "m.pressure: 85");

    press(dir.path(), "0.95");
    until_stat(&admin, "overload.envoy.overload_actions.stop_accepting_connections.active: 1");
    // It waits with the kernel until there is room again.
    let waiting = std::thread::spawn(move || keep(&address).1);
    press(dir.path(), "0.1");
    let answer = waiting.join().expect("no panic");
    // One that came before all workers knew was rejected.
    assert!(answer.is_empty() || answer.contains("200 OK"), "{answer}");
    let address = listener(&admin);
    wait("all is well", || keep(&address).1.contains("200 OK").then_some(()));
}

#[test]
fn connections_beyond_the_limit_are_closed_and_come_back_later() {
    let dir = tempfile::tempdir().expect("directory");
    let limit = monitor(
        "downstream_connections.v3.DownstreamConnectionsConfig, max_active_downstream_connections: 2",
    );
    let (_running, admin) = Running::start(dir.path(), &bootstrap(&limit, ""));
    let address = listener(&admin);
    let (one, two) = (keep(&address), keep(&address));
    assert!(one.1.contains("200 OK") && two.1.contains("200 OK"));
    assert_eq!(keep(&address).1, "");
    until_stat(&admin, "downstream_global_cx_overflow: 1");
    drop(one);
    wait("room", || keep(&address).1.contains("200 OK").then_some(()));
    drop(two);
}

#[test]
fn a_heap_that_is_full_sheds_requests_and_is_given_back() {
    let dir = tempfile::tempdir().expect("directory");
    let heap = monitor("fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 1000");
    let actions = [action("stop_accepting_requests", 0.98), action("shrink_heap", 0.95)];
    let (_running, admin) = Running::start(dir.path(), &bootstrap(&heap, &actions.join(", ")));
    let address = listener(&admin);
    wait("no requests", || keep(&address).1.ends_with("envoy overloaded").then_some(()));
    wait("the heap is given back", || {
        let stats = ask(&admin, "GET", "/stats?filter=shrink_count");
        (stats.contains("shrink_count") && !stats.contains("shrink_count: 0")).then_some(())
    });
}
