//! Processes of containers, and the reaping that PID 1 owes its children.
//!
//! Invariant: every start goes through [`Reaper::start`], one at a time, so
//! that no process inherits a descriptor meant for another and no exit
//! status goes to the wrong waiter.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use amime_net::namespace::Sandbox;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// The exit code, 128 + the signal as shells have it.
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// A process to start in a sandbox.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) argv: Vec<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: Option<PathBuf>,
    /// Standard input; `/dev/null` if none.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// A descriptor to inherit and the variable that tells its number.
    pub(crate) handed_over: Option<(String, OwnedFd)>,
}

/// A started process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    exit: oneshot::Receiver<Exit>,
}

impl Process {
    /// Waits for the end. Safe to cancel and call again until it returned.
    pub(crate) async fn wait(&mut self) -> Exit {
        // The reaper only drops a sender with the whole program.
        (&mut self.exit).await.unwrap_or(Exit::Signal(Signal::SIGKILL as i32))
    }

    /// Signals the process and its group.
    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended in between, which is what was wanted.
        let _ = killpg(Pid::from_raw(self.pid), signal);
    }
}

/// Waits for all children of this process, its own and those it inherits.
#[derive(Clone)]
pub(crate) struct Reaper {
    shared: Arc<Shared>,
}

struct Shared {
    waiters: Mutex<HashMap<i32, oneshot::Sender<Exit>>>,
    /// Signalled when a process was started.
    started: Condvar,
}

impl Shared {
    fn waiters(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<Exit>>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reaper {
    /// Starts the reaping thread, which lives as long as the program.
    pub(crate) fn new() -> io::Result<Self> {
        let shared =
            Arc::new(Shared { waiters: Mutex::new(HashMap::new()), started: Condvar::new() });
        let reaping = Arc::clone(&shared);
        std::thread::Builder::new().name("reaper".into()).spawn(move || reap(&reaping))?;
        Ok(Self { shared })
    }

    /// Starts a process as leader of its own group. Blocks for the time of
    /// an exec.
    pub(crate) fn start(&self, sandbox: &Sandbox, launch: Launch) -> io::Result<Process> {
        let Some((program, args)) = launch.argv.split_first() else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(launch.env).process_group(0);
        command.current_dir(launch.working_dir.unwrap_or_else(|| "/".into()));
        command.stdin(launch.stdin.map_or_else(Stdio::null, Stdio::from));
        command.stdout(launch.stdout).stderr(launch.stderr);

        let mut waiters = self.shared.waiters();
        let child = sandbox.enter(|| {
            if let Some((variable, fd)) = &launch.handed_over {
                command.env(variable, amime_net::socket::keep_on_exec(fd)?.to_string());
            }
            let child = command.spawn();
            // Closes the descriptor before another process may start.
            drop(launch.handed_over);
            child
        })??;
        let pid = child.id() as i32;
        let (sender, exit) = oneshot::channel();
        waiters.insert(pid, sender);
        self.shared.started.notify_one();
        Ok(Process { pid, exit })
    }
}

fn reap(shared: &Shared) {
    loop {
        // Looks without taking: while a start holds the lock, the child might
        // be one that `Command` itself waits for because its exec failed.
        let ended = match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(status) => status.pid(),
            Err(nix::Error::ECHILD) => {
                let waiters = shared.waiters();
                if waiters.is_empty() {
                    drop(shared.started.wait(waiters).unwrap_or_else(PoisonError::into_inner));
                }
                continue;
            }
            Err(_) => continue,
        };
        let mut waiters = shared.waiters();
        let exit = match waitpid(ended, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => Some((pid, Exit::Code(code))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => Some((pid, Exit::Signal(signal as i32))),
            _ => None,
        };
        if let Some((pid, exit)) = exit
            && let Some(waiter) = waiters.remove(&pid.as_raw())
        {
            // Nobody may be waiting any more.
            let _ = waiter.send(exit);
        }
    }
}
