//! Requests forwarded and answered.

use crate::harness::{Backend, Proxy, routes};

#[tokio::test]
async fn a_request_reaches_its_cluster_and_the_response_its_client() {
    let backend = Backend::named("hello").await;
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: a}");
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    let reply = proxy.get("example.com", "/path?q=1").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "hello"));
    assert_eq!(reply.header("server"), Some("envoy"));
    assert!(reply.header("x-envoy-upstream-service-time").is_some());
    let seen = backend.only().head;
    assert_eq!(seen.uri(), "/path?q=1");
    assert_eq!(seen.headers()["host"], "example.com");
    assert_eq!(seen.headers()["x-forwarded-proto"], "http");
    assert_eq!(seen.headers()["x-envoy-expected-rq-timeout-ms"], "15000");
    assert_eq!(seen.headers()["x-request-id"].len(), 36);
    assert!(!seen.headers().contains_key("connection"));
}
