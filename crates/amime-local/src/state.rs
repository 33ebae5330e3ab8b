//! The state directory: where it is, what is in it, and who may use it.
//!
//! Invariant: at most one mesh uses a directory, the one that holds its lock;
//! files of a run (`run/`) are stale as soon as nobody holds it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

/// Longest path that fits a Unix socket address, without the NUL.
const LONGEST_SOCKET_PATH: usize = 107;

/// Time that a mesh has to end after its `amime up` was killed.
const DYING: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Neither `XDG_STATE_HOME` nor `HOME` is set.
    #[error("no place for the state directory: set HOME or give --state-dir")]
    NoHome,
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// Verb.
        action: &'static str,
        /// File or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another mesh runs on this directory.
    #[error(
        "a mesh is already running on {} (started by process {owner}{}); \
         stop it with `amime down`, or give another one a directory of its own with --state-dir",
        dir.display(),
        url.as_ref().map(|url| format!(", reachable at {url}")).unwrap_or_default()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Process id of its `amime up`.
        owner: String,
        /// Where it answers, if it got that far.
        url: Option<String>,
    },
    /// The path is too long for the sockets in it.
    #[error("the path {} is too long for a Unix socket (at most {LONGEST_SOCKET_PATH} bytes)", .0.display())]
    TooLong(PathBuf),
    /// A file holds something that no version of this program writes.
    #[error("the state directory is corrupt: {} {reason}; move it away to start afresh", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// `$XDG_STATE_HOME/amime`, or `~/.local/state/amime`.
///
/// # Errors
/// [`StateError::NoHome`].
pub fn default_state_dir(var: impl Fn(&str) -> Option<String>) -> Result<PathBuf, StateError> {
    let set = |name: &str| var(name).filter(|value| value.starts_with('/'));
    match (set("XDG_STATE_HOME"), set("HOME")) {
        (Some(state), _) => Ok(PathBuf::from(state).join("amime")),
        (None, Some(home)) => Ok(PathBuf::from(home).join(".local/state/amime")),
        (None, None) => Err(StateError::NoHome),
    }
}

/// Paths within one state directory.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

/// Exclusive use of a state directory, for as long as it lives (or a process
/// that inherited its descriptor does).
#[derive(Debug)]
pub(crate) struct StateLock {
    file: Flock<File>,
}

impl StateLock {
    /// Another descriptor of the same lock, for the supervisor.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }
}

impl StateDir {
    /// The directory at `root`; nothing is touched yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Socket of the API.
    pub fn api_socket(&self) -> PathBuf {
        self.root.join("api.sock")
    }

    /// Applied objects.
    pub(crate) fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    /// Keys and certificates of the CA, and the key of workload tokens.
    pub(crate) fn ca(&self) -> PathBuf {
        self.root.join("ca")
    }

    /// Root certificates, for proxies.
    pub(crate) fn root_cert(&self) -> PathBuf {
        self.run().join("root-cert.pem")
    }

    /// Files of this run.
    pub(crate) fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// What proxies keep over a restart.
    pub(crate) fn proxies(&self) -> PathBuf {
        self.root.join("proxies")
    }

    /// Logs of containers.
    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Log of the supervisor.
    pub fn supervisor_log(&self) -> PathBuf {
        self.logs().join("supervisor.log")
    }

    /// Present once the sample was deployed.
    pub(crate) fn demo_marker(&self) -> PathBuf {
        self.root.join("demo-deployed")
    }

    fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    fn url_file(&self) -> PathBuf {
        self.root.join("url")
    }

    /// Creates the directory, takes its lock and removes what a run that was
    /// killed left behind.
    pub(crate) fn acquire(&self) -> Result<StateLock, StateError> {
        if self.api_socket().as_os_str().len() > LONGEST_SOCKET_PATH {
            return Err(StateError::TooLong(self.api_socket()));
        }
        self.create(&self.root)?;
        let lock = self.lock_of_the_dead()?;
        self.clean()?;
        for dir in [self.run(), self.logs(), self.proxies()] {
            self.create(&dir)?;
        }
        Ok(lock)
    }

    /// Takes the lock. A mesh dies with its `amime up`, but not in the same
    /// moment: one whose `up` was killed is waited for.
    fn lock_of_the_dead(&self) -> Result<StateLock, StateError> {
        let deadline = Instant::now() + DYING;
        loop {
            match self.lock() {
                Err(StateError::InUse { owner, .. })
                    if is_gone(&owner) && Instant::now() < deadline =>
                {
                    std::thread::sleep(POLL);
                }
                other => return other,
            }
        }
    }

    /// Takes the lock if nobody holds it, without cleaning.
    fn lock(&self) -> Result<StateLock, StateError> {
        let path = self.lock_file();
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let pid = std::process::id();
                file.set_len(0)
                    .and_then(|()| write!(file, "{pid}"))
                    .map_err(io_error("write", &path))?;
                Ok(StateLock { file })
            }
            Err((_, nix::Error::EWOULDBLOCK)) => Err(self.in_use()),
            Err((_, errno)) => Err(io_error("lock", &path)(errno.into())),
        }
    }

    fn in_use(&self) -> StateError {
        let text = |path: &Path| {
            let text = std::fs::read_to_string(path).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        StateError::InUse {
            dir: self.root.clone(),
            owner: text(&self.lock_file()).unwrap_or_else(|| "unknown".to_owned()),
            url: text(&self.url_file()),
        }
    }

    /// True when a mesh holds the directory.
    pub(crate) fn is_in_use(&self) -> bool {
        self.lock_file().exists() && matches!(self.lock(), Err(StateError::InUse { .. }))
    }

    /// Removes what only a running mesh needs. The caller holds the lock.
    pub(crate) fn clean(&self) -> Result<(), StateError> {
        for file in [self.api_socket(), self.url_file()] {
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &file)(error));
                }
                _ => {}
            }
        }
        for dir in [self.run(), self.proxies()] {
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &dir)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Cleans a directory that no mesh uses; true if there was anything.
    pub(crate) fn clean_stale(&self) -> Result<bool, StateError> {
        if !self.lock_file().exists() {
            return Ok(false);
        }
        let _lock = self.lock()?;
        let stale = self.api_socket().exists() || self.run().exists();
        self.clean()?;
        Ok(stale)
    }

    /// Remembers where the mesh answers, for the error of a second one.
    pub(crate) fn write_url(&self, url: &str) -> Result<(), StateError> {
        std::fs::write(self.url_file(), url).map_err(io_error("write", &self.url_file()))
    }

    /// Creates a directory that only the user can read.
    pub(crate) fn create(&self, dir: &Path) -> Result<(), StateError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("create", dir))
    }
}

/// Writes a file that only the user can read, replacing it at once.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
    file.write_all(content)?;
    std::fs::rename(&draft, path)
}

/// True if no such process runs; one that nobody has waited for does not.
fn is_gone(pid: &str) -> bool {
    pid.parse::<u32>().is_ok_and(|pid| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty())
            || !Path::new(&format!("/proc/{pid}")).exists()
    })
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_follows_xdg() {
        let with = |state: Option<&str>, home: Option<&str>| {
            default_state_dir(|name| (if name == "HOME" { home } else { state }).map(str::to_owned))
        };
        assert_eq!(with(Some("/s"), Some("/h")).expect("set"), Path::new("/s/amime"));
        assert_eq!(with(None, Some("/h")).expect("set"), Path::new("/h/.local/state/amime"));
        // The specification says that relative paths count as unset.
        assert_eq!(with(Some("s"), Some("/h")).expect("set"), Path::new("/h/.local/state/amime"));
        assert!(matches!(with(None, None), Err(StateError::NoHome)));
    }

    #[test]
    fn a_second_user_is_told_about_the_first() {
        let dir = tempfile::tempdir().expect("directory");
        let state = StateDir::new(dir.path().join("amime"));
        let lock = state.acquire().expect("free");
        state.write_url("http://localhost:8080").expect("written");
        let error = state.acquire().expect_err("taken").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        assert!(error.contains("http://localhost:8080"), "{error}");
        assert!(error.contains("amime down"), "{error}");
        assert!(state.is_in_use());
        drop(lock);
        assert!(!state.is_in_use());
    }

    #[test]
    fn a_mesh_that_dies_with_its_owner_is_waited_for() {
        let dir = tempfile::tempdir().expect("directory");
        let state = StateDir::new(dir.path());
        let lock = state.acquire().expect("free");
        let mut killed = std::process::Command::new("true").spawn().expect("runs");
        killed.wait().expect("ends");
        std::fs::write(state.lock_file(), killed.id().to_string()).expect("written");
        let next = std::thread::spawn(move || state.acquire().map(drop));
        drop(lock);
        next.join().expect("no panic").expect("free again");
    }

    #[test]
    fn what_a_killed_run_left_is_removed() {
        let dir = tempfile::tempdir().expect("directory");
        let state = StateDir::new(dir.path());
        drop(state.acquire().expect("free"));
        std::fs::write(state.api_socket(), "").expect("written");
        std::fs::write(state.run().join("token"), "").expect("written");
        assert!(state.clean_stale().expect("cleaned"));
        assert!(!state.api_socket().exists() && !state.run().exists());
        assert!(!state.clean_stale().expect("nothing left"));
    }
}
