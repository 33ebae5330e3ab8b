//! Requests that are bound to an endpoint: by a hash, a cookie, a header or
//! the address that their client dialed.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use xxhash_rust::xxh64::xxh64;

use crate::harness::{Backend, Proxy, Reply, cluster, endpoints_cluster, http_listener, routes};

const COOKIE: &str = "- match: {prefix: /}\n  route: {cluster: c, hash_policy: [{cookie: {name: user, ttl: 60s, path: /p, attributes: [{name: SameSite, value: Lax}, {name: Secure}]}}]}";

/// Sends a request on `client` and reads the answer of a named backend.
async fn ask(client: &mut TcpStream, more: &str) -> Reply {
    let request = format!("GET /p HTTP/1.1\r\nhost: h\r\n{more}\r\n");
    client.write_all(request.as_bytes()).await.expect("the proxy reads");
    let mut text = String::new();
    while !text.contains("backend-") {
        let mut buf = [0; 1024];
        let count = client.read(&mut buf).await.expect("an answer");
        assert!(count > 0, "the connection stays open");
        text.push_str(&String::from_utf8_lossy(&buf[..count]));
    }
    Reply::parse(&text)
}

#[tokio::test]
async fn a_client_without_the_cookie_gets_one_that_keeps_it_in_place() {
    let (a, b) = (Backend::named("backend-a").await, Backend::named("backend-b").await);
    let addresses = [a.address, b.address];
    let cluster = endpoints_cluster("c", &addresses, "lb_policy: RING_HASH");
    let proxy = Proxy::with(vec![http_listener(&routes(COOKIE)), cluster]).await;
    for _ in 0..10 {
        let mut client = TcpStream::connect(proxy.address()).await.expect("the proxy accepts");
        let ends = format!("{}{}", client.local_addr().expect("bound"), proxy.address());
        let value = format!("{:016x}", xxh64(ends.as_bytes(), 0));
        let first = ask(&mut client, "").await;
        let want = format!("user=\"{value}\"; max-age=60; path=/p; samesite=lax; secure; httponly");
        assert_eq!(first.header("set-cookie"), Some(&*want));
        assert_eq!(ask(&mut client, "").await.body, first.body, "before the cookie comes back");
        let with = ask(&mut client, &format!("cookie: user={value}\r\n")).await;
        assert_eq!((with.header("set-cookie"), &with.body), (None, &first.body));
    }
}

#[tokio::test]
async fn no_cookie_is_set_where_no_hash_is_used() {
    let backend = Backend::named("backend-a").await;
    let cluster = endpoints_cluster("c", &[backend.address], "lb_policy: ROUND_ROBIN");
    let proxy = Proxy::with(vec![http_listener(&routes(COOKIE)), cluster]).await;
    assert_eq!(proxy.get("h", "/").await.header("set-cookie"), None);
}

#[tokio::test]
async fn a_header_can_stand_for_the_address_that_was_dialed() {
    let (a, b) = (Backend::named("backend-a").await, Backend::named("backend-b").await);
    let hcm = routes(
        "- match: {prefix: /port}\n  route: {cluster: port}\n- match: {prefix: /}\n  route: {cluster: c}",
    );
    let any = cluster(
        "name: c\ntype: ORIGINAL_DST\nlb_policy: CLUSTER_PROVIDED\noriginal_dst_lb_config: {use_http_header: true}",
    );
    let port = cluster(&format!(
        "name: port\ntype: ORIGINAL_DST\nlb_policy: CLUSTER_PROVIDED\noriginal_dst_lb_config: {{use_http_header: true, http_header_name: x-to, upstream_port_override: {}}}",
        b.address.port()
    ));
    let proxy = Proxy::with(vec![http_listener(&hcm), any, port]).await;
    let to = async |path: &str, header: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nhost: h\r\n{header}\r\n");
        let reply = proxy.request(&head).await;
        (reply.status, reply.body)
    };
    let dialed = |text: &str, address| format!("{text}: {address}");
    assert_eq!(
        to("/", &dialed("x-envoy-original-dst-host", a.address)).await,
        (200, "backend-a".to_owned())
    );
    assert_eq!(to("/port", &dialed("x-to", a.address)).await, (200, "backend-b".to_owned()));
    assert_eq!(to("/", "x-other: 1").await.0, 503, "nothing says where to");
    assert_eq!(to("/", "x-envoy-original-dst-host: name:80").await.0, 503);
}
