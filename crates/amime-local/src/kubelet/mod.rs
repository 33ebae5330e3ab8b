//! Runs pods: what the kubelet does on a node.
//!
//! Owns the life of a pod from its namespaces to its last process; how many
//! pods there are is the controller's business, which names lead to them the
//! network's. [`container`] owns one container, [`probe`] its health.
//!
//! Invariant: a pod's object says Ready only while every container is.

mod container;
mod probe;
mod status;

pub(crate) use container::{ContainerHandle, ContainerPhase};
pub(crate) use probe::pod_socket;

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use amime_api::k8s::PodSpec;
use amime_api::{Kind, Object, ObjectKey, Resource};
use amime_ca::TokenSubject;
use amime_core::NamespacedName;
use amime_net::namespace::{Sandbox, SandboxSpec};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::convergence;
use crate::environment::account;
use crate::image::Program;
use crate::network;
use crate::sidecar::{self, PROXY_CONTAINER, ProxyFiles, ProxyKind};

/// Time that proxies get to learn that a deleted pod is gone before it is told
/// to stop; a proxy that does not follow holds nobody up for longer.
const ENDPOINTS_GO_FIRST: Duration = Duration::from_secs(60);
/// Time for requests that were sent before their proxy learned that a deleted
/// pod is gone, and for clients without a proxy.
const LAST_REQUESTS: Duration = Duration::from_millis(500);
/// Workload tokens outlive any start of a proxy; proxies renew with their
/// certificate.
const TOKEN_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
const DEFAULT_GRACE_S: i64 = 30;

/// A pod with its namespaces and containers.
pub(crate) struct Pod {
    pub(crate) name: NamespacedName,
    pub(crate) uid: String,
    pub(crate) object: Object<PodSpec>,
    pub(crate) address: Ipv4Addr,
    pub(crate) sandbox: Sandbox,
    /// Traffic goes through a sidecar.
    pub(crate) meshed: bool,
    pub(crate) containers: Vec<Arc<ContainerHandle>>,
    /// Something about a container changed.
    changed: Arc<Notify>,
}

impl Pod {
    /// The container of this name, or the first application's.
    pub(crate) fn container(&self, name: Option<&str>) -> Option<&Arc<ContainerHandle>> {
        match name {
            Some(name) => self.containers.iter().find(|container| container.name() == name),
            None => self
                .containers
                .iter()
                .find(|container| container.name() != PROXY_CONTAINER)
                .or_else(|| self.containers.first()),
        }
    }
}

/// Why a pod could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodError {
    #[error("no address is left for the pod")]
    NoAddress,
    #[error("no command is known for image {0:?}; name one with --image {0}=COMMAND on `amime up`")]
    Image(String),
    #[error(transparent)]
    Sandbox(#[from] amime_net::namespace::SandboxError),
    #[error(transparent)]
    Network(#[from] network::NetworkError),
    #[error("could not issue the pod's token")]
    Token(#[from] amime_ca::TokenError),
    #[error("could not write the files of the pod")]
    Files(#[from] std::io::Error),
}

/// Starts and stops pods as their objects come and go.
pub(crate) struct Kubelet {
    cluster: Arc<Cluster>,
    running: HashMap<String, CancellationToken>,
    /// Pods that were stopped; their uid never runs again.
    retired: HashSet<String>,
}

impl Kubelet {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, running: HashMap::new(), retired: HashSet::new() }
    }

    /// Brings the running pods in line with the objects.
    pub(crate) fn reconcile(&mut self, objects: &[Arc<Resource>]) {
        let mut wanted = HashSet::new();
        for object in objects {
            let Resource::Pod(pod) = &**object else { continue };
            let Some(uid) = pod.metadata.uid.clone() else { continue };
            if self.retired.contains(&uid) {
                // A status written while the pod was being deleted.
                finish(&self.cluster, &object.key(), &uid);
                continue;
            }
            wanted.insert(uid.clone());
            let terminating = pod.metadata.deletion_timestamp.is_some();
            match self.running.get(&uid) {
                Some(stop) if terminating => stop.cancel(),
                Some(_) => {}
                None if terminating => finish(&self.cluster, &object.key(), &uid),
                None => self.start(uid, pod.clone(), objects),
            }
        }
        let gone: Vec<_> =
            self.running.keys().filter(|uid| !wanted.contains(*uid)).cloned().collect();
        for uid in gone {
            if let Some(stop) = self.running.remove(&uid) {
                stop.cancel();
                self.retired.insert(uid);
            }
        }
    }

    fn start(&mut self, uid: String, pod: Object<PodSpec>, objects: &[Arc<Resource>]) {
        let namespace = objects.iter().find(|object| {
            object.kind() == Kind::Namespace && object.name() == pod.metadata.namespace
        });
        let labels = namespace.map(|n| n.metadata().labels.clone()).unwrap_or_default();
        let wants = sidecar::wants_sidecar(&pod, &labels) && !sidecar::is_injected(&pod.metadata);
        let pod = if wants { sidecar::inject(&pod) } else { pod };
        let stop = CancellationToken::new();
        self.running.insert(uid, stop.clone());
        let cluster = Arc::clone(&self.cluster);
        self.cluster.tasks.spawn(run(cluster, pod, stop));
    }
}

/// Takes the object of a pod that has ended out of the store.
fn finish(cluster: &Cluster, key: &ObjectKey, uid: &str) {
    if let Err(error) = cluster.store.finish_delete(key, uid) {
        tracing::warn!(pod = %key, error = chain(&error), "the object of a pod that ended stays");
    }
}

/// The whole life of a pod, to the removal of its object.
async fn run(cluster: Arc<Cluster>, object: Object<PodSpec>, stop: CancellationToken) {
    let key = Resource::Pod(object.clone()).key();
    let uid = object.metadata.uid.clone().unwrap_or_default();
    live(&cluster, object, &stop).await;
    tokio::select! {
        // One that could not be set up stays, for its user to see.
        () = stop.cancelled() => finish(&cluster, &key, &uid),
        () = cluster.shutdown.cancelled() => {}
    }
}

/// Sets a pod up, runs it until it has to stop, and tears it down.
async fn live(cluster: &Arc<Cluster>, object: Object<PodSpec>, stop: &CancellationToken) {
    let setting_up = (Arc::clone(cluster), object.clone());
    let set_up = tokio::task::spawn_blocking(move || set_up(&setting_up.0, setting_up.1));
    let pod = match set_up.await {
        Ok(Ok(pod)) => Arc::new(pod),
        Ok(Err(error)) => {
            tracing::warn!(pod = %object.metadata.name, error = chain(&error), "pod not started");
            return status::publish_failure(cluster, object, &chain(&error));
        }
        Err(panic) => {
            let message = panic.to_string();
            return status::publish_failure(cluster, object, &message);
        }
    };
    cluster.add_pod(Arc::clone(&pod));
    let mut containers = container::Group::start(cluster, &pod);
    loop {
        status::publish(cluster, &pod);
        containers.advance();
        tokio::select! {
            () = pod.changed.notified() => {}
            () = stop.cancelled() => break,
            () = cluster.shutdown.cancelled() => break,
        }
    }
    if !cluster.shutdown.is_cancelled() {
        let endpoints_go_first = async {
            convergence::wait(cluster, ENDPOINTS_GO_FIRST).await;
            tokio::time::sleep(LAST_REQUESTS).await;
        };
        tokio::select! {
            () = endpoints_go_first => {}
            () = cluster.shutdown.cancelled() => {}
        }
    }
    let grace = pod.object.spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_S);
    let mut grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
    if cluster.shutdown.is_cancelled() {
        // Nobody is left to be served.
        grace = grace.min(Duration::from_secs(2));
    }
    containers.stop(grace).await;
    cluster.remove_pod(&pod);
    tear_down(cluster, &pod);
}

fn tear_down(cluster: &Cluster, pod: &Pod) {
    if !cluster.shutdown.is_cancelled()
        && let Err(error) = network::detach(pod.address)
    {
        tracing::warn!(pod = %pod.name, error = chain(&error), "the pod's link stays");
    }
    cluster.addresses().release(pod.address);
    for file in pod_files(cluster, &pod.uid) {
        let _ = std::fs::remove_file(file);
    }
    let _ = std::fs::remove_dir_all(proxy_state(cluster, pod));
}

/// Namespaces, link and files. Blocking.
fn set_up(cluster: &Arc<Cluster>, object: Object<PodSpec>) -> Result<Pod, PodError> {
    let meta = &object.metadata;
    let name = NamespacedName { namespace: meta.namespace.clone(), name: meta.name.clone() };
    let uid = meta.uid.clone().unwrap_or_default();
    let mut programs = Vec::new();
    for container in object.spec.init_containers.iter().chain(&object.spec.containers) {
        let program = cluster.images.resolve(&container.image);
        programs.push(program.ok_or_else(|| PodError::Image(container.image.clone()))?);
    }
    let address = cluster.addresses().allocate().ok_or(PodError::NoAddress)?;
    let made = sandbox(cluster, &object, &uid, address);
    let sandbox = made.inspect_err(|_| cluster.addresses().release(address))?;
    network::attach(&sandbox, address).inspect_err(|_| cluster.addresses().release(address))?;
    let meshed = sidecar::is_injected(meta);
    if meshed {
        network::intercept(&sandbox)?;
    }
    if programs.contains(&Program::Proxy) {
        write_token(cluster, &object, &uid)?;
    }
    let changed = Arc::new(Notify::new());
    let containers = container::handles(cluster, &object, &programs, &changed)?;
    Ok(Pod { name, uid, address, sandbox, meshed, containers, changed, object })
}

fn sandbox(
    cluster: &Cluster,
    object: &Object<PodSpec>,
    uid: &str,
    address: Ipv4Addr,
) -> Result<Sandbox, PodError> {
    let [resolv, hosts, nsswitch, _token] = pod_files(cluster, uid);
    let meta = &object.metadata;
    let domain = crate::service::DOMAIN;
    std::fs::write(
        &resolv,
        format!(
            "search {}.svc.{domain} svc.{domain} {domain}\nnameserver {}\noptions ndots:5\n",
            meta.namespace,
            crate::address::NAME_SERVER
        ),
    )?;
    std::fs::write(
        &hosts,
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{address}\t{}\n", meta.name),
    )?;
    // The host may resolve names through a daemon that knows nothing of pods.
    std::fs::write(&nsswitch, "passwd: files\ngroup: files\nhosts: files dns\n")?;
    let spec = SandboxSpec {
        hostname: meta.name.chars().take(63).collect(),
        binds: vec![
            (resolv, PathBuf::from("/etc/resolv.conf")),
            (hosts, PathBuf::from("/etc/hosts")),
            (nsswitch, PathBuf::from("/etc/nsswitch.conf")),
        ],
    };
    let (sandbox, skipped) = Sandbox::create(&spec)?;
    for place in skipped {
        tracing::debug!(pod = %meta.name, place = %place.display(), "not on this machine");
    }
    Ok(sandbox)
}

/// Files of one pod: resolver, hosts, name service switch, token.
fn pod_files(cluster: &Cluster, uid: &str) -> [PathBuf; 4] {
    let run = cluster.state.run();
    ["resolv.conf", "hosts", "nsswitch.conf", "token"].map(|kind| run.join(format!("{uid}.{kind}")))
}

fn write_token(cluster: &Cluster, object: &Object<PodSpec>, uid: &str) -> Result<(), PodError> {
    let subject = TokenSubject {
        namespace: object.metadata.namespace.clone(),
        service_account: account(&object.spec).to_owned(),
        pod_name: object.metadata.name.clone(),
        pod_uid: uid.to_owned(),
    };
    let token = cluster.tokens.issue(&subject, TOKEN_TTL, SystemTime::now())?;
    let [.., path] = pod_files(cluster, uid);
    Ok(crate::state::write_private(&path, token.as_bytes())?)
}

/// Files that the pod's proxy uses.
fn proxy_files(cluster: &Cluster, pod: &Pod) -> std::io::Result<ProxyFiles> {
    let [.., token] = pod_files(cluster, &pod.uid);
    let state = proxy_state(cluster, pod);
    std::fs::create_dir_all(&state)?;
    Ok(ProxyFiles { token, root_cert: cluster.state.root_cert(), state })
}

/// Folder in which the pod's proxy keeps its last good configuration.
fn proxy_state(cluster: &Cluster, pod: &Pod) -> PathBuf {
    cluster.state.proxies().join(format!("{}_{}", pod.name.namespace, pod.name.name))
}

/// Kind of the pod's proxy.
fn proxy_kind(pod: &Pod) -> ProxyKind {
    if pod.meshed { ProxyKind::Sidecar } else { ProxyKind::Router }
}

/// A memory file in which a proxy keeps its identity over a restart.
fn identity_file() -> std::io::Result<OwnedFd> {
    amime_net::socket::memfd(c"amime-identity")
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
