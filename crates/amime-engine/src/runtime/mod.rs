//! The data path as others see it: workers, and the configuration applied to
//! them.
//!
//! Owns the worker threads and the one place where configuration changes.
//! Each change is compiled, checked and published whole; workers take it up
//! between requests.

mod keeper;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amime_telemetry::Telemetry;
use amime_xds::client::{Rejection, Update};
use amime_xds::{Resource, TypeUrl};
use http::HeaderValue;
use tokio::sync::{Notify, watch};

pub use amime_resources::{
    ClusterDump, EndpointDump, Inherited, ListenerDump, RejectedDump, ResourceDump, RuntimeDump,
    TakenSockets,
};
pub use amime_rules::Fault;
pub use amime_upstream::{LocalCluster, Place};

use crate::overload::{Actions, OverloadPlan, watch_pressures};
use crate::worker::{self, Shared, WorkerOptions};
use amime_config::Node;
use amime_config::secrets::{SecretSource, SecretStore};
use amime_resources::{Published, State, StateOptions};

/// What a runtime is started with.
pub struct RuntimeOptions {
    /// Worker threads; 0 counts as 1.
    pub concurrency: usize,
    /// Where traffic is reported.
    pub telemetry: Arc<Telemetry>,
    /// The workload's certificate and roots.
    pub identity: Arc<dyn SecretSource>,
    /// `SO_MARK` of upstream sockets, by which interception rules skip them.
    pub mark: Option<u32>,
    /// The proxy is a gateway rather than a sidecar.
    pub gateway: bool,
    /// Name that peers know this node by in metadata exchange; empty: none is
    /// told.
    pub node_id: String,
    /// Cluster of this node, by which rate limits know where requests are from.
    pub service_cluster: String,
    /// This node's own address; default: that from which it would reach others.
    pub address: Option<IpAddr>,
    /// The cluster that this node is part of, by which others keep requests in
    /// its zone.
    pub local_cluster: Option<Arc<LocalCluster>>,
    /// What is done under pressure.
    pub overload: OverloadPlan,
    /// Sockets of a proxy before this one, perhaps none; absent if no other
    /// will take over from this one either.
    pub inherited: Option<Inherited>,
}

/// The running data path.
pub struct Runtime {
    state: Mutex<State>,
    publish: watch::Sender<Arc<Published>>,
    draining: watch::Sender<bool>,
    shared: Arc<Shared>,
    workers: usize,
    /// All that was known at the start is in force.
    started: AtomicBool,
    /// Told when there may be something new to do unasked.
    wake: Arc<Notify>,
}

/// What came of static resources.
#[derive(Clone, Debug, Default)]
pub struct StaticReport {
    /// Resources that cannot be used, with the fields at fault.
    pub rejected: Vec<(TypeUrl, Rejection)>,
    /// Fields that have no effect, by type and name of the resource.
    pub ignored: Vec<(TypeUrl, String, Fault)>,
}

impl Runtime {
    /// Starts the workers, with nothing configured.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be started.
    pub fn start(options: RuntimeOptions) -> io::Result<Arc<Self>> {
        let workers = options.concurrency.max(1);
        let own_metadata = own_metadata(&options);
        let (publish, config) = watch::channel(Arc::new(Published::default()));
        let (draining, drain) = watch::channel(false);
        let (tell, overload) = watch::channel(Actions::default());
        let plan = Arc::new(options.overload);
        let shared = Arc::new(Shared::new(plan.clone()));
        let address = options.address.unwrap_or_else(own_address);
        let state = State::new(StateOptions {
            secrets: SecretStore::new(options.identity.clone()),
            telemetry: options.telemetry.clone(),
            node: Node {
                gateway: options.gateway,
                id: options.node_id.clone(),
                cluster: options.service_cluster.clone(),
            },
            mark: options.mark,
            workers,
            local_cluster: options.local_cluster.clone(),
            inherited: options.inherited,
        });
        let runtime = Arc::new(Self {
            wake: state.wake(),
            state: Mutex::new(state),
            publish,
            draining,
            shared: shared.clone(),
            workers,
            started: AtomicBool::new(false),
        });
        for index in 0..workers {
            let worker = WorkerOptions {
                index,
                telemetry: options.telemetry.worker(),
                mark: options.mark,
                own_metadata: own_metadata.clone(),
                address,
                service_cluster: options.service_cluster.as_str().into(),
                shared: shared.clone(),
                config: config.clone(),
                draining: drain.clone(),
                overload: overload.clone(),
            };
            let name = format!("worker-{index}");
            std::thread::Builder::new().name(name).spawn(move || run_worker(worker))?;
        }
        let pressures = watch_pressures(plan, options.telemetry, tell);
        keeper::start(&runtime, options.mark, pressures)?;
        Ok(runtime)
    }

    /// Applies one xDS update. Resources that are not in the answer are in
    /// force when this returns; workers take them up within their next turn.
    pub fn apply(&self, update: &Update) -> Vec<Rejection> {
        let mut state = self.state();
        let rejected = state.apply(update, false);
        state.look_at_secret_files();
        self.publish(&mut state);
        rejected
    }

    /// Applies the static resources of a bootstrap, in any order.
    pub fn apply_static(&self, resources: Vec<Resource>) -> StaticReport {
        let mut state = self.state();
        let mut report = StaticReport::default();
        // Static contexts name secrets that must be there already.
        let rest = amime_xds::PUSH_ORDER.into_iter().filter(|kind| *kind != TypeUrl::Secret);
        for type_url in std::iter::once(TypeUrl::Secret).chain(rest) {
            let added: Vec<_> = resources
                .iter()
                .filter(|resource| resource.type_url == type_url)
                .cloned()
                .collect();
            if !added.is_empty() {
                let update = Update { type_url, added, removed: Vec::new() };
                let rejected = state.apply(&update, true).into_iter();
                report.rejected.extend(rejected.map(|one| (type_url, one)));
            }
        }
        state.look_at_secret_files();
        report.ignored = state.ignored();
        self.publish(&mut state);
        report
    }

    /// Names of the resources of a type that the configuration refers to.
    pub fn required_names(&self, type_url: TypeUrl) -> Vec<String> {
        self.state().required_names(type_url)
    }

    /// A copy of all state, for admin endpoints.
    pub fn dump(&self) -> RuntimeDump {
        self.state().dump()
    }

    /// All bound addresses of a listener, with their real ports.
    pub fn listener_addresses(&self, name: &str) -> Vec<SocketAddr> {
        self.state().listener_addresses(name)
    }

    /// Brings gauges up to date that nothing counts by itself, before they
    /// are read.
    pub fn refresh_gauges(&self) {
        self.state().refresh_gauges();
    }

    /// The bound address of a listener, with its real port.
    pub fn listener_address(&self, name: &str) -> Option<SocketAddr> {
        self.state().listener_address(name)
    }

    /// True once every worker has taken up a configuration of which nothing
    /// waited any more, and while the runtime does not drain. What warms later
    /// does not make a proxy unready: what it replaces still serves.
    pub fn ready(&self) -> bool {
        let started = self.started.load(Ordering::Acquire) || {
            let settled = self.settled();
            if settled && self.state().serves() {
                self.started.store(true, Ordering::Release);
            }
            settled
        };
        started && !*self.draining.borrow()
    }

    /// True while all workers have the newest configuration and nothing warms.
    pub fn settled(&self) -> bool {
        let adopted = self.publish.borrow().adopted.load(Ordering::Acquire);
        adopted >= self.workers && !self.state().warming()
    }

    /// Copies of all listening sockets, for a proxy that takes over.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn copy_sockets(&self) -> io::Result<Vec<TakenSockets>> {
        self.state().copy_sockets()
    }

    /// Closes sockets of the proxy before that no listener has asked for.
    pub fn forget_inherited(&self) {
        self.state().forget_inherited();
    }

    /// Downstream connections open now.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Stops accepting, asks clients to leave, and waits until all have or
    /// `deadline` has passed. True if all have left.
    pub async fn drain(&self, deadline: Duration) -> bool {
        self.state().release_sockets();
        self.draining.send_replace(true);
        let end = tokio::time::Instant::now() + deadline;
        while self.connections() > 0 {
            if tokio::time::Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, state: &mut State) {
        self.publish_changes(state);
        self.wake.notify_one();
    }

    /// Publishes without waking the thread that does what time asks for.
    fn publish_changes(&self, state: &mut State) {
        if let Some(published) = state.publish() {
            self.publish.send_replace(Arc::new(published));
        }
    }
}

fn run_worker(options: WorkerOptions) {
    let built = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Look for readiness often: with few tasks a poll of the kernel costs
        // less than the wait it saves.
        .event_interval(31)
        .build_local(tokio::runtime::LocalOptions::default());
    match built {
        Ok(runtime) => runtime.block_on(worker::run(options)),
        Err(error) => tracing::error!(%error, "worker cannot start"),
    }
}

/// The address from which this machine would reach others. Nothing is sent.
fn own_address() -> IpAddr {
    const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 1), 9);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let address = socket.and_then(|socket| {
        socket.connect(ELSEWHERE)?;
        socket.local_addr()
    });
    address.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

fn own_metadata(options: &RuntimeOptions) -> Option<(HeaderValue, HeaderValue)> {
    let id = HeaderValue::from_str(&options.node_id).ok().filter(|id| !id.is_empty())?;
    let metadata = HeaderValue::from_str(&options.telemetry.local().encode()).ok()?;
    Some((metadata, id))
}
