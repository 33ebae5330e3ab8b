//! A worker: one OS thread with its own single-threaded runtime, accept
//! sockets, upstream pools and counters.
//!
//! Invariant: nothing on the request path crosses threads. Configuration
//! comes as a watched value; what a request needs of it is copied into
//! reference counts of this thread.

mod snapshot;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::io;
#[cfg(feature = "http3")]
use std::net::UdpSocket;
use std::net::{IpAddr, TcpListener};
#[cfg(feature = "http3")]
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use amime_telemetry::WorkerTelemetry;
use http::HeaderValue;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

pub(crate) use snapshot::Snapshot;

#[cfg(feature = "http3")]
use crate::listener::quic_loop;
use crate::listener::{Acceptor, accept_loop};
use crate::overload::{Actions, OverloadPlan};
use crate::upstream::ClusterRuntime;
use amime_config::names::ClusterId;
use amime_resources::{Published, SocketSet};

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) connections: AtomicUsize,
    connection_ids: AtomicU64,
    limits: Arc<OverloadPlan>,
}

impl Shared {
    pub(crate) fn new(limits: Arc<OverloadPlan>) -> Self {
        Self { connections: AtomicUsize::new(0), connection_ids: AtomicU64::new(0), limits }
    }
}

/// One worker's state, shared by its tasks.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) telemetry: WorkerTelemetry,
    pub(crate) mark: Option<u32>,
    /// Values of the headers that tell peers who we are.
    pub(crate) own_metadata: Option<(HeaderValue, HeaderValue)>,
    /// This node's own address.
    pub(crate) address: IpAddr,
    /// The cluster that this node counts itself to.
    pub(crate) service_cluster: Arc<str>,
    shared: Arc<Shared>,
    snapshot: RefCell<Rc<Snapshot>>,
    draining: Cell<bool>,
    overload: Cell<Actions>,
    changed: Notify,
}

/// What a worker is started with.
pub(crate) struct WorkerOptions {
    pub(crate) index: usize,
    pub(crate) telemetry: WorkerTelemetry,
    pub(crate) mark: Option<u32>,
    pub(crate) own_metadata: Option<(HeaderValue, HeaderValue)>,
    pub(crate) address: IpAddr,
    pub(crate) service_cluster: Arc<str>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: watch::Receiver<Arc<Published>>,
    pub(crate) draining: watch::Receiver<bool>,
    pub(crate) overload: watch::Receiver<Actions>,
}

/// How often idle upstream connections are looked through.
const SWEEP: Duration = Duration::from_secs(5);

/// Longest time for which a request waits for its cluster.
const WARM_UP: Duration = Duration::from_secs(15);

/// Runs a worker until the configuration's sender is dropped.
pub(crate) async fn run(options: WorkerOptions) {
    let WorkerOptions { mut config, mut draining, mut overload, .. } = options;
    let worker = Rc::new(Worker {
        index: options.index,
        telemetry: options.telemetry,
        mark: options.mark,
        own_metadata: options.own_metadata,
        address: options.address,
        service_cluster: options.service_cluster,
        shared: options.shared,
        snapshot: RefCell::default(),
        draining: Cell::new(false),
        overload: Cell::default(),
        changed: Notify::new(),
    });
    let mut accepting = Accepting::default();
    let mut sweep = tokio::time::interval(SWEEP);
    worker.adopt(&config.borrow_and_update().clone(), &mut accepting);
    loop {
        tokio::select! {
            changed = config.changed() => {
                if changed.is_err() {
                    return;
                }
                let published = config.borrow_and_update().clone();
                worker.adopt(&published, &mut accepting);
            }
            Ok(()) = draining.changed() => {
                worker.draining.set(*draining.borrow_and_update());
                accepting.stop();
                worker.changed.notify_waiters();
            }
            Ok(()) = overload.changed() => {
                worker.overload.set(*overload.borrow_and_update());
                worker.changed.notify_waiters();
            }
            _ = sweep.tick() => worker.snapshot().sweep(),
        }
    }
}

/// The accept loops of a worker by their sockets.
#[derive(Default)]
struct Accepting(HashMap<*const SocketSet, AcceptLoop>);

struct AcceptLoop {
    /// Kept, so that the key stays that of this set alone.
    _sockets: Arc<SocketSet>,
    /// The listener that has the socket now.
    listener: Rc<RefCell<Arc<str>>>,
    /// One for each socket.
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for AcceptLoop {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Accepting {
    fn stop(&mut self) {
        self.0.clear();
    }

    /// Starts loops for new sockets, then stops those of old ones.
    fn follow(&mut self, worker: &Rc<Worker>, published: &Published) {
        let all = published.sockets.iter();
        for (name, sockets) in all.flat_map(|(name, all)| all.iter().map(move |one| (name, one))) {
            if let Some(have) = self.0.get(&Arc::as_ptr(sockets)) {
                have.listener.replace(name.clone());
                continue;
            }
            let own = sockets.take(worker.index);
            let listener = Rc::new(RefCell::new(name.clone()));
            let accept = |socket| accepting(worker, &listener, (&**sockets, socket));
            match own.into_iter().map(accept).collect::<io::Result<Vec<_>>>() {
                Ok(tasks) if tasks.is_empty() => {}
                Ok(tasks) => {
                    let accepting = AcceptLoop { _sockets: sockets.clone(), listener, tasks };
                    self.0.insert(Arc::as_ptr(sockets), accepting);
                }
                Err(error) => tracing::error!(listener = %name, %error, "socket unusable"),
            }
        }
        let wanted: HashSet<_> = published.sockets.values().flatten().map(Arc::as_ptr).collect();
        self.0.retain(|sockets, _| wanted.contains(sockets));
    }
}

/// Accepts on a socket in a task of its own.
fn accepting(
    worker: &Rc<Worker>,
    listener: &Rc<RefCell<Arc<str>>>,
    (set, socket): (&SocketSet, TcpListener),
) -> io::Result<JoinHandle<()>> {
    #[cfg(feature = "http3")]
    if set.asked.datagrams {
        let socket = UdpSocket::from(OwnedFd::from(socket));
        let task = quic_loop(worker.clone(), listener.clone(), socket);
        return Ok(tokio::task::spawn_local(task));
    }
    let socket = Acceptor::new(socket, set.address)?;
    Ok(tokio::task::spawn_local(accept_loop(worker.clone(), listener.clone(), socket)))
}

impl Worker {
    fn adopt(self: &Rc<Self>, published: &Arc<Published>, accepting: &mut Accepting) {
        let next = Snapshot::build(published, &self.snapshot(), self);
        let previous = self.snapshot.replace(Rc::new(next));
        previous.retire_replaced(&self.snapshot());
        if !self.draining() {
            accepting.follow(self, published);
        }
        published.adopted.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// The configuration for a request that begins now.
    pub(crate) fn snapshot(&self) -> Rc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// A cluster, once it is in force; none if there is no such cluster, or if
    /// it takes too long to come.
    pub(crate) async fn warm_cluster(&self, id: ClusterId) -> Option<Rc<ClusterRuntime>> {
        let comes = async {
            loop {
                // Listens before it looks: no change is missed in between.
                let mut changed = pin!(self.changed());
                changed.as_mut().enable();
                let snapshot = self.snapshot();
                match snapshot.cluster(id) {
                    None if snapshot.expects(id) => {}
                    known => return known,
                }
                drop(snapshot);
                changed.await;
            }
        };
        tokio::time::timeout(WARM_UP, comes).await.ok().flatten()
    }

    /// True once connections are to be closed in good order.
    pub(crate) fn draining(&self) -> bool {
        self.draining.get()
    }

    /// What is asked of the work that comes in now.
    pub(crate) fn overload(&self) -> Actions {
        self.overload.get()
    }

    /// What the operator lets connections use.
    pub(crate) fn limits(&self) -> &OverloadPlan {
        &self.shared.limits
    }

    /// Connections of clients, of all workers.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed) as u64
    }

    /// Resolves when configuration, drain state or overload has changed.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    pub(crate) fn next_connection_id(&self) -> u64 {
        self.shared.connection_ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts a connection until the result is dropped.
    pub(crate) fn connection_opened(&self) -> ActiveConnection {
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
        ActiveConnection(self.shared.clone())
    }
}

/// A downstream connection that counts as open.
pub(crate) struct ActiveConnection(Arc<Shared>);

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
