//! The configuration in force, as one worker holds it.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use super::Worker;
use crate::listener::LiveListener;
use crate::upstream::ClusterRuntime;
use amime_config::names::{ClusterId, RouteConfigId};
use amime_config::route::LocalTable;
use amime_resources::Published;

/// The configuration as one worker holds it.
#[derive(Default)]
pub(crate) struct Snapshot {
    clusters: Vec<Option<Rc<ClusterRuntime>>>,
    cluster_names: Arc<HashMap<Arc<str>, ClusterId>>,
    expected: Arc<HashSet<ClusterId>>,
    routes: Vec<Option<Rc<LocalTable>>>,
    listeners: HashMap<Arc<str>, Rc<LiveListener>>,
    by_address: HashMap<SocketAddr, Rc<LiveListener>>,
}

impl Snapshot {
    /// Builds the worker's view, keeping what has not changed.
    pub(super) fn build(published: &Published, previous: &Self, worker: &Worker) -> Self {
        let mut clusters = Vec::with_capacity(published.clusters.len());
        for (index, spec) in published.clusters.iter().enumerate() {
            let old = previous.clusters.get(index).and_then(Option::as_ref);
            clusters.push(spec.as_ref().map(|spec| match old {
                Some(old) if Arc::ptr_eq(&old.spec, spec) => old.clone(),
                old => ClusterRuntime::new(spec.clone(), old, &worker.telemetry, worker.index),
            }));
        }
        let mut routes = Vec::with_capacity(published.routes.len());
        for (index, table) in published.routes.iter().enumerate() {
            let old = previous.routes.get(index).and_then(Option::as_ref);
            routes.push(table.as_ref().map(|table| match old {
                Some(old) if Arc::ptr_eq(&old.0, table) => old.clone(),
                _ => Rc::new(LocalTable(table.clone())),
            }));
        }
        let mut listeners = HashMap::with_capacity(published.listeners.len());
        let mut by_address = HashMap::new();
        for (name, config) in &published.listeners {
            let live = match previous.listeners.get(name) {
                Some(old) if Arc::ptr_eq(&old.config, config) => old.clone(),
                old => LiveListener::new(config.clone(), old, worker),
            };
            for binding in config.bindings.iter().filter(|binding| !binding.datagrams) {
                by_address.insert(binding.address, live.clone());
            }
            listeners.insert(name.clone(), live);
        }
        let cluster_names = published.cluster_names.clone();
        let expected = published.expected.clone();
        Self { clusters, cluster_names, expected, routes, listeners, by_address }
    }

    /// Marks what `next` no longer has: its connections end in good order.
    pub(super) fn retire_replaced(&self, next: &Self) {
        for (name, old) in &self.listeners {
            old.retire_for(next.listeners.get(name));
        }
        for (index, old) in self.clusters.iter().enumerate() {
            let kept = next.clusters.get(index).and_then(Option::as_ref);
            if let (Some(old), None) = (old, kept) {
                old.retire();
            }
        }
    }

    pub(crate) fn cluster(&self, id: ClusterId) -> Option<Rc<ClusterRuntime>> {
        self.clusters.get(id.0 as usize)?.clone()
    }

    /// True if the cluster is known and will be in force.
    pub(super) fn expects(&self, id: ClusterId) -> bool {
        self.expected.contains(&id)
    }

    pub(crate) fn cluster_by_name(&self, name: &str) -> Option<Rc<ClusterRuntime>> {
        self.cluster(*self.cluster_names.get(name)?)
    }

    /// The cluster that takes a request for `cluster`, which may be an
    /// aggregate of others.
    pub(crate) fn member(&self, cluster: &Rc<ClusterRuntime>) -> Rc<ClusterRuntime> {
        cluster.member(|id| self.cluster(id))
    }

    pub(crate) fn routes(&self, id: RouteConfigId) -> Option<Rc<LocalTable>> {
        self.routes.get(id.0 as usize)?.clone()
    }

    pub(crate) fn listener(&self, name: &str) -> Option<Rc<LiveListener>> {
        self.listeners.get(name).cloned()
    }

    /// The listener for connections sent to `address`: that very address,
    /// else the wildcard of its port.
    pub(crate) fn hand_off(&self, address: SocketAddr) -> Option<Rc<LiveListener>> {
        let any: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let wildcard = SocketAddr::new(any, address.port());
        self.by_address.get(&address).or_else(|| self.by_address.get(&wildcard)).cloned()
    }

    /// Closes upstream connections that have idled too long, or that nobody
    /// answers any more.
    pub(super) fn sweep(&self) {
        for cluster in self.clusters.iter().flatten() {
            cluster.each_host(|host| host.pool.sweep(cluster));
            cluster.forget_gone();
        }
    }
}
