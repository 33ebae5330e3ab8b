//! Which endpoint takes a request, and connections to it.

use std::sync::Arc;

use http::Response;
use http_body_util::Full;

use crate::harness::{Backend, Proxy, endpoints_cluster, http_listener, routes};

async fn spread(policy: &str, requests: usize) -> (Backend, Backend) {
    let (a, b) = (Backend::named("a").await, Backend::named("b").await);
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: c}");
    let cluster = endpoints_cluster("c", &[a.address, b.address], &format!("lb_policy: {policy}"));
    let proxy = Proxy::with(vec![http_listener(&hcm), cluster]).await;
    for _ in 0..requests {
        assert_eq!(proxy.get("h", "/").await.status, 200);
    }
    (a, b)
}

#[tokio::test]
async fn all_policies_use_all_endpoints() {
    for policy in ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"] {
        let (a, b) = spread(policy, 60).await;
        assert_eq!(a.count() + b.count(), 60);
        assert!(a.count() > 5 && b.count() > 5, "{policy}: {} and {}", a.count(), b.count());
    }
}

#[tokio::test]
async fn consistent_hashing_keeps_a_user_at_one_endpoint() {
    for policy in ["RING_HASH", "MAGLEV"] {
        let (a, b) = (Backend::named("a").await, Backend::named("b").await);
        let hcm = routes(
            "- match: {prefix: /}\n  route: {cluster: c, hash_policy: [{header: {header_name: x-user}}]}",
        );
        let cluster =
            endpoints_cluster("c", &[a.address, b.address], &format!("lb_policy: {policy}"));
        let proxy = Proxy::with(vec![http_listener(&hcm), cluster]).await;
        for user in 0..20 {
            let head = format!("GET / HTTP/1.1\r\nhost: h\r\nx-user: u{user}\r\n");
            let first = proxy.request(&head).await.body;
            for _ in 0..3 {
                assert_eq!(proxy.request(&head).await.body, first, "{policy}");
            }
        }
        assert!(a.count() > 0 && b.count() > 0, "{policy}");
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_is_taken_out() {
    let (good, bad) = (
        Backend::named("good").await,
        Backend::start(|_| {
            let mut response = Response::new(Full::from("bad"));
            *response.status_mut() = http::StatusCode::BAD_GATEWAY;
            response
        })
        .await,
    );
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: c}");
    let outlier = "outlier_detection: {consecutive_5xx: 3, base_ejection_time: 60s, max_ejection_percent: 100}";
    let cluster = endpoints_cluster("c", &[good.address, bad.address], outlier);
    let proxy = Proxy::with(vec![http_listener(&hcm), cluster]).await;
    for _ in 0..40 {
        proxy.get("h", "/").await;
    }
    assert_eq!(bad.count(), 3, "ejected after three failures");
    let dump = proxy.runtime.dump();
    assert_eq!(dump.clusters[0].endpoints.iter().filter(|one| one.ejected).count(), 1);
}

#[tokio::test]
async fn connections_are_kept_and_used_again() {
    let backend = Backend::named("ok").await;
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: a}");
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    let mut request = String::new();
    for _ in 0..9 {
        request.push_str("GET / HTTP/1.1\r\nhost: h\r\n\r\n");
    }
    request.push_str("GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
    let answer = proxy.raw(&request).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 10);
    assert_eq!(*backend.connections.lock().expect("not poisoned"), 1);
}

#[tokio::test]
async fn http2_upstreams_share_one_connection() {
    let backend = Backend::named("ok").await;
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: a}");
    let options = "typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {}}";
    let cluster = endpoints_cluster("a", &[backend.address], options);
    let proxy = Proxy::with(vec![http_listener(&hcm), cluster]).await;
    let mut request = String::new();
    for _ in 0..4 {
        request.push_str("GET / HTTP/1.1\r\nhost: h.example\r\n\r\n");
    }
    request.push_str("GET /last HTTP/1.1\r\nhost: h.example\r\nconnection: close\r\n\r\n");
    assert_eq!(proxy.raw(&request).await.matches("HTTP/1.1 200").count(), 5);
    let seen = backend.seen.lock().expect("not poisoned");
    assert!(seen.iter().all(|one| one.head.version() == http::Version::HTTP_2));
    assert_eq!(seen[4].head.uri(), "http://h.example/last");
    assert_eq!(*backend.connections.lock().expect("not poisoned"), 1);
}

#[tokio::test]
async fn an_endpoint_taken_out_comes_back_at_an_interval() {
    let failing = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let switch = failing.clone();
    let flaky = Backend::start(move |_| {
        let mut response = Response::new(Full::from("flaky"));
        if switch.load(std::sync::atomic::Ordering::Relaxed) {
            *response.status_mut() = http::StatusCode::BAD_GATEWAY;
        }
        response
    })
    .await;
    let good = Backend::named("good").await;
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: c}");
    let outlier = "outlier_detection: {consecutive_5xx: 1, base_ejection_time: 0.02s, interval: 0.01s, max_ejection_percent: 100}";
    let cluster = endpoints_cluster("c", &[good.address, flaky.address], outlier);
    let proxy = Proxy::with(vec![http_listener(&hcm), cluster]).await;
    while flaky.count() == 0 {
        proxy.get("h", "/").await;
    }
    failing.store(false, std::sync::atomic::Ordering::Relaxed);
    while proxy.get("h", "/").await.body != "flaky" {}
    let dump = proxy.runtime.dump();
    assert_eq!(dump.clusters[0].endpoints.iter().filter(|one| one.ejected).count(), 0);
}

#[tokio::test]
async fn retries_stop_at_their_circuit_breaker() {
    let gate: Arc<tokio::sync::Semaphore> = Arc::new(tokio::sync::Semaphore::new(0));
    let held = gate.clone();
    let backend = Backend::start_async(move |seen| {
        let held = held.clone();
        async move {
            // A retry of the first request holds its place until told.
            if seen.head.headers()["x-envoy-attempt-count"] == "2" {
                held.acquire().await.expect("not closed").forget();
            }
            let mut response = Response::new(Full::from("bad"));
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            response
        }
    })
    .await;
    let hcm = "route_config: {name: r, virtual_hosts: [{name: v, domains: ['*'], include_request_attempt_count: true, routes: [{match: {prefix: /}, route: {cluster: c, retry_policy: {retry_on: 5xx, retry_back_off: {base_interval: 0.001s}}}}]}]}";
    let limit = "circuit_breakers: {thresholds: [{max_retries: 1}]}";
    let cluster = endpoints_cluster("c", &[backend.address], limit);
    let proxy = Arc::new(Proxy::with(vec![http_listener(hcm), cluster]).await);
    let first = tokio::spawn({
        let proxy = proxy.clone();
        async move { proxy.get("h", "/first").await }
    });
    while backend.count() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(proxy.get("h", "/second").await.status, 503);
    assert_eq!(backend.count(), 3, "the second request is not repeated");
    gate.add_permits(10);
    assert_eq!(first.await.expect("the task ends").status, 503);
    assert_eq!(proxy.get("h", "/third").await.status, 503);
    assert_eq!(backend.count(), 5, "the place is free again");
}

#[tokio::test]
async fn connections_to_one_endpoint_stop_at_its_threshold() {
    let gate: Arc<tokio::sync::Semaphore> = Arc::new(tokio::sync::Semaphore::new(0));
    let held = gate.clone();
    let backend = Backend::start_async(move |_| {
        let held = held.clone();
        async move {
            held.acquire().await.expect("not closed").forget();
            Response::new(Full::from("ok"))
        }
    })
    .await;
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: c}");
    let limit = "circuit_breakers: {per_host_thresholds: [{max_connections: 1}], thresholds: [{max_pending_requests: 1}]}";
    let cluster = endpoints_cluster("c", &[backend.address], limit);
    let proxy = Arc::new(Proxy::of_one_worker());
    proxy.apply(vec![http_listener(&hcm), cluster]).await;
    let ask = |proxy: Arc<Proxy>| tokio::spawn(async move { proxy.get("h", "/").await });
    let first = ask(proxy.clone());
    while backend.count() == 0 {
        tokio::task::yield_now().await;
    }
    // One may wait for the connection, the next one not even that.
    let (second, third) = (ask(proxy.clone()), ask(proxy.clone()));
    let mut replies = Vec::new();
    while !second.is_finished() && !third.is_finished() {
        tokio::task::yield_now().await;
    }
    gate.add_permits(3);
    for reply in [first, second, third] {
        replies.push(reply.await.expect("the task ends").status);
    }
    replies.sort_unstable();
    assert_eq!(replies, [200, 200, 503]);
    assert_eq!(*backend.connections.lock().expect("not poisoned"), 1);
}
