//! Active health checks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use amime_xds::TypeUrl;
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{
    Backend, Proxy, Seen, assignment, cluster, endpoints_cluster, http_listener, routes,
    static_cluster, update,
};

/// A backend whose `/health` answers with a status that can be changed.
async fn checked(name: &'static str, status: u16) -> (Backend, Arc<AtomicU16>) {
    let health = Arc::new(AtomicU16::new(status));
    let now = health.clone();
    let backend = Backend::start(move |seen: &Seen| {
        let mut response = Response::new(Full::from(name));
        if seen.head.uri().path() == "/health" {
            let code = now.load(Ordering::Relaxed);
            *response.status_mut() = code.try_into().expect("a status");
        }
        if seen.head.uri().path() == "/leave" {
            let yes = http::HeaderValue::from_static("true");
            response.headers_mut().insert("x-envoy-immediate-health-check-fail", yes);
            now.store(503, Ordering::Relaxed);
        }
        response
    })
    .await;
    (backend, health)
}

fn checks(probe: &str) -> String {
    format!(
        "health_checks: [{{timeout: 1s, interval: 0.01s, no_traffic_interval: 0.01s, unhealthy_threshold: 2, healthy_threshold: 2, {probe}}}]"
    )
}

async fn proxy(fields: &str, addresses: &[SocketAddr]) -> Proxy {
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: c}");
    let cluster = endpoints_cluster(
        "c",
        addresses,
        &format!("common_lb_config: {{healthy_panic_threshold: {{value: 0}}}}\n{fields}"),
    );
    // Requests share what connections there are.
    let proxy = Proxy::of_one_worker();
    proxy.apply(vec![cluster, http_listener(&hcm)]).await;
    proxy
}

fn flags(proxy: &Proxy) -> Vec<Vec<&'static str>> {
    let dump = proxy.runtime.dump();
    dump.clusters[0].endpoints.iter().map(|one| one.health_flags.clone()).collect()
}

async fn until_flags(proxy: &Proxy, want: &[&[&'static str]]) {
    while flags(proxy) != want {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn requests_go_where_checks_are_answered_well() {
    let ((a, a_health), (b, b_health)) = (checked("a", 200).await, checked("b", 503).await);
    let fields = checks("http_health_check: {path: /health}");
    let proxy = proxy(&fields, &[a.address, b.address]).await;
    assert_eq!(flags(&proxy), [vec![], vec!["failed_active_hc"]], "all were checked once");
    for _ in 0..6 {
        assert_eq!(proxy.get("h", "/").await.body, "a");
    }
    let seen = a.seen.lock().expect("not poisoned")[0].clone();
    assert_eq!(seen.head.headers()["user-agent"], "Envoy/HC");
    assert_eq!(seen.head.headers()["host"], "c");
    b_health.store(200, Ordering::Relaxed);
    until_flags(&proxy, &[&[], &[]]).await;
    // An answer that is not expected takes out at once.
    a_health.store(500, Ordering::Relaxed);
    until_flags(&proxy, &[&["failed_active_hc"], &[]]).await;
    assert_eq!(proxy.get("h", "/").await.body, "b");
    b_health.store(429, Ordering::Relaxed);
    until_flags(&proxy, &[&["failed_active_hc"], &["failed_active_hc"]]).await;
    assert_eq!(proxy.get("h", "/").await.body, "no healthy upstream");
}

#[tokio::test]
async fn expected_and_retriable_statuses_are_told_apart() {
    let (a, health) = checked("a", 204).await;
    let fields = checks(
        "http_health_check: {path: /health, host: h.test, expected_statuses: [{start: 200, end: 300}], retriable_statuses: [{start: 500, end: 501}], request_headers_to_add: [{header: {key: x-check, value: 'yes'}}]}",
    );
    let proxy = proxy(&fields, &[a.address]).await;
    assert_eq!(flags(&proxy), [vec![]; 1] as [Vec<&str>; 1]);
    let seen = a.seen.lock().expect("not poisoned")[0].clone();
    assert_eq!(seen.head.headers()["host"], "h.test");
    assert_eq!(seen.head.headers()["x-check"], "yes");
    health.store(500, Ordering::Relaxed);
    until_flags(&proxy, &[&["failed_active_hc"]]).await;
    assert_eq!(*a.connections.lock().expect("not poisoned"), 1, "checks keep their connection");
}

#[tokio::test]
async fn connections_from_before_a_failure_take_no_more_requests() {
    let (a, health) = checked("a", 200).await;
    // Each check has a connection of its own, which is closed at once.
    let fields = checks("http_health_check: {path: /health}")
        .replace("timeout: 1s", "timeout: 1s, reuse_connection: false");
    let proxy = proxy(&fields, &[a.address]).await;
    assert_eq!(proxy.get("h", "/").await.status, 200);
    assert_eq!(proxy.get("h", "/").await.status, 200);
    let opened = || {
        let all = proxy.stats("cluster.c.upstream_cx_total");
        all.first().cloned().unwrap_or_default()
    };
    assert_eq!(opened(), "cluster.c.upstream_cx_total: 1");
    health.store(500, Ordering::Relaxed);
    until_flags(&proxy, &[&["failed_active_hc"]]).await;
    health.store(200, Ordering::Relaxed);
    until_flags(&proxy, &[&[]]).await;
    assert_eq!(proxy.get("h", "/").await.status, 200);
    assert_eq!(opened(), "cluster.c.upstream_cx_total: 2");
}

/// Two checks; the second one is of this path.
fn two_checks(path: &str) -> String {
    let one = "timeout: 1s, interval: 0.01s, no_traffic_interval: 0.01s, unhealthy_threshold: 2, healthy_threshold: 2";
    format!(
        "health_checks:\n- {{{one}, name: a, http_health_check: {{path: /health}}}}\n\
         - {{{one}, name: b, http_health_check: {{path: {path}}}}}"
    )
}

#[tokio::test]
async fn all_checks_of_an_endpoint_have_to_pass() {
    let (a, health) = checked("a", 200).await;
    let proxy = proxy(&two_checks("/other"), &[a.address]).await;
    assert_eq!(flags(&proxy), [vec![]; 1] as [Vec<&str>; 1]);
    let asked = |path: &str| {
        let seen = a.seen.lock().expect("not poisoned");
        seen.iter().any(|seen| seen.head.uri().path() == path)
    };
    assert!(asked("/health") && asked("/other"), "it is well once both have passed");
    health.store(500, Ordering::Relaxed);
    until_flags(&proxy, &[&["failed_active_hc"]]).await;
    let before = a.count();
    while a.count() < before + 8 {
        tokio::task::yield_now().await;
    }
    assert_eq!(flags(&proxy), [["failed_active_hc"]], "the other one goes on passing");
    health.store(200, Ordering::Relaxed);
    until_flags(&proxy, &[&[]]).await;
    // Once it has asked to be left out, both have to pass again.
    assert_eq!(proxy.get("h", "/leave").await.status, 200);
    until_flags(&proxy, &[&["failed_active_hc", "excluded_via_immediate_hc_fail"]]).await;
    health.store(200, Ordering::Relaxed);
    until_flags(&proxy, &[&[]]).await;
    assert_eq!(proxy.get("h", "/").await.status, 200);
}

#[tokio::test]
async fn an_endpoint_may_ask_to_be_left_out() {
    let (a, health) = checked("a", 200).await;
    let fields = checks("http_health_check: {path: /health}");
    let proxy = proxy(&fields, &[a.address]).await;
    health.store(503, Ordering::Relaxed);
    until_flags(&proxy, &[&["failed_active_hc"]]).await;
    health.store(200, Ordering::Relaxed);
    until_flags(&proxy, &[&[]]).await;
    assert_eq!(proxy.get("h", "/leave").await.status, 200);
    until_flags(&proxy, &[&["failed_active_hc", "excluded_via_immediate_hc_fail"]]).await;
    health.store(200, Ordering::Relaxed);
    until_flags(&proxy, &[&[]]).await;
    assert_eq!(proxy.get("h", "/").await.status, 200);
}

#[tokio::test]
async fn plain_bytes_are_sent_and_looked_for() {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = socket.local_addr().expect("an address");
    let (sender, mut pings) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            let mut ping = [0; 4];
            let _ = stream.read_exact(&mut ping).await;
            let _ = sender.send(ping);
            let _ = stream.write_all(b"+PONG").await;
        }
    });
    // "PING", and "PONG" in the answer.
    let fields = checks("tcp_health_check: {send: {text: 50494e47}, receive: [{text: 504f4e47}]}");
    let proxy = proxy(&fields, &[address]).await;
    assert_eq!(flags(&proxy), [vec![]; 1] as [Vec<&str>; 1]);
    assert_eq!(pings.recv().await, Some(*b"PING"));
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let nobody = closed.local_addr().expect("an address");
    drop(closed);
    let fields = checks("tcp_health_check: {}");
    let cluster = static_cluster("c", nobody, &fields);
    assert_eq!(proxy.runtime.apply_static(vec![cluster]).rejected, vec![]);
    until_flags(&proxy, &[&["failed_active_hc"]]).await;
}

#[tokio::test]
async fn grpc_services_are_asked_for_their_health() {
    let backend = Backend::start(|seen: &Seen| {
        assert_eq!(seen.head.uri().path(), "/grpc.health.v1.Health/Check");
        assert_eq!(&seen.body[..], b"\0\0\0\0\x05\x0a\x03svc");
        let mut response = Response::new(Full::from(Bytes::from_static(b"\0\0\0\0\x02\x08\x01")));
        response.headers_mut().insert("grpc-status", http::HeaderValue::from_static("0"));
        response
    })
    .await;
    let fields = checks("grpc_health_check: {service_name: svc}");
    let proxy = proxy(&fields, &[backend.address]).await;
    assert_eq!(flags(&proxy), [vec![]; 1] as [Vec<&str>; 1]);
    assert!(backend.count() > 0);
}

#[tokio::test]
async fn new_endpoints_count_as_none_before_their_first_check() {
    let (a, _) = checked("a", 200).await;
    // They take connections and never answer.
    let silent = [TcpListener::bind("127.0.0.1:0").await, TcpListener::bind("127.0.0.1:0").await]
        .map(|socket| socket.expect("a free port"));
    let silent = silent.each_ref().map(|socket| socket.local_addr().expect("an address"));
    let checks =
        checks("http_health_check: {path: /health}").replace("timeout: 1s", "timeout: 60s");
    let cluster = cluster(&format!(
        "name: c\ntype: EDS\neds_cluster_config: {{eds_config: {{ads: {{}}}}}}\n\
         common_lb_config: {{ignore_new_hosts_until_first_hc: true}}\n{checks}"
    ));
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: c, timeout: 1s}");
    let assigned = |addresses: &[SocketAddr]| vec![assignment("c", addresses)];
    let proxy = Proxy::empty();
    let apply = |kind, added| assert_eq!(proxy.runtime.apply(&update(kind, added)), vec![]);
    apply(TypeUrl::Cluster, vec![cluster]);
    apply(TypeUrl::Endpoint, assigned(&[a.address]));
    apply(TypeUrl::Listener, vec![http_listener(&hcm)]);
    proxy.settle().await;
    apply(TypeUrl::Endpoint, assigned(&[a.address, silent[0], silent[1]]));
    let new: &[&str] = &["failed_active_hc", "pending_active_hc"];
    until_flags(&proxy, &[&[], new, new]).await;
    proxy.settle().await;
    for _ in 0..6 {
        assert_eq!(proxy.get("h", "/").await.body, "a", "one of one is healthy: no panic");
    }
}

#[tokio::test]
async fn what_cannot_be_checked_is_refused() {
    let proxy = Proxy::empty();
    let check = |probe: &str, want: &str| {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let cluster = static_cluster("c", address, &checks(probe));
        let rejected = proxy.runtime.apply(&update(TypeUrl::Cluster, vec![cluster]));
        assert!(rejected[0].error.contains(want), "{rejected:?}");
    };
    check("http_health_check: {}", "health_checks[0].http_health_check.path");
    check("tcp_health_check: {send: {text: xy}}", "tcp_health_check.send: not hexadecimal");
    check("custom_health_check: {name: redis}", "`redis` is not supported");
}
