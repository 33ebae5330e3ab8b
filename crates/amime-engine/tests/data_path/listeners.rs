//! Listeners: filter chains, TCP, server-first protocols.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Backend, Proxy, Reply, listener, raw, static_cluster};

const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const HCM: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

fn sniffing_listener() -> amime_xds::Resource {
    listener(&format!(
        r#"name: http
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
listener_filters_timeout: 0s
continue_on_listener_filters_timeout: true
listener_filters:
- name: envoy.filters.listener.tls_inspector
  typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}
- name: envoy.filters.listener.http_inspector
  typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}
filter_chains:
- filter_chain_match: {{application_protocols: [http/1.1, h2c]}}
  filters:
  - name: hcm
    typed_config:
      "@type": {HCM}
      stat_prefix: sniffed
      route_config:
        name: r
        virtual_hosts: [{{name: v, domains: ["*"], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: http}}}}}}]}}]
      http_filters:
      - name: router
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
default_filter_chain:
  filters:
  - name: tcp
    typed_config: {{"@type": {TCP}, stat_prefix: tcp, cluster: t}}"#
    ))
}

#[tokio::test]
async fn a_server_that_speaks_first_is_not_kept_waiting() {
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = server.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = server.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"220 hello\r\n").await.expect("the proxy reads");
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.expect("half-close arrives");
                stream.write_all(&rest).await.expect("the proxy still reads");
            });
        }
    });
    let proxy = Proxy::with(vec![sniffing_listener(), static_cluster("t", address, "")]).await;
    let begun = Instant::now();
    let mut client = TcpStream::connect(proxy.address()).await.expect("the proxy accepts");
    let mut greeting = [0; 11];
    client.read_exact(&mut greeting).await.expect("a greeting");
    assert_eq!(&greeting, b"220 hello\r\n");
    assert!(begun.elapsed() < Duration::from_secs(1));
    client.write_all(b"QUIT\r\n").await.expect("the proxy reads");
    client.shutdown().await.expect("half-close");
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.expect("the echo");
    assert_eq!(rest, "QUIT\r\n");
}

#[tokio::test]
async fn http_is_told_from_other_protocols_by_its_first_line() {
    let backend = Backend::named("tcp").await;
    let proxy =
        Proxy::with(vec![sniffing_listener(), static_cluster("t", backend.address, "")]).await;
    let http = Reply::parse(
        &raw(proxy.address(), "GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await,
    );
    assert_eq!(http.body, "http");
    // HTTP/1.0 is not among the chain's protocols, so its bytes pass as they are.
    let tcp = Reply::parse(&raw(proxy.address(), "GET / HTTP/1.0\r\nhost: h\r\n\r\n").await);
    assert_eq!(tcp.body, "tcp");
}

#[tokio::test]
async fn a_websocket_passes_both_ways() {
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = server.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.expect("the proxy connects");
        let mut head = vec![0; 2048];
        let mut read = 0;
        while !head[..read].ends_with(b"\r\n\r\n") {
            read += stream.read(&mut head[read..]).await.expect("a request");
        }
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
        let mut ping = [0; 4];
        stream.read_exact(&mut ping).await.expect("a frame");
        stream.write_all(b"pong").await.expect("the proxy reads");
    });
    let hcm = crate::harness::routes("- match: {prefix: /}\n  route: {cluster: a}");
    let hcm = format!("{hcm}upgrade_configs: [{{upgrade_type: websocket}}]\n");
    let proxy = Proxy::http(&hcm, &[("a", address)]).await;
    let mut client = TcpStream::connect(proxy.address()).await.expect("the proxy accepts");
    let request =
        "GET /chat HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    client.write_all(request.as_bytes()).await.expect("the proxy reads");
    let mut head = vec![0; 2048];
    let mut read = 0;
    while !head[..read].ends_with(b"\r\n\r\n") {
        read += client.read(&mut head[read..]).await.expect("a response");
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    client.write_all(b"ping").await.expect("the proxy reads");
    let mut pong = [0; 4];
    client.read_exact(&mut pong).await.expect("a frame");
    assert_eq!(&pong, b"pong");
}

#[tokio::test]
async fn filters_that_do_nothing_are_reported() {
    let listener = listener(&format!(
        r#"name: http
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
filter_chains:
- filters:
  - name: mx
    typed_config: {{"@type": type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange, protocol: istio-peer-exchange}}
  - name: hcm
    typed_config:
      "@type": {HCM}
      stat_prefix: h
      route_config: {{name: r}}
      http_filters:
      - name: state
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config}}
      - name: router
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"#
    ));
    let proxy = Proxy::with(vec![listener]).await;
    let dump = proxy.runtime.dump();
    let held = dump.resources.iter().find(|held| held.name == "http").expect("held");
    for filter in ["(mx).typed_config: ", "(state).typed_config: "] {
        let found = held.ignored_fields.iter().any(|field| field.contains(filter));
        assert!(found, "{filter} in {:?}", held.ignored_fields);
    }
}

/// A listener on two addresses, each with a chain that answers its text.
fn two_chains(first: &str, second: &str) -> amime_xds::Resource {
    let chain = |text: &str| {
        format!(
            r#"filters: [{{name: hcm, typed_config: {{"@type": {HCM}, stat_prefix: two, route_config: {{name: r, virtual_hosts: [{{name: v, domains: ["*"], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {text}}}}}}}]}}]}}, http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]"#
        )
    };
    let (first, second) = (chain(first), chain(second));
    listener(&format!(
        r#"name: http
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
additional_addresses: [{{address: {{socket_address: {{address: 127.0.0.2, port_value: 0}}}}}}]
socket_options: [{{level: 1, name: 12, int_value: 3, state: STATE_PREBIND}}]
filter_chains:
- {{filter_chain_match: {{prefix_ranges: [{{address_prefix: 127.0.0.2, prefix_len: 32}}]}}, {second}}}
- {{{first}}}"#
    ))
}

/// A connection that stays open, and one request on it.
async fn ask(stream: &mut TcpStream) -> Reply {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("the proxy reads");
    let mut text = String::new();
    while !text.contains("body-") {
        let mut buf = [0; 1024];
        let count = stream.read(&mut buf).await.expect("a response");
        assert!(count > 0, "the connection stays open: {text}");
        text.push_str(&String::from_utf8_lossy(&buf[..count]));
    }
    Reply::parse(&text)
}

#[tokio::test]
async fn a_changed_filter_chain_ends_its_own_connections_only() {
    let proxy = Proxy::with(vec![two_chains("body-a", "body-b")]).await;
    let addresses = proxy.runtime.listener_addresses("http");
    let [first, second] = addresses.as_slice() else { panic!("two addresses: {addresses:?}") };
    let mut kept = TcpStream::connect(first).await.expect("the proxy accepts");
    let mut drained = TcpStream::connect(second).await.expect("the proxy accepts");
    assert_eq!(ask(&mut kept).await.body, "body-a");
    assert_eq!(ask(&mut drained).await.body, "body-b");

    let mut changed = two_chains("body-a", "body-c");
    changed.version = "2".into();
    proxy.apply(vec![changed]).await;
    assert_eq!(proxy.runtime.listener_addresses("http"), addresses, "the sockets are kept");
    let (kept, drained) = (ask(&mut kept).await, ask(&mut drained).await);
    assert_eq!((kept.body.as_str(), kept.header("connection")), ("body-a", None));
    assert_eq!((drained.body.as_str(), drained.header("connection")), ("body-b", Some("close")));
    let mut new = TcpStream::connect(second).await.expect("the proxy accepts");
    assert_eq!(ask(&mut new).await.body, "body-c");
}

#[tokio::test]
async fn contradictory_filter_chains_are_refused() {
    let check = |chains: &str, want: &str| {
        let yaml = format!(
            "name: http\naddress: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\nfilter_chains: {chains}"
        );
        let update = amime_xds::client::Update {
            type_url: amime_xds::TypeUrl::Listener,
            added: vec![listener(&yaml)],
            removed: Vec::new(),
        };
        let refused = Proxy::empty().runtime.apply(&update);
        assert!(refused.len() == 1 && refused[0].error.contains(want), "{want}: {refused:?}");
    };
    check(
        "[{filter_chain_match: {server_names: [a.b, c.d]}}, {filter_chain_match: {server_names: [c.d]}}]",
        "filter_chains[1].filter_chain_match: matches what filter_chains[0] matches",
    );
    check("[{filter_chain_match: {server_names: ['a.*.b']}}]", "filter_chain_match.server_names");
}

#[tokio::test]
async fn connections_of_a_listener_that_only_changes_drain_stay_when_the_proxy_drains() {
    for (kind, left) in [("DEFAULT", true), ("MODIFY_ONLY", false)] {
        let hcm = crate::harness::routes(
            "- match: {prefix: /}\n  direct_response: {status: 200, body: {inline_string: body-a}}",
        );
        let yaml = format!("{}\ndrain_type: {kind}", crate::harness::http_listener_yaml(&hcm));
        let proxy = Proxy::with(vec![listener(&yaml)]).await;
        let mut client = TcpStream::connect(proxy.address()).await.expect("the proxy accepts");
        assert_eq!(ask(&mut client).await.body, "body-a");
        let deadline = Duration::from_secs(if left { 10 } else { 0 });
        assert_eq!(proxy.runtime.drain(deadline).await, left, "{kind}");
        if !left {
            assert_eq!(ask(&mut client).await.header("connection"), None);
        }
    }
}

#[tokio::test]
async fn counts_of_connections_outlive_them() {
    let hcm = crate::harness::routes("- match: {prefix: /}\n  direct_response: {status: 200}");
    let proxy = Proxy::http(&hcm, &[]).await;
    proxy.get("h", "/").await;
    proxy.until_stat("http.test.downstream_cx_active: 0").await;
    // A block that has been shown is forgotten, unless it is in use.
    let shown = proxy.stats("http.test.downstream_cx_total");
    assert_eq!(shown, ["http.test.downstream_cx_total: 1"]);
    assert_eq!(proxy.stats("http.test.downstream_cx_total"), shown);
}
