//! A control plane: discovery and CA over TLS, with bearer tokens.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use amime_ca::{CallerIdentity, CertificateAuthority, Credential};
use amime_identity::{LiveCert, TlsOptions, plain_server_config};
use amime_xds::istio::ca::{
    IstioCertificateRequest, IstioCertificateResponse, IstioCertificateService,
    IstioCertificateServiceServer,
};
use amime_xds::server::{DeltaSession, Pusher, Source, Wanted};
use amime_xds::{Resource, TypeUrl, XdsMessage};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3::{
    Address, SocketAddress, address, socket_address::PortSpecifier,
};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, Listener, filter::ConfigType,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, tcp_proxy::ClusterSpecifier,
};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::Any;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use prost::{Message, Name};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::names;
use crate::agent::env::AgentPorts;
use crate::agent::{AgentConfig, HostPort, ProxyKind};

type Contents = BTreeMap<(TypeUrl, String), Resource>;
type Responses<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

const TOKEN: &str = "token-of-the-pod";
const HOUR: Duration = Duration::from_secs(3600);

struct View(Contents);

impl Source for View {
    fn generate(&mut self, type_url: TypeUrl, wanted: Wanted<'_>) -> Vec<Resource> {
        let wanted = |name: &str| match wanted {
            Wanted::All => true,
            Wanted::Names(names) => names.contains(name),
        };
        let of_type = self.0.values().filter(|one| one.type_url == type_url);
        of_type.filter(|one| wanted(&one.name)).cloned().collect()
    }

    fn version(&self) -> &str {
        "1"
    }
}

struct Inner {
    ca: CertificateAuthority,
    contents: watch::Sender<Contents>,
    refuse: AtomicBool,
}

#[derive(Clone)]
struct Service(Arc<Inner>);

/// A running control plane; dropping it stops it.
pub(super) struct Control {
    inner: Arc<Inner>,
    dir: tempfile::TempDir,
    address: SocketAddr,
    tasks: std::sync::Mutex<JoinSet<()>>,
}

impl Control {
    pub(super) async fn start() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let now = SystemTime::now();
        let ca = CertificateAuthority::self_signed(dir.path(), "cluster.local", now);
        let ca = ca.expect("a new CA");
        std::fs::write(dir.path().join("root.pem"), ca.roots().to_pem()).expect("written");
        std::fs::write(dir.path().join("token"), TOKEN).expect("written");
        let cert = ca.serving_cert(&["localhost".to_owned()], HOUR, now).expect("signed");
        let tls = plain_server_config(LiveCert::new(cert), &TlsOptions::with_alpn([b"h2"]));
        let inner = Arc::new(Inner {
            ca,
            contents: watch::Sender::new(Contents::new()),
            refuse: AtomicBool::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback is up");
        let address = listener.local_addr().expect("bound");
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, tls.expect("settings"), Service(inner.clone())));
        Self { inner, dir, address, tasks: std::sync::Mutex::new(tasks) }
    }

    pub(super) fn stop(&self) {
        self.tasks.lock().expect("no panic").abort_all();
    }

    pub(super) fn refuse_certificates(&self, refuse: bool) {
        self.inner.refuse.store(refuse, Ordering::Relaxed);
    }

    fn set<M: XdsMessage>(&self, name: &str, message: &M) {
        let resource = Resource::encode(name, message);
        self.inner.contents.send_modify(|contents| {
            contents.insert((M::TYPE, name.to_owned()), resource);
        });
    }

    /// A cluster, a listener and a name table.
    pub(super) fn serve_bookinfo(&self) {
        let cluster = Cluster {
            name: "BlackHoleCluster".into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
            ..Cluster::default()
        };
        self.set("BlackHoleCluster", &cluster);
        self.set("listener", &listener());
        self.set("", &names());
    }

    pub(super) fn agent_config(&self) -> AgentConfig {
        let server = format!("localhost:{}", self.address.port());
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let vars = [
            ("POD_NAME", "reviews-v1-0".to_owned()),
            ("POD_NAMESPACE", "default".to_owned()),
            ("INSTANCE_IP", "10.0.0.7".to_owned()),
            ("SERVICE_ACCOUNT", "bookinfo-reviews".to_owned()),
            ("DISCOVERY_ADDRESS", server),
            ("XDS_ROOT_CA", path("root.pem")),
            ("TOKEN_PATH", path("token")),
            ("AMIME_MARK", "0".to_owned()),
            ("PROXY_CONCURRENCY", "1".to_owned()),
        ];
        let vars = vars.map(|(name, value)| (name.to_owned(), value));
        let mut config = AgentConfig::from_env(ProxyKind::Sidecar, vars).expect("valid");
        config.ports = AgentPorts { admin: 0, status: 0, ready: 0, metrics: 0, dns: 0 };
        assert_eq!(config.ca, HostPort { host: "localhost".into(), port: self.address.port() });
        config
    }
}

fn listener() -> Listener {
    let proxy = TcpProxy {
        stat_prefix: "BlackHoleCluster".into(),
        cluster_specifier: Some(ClusterSpecifier::Cluster("BlackHoleCluster".into())),
        ..TcpProxy::default()
    };
    let config = Any { type_url: TcpProxy::type_url(), value: proxy.encode_to_vec() };
    let filter = Filter {
        name: "envoy.filters.network.tcp_proxy".into(),
        config_type: Some(ConfigType::TypedConfig(config)),
    };
    let socket = SocketAddress {
        address: "127.0.0.1".into(),
        port_specifier: Some(PortSpecifier::PortValue(0)),
        ..SocketAddress::default()
    };
    Listener {
        name: "listener".into(),
        address: Some(Address { address: Some(address::Address::SocketAddress(socket)) }),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        ..Listener::default()
    }
}

async fn serve(listener: TcpListener, tls: Arc<rustls::ServerConfig>, service: Service) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let routes =
        tonic::service::Routes::new(AggregatedDiscoveryServiceServer::new(service.clone()))
            .add_service(IstioCertificateServiceServer::new(service))
            .prepare();
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("accepts");
        let (acceptor, routes) = (acceptor.clone(), TowerToHyperService::new(routes.clone()));
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // Ends with the client.
            let _ = server.serve_connection(TokioIo::new(stream), routes).await;
        });
    }
}

fn authenticate<T>(request: &Request<T>) -> Result<(), Status> {
    let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    if token == Some(&format!("Bearer {TOKEN}")) {
        return Ok(());
    }
    Err(Status::unauthenticated("no valid token"))
}

impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        authenticate(&request)?;
        if self.0.refuse.load(Ordering::Relaxed) {
            return Err(Status::unavailable("not now"));
        }
        let spiffe_id = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews".parse();
        let caller = CallerIdentity {
            spiffe_id: spiffe_id.expect("a SPIFFE ID"),
            credential: Credential::ClientCertificate,
        };
        let request = request.into_inner();
        let ttl = Duration::from_secs(request.validity_duration.unsigned_abs());
        let chain = self.0.ca.sign(&request.csr, &caller, Some(ttl), SystemTime::now());
        let cert_chain = chain.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        authenticate(&request)?;
        let (responses, queue) = mpsc::channel(4);
        let mut requests = request.into_inner();
        let mut contents = self.0.contents.subscribe();
        let stream = async move {
            let mut pusher = Pusher::new(DeltaSession::new(1));
            let mut view = View(contents.borrow_and_update().clone());
            loop {
                while let Some((_, response)) = pusher.next(&mut view) {
                    if responses.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        pusher.on_request(request).expect("within bounds");
                    }
                    changed = contents.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        view = View(contents.borrow_and_update().clone());
                        pusher.invalidate_all();
                    }
                }
            }
        };
        tokio::spawn(stream);
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }
}
