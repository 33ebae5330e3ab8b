//! A proxy with real sockets between small backends and raw clients.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amime_config::secrets::{NoSecrets, SecretSource};
use amime_engine::overload::OverloadPlan;
use amime_engine::runtime::{LocalCluster, Runtime, RuntimeOptions};
use amime_telemetry::{Telemetry, TelemetryOptions};
use amime_xds::client::Update;
use amime_xds::json::from_yaml;
use amime_xds::{Resource, TypeUrl};
use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a backend saw of a request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: Request<()>,
    pub(crate) body: Bytes,
}

/// A server that answers as `answer` says and remembers what it was asked.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) connections: Arc<Mutex<usize>>,
}

impl Backend {
    /// Answers every request with 200 and its name.
    pub(crate) async fn named(name: &'static str) -> Self {
        Self::start(move |_| Response::new(Full::from(name))).await
    }

    pub(crate) async fn start(
        answer: impl Fn(&Seen) -> Response<Full<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        let answer = Arc::new(answer);
        Self::start_async(move |seen| {
            let answer = answer.clone();
            async move { answer(&seen) }
        })
        .await
    }

    pub(crate) async fn start_async<F>(answer: impl Fn(Seen) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        keep_port(&socket);
        socket.set_nonblocking(true).expect("a socket");
        Self::on(TcpListener::from_std(socket).expect("a socket"), answer)
    }

    /// Answers what comes to `socket`.
    pub(crate) fn on<F>(
        socket: TcpListener,
        answer: impl Fn(Seen) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let address = socket.local_addr().expect("an address");
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let connections: Arc<Mutex<usize>> = Arc::default();
        let (log, count, answer) = (seen.clone(), connections.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                *count.lock().expect("not poisoned") += 1;
                let (log, answer) = (log.clone(), answer.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (log, answer) = (log.clone(), answer.clone());
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                        let seen = Seen { head: Request::from_parts(parts, ()), body };
                        log.lock().expect("not poisoned").push(seen.clone());
                        Ok::<_, Infallible>(answer(seen).await)
                    }
                });
                tokio::spawn(async move {
                    let builder =
                        hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, seen, connections }
    }

    /// The one request seen so far.
    pub(crate) fn only(&self) -> Seen {
        let seen = self.seen.lock().expect("not poisoned");
        assert_eq!(seen.len(), 1, "requests at the backend");
        seen[0].clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().expect("not poisoned").len()
    }
}

/// Keeps the port of a backend from others for as long as the process runs:
/// what a proxy of an earlier test still sends to it must not reach them.
fn keep_port(socket: &std::net::TcpListener) {
    static KEPT: Mutex<Vec<std::net::TcpListener>> = Mutex::new(Vec::new());
    let kept = socket.try_clone().expect("a descriptor");
    KEPT.lock().expect("not poisoned").push(kept);
}

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) telemetry: Arc<Telemetry>,
}

impl Proxy {
    /// A proxy without configuration.
    pub(crate) fn empty() -> Self {
        Self::with_secrets(Arc::new(NoSecrets))
    }

    pub(crate) fn with_secrets(identity: Arc<dyn SecretSource>) -> Self {
        Self::start(identity, "", 2, None)
    }

    /// A proxy that peers know as `node_id`.
    pub(crate) fn known_as(node_id: &str) -> Self {
        Self::start(Arc::new(NoSecrets), node_id, 2, None)
    }

    /// A proxy with one worker, which sees all requests in flight.
    pub(crate) fn of_one_worker() -> Self {
        Self::start(Arc::new(NoSecrets), "", 1, None)
    }

    #[cfg(feature = "oracle")]
    /// A proxy of one worker that is part of a cluster.
    pub(crate) fn part_of(local: Arc<LocalCluster>) -> Self {
        Self::start(Arc::new(NoSecrets), "", 1, Some(local))
    }

    fn start(
        identity: Arc<dyn SecretSource>,
        node_id: &str,
        concurrency: usize,
        local_cluster: Option<Arc<LocalCluster>>,
    ) -> Self {
        let telemetry = Telemetry::new(TelemetryOptions::default());
        let runtime = Runtime::start(RuntimeOptions {
            concurrency,
            telemetry: telemetry.clone(),
            identity,
            mark: None,
            gateway: false,
            node_id: node_id.to_owned(),
            service_cluster: "tests".to_owned(),
            address: None,
            local_cluster,
            overload: OverloadPlan::default(),
            inherited: None,
        });
        Self { runtime: runtime.expect("threads start"), telemetry }
    }

    /// A proxy with one listener `http` and clusters by name and address.
    pub(crate) async fn http(hcm: &str, clusters: &[(&str, SocketAddr)]) -> Self {
        let mut resources = vec![http_listener(hcm)];
        resources.extend(clusters.iter().map(|(name, address)| static_cluster(name, *address, "")));
        Self::with(resources).await
    }

    pub(crate) async fn with(resources: Vec<Resource>) -> Self {
        let proxy = Self::empty();
        proxy.apply(resources).await;
        proxy
    }

    /// Applies resources, all of which must be accepted, and waits for them.
    pub(crate) async fn apply(&self, resources: Vec<Resource>) {
        let report = self.runtime.apply_static(resources);
        assert_eq!(report.rejected, vec![], "all resources are accepted");
        self.settle().await;
    }

    /// Waits until all workers have the configuration.
    pub(crate) async fn settle(&self) {
        while !self.runtime.settled() {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.runtime.listener_address("http").expect("the listener is bound")
    }

    /// The lines of `/stats` that contain `part`.
    pub(crate) fn stats(&self, part: &str) -> Vec<String> {
        let all = self.telemetry.stats_text(&amime_telemetry::StatsFilter::default());
        all.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
    }

    /// Waits until `/stats` has this line.
    pub(crate) async fn until_stat(&self, line: &str) {
        let there = async {
            while !self.stats(line).iter().any(|have| have.ends_with(line)) {
                tokio::task::yield_now().await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(10), there).await;
        assert!(found.is_ok(), "{line} not in {:?}", self.stats("ssl."));
    }

    /// Sends raw bytes and returns all that comes until the proxy closes.
    pub(crate) async fn raw(&self, request: &str) -> String {
        raw(self.address(), request).await
    }

    /// A GET on a connection of its own; status, head and body.
    pub(crate) async fn get(&self, host: &str, path: &str) -> Reply {
        self.request(&format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n")).await
    }

    /// A request given by its head without the closing empty line.
    pub(crate) async fn request(&self, head: &str) -> Reply {
        Reply::parse(&self.raw(&format!("{head}connection: close\r\n\r\n")).await)
    }
}

/// A response read off the wire.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let Some(status) = status else { panic!("no response in {text:?}") };
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

pub(crate) async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("the proxy accepts");
    stream.write_all(request.as_bytes()).await.expect("the proxy reads");
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("the proxy answers in time")
        .ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A listener resource from YAML.
pub(crate) fn listener(yaml: &str) -> Resource {
    let message: Listener = from_yaml(yaml).expect("listener YAML");
    Resource::encode(message.name.clone(), &message)
}

/// A cluster resource from YAML.
pub(crate) fn cluster(yaml: &str) -> Resource {
    let message: Cluster = from_yaml(yaml).expect("cluster YAML");
    Resource::encode(message.name.clone(), &message)
}

/// A cluster of one endpoint, with more YAML fields.
pub(crate) fn static_cluster(name: &str, address: SocketAddr, fields: &str) -> Resource {
    endpoints_cluster(name, &[address], fields)
}

/// A cluster of several endpoints, with more YAML fields.
pub(crate) fn endpoints_cluster(name: &str, addresses: &[SocketAddr], fields: &str) -> Resource {
    cluster(&endpoints_cluster_yaml(name, addresses, fields))
}

/// The same as YAML.
pub(crate) fn endpoints_cluster_yaml(name: &str, addresses: &[SocketAddr], fields: &str) -> String {
    let endpoints: String = addresses
        .iter()
        .map(|address| {
            format!(
                "\n    - endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}",
                address.ip(),
                address.port()
            )
        })
        .collect();
    format!(
        "name: {name}\ntype: STATIC\nconnect_timeout: 1s\n{fields}\nload_assignment:\n  \
         cluster_name: {name}\n  endpoints:\n  - lb_endpoints:{endpoints}\n"
    )
}

/// A listener `http` with a connection manager of these YAML fields.
pub(crate) fn http_listener(hcm: &str) -> Resource {
    listener(&http_listener_yaml(hcm))
}

/// The same as YAML.
pub(crate) fn http_listener_yaml(hcm: &str) -> String {
    let indented: String = hcm.lines().map(|line| format!("        {line}\n")).collect();
    let router = if hcm.contains("http_filters") {
        String::new()
    } else {
        format!("        http_filters:\n{ROUTER}")
    };
    format!(
        "name: http
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
filter_chains:
- filters:
  - name: hcm
    typed_config:
        \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: test
{indented}{router}"
    )
}

/// The router as a list item of a connection manager's filters.
pub(crate) const ROUTER: &str = "        - name: router
          typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
";

/// A connection manager whose one virtual host has these routes.
pub(crate) fn routes(routes: &str) -> String {
    let indented: String = routes.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "route_config:\n  name: r\n  virtual_hosts:\n  - name: v\n    domains: [\"*\"]\n    routes:\n{indented}"
    )
}

/// A route configuration that sends everything to one cluster.
pub(crate) fn route_config(name: &str, cluster: &str) -> Resource {
    let message: RouteConfiguration = from_yaml(&format!(
        "name: '{name}'\nvirtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]"
    ))
    .expect("route YAML");
    Resource::encode(name, &message)
}

/// An assignment of these endpoints.
pub(crate) fn assignment(name: &str, addresses: &[SocketAddr]) -> Resource {
    let endpoints: String = addresses
        .iter()
        .map(|address| {
            format!(
                "\n  - endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}",
                address.ip(),
                address.port()
            )
        })
        .collect();
    let endpoints = if endpoints.is_empty() { " []".to_owned() } else { endpoints };
    let message: ClusterLoadAssignment =
        from_yaml(&format!("cluster_name: {name}\nendpoints:\n- lb_endpoints:{endpoints}\n"))
            .expect("assignment YAML");
    Resource::encode(name, &message)
}

/// What a control plane sends that adds and changes resources.
pub(crate) fn update(type_url: TypeUrl, added: Vec<Resource>) -> Update {
    Update { type_url, added, removed: Vec::new() }
}
