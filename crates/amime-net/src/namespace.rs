//! Namespaces: processes that start in their own, and threads that visit
//! others.
//!
//! Owns the system calls and what has to happen between them; which
//! namespaces exist, and when they go, is up to the callers, who hold them by
//! descriptor: nothing is left in the file system.
//!
//! Invariant: no thread of the caller ever changes namespace. Work in another
//! one runs on a thread of its own, because a worker of an async runtime that
//! moved would take unrelated tasks along.
//!
//! Spec: namespaces(7), user_namespaces(7).

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, clone, setns, unshare};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, pipe2, sethostname};

use crate::link::{LinkError, Links};

/// A process to start in namespaces of its own, as their PID 1.
#[derive(Debug, Default)]
pub struct IsolatedCommand {
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Arguments, without the program's name.
    pub args: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Descriptors that the process keeps, under the same numbers. It gets
    /// the standard streams in any case.
    pub keep: Vec<RawFd>,
    /// Standard error of the process; the caller's if none.
    pub stderr: Option<OwnedFd>,
    /// Create a user namespace too, in which the caller is root. Needed
    /// unless the caller has `CAP_SYS_ADMIN`.
    pub user_namespace: bool,
    /// Kill the process when the *thread* that started it ends.
    pub die_with_parent_thread: bool,
}

/// Why a process could not be started in namespaces of its own.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A path, argument or variable contains a NUL byte.
    #[error("{0:?} contains a NUL byte")]
    NulByte(OsString),
    /// The kernel refused to create the namespaces.
    #[error("the kernel refused to create namespaces")]
    Denied(#[source] io::Error),
    /// The identity mapping of the user namespace was refused.
    #[error("the kernel refused to map the user into the new user namespace")]
    IdentityMap(#[source] io::Error),
    /// The program could not be executed.
    #[error("could not execute {program}")]
    Exec {
        /// The program.
        program: PathBuf,
        /// The errno of `execve`.
        #[source]
        source: io::Error,
    },
    /// A pipe could not be created or read.
    #[error("could not talk to the new process")]
    Pipe(#[source] io::Error),
}

/// A process started by [`spawn_isolated`].
#[derive(Debug)]
pub struct IsolatedChild {
    pid: Pid,
}

impl IsolatedChild {
    /// Process id, as the caller sees it.
    pub fn id(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `ESRCH` when the process ended and was waited for.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(nix::sys::signal::kill(self.pid, signal)?)
    }

    /// Blocks until the process ends; returns its exit code, or 128 + the
    /// signal that ended it.
    ///
    /// # Errors
    /// `ECHILD` when someone else waited for it.
    pub fn wait(&self) -> io::Result<i32> {
        loop {
            match waitpid(self.pid, None) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Starts a process in new network, mount, PID and UTS (and user) namespaces.
/// It is PID 1 there: when it ends, however it ends, the kernel kills every
/// process that it ever started.
///
/// # Errors
/// [`SpawnError`]; no process is left behind.
pub fn spawn_isolated(command: &IsolatedCommand) -> Result<IsolatedChild, SpawnError> {
    let image = ExecImage::new(command)?;
    // `go`: the child may run once its identity map is written.
    // `fault`: carries the errno of a failed exec; closed by a successful one.
    let (go_read, go_write) = close_on_exec_pipe()?;
    let (fault_read, fault_write) = close_on_exec_pipe()?;

    let mut flags = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS;
    if command.user_namespace {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    let child = ChildSetup {
        image: &image,
        go: go_read.as_raw_fd(),
        go_write: go_write.as_raw_fd(),
        fault: fault_write.as_raw_fd(),
        keep: &command.keep,
        stderr: command.stderr.as_ref().map(AsRawFd::as_raw_fd),
        die_with_parent_thread: command.die_with_parent_thread,
    };
    let mut stack = vec![0u8; 64 * 1024];
    // SAFETY: without CLONE_VM the child has a copy of this address space and
    // its own stack. The closure makes only async-signal-safe system calls on
    // memory prepared above (no allocation, no locks), and ends in exec or
    // _exit.
    let pid = unsafe { clone(Box::new(|| child.run()), &mut stack, flags, Some(libc::SIGCHLD)) }
        .map_err(|errno| SpawnError::Denied(errno.into()))?;
    let process = IsolatedChild { pid };
    drop(go_read);
    drop(fault_write);

    let released = release(&process, command.user_namespace, go_write);
    let started = released.and_then(|()| exec_outcome(fault_read, &command.program));
    if started.is_err() {
        let _ = process.signal(Signal::SIGKILL);
        let _ = process.wait();
    }
    started.map(|()| process)
}

fn release(
    process: &IsolatedChild,
    user_namespace: bool,
    go_write: OwnedFd,
) -> Result<(), SpawnError> {
    if user_namespace {
        map_identity(process.id()).map_err(SpawnError::IdentityMap)?;
    }
    File::from(go_write).write_all(b"g").map_err(SpawnError::Pipe)
}

fn exec_outcome(fault_read: OwnedFd, program: &Path) -> Result<(), SpawnError> {
    let mut errno = Vec::new();
    File::from(fault_read).read_to_end(&mut errno).map_err(SpawnError::Pipe)?;
    match <[u8; 4]>::try_from(errno.as_slice()) {
        Ok(errno) => Err(SpawnError::Exec {
            program: program.to_owned(),
            source: io::Error::from_raw_os_error(i32::from_ne_bytes(errno)),
        }),
        Err(_) => Ok(()),
    }
}

/// Makes the caller root inside of the child's user namespace.
fn map_identity(pid: i32) -> io::Result<()> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    let proc = PathBuf::from(format!("/proc/{pid}"));
    // An unprivileged process may map its group only after giving up
    // setgroups, which could otherwise drop a group that denies access.
    std::fs::write(proc.join("setgroups"), "deny")?;
    std::fs::write(proc.join("uid_map"), format!("0 {uid} 1"))?;
    std::fs::write(proc.join("gid_map"), format!("0 {gid} 1"))
}

fn close_on_exec_pipe() -> Result<(OwnedFd, OwnedFd), SpawnError> {
    pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| SpawnError::Pipe(errno.into()))
}

/// Program, arguments and environment as `execve` wants them, allocated
/// before the process is created.
struct ExecImage {
    program: CString,
    args: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    /// What the pointers point into.
    _strings: Vec<CString>,
}

impl ExecImage {
    fn new(command: &IsolatedCommand) -> Result<Self, SpawnError> {
        let program = c_string(command.program.as_os_str())?;
        let mut args = vec![program.clone()];
        for arg in &command.args {
            args.push(c_string(arg)?);
        }
        let mut env = Vec::new();
        for (name, value) in &command.env {
            let mut pair = name.clone();
            pair.push("=");
            pair.push(value);
            env.push(c_string(&pair)?);
        }
        let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
            let end = std::iter::once(std::ptr::null());
            strings.iter().map(|string| string.as_ptr()).chain(end).collect()
        };
        Ok(Self {
            program,
            args: pointers(&args),
            env: pointers(&env),
            _strings: args.into_iter().chain(env).collect(),
        })
    }
}

fn c_string(text: &OsStr) -> Result<CString, SpawnError> {
    CString::new(text.as_bytes()).map_err(|_| SpawnError::NulByte(text.to_owned()))
}

/// What the new process does before it executes the program.
struct ChildSetup<'a> {
    image: &'a ExecImage,
    go: RawFd,
    go_write: RawFd,
    fault: RawFd,
    keep: &'a [RawFd],
    stderr: Option<RawFd>,
    die_with_parent_thread: bool,
}

impl ChildSetup<'_> {
    /// Runs in the new process: system calls only.
    fn run(&self) -> isize {
        let errno = match self.exec() {
            Err(errno) => errno as i32,
            Ok(never) => match never {},
        };
        let bytes = errno.to_ne_bytes();
        // SAFETY: writes four bytes from the stack to an open descriptor.
        unsafe { libc::write(self.fault, bytes.as_ptr().cast(), bytes.len()) };
        127
    }

    fn exec(&self) -> Result<Infallible, nix::Error> {
        if self.die_with_parent_thread {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        }
        // This copy of the write end would keep the read below from seeing
        // that the parent is gone.
        // SAFETY: the descriptor is this process's own copy, used by no one.
        unsafe { libc::close(self.go_write) };
        let mut byte = [0u8; 1];
        // SAFETY: reads at most one byte into the stack.
        let read = unsafe { libc::read(self.go, byte.as_mut_ptr().cast(), 1) };
        if read != 1 {
            // The parent died or could not write the identity map.
            return Err(nix::Error::ECANCELED);
        }
        if let Some(stderr) = self.stderr {
            // SAFETY: makes 2 a copy of an open descriptor.
            if unsafe { libc::dup2(stderr, 2) } < 0 {
                return Err(nix::Error::last());
            }
        }
        for &fd in self.keep {
            // SAFETY: clears a flag; a wrong number gives EBADF.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
                return Err(nix::Error::last());
            }
        }
        // SAFETY: both arrays end in a null pointer and point to strings that
        // `image` owns.
        unsafe {
            libc::execve(
                self.image.program.as_ptr(),
                self.image.args.as_ptr(),
                self.image.env.as_ptr(),
            );
        }
        Err(nix::Error::last())
    }
}

/// Takes this process's mounts out of any sharing with the outside and mounts
/// a `/proc` that shows its own PID namespace. For a process started by
/// [`spawn_isolated`], before it has other threads.
///
/// Returns false when the kernel does not allow the new `/proc` (as in some
/// containers, which hide parts of theirs); the old one then shows process
/// ids of the outside.
///
/// # Errors
/// What `mount` reported.
pub fn detach_mounts() -> io::Result<bool> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("proc"), "/proc", Some("proc"), flags, none).is_ok())
}

/// Runs `work` in another network namespace, on a thread of its own, and
/// waits for it. Sockets opened there stay there.
///
/// # Errors
/// What `setns` reported.
pub fn in_netns<R: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> R + Send) -> io::Result<R> {
    on_own_thread(|| {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
}

/// Network, mount and UTS namespace of one pod, kept alive by descriptor.
#[derive(Debug)]
pub struct Sandbox {
    net: OwnedFd,
    mnt: OwnedFd,
    uts: OwnedFd,
}

/// What a [`Sandbox`] looks like from within.
#[derive(Clone, Debug, Default)]
pub struct SandboxSpec {
    /// Host name (at most 64 bytes).
    pub hostname: String,
    /// Files to show in place of others: (content, place). A place that does
    /// not exist is skipped and reported by [`Sandbox::create`].
    pub binds: Vec<(PathBuf, PathBuf)>,
}

/// Why a sandbox could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The namespaces could not be created or opened.
    #[error("could not create the namespaces of {hostname}")]
    Namespaces {
        /// The sandbox's host name.
        hostname: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A file could not be put in place.
    #[error("could not mount {from} over {to}")]
    Bind {
        /// The content.
        from: PathBuf,
        /// The place.
        to: PathBuf,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The loopback interface could not be brought up.
    #[error(transparent)]
    Loopback(#[from] LinkError),
}

impl Sandbox {
    /// Creates the namespaces with `lo` up; returns also the places that
    /// could not be bound because nothing is there.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn create(spec: &SandboxSpec) -> Result<(Self, Vec<PathBuf>), SandboxError> {
        let namespaces = |source: io::Error| SandboxError::Namespaces {
            hostname: spec.hostname.clone(),
            source,
        };
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
                .map_err(|errno| namespaces(errno.into()))?;
            sethostname(&spec.hostname).map_err(|errno| namespaces(errno.into()))?;
            let open =
                |kind: &str| File::open(format!("/proc/thread-self/ns/{kind}")).map(OwnedFd::from);
            let sandbox = Self {
                net: open("net").map_err(namespaces)?,
                mnt: open("mnt").map_err(namespaces)?,
                uts: open("uts").map_err(namespaces)?,
            };
            let skipped = bind_all(&spec.binds)?;
            Links::open()?.set_up("lo")?;
            Ok((sandbox, skipped))
        })
    }

    /// The network namespace.
    pub fn net(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }

    /// Runs `work` inside, on a thread of its own, and waits for it. A
    /// process started there stays there.
    ///
    /// # Errors
    /// What `setns` reported.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> io::Result<R> {
        on_own_thread(|| {
            // A thread may change its mount namespace only after it stopped
            // sharing its working directory with the others.
            unshare(CloneFlags::CLONE_FS)?;
            setns(&self.uts, CloneFlags::CLONE_NEWUTS)?;
            setns(&self.net, CloneFlags::CLONE_NEWNET)?;
            setns(&self.mnt, CloneFlags::CLONE_NEWNS)?;
            Ok(work())
        })
    }
}

fn bind_all(binds: &[(PathBuf, PathBuf)]) -> Result<Vec<PathBuf>, SandboxError> {
    let none: Option<&str> = None;
    // Without this the mounts would show up in the parent's namespace.
    let _ = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none);
    let mut skipped = Vec::new();
    for (from, to) in binds {
        if !to.exists() {
            skipped.push(to.clone());
            continue;
        }
        mount(Some(from), to, none, MsFlags::MS_BIND, none).map_err(|errno| {
            SandboxError::Bind { from: from.clone(), to: to.clone(), source: errno.into() }
        })?;
    }
    Ok(skipped)
}

fn on_own_thread<R: Send, E: Send>(work: impl FnOnce() -> Result<R, E> + Send) -> Result<R, E> {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Limits on user namespaces that this machine has set, as the names of the
/// sysctls to change; empty when none of the known ones forbids them.
pub fn user_namespace_limits() -> Vec<&'static str> {
    const KNOWN: [(&str, &str, &str); 3] = [
        ("user.max_user_namespaces", "/proc/sys/user/max_user_namespaces", "0"),
        ("kernel.unprivileged_userns_clone", "/proc/sys/kernel/unprivileged_userns_clone", "0"),
        (
            "kernel.apparmor_restrict_unprivileged_userns",
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
        ),
    ];
    KNOWN
        .iter()
        .filter(|(_, path, forbidding)| {
            std::fs::read_to_string(path).is_ok_and(|value| value.trim() == *forbidding)
        })
        .map(|(name, _, _)| *name)
        .collect()
}
