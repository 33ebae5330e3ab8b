//! One test's world: a namespace, backends, control plane and Envoy.

use std::cell::RefCell;
use std::env;
use std::fs;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amime_api::{Resource, decode};
use amime_control::ads::AdsService;
use amime_control::discovery::{Debounce, Discovery, SyncState};
use amime_control::metrics::{Metrics, XdsMetrics};
use amime_control::server::serve_plaintext;
use amime_control::source::Event;
use amime_core::SpiffeId;
use amime_model::Change;
use amime_net::link::Links;
use amime_net::nft::{Action, BaseChain, Batch, ChainType, Family, Hook, Match, Rule};
use amime_xds::TypeUrl;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::envoy::{ADMIN, Envoy, Ports, Variant};
use crate::http::{self, Call, Reply};
use crate::sds::Secrets;

/// Longest wait for a condition; a failing test takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

const BACKENDS: [(&str, [u8; 4]); 6] = [
    ("productpage-v1", [10, 244, 0, 10]),
    ("details-v1", [10, 244, 0, 11]),
    ("ratings-v1", [10, 244, 0, 12]),
    ("reviews-v1", [10, 244, 0, 21]),
    ("reviews-v2", [10, 244, 0, 22]),
    ("reviews-v3", [10, 244, 0, 23]),
];

/// The pod that Envoy stands in for.
pub(crate) struct Role {
    kind: &'static str,
    pub(crate) app: &'static str,
    pub(crate) pod: &'static str,
    pub(crate) namespace: &'static str,
    pub(crate) service_account: &'static str,
    pub(crate) label: (&'static str, &'static str),
    pub(crate) ip: &'static str,
    types: &'static [TypeUrl],
}

pub(crate) const PRODUCTPAGE: Role = Role {
    kind: "sidecar",
    app: "productpage",
    pod: "productpage-v1",
    namespace: "default",
    service_account: "bookinfo-productpage",
    label: ("app", "productpage"),
    ip: "10.244.0.10",
    types: &[TypeUrl::Cluster, TypeUrl::Endpoint, TypeUrl::Listener, TypeUrl::Route],
};

pub(crate) const GATEWAY: Role = Role {
    kind: "router",
    app: "istio-ingressgateway",
    pod: "istio-ingressgateway",
    namespace: "istio-system",
    service_account: "istio-ingressgateway",
    label: ("istio", "ingressgateway"),
    ip: "10.244.0.2",
    types: &[TypeUrl::Cluster, TypeUrl::Endpoint, TypeUrl::Listener],
};

impl Role {
    pub(crate) fn node_id(&self) -> String {
        let Self { kind, ip, pod, namespace, .. } = self;
        format!("{kind}~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local")
    }

    fn identity(&self) -> SpiffeId {
        let Self { namespace, service_account, .. } = self;
        let text = format!("spiffe://cluster.local/ns/{namespace}/sa/{service_account}");
        text.parse().expect("a valid identity")
    }
}

/// Runs a test in a network namespace of its own.
pub(crate) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("the oracle needs root for its network namespaces");
        network();
        // One thread: tasks of other threads would be in another namespace.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Pods' addresses on `lo`; services' addresses lead to the sidecar.
fn network() {
    let mut links = Links::open().expect("netlink works");
    links.set_up("lo").expect("lo comes up");
    for (_, ip) in BACKENDS {
        links.add_address("lo", Ipv4Addr::from(ip), 32).expect("a new address");
    }
    let services = Ipv4Addr::new(10, 96, 0, 0);
    links.add_address("lo", Ipv4Addr::new(10, 96, 0, 1), 16).expect("a new address");
    let mut batch = Batch::replace_table(Family::Ip, "oracle");
    batch.base_chain(BaseChain {
        name: "output",
        kind: ChainType::Nat,
        hook: Hook::Output,
        priority: -100,
    });
    let to_services =
        vec![Match::Destination(services, 16), Match::Protocol(amime_net::nft::L4::Tcp)];
    batch.rule("output", &Rule::new("services", to_services, Action::Redirect(15001)));
    batch.commit().expect("nftables works");
}

/// Requests under way beside a test.
pub(crate) struct Load {
    stop: CancellationToken,
    requests: tokio::task::JoinHandle<Seen>,
}

#[derive(Default)]
struct Seen {
    total: usize,
    failures: Vec<Option<Reply>>,
}

impl Load {
    /// Stops; every request must have been answered with 200.
    pub(crate) async fn none_failed(self) {
        self.stop.cancel();
        let seen = self.requests.await.expect("no panic");
        assert!(seen.total > 0, "no request was sent");
        assert!(seen.failures.is_empty(), "{} requests: {:?}", seen.total, seen.failures);
    }
}

pub(crate) struct Mesh {
    role: &'static Role,
    discovery: Discovery,
    metrics: XdsMetrics,
    events: mpsc::Sender<Event>,
    shutdown: CancellationToken,
    envoy: RefCell<Envoy>,
    _dir: tempfile::TempDir,
}

impl Mesh {
    pub(crate) async fn start(role: &'static Role, variant: Variant) -> Self {
        for (name, ip) in BACKENDS {
            http::serve(SocketAddr::from((ip, 9080)), name).await;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let shutdown = CancellationToken::new();
        let metrics = Metrics::new().xds.clone();
        let discovery = Discovery::new(metrics.clone());
        let (events, queue) = mpsc::channel(1024);
        let run = discovery.clone();
        let stop = shutdown.clone();
        tokio::spawn(async move {
            run.run(queue, Arc::default(), Debounce::default(), stop).await;
        });
        let ads = AdsService::new(discovery.clone(), shutdown.clone()).into_server();
        let secrets = Secrets::issue(&dir.path().join("ca"), &role.identity());
        let ports = Ports {
            xds: listen(Routes::new(ads), &shutdown).await,
            sds: listen(Routes::new(secrets), &shutdown).await,
        };
        let envoy = RefCell::new(Envoy::start(dir.path(), role, variant, &ports));
        let mesh = Self { role, discovery, metrics, events, shutdown, envoy, _dir: dir };
        let own = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/bookinfo-pods.yaml");
        mesh.send(shared("bookinfo/platform/kube/bookinfo.yaml")).await;
        mesh.send(PathBuf::from(own)).await;
        mesh.events.send(Event::Synced).await.expect("discovery runs");
        mesh.in_sync(1).await;
        mesh
    }

    async fn send(&self, path: PathBuf) {
        for resource in read(&path) {
            let change = Event::Change(Change::Set(Arc::new(resource)));
            self.events.send(change).await.expect("discovery runs");
        }
    }

    /// Applies an upstream file and waits until Envoy has answered for it.
    pub(crate) async fn apply(&self, file: &str) {
        let before = self.discovery.snapshot().expect("synced").version();
        self.send(shared(&format!("bookinfo/networking/{file}"))).await;
        self.in_sync(before + 1).await;
    }

    /// Waits until Envoy has acknowledged a snapshot at least this new.
    async fn in_sync(&self, version: u64) {
        self.wait("Envoy to acknowledge", async || {
            let all = self.discovery.sync_status();
            let Some(sync) = all.first() else { return Err("not connected".to_owned()) };
            let synced =
                |t: &TypeUrl| sync.types.get(t).map(|s| s.state()) == Some(SyncState::Synced);
            if sync.snapshot_version >= version && self.role.types.iter().all(synced) {
                return Ok(());
            }
            let states = sync.types.iter().map(|(t, s)| format!("{t} {:?}", s.state()));
            Err(format!(
                "version {}: {}",
                sync.snapshot_version,
                states.collect::<Vec<_>>().join(", ")
            ))
        })
        .await;
    }

    /// Envoy is live, holds nothing refused or unfinished, and said so.
    pub(crate) async fn accepted_everything(&self) {
        self.wait("Envoy to be live", async || match http::get(admin("/ready")).await {
            Some(reply) if reply.status == 200 => Ok(()),
            reply => Err(format!("/ready: {reply:?}")),
        })
        .await;
        let dump = http::get(admin("/config_dump")).await.expect("admin answers");
        for sign in ["error_state", "dynamic_warming_clusters", "\"warming_state\""] {
            assert!(!dump.body.contains(sign), "/config_dump has {sign}:\n{}", self.why());
        }
        for label in ["cds", "eds", "lds", "rds", "sds"] {
            let label = amime_control::metrics::TypeLabel { r#type: label };
            let refused = self.metrics.rejects.get_or_create(&label).value();
            assert_eq!(refused, 0, "{label:?} refused:\n{}", self.why());
        }
    }

    /// Requests answered by `backend` out of `total`.
    pub(crate) async fn count(&self, call: Call<'_>, backend: &str, total: usize) -> usize {
        let mut hits = 0;
        for _ in 0..total {
            let reply = self.get(call).await;
            assert_eq!(reply.status, 200, "{}", reply.body);
            hits += usize::from(reply.body == backend);
        }
        hits
    }

    pub(crate) async fn get(&self, call: Call<'_>) -> Reply {
        let reply = http::get(call).await;
        reply.unwrap_or_else(|| panic!("no answer to {call:?}:\n{}", self.why()))
    }

    /// Sends one request after the other until stopped.
    pub(crate) fn load(&self, call: Call<'static>) -> Load {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let requests = tokio::spawn(async move {
            let mut seen = Seen::default();
            while !stopped.is_cancelled() {
                let reply = http::get(call).await;
                seen.total += 1;
                if reply.as_ref().is_none_or(|r| r.status != 200) {
                    seen.failures.push(reply);
                }
            }
            seen
        });
        Load { stop, requests }
    }

    async fn wait(&self, what: &str, condition: impl AsyncFn() -> Result<(), String>) {
        let start = Instant::now();
        while let Err(state) = condition().await {
            let exited = self.envoy.borrow_mut().has_exited();
            let late = start.elapsed() > PATIENCE;
            assert!(!exited && !late, "waited for {what}: {state}\n{}", self.why());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn why(&self) -> String {
        format!("Envoy's log ends:\n{}", self.envoy.borrow().log())
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn admin(path: &str) -> Call<'_> {
    Call { addr: ADMIN, host: "admin", path, header: None }
}

async fn listen(routes: Routes, shutdown: &CancellationToken) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback is up");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(serve_plaintext(listener, routes.into_axum_router(), shutdown.clone()));
    port
}

/// A file of the upstream samples.
fn shared(file: &str) -> PathBuf {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");
    let root = env::var_os("AMIME_SHARED").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    root.join("data/istio-samples/current").join(file)
}

fn read(path: &PathBuf) -> Vec<Resource> {
    let text = fs::read_to_string(path)
        .unwrap_or_else(|e| panic!("{}: {e}; AMIME_SHARED says where it is", path.display()));
    let decoded = decode::decode(&path.to_string_lossy(), &text);
    assert!(decoded.errors.is_empty(), "{:?}", decoded.errors);
    decoded.resources.into_iter().map(in_default).collect()
}

/// Objects without a namespace go where `kubectl apply` puts them.
fn in_default(mut resource: Resource) -> Resource {
    let metadata = resource.metadata_mut();
    if metadata.namespace.is_empty() {
        metadata.namespace = "default".to_owned();
    }
    resource
}
