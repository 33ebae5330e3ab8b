//! Clusters whose endpoints are names.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use amime_xds::client::Update;
use amime_xds::{Resource, TypeUrl};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use http::Response;
use http_body_util::Full;
use tokio::net::{TcpListener, UdpSocket};

use crate::harness::{Backend, Proxy, cluster, http_listener, routes, update};

/// What the server answers for a name.
#[derive(Clone, Debug)]
enum Zone {
    Addresses(Vec<IpAddr>, u32),
    Failure,
    Silence,
}

/// A name server on loopback.
struct NameServer {
    address: SocketAddr,
    zones: Arc<Mutex<HashMap<String, Zone>>>,
    asked: Arc<AtomicUsize>,
}

impl NameServer {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let address = socket.local_addr().expect("an address");
        let zones: Arc<Mutex<HashMap<String, Zone>>> = Arc::default();
        let asked: Arc<AtomicUsize> = Arc::default();
        let (known, count) = (zones.clone(), asked.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
                count.fetch_add(1, Ordering::Relaxed);
                let answer = answer(&query, &known.lock().expect("not poisoned"));
                if let Some(answer) = answer {
                    let _ = socket.send_to(&answer.to_vec().expect("encodes"), peer).await;
                }
            }
        });
        Self { address, zones, asked }
    }

    fn set(&self, name: &str, zone: Zone) {
        self.zones.lock().expect("not poisoned").insert(format!("{name}."), zone);
    }

    fn serve(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|one| one.parse().expect("an address")).collect();
        self.set(name, Zone::Addresses(addresses, 1));
    }

    /// The YAML of a resolver that asks this server.
    fn resolver(&self) -> String {
        format!(
            "typed_dns_resolver_config: {{name: cares, typed_config: {{'@type': type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, resolvers: [{{socket_address: {{address: 127.0.0.1, port_value: {}}}}}]}}}}",
            self.address.port()
        )
    }
}

fn answer(query: &Message, zones: &HashMap<String, Zone>) -> Option<Message> {
    let asked = query.queries.first()?;
    let mut answer = query.clone();
    answer.metadata.message_type = MessageType::Response;
    let zone = zones.get(&asked.name().to_string().to_ascii_lowercase());
    match zone {
        Some(Zone::Silence) => return None,
        Some(Zone::Failure) => answer.metadata.response_code = ResponseCode::ServFail,
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(Zone::Addresses(addresses, ttl)) => {
            for address in addresses {
                let data = match address {
                    IpAddr::V4(ip) if asked.query_type() == RecordType::A => RData::A((*ip).into()),
                    IpAddr::V6(ip) if asked.query_type() == RecordType::AAAA => {
                        RData::AAAA((*ip).into())
                    }
                    _ => continue,
                };
                answer.answers.push(Record::from_rdata(asked.name().clone(), *ttl, data));
            }
        }
    }
    Some(answer)
}

/// Backends `a` at 127.0.0.1 and `b` at 127.0.0.2, on one port.
async fn twins() -> (Backend, Backend) {
    let first = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = first.local_addr().expect("an address").port();
    let second = TcpListener::bind(("127.0.0.2", port)).await.expect("the same port elsewhere");
    let named = |socket, name: &'static str| {
        Backend::on(socket, move |_| async move { Response::new(Full::from(name)) })
    };
    (named(first, "a"), named(second, "b"))
}

/// A cluster `c` of `kind` (YAML of its type) with endpoints by name.
fn named_cluster(kind: &str, endpoints: &[(&str, u16)], fields: &str) -> Resource {
    let endpoints: String = endpoints
        .iter()
        .map(|(name, port)| {
            format!("\n    - endpoint: {{address: {{socket_address: {{address: {name}, port_value: {port}}}}}}}")
        })
        .collect();
    cluster(&format!(
        "name: c\n{kind}\nconnect_timeout: 1s\n{fields}\nload_assignment:\n  cluster_name: c\n  endpoints:\n  - lb_endpoints:{endpoints}\n"
    ))
}

async fn proxy(cluster: Resource) -> Proxy {
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: c}");
    Proxy::with(vec![cluster, http_listener(&hcm)]).await
}

fn addresses(proxy: &Proxy) -> Vec<String> {
    let dump = proxy.runtime.dump();
    let endpoints = dump.clusters.into_iter().flat_map(|cluster| cluster.endpoints);
    endpoints.map(|one| one.address.ip().to_string()).collect()
}

async fn until_addresses(proxy: &Proxy, want: &[&str]) {
    while addresses(proxy) != want {
        tokio::task::yield_now().await;
    }
    proxy.settle().await;
}

#[tokio::test]
async fn strict_dns_has_all_addresses_and_follows_them() {
    let (server, (a, b)) = (NameServer::start().await, twins().await);
    server.serve("svc.test", &["127.0.0.1", "127.0.0.2"]);
    let fields =
        format!("dns_refresh_rate: 0.02s\ndns_lookup_family: V4_ONLY\n{}", server.resolver());
    let endpoints = [("svc.test", a.address.port())];
    let proxy = proxy(named_cluster("type: STRICT_DNS", &endpoints, &fields)).await;
    while a.count() == 0 || b.count() == 0 {
        assert_eq!(proxy.get("h", "/").await.status, 200);
    }
    server.serve("svc.test", &["127.0.0.2"]);
    until_addresses(&proxy, &["127.0.0.2"]).await;
    assert_eq!(proxy.get("h", "/").await.body, "b");
    server.set("svc.test", Zone::Failure);
    let asked = server.asked.load(Ordering::Relaxed);
    while server.asked.load(Ordering::Relaxed) < asked + 8 {
        tokio::task::yield_now().await;
    }
    assert_eq!(proxy.get("h", "/").await.body, "b", "a failure changes nothing");
    server.zones.lock().expect("not poisoned").clear();
    until_addresses(&proxy, &[]).await;
    assert_eq!(proxy.get("h", "/").await.body, "no healthy upstream");
}

#[tokio::test]
async fn each_name_is_looked_up_for_itself_with_its_place_kept() {
    let (server, (a, _b)) = (NameServer::start().await, twins().await);
    server.serve("one.test", &["127.0.0.1"]);
    server.serve("two.test", &["127.0.0.2"]);
    server.set("never.test", Zone::Failure);
    let port = a.address.port();
    let endpoints = [("one.test", port), ("never.test", port), ("two.test", port)];
    let fields = format!("dns_lookup_family: V4_ONLY\n{}", server.resolver());
    let proxy = proxy(named_cluster("type: STRICT_DNS", &endpoints, &fields)).await;
    assert_eq!(addresses(&proxy), ["127.0.0.1", "127.0.0.2"]);
}

#[tokio::test]
async fn logical_dns_has_one_address_and_keeps_connections() {
    let (server, (a, b)) = (NameServer::start().await, twins().await);
    server.serve("svc.test", &["127.0.0.1", "127.0.0.2"]);
    let fields =
        format!("dns_refresh_rate: 0.02s\ndns_lookup_family: V4_ONLY\n{}", server.resolver());
    let endpoints = [("svc.test", a.address.port())];
    let runtime = proxy(named_cluster("type: LOGICAL_DNS", &endpoints, &fields)).await;
    assert_eq!(addresses(&runtime), ["127.0.0.1"]);
    let mut client = tokio::net::TcpStream::connect(runtime.address()).await.expect("accepts");
    assert_eq!(ask(&mut client).await, "a");
    server.serve("svc.test", &["127.0.0.2"]);
    until_addresses(&runtime, &["127.0.0.2"]).await;
    assert_eq!(ask(&mut client).await, "a", "the connection that is there serves on");
    // Without addresses the last known one stays.
    server.zones.lock().expect("not poisoned").clear();
    assert_eq!((a.count(), b.count()), (2, 0));
    assert_eq!(addresses(&runtime), ["127.0.0.2"]);
}

/// One request on a connection that stays; the body.
async fn ask(client: &mut tokio::net::TcpStream) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("the proxy reads");
    let mut text = Vec::new();
    while !text.ends_with(b"a") && !text.ends_with(b"b")
        || !text.windows(4).any(|w| w == b"\r\n\r\n")
    {
        let count = client.read_buf(&mut text).await.expect("a response");
        assert!(count > 0, "the connection stays open");
    }
    String::from_utf8_lossy(&text[text.len() - 1..]).into_owned()
}

#[tokio::test]
async fn the_time_to_live_counts_where_it_is_to_be_respected() {
    let (server, (a, _b)) = (NameServer::start().await, twins().await);
    server.serve("svc.test", &["127.0.0.1"]);
    let fields = format!(
        "dns_refresh_rate: 3600s\nrespect_dns_ttl: true\ndns_lookup_family: V4_ONLY\n{}",
        server.resolver()
    );
    let endpoints = [("svc.test", a.address.port())];
    let proxy = proxy(named_cluster("type: STRICT_DNS", &endpoints, &fields)).await;
    assert_eq!(proxy.get("h", "/").await.body, "a");
    server.serve("svc.test", &["127.0.0.2"]);
    until_addresses(&proxy, &["127.0.0.2"]).await;
    assert_eq!(proxy.get("h", "/").await.body, "b");
}

#[tokio::test]
async fn the_typed_cluster_tries_all_addresses_of_its_one_endpoint() {
    let (server, (a, _b)) = (NameServer::start().await, twins().await);
    // Nobody listens at the first one.
    server.serve("svc.test", &["::1", "127.0.0.1"]);
    let kind = format!(
        "cluster_type: {{name: envoy.clusters.dns, typed_config: {{'@type': type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, dns_lookup_family: ALL, all_addresses_in_single_endpoint: true, {}}}}}",
        server.resolver()
    );
    let endpoints = [("svc.test", a.address.port())];
    let proxy = proxy(named_cluster(&kind, &endpoints, "")).await;
    assert_eq!(addresses(&proxy), ["::1"]);
    assert_eq!(proxy.get("h", "/").await.body, "a");
}

#[tokio::test]
async fn a_cluster_warms_until_its_names_were_looked_up() {
    let (server, (a, _b)) = (NameServer::start().await, twins().await);
    server.set("svc.test", Zone::Silence);
    let fields = format!("dns_lookup_family: V4_ONLY\n{}", server.resolver());
    let endpoints = [("svc.test", a.address.port())];
    let made = |fields: &str| named_cluster("type: STRICT_DNS", &endpoints, fields);
    let proxy = Proxy::empty();
    let send = |cluster| {
        let update: Update = update(TypeUrl::Cluster, vec![cluster]);
        assert_eq!(proxy.runtime.apply(&update), vec![]);
    };
    send(made(&fields));
    assert!(!proxy.runtime.settled());
    send(made(&format!("{fields}\nwait_for_warm_on_init: false")));
    assert!(proxy.runtime.dump().resources.iter().all(|one| !one.warming));
}

#[tokio::test]
async fn names_are_refused_where_nothing_resolves_them() {
    let check = |kind: &str, endpoints: &[(&str, u16)], want: &str| {
        let proxy = Proxy::empty();
        let update = update(TypeUrl::Cluster, vec![named_cluster(kind, endpoints, "")]);
        let rejected = proxy.runtime.apply(&update);
        assert!(rejected[0].error.contains(want), "{rejected:?}");
    };
    check("type: STATIC", &[("svc.test", 80)], "`svc.test` is not an IP address");
    let two = [("a.test", 80), ("b.test", 80)];
    check("type: LOGICAL_DNS", &two, "exactly one endpoint");
}

/// A cluster `c` whose hosts are those that requests name.
fn dynamic_cluster(server: &NameServer, fields: &str) -> Resource {
    cluster(&format!(
        "name: c
lb_policy: CLUSTER_PROVIDED
connect_timeout: 1s
cluster_type:
  name: envoy.clusters.dynamic_forward_proxy
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig
    dns_cache_config: {{name: cache, dns_lookup_family: V4_ONLY, {}, {fields}}}
",
        server.resolver()
    ))
}

#[tokio::test]
async fn hosts_that_requests_name_are_looked_up_once() {
    let (server, (a, _b)) = (NameServer::start().await, twins().await);
    server.serve("a.test", &["127.0.0.1"]);
    server.serve("b.test", &["127.0.0.2"]);
    let proxy = proxy(dynamic_cluster(&server, "")).await;
    let port = a.address.port();
    for name in ["a", "b", "a", "b"] {
        let response = proxy.get(&format!("{name}.test:{port}"), "/").await;
        assert_eq!(response.body, name);
    }
    assert_eq!(server.asked.load(Ordering::Relaxed), 2);
    for _ in 0..2 {
        let response = proxy.get(&format!("none.test:{port}"), "/").await;
        assert_eq!((response.status, response.body.as_str()), (503, "no healthy upstream"));
    }
    assert_eq!(server.asked.load(Ordering::Relaxed), 3, "that there is none is remembered");
}

#[tokio::test]
async fn a_silent_name_server_costs_no_more_than_the_time_for_queries() {
    let server = NameServer::start().await;
    server.set("a.test", Zone::Silence);
    let proxy = proxy(dynamic_cluster(&server, "dns_query_timeout: 0.05s")).await;
    assert_eq!(proxy.get("a.test", "/").await.body, "no healthy upstream");
    assert_eq!(server.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn requests_name_no_more_hosts_than_the_cache_may_hold() {
    let (server, (a, _b)) = (NameServer::start().await, twins().await);
    server.serve("a.test", &["127.0.0.1"]);
    server.serve("b.test", &["127.0.0.2"]);
    let proxy = proxy(dynamic_cluster(&server, "max_hosts: 1")).await;
    let port = a.address.port();
    for (name, body) in [("a", "a"), ("b", "no healthy upstream"), ("a", "a")] {
        assert_eq!(proxy.get(&format!("{name}.test:{port}"), "/").await.body, body);
    }
}
