//! The object store of the local platform: what an API server is to a cluster.
//!
//! Owns the objects with their server-set metadata, the changes that watchers
//! follow, and their persistence. What objects mean is left to others.
//!
//! Invariants: a whole apply is validated before anything of it is stored; a
//! revision is used once by one opened store; what a watcher missed is either replayed in order or
//! reported as gone, never skipped.

mod addresses;
mod apply;
mod journal;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use amime_api::{Kind, ObjectKey, Resource};
use ipnet::Ipv4Net;

pub use apply::{Action, Applied, Apply, Outcome, Rejected, SourceFile};
pub use journal::JournalError;
pub use watch::{Change, ChangeType, Gone, ResumePoint, Watch};

pub(crate) use addresses::ServiceAddresses;
use journal::Journal;
use watch::ChangeLog;

/// Addresses given to Services unless another range is asked for.
pub(crate) const SERVICE_RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16);

/// Settings of a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Directory that keeps the objects. Default: none, nothing survives.
    pub dir: Option<PathBuf>,
    /// Addresses given to Services. Default: `10.96.0.0/16`.
    pub service_range: Ipv4Net,
    /// Namespaces that are always there. Default: `default`, `istio-system`.
    pub namespaces: Vec<String>,
    /// Tells creation times. Default: the system's clock.
    pub clock: fn() -> SystemTime,
    /// A deleted pod stays, marked, until [`Store::finish_delete`]: somebody
    /// runs it and has to stop it first. Default: no.
    pub pods_end_gracefully: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            dir: None,
            service_range: SERVICE_RANGE,
            namespaces: vec!["default".to_owned(), "istio-system".to_owned()],
            clock: SystemTime::now,
            pods_end_gracefully: false,
        }
    }
}

/// Why an operation on one object failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("{} {:?} not found", full_plural(key.kind), key.name)]
    NotFound {
        /// What was asked for.
        key: ObjectKey,
    },
    /// Its namespace does not exist.
    #[error("namespaces {namespace:?} not found")]
    NoNamespace {
        /// The namespace.
        namespace: String,
    },
    /// A namespace that the platform needs.
    #[error("namespaces {name:?} is forbidden: this namespace may not be deleted")]
    Protected {
        /// The namespace.
        name: String,
    },
    /// The service range is used up, or the address asked for is taken.
    #[error(transparent)]
    Address(#[from] addresses::AddressError),
    /// More objects than the store may hold.
    #[error("the store is full: it holds {MAX_OBJECTS} objects")]
    Full,
    /// The change could not be kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Objects held at most; far above one machine's mesh.
const MAX_OBJECTS: usize = 100_000;

/// An object and what the store has to remember beside it.
#[derive(Clone, Debug)]
struct Entry {
    resource: Arc<Resource>,
    /// Labels of the last apply: a later apply that lacks one removes it, while
    /// labels set in another way stay.
    applied_labels: BTreeSet<String>,
    /// When it was deleted, if it is still coming to its end.
    deleted_at: Option<String>,
}

impl Entry {
    fn new(resource: Arc<Resource>) -> Self {
        Self { resource, applied_labels: BTreeSet::new(), deleted_at: None }
    }
}

/// What one commit changes, in order; `None` deletes.
type Edits = Vec<(ObjectKey, Option<Entry>)>;

struct State {
    entries: BTreeMap<ObjectKey, Entry>,
    revision: u64,
    addresses: ServiceAddresses,
    log: ChangeLog,
    journal: Option<Journal>,
}

/// Objects with versions, watches and persistence; share it in an `Arc`.
pub struct Store {
    state: Mutex<State>,
    namespaces: Vec<String>,
    clock: fn() -> SystemTime,
    pods_end_gracefully: bool,
    /// Pods are not kept, so that another run counts some revisions again.
    instance: String,
}

impl Store {
    /// Opens a store, reading what its directory holds.
    pub fn open(options: StoreOptions) -> Result<Self, StoreError> {
        let mut state = State {
            entries: BTreeMap::new(),
            revision: 0,
            addresses: ServiceAddresses::new(options.service_range),
            log: ChangeLog::default(),
            journal: None,
        };
        if let Some(dir) = &options.dir {
            let (journal, kept) = Journal::open(dir)?;
            state.revision = kept.revision;
            state.entries = kept.entries;
            state.journal = Some(journal);
            for entry in state.entries.values() {
                state.addresses.keep(&entry.resource);
            }
            // A watcher of an earlier run cannot know what has happened since.
            state.log.start_at(state.revision);
        }
        let store = Self {
            state: Mutex::new(state),
            namespaces: options.namespaces,
            clock: options.clock,
            pods_end_gracefully: options.pods_end_gracefully,
            instance: random_uid(),
        };
        store.create_namespaces()?;
        Ok(store)
    }

    /// The object with this key.
    pub fn get(&self, key: &ObjectKey) -> Result<Arc<Resource>, StoreError> {
        let state = self.state();
        let entry = state.entries.get(key);
        entry
            .map(|entry| entry.resource.clone())
            .ok_or_else(|| StoreError::NotFound { key: key.clone() })
    }

    /// Objects of one kind, of one namespace or of all, sorted by namespace and name.
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> Vec<Arc<Resource>> {
        let state = self.state();
        state
            .entries
            .iter()
            .filter(|(key, _)| key.kind == kind && namespace.is_none_or(|ns| key.namespace == ns))
            .map(|(_, entry)| entry.resource.clone())
            .collect()
    }

    /// Every object.
    pub fn all(&self) -> Vec<Arc<Resource>> {
        self.state().entries.values().map(|entry| entry.resource.clone()).collect()
    }

    /// The number of the last change.
    pub fn revision(&self) -> u64 {
        self.state().revision
    }

    /// Creates or replaces an object with its status, for the platform's own
    /// objects; one that is as stored changes nothing. Returns it as stored.
    pub fn put(&self, resource: Resource) -> Result<Arc<Resource>, StoreError> {
        let mut state = self.state();
        let key = resource.key();
        require_namespace(&state.entries, &key)?;
        let mut entry = Entry::new(Arc::new(resource));
        if let Some(old) = state.entries.get(&key) {
            if old.resource == entry.resource {
                return Ok(old.resource.clone());
            }
            entry.applied_labels.clone_from(&old.applied_labels);
        }
        self.commit(&mut state, vec![(key.clone(), Some(entry))])?;
        state
            .entries
            .get(&key)
            .map(|entry| entry.resource.clone())
            .ok_or(StoreError::NotFound { key })
    }

    /// Deletes an object; with a namespace goes everything in it. Returns what
    /// was deleted, the object itself first.
    pub fn delete(&self, key: &ObjectKey) -> Result<Vec<Arc<Resource>>, StoreError> {
        let mut state = self.state();
        let entry = state.entries.get(key);
        let first =
            entry.ok_or_else(|| StoreError::NotFound { key: key.clone() })?.resource.clone();
        if key.kind == Kind::Namespace && self.namespaces.contains(&key.name) {
            return Err(StoreError::Protected { name: key.name.clone() });
        }
        let mut deleted = vec![first];
        let mut edits: Edits = Vec::new();
        if key.kind == Kind::Namespace {
            for (inner, entry) in &state.entries {
                if inner.namespace == key.name {
                    deleted.push(entry.resource.clone());
                    edits.extend(self.deletion(inner, entry));
                }
            }
        }
        edits.extend(state.entries.get(key).and_then(|entry| self.deletion(key, entry)));
        self.commit(&mut state, edits)?;
        Ok(deleted)
    }

    /// The edit that deletes `entry`; none if it is coming to its end already.
    fn deletion(&self, key: &ObjectKey, entry: &Entry) -> Option<(ObjectKey, Option<Entry>)> {
        if key.kind != Kind::Pod || !self.pods_end_gracefully {
            return Some((key.clone(), None));
        }
        let deleted_at = Some(rfc3339((self.clock)()));
        entry
            .deleted_at
            .is_none()
            .then(|| (key.clone(), Some(Entry { deleted_at, ..entry.clone() })))
    }

    /// Removes a pod that has come to its end; nothing if another, with another
    /// uid, has its name by now.
    ///
    /// # Errors
    /// The change could not be kept.
    pub fn finish_delete(&self, key: &ObjectKey, uid: &str) -> Result<(), StoreError> {
        let mut state = self.state();
        let held = state.entries.get(key).map(|entry| entry.resource.metadata().uid.as_deref());
        if held != Some(Some(uid)) {
            return Ok(());
        }
        self.commit(&mut state, vec![(key.clone(), None)])
    }

    /// Sets labels, or removes those without a value. Returns the object and
    /// whether anything changed.
    pub fn label(
        &self,
        key: &ObjectKey,
        labels: &BTreeMap<String, Option<String>>,
    ) -> Result<(Arc<Resource>, bool), StoreError> {
        let mut state = self.state();
        let missing = || StoreError::NotFound { key: key.clone() };
        let old = state.entries.get(key).ok_or_else(missing)?.clone();
        let mut resource = (*old.resource).clone();
        for (name, value) in labels {
            let held = &mut resource.metadata_mut().labels;
            match value {
                Some(value) => held.insert(name.clone(), value.clone()),
                None => held.remove(name),
            };
        }
        if resource == *old.resource {
            return Ok((old.resource, false));
        }
        let entry = Entry { resource: Arc::new(resource), ..old };
        self.commit(&mut state, vec![(key.clone(), Some(entry))])?;
        let entry = state.entries.get(key).ok_or_else(missing)?;
        Ok((entry.resource.clone(), true))
    }

    /// Follows changes: after `from` if what came then is still known, else
    /// from the present state on.
    pub fn watch(&self, from: Option<&ResumePoint>) -> Result<Watch, Gone> {
        let state = self.state();
        let since = match from {
            Some(from) if from.instance != self.instance => return Err(Gone),
            Some(from) => Some(from.revision),
            None => None,
        };
        let present = || state.entries.values().map(|entry| entry.resource.clone());
        state.log.watch(since, self.point(state.revision), present)
    }

    fn point(&self, revision: u64) -> ResumePoint {
        ResumePoint { instance: self.instance.clone(), revision }
    }

    fn create_namespaces(&self) -> Result<(), StoreError> {
        for name in &self.namespaces {
            let key = namespace_key(name);
            if !self.state().entries.contains_key(&key) {
                let spec = amime_api::k8s::NamespaceSpec::default();
                self.put(amime_api::Object::new("", name.as_str(), spec).into())?;
            }
        }
        Ok(())
    }

    /// Makes `edits` one step: versions given, kept on disk, then visible.
    fn commit(&self, state: &mut State, mut edits: Edits) -> Result<(), StoreError> {
        let added = edits.iter().filter(|(_, entry)| entry.is_some()).count();
        if state.entries.len() + added > MAX_OBJECTS {
            return Err(StoreError::Full);
        }
        let mut addresses = state.addresses.clone();
        let mut revision = state.revision;
        for (key, entry) in &mut edits {
            revision += 1;
            let old = state.entries.get(key).map(|entry| &*entry.resource);
            match entry {
                Some(entry) => {
                    let mut resource = (*entry.resource).clone();
                    addresses.assign(&mut resource, old)?;
                    self.stamp(&mut resource, old, revision);
                    let deleted_at = || state.entries.get(key)?.deleted_at.clone();
                    entry.deleted_at = entry.deleted_at.take().or_else(deleted_at);
                    resource.metadata_mut().deletion_timestamp = entry.deleted_at.clone();
                    entry.resource = Arc::new(resource);
                }
                None => addresses.release(old),
            }
        }
        if let Some(journal) = &mut state.journal {
            journal.append(revision, &edits)?;
        }
        let first = state.revision;
        state.revision = revision;
        state.addresses = addresses;
        for (offset, (key, entry)) in edits.into_iter().enumerate() {
            let number = first + 1 + offset as u64;
            let change = match entry {
                Some(entry) => {
                    let resource = entry.resource.clone();
                    let replaced = state.entries.insert(key, entry).is_some();
                    let change_type =
                        if replaced { ChangeType::Modified } else { ChangeType::Added };
                    Some((change_type, resource))
                }
                None => state.entries.remove(&key).map(|old| (ChangeType::Deleted, old.resource)),
            };
            if let Some((change_type, resource)) = change {
                state.log.push(Change { revision: number, change_type, resource });
            }
        }
        if let Some(journal) = &mut state.journal
            && let Err(error) = journal.compact_if_worthwhile(revision, &state.entries)
        {
            // The change itself is kept; the file only stays longer than it need be.
            tracing::warn!(error = &error as &dyn std::error::Error, "history stays in the store");
        }
        Ok(())
    }

    /// Sets what the server and nobody else sets.
    fn stamp(&self, resource: &mut Resource, old: Option<&Resource>, revision: u64) {
        let same_spec = old.is_some_and(|old| old.raw() == resource.raw());
        let old_meta = old.map(Resource::metadata);
        let now = (self.clock)();
        let meta = resource.metadata_mut();
        meta.resource_version = Some(revision.to_string());
        meta.uid = old_meta.and_then(|m| m.uid.clone()).or_else(|| Some(random_uid()));
        meta.creation_timestamp =
            old_meta.and_then(|m| m.creation_timestamp.clone()).or_else(|| Some(rfc3339(now)));
        let generation = old_meta.and_then(|m| m.generation).unwrap_or(0);
        meta.generation = Some(if same_spec { generation } else { generation + 1 });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a plain assignment after all that can fail.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

/// `virtualservices.networking.istio.io`, as in kubectl's errors.
pub(crate) fn full_plural(kind: Kind) -> String {
    match kind.group() {
        "" => kind.plural().to_owned(),
        group => format!("{}.{group}", kind.plural()),
    }
}

fn namespace_key(name: &str) -> ObjectKey {
    ObjectKey { kind: Kind::Namespace, namespace: String::new(), name: name.to_owned() }
}

fn require_namespace(
    entries: &BTreeMap<ObjectKey, Entry>,
    key: &ObjectKey,
) -> Result<(), StoreError> {
    if key.kind.is_namespaced() && !entries.contains_key(&namespace_key(&key.namespace)) {
        return Err(StoreError::NoNamespace { namespace: key.namespace.clone() });
    }
    Ok(())
}

/// A random UUID, version 4.
fn random_uid() -> String {
    let bits =
        (fastrand::u128(..) & !(0xf000 << 64) & !(0b11 << 62)) | (0x4000 << 64) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn rfc3339(time: SystemTime) -> String {
    use time::format_description::well_known::Rfc3339;
    let seconds = time::OffsetDateTime::from(time).truncate_to_second();
    seconds.format(&Rfc3339).unwrap_or_default()
}

/// The file that keeps the objects of `dir`; for messages.
pub fn journal_path(dir: &Path) -> PathBuf {
    journal::path(dir)
}

#[cfg(test)]
mod tests;
