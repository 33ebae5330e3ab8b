//! Configuration from a directory of YAML and JSON files.
//!
//! Files are read again a moment after something in the directory changed. A
//! file with a fault keeps its last good objects in force as a whole.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use amime_analysis::Delegates;
use amime_api::{ObjectKey, Resource, decode};
use amime_model::Change;
use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Event, Events, QUEUE};
use crate::metrics::Count;
use crate::store::{SERVICE_RANGE, ServiceAddresses};
use crate::validation::Verdict;

/// File of a source directory that holds the mesh-wide settings.
pub(crate) const MESH_FILE: &str = "mesh.yaml";
/// Quiet time after which changed files are read.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 32 * 1024 * 1024;

/// Why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FileSourceError {
    /// It cannot be read.
    #[error("cannot read the directory {}", path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Changes in it cannot be noticed.
    #[error("cannot watch the directory {}", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: notify::Error,
    },
}

/// Follows a directory.
#[derive(Debug)]
pub struct FileSource {
    dir: PathBuf,
    rejected: Count,
    /// Last good objects of each file.
    files: BTreeMap<PathBuf, FileState>,
    held: BTreeMap<ObjectKey, Arc<Resource>>,
}

#[derive(Debug, Default)]
struct FileState {
    /// Hash of the text last read, good or bad; spares a report each scan.
    read: Option<u64>,
    resources: Vec<Arc<Resource>>,
}

impl FileSource {
    /// Reads `dir` and starts following it; ends with `shutdown` or when the
    /// events are dropped.
    pub fn start(
        dir: PathBuf,
        rejected: Count,
        shutdown: CancellationToken,
    ) -> Result<Events, FileSourceError> {
        let unreadable = |source| FileSourceError::Read { path: dir.clone(), source };
        fs::read_dir(&dir).map_err(unreadable)?;
        let unwatched = |source| FileSourceError::Watch { path: dir.clone(), source };
        // One pending wake-up is enough, however many files change.
        let (wake, woken) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<_>| {
            if event.is_ok_and(|event: notify::Event| !event.kind.is_access()) {
                let _ = wake.try_send(());
            }
        })
        .map_err(unwatched)?;
        watcher.watch(&dir, RecursiveMode::Recursive).map_err(unwatched)?;
        let (events, receiver) = mpsc::channel(QUEUE);
        let source = Self { dir, rejected, files: BTreeMap::new(), held: BTreeMap::new() };
        tokio::spawn(async move {
            tokio::select! {
                () = source.run(woken, events) => {}
                () = shutdown.cancelled() => {}
            }
            drop(watcher);
        });
        Ok(receiver)
    }

    async fn run(mut self, mut woken: mpsc::Receiver<()>, events: mpsc::Sender<Event>) {
        let mut synced = false;
        loop {
            let changes = self.scan();
            for change in changes {
                if events.send(Event::Change(change)).await.is_err() {
                    return;
                }
            }
            if !std::mem::replace(&mut synced, true) {
                tracing::info!(objects = self.held.len(), "source is in sync");
                if events.send(Event::Synced).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                woken = woken.recv() => if woken.is_none() { return },
                () = events.closed() => return,
            }
            // Editors and ConfigMap mounts touch several files for one change.
            while let Ok(Some(())) = tokio::time::timeout(DEBOUNCE, woken.recv()).await {}
        }
    }

    /// Reads everything and returns what differs from what is held.
    fn scan(&mut self) -> Vec<Change> {
        let mut paths = Vec::new();
        if let Err(error) = collect(&self.dir, &mut paths) {
            let dir = self.dir.display();
            tracing::warn!(%dir, %error, "directory not readable, the last state stays in force");
            return Vec::new();
        }
        paths.sort();
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            self.read(path);
        }
        self.differences()
    }

    fn read(&mut self, path: PathBuf) {
        let text = match read_text(&path) {
            Ok(text) => text,
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "file not readable, its last good objects stay");
                self.rejected.increment();
                return;
            }
        };
        let state = self.files.entry(path.clone()).or_default();
        let hash = hash_of(&text);
        if state.read.replace(hash) == Some(hash) {
            return;
        }
        let decoded = decode::decode(&path.display().to_string(), &text);
        let resources: Vec<Resource> = decoded.resources.into_iter().map(in_namespace).collect();
        let mut errors: Vec<String> = decoded.errors.iter().map(ToString::to_string).collect();
        let mut warnings: Vec<String> = decoded.warnings.iter().map(ToString::to_string).collect();
        let others = self.held.values().map(|resource| &**resource);
        let delegates = Delegates::of(resources.iter().chain(others));
        for resource in &resources {
            let verdict = Verdict::of(resource, &delegates);
            errors.extend(verdict.errors);
            warnings.extend(verdict.warnings);
        }
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        if errors.is_empty() {
            let state = self.files.entry(path).or_default();
            state.resources = resources.into_iter().map(Arc::new).collect();
            return;
        }
        self.rejected.increment();
        for error in errors {
            tracing::warn!(%error, "file not usable, its last good objects stay in force");
        }
    }

    fn differences(&mut self) -> Vec<Change> {
        let mut wanted: BTreeMap<ObjectKey, Arc<Resource>> = BTreeMap::new();
        for resource in self.files.values().flat_map(|file| &file.resources) {
            let key = resource.key();
            if let Some(first) = wanted.get(&key) {
                let (first, second) = (&first.source().file, &resource.source().file);
                tracing::warn!(%key, %first, %second, "object is in two files, the first counts");
                continue;
            }
            wanted.insert(key, resource.clone());
        }
        self.give_addresses(&mut wanted);
        let mut changes: Vec<Change> = self
            .held
            .keys()
            .filter(|key| !wanted.contains_key(key))
            .map(|key| Change::Delete(key.clone()))
            .collect();
        for (key, resource) in &wanted {
            let same = |held: &Arc<Resource>| Arc::ptr_eq(held, resource) || held == resource;
            if !self.held.get(key).is_some_and(same) {
                changes.push(Change::Set(resource.clone()));
            }
        }
        self.held = wanted;
        changes
    }

    /// Gives Services addresses where an API server would have: those written
    /// down first, then those that are left, the same ones as before.
    fn give_addresses(&self, wanted: &mut BTreeMap<ObjectKey, Arc<Resource>>) {
        let mut addresses = ServiceAddresses::new(SERVICE_RANGE);
        wanted.values().for_each(|resource| addresses.keep(resource));
        for resource in wanted.values_mut().filter(|resource| needs_address(resource)) {
            let old = self.held.get(&resource.key()).map(|held| &**held);
            let mut addressed = (**resource).clone();
            match addresses.assign(&mut addressed, old) {
                Ok(()) => *resource = Arc::new(addressed),
                Err(error) => tracing::warn!(%error, "service stays without an address"),
            }
        }
    }
}

/// True for Services that an API server would give an address.
fn needs_address(resource: &Resource) -> bool {
    matches!(resource, Resource::Service(service) if service.spec.cluster_ip.is_empty())
}

/// Files have no command line to name a namespace on.
fn in_namespace(mut resource: Resource) -> Resource {
    if resource.kind().is_namespaced() && resource.namespace().is_empty() {
        resource.metadata_mut().namespace = "default".to_owned();
    }
    resource
}

fn hash_of(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn read_text(path: &Path) -> io::Result<String> {
    let bytes = fs::metadata(path)?.len();
    if bytes > MAX_FILE_BYTES {
        let message = format!("{bytes} bytes are more than {MAX_FILE_BYTES}");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    fs::read_to_string(path)
}

fn collect(dir: &Path, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        // `..data` and its like hold the same files a second time.
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        // Mesh-wide settings are no object; the daemon reads them at its start.
        if hidden || path.ends_with(MESH_FILE) {
            continue;
        }
        let extension = path.extension().and_then(|extension| extension.to_str());
        if path.is_dir() {
            collect(&path, paths)?;
        } else if matches!(extension, Some("yaml" | "yml" | "json")) {
            paths.push(path);
        }
    }
    Ok(())
}
