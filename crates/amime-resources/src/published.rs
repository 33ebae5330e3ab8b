//! The configuration in force, as published to all workers.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// The sockets of a listener's address, one or more a worker, until the
/// workers take them.
#[derive(Debug)]
pub struct SocketSet {
    /// Address bound, with the real port.
    pub address: SocketAddr,
    /// What was asked for.
    pub asked: Binding,
    /// By worker.
    sockets: Mutex<Vec<Vec<TcpListener>>>,
    /// The same sockets, for a process that takes over.
    kept: Mutex<Vec<TcpListener>>,
}

impl SocketSet {
    pub(crate) fn new(asked: Binding, address: SocketAddr, sockets: Vec<Vec<TcpListener>>) -> Self {
        Self { address, asked, sockets: Mutex::new(sockets), kept: Mutex::default() }
    }

    /// The sockets of worker number `index`, once.
    pub fn take(&self, index: usize) -> Vec<TcpListener> {
        lock(&self.sockets).get_mut(index).map(std::mem::take).unwrap_or_default()
    }

    /// Keeps copies, by which the sockets stay open until [`Self::release`].
    pub(crate) fn keep(self) -> io::Result<Self> {
        let sockets = lock(&self.sockets);
        let copies = sockets.iter().flatten().map(TcpListener::try_clone);
        let copies = copies.collect::<io::Result<_>>()?;
        drop(sockets);
        *lock(&self.kept) = copies;
        Ok(self)
    }

    /// Copies of what was kept.
    pub(crate) fn copies(&self) -> io::Result<Vec<TcpListener>> {
        lock(&self.kept).iter().map(TcpListener::try_clone).collect()
    }

    pub(crate) fn release(&self) {
        lock(&self.kept).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
