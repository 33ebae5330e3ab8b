//! The supervisor: PID 1 of a mesh.
//!
//! Started by [`crate::up`] in namespaces of its own, it makes its network
//! namespace the router, serves the API and the names, and keeps pods in
//! line with objects until it is told to stop or its parent dies.

mod reconcile;

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use amime_api::{Kind, Resource};
use amime_ca::{CertificateAuthority, WorkloadTokens};
use amime_control::store::{Apply, SourceFile, Store, StoreOptions};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UdpSocket, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::address::NAME_SERVER;
use crate::cluster::{Cluster, ClusterParts, TRUST_DOMAIN};
use crate::dns::Names;
use crate::image::Images;
use crate::kubelet::chain;
use crate::options::SupervisorConfig;
use crate::process::Reaper;
use crate::state::StateDir;
use crate::{forward, manifests, network, server};

/// Subcommand of the `amime` program that runs [`main`].
pub const SUBCOMMAND: &str = "local-supervisor";
/// Largest configuration, manifests included.
const MAX_CONFIG_BYTES: u64 = 256 << 20;
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the supervisor ended early.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// It was not started by `amime up`.
    #[error("{SUBCOMMAND} is started by `amime up` only")]
    NotStartedByUp,
    /// A system call failed.
    #[error("could not {action}")]
    System {
        /// What failed, as a verb phrase.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A part of the mesh could not be set up.
    #[error("could not {action}")]
    Part {
        /// What failed, as a verb phrase.
        action: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Manifests have faults; nothing of them was applied.
    #[error("{}", .0.join("\n"))]
    Manifests(Vec<String>),
}

/// Runs the supervisor; `args` is the number of the descriptor with its
/// configuration. For the subcommand [`SUBCOMMAND`] only.
///
/// # Errors
/// [`SupervisorError`]; it has been reported to `amime up` as well.
pub fn main(args: &[String]) -> Result<(), SupervisorError> {
    let fd: RawFd =
        args.first().and_then(|arg| arg.parse().ok()).ok_or(SupervisorError::NotStartedByUp)?;
    let config = read_config(fd)?;
    // Out of the terminal's process group: Ctrl-C is for `amime up`, which
    // then stops this process in order.
    nix::unistd::setsid().map_err(|errno| system("leave the terminal")(errno.into()))?;
    let own_proc = amime_net::namespace::detach_mounts().map_err(system("detach mounts"))?;
    // Failing twice would only hide the first error.
    let _ = amime_core::log::init(&amime_core::log::LogOptions {
        directives: config.log.clone(),
        ..amime_core::log::LogOptions::default()
    });
    if !own_proc {
        tracing::warn!("no /proc of its own: memory figures will be missing");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(system("start the runtime"))?;
    let outcome = runtime.block_on(run(config));
    // Blocking work that is left belongs to pods that are gone.
    runtime.shutdown_background();
    outcome
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> SupervisorError {
    move |source| SupervisorError::System { action, source }
}

fn part<E: std::error::Error + Send + Sync + 'static>(
    action: &'static str,
) -> impl FnOnce(E) -> SupervisorError {
    move |source| SupervisorError::Part { action, source: Box::new(source) }
}

fn read_config(fd: RawFd) -> Result<SupervisorConfig, SupervisorError> {
    let fd = amime_net::socket::inherited_fd(fd).map_err(|_| SupervisorError::NotStartedByUp)?;
    let text = amime_net::socket::read_memfd(&fd, MAX_CONFIG_BYTES)
        .map_err(system("read the configuration"))?;
    serde_json::from_slice(&text).map_err(|_| SupervisorError::NotStartedByUp)
}

async fn run(config: SupervisorConfig) -> Result<(), SupervisorError> {
    let adopt = |fd| amime_net::socket::inherited_fd(fd).map_err(system("inherit descriptors"));
    let progress_stream = adopt(config.progress_fd)?;
    // Held until the end of the process.
    let _lock: OwnedFd = adopt(config.lock_fd)?;
    let listener = adopt(config.listener_fd)?;
    let (progress, events) = mpsc::unbounded_channel();
    let reporting = tokio::spawn(report(progress_stream, events));
    let outcome = supervise(config, listener, &progress).await;
    if let Err(error) = &outcome {
        tracing::error!(error = chain(error), "the mesh did not start");
        let _ = progress.send(crate::Progress::Failed { message: chain(error) });
    }
    drop(progress);
    let _ = tokio::time::timeout(Duration::from_secs(1), reporting).await;
    outcome
}

/// Writes progress to `amime up`, one JSON object a line.
async fn report(stream: OwnedFd, mut events: mpsc::UnboundedReceiver<crate::Progress>) {
    let stream = std::os::unix::net::UnixStream::from(stream);
    let Ok(mut stream) = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream))
    else {
        return;
    };
    while let Some(event) = events.recv().await {
        let Ok(mut line) = serde_json::to_vec(&event) else { continue };
        line.push(b'\n');
        // Nobody may be listening once the mesh is ready.
        let _ = stream.write_all(&line).await;
    }
}

async fn supervise(
    config: SupervisorConfig,
    listener: OwnedFd,
    progress: &mpsc::UnboundedSender<crate::Progress>,
) -> Result<(), SupervisorError> {
    let step = |name: &str, state| {
        let _ = progress.send(crate::Progress::Step { name: name.to_owned(), state });
    };
    step("state", crate::StepState::Started);
    let cluster = open_cluster(&config)?;
    step("state", crate::StepState::Done);
    step("network", crate::StepState::Started);
    network::set_up_router().map_err(part("set up the network"))?;
    let (names, names_seen) = watch::channel(Arc::new(Names::default()));
    let (targets, targets_seen) = watch::channel(Vec::<SocketAddrV4>::new());
    serve_names(names_seen).await?;
    serve_host_port(listener, targets_seen)?;
    step("network", crate::StepState::Done);

    step("objects", crate::StepState::Started);
    let warnings = apply_manifests(&cluster, &config)?;
    for message in warnings {
        let _ = progress.send(crate::Progress::Warning { message });
    }
    let api = serve_api(&cluster)?;
    step("objects", crate::StepState::Done);

    let outputs = reconcile::Outputs { names, targets, progress: progress.clone() };
    let reconciling = tokio::spawn(reconcile::run(Arc::clone(&cluster), outputs));
    wait_for_stop(&cluster, progress).await;
    reconciling.abort();
    api.abort();
    cluster.tasks.close();
    if tokio::time::timeout(STOP_TIMEOUT, cluster.tasks.wait()).await.is_err() {
        tracing::warn!("some pods did not stop in time; they are killed");
    }
    if let Err(error) = cluster.state.clean() {
        tracing::warn!(error = chain(&error), "files of this run stay");
    }
    Ok(())
}

fn open_cluster(config: &SupervisorConfig) -> Result<Arc<Cluster>, SupervisorError> {
    let state = StateDir::new(&config.state_dir);
    let now = SystemTime::now();
    let authority = CertificateAuthority::self_signed(&state.ca(), TRUST_DOMAIN, now)
        .map_err(part("open the certificate authority"))?;
    std::fs::write(state.root_cert(), authority.roots().to_pem())
        .map_err(system("write the root certificate"))?;
    let tokens =
        WorkloadTokens::open(&state.ca()).map_err(part("open the key of workload tokens"))?;
    let store = Store::open(StoreOptions {
        dir: Some(state.objects()),
        pods_end_gracefully: true,
        namespaces: ["default", "kube-system", "istio-system"].map(str::to_owned).to_vec(),
        ..StoreOptions::default()
    })
    .map_err(part("open the objects"))?;
    let cluster = Cluster::new(ClusterParts {
        store: Arc::new(store),
        images: Images::new(&config.self_exe, config.images.clone()),
        self_exe: config.self_exe.clone(),
        state,
        reaper: Reaper::new().map_err(system("start the reaper"))?,
        tokens,
        url: config.url.clone(),
    });
    Ok(cluster)
}

async fn serve_names(names: watch::Receiver<Arc<Names>>) -> Result<(), SupervisorError> {
    let address = SocketAddr::from((NAME_SERVER, 53));
    let udp = UdpSocket::bind(address).await.map_err(system("listen for DNS queries"))?;
    let tcp = TcpListener::bind(address).await.map_err(system("listen for DNS queries"))?;
    tokio::spawn(crate::dns::serve(udp, tcp, names));
    Ok(())
}

fn serve_host_port(
    listener: OwnedFd,
    targets: watch::Receiver<Vec<SocketAddrV4>>,
) -> Result<(), SupervisorError> {
    let listener = std::net::TcpListener::from(listener);
    let listener = TcpListener::from_std(listener).map_err(system("take over the host port"))?;
    tokio::spawn(forward::relay(listener, targets));
    Ok(())
}

fn serve_api(cluster: &Arc<Cluster>) -> Result<tokio::task::JoinHandle<()>, SupervisorError> {
    let path = cluster.state.api_socket();
    let listener = UnixListener::bind(&path).map_err(system("listen on the API socket"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .map_err(system("protect the API socket"))?;
    let router = server::router(Arc::clone(cluster));
    let shutdown = cluster.shutdown.clone();
    Ok(tokio::spawn(async move {
        if let Err(error) = amime_control::api::serve(listener, router, shutdown).await {
            tracing::error!(%error, "the API ended");
        }
    }))
}

/// Applies what comes with the program and what the user gave; returns
/// warnings.
fn apply_manifests(
    cluster: &Cluster,
    config: &SupervisorConfig,
) -> Result<Vec<String>, SupervisorError> {
    let first_start = !cluster.state.demo_marker().exists();
    let built_in = if config.mesh { manifests::mesh() } else { manifests::platform() };
    apply(cluster, built_in)?;
    if first_start {
        let labels = [("istio-injection".to_owned(), Some("enabled".to_owned()))].into();
        let key = amime_api::ObjectKey {
            kind: Kind::Namespace,
            namespace: String::new(),
            name: "default".to_owned(),
        };
        cluster.store.label(&key, &labels).map_err(part("label the default namespace"))?;
        if config.demo {
            apply(cluster, manifests::demo())?;
        }
    }
    let given = config.files.iter();
    let given: Vec<_> =
        given.map(|file| SourceFile { name: file.name.clone(), text: file.text.clone() }).collect();
    let warnings = if given.is_empty() { Vec::new() } else { apply(cluster, given)? };
    // Objects of earlier runs may have images that this one was not told of.
    let objects = cluster.store.all();
    let stored: Vec<&Resource> = objects.iter().map(|object| &**object).collect();
    let faults = cluster.image_faults(stored);
    if !faults.is_empty() {
        return Err(SupervisorError::Manifests(faults));
    }
    std::fs::write(cluster.state.demo_marker(), "").map_err(system("write the state directory"))?;
    Ok(warnings)
}

fn apply(cluster: &Cluster, files: Vec<SourceFile>) -> Result<Vec<String>, SupervisorError> {
    let apply = Apply { files, namespace: "default".to_owned() };
    let faults = server::image_faults(cluster, &apply);
    if !faults.is_empty() {
        return Err(SupervisorError::Manifests(faults));
    }
    match cluster.store.apply(&apply) {
        Ok(applied) => Ok(applied.warnings),
        Err(rejected) => Err(SupervisorError::Manifests(rejected.errors)),
    }
}

async fn wait_for_stop(cluster: &Cluster, progress: &mpsc::UnboundedSender<crate::Progress>) {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminated => {}
        () = cluster.shutdown.cancelled() => {}
        () = progress.closed() => {}
    }
    cluster.shutdown.cancel();
}
