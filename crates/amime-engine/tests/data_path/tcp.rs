//! TCP proxies: what is logged of them, and filters that need no upstream.

use std::net::SocketAddr;
use std::path::PathBuf;

use amime_xds::Resource;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Proxy, listener, static_cluster};

const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";

fn chain(filters: &str) -> Resource {
    listener(&format!(
        "name: http\naddress: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\nfilter_chains: [{{filters: [{filters}]}}]"
    ))
}

/// An access log that is gone when the test is.
struct Log(PathBuf);

impl Log {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("amime-tcp-{name}-{}.log", std::process::id())))
    }

    /// A TCP proxy to `a` that writes to it.
    fn proxy(&self, fields: &str) -> String {
        format!(
            r#"{{name: tcp, typed_config: {{"@type": {NETWORK}.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: a, {fields}, access_log: [{{name: f, typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: "{}", log_format: {{text_format_source: {{inline_string: "%ACCESS_LOG_TYPE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %CONNECTION_TERMINATION_DETAILS%\n"}}}}}}}}]}}}}"#,
            self.0.display()
        )
    }

    /// Waits for a line that begins with `start`.
    async fn line(&self, proxy: &Proxy, start: &str) -> String {
        let found = async {
            loop {
                proxy.telemetry.flush();
                let text = std::fs::read_to_string(&self.0).unwrap_or_default();
                if let Some(line) = text.lines().find(|line| line.starts_with(start)) {
                    return line.to_owned();
                }
                tokio::task::yield_now().await;
            }
        };
        let found = tokio::time::timeout(std::time::Duration::from_secs(10), found).await;
        found.unwrap_or_else(|_| panic!("no line {start} in {}", self.0.display()))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A server that sends back what it is sent.
async fn echo_server() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

async fn said(proxy: &Proxy, text: &str) -> (TcpStream, String) {
    let mut client = TcpStream::connect(proxy.address()).await.expect("the proxy accepts");
    client.write_all(text.as_bytes()).await.expect("the proxy reads");
    let mut answer = vec![0; text.len()];
    client.read_exact(&mut answer).await.expect("an answer");
    (client, String::from_utf8(answer).expect("text"))
}

#[tokio::test]
async fn connections_end_with_the_health_of_their_endpoint() {
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = server.local_addr().expect("an address");
    let (end, mut ended) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        // Checks are served until the test says so, and a client for ever.
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = tokio::select! {
            accepted = server.accept() => accepted,
            _ = &mut ended => Err(std::io::Error::other("no more")),
        } {
            // Who reads this is not in the queue any more when the server ends.
            let _ = stream.write_all(b"!").await;
            kept.push(stream);
        }
        drop(server);
        std::future::pending::<()>().await;
    });
    let fields = "health_checks: [{timeout: 1s, interval: 0.01s, no_traffic_interval: 0.01s, unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {}}]";
    let closing = format!("close_connections_on_host_health_failure: true\n{fields}");
    let tcp = |name: &str| {
        format!(
            r#"{{name: tcp, typed_config: {{"@type": {NETWORK}.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: {name}}}}}"#
        )
    };
    let closes = Proxy::with(vec![chain(&tcp("a")), static_cluster("a", address, &closing)]).await;
    let stays = Proxy::with(vec![chain(&tcp("b")), static_cluster("b", address, fields)]).await;
    let mut closed = TcpStream::connect(closes.address()).await.expect("the proxy accepts");
    let mut kept = TcpStream::connect(stays.address()).await.expect("the proxy accepts");
    closes.until_stat("cluster.a.upstream_cx_active: 1").await;
    stays.until_stat("cluster.b.upstream_cx_active: 1").await;
    for stream in [&mut closed, &mut kept] {
        assert_eq!(stream.read_u8().await.expect("accepted"), b'!');
    }
    end.send(()).expect("the server runs");
    let mut rest = Vec::new();
    closed.read_to_end(&mut rest).await.expect("the proxy closes it");
    while stays.runtime.dump().clusters[0].endpoints[0].health_flags.is_empty() {
        tokio::task::yield_now().await;
    }
    kept.write_all(b"still here").await.expect("nobody closed it");
    assert_eq!(stays.stats("cluster.b.upstream_cx_active"), ["cluster.b.upstream_cx_active: 1"]);
}

#[tokio::test]
async fn attempts_to_connect_are_counted_and_flagged() {
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = gone.local_addr().expect("an address");
    drop(gone);
    let log = Log::new("refused");
    let fields = "max_connect_attempts: 3, backoff_options: {base_interval: 0.001s}";
    let proxy =
        Proxy::with(vec![chain(&log.proxy(fields)), static_cluster("a", address, "")]).await;
    let mut client = TcpStream::connect(proxy.address()).await.expect("the proxy accepts");
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    assert_eq!(rest, b"");
    assert_eq!(log.line(&proxy, "TcpConnectionEnd").await, "TcpConnectionEnd UF,URX 0 0 3 -");
    proxy.until_stat("cluster.a.upstream_cx_connect_attempts_exceeded: 1").await;
}

#[tokio::test]
async fn open_connections_are_logged_and_end_when_their_time_is_over() {
    let log = Log::new("moments");
    let fields = "max_downstream_connection_duration: 1s, access_log_options: {flush_access_log_on_start: true, flush_access_log_on_connected: true, access_log_flush_interval: 0.05s}";
    let server = echo_server().await;
    let proxy = Proxy::with(vec![chain(&log.proxy(fields)), static_cluster("a", server, "")]).await;
    let (mut client, answer) = said(&proxy, "hi").await;
    assert_eq!(answer, "hi");
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    assert_eq!(log.line(&proxy, "TcpConnectionStart").await, "TcpConnectionStart - 0 0 0 -");
    assert_eq!(log.line(&proxy, "TcpUpstreamConnected").await, "TcpUpstreamConnected - 0 0 1 -");
    log.line(&proxy, "TcpPeriodic - 2 2 1 -").await;
    assert_eq!(log.line(&proxy, "TcpConnectionEnd").await, "TcpConnectionEnd DT 2 2 1 -");
    proxy.until_stat("tcp.t.max_downstream_connection_duration: 1").await;
}

#[tokio::test]
async fn a_refused_connection_is_logged_with_its_policy() {
    let log = Log::new("rbac");
    let rbac = format!(
        r#"{{name: rbac, typed_config: {{"@type": {NETWORK}.rbac.v3.RBAC, stat_prefix: r, shadow_rules_stat_prefix: dry_, shadow_rules: {{action: ALLOW}}, rules: {{action: DENY, policies: {{all: {{permissions: [{{any: true}}], principals: [{{any: true}}]}}}}}}}}}}"#
    );
    let filters = format!("{rbac}, {}", log.proxy("idle_timeout: 5s"));
    let server = echo_server().await;
    let proxy = Proxy::with(vec![chain(&filters), static_cluster("a", server, "")]).await;
    let mut client = TcpStream::connect(proxy.address()).await.expect("the proxy accepts");
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    assert_eq!(rest, b"");
    let line = log.line(&proxy, "TcpConnectionEnd").await;
    assert!(line.ends_with("rbac_access_denied_matched_policy[all]"), "{line}");
    // Shown with no connection open, it is still there the next time.
    for _ in 0..2 {
        assert_eq!(proxy.stats("r.rbac.denied"), ["r.rbac.denied: 1"]);
        assert_eq!(
            proxy.stats("r.rbac.dry_shadow_"),
            ["r.rbac.dry_shadow_allowed: 0", "r.rbac.dry_shadow_denied: 1"]
        );
    }
}

#[tokio::test]
async fn a_chain_holds_no_more_connections_than_it_may() {
    let filters = format!(
        r#"{{name: limit, typed_config: {{"@type": {NETWORK}.connection_limit.v3.ConnectionLimit, stat_prefix: l, max_connections: 1}}}}, {{name: echo, typed_config: {{"@type": {NETWORK}.echo.v3.Echo}}}}"#
    );
    let proxy = Proxy::with(vec![chain(&filters)]).await;
    let (first, answer) = said(&proxy, "one").await;
    assert_eq!(answer, "one");
    let mut second = TcpStream::connect(proxy.address()).await.expect("the proxy accepts");
    let mut rest = Vec::new();
    let _ = second.read_to_end(&mut rest).await;
    assert_eq!(rest, b"", "one too many");
    drop(first);
    while proxy.runtime.connections() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(said(&proxy, "three").await.1, "three");
}

#[tokio::test]
async fn a_chain_may_just_say_something() {
    let filters = format!(
        r#"{{name: say, typed_config: {{"@type": {NETWORK}.direct_response.v3.Config, response: {{inline_string: hello}}}}}}"#
    );
    let proxy = Proxy::with(vec![chain(&filters)]).await;
    let mut client = TcpStream::connect(proxy.address()).await.expect("the proxy accepts");
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("an answer");
    assert_eq!(answer, "hello");
}
