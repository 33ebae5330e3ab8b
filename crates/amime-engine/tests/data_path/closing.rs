//! How connections of clients end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Backend, Proxy, routes};

const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
const TO_BACKEND: &str = "- match: {prefix: /}\n  route: {cluster: a}";
const DIRECT: &str =
    "- match: {prefix: /}\n  direct_response: {status: 403, body: {inline_string: no}}";

async fn proxy(fields: &str, route: &str) -> (Proxy, Backend) {
    let backend = Backend::start(|_| Response::new(Full::new(Bytes::from("body")))).await;
    let hcm = format!("{fields}\n{}", routes(route));
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    (proxy, backend)
}

#[tokio::test]
async fn an_idle_connection_of_http1_closes_after_the_drain_timeout() {
    let fields = "common_http_protocol_options: {idle_timeout: 0.05s}\ndrain_timeout: 0.4s";
    let (proxy, _backend) = proxy(fields, TO_BACKEND).await;
    let begun = Instant::now();
    assert!(proxy.raw(GET).await.ends_with("body"));
    assert!(begun.elapsed() >= Duration::from_millis(450));
    proxy.until_stat("http.test.downstream_cx_idle_timeout: 1").await;
}

#[tokio::test]
async fn a_connection_without_a_request_does_not_wait_for_the_drain_timeout() {
    let fields = "common_http_protocol_options: {idle_timeout: 0.05s}\ndrain_timeout: 60s";
    let (proxy, _backend) = proxy(fields, TO_BACKEND).await;
    assert_eq!(proxy.raw("").await, "");
}

#[tokio::test]
async fn a_request_within_the_drain_timeout_is_answered_and_is_the_last() {
    let fields = "common_http_protocol_options: {idle_timeout: 0.05s}\ndrain_timeout: 60s";
    let (proxy, backend) = proxy(fields, TO_BACKEND).await;
    let mut stream = TcpStream::connect(proxy.address()).await.expect("the proxy accepts");
    stream.write_all(GET.as_bytes()).await.expect("the proxy reads");
    proxy.until_stat("http.test.downstream_cx_idle_timeout: 1").await;
    stream.write_all(GET.as_bytes()).await.expect("the connection is open");
    let mut all = String::new();
    stream.read_to_string(&mut all).await.expect("the proxy answers and closes");
    assert_eq!(all.matches("HTTP/1.1 200 OK").count(), 2);
    assert_eq!(all.matches("connection: close").count(), 1);
    assert_eq!(backend.count(), 2);
}

/// Sends `request`, reads to the end, and keeps the connection open: the time
/// until the proxy has closed its own side too.
async fn lingers(proxy: &Proxy, request: &[u8]) -> (Vec<u8>, Duration) {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(proxy.address()).await.expect("the proxy accepts");
    stream.write_all(request).await.expect("the proxy reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("the answer is not lost");
    proxy.until_stat("http.test.downstream_cx_active: 0").await;
    (answer, begun.elapsed())
}

#[tokio::test]
async fn an_answer_before_the_end_of_its_request_can_be_read() {
    let (proxy, _backend) = proxy("delayed_close_timeout: 0.3s", DIRECT).await;
    let request = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1000\r\n\r\nhello";
    let (answer, waited) = lingers(&proxy, request).await;
    assert!(answer.starts_with(b"HTTP/1.1 403"));
    assert!(waited >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_client_of_http2_can_read_why_its_connection_ends() {
    let (proxy, _backend) = proxy("delayed_close_timeout: 0.3s", DIRECT).await;
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    // Data belongs to a stream.
    let data = b"\0\0\x01\0\0\0\0\0\0x";
    let request = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], settings, data].concat();
    let (answer, waited) = lingers(&proxy, &request).await;
    // GOAWAY for a protocol error.
    assert!(answer.windows(4).any(|frame| frame == b"\x08\x07\0\0"), "{answer:?}");
    assert!(answer.ends_with(b"\0\0\0\x01") || answer.windows(4).any(|code| code == b"\0\0\0\x01"));
    assert!(waited >= Duration::from_millis(300));
}
