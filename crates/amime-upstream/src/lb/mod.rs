//! Load balancing: which endpoint of a cluster takes a request.
//!
//! What depends only on configuration, membership and health is in tables that
//! are built once and shared by the workers; a worker adds no more than its
//! place in the turns. A pick allocates nothing and takes no lock.
//!
//! Invariant: tables are built anew whenever the version of the cluster's
//! health moves, so that picking looks at no endpoint's health.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/load_balancing>

mod aggregate;
mod balancer;
mod bounded;
mod edf;
mod hash_table;
mod host_set;
mod load;
mod pick;
mod subsets;
mod zone;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use amime_rules::criteria::MetadataMatch;
use amime_rules::retry::Reselect;
use amime_telemetry::ClusterStats;

use crate::cluster::{ClusterSpec, Host};
use balancer::{Balancer, Part};
use host_set::Members;
use pick::{Pick, View};
use subsets::{LookUp, Subsets};
pub use zone::{LocalCluster, Place};

/// What a choice may depend on.
pub struct LbInput<'a, P> {
    /// Of the request, where the policy places by hash; without it the choice
    /// is random.
    pub hash: Option<u64>,
    /// Which endpoints the route wants.
    pub metadata: Option<&'a MetadataMatch>,
    /// Set for attempts after the first.
    pub retry: Option<RetryInput<'a, P>>,
}

// Derived, they would ask the same of `P`.
impl<P> Clone for LbInput<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for LbInput<'_, P> {}

impl<P> Default for LbInput<'_, P> {
    fn default() -> Self {
        Self { hash: None, metadata: None, retry: None }
    }
}

/// What a further attempt stays away from.
pub struct RetryInput<'a, P> {
    /// Hosts tried already, in order.
    pub tried: &'a [Rc<Host<P>>],
    /// What the route says about choosing again.
    pub reselect: &'a Reselect,
}

impl<P> Clone for RetryInput<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for RetryInput<'_, P> {}

/// Tables of one set of endpoints, shared by the workers.
#[derive(Debug, Default)]
pub struct SharedLb {
    current: Mutex<Option<Arc<Tables>>>,
    by_address: OnceLock<HashMap<SocketAddr, usize>>,
}

/// What picking works on, for one state of health.
#[derive(Debug)]
struct Tables {
    version: Version,
    whole: Balancer,
    subsets: Option<Subsets>,
    /// Lists in all balancers.
    lists: usize,
}

/// Moves whenever tables are to be built anew: the health of the cluster and,
/// where zones count, of the one that the proxy is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    own: u64,
    local: u64,
}

impl Version {
    #[inline]
    fn of(spec: &ClusterSpec) -> Self {
        let local = spec.local.as_ref().map_or(0, |local| local.version());
        Self { own: spec.state.health_version(), local }
    }
}

/// A worker's part of a cluster's load balancing.
#[derive(Default)]
pub(crate) struct WorkerLb(RefCell<Option<Rc<View>>>);

impl Tables {
    fn build(spec: &ClusterSpec, version: Version, stats: &ClusterStats) -> Self {
        let settings = &spec.config.lb;
        let local = spec.local.as_ref().map(|local| local.seen(settings));
        let members = Members::new(settings, &spec.endpoints, local, stats);
        let whole = Balancer::whole(&members);
        let subsets = settings.subset.as_ref().map(|subset| Subsets::new(&members, subset));
        Self { version, whole, subsets, lists: members.lists() }
    }
}

impl SharedLb {
    /// The tables for the health of now; the first worker to notice a change
    /// builds them.
    fn tables(&self, spec: &ClusterSpec, stats: &ClusterStats) -> Arc<Tables> {
        let version = Version::of(spec);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(tables) if tables.version == version => tables.clone(),
            _ => current.insert(Arc::new(Tables::build(spec, version, stats))).clone(),
        }
    }

    /// The position of the endpoint at `address`.
    pub(crate) fn position(&self, spec: &ClusterSpec, address: SocketAddr) -> Option<usize> {
        let build = || spec.endpoints.endpoints().map(|one| one.address).zip(0..).collect();
        self.by_address.get_or_init(build).get(&address).copied()
    }
}

impl WorkerLb {
    fn view(&self, spec: &ClusterSpec, stats: &ClusterStats) -> Rc<View> {
        let mut view = self.0.borrow_mut();
        match &*view {
            Some(view) if view.tables.version == Version::of(spec) => view.clone(),
            _ => view.insert(Rc::new(View::new(spec.lb.tables(spec, stats)))).clone(),
        }
    }

    /// How well each priority of the whole cluster is.
    fn parts(&self, spec: &ClusterSpec, stats: &ClusterStats) -> Vec<Part> {
        self.view(spec, stats).tables.whole.sets.iter().map(Part::of).collect()
    }

    /// An endpoint, by its position among the cluster's `hosts`.
    pub(crate) fn choose<P>(
        &self,
        spec: &ClusterSpec,
        hosts: &[Rc<Host<P>>],
        stats: &ClusterStats,
        input: LbInput<'_, P>,
    ) -> Option<usize> {
        let view = self.view(spec, stats);
        let settings = &spec.config.lb;
        let pick = Pick { settings, hosts, view: &view, stats, input };
        let chosen = match (&settings.subset, &view.tables.subsets) {
            (Some(settings), Some(subsets)) => {
                let pick = |balancer: &Balancer| pick.of(balancer);
                LookUp { settings, subsets, stats, pick }.run(input.metadata)
            }
            _ => pick.of(&view.tables.whole),
        };
        chosen.map(|host| host as usize)
    }
}

#[cfg(test)]
mod tests;
