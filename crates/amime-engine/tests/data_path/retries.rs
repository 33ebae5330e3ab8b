//! Retries, timeouts and failures of upstreams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{Backend, Proxy, http_listener, routes, static_cluster};

fn status(code: u16) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from("body"));
    *response.status_mut() = StatusCode::from_u16(code).expect("a status");
    response
}

const RETRY: &str = "retry_back_off: {base_interval: 0.001s, max_interval: 0.002s}";

#[tokio::test]
async fn a_failed_request_is_sent_again_with_its_body() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let backend = Backend::start(move |_| {
        let before = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        status(if before < 2 { 503 } else { 200 })
    })
    .await;
    let hcm = routes(&format!(
        "- match: {{prefix: /}}\n  route: {{cluster: a, retry_policy: {{retry_on: 5xx, num_retries: 2, {RETRY}}}}}"
    ));
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    let head = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
    assert!(proxy.raw(head).await.starts_with("HTTP/1.1 200"));
    let seen = backend.seen.lock().expect("not poisoned");
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|request| request.body == "hello"));
}

#[tokio::test]
async fn the_last_failure_is_passed_on_when_retries_are_spent() {
    let backend = Backend::start(|_| status(503)).await;
    let hcm = routes(&format!(
        "- match: {{prefix: /}}\n  route: {{cluster: a, retry_policy: {{retry_on: gateway-error, num_retries: 1, {RETRY}}}}}"
    ));
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    assert_eq!(proxy.get("h", "/").await.status, 503);
    assert_eq!(backend.count(), 2);
}

#[tokio::test]
async fn a_503_is_not_retried_without_being_asked_to() {
    let backend = Backend::start(|_| status(503)).await;
    let hcm = routes(
        "- match: {prefix: /}\n  route: {cluster: a, retry_policy: {retry_on: 'connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes', num_retries: 2}}",
    );
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    assert_eq!(proxy.get("h", "/").await.status, 503);
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn a_slow_upstream_meets_the_routes_timeout() {
    let backend = Backend::start_async(|_| async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        status(200)
    })
    .await;
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: a, timeout: 0.05s}");
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    let reply = proxy.get("h", "/").await;
    assert_eq!((reply.status, reply.body.as_str()), (504, "upstream request timeout"));
}

#[tokio::test]
async fn unreachable_and_missing_upstreams_have_their_own_answers() {
    let unused = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("it");
    let hcm = routes(
        "- match: {prefix: /dead}\n  route: {cluster: dead}\n- match: {prefix: /empty}\n  route: {cluster: empty}\n- match: {prefix: /none}\n  route: {cluster: none, cluster_not_found_response_code: INTERNAL_SERVER_ERROR}",
    );
    let empty = crate::harness::cluster(
        "name: empty\ntype: STATIC\nload_assignment: {cluster_name: empty}",
    );
    let proxy =
        Proxy::with(vec![http_listener(&hcm), static_cluster("dead", unused, ""), empty]).await;
    let dead = proxy.get("h", "/dead").await;
    assert_eq!(dead.status, 503);
    assert!(dead.body.contains("reset reason: remote connection failure"), "{}", dead.body);
    let empty = proxy.get("h", "/empty").await;
    assert_eq!((empty.status, empty.body.as_str()), (503, "no healthy upstream"));
    assert_eq!(proxy.get("h", "/none").await.status, 500);
}

#[tokio::test]
async fn a_circuit_breaker_refuses_what_is_over_its_limit() {
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    let held = gate.clone();
    let backend = Backend::start_async(move |_| {
        let held = held.clone();
        async move {
            held.notified().await;
            status(200)
        }
    })
    .await;
    let limits = "circuit_breakers: {thresholds: [{max_requests: 1}]}";
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: a}");
    let resources = vec![http_listener(&hcm), static_cluster("a", backend.address, limits)];
    let proxy = std::sync::Arc::new(Proxy::with(resources).await);
    let first = proxy.clone();
    let first = tokio::spawn(async move { first.get("h", "/").await });
    while backend.count() == 0 {
        tokio::task::yield_now().await;
    }
    let refused = proxy.get("h", "/").await;
    assert_eq!(refused.status, 503);
    assert!(refused.body.ends_with("reset reason: overflow"), "{}", refused.body);
    gate.notify_one();
    assert_eq!(first.await.expect("the task ends").status, 200);
}

/// What internal clients may ask for by headers.
const INTERNAL: &str = "internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.1, prefix_len: 32}]}\nuse_remote_address: true\n";

#[tokio::test]
async fn internal_clients_ask_for_retries_by_headers_which_end_here() {
    let backend = Backend::start(|_| status(418)).await;
    let hcm = format!("{INTERNAL}{}", routes("- match: {prefix: /}\n  route: {cluster: a}"));
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    let head = "GET / HTTP/1.1\r\nhost: h\r\nx-envoy-retry-on: retriable-status-codes\r\nx-envoy-max-retries: 2\r\nx-envoy-retriable-status-codes: 503, 418\r\n";
    assert_eq!(proxy.request(head).await.status, 418);
    let seen = backend.seen.lock().expect("not poisoned");
    assert_eq!(seen.len(), 3);
    assert!(!seen[0].head.headers().contains_key("x-envoy-retry-on"));
    assert!(!seen[0].head.headers().contains_key("x-envoy-max-retries"));
}

#[tokio::test]
async fn later_attempts_are_told_the_time_that_is_left() {
    let backend = Backend::start(|_| status(503)).await;
    let hcm = routes(
        "- match: {prefix: /}\n  route: {cluster: a, timeout: 60s, retry_policy: {retry_on: 5xx, num_retries: 1, rate_limited_retry_back_off: {reset_headers: [{name: x-none}]}}}",
    );
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    assert_eq!(proxy.get("h", "/").await.status, 503);
    let seen = backend.seen.lock().expect("not poisoned");
    let told = |index: usize| -> u64 {
        let value = &seen[index].head.headers()["x-envoy-expected-rq-timeout-ms"];
        value.to_str().expect("text").parse().expect("a number")
    };
    assert_eq!(told(0), 60_000);
    assert!((30_000..60_000).contains(&told(1)), "{}", told(1));
}

#[tokio::test]
async fn an_attempt_that_stays_silent_is_given_up() {
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    let held = gate.clone();
    let backend = Backend::start_async(move |_| {
        let held = held.clone();
        async move {
            held.notified().await;
            status(200)
        }
    })
    .await;
    let hcm = format!(
        "{INTERNAL}{}",
        routes(
            "- match: {prefix: /}\n  route: {cluster: a, retry_policy: {retry_on: 5xx, num_retries: 0, per_try_idle_timeout: 0.05s}}"
        )
    );
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    assert_eq!(proxy.get("h", "/").await.status, 504);
    let head = "GET / HTTP/1.1\r\nhost: h\r\nx-envoy-upstream-rq-timeout-alt-response: 1\r\n";
    assert_eq!(proxy.request(head).await.status, 204);
}

/// An endpoint that answers the first request of each connection and closes it
/// once it has read the second; requests that it saw.
async fn tires_of_connections() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                for answers in [true, false] {
                    let read = stream.read(&mut request).await?;
                    count.fetch_add(usize::from(read > 0), Ordering::Relaxed);
                    if answers {
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
                    }
                }
                std::io::Result::Ok(())
            });
        }
    });
    (address, seen)
}

#[tokio::test]
async fn a_kept_connection_that_closes_under_a_safe_request_costs_no_answer() {
    let (address, seen) = tires_of_connections().await;
    let proxy = Proxy::of_one_worker();
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: a}");
    proxy.apply(vec![http_listener(&hcm), static_cluster("a", address, "")]).await;
    for _ in 0..3 {
        assert_eq!(proxy.get("h", "/").await.status, 200);
    }
    assert_eq!(seen.load(Ordering::Relaxed), 5, "the second and third were asked twice");
    // Whoever changes something has to decide on that himself.
    let changed = proxy.request("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n").await;
    assert_eq!(changed.status, 503);
    assert!(changed.body.ends_with("reset reason: connection termination"), "{}", changed.body);
}
