//! Bodies that may pass only so fast.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;

use crate::filters::with_filter;
use crate::harness::{Backend, Proxy, routes};

const LIMIT: &str =
    "type.googleapis.com/envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit";
const FAULT: &str = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";
const TO_BACKEND: &str = "- match: {prefix: /}\n  route: {cluster: a}";

/// Of 10 KiB a second, 2560 bytes take 250 ms once a first body has taken what
/// there was at once; how much that is depends on how long the proxy took to
/// start.
const BYTES: usize = 2560;
const TIME: Duration = Duration::from_millis(190);

async fn proxy(filter: &str) -> (Proxy, Backend) {
    let backend = Backend::start(|seen| {
        let answer = match seen.body.is_empty() {
            true => Bytes::from(vec![b'x'; BYTES]),
            false => Bytes::from("short"),
        };
        Response::new(Full::new(answer))
    })
    .await;
    let filter = format!("- name: limit\n  typed_config: {{{filter}}}");
    let hcm = with_filter(&routes(TO_BACKEND), &filter);
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    (proxy, backend)
}

fn limit(mode: &str) -> String {
    format!("\"@type\": {LIMIT}, stat_prefix: l, enable_mode: {mode}, limit_kbps: 10")
}

fn post() -> String {
    let body = "y".repeat(BYTES);
    format!(
        "POST / HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {BYTES}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn a_response_takes_the_time_that_its_limit_gives_it() {
    let (proxy, _backend) = proxy(&limit("RESPONSE")).await;
    proxy.get("h", "/").await;
    let begun = Instant::now();
    let reply = proxy.get("h", "/").await;
    assert_eq!((reply.status, reply.body.len()), (200, BYTES));
    assert!(begun.elapsed() >= TIME, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_request_takes_its_time_too_and_keeps_its_length() {
    let (proxy, backend) = proxy(&limit("REQUEST")).await;
    proxy.raw(&post()).await;
    let begun = Instant::now();
    assert!(proxy.raw(&post()).await.ends_with("short"));
    assert!(begun.elapsed() >= TIME, "{:?}", begun.elapsed());
    let seen = backend.seen.lock().expect("not poisoned").pop().expect("a request");
    assert_eq!(seen.body.len(), BYTES);
    assert_eq!(seen.head.headers()["content-length"], BYTES.to_string());
}

#[tokio::test]
async fn all_bodies_of_a_filter_share_its_limit() {
    let (proxy, _backend) = proxy(&limit("RESPONSE")).await;
    proxy.get("h", "/").await;
    let begun = Instant::now();
    let (one, two) = tokio::join!(proxy.get("h", "/"), proxy.get("h", "/"));
    assert_eq!((one.body.len(), two.body.len()), (BYTES, BYTES));
    assert!(begun.elapsed() >= 2 * TIME, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_fault_slows_responses_down_one_by_one() {
    let (proxy, _backend) = proxy(&format!(
        "\"@type\": {FAULT}, response_rate_limit: {{header_limit: {{}}, percentage: {{numerator: 100}}}}"
    ))
    .await;
    let head = "GET / HTTP/1.1\r\nhost: h\r\nx-envoy-fault-throughput-response: 10\r\n";
    let begun = Instant::now();
    let reply = proxy.request(head).await;
    assert_eq!((reply.status, reply.body.len()), (200, BYTES));
    assert!(begun.elapsed() >= TIME, "{:?}", begun.elapsed());
    proxy.until_stat("http.test.fault.response_rl_injected: 1").await;
    proxy.until_stat("http.test.fault.active_faults: 0").await;
    // Without the header there is no limit.
    assert_eq!(proxy.get("h", "/").await.body.len(), BYTES);
    assert_eq!(
        proxy.stats("fault.response_rl_injected"),
        ["http.test.fault.response_rl_injected: 1"]
    );
}
