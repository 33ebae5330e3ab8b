//! Who is connected and where each of them stands.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use amime_translate::Proxy;
use amime_xds::TypeUrl;
use amime_xds::server::TypeStatus;

/// Where one proxy stands; the input of `/debug/syncz` and `proxy-status`.
#[derive(Clone, Debug)]
pub struct ProxySync {
    /// Number of the stream; a proxy that reconnects has a new one.
    pub stream: u64,
    /// What the proxy said about itself.
    pub proxy: Arc<Proxy>,
    /// Its full xDS node ID.
    pub node_id: String,
    /// Whether the stream is of the incremental variant.
    pub delta: bool,
    /// Since when it is connected.
    pub connected_at: SystemTime,
    /// Version of the last snapshot of which the proxy was sent everything.
    pub snapshot_version: u64,
    /// Version of the last snapshot of which the proxy has answered everything.
    pub answered_version: u64,
    /// By type that it subscribed to.
    pub types: BTreeMap<TypeUrl, TypeSync>,
}

/// Where a proxy stands with one type.
#[derive(Clone, Debug, Default)]
pub struct TypeSync {
    /// Nonces, versions and refusals.
    pub status: TypeStatus,
    /// When the last response was sent.
    pub sent_at: Option<SystemTime>,
    /// When a response was acknowledged last.
    pub acked_at: Option<SystemTime>,
    /// When a response was refused last.
    pub nacked_at: Option<SystemTime>,
}

/// The word that `proxy-status` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncState {
    /// The proxy has acknowledged everything it was sent.
    Synced,
    /// Nothing has been sent: there is nothing of this type for it.
    NotSent,
    /// A response waits for its answer.
    Stale,
    /// The proxy refused something that is still the newest.
    Error,
}

impl TypeSync {
    /// The state in one word.
    pub fn state(&self) -> SyncState {
        if self.status.nack.is_some() {
            SyncState::Error
        } else if self.status.sent.is_none() {
            SyncState::NotSent
        } else if self.status.is_synced() {
            SyncState::Synced
        } else {
            SyncState::Stale
        }
    }

    fn update(&mut self, status: TypeStatus, now: SystemTime) {
        if status.sent != self.status.sent {
            self.sent_at = Some(now);
        }
        if status.acked != self.status.acked {
            self.acked_at = Some(now);
        }
        if status.nack.is_some() && status.nack != self.status.nack {
            self.nacked_at = Some(now);
        }
        self.status = status;
    }
}

/// All connected proxies, by stream.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    streams: Mutex<Streams>,
}

#[derive(Debug, Default)]
struct Streams {
    last: u64,
    open: BTreeMap<u64, ProxySync>,
}

/// A new stream's entry.
#[derive(Debug)]
pub(crate) struct Registration {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) node_id: String,
    pub(crate) delta: bool,
    pub(crate) stream: u64,
}

/// Versions of snapshots that a proxy has come to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reached {
    /// Of which everything has been sent; none while some is held back.
    pub(crate) sent: Option<u64>,
    /// Of which everything has been answered.
    pub(crate) answered: u64,
}

impl Registry {
    fn streams(&self) -> std::sync::MutexGuard<'_, Streams> {
        // Entries are replaced as a whole, so a panic leaves none half-written.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no other stream of this process has.
    pub(crate) fn new_stream(&self) -> u64 {
        let mut streams = self.streams();
        streams.last += 1;
        streams.last
    }

    pub(crate) fn connect(&self, registration: Registration) {
        let Registration { proxy, node_id, delta, stream } = registration;
        let sync = ProxySync {
            stream,
            proxy,
            node_id,
            delta,
            connected_at: SystemTime::now(),
            snapshot_version: 0,
            answered_version: 0,
            types: BTreeMap::new(),
        };
        self.streams().open.insert(stream, sync);
    }

    pub(crate) fn disconnect(&self, stream: u64) {
        self.streams().open.remove(&stream);
    }

    pub(crate) fn update(
        &self,
        stream: u64,
        reached: Reached,
        status: BTreeMap<TypeUrl, TypeStatus>,
    ) {
        let now = SystemTime::now();
        let mut streams = self.streams();
        let Some(sync) = streams.open.get_mut(&stream) else { return };
        sync.snapshot_version = reached.sent.unwrap_or(sync.snapshot_version);
        sync.answered_version = reached.answered;
        for (type_url, status) in status {
            sync.types.entry(type_url).or_default().update(status, now);
        }
    }

    pub(crate) fn list(&self) -> Vec<ProxySync> {
        let mut all: Vec<_> = self.streams().open.values().cloned().collect();
        all.sort_by(|a, b| (&a.proxy.id, a.stream).cmp(&(&b.proxy.id, b.stream)));
        all
    }
}
