//! Clients of HTTP/2 that send what costs them nothing, as raw frames.

use std::time::Duration;

use http::Response;
use http_body_util::Full;
use tokio::io::AsyncWriteExt;

use crate::harness::{Backend, Proxy, routes};
use crate::raw_http2::{Client, DATA, END_STREAM, GOAWAY, PING, RST_STREAM, WINDOW_UPDATE, frame};

const TO_BACKEND: &str = "- match: {prefix: /}\n  route: {cluster: a}";

/// A proxy to a backend that never answers.
async fn silent(fields: &str) -> (Proxy, Backend) {
    let backend = Backend::start_async(|_| std::future::pending::<Response<Full<_>>>()).await;
    let hcm = format!("{fields}\n{}", routes(TO_BACKEND));
    (Proxy::http(&hcm, &[("a", backend.address)]).await, backend)
}

#[tokio::test]
async fn a_client_that_gives_up_all_its_requests_is_sent_away() {
    let (proxy, backend) = silent("").await;
    let mut client = Client::connect(proxy.address()).await;
    for request in 0..250 {
        let stream = 2 * request + 1;
        client.get(stream, "/").await;
        // Once it is under way, so that it is a request and not only a frame.
        while backend.count() < request as usize + 1 {
            tokio::task::yield_now().await;
        }
        client.send(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())).await;
    }
    client.closed().await;
    proxy.until_stat("http.test.downstream_rq_too_many_premature_resets: 1").await;
    proxy.until_stat("http.test.downstream_rq_active: 0").await;
}

#[tokio::test]
async fn requests_that_are_given_up_before_they_are_served_are_bounded() {
    let (proxy, backend) = silent("").await;
    let mut client = Client::connect(proxy.address()).await;
    let mut burst = Vec::new();
    for request in 0..3000_u32 {
        burst.extend(Client::head(2 * request + 1, "/", END_STREAM));
        burst.extend(frame(RST_STREAM, 0, 2 * request + 1, &8_u32.to_be_bytes()));
    }
    // The connection may close before all is sent.
    let _ = client.stream.write_all(&burst).await;
    client.closed().await;
    proxy.until_stat("http.test.downstream_cx_active: 0").await;
    assert!(backend.count() < 600, "{} requests got through", backend.count());
}

#[tokio::test]
async fn a_client_that_reads_no_answers_is_not_read_either() {
    let (proxy, _backend) = silent("stream_idle_timeout: 0.2s").await;
    let mut client = Client::connect(proxy.address()).await;
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(1000);
    let mut accepted = 0_usize;
    // Until the proxy closes: it neither takes everything nor waits for ever.
    while client.stream.write_all(&pings).await.is_ok() {
        accepted += pings.len();
        assert!(accepted < 64 << 20, "nothing stops the client");
    }
    proxy.until_stat("http.test.downstream_cx_active: 0").await;
}

#[tokio::test]
async fn a_head_that_does_not_end_is_not_waited_for() {
    let (proxy, _backend) = silent("request_headers_timeout: 0.1s").await;
    let mut client = Client::connect(proxy.address()).await;
    let mut head = Client::head(1, "/", 0);
    // Without END_HEADERS.
    head[4] = 0;
    client.send(&head).await;
    client.closed().await;
}

#[tokio::test]
async fn a_connection_that_floods_ends_with_its_requests_and_nobody_elses() {
    let (proxy, backend) = silent("").await;
    let mut other = Client::connect(proxy.address()).await;
    other.get(1, "/").await;
    let mut client = Client::connect(proxy.address()).await;
    client.get(1, "/").await;
    while backend.count() < 2 {
        tokio::task::yield_now().await;
    }
    client.send(&frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()).repeat(20)).await;
    client.closed().await;
    proxy.until_stat("http2.inbound_window_update_frames_flood: 1").await;
    proxy.until_stat("http.test.downstream_rq_active: 1").await;
    other.send(&frame(PING, 0, 0, &[7; 8])).await;
    other.until(|frame| frame.kind == PING && frame.flags == 1).await;
}

#[tokio::test]
async fn a_client_that_does_not_answer_the_goaway_is_not_waited_for() {
    let fields = "common_http_protocol_options: {idle_timeout: 0.05s}\ndrain_timeout: 0.2s\ndelayed_close_timeout: 0.1s";
    let (proxy, _backend) = silent(fields).await;
    let mut client = Client::connect(proxy.address()).await;
    // It sees the PING behind the GOAWAY and says nothing.
    client.until(|frame| frame.kind == GOAWAY).await;
    client.until(|frame| frame.kind == PING).await;
    proxy.until_stat("http.test.downstream_cx_active: 0").await;
}

#[tokio::test]
async fn a_request_that_is_under_way_outlives_the_goaway() {
    let backend = Backend::start_async(|_| async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        Response::new(Full::from("late"))
    })
    .await;
    let fields =
        "common_http_protocol_options: {max_connection_duration: 0.05s}\ndrain_timeout: 0.1s";
    let hcm = format!("{fields}\n{}", routes(TO_BACKEND));
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    let mut client = Client::connect(proxy.address()).await;
    client.get(1, "/").await;
    client.until(|frame| frame.kind == GOAWAY).await;
    client.until(|frame| frame.kind == DATA && frame.payload == b"late").await;
}
