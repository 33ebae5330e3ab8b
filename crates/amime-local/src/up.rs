//! `amime up` and `amime down`: the mesh from the outside.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use amime_net::namespace::{
    IsolatedChild, IsolatedCommand, SpawnError, spawn_isolated, user_namespace_limits,
};
use amime_net::socket::{ListenerBuilder, sealed_memfd};
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::client::{Client, ClientError};
use crate::options::{SupervisorConfig, UpOptions};
use crate::progress::Progress;
use crate::state::{StateDir, StateError, StateLock, default_state_dir};
use crate::supervisor::SUBCOMMAND;

/// Time for an orderly stop, after which everything is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
const STOP_POLL: Duration = Duration::from_millis(50);

/// Why a mesh could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The host port cannot be listened on.
    #[error("cannot listen on {address}{}; choose another port with --port", holder.as_ref().map(|holder| format!(", which {holder} uses")).unwrap_or_default())]
    Port {
        /// Address and port.
        address: SocketAddr,
        /// Who has it, if that can be told.
        holder: Option<String>,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// This machine does not let the user create namespaces.
    #[error("{}", namespaces_denied(limits))]
    Namespaces {
        /// The sysctls that forbid it, if known.
        limits: Vec<&'static str>,
        /// The cause.
        #[source]
        source: SpawnError,
    },
    /// The supervisor could not be executed.
    #[error("could not start the supervisor")]
    Supervisor(#[source] SpawnError),
    /// A system call failed.
    #[error("could not {action}")]
    System {
        /// What failed, as a verb phrase.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The mesh reported why it did not start.
    #[error("{0}")]
    Failed(String),
    /// The supervisor ended without a word.
    #[error("the mesh ended unexpectedly with code {code}; see {}", log.display())]
    Died {
        /// Exit code, 128 + signal.
        code: i32,
        /// Its log.
        log: PathBuf,
    },
    /// A running mesh did not do as it was told.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A running mesh did not stop.
    #[error("the mesh was told to stop but still runs after {} s", STOP_TIMEOUT.as_secs())]
    StillRunning,
}

fn namespaces_denied(limits: &[&str]) -> String {
    let base = "this machine does not let you create user namespaces, which `amime up` needs \
                unless it runs as root";
    match limits {
        [] => format!(
            "{base}; look at the sysctls user.max_user_namespaces, \
             kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns, \
             and at the seccomp profile if this is a container"
        ),
        limits => {
            let fixes: Vec<_> = limits.iter().map(|name| fix(name)).collect();
            format!("{base}; allow it with: sudo sysctl -w {}", fixes.join(" "))
        }
    }
}

fn fix(sysctl: &str) -> String {
    let value = match sysctl {
        "user.max_user_namespaces" => "15000",
        "kernel.unprivileged_userns_clone" => "1",
        _ => "0",
    };
    format!("{sysctl}={value}")
}

/// Starts a mesh and stays until it ends: by SIGINT or SIGTERM to this
/// process, by [`down`] from another, or by itself. When this process dies,
/// however it dies, so does the mesh.
///
/// # Errors
/// [`UpError`]; nothing is left running.
pub async fn up(options: UpOptions, mut progress: impl FnMut(Progress)) -> Result<(), UpError> {
    let state = state_dir(options.state_dir.as_deref())?;
    let lock = state.acquire()?;
    let listener = listen(options.host, options.port)?;
    let address = listener.local_addr().map_err(system("read the host port"))?;
    let url = url(address);
    state.write_url(&url)?;
    let (events, to_supervisor) = socket_pair()?;
    let supervisor = start(&options, &state, Handover { lock, listener, to_supervisor, url })?;

    let mut lines = BufReader::new(events).lines();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("handle signals"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("handle signals"))?;
    let mut failure = None;
    let mut ended = supervisor.ended;
    let mut open = true;
    let code = loop {
        tokio::select! {
            line = lines.next_line(), if open => match line {
                Ok(Some(line)) => match serde_json::from_str(&line) {
                    Ok(Progress::Failed { message }) => failure = Some(message),
                    Ok(event) => progress(event),
                    Err(_) => {}
                },
                _ => open = false,
            },
            _ = interrupt.recv() => stop(&supervisor.child),
            _ = terminate.recv() => stop(&supervisor.child),
            code = &mut ended => break code.unwrap_or(128),
        }
    };
    match (failure, code) {
        (Some(message), _) => Err(UpError::Failed(message)),
        (None, 0) => Ok(()),
        (None, code) => Err(UpError::Died { code, log: state.supervisor_log() }),
    }
}

/// Asks the supervisor to stop, and kills it if it does not.
fn stop(child: &std::sync::Arc<IsolatedChild>) {
    // It may have ended in between.
    let _ = child.signal(Signal::SIGTERM);
    let child = std::sync::Arc::clone(child);
    tokio::spawn(async move {
        tokio::time::sleep(STOP_TIMEOUT).await;
        let _ = child.signal(Signal::SIGKILL);
    });
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> UpError {
    move |source| UpError::System { action, source }
}

fn state_dir(given: Option<&Path>) -> Result<StateDir, UpError> {
    let root = match given {
        Some(root) => std::path::absolute(root).map_err(system("find the state directory"))?,
        None => default_state_dir(|name| std::env::var(name).ok())?,
    };
    Ok(StateDir::new(root))
}

fn listen(host: IpAddr, port: u16) -> Result<TcpListener, UpError> {
    let address = SocketAddr::new(host, port);
    ListenerBuilder::new(address).listen().map_err(|source| UpError::Port {
        address,
        holder: Some(source.kind())
            .filter(|k| *k == io::ErrorKind::AddrInUse)
            .and_then(|_| holder(port)),
        source,
    })
}

fn url(address: SocketAddr) -> String {
    if address.ip().is_loopback() {
        format!("http://localhost:{}", address.port())
    } else {
        format!("http://{address}")
    }
}

fn socket_pair() -> Result<(UnixStream, OwnedFd), UpError> {
    let pair = || {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
    };
    pair().map_err(system("create a socket pair"))
}

/// What the supervisor inherits.
struct Handover {
    lock: StateLock,
    listener: TcpListener,
    to_supervisor: OwnedFd,
    url: String,
}

struct Supervisor {
    child: std::sync::Arc<IsolatedChild>,
    ended: oneshot::Receiver<i32>,
}

fn start(options: &UpOptions, state: &StateDir, handover: Handover) -> Result<Supervisor, UpError> {
    let Handover { lock, listener, to_supervisor, url } = handover;
    let lock_fd = lock.duplicate().map_err(system("hand over the lock"))?;
    let self_exe = match &options.self_exe {
        Some(path) => path.clone(),
        None => std::env::current_exe().map_err(system("find this program"))?,
    };
    let config = SupervisorConfig {
        state_dir: state.root().to_owned(),
        self_exe: self_exe.clone(),
        files: options.files.clone(),
        images: options.images.clone(),
        demo: options.demo,
        mesh: options.mesh,
        log: options.log.clone(),
        url,
        listener_fd: listener.as_raw_fd(),
        progress_fd: to_supervisor.as_raw_fd(),
        lock_fd: lock_fd.as_raw_fd(),
    };
    let text = serde_json::to_vec(&config).map_err(|error| system("encode")(error.into()))?;
    let config_fd =
        sealed_memfd(c"amime-config", &text).map_err(system("hand over the configuration"))?;
    let log = std::fs::File::create(state.supervisor_log()).map_err(system("create the log"))?;
    let command = IsolatedCommand {
        program: self_exe,
        args: vec![SUBCOMMAND.into(), config_fd.as_raw_fd().to_string().into()],
        env: std::env::vars_os().collect(),
        keep: [&lock_fd, &to_supervisor, &config_fd]
            .map(|fd| fd.as_raw_fd())
            .into_iter()
            .chain([listener.as_raw_fd()])
            .collect(),
        stderr: Some(log.into()),
        user_namespace: !nix::unistd::Uid::effective().is_root(),
        die_with_parent_thread: true,
    };
    run(command, lock, (lock_fd, to_supervisor, config_fd, listener))
}

/// Starts the supervisor on a thread that stays until it ends: it dies with
/// the thread that started it.
fn run<H: Send + 'static>(
    mut command: IsolatedCommand,
    lock: StateLock,
    handed_over: H,
) -> Result<Supervisor, UpError> {
    let (sender, started) = std::sync::mpsc::channel();
    let (exited, ended) = oneshot::channel();
    let parent = move || {
        let mut spawned = spawn_isolated(&command);
        if !command.user_namespace && matches!(spawned, Err(SpawnError::Denied(_))) {
            // Root of a container, without the capability that root has.
            command.user_namespace = true;
            spawned = spawn_isolated(&command);
        }
        let child = match spawned {
            Ok(child) => std::sync::Arc::new(child),
            Err(error) => return drop(sender.send(Err(error))),
        };
        // The supervisor's alone from here on.
        drop(handed_over);
        let _ = sender.send(Ok(std::sync::Arc::clone(&child)));
        let code = child.wait().unwrap_or(128);
        // The lock of this process outlives the supervisor, so that nobody
        // sees a free directory while it still ends.
        drop(lock);
        let _ = exited.send(code);
    };
    std::thread::Builder::new()
        .name("supervisor-parent".into())
        .spawn(parent)
        .map_err(system("start a thread"))?;
    let child =
        started.recv().map_err(|error| system("start a thread")(io::Error::other(error)))?;
    Ok(Supervisor { child: child.map_err(spawn_error)?, ended })
}

fn spawn_error(error: SpawnError) -> UpError {
    match error {
        SpawnError::Denied(_) | SpawnError::IdentityMap(_) => {
            UpError::Namespaces { limits: user_namespace_limits(), source: error }
        }
        other => UpError::Supervisor(other),
    }
}

/// The process that listens on a TCP port of this machine, if it is one that
/// this user may look into.
fn holder(port: u16) -> Option<String> {
    const LISTENING: &str = "0A";
    let mut inodes = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [_, local, _, state, ..] = fields.as_slice() else { continue };
            let held = local.rsplit_once(':').and_then(|(_, p)| u16::from_str_radix(p, 16).ok());
            if *state == LISTENING && held == Some(port) {
                inodes.extend(fields.get(9).map(|inode| format!("socket:[{inode}]")));
            }
        }
    }
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds = descriptors.flatten().any(|fd| {
            std::fs::read_link(fd.path())
                .is_ok_and(|target| inodes.iter().any(|inode| target == Path::new(inode)))
        });
        if holds {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}

/// What [`down`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// A mesh ran and has stopped.
    Stopped,
    /// None ran, but one that was killed had left files.
    Cleaned,
    /// There was nothing to do.
    NothingThere,
}

/// Stops the mesh of a state directory and removes what one that was killed
/// left behind.
///
/// # Errors
/// [`UpError`].
pub async fn down(dir: Option<&Path>) -> Result<Down, UpError> {
    let state = state_dir(dir)?;
    if !state.is_in_use() {
        let cleaned = state.clean_stale()?;
        return Ok(if cleaned { Down::Cleaned } else { Down::NothingThere });
    }
    match Client::new(&state).shutdown().await {
        // It may be on its way out already, or not listen yet.
        Ok(()) | Err(ClientError::NotRunning { .. } | ClientError::Connection(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
    while state.is_in_use() {
        if tokio::time::Instant::now() > deadline {
            return Err(UpError::StillRunning);
        }
        tokio::time::sleep(STOP_POLL).await;
    }
    state.clean_stale()?;
    Ok(Down::Stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_namespaces_name_the_sysctl_that_forbids_them() {
        let text = namespaces_denied(&["kernel.apparmor_restrict_unprivileged_userns"]);
        assert!(text.ends_with("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"));
        let text = namespaces_denied(&["user.max_user_namespaces"]);
        assert!(text.ends_with("sysctl -w user.max_user_namespaces=15000"), "{text}");
        let text = namespaces_denied(&[]);
        assert!(text.contains("kernel.unprivileged_userns_clone"), "{text}");
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = listener.local_addr().expect("bound").port();
        let holder = holder(port).expect("this process");
        assert!(holder.contains(&std::process::id().to_string()), "{holder}");
    }
}
