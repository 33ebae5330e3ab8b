//! Key files in the state directory.
//!
//! Owns their permissions (0600 in a 0700 directory) and atomic creation.
//!
//! Invariant: an existing key is never overwritten; a directory that cannot be
//! used is reported and left as it is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
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
    /// One file of a set is there and another is not.
    #[error(
        "{} is missing although {} exists; restore it from a backup, or remove {} to start \
         over with a new key",
        missing.display(), present.display(), present.display()
    )]
    Incomplete {
        /// The file that is not there.
        missing: PathBuf,
        /// The file that is.
        present: PathBuf,
    },
    /// A file has a content that cannot be used.
    #[error(
        "{} is corrupt: {reason}; restore it from a backup, or remove the key files of {} to \
         start over with a new key",
        path.display(), directory.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The directory it is in.
        directory: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl StateError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn corrupt(path: &Path, reason: impl Into<String>) -> Self {
        let directory = path.parent().unwrap_or(Path::new(".")).to_owned();
        Self::Corrupt { path: path.to_owned(), directory, reason: reason.into() }
    }
}

/// A state directory held under a lock, so that two processes which start
/// together agree on one key. The lock goes with the value.
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(StateError::io("create the directory", path))?;
        let lock_path = path.join(".lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(StateError::io("open", &lock_path))?;
        lock.lock().map_err(StateError::io("lock", &lock_path))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes files that are not there yet, the last one last; each appears whole.
    pub(crate) fn create(&self, files: &[(&str, &[u8])]) -> Result<(), StateError> {
        for (name, content) in files {
            let staged = self.file(&format!(".{name}.new"));
            write_private(&staged, content).map_err(StateError::io("write", &staged))?;
        }
        for (name, _) in files {
            let (staged, path) = (self.file(&format!(".{name}.new")), self.file(name));
            fs::rename(&staged, &path).map_err(StateError::io("write", &path))?;
        }
        // The names have to survive a power loss too, not only the contents.
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .map_err(StateError::io("sync", &self.path))
    }
}

/// Reads a small file; nothing if it is not there.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    const MAX_BYTES: u64 = 1024 * 1024;
    match fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_BYTES => {
            return Err(StateError::corrupt(path, "larger than 1 MiB"));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateError::io("read", path)(source)),
    }
    fs::read(path).map(Some).map_err(StateError::io("read", path))
}

fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    // A left-over of a crash may have other permissions; start afresh.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}
