//! Tunnels: CONNECT that ends here or is passed on, TCP inside of requests,
//! upgrades over both versions of HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Proxy, http_listener, listener, raw, routes, static_cluster};

/// Answers every connection's bytes with themselves once they are `wanted`.
async fn echo(greeting: &'static str) -> SocketAddr {
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = server.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = server.accept().await {
            tokio::spawn(async move {
                if !greeting.is_empty() {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.expect("a whole head"));
                    }
                    let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
                    let first = head.lines().next().unwrap_or_default().to_owned();
                    let answer = format!("{greeting}\r\nx-seen: {first}\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
                }
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// Sends `head`, then `ping` once an answer has come; all that comes back.
#[track_caller]
fn tunnel(address: SocketAddr, head: &str) -> impl Future<Output = String> {
    let head = head.to_owned();
    async move {
        let mut client = TcpStream::connect(address).await.expect("the proxy accepts");
        client.write_all(head.as_bytes()).await.expect("the proxy reads");
        let mut answer = Vec::new();
        let talk = async {
            while !head.is_empty() && !answer.ends_with(b"\r\n\r\n") {
                answer.push(client.read_u8().await.expect("an answer's head"));
            }
            client.write_all(b"ping").await.expect("the tunnel takes bytes");
            client.shutdown().await.expect("the tunnel is told");
            client.read_to_end(&mut answer).await.expect("the tunnel ends");
        };
        tokio::time::timeout(Duration::from_secs(10), talk).await.expect("the tunnel works");
        String::from_utf8(answer).expect("text").to_ascii_lowercase()
    }
}

const CONNECT: &str = "CONNECT a.com:80 HTTP/1.1\r\nhost: a.com:80\r\n\r\n";
const ALLOWED: &str = "upgrade_configs: [{upgrade_type: CONNECT}]\n";
const ENDS_HERE: &str = "- match: {connect_matcher: {}}
  route: {cluster: a, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {allow_post: true}}]}
- match: {prefix: /}
  route: {cluster: a, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {allow_post: true}}]}";

#[tokio::test]
async fn a_tunnel_that_ends_here_carries_bare_bytes() {
    let upstream = echo("").await;
    let proxy = Proxy::http(&routes(ENDS_HERE), &[("a", upstream)]).await;
    let answer = tunnel(proxy.address(), CONNECT).await;
    assert!(answer.starts_with("http/1.1 200 ok\r\n"), "{answer}");
    assert!(!answer.contains("content-length") && answer.ends_with("\r\n\r\nping"), "{answer}");
}

#[tokio::test]
async fn connect_is_passed_on_where_it_does_not_end() {
    let upstream = echo("HTTP/1.1 200 OK").await;
    let hcm =
        format!("{ALLOWED}{}", routes("- match: {connect_matcher: {}}\n  route: {cluster: a}"));
    let proxy = Proxy::http(&hcm, &[("a", upstream)]).await;
    let answer = tunnel(proxy.address(), CONNECT).await;
    assert!(answer.contains("x-seen: connect a.com:80 http/1.1"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nping"), "{answer}");
}

#[tokio::test]
async fn connect_is_refused_where_nobody_allows_it() {
    let answer = async |hcm: String| {
        let proxy = Proxy::http(&hcm, &[]).await;
        raw(proxy.address(), CONNECT).await
    };
    let matched = routes("- match: {connect_matcher: {}}\n  route: {cluster: a}");
    assert!(answer(matched).await.starts_with("HTTP/1.1 403"));
    let paths = format!("{ALLOWED}{}", routes("- match: {prefix: /}\n  route: {cluster: a}"));
    assert!(answer(paths).await.starts_with("HTTP/1.1 404"));
    let with_body = "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\ncontent-length: 3\r\n\r\nabc";
    let proxy = Proxy::http(&routes(ENDS_HERE), &[]).await;
    assert!(raw(proxy.address(), with_body).await.starts_with("HTTP/1.1 400"));
}

const HTTP2: &str = "typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {allow_connect: true}}";

/// A second listener whose TCP connections go through the first one.
async fn through_tunnel(tunneling: &str, upstream_http2: bool) -> String {
    let upstream = echo("").await;
    let proxy = Proxy::http(&routes(ENDS_HERE), &[("a", upstream)]).await;
    let fields = if upstream_http2 { HTTP2 } else { "" };
    let tcp = listener(&format!(
        "name: tcp
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
filter_chains:
- filters:
  - name: tcp
    typed_config:
      \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: t
      cluster: proxy
      tunneling_config: {tunneling}"
    ));
    proxy.apply(vec![tcp, static_cluster("proxy", proxy.address(), fields)]).await;
    tunnel(proxy.runtime.listener_address("tcp").expect("bound"), "").await
}

#[tokio::test]
async fn tcp_goes_through_tunnels_of_every_form() {
    for http2 in [false, true] {
        assert_eq!(through_tunnel("{hostname: 'b.com:443'}", http2).await, "ping");
        assert_eq!(through_tunnel("{hostname: 'b.com:443', use_post: true}", http2).await, "ping");
    }
}

#[tokio::test]
async fn a_tunnel_that_is_refused_ends_the_connection() {
    let closed = routes("- match: {prefix: /}\n  direct_response: {status: 200}");
    let proxy = Proxy::http(&closed, &[]).await;
    let tcp = listener(
        "name: tcp
address: {socket_address: {address: 127.0.0.1, port_value: 0}}
filter_chains:
- filters:
  - name: tcp
    typed_config:
      \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: t
      cluster: proxy
      tunneling_config: {hostname: 'b.com:443'}",
    );
    proxy.apply(vec![tcp, static_cluster("proxy", proxy.address(), "")]).await;
    let address = proxy.runtime.listener_address("tcp").expect("bound");
    assert_eq!(raw(address, "ping").await, "");
}

#[tokio::test]
async fn an_upgrade_crosses_http2_and_comes_back_to_http1() {
    let upstream =
        echo("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade").await;
    let websocket = "upgrade_configs: [{upgrade_type: websocket}]\n";
    let inner = format!(
        "http2_protocol_options: {{allow_connect: true}}\n{websocket}{}",
        routes("- match: {prefix: /chat}\n  route: {cluster: a}")
    );
    let proxy = Proxy::http(&inner, &[("a", upstream)]).await;
    // Interim responses must not keep the connection from the tunnel.
    let outer = format!(
        "proxy_100_continue: true\n{websocket}{}",
        routes("- match: {prefix: /}\n  route: {cluster: inner}")
    );
    let inner_address = proxy.address();
    let outer = http_listener(&outer);
    let second = Proxy::with(vec![outer, static_cluster("inner", inner_address, HTTP2)]).await;
    let head = "GET /chat HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let answer = tunnel(second.address(), head).await;
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    assert!(answer.contains("upgrade: websocket\r\n"), "{answer}");
    assert!(answer.contains("x-seen: get /chat http/1.1"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nping"), "{answer}");
}
