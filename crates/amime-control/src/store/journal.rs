//! Persistence: one file of JSON lines, one line a commit.
//!
//! A line is written and synced before its change becomes visible; a commit is
//! there entirely or not at all. The last line may be torn by a power loss and
//! is then ignored; any other damage is reported and nothing is overwritten.
//! The file is rewritten when most of it is history.
//!
//! Pods are not kept: they are processes of one run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amime_api::{Kind, ObjectKey, decode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Edits, Entry};

/// Why the store's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// Another process has it open.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A line cannot be read.
    #[error(
        "{}:{line} is corrupt: {reason}; restore the file from a backup, or remove it to start \
         without objects",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// One commit.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    revision: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    put: Vec<Put>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    delete: Vec<Deleted>,
}

#[derive(Serialize, Deserialize)]
struct Put {
    file: String,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    applied_labels: BTreeSet<String>,
    object: Value,
}

#[derive(Serialize, Deserialize)]
struct Deleted {
    kind: String,
    namespace: String,
    name: String,
}

/// What a journal held when it was opened.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) revision: u64,
    pub(crate) entries: BTreeMap<ObjectKey, Entry>,
}

/// The open file.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// Guards against a second process; released with the value.
    _lock: File,
    bytes: u64,
    compacted_bytes: u64,
}

/// Below this size history is not worth a rewrite.
const MIN_COMPACT_BYTES: u64 = 1024 * 1024;

pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("objects.jsonl")
}

impl Journal {
    pub(crate) fn open(dir: &Path) -> Result<(Self, Kept), JournalError> {
        fs::create_dir_all(dir).map_err(failed("create the directory", dir))?;
        let lock_path = dir.join(".objects.lock");
        let lock = private().create(true).truncate(false).open(&lock_path);
        let lock = lock.map_err(failed("open", &lock_path))?;
        let path = path(dir);
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(failed("lock", &lock_path)(source)),
        }
        let kept = read(&path)?;
        // Start from a clean file: without history and without a torn line.
        let (file, bytes) = rewrite(&path, kept.revision, &kept.entries)?;
        Ok((Self { path, file, _lock: lock, bytes, compacted_bytes: bytes }, kept))
    }

    pub(crate) fn append(&mut self, revision: u64, edits: &Edits) -> Result<(), JournalError> {
        let mut line = Line { revision, put: Vec::new(), delete: Vec::new() };
        for (key, entry) in edits.iter().filter(|(key, _)| is_kept(key.kind)) {
            match entry {
                Some(entry) => line.put.push(put(entry)),
                None => line.delete.push(deleted(key)),
            }
        }
        if line.put.is_empty() && line.delete.is_empty() {
            return Ok(());
        }
        let text = to_line(&line);
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Take the part of a line off again, so that the next one is readable.
            let _ = self.file.set_len(self.bytes);
            let _ = self.file.seek(SeekFrom::Start(self.bytes));
            return Err(failed("write", &self.path)(source));
        }
        self.bytes += text.len() as u64;
        Ok(())
    }

    pub(crate) fn compact_if_worthwhile(
        &mut self,
        revision: u64,
        entries: &BTreeMap<ObjectKey, Entry>,
    ) -> Result<(), JournalError> {
        if self.bytes < MIN_COMPACT_BYTES || self.bytes < 4 * self.compacted_bytes {
            return Ok(());
        }
        (self.file, self.bytes) = rewrite(&self.path, revision, entries)?;
        self.compacted_bytes = self.bytes;
        Ok(())
    }
}

fn read(path: &Path) -> Result<Kept, JournalError> {
    let mut kept = Kept::default();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(kept),
        Err(source) => return Err(failed("read", path)(source)),
    };
    let mut reader = BufReader::new(file);
    let mut text = Vec::new();
    let mut number = 0;
    loop {
        text.clear();
        let read = reader.read_until(b'\n', &mut text).map_err(failed("read", path))?;
        if read == 0 {
            return Ok(kept);
        }
        number += 1;
        if text.last() != Some(&b'\n') {
            tracing::warn!(path = %path.display(), "last change was not written entirely; ignored");
            return Ok(kept);
        }
        replay(&mut kept, &text).map_err(|reason| JournalError::Corrupt {
            path: path.to_owned(),
            line: number,
            reason,
        })?;
    }
}

fn replay(kept: &mut Kept, text: &[u8]) -> Result<(), String> {
    let line: Line = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    kept.revision = kept.revision.max(line.revision);
    for put in line.put {
        let resource = decode::from_json(&put.file, &put.object).map_err(|errors| {
            errors.first().map_or_else(|| "not an object".to_owned(), ToString::to_string)
        })?;
        let entry = Entry { applied_labels: put.applied_labels, ..Entry::new(Arc::new(resource)) };
        kept.entries.insert(entry.resource.key(), entry);
    }
    for gone in line.delete {
        let kind = Kind::parse(&gone.kind).map_err(|error| error.to_string())?;
        let key = ObjectKey { kind, namespace: gone.namespace, name: gone.name };
        kept.entries.remove(&key);
    }
    Ok(())
}

fn rewrite(
    path: &Path,
    revision: u64,
    entries: &BTreeMap<ObjectKey, Entry>,
) -> Result<(File, u64), JournalError> {
    let staged = path.with_extension("jsonl.new");
    let mut bytes = 0;
    let mut write = || -> io::Result<File> {
        let mut file = private().create(true).truncate(true).open(&staged)?;
        let header = to_line(&Line { revision, put: Vec::new(), delete: Vec::new() });
        file.write_all(&header)?;
        bytes += header.len() as u64;
        for entry in entries.values().filter(|entry| is_kept(entry.resource.kind())) {
            let line = to_line(&Line { revision, put: vec![put(entry)], delete: Vec::new() });
            file.write_all(&line)?;
            bytes += line.len() as u64;
        }
        file.sync_all()?;
        Ok(file)
    };
    let file = write().map_err(failed("write", &staged))?;
    fs::rename(&staged, path).map_err(failed("replace", path))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))?;
    Ok((file, bytes))
}

fn is_kept(kind: Kind) -> bool {
    kind != Kind::Pod
}

fn put(entry: &Entry) -> Put {
    Put {
        file: entry.resource.source().file.to_string(),
        applied_labels: entry.applied_labels.clone(),
        object: entry.resource.to_json(),
    }
}

fn deleted(key: &ObjectKey) -> Deleted {
    Deleted {
        kind: key.kind.name().to_owned(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    }
}

fn to_line(line: &Line) -> Vec<u8> {
    let mut text = serde_json::to_vec(line).expect("string keys and plain values");
    text.push(b'\n');
    text
}

/// Secrets are among the objects.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { action, path, source }
}
