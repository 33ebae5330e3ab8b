//! A worker's view of a cluster: its endpoints with their connection pools.
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

use super::dynamic::NamedHosts;
use super::lb::{LbInput, LocalCluster, SharedLb, WorkerLb};
use amime_config::cluster::ClusterConfig;
use amime_config::discovery::Discovery;
use amime_config::endpoint::{Endpoint, EndpointSet, HealthStatus};
use amime_config::endpoint_state::{ClusterState, EndpointShard, EndpointState, Outcome, Resource};
use amime_config::outlier::Ejector;

/// A cluster with its endpoints, shared by all workers.
#[derive(Debug)]
pub struct ClusterSpec {
    /// Its settings.
    pub config: Arc<ClusterConfig>,
    /// Its members.
    pub endpoints: Arc<EndpointSet>,
    /// Circuit breakers and the version of its members' health.
    pub state: Arc<ClusterState>,
    /// Tables that endpoints are picked from.
    pub lb: SharedLb,
    /// The cluster that the proxy is part of, if it is another one.
    pub local: Option<Arc<LocalCluster>>,
}

/// Connections of one worker to one endpoint.
pub trait Pool: Default {
    /// Moves all connections into a new pool.
    fn take(&self) -> Self;

    /// Closes idle connections and stops sharing others.
    fn clear(&self);
}

/// One endpoint as a worker uses it.
pub struct Host<P> {
    /// What is known of it.
    pub endpoint: Arc<Endpoint>,
    /// Connections to it.
    pub pool: P,
    worker: usize,
    /// Requests of this worker in flight.
    pub active: Cell<u32>,
    /// No longer in its cluster: connections are not kept.
    retired: Cell<bool>,
}

impl<P: Pool> Host<P> {
    fn new(endpoint: Arc<Endpoint>, pool: P, worker: usize) -> Rc<Self> {
        Rc::new(Self { endpoint, pool, worker, active: Cell::new(0), retired: Cell::new(false) })
    }

    /// This worker's counters of the endpoint.
    #[inline]
    pub fn counters(&self) -> &EndpointShard {
        let shards = &self.endpoint.state.shards;
        &shards[self.worker.min(shards.len() - 1)]
    }

    /// True once it is no longer in its cluster: connections are not kept.
    #[inline]
    pub fn retired(&self) -> bool {
        self.retired.get()
    }

    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.pool.clear();
    }

    /// The same endpoint after a change, with the connections of this one.
    pub(super) fn moved(&self, endpoint: Arc<Endpoint>) -> Rc<Self> {
        let moved = Self::new(endpoint, self.pool.take(), self.worker);
        moved.active.set(self.active.get());
        self.retired.set(true);
        moved
    }
}

/// A worker's cluster.
pub struct ClusterRuntime<P> {
    /// What all workers share of it.
    pub spec: Arc<ClusterSpec>,
    /// This worker's counters.
    pub stats: Arc<ClusterStats>,
    /// In the order of the spec's endpoints.
    hosts: Vec<Rc<Host<P>>>,
    pub(super) lb: WorkerLb,
    /// Endpoints of an original-destination cluster, made as they are asked for.
    dynamic: RefCell<HashMap<SocketAddr, Rc<Host<P>>>>,
    /// Endpoints of a dynamic forward proxy.
    pub(super) named: NamedHosts<P>,
    worker: usize,
}

/// Endpoints that an original-destination cluster remembers per worker.
const MAX_DYNAMIC: usize = 1024;

impl<P: Pool> ClusterRuntime<P> {
    /// Builds the view, taking pools over from the one it replaces.
    pub fn new(
        spec: Arc<ClusterSpec>,
        previous: Option<&Rc<Self>>,
        telemetry: &WorkerTelemetry,
        worker: usize,
    ) -> Rc<Self> {
        // Pools depend on the cluster's own settings; new ones start afresh.
        let keep = previous.filter(|old| Arc::ptr_eq(&old.spec.config, &spec.config));
        let spread = spec.config.discovery.spread();
        let key = |endpoint: &Endpoint| (spread.key(endpoint.address), endpoint.transport_index);
        let mut old: HashMap<(Option<SocketAddr>, usize), &Rc<Host<P>>> = HashMap::new();
        for host in keep.iter().flat_map(|old| &old.hosts) {
            old.insert(key(&host.endpoint), host);
        }
        let mut build = |endpoint: &Arc<Endpoint>| match old.remove(&key(endpoint)) {
            Some(host) if Arc::ptr_eq(&host.endpoint, endpoint) => host.clone(),
            Some(host) => host.moved(endpoint.clone()),
            None => Host::new(endpoint.clone(), P::default(), worker),
        };
        let hosts = spec.endpoints.endpoints().map(&mut build).collect();
        old.into_values().for_each(|host| host.retire());
        if keep.is_none()
            && let Some(previous) = previous
        {
            previous.retire();
        }
        let dynamic = keep.map(|old| old.dynamic.take()).unwrap_or_default();
        let named = keep.map(|old| old.named.take()).unwrap_or_default();
        let stats = telemetry.cluster(&spec.config.name);
        let dynamic = RefCell::new(dynamic);
        Rc::new(Self { spec, stats, hosts, lb: WorkerLb::default(), dynamic, named, worker })
    }

    /// Closes idle connections; those in use close when their request ends.
    pub fn retire(&self) {
        self.hosts.iter().for_each(|host| host.retire());
        self.dynamic.borrow().values().for_each(|host| host.retire());
        self.named.each(|host| host.retire());
    }

    /// Its settings.
    #[inline]
    pub fn config(&self) -> &ClusterConfig {
        &self.spec.config
    }

    /// Calls `visit` for every endpoint in use.
    pub fn each_host(&self, mut visit: impl FnMut(&Rc<Host<P>>)) {
        self.hosts.iter().for_each(&mut visit);
        self.dynamic.borrow().values().for_each(&mut visit);
        self.named.each(visit);
    }

    /// Lets go of endpoints that nobody has asked for in a long time.
    pub fn forget_gone(&self) {
        self.named.forget_gone();
    }

    pub(super) fn new_host(&self, endpoint: Arc<Endpoint>) -> Rc<Host<P>> {
        Host::new(endpoint, P::default(), self.worker)
    }

    /// An endpoint for a request.
    pub fn choose(&self, input: LbInput<'_, P>) -> Option<Rc<Host<P>>> {
        let at = self.lb.choose(&self.spec, &self.hosts, &self.stats, input)?;
        self.hosts.get(at).cloned()
    }

    /// The endpoint at `address`, if its health is one in which sessions stay.
    pub fn session(&self, address: SocketAddr) -> Option<Rc<Host<P>>> {
        let host = self.hosts.get(self.spec.lb.position(&self.spec, address)?)?;
        let status = host.endpoint.health_status();
        self.config().lb.override_status.contains(&status).then(|| host.clone())
    }

    /// The endpoint at `address`, for original-destination clusters.
    pub fn original_dst(&self, address: SocketAddr) -> Rc<Host<P>> {
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
        let host = self.new_host(endpoint);
        if dynamic.len() < MAX_DYNAMIC {
            dynamic.insert(address, host.clone());
        }
        host
    }

    /// True if endpoints are what the client dialed.
    pub fn is_original_dst(&self) -> bool {
        matches!(self.config().discovery, Discovery::OriginalDst { .. })
    }

    /// Feeds passive health checking.
    pub fn observe(&self, host: &Host<P>, outcome: Outcome) {
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

    /// Takes one of what a circuit breaker counts; false if there is no more.
    pub fn take(&self, priority: usize, resource: Resource) -> bool {
        self.spec.state.take(&self.config().limits, priority, resource)
    }

    /// Gives back what [`Self::take`] took.
    pub fn give(&self, priority: usize, resource: Resource) {
        self.spec.state.give(&self.config().limits, priority, resource);
    }
}
