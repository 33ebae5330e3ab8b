//! The PROXY protocol on both sides.

use std::net::SocketAddr;

use amime_xds::Resource;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::harness::{Proxy, listener, static_cluster};

/// A server that tells the first `length` bytes of each connection and answers
/// with an HTTP response.
async fn recorder(length: usize) -> (SocketAddr, mpsc::UnboundedReceiver<Vec<u8>>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("an address");
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            let mut seen = Vec::new();
            while seen.len() <= length || !seen.ends_with(b"\r\n\r\n") {
                match stream.read_buf(&mut seen).await {
                    Ok(count) if count > 0 => {}
                    _ => break,
                }
            }
            seen.truncate(length);
            let _ = tell.send(seen);
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
                .await;
        }
    });
    (address, told)
}

fn front(filter: &str) -> Resource {
    listener(&format!(
        r#"name: http
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
listener_filters:
- name: proxy
  typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol, allow_requests_without_proxy_protocol: true}}
filter_chains:
- filters: [{filter}]"#
    ))
}

const TCP: &str = r#"{name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: a}}"#;
const HTTP: &str = r#"{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: h, route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: a}}]}]}, http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}"#;

fn proxied(address: SocketAddr, version: &str) -> Resource {
    let socket = format!(
        r#"transport_socket: {{name: p, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, config: {{version: {version}}}, transport_socket: {{name: raw, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}}}}}"#
    );
    static_cluster("a", address, &socket)
}

/// What the upstream is told first of a client that sends `request`.
async fn told(filter: &str, version: &str, length: usize, request: &str) -> Vec<u8> {
    let (address, mut told) = recorder(length).await;
    let proxy = Proxy::with(vec![front(filter), proxied(address, version)]).await;
    let mut client = TcpStream::connect(proxy.address()).await.expect("the proxy accepts");
    client.write_all(request.as_bytes()).await.expect("the proxy reads");
    let first = told.recv().await.expect("a connection");
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", answer.escape_ascii());
    first
}

const REQUEST: &str = "GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn an_upstream_is_told_whom_a_tcp_connection_is_for() {
    let request = format!("PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\n{REQUEST}");
    let first = told(TCP, "V1", 36, &request).await;
    assert_eq!(first, b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\n");
    let first = told(TCP, "V2", 28, &request).await;
    let want = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x03\xe8\0\x50";
    assert_eq!(first, want);
    // A client that told nothing is its own.
    let first = told(TCP, "V1", 30, REQUEST).await;
    assert!(first.starts_with(b"PROXY TCP4 127.0.0.1 127.0.0.1"), "{}", first.escape_ascii());
}

#[tokio::test]
async fn an_upstream_of_requests_is_told_the_client_of_a_header_only() {
    let request = format!("PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\n{REQUEST}");
    let first = told(HTTP, "V1", 36, &request).await;
    assert_eq!(first, b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\n");
    // Otherwise the connection may serve anybody, and says so.
    let first = told(HTTP, "V2", 16, REQUEST).await;
    assert_eq!(first, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
}
