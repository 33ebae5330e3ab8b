//! A worker's view of a cluster: its endpoints with their pools.
//!
//! Invariant: an endpoint that survives an update keeps its pool, so a push
//! closes no connection; the pool of one that is gone empties when its last
//! request ends.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use amime_telemetry::{ClusterStats, WorkerTelemetry};

use super::lb::{LbInput, SharedLb, WorkerLb};
use super::pool::HostPool;
use amime_config::cluster::ClusterConfig;
use amime_config::discovery::Discovery;
use amime_config::endpoint::{Endpoint, EndpointSet, HealthStatus};
use amime_config::endpoint_state::{ClusterState, EndpointShard, EndpointState, Outcome, Resource};
use amime_config::outlier::Ejector;

/// A cluster with its endpoints, shared by all workers.
#[derive(Debug)]
pub(crate) struct ClusterSpec {
    pub(crate) config: Arc<ClusterConfig>,
    pub(crate) endpoints: Arc<EndpointSet>,
    pub(crate) state: Arc<ClusterState>,
    pub(crate) lb: SharedLb,
}

/// One endpoint as a worker uses it.
pub(crate) struct Host {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) pool: HostPool,
    worker: usize,
    /// Requests of this worker in flight.
    pub(crate) active: Cell<u32>,
    /// No longer in its cluster: connections are not kept.
    retired: Cell<bool>,
}

impl Host {
    fn new(endpoint: Arc<Endpoint>, pool: HostPool, worker: usize) -> Rc<Self> {
        Rc::new(Self { endpoint, pool, worker, active: Cell::new(0), retired: Cell::new(false) })
    }

    /// This worker's counters of the endpoint.
    pub(crate) fn counters(&self) -> &EndpointShard {
        let shards = &self.endpoint.state.shards;
        &shards[self.worker.min(shards.len() - 1)]
    }

    pub(crate) fn retired(&self) -> bool {
        self.retired.get()
    }

    fn retire(&self) {
        self.retired.set(true);
        self.pool.clear();
    }
}

/// A worker's cluster.
pub(crate) struct ClusterRuntime {
    pub(crate) spec: Arc<ClusterSpec>,
    pub(crate) stats: Arc<ClusterStats>,
    /// In the order of the spec's endpoints.
    hosts: Vec<Rc<Host>>,
    lb: WorkerLb,
    /// Endpoints of an original-destination cluster, made as they are asked for.
    dynamic: RefCell<HashMap<SocketAddr, Rc<Host>>>,
    worker: usize,
}

/// Endpoints that an original-destination cluster remembers per worker.
const MAX_DYNAMIC: usize = 1024;

impl ClusterRuntime {
    /// Builds the view, taking pools over from the one it replaces.
    pub(crate) fn new(
        spec: Arc<ClusterSpec>,
        previous: Option<&Rc<Self>>,
        telemetry: &WorkerTelemetry,
        worker: usize,
    ) -> Rc<Self> {
        // Pools depend on the cluster's own settings; new ones start afresh.
        let keep = previous.filter(|old| Arc::ptr_eq(&old.spec.config, &spec.config));
        let spread = spec.config.discovery.spread();
        let key = |endpoint: &Endpoint| (spread.key(endpoint.address), endpoint.transport_index);
        let mut old: HashMap<(Option<SocketAddr>, usize), &Rc<Host>> = HashMap::new();
        for host in keep.iter().flat_map(|old| &old.hosts) {
            old.insert(key(&host.endpoint), host);
        }
        let mut build = |endpoint: &Arc<Endpoint>| match old.remove(&key(endpoint)) {
            Some(host) if Arc::ptr_eq(&host.endpoint, endpoint) => host.clone(),
            Some(host) => {
                let moved = Host::new(endpoint.clone(), host.pool.take(), worker);
                moved.active.set(host.active.get());
                host.retired.set(true);
                moved
            }
            None => Host::new(endpoint.clone(), HostPool::default(), worker),
        };
        let hosts = spec.endpoints.endpoints().map(&mut build).collect();
        old.into_values().for_each(|host| host.retire());
        if keep.is_none()
            && let Some(previous) = previous
        {
            previous.retire();
        }
        let dynamic = keep.map(|old| old.dynamic.take()).unwrap_or_default();
        let stats = telemetry.cluster(&spec.config.name);
        let dynamic = RefCell::new(dynamic);
        Rc::new(Self { spec, stats, hosts, lb: WorkerLb::default(), dynamic, worker })
    }

    /// Closes idle connections; those in use close when their request ends.
    pub(crate) fn retire(&self) {
        self.hosts.iter().for_each(|host| host.retire());
        self.dynamic.borrow().values().for_each(|host| host.retire());
    }

    pub(crate) fn config(&self) -> &ClusterConfig {
        &self.spec.config
    }

    /// Calls `visit` for every endpoint in use.
    pub(crate) fn each_host(&self, mut visit: impl FnMut(&Rc<Host>)) {
        self.hosts.iter().for_each(&mut visit);
        self.dynamic.borrow().values().for_each(visit);
    }

    /// An endpoint for a request.
    pub(crate) fn choose(&self, input: LbInput<'_>) -> Option<Rc<Host>> {
        let at = self.lb.choose(&self.spec, &self.hosts, &self.stats, input)?;
        self.hosts.get(at).cloned()
    }

    /// The endpoint at `address`, if its health is one in which sessions stay.
    pub(crate) fn session(&self, address: SocketAddr) -> Option<Rc<Host>> {
        let host = self.hosts.get(self.spec.lb.position(&self.spec, address)?)?;
        let status = host.endpoint.health_status();
        self.config().lb.override_status.contains(&status).then(|| host.clone())
    }

    /// The endpoint at `address`, for original-destination clusters.
    pub(crate) fn original_dst(&self, address: SocketAddr) -> Rc<Host> {
        let mut dynamic = self.dynamic.borrow_mut();
        if let Some(host) = dynamic.get(&address) {
            return host.clone();
        }
        if dynamic.len() >= MAX_DYNAMIC {
            // Those in use live on with their requests.
            dynamic.retain(|_, host| host.active.get() > 0);
        }
        let (transport_index, transport) = self.config().transport_of(None);
        let endpoint = Arc::new(Endpoint {
            address,
            more: Vec::new(),
            checked_as: Default::default(),
            hostname: "".into(),
            weight: 1,
            status: HealthStatus::Healthy,
            priority: 0,
            transport,
            transport_index,
            peer: None,
            lb: None,
            state: Arc::new(EndpointState::new(1)),
        });
        let host = Host::new(endpoint, HostPool::default(), self.worker);
        if dynamic.len() < MAX_DYNAMIC {
            dynamic.insert(address, host.clone());
        }
        host
    }

    /// True if endpoints are what the client dialed.
    pub(crate) fn is_original_dst(&self) -> bool {
        matches!(self.config().discovery, Discovery::OriginalDst { .. })
    }

    /// Feeds passive health checking.
    pub(crate) fn observe(&self, host: &Host, outcome: Outcome) {
        let Some(outlier) = &self.config().outlier else { return };
        let state = &host.endpoint.state;
        for kind in state.observe(outcome, outlier, host.counters()).into_iter().flatten() {
            let ejector = Ejector {
                outlier,
                cluster: &self.spec.state,
                stats: &self.stats,
                total: self.hosts.len(),
            };
            ejector.eject(state, kind);
        }
    }

    pub(crate) fn take(&self, priority: usize, resource: Resource) -> bool {
        self.spec.state.take(&self.config().limits, priority, resource)
    }

    pub(crate) fn give(&self, priority: usize, resource: Resource) {
        self.spec.state.give(&self.config().limits, priority, resource);
    }
}
