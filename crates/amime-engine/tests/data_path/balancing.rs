//! Which endpoint takes a request, and connections to it.

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
