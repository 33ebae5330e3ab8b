//! Configuration that changes while traffic flows.

use std::time::Duration;

use amime_xds::{Resource, TypeUrl};

use crate::harness::{
    Backend, Proxy, Reply, http_listener, listener, route_config, static_cluster, update,
};

#[tokio::test]
async fn routes_change_between_two_requests_of_one_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (a, b) = (Backend::named("backend-a").await, Backend::named("backend-b").await);
    let proxy = Proxy::empty();
    let runtime = &proxy.runtime;
    let clusters = vec![static_cluster("a", a.address, ""), static_cluster("b", b.address, "")];
    assert_eq!(runtime.apply(&update(TypeUrl::Cluster, clusters)), vec![]);
    let rds = http_listener("rds: {route_config_name: '9080', config_source: {ads: {}}}");
    assert_eq!(runtime.apply(&update(TypeUrl::Listener, vec![rds])), vec![]);
    assert_eq!(runtime.required_names(TypeUrl::Route), ["9080"]);
    assert!(!runtime.ready(), "the listener waits for its routes");
    assert_eq!(runtime.apply(&update(TypeUrl::Route, vec![route_config("9080", "a")])), vec![]);
    proxy.settle().await;

    let mut client = tokio::net::TcpStream::connect(proxy.address()).await.expect("accepts");
    let mut ask = async || {
        client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("the proxy reads");
        let mut text = String::new();
        while !text.contains("backend-") || !text.ends_with(['a', 'b']) {
            let mut buf = [0; 1024];
            let count = client.read(&mut buf).await.expect("a response");
            assert!(count > 0, "the connection stays open");
            text.push_str(&String::from_utf8_lossy(&buf[..count]));
        }
        Reply::parse(&text).body
    };
    assert_eq!(ask().await, "backend-a");
    assert_eq!(runtime.apply(&update(TypeUrl::Route, vec![route_config("9080", "b")])), vec![]);
    proxy.settle().await;
    assert_eq!(ask().await, "backend-b");
}

#[tokio::test]
async fn a_bad_resource_is_refused_whole_and_the_old_one_serves_on() {
    let hcm = |body: &str| {
        format!(
            "route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {body}}}}}}}]}}]}}"
        )
    };
    let proxy = Proxy::empty();
    let old = proxy.runtime.apply(&update(TypeUrl::Listener, vec![http_listener(&hcm("old"))]));
    assert_eq!(old, vec![]);
    proxy.settle().await;
    let address = proxy.address();
    let mut message: envoy_types::pb::envoy::config::listener::v3::Listener =
        http_listener(&hcm("new")).decode().expect("our own encoding");
    message.filter_chains[0].filters[0].config_type = None;
    let bad = Resource::encode("http", &message);
    let rejected = proxy.runtime.apply(&update(TypeUrl::Listener, vec![bad]));
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0].error.contains("filter_chains[0].filters[0]"), "{}", rejected[0].error);
    assert_eq!(proxy.get("h", "/").await.body, "old");

    let good = proxy.runtime.apply(&update(TypeUrl::Listener, vec![http_listener(&hcm("new"))]));
    assert_eq!(good, vec![]);
    proxy.settle().await;
    assert_eq!(proxy.get("h", "/").await.body, "new");
    assert_eq!(proxy.address(), address, "the socket is kept");
}

#[tokio::test]
async fn a_busy_port_refuses_the_listener() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let proxy = Proxy::empty();
    let busy = listener(&format!(
        "name: http\naddress: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\nfilter_chains: [{{}}]"
    ));
    let rejected = proxy.runtime.apply(&update(TypeUrl::Listener, vec![busy]));
    assert!(rejected[0].error.contains("cannot bind"), "{}", rejected[0].error);
}

#[tokio::test]
async fn draining_finishes_requests_and_takes_no_more() {
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    let held = gate.clone();
    let backend = Backend::start_async(move |_| {
        let held = held.clone();
        async move {
            held.notified().await;
            http::Response::new("late".into())
        }
    })
    .await;
    let hcm = crate::harness::routes("- match: {prefix: /}\n  route: {cluster: a}");
    let proxy = std::sync::Arc::new(Proxy::http(&hcm, &[("a", backend.address)]).await);
    let address = proxy.address();
    let request = tokio::spawn(async move {
        // Without `connection: close`: the proxy itself must end it.
        crate::harness::raw(address, "GET / HTTP/1.1\r\nhost: h\r\n\r\n").await
    });
    while backend.count() == 0 {
        tokio::task::yield_now().await;
    }
    let runtime = proxy.runtime.clone();
    let drain = tokio::spawn(async move { runtime.drain(Duration::from_secs(10)).await });
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    gate.notify_one();
    assert_eq!(Reply::parse(&request.await.expect("the task ends")).body, "late");
    assert!(drain.await.expect("the task ends"), "all connections ended");
}
