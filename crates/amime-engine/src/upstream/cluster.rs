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

use super::lb::{LbInput, PriorityGroup};
use super::pool::HostPool;
use amime_config::cluster::{ClusterConfig, Discovery};
use amime_config::endpoint::{Endpoint, EndpointSet, Health, HealthStatus};
use amime_config::endpoint_state::{ClusterState, EndpointShard, EndpointState, Outcome, Resource};
use amime_config::outlier::Ejector;

/// A cluster with its endpoints, shared by all workers.
#[derive(Debug)]
pub(crate) struct ClusterSpec {
    pub(crate) config: Arc<ClusterConfig>,
    pub(crate) endpoints: Arc<EndpointSet>,
    pub(crate) state: Arc<ClusterState>,
}

/// One endpoint as a worker uses it.
pub(crate) struct Host {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) pool: HostPool,
    worker: usize,
    /// Requests of this worker in flight.
    pub(crate) active: Cell<u32>,
    /// Credit of smooth weighted round robin.
    pub(crate) turn: Cell<i64>,
    /// No longer in its cluster: connections are not kept.
    retired: Cell<bool>,
}

impl Host {
    fn new(endpoint: Arc<Endpoint>, pool: HostPool, worker: usize) -> Rc<Self> {
        Rc::new(Self {
            endpoint,
            pool,
            worker,
            active: Cell::new(0),
            turn: Cell::new(0),
            retired: Cell::new(false),
        })
    }

    /// This worker's counters of the endpoint.
    pub(crate) fn counters(&self) -> &EndpointShard {
        let shards = &self.endpoint.state.shards;
        &shards[self.worker.min(shards.len() - 1)]
    }

    pub(crate) fn healthy(&self) -> bool {
        matches!(self.endpoint.health(), Health::Healthy | Health::Degraded)
    }

    pub(crate) fn retired(&self) -> bool {
        self.retired.get()
    }

    fn retire(&self) {
        self.retired.set(true);
        self.pool.clear();
    }

    /// What consistent hashing knows the endpoint by.
    pub(crate) fn hash_key(&self) -> String {
        self.endpoint.address.to_string()
    }
}

/// A worker's cluster.
pub(crate) struct ClusterRuntime {
    pub(crate) spec: Arc<ClusterSpec>,
    pub(crate) stats: Arc<ClusterStats>,
    priorities: Vec<PriorityGroup>,
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
        let mut old: HashMap<(SocketAddr, usize), &Rc<Host>> = HashMap::new();
        for host in keep.iter().flat_map(|old| old.hosts()) {
            old.insert((host.endpoint.address, host.endpoint.transport_index), host);
        }
        let mut build = |endpoint: &Arc<Endpoint>| match old
            .remove(&(endpoint.address, endpoint.transport_index))
        {
            Some(host) if Arc::ptr_eq(&host.endpoint, endpoint) => host.clone(),
            Some(host) => {
                let moved = Host::new(endpoint.clone(), host.pool.take(), worker);
                moved.active.set(host.active.get());
                host.retired.set(true);
                moved
            }
            None => Host::new(endpoint.clone(), HostPool::default(), worker),
        };
        let mut priorities = Vec::with_capacity(spec.endpoints.priorities.len());
        for groups in &spec.endpoints.priorities {
            let group = groups
                .iter()
                .map(|group| (group.weight, group.endpoints.iter().map(&mut build).collect()))
                .collect();
            priorities.push(PriorityGroup::new(group));
        }
        old.into_values().for_each(|host| host.retire());
        if keep.is_none()
            && let Some(previous) = previous
        {
            previous.retire();
        }
        let dynamic = keep.map(|old| old.dynamic.take()).unwrap_or_default();
        let stats = telemetry.cluster(&spec.config.name);
        Rc::new(Self { spec, stats, priorities, dynamic: RefCell::new(dynamic), worker })
    }

    /// Closes idle connections; those in use close when their request ends.
    pub(crate) fn retire(&self) {
        self.hosts().for_each(|host| host.retire());
        self.dynamic.borrow().values().for_each(|host| host.retire());
    }

    pub(crate) fn config(&self) -> &ClusterConfig {
        &self.spec.config
    }

    fn hosts(&self) -> impl Iterator<Item = &Rc<Host>> {
        self.priorities.iter().flat_map(|group| &group.hosts)
    }

    /// Calls `visit` for every endpoint in use.
    pub(crate) fn each_host(&self, mut visit: impl FnMut(&Rc<Host>)) {
        self.hosts().for_each(&mut visit);
        self.dynamic.borrow().values().for_each(visit);
    }

    /// An endpoint for a request.
    pub(crate) fn choose(&self, input: LbInput<'_>) -> Option<Rc<Host>> {
        let config = self.config();
        match self.priorities.as_slice() {
            [] => None,
            [only] => {
                let chosen = only.choose(config.lb, config.locality_weighted, true, input);
                // Scanning for health costs only when something is wrong.
                match chosen {
                    Some(host) if only.hosts.len() == 1 || !self.panicking(only) => Some(host),
                    _ if self.panicking(only) => {
                        self.stats.lb_healthy_panic.inc();
                        only.choose(config.lb, config.locality_weighted, false, input)
                    }
                    chosen => chosen,
                }
            }
            many => self.choose_priority(many, input),
        }
    }

    /// True if too few endpoints are healthy for health to be heeded.
    fn panicking(&self, group: &PriorityGroup) -> bool {
        let threshold = self.config().panic_percent;
        threshold > 0 && group.healthy_percent() < threshold
    }

    /// Spreads load over priorities by Envoy's rule: a priority takes as much
    /// as its overprovisioned health allows, the rest spills over.
    fn choose_priority(&self, groups: &[PriorityGroup], input: LbInput<'_>) -> Option<Rc<Host>> {
        let config = self.config();
        let factor = self.spec.endpoints.overprovisioning.max(100);
        let health = |group: &PriorityGroup| (group.healthy_percent() * factor / 100).min(100);
        let total: u32 = groups.iter().map(health).sum::<u32>().min(100);
        if total == 0 {
            if config.panic_percent == 0 {
                return None;
            }
            let first = groups.iter().find(|group| !group.hosts.is_empty())?;
            self.stats.lb_healthy_panic.inc();
            return first.choose(config.lb, config.locality_weighted, false, input);
        }
        let mut left = match input.hash {
            Some(hash) => (hash % u64::from(total)) as u32,
            None => fastrand::u32(0..total),
        };
        for group in groups {
            let share = health(group);
            if left < share {
                return group.choose(config.lb, config.locality_weighted, true, input);
            }
            left -= share;
        }
        groups[0].choose(config.lb, config.locality_weighted, true, input)
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
                total: self.spec.endpoints.endpoints().count(),
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
