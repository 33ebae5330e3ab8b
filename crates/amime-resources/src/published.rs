//! The configuration in force, as published to all workers.

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use amime_config::binding::Binding;
use amime_config::listener::ListenerConfig;
use amime_config::names::ClusterId;
use amime_config::route::RouteTable;
use amime_upstream::ClusterSpec;

/// The configuration in force; one value for all workers.
#[derive(Debug, Default)]
pub struct Published {
    /// Listeners in force, by name.
    pub listeners: HashMap<Arc<str>, Arc<ListenerConfig>>,
    /// Sockets of the listeners that bind.
    pub sockets: HashMap<Arc<str>, Vec<Arc<SocketSet>>>,
    /// By cluster id.
    pub clusters: Vec<Option<Arc<ClusterSpec>>>,
    /// Ids of the clusters in force.
    pub cluster_names: Arc<HashMap<Arc<str>, ClusterId>>,
    /// Clusters that are not in force yet, in no version of theirs.
    pub expected: Arc<HashSet<ClusterId>>,
    /// By route configuration id.
    pub routes: Vec<Option<Arc<RouteTable>>>,
    /// Workers that have it in force.
    pub adopted: AtomicUsize,
}

/// The sockets of a listener's address, one a worker, until the workers take them.
#[derive(Debug)]
pub struct SocketSet {
    /// Address bound, with the real port.
    pub address: SocketAddr,
    /// What was asked for.
    pub asked: Binding,
    sockets: Mutex<Vec<Option<TcpListener>>>,
}

impl SocketSet {
    pub(crate) fn new(asked: Binding, address: SocketAddr, sockets: Vec<TcpListener>) -> Arc<Self> {
        let sockets = Mutex::new(sockets.into_iter().map(Some).collect());
        Arc::new(Self { address, asked, sockets })
    }

    /// The socket of worker number `index`, once.
    pub fn take(&self, index: usize) -> Option<TcpListener> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.get_mut(index)?.take()
    }
}
