//! Clusters and listeners that wait for what they need, beside the versions
//! that they replace.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use amime_xds::client::Update;
use amime_xds::{Resource, TypeUrl};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{
    Backend, Proxy, Reply, assignment, cluster, http_listener, listener, route_config, routes,
    static_cluster, update,
};

/// A cluster whose endpoints come by EDS, with more YAML fields.
fn eds_cluster(name: &str, timeout: &str, fields: &str) -> Resource {
    cluster(&format!(
        "name: {name}\ntype: EDS\nconnect_timeout: 1s\neds_cluster_config: {{eds_config: \
         {{ads: {{}}, initial_fetch_timeout: {timeout}}}}}\n{fields}"
    ))
}

fn rds_listener(route_config: &str) -> Resource {
    http_listener(&format!(
        "rds: {{route_config_name: '{route_config}', config_source: {{ads: {{}}, initial_fetch_timeout: 0s}}}}"
    ))
}

#[track_caller]
fn send(proxy: &Proxy, type_url: TypeUrl, added: Vec<Resource>) {
    assert_eq!(proxy.runtime.apply(&update(type_url, added)), vec![]);
}

/// Versions held of a resource: in force, warming.
fn states(proxy: &Proxy, type_url: TypeUrl, name: &str) -> Vec<&'static str> {
    let dump = proxy.runtime.dump();
    let of = dump.resources.into_iter().filter(|one| one.type_url == type_url && one.name == name);
    of.map(|one| if one.warming { "warming" } else { "active" }).collect()
}

#[tokio::test]
async fn at_the_start_listeners_follow_clusters_which_follow_their_endpoints() {
    let backend = Backend::named("a").await;
    let proxy = Proxy::empty();
    send(&proxy, TypeUrl::Cluster, vec![eds_cluster("a", "0s", "")]);
    let own_routes = routes("- match: {prefix: /}\n  route: {cluster: a}");
    send(&proxy, TypeUrl::Listener, vec![http_listener(&own_routes)]);
    assert_eq!(states(&proxy, TypeUrl::Cluster, "a"), ["warming"]);
    assert_eq!(states(&proxy, TypeUrl::Listener, "http"), ["warming"]);
    assert_eq!(proxy.runtime.required_names(TypeUrl::Endpoint), ["a"]);
    assert!(!proxy.runtime.ready());
    send(&proxy, TypeUrl::Endpoint, vec![assignment("a", &[backend.address])]);
    proxy.settle().await;
    assert!(proxy.runtime.ready());
    assert_eq!(states(&proxy, TypeUrl::Cluster, "a"), ["active"]);
    assert_eq!(proxy.get("h", "/").await.body, "a");
    send(&proxy, TypeUrl::Cluster, vec![eds_cluster("b", "0s", "")]);
    assert!(proxy.runtime.ready(), "what warms later leaves a proxy ready");
}

#[tokio::test]
async fn the_old_version_of_a_cluster_serves_while_the_new_one_warms() {
    let (old, new) = (Backend::named("old").await, Backend::named("new").await);
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: a}");
    let proxy = Proxy::empty();
    send(&proxy, TypeUrl::Cluster, vec![static_cluster("a", old.address, "")]);
    send(&proxy, TypeUrl::Listener, vec![http_listener(&hcm)]);
    proxy.settle().await;
    send(&proxy, TypeUrl::Cluster, vec![eds_cluster("a", "0s", "")]);
    assert_eq!(states(&proxy, TypeUrl::Cluster, "a"), ["active", "warming"]);
    assert_eq!(proxy.get("h", "/").await.body, "old");
    send(&proxy, TypeUrl::Endpoint, vec![assignment("a", &[new.address])]);
    proxy.settle().await;
    assert_eq!(states(&proxy, TypeUrl::Cluster, "a"), ["active"]);
    assert_eq!(proxy.get("h", "/").await.body, "new");
    // Endpoints that are known need not come again.
    send(&proxy, TypeUrl::Cluster, vec![eds_cluster("a", "0s", "lb_policy: RANDOM")]);
    assert_eq!(states(&proxy, TypeUrl::Cluster, "a"), ["active"]);
    // Like Envoy: a removed assignment empties no cluster.
    let removed = vec!["a".to_owned()];
    proxy.runtime.apply(&Update { type_url: TypeUrl::Endpoint, added: vec![], removed });
    proxy.settle().await;
    assert_eq!(proxy.get("h", "/").await.body, "new");
}

/// A proxy whose one worker knows that cluster `a` is to come, for which there
/// is a route.
async fn expecting() -> Proxy {
    let there = Backend::named("there").await;
    let proxy = Proxy::of_one_worker();
    let hcm = routes(
        "- match: {path: /there}\n  route: {cluster: there}\n- match: {prefix: /}\n  route: {cluster: a}",
    );
    send(&proxy, TypeUrl::Listener, vec![http_listener(&hcm)]);
    proxy.settle().await;
    let reply = proxy.get("h", "/").await;
    assert_eq!((reply.status, reply.body.as_str()), (503, ""), "no cluster");
    let known = static_cluster("there", there.address, "");
    send(&proxy, TypeUrl::Cluster, vec![eds_cluster("a", "0s", ""), known]);
    while proxy.get("h", "/there").await.status != 200 {}
    proxy
}

#[tokio::test]
async fn a_request_waits_for_a_cluster_that_warms() {
    let proxy = expecting().await;
    let comes = async {
        proxy.until_stat("downstream_rq_active: 1").await;
        // The control plane says that there is no such assignment.
        let removed = vec!["a".to_owned()];
        proxy.runtime.apply(&Update { type_url: TypeUrl::Endpoint, added: vec![], removed });
    };
    let (reply, ()) = tokio::join!(proxy.get("h", "/"), comes);
    assert_eq!((reply.status, reply.body.as_str()), (503, "no healthy upstream"));
}

#[tokio::test]
async fn a_request_waits_for_no_cluster_that_went_before_it_came() {
    let proxy = expecting().await;
    let goes = async {
        proxy.until_stat("downstream_rq_active: 1").await;
        let removed = vec!["a".to_owned()];
        proxy.runtime.apply(&Update { type_url: TypeUrl::Cluster, added: vec![], removed });
    };
    let (reply, ()) = tokio::join!(proxy.get("h", "/"), goes);
    assert_eq!((reply.status, reply.body.as_str()), (503, ""), "no cluster");
}

/// The way of a request is that of its route, whatever becomes of both while
/// filters look at it.
#[tokio::test]
async fn a_delayed_request_goes_to_the_cluster_of_its_route_though_both_are_gone() {
    let backend = Backend::named("a").await;
    let hcm = format!(
        "{}http_filters:
- name: fault
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
    delay: {{fixed_delay: 0.5s, percentage: {{numerator: 100}}}}
- name: router
  typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}",
        routes("- match: {prefix: /}\n  route: {cluster: a}")
    );
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    let change = async {
        proxy.until_stat("downstream_rq_active: 1").await;
        let removed = vec!["a".to_owned()];
        proxy.runtime.apply(&Update { type_url: TypeUrl::Cluster, added: vec![], removed });
    };
    let (reply, ()) = tokio::join!(proxy.get("h", "/"), change);
    assert_eq!((reply.status, reply.body.as_str()), (200, "a"));
}

#[tokio::test]
async fn waiting_ends_after_the_initial_fetch_timeout() {
    let proxy = Proxy::empty();
    send(&proxy, TypeUrl::Cluster, vec![eds_cluster("a", "0.05s", "")]);
    let rds = "rds: {route_config_name: r, config_source: {ads: {}, initial_fetch_timeout: 0.01s}}";
    send(&proxy, TypeUrl::Listener, vec![http_listener(rds)]);
    assert_eq!(states(&proxy, TypeUrl::Cluster, "a"), ["warming"]);
    proxy.settle().await;
    assert_eq!(proxy.get("h", "/").await.status, 404, "no routes");
    send(&proxy, TypeUrl::Route, vec![route_config("r", "a")]);
    proxy.settle().await;
    assert_eq!(proxy.get("h", "/").await.body, "no healthy upstream");
}

#[tokio::test]
async fn secrets_are_waited_for() {
    const CONTEXT: &str = "{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {validation_context_sds_secret_config: {name: roots, sds_config: {ads: {}, initial_fetch_timeout: 0s}}}}";
    let backend = Backend::named("a").await;
    let proxy = Proxy::empty();
    let tls = format!("transport_socket: {{name: tls, typed_config: {CONTEXT}}}");
    send(&proxy, TypeUrl::Cluster, vec![static_cluster("a", backend.address, &tls)]);
    assert_eq!(states(&proxy, TypeUrl::Cluster, "a"), ["warming"]);
    assert_eq!(proxy.runtime.required_names(TypeUrl::Secret), ["roots"]);
    let roots = amime_xds::json::from_yaml::<
        envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret,
    >(&format!(
        "name: roots\nvalidation_context: {{trusted_ca: {{inline_string: {:?}}}}}",
        crate::tls::any_root()
    ));
    let roots = Resource::encode("roots", &roots.expect("secret YAML"));
    send(&proxy, TypeUrl::Secret, vec![roots]);
    proxy.settle().await;
    assert_eq!(states(&proxy, TypeUrl::Cluster, "a"), ["active"]);
}

#[tokio::test]
async fn a_listener_of_another_name_takes_over_the_address_with_its_sockets() {
    let proxy = Proxy::empty();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let named = |name: &str| {
        let mut message: envoy_types::pb::envoy::config::listener::v3::Listener = http_listener(
            &format!("route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {name}}}}}}}]}}]}}"),
        )
        .decode()
        .expect("our own encoding");
        message.name = name.to_owned();
        let fields = listener(&format!(
            "name: x\naddress: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}"
        ));
        let fields: envoy_types::pb::envoy::config::listener::v3::Listener =
            fields.decode().expect("our own encoding");
        message.address = fields.address;
        Resource::encode(name, &message)
    };
    send(&proxy, TypeUrl::Listener, vec![named("first")]);
    proxy.settle().await;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let rejected = proxy.runtime.apply(&update(TypeUrl::Listener, vec![named("second")]));
    assert!(rejected[0].error.contains("address of listener `first`"), "{rejected:?}");

    let traffic = Traffic::start(address, |reply| reply.status == 200);
    for (new, old) in [("second", "first"), ("third", "second"), ("first", "third")] {
        let removed = vec![old.to_owned()];
        let change = Update { type_url: TypeUrl::Listener, added: vec![named(new)], removed };
        assert_eq!(proxy.runtime.apply(&change), vec![]);
        traffic.some(20).await;
    }
    assert_eq!(traffic.end().await, Vec::<String>::new());
}

/// Requests without pause, half of them on connections that are kept.
struct Traffic {
    done: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Traffic {
    fn start(address: SocketAddr, good: fn(&Reply) -> bool) -> Self {
        let (done, stop): (Arc<AtomicUsize>, Arc<AtomicBool>) = Default::default();
        let clients = [false, false, true, true].map(|keep| {
            let (done, stop) = (done.clone(), stop.clone());
            tokio::spawn(async move {
                let mut failures = Vec::new();
                let mut kept = None;
                while !stop.load(Ordering::Relaxed) {
                    match ask(address, &mut kept, keep).await {
                        Ok(reply) if good(&reply) => {}
                        Ok(reply) => failures.push(format!("{reply:?}")),
                        Err(error) => failures.push(error.to_string()),
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                failures
            })
        });
        Self { done, stop, clients: clients.into() }
    }

    /// Waits until `count` more requests were answered.
    async fn some(&self, count: usize) {
        let end = self.done.load(Ordering::Relaxed) + count;
        while self.done.load(Ordering::Relaxed) < end {
            tokio::task::yield_now().await;
        }
    }

    /// Ends the traffic; what went wrong.
    async fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.expect("a client ends"));
        }
        failures
    }
}

/// One request, on the connection kept from the last one if there is one.
async fn ask(
    address: SocketAddr,
    kept: &mut Option<TcpStream>,
    keep: bool,
) -> std::io::Result<Reply> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => TcpStream::connect(address).await?,
    };
    let close = if keep { "" } else { "connection: close\r\n" };
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: h\r\n{close}\r\n").as_bytes()).await?;
    let mut text = String::new();
    loop {
        let mut buffer = [0; 2048];
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(std::io::Error::other(format!("cut short after {text:?}")));
        }
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if length
            .and_then(|length| length.parse().ok())
            .is_none_or(|length: usize| body.len() >= length)
        {
            break;
        }
    }
    let reply = Reply::parse(&text);
    if keep && reply.header("connection") != Some("close") {
        *kept = Some(stream);
    }
    Ok(reply)
}

/// A control plane that sends one change after the other as istiod does, with
/// gaps in which requests arrive.
struct Script<'a> {
    proxy: &'a Proxy,
    traffic: Traffic,
    random: fastrand::Rng,
    backends: [SocketAddr; 2],
    clusters: Vec<String>,
    version: usize,
}

impl Script<'_> {
    async fn gap(&mut self) {
        let count = self.random.usize(0..6);
        self.traffic.some(count).await;
    }

    async fn push(&mut self) {
        self.version += 1;
        let version = self.version;
        // New and changed clusters, each for itself, in any order.
        let name = format!("c{version}");
        let mut changed = self.clusters.clone();
        changed.retain(|_| self.random.bool());
        self.clusters.push(name.clone());
        changed.push(name.clone());
        self.random.shuffle(&mut changed);
        for one in &changed {
            let fields = format!("dns_refresh_rate: {version}s");
            send(self.proxy, TypeUrl::Cluster, vec![eds_cluster(one, "0s", &fields)]);
            self.gap().await;
        }
        self.random.shuffle(&mut changed);
        for one in &changed {
            let backends = &self.backends[self.random.usize(0..2)..];
            send(self.proxy, TypeUrl::Endpoint, vec![assignment(one, backends)]);
            self.gap().await;
        }
        // A listener with other routes than before, or the old one.
        let table = format!("r{}", self.random.usize(0..3));
        let listener = rds_listener(&table);
        let table = route_config(&table, &name);
        if self.random.bool() {
            send(self.proxy, TypeUrl::Listener, vec![listener]);
            self.gap().await;
            send(self.proxy, TypeUrl::Route, vec![table]);
        } else {
            send(self.proxy, TypeUrl::Route, vec![table]);
            self.gap().await;
            send(self.proxy, TypeUrl::Listener, vec![listener]);
        }
        self.gap().await;
        self.remove_unrouted().await;
    }

    /// Old clusters go last, when no connection of an old listener is left
    /// that could still be routed to them.
    async fn remove_unrouted(&mut self) {
        if self.clusters.len() > 6 {
            self.traffic.some(40).await;
            let removed: Vec<_> = self.clusters.drain(..2).collect();
            self.proxy.runtime.apply(&Update {
                type_url: TypeUrl::Cluster,
                added: vec![],
                removed,
            });
            self.gap().await;
        }
    }
}

#[tokio::test]
async fn no_request_fails_while_a_control_plane_changes_everything_with_gaps() {
    let (a, b) = (Backend::named("a").await, Backend::named("b").await);
    let proxy = Proxy::empty();
    send(&proxy, TypeUrl::Cluster, vec![eds_cluster("c0", "0s", "")]);
    send(&proxy, TypeUrl::Endpoint, vec![assignment("c0", &[a.address])]);
    send(&proxy, TypeUrl::Listener, vec![rds_listener("r0")]);
    send(&proxy, TypeUrl::Route, vec![route_config("r0", "c0")]);
    proxy.settle().await;
    let traffic = Traffic::start(proxy.address(), |reply| reply.status == 200);
    let mut script = Script {
        proxy: &proxy,
        traffic,
        random: fastrand::Rng::with_seed(11),
        backends: [a.address, b.address],
        clusters: vec!["c0".to_owned()],
        version: 0,
    };
    for _ in 0..40 {
        script.push().await;
    }
    assert_eq!(script.traffic.end().await, Vec::<String>::new());
}
