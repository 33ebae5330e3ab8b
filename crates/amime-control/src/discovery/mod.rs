//! From changes of configuration to what each proxy has to be told.
//!
//! Owns the snapshot in force, the debounce, and the registry of connected
//! proxies. What a snapshot means to a proxy is decided in `amime-translate`;
//! the streams are `crate::ads`'s.
//!
//! Invariants: nothing is published before the source has sent all there is,
//! so a restart never empties a proxy; a stream that is behind learns the union
//! of what it missed, so a slow proxy delays nobody and misses nothing.

mod changes;
mod registry;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use amime_api::mesh::MeshConfig;
use amime_api::{Kind, ObjectKey, Resource};
use amime_model::{Change, ChangeScope, Snapshot};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::mesh;
use crate::metrics::{TypeLabel, XdsMetrics};
use crate::source::{Event, Events};

pub(crate) use changes::{Missed, Published, is_of};
pub use registry::{ProxySync, SyncState, TypeSync};
pub(crate) use registry::{Reached, Registration, Registry};

/// How long changes wait for others.
#[derive(Clone, Copy, Debug)]
pub struct Debounce {
    /// Push once nothing has changed for so long. Default 100 ms.
    pub quiet: Duration,
    /// Push at the latest so long after the first change. Default 10 s.
    pub max: Duration,
}

impl Default for Debounce {
    fn default() -> Self {
        Self { quiet: Duration::from_millis(100), max: Duration::from_secs(10) }
    }
}

/// How far the configuration has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Distribution {
    /// Every connected proxy has answered what was asked about: it has it in
    /// force, or has refused it.
    pub complete: bool,
    /// Revision of the store up to which the snapshot in force is complete;
    /// 0 for a source without revisions.
    pub revision: u64,
    /// Proxies that have not answered all that was asked about.
    pub behind: Vec<String>,
}

/// The snapshot in force and everyone who follows it. Cheap to clone.
#[derive(Clone)]
pub struct Discovery {
    published: watch::Sender<Option<Arc<Published>>>,
    registry: Arc<Registry>,
    revisions: Arc<Mutex<Revisions>>,
    metrics: XdsMetrics,
    mesh: mpsc::Sender<Arc<MeshConfig>>,
    mesh_changes: Arc<tokio::sync::Mutex<mpsc::Receiver<Arc<MeshConfig>>>>,
    quic_listeners: bool,
}

/// Revisions remembered, the oldest of which stands for all before it.
const MAX_REVISIONS: usize = 64;

/// Which snapshot was the first to hold all up to a revision of the source.
#[derive(Debug, Default)]
struct Revisions(VecDeque<(u64, u64)>);

impl Revisions {
    fn note(&mut self, revision: u64, version: u64) {
        if self.latest() == revision && !self.0.is_empty() {
            return;
        }
        if self.0.len() == MAX_REVISIONS {
            self.0.pop_front();
        }
        self.0.push_back((revision, version));
    }

    /// Revision up to which the snapshot in force is complete.
    fn latest(&self) -> u64 {
        self.0.back().map_or(0, |(revision, _)| *revision)
    }

    /// The snapshot; `None` if it is still to come.
    fn version_of(&self, revision: u64) -> Option<u64> {
        self.0.iter().find(|(reached, _)| *reached >= revision).map(|(_, version)| *version)
    }
}

impl Discovery {
    /// Without a snapshot until [`Discovery::run`] has one.
    pub fn new(metrics: XdsMetrics) -> Self {
        let (mesh, mesh_changes) = mpsc::channel(4);
        Self {
            published: watch::Sender::new(None),
            registry: Arc::default(),
            revisions: Arc::default(),
            metrics,
            mesh,
            mesh_changes: Arc::new(tokio::sync::Mutex::new(mesh_changes)),
            quic_listeners: false,
        }
    }

    /// The same, with listeners for QUIC or without.
    pub fn with_quic_listeners(self, quic_listeners: bool) -> Self {
        Self { quic_listeners, ..self }
    }

    /// True if proxies are told of listeners for QUIC.
    pub(crate) fn quic_listeners(&self) -> bool {
        self.quic_listeners
    }

    /// The snapshot in force; `None` until the source has sent everything.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.published.borrow().as_ref().map(|p| Arc::clone(&p.snapshot))
    }

    /// Waits until there is a snapshot.
    pub async fn synced(&self) {
        let mut published = self.published.subscribe();
        // An error means that the sender is gone; we hold one.
        let _ = published.wait_for(Option::is_some).await;
    }

    /// Where every connected proxy stands, by proxy.
    pub fn sync_status(&self) -> Vec<ProxySync> {
        self.registry.list()
    }

    /// Whether all that the source held at `revision` has reached every
    /// connected proxy, and was answered.
    pub fn distribution(&self, revision: u64) -> Distribution {
        let revisions = self.revisions();
        let wanted = revisions.version_of(revision);
        let latest = revisions.latest();
        drop(revisions);
        let version = wanted.unwrap_or(u64::MAX);
        let proxies = self.registry.list();
        let behind = proxies.iter().filter(|sync| sync.answered_version < version);
        let behind: Vec<_> = behind.map(|sync| sync.proxy.id.clone()).collect();
        let complete = wanted.is_some() && behind.is_empty();
        Distribution { complete, revision: latest, behind }
    }

    fn revisions(&self) -> MutexGuard<'_, Revisions> {
        self.revisions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the mesh-wide settings.
    pub async fn set_mesh(&self, mesh: Arc<MeshConfig>) {
        // The receiver lives as long as `self`.
        let _ = self.mesh.send(mesh).await;
    }

    pub(crate) fn follow(&self) -> watch::Receiver<Option<Arc<Published>>> {
        self.published.subscribe()
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    pub(crate) fn metrics(&self) -> &XdsMetrics {
        &self.metrics
    }

    /// Turns a source's events into snapshots until `shutdown` or until the
    /// source ends; the last snapshot stays in force.
    pub async fn run(
        &self,
        mut events: Events,
        mesh: Arc<MeshConfig>,
        debounce: Debounce,
        shutdown: CancellationToken,
    ) {
        let mut builder = Builder::new(self.clone(), mesh, debounce);
        let mut mesh_changes = self.mesh_changes.lock().await;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.recv() => match event {
                    Some(event) => builder.take_in(event, &mut events),
                    None => return builder.finish(),
                },
                Some(mesh) = mesh_changes.recv() => builder.mesh_changed(mesh),
                () = sleep_until(builder.deadline()) => builder.publish_pending(),
            }
        }
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Collects changes and decides when they become a snapshot.
struct Builder {
    discovery: Discovery,
    debounce: Debounce,
    mesh: Arc<MeshConfig>,
    /// Settings given at the start, in force while no object holds any.
    mesh_at_start: Arc<MeshConfig>,
    mesh_pending: bool,
    /// Objects of the initial list, before the first snapshot.
    initial: BTreeMap<ObjectKey, Arc<Resource>>,
    synced: bool,
    pending: BTreeMap<ObjectKey, Change>,
    first_change: Option<tokio::time::Instant>,
    last_change: Option<tokio::time::Instant>,
    /// Revision of the source up to which everything was taken in.
    revision: u64,
}

impl Builder {
    fn new(discovery: Discovery, mesh: Arc<MeshConfig>, debounce: Debounce) -> Self {
        Self {
            discovery,
            debounce,
            mesh_at_start: Arc::clone(&mesh),
            mesh,
            mesh_pending: false,
            initial: BTreeMap::new(),
            synced: false,
            pending: BTreeMap::new(),
            first_change: None,
            last_change: None,
            revision: 0,
        }
    }

    fn deadline(&self) -> Option<tokio::time::Instant> {
        let (first, last) = (self.first_change?, self.last_change?);
        Some((last + self.debounce.quiet).min(first + self.debounce.max))
    }

    /// Takes in an event and all that wait behind it.
    fn take_in(&mut self, event: Event, events: &mut Events) {
        let mut batch = BTreeMap::new();
        let mut next = Some(event);
        while let Some(event) = next {
            match event {
                Event::Change(change) => self.add(change, &mut batch),
                Event::Synced => self.first_snapshot(),
                Event::Revision(revision) => self.revision = revision,
            }
            next = events.try_recv().ok();
        }
        self.sort(batch);
        self.settle();
    }

    /// Notes how far the snapshot in force has come, unless changes wait.
    fn settle(&self) {
        if self.synced
            && self.pending.is_empty()
            && !self.mesh_pending
            && let Some(snapshot) = self.discovery.snapshot()
        {
            self.discovery.revisions().note(self.revision, snapshot.version());
        }
    }

    fn add(&mut self, change: Change, batch: &mut BTreeMap<ObjectKey, Change>) {
        let label = changes::update_label(&change);
        self.discovery
            .metrics
            .inbound_updates
            .get_or_create(&TypeLabel { r#type: label })
            .increment();
        if self.synced {
            batch.insert(changes::key(&change), change);
            return;
        }
        match change {
            Change::Set(resource) => self.initial.insert(resource.key(), resource),
            Change::Delete(key) => self.initial.remove(&key),
        };
    }

    fn first_snapshot(&mut self) {
        if std::mem::replace(&mut self.synced, true) {
            return;
        }
        let started = Instant::now();
        let settings = self.initial.iter().find(|(key, _)| mesh::is_mesh_object(key));
        if let Some((_, resource)) = settings {
            self.mesh = mesh::settings_after(Some(resource), &self.mesh, &self.mesh_at_start);
        }
        let resources = std::mem::take(&mut self.initial).into_values();
        let snapshot = Snapshot::build(resources, Arc::clone(&self.mesh), 1);
        self.discovery.metrics.snapshot_seconds.observe(started.elapsed().as_secs_f64());
        self.publish(snapshot, ChangeScope::Full);
    }

    /// Publishes endpoint changes at once and lets the others wait. None
    /// overtakes an earlier one that waits beside other changes: a pod that
    /// goes would be gone before the one that takes its place is there.
    fn sort(&mut self, batch: BTreeMap<ObjectKey, Change>) {
        if batch.is_empty() {
            return;
        }
        if let Some(change) = batch.iter().find_map(|(k, c)| mesh::is_mesh_object(k).then_some(c)) {
            let resource = match change {
                Change::Set(resource) => Some(&**resource),
                Change::Delete(_) => None,
            };
            self.mesh_changed(mesh::settings_after(resource, &self.mesh, &self.mesh_at_start));
        }
        if batch.keys().all(changes::may_be_endpoints) {
            if batch.keys().any(|key| self.is_behind_another(key)) {
                self.pending.extend(batch);
                return self.publish_pending();
            }
            let current = self.discovery.snapshot();
            let changes: Vec<_> = batch.values().cloned().collect();
            let next = current.map(|snapshot| snapshot.with(&changes));
            if let Some((snapshot, scope @ ChangeScope::Endpoints { .. })) = next {
                // What waits must not bring back an older form of the object.
                for key in batch.keys() {
                    self.pending.remove(key);
                }
                return self.publish(snapshot, scope);
            }
        }
        self.pending.extend(batch);
        self.touch();
    }

    /// Whether endpoints that may be of the same service wait.
    fn is_behind_another(&self, key: &ObjectKey) -> bool {
        let mut waiting = self.pending.keys().filter(|one| changes::may_be_endpoints(one));
        waiting.any(|one| one.namespace == key.namespace)
    }

    fn mesh_changed(&mut self, mesh: Arc<MeshConfig>) {
        self.mesh = mesh;
        if self.synced {
            self.mesh_pending = true;
            self.touch();
        }
    }

    fn touch(&mut self) {
        let now = tokio::time::Instant::now();
        self.first_change.get_or_insert(now);
        self.last_change = Some(now);
    }

    fn publish_pending(&mut self) {
        let since = self.first_change.take();
        self.last_change = None;
        let Some(current) = self.discovery.snapshot() else { return };
        let started = Instant::now();
        let changes: Vec<_> = std::mem::take(&mut self.pending).into_values().collect();
        let (mut snapshot, mut scope) = current.with(&changes);
        if std::mem::take(&mut self.mesh_pending) {
            snapshot = snapshot.with_mesh(Arc::clone(&self.mesh));
            scope = ChangeScope::Full;
        }
        let metrics = &self.discovery.metrics;
        metrics.snapshot_seconds.observe(started.elapsed().as_secs_f64());
        if let Some(since) = since {
            metrics.debounce_seconds.observe(since.elapsed().as_secs_f64());
        }
        self.publish(snapshot, scope);
        self.settle();
    }

    /// The source is gone: what it sent last still counts.
    fn finish(&mut self) {
        if !self.pending.is_empty() || self.mesh_pending {
            self.publish_pending();
        }
    }

    fn publish(&mut self, snapshot: Snapshot, scope: ChangeScope) {
        let cause = match scope {
            ChangeScope::Endpoints { .. } => "endpoint",
            ChangeScope::Full => "config",
        };
        self.discovery
            .metrics
            .push_triggers
            .get_or_create(&TypeLabel { r#type: cause })
            .increment();
        self.discovery.metrics.services.set(snapshot.services().all().len() as i64);
        let virtual_services =
            snapshot.resources().filter(|(key, _)| key.kind == Kind::VirtualService).count();
        self.discovery.metrics.virtual_services.set(virtual_services as i64);
        tracing::debug!(version = snapshot.version(), cause, "snapshot published");
        let snapshot = Arc::new(snapshot);
        self.discovery.published.send_modify(|current| {
            let next = Published::after(current.as_deref(), snapshot, scope);
            *current = Some(Arc::new(next));
        });
    }
}
