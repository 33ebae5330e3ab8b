//! Both ends of a connection over a stream.

use std::future::poll_fn;

use amime_http1::{
    Casing, Client, Event, Follows, Options, ParseError, ReadError, Server, ServerOptions,
};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

fn server(options: ServerOptions) -> (Server<DuplexStream>, DuplexStream) {
    let (ours, theirs) = duplex(1 << 20);
    (Server::new(ours, BytesMut::new(), options), theirs)
}

/// Answers what comes with `answer` until the connection is over, and returns
/// all that the client got.
async fn answered(
    requests: &str,
    options: ServerOptions,
    answer: impl Fn(&mut Server<DuplexStream>),
) -> String {
    let (mut server, mut client) = server(options);
    client.write_all(requests.as_bytes()).await.expect("room");
    client.shutdown().await.expect("open");
    loop {
        match poll_fn(|cx| server.poll_head(cx)).await {
            Ok(Some(_)) => answer(&mut server),
            Ok(None) => break,
            Err(ReadError::Parse(error)) => {
                let status = StatusCode::from_u16(error.status()).expect("a status");
                server.write_head(status, &mut HeaderMap::new(), false, Casing::Lower);
            }
            Err(error) => panic!("{error}"),
        }
        let keep = server.write_end(None);
        poll_fn(|cx| server.poll_flush(cx)).await.expect("room");
        if !keep {
            break;
        }
    }
    drop(server);
    let mut text = String::new();
    client.read_to_string(&mut text).await.expect("text");
    text
}

fn ok(server: &mut Server<DuplexStream>) {
    server.write_head(StatusCode::OK, &mut HeaderMap::new(), true, Casing::Proper);
    server.write_data(Bytes::from_static(b"abc"));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let requests = "GET / HTTP/1.1\r\n\r\nHEAD / HTTP/1.1\r\n\r\n\
        GET / HTTP/1.1\r\nconnection: close\r\n\r\nGET / HTTP/1.1\r\n\r\n";
    let head = |more: &str| format!("HTTP/1.1 200 OK\r\n{more}Transfer-Encoding: chunked\r\n\r\n");
    let body = "3\r\nabc\r\n0\r\n\r\n";
    let want = [&head(""), body, &head(""), &head("Connection: close\r\n"), body].concat();
    assert_eq!(answered(requests, ServerOptions::default(), ok).await, want);
}

#[tokio::test]
async fn a_request_not_read_to_its_end_is_the_last() {
    let requests = "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nab";
    let found = answered(requests, ServerOptions::default(), |server| {
        server.write_interim(StatusCode::CONTINUE, &HeaderMap::new());
        server.write_head(StatusCode::FORBIDDEN, &mut HeaderMap::new(), false, Casing::Lower);
    });
    assert_eq!(
        found.await,
        "HTTP/1.1 100 Continue\r\n\r\n\
         HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
}

#[tokio::test]
async fn clients_of_1_0_are_answered_in_their_version_where_they_are_served() {
    let keep = "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n";
    let served = ServerOptions { http_10: true, ..ServerOptions::default() };
    let empty = |server: &mut Server<DuplexStream>| {
        server.write_head(StatusCode::OK, &mut HeaderMap::new(), false, Casing::Lower);
    };
    let more = "connection: keep-alive\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(answered(keep, served, empty).await, format!("HTTP/1.0 200 OK\r\n{more}"));
    let unserved = ServerOptions::default();
    assert_eq!(answered(keep, unserved, empty).await, format!("HTTP/1.1 200 OK\r\n{more}"));
    // Without a length the body ends with the connection.
    let until_close = "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nabc";
    assert_eq!(answered(keep, served, ok).await, until_close);
    let bad = "GET / HTTP/1.0\r\ntransfer-encoding: gzip\r\n\r\n";
    let refused = answered(bad, served, ok).await;
    assert!(refused.starts_with("HTTP/1.0 501 Not Implemented\r\nconnection: close"), "{refused}");
}

#[tokio::test]
async fn what_a_client_sends_ahead_is_bounded_and_kept() {
    let (mut server, mut client) = server(ServerOptions::default());
    client.write_all(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n").await.expect("room");
    poll_fn(|cx| server.poll_head(cx)).await.expect("a request").expect("a head");
    assert!(server.request_read());
    assert!(poll_fn(|cx| server.poll_gone(cx)).now_or_never().is_none(), "the client is there");
    client.write_all(&[b'x'; 500_000]).await.expect("room");
    assert!(poll_fn(|cx| server.poll_gone(cx)).now_or_never().is_none());
    let second = poll_fn(|cx| server.poll_head(cx)).await.expect("a request").expect("a head");
    assert_eq!(second.target, amime_http1::Target::Path(Bytes::from("/2")));
    let (mut rest, ahead) = server.into_parts();
    assert!(ahead.len() < 200_000, "{} bytes were read ahead", ahead.len());
    let mut left = vec![0; 500_000 - ahead.len()];
    rest.read_exact(&mut left).await.expect("nothing is lost");
}

#[tokio::test]
async fn a_client_that_closes_is_noticed() {
    let (mut server, mut client) = server(ServerOptions::default());
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("room");
    poll_fn(|cx| server.poll_head(cx)).await.expect("a request").expect("a head");
    drop(client);
    poll_fn(|cx| server.poll_gone(cx)).await;
}

#[tokio::test]
async fn the_end_of_the_stream_inside_a_message_is_an_error() {
    for begin in ["GET", "POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nab"] {
        let (mut server, mut client) = server(ServerOptions::default());
        client.write_all(begin.as_bytes()).await.expect("room");
        drop(client);
        let mut result = poll_fn(|cx| server.poll_head(cx)).await.map(drop);
        while result.is_ok() {
            result = poll_fn(|cx| server.poll_body(cx)).await.map(drop);
        }
        let error = result.expect_err("the message is not complete");
        assert!(matches!(error, ReadError::Parse(ParseError::Truncated)), "{begin}: {error}");
    }
}

/// Sends a request to a server that answers with `answer` and returns what it
/// saw, what the client got, and whether the connection can be used again.
async fn asked(
    more: Option<&'static str>,
    headers: &HeaderMap,
    answer: &str,
) -> (String, Result<(StatusCode, String), ReadError>, bool) {
    let (ours, mut theirs) = duplex(1 << 20);
    let mut client = Client::new(ours, Options::default());
    let line = (&Method::POST, &b"/p"[..]);
    let follows = if more.is_some() { Follows::Body } else { Follows::Nothing };
    client.write_head(line, headers, follows, Casing::Lower);
    if let Some(body) = more {
        client.write_data(Bytes::from(body));
        client.write_end(None);
    }
    poll_fn(|cx| client.poll_flush(cx)).await;
    let mut seen = vec![0; 1024];
    let count = theirs.read(&mut seen).await.expect("a request");
    theirs.write_all(answer.as_bytes()).await.expect("room");
    theirs.shutdown().await.expect("open");
    let mut head = poll_fn(|cx| client.poll_head(cx)).await;
    while head.as_ref().is_ok_and(|head| head.interim()) {
        head = poll_fn(|cx| client.poll_head(cx)).await;
    }
    let mut result = head.map(|head| (head.status, String::new()));
    while let Ok((_, text)) = &mut result {
        match poll_fn(|cx| client.poll_body(cx)).await {
            Ok(Event::Data(data)) => text.push_str(std::str::from_utf8(&data).expect("text")),
            Ok(Event::End) => break,
            Ok(_) => {}
            Err(error) => result = Err(error),
        }
    }
    seen.truncate(count);
    (String::from_utf8(seen).expect("text"), result, client.reusable())
}

#[tokio::test]
async fn requests_are_framed_by_what_is_known_of_their_body() {
    let mut length = HeaderMap::new();
    length.insert("content-length", HeaderValue::from_static("3"));
    let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
    for (more, headers, want) in [
        (None, &HeaderMap::new(), "content-length: 0\r\n\r\n"),
        (Some("abc"), &length, "content-length: 3\r\n\r\nabc"),
        (Some("abc"), &HeaderMap::new(), "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    ] {
        let (seen, result, reusable) = asked(more, headers, answer).await;
        assert_eq!(seen, format!("POST /p HTTP/1.1\r\n{want}"));
        assert_eq!(result.expect("a response"), (StatusCode::OK, "hi".to_owned()));
        assert!(reusable);
    }
}

#[tokio::test]
async fn connections_are_used_again_only_if_nothing_is_odd_about_them() {
    let none = HeaderMap::new();
    for (answer, good) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi", false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhitrailing", false),
        ("HTTP/1.1 200 OK\r\n\r\nhi", false),
    ] {
        let (_, result, reusable) = asked(None, &none, answer).await;
        assert_eq!(result.expect("a response").1, "hi");
        assert_eq!(reusable, good, "{answer}");
    }
}

#[tokio::test]
async fn broken_responses_are_told_from_missing_ones() {
    let none = HeaderMap::new();
    let (_, result, _) = asked(None, &none, "").await;
    assert!(matches!(result, Err(ReadError::Closed)));
    let (_, result, _) = asked(None, &none, "HTTP/1.1 100 Continue\r\n\r\n").await;
    assert!(matches!(result, Err(ReadError::Closed)));
    for half in ["HTTP/1.1 200", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab"] {
        let (_, result, _) = asked(None, &none, half).await;
        assert!(matches!(result, Err(ReadError::Parse(ParseError::Truncated))), "{half}");
    }
}

#[tokio::test]
async fn large_bodies_are_written_whole() {
    let (mut server, mut client) = server(ServerOptions::default());
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("room");
    poll_fn(|cx| server.poll_head(cx)).await.expect("a request");
    server.write_head(StatusCode::OK, &mut HeaderMap::new(), true, Casing::Lower);
    let parts = [10, 9000, 3, 70_000, 1, 5000];
    for size in parts {
        server.write_data(Bytes::from(vec![b'x'; size]));
    }
    assert!(server.write_end(None));
    let total = server.unwritten();
    poll_fn(|cx| server.poll_flush(cx)).await.expect("room");
    assert_eq!(server.unwritten(), 0);
    drop(server);
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).await.expect("bytes");
    assert_eq!(bytes.len(), total);
    assert_eq!(bytes.iter().filter(|byte| **byte == b'x').count(), parts.iter().sum());
}
