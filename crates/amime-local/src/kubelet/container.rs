//! One container: its process, restarts, health and log.
//!
//! A process that ends is started again as the pod's restart policy says, at
//! once the first time, then after a time that doubles up to a minute
//! (`CrashLoopBackOff`); ten good minutes make it forget.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use amime_api::Object;
use amime_api::k8s::{Container, PodSpec};
use nix::sys::signal::Signal;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::probe::Schedule;
use super::{Pod, PodError, chain, identity_file, proxy_files, proxy_kind};
use crate::cluster::Cluster;
use crate::environment;
use crate::image::Program;
use crate::logs::ContainerLog;
use crate::process::{Exit, Launch, Process, Reaper};
use crate::sidecar::{self, PROXY_CONTAINER};

const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container does at the moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ContainerPhase {
    Waiting { reason: &'static str, message: String },
    Running { pid: i32, since: SystemTime },
    Terminated { exit: i32, at: SystemTime },
}

/// What others may know about a container.
#[derive(Clone, Debug)]
pub(crate) struct ContainerView {
    pub(crate) phase: ContainerPhase,
    pub(crate) ready: bool,
    pub(crate) restarts: u32,
    /// Exit code and time of the last end.
    pub(crate) last: Option<(i32, SystemTime)>,
}

/// A container and its state.
pub(crate) struct ContainerHandle {
    pub(crate) spec: Container,
    pub(crate) log: ContainerLog,
    pub(crate) is_init: bool,
    program: Program,
    reaper: Reaper,
    state: Mutex<ContainerView>,
    /// Environment of the present process.
    env: Mutex<Vec<(String, String)>>,
    changed: Arc<Notify>,
}

/// Handles of all containers of a pod, init containers first, none started.
pub(super) fn handles(
    cluster: &Cluster,
    object: &Object<PodSpec>,
    programs: &[Program],
    changed: &Arc<Notify>,
) -> Result<Vec<Arc<ContainerHandle>>, PodError> {
    let init = object.spec.init_containers.iter().map(|container| (container, true));
    let all = init.chain(object.spec.containers.iter().map(|container| (container, false)));
    let meta = &object.metadata;
    all.zip(programs)
        .map(|((container, is_init), program)| {
            let file = format!("{}_{}_{}.log", meta.namespace, meta.name, container.name);
            let waiting = ContainerPhase::Waiting {
                reason: if is_init { "PodInitializing" } else { "ContainerCreating" },
                message: String::new(),
            };
            Ok(Arc::new(ContainerHandle {
                spec: container.clone(),
                log: ContainerLog::create(cluster.state.logs().join(file))?,
                is_init,
                program: program.clone(),
                reaper: cluster.reaper.clone(),
                state: Mutex::new(ContainerView {
                    phase: waiting,
                    ready: false,
                    restarts: 0,
                    last: None,
                }),
                env: Mutex::default(),
                changed: Arc::clone(changed),
            }))
        })
        .collect()
}

impl ContainerHandle {
    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    /// The state at this moment.
    pub(crate) fn view(&self) -> ContainerView {
        self.state().clone()
    }

    /// Environment for a command run beside the container's process.
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        let env = self.env.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if env.is_empty() { base_env("") } else { env }
    }

    pub(crate) fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    fn state(&self) -> MutexGuard<'_, ContainerView> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut ContainerView)) {
        change(&mut self.state());
        self.changed.notify_one();
    }

    fn is_done(&self) -> bool {
        matches!(self.state().phase, ContainerPhase::Terminated { .. })
    }
}

/// The container tasks of one pod, in their order: the sidecar, once it is
/// ready the init containers, once they are done the application.
pub(super) struct Group {
    cluster: Arc<Cluster>,
    pod: Arc<Pod>,
    started: Vec<(Arc<ContainerHandle>, CancellationToken, JoinHandle<()>)>,
}

impl Group {
    pub(super) fn start(cluster: &Arc<Cluster>, pod: &Arc<Pod>) -> Self {
        let mut group =
            Self { cluster: Arc::clone(cluster), pod: Arc::clone(pod), started: Vec::new() };
        group.advance();
        group
    }

    /// Starts the containers that nothing holds back any more.
    pub(super) fn advance(&mut self) {
        let containers = self.pod.containers.clone();
        let meshed = self.pod.meshed;
        let sidecar =
            |container: &&Arc<ContainerHandle>| meshed && container.name() == PROXY_CONTAINER;
        let (first, rest): (Vec<_>, Vec<_>) = containers.iter().partition(sidecar);
        for container in first.iter().chain(&rest) {
            self.start_once(container);
            let must_wait = if container.is_init {
                let view = container.view();
                !matches!(view.phase, ContainerPhase::Terminated { exit: 0, .. })
            } else {
                sidecar(container) && !container.view().ready
            };
            // A sidecar that was ready once does not hold anything back when
            // it restarts: what has started stays started.
            if must_wait {
                return;
            }
        }
    }

    fn start_once(&mut self, container: &Arc<ContainerHandle>) {
        if self.started.iter().any(|(started, ..)| Arc::ptr_eq(started, container)) {
            return;
        }
        let stop = CancellationToken::new();
        let task = Task {
            cluster: Arc::clone(&self.cluster),
            pod: Arc::clone(&self.pod),
            container: Arc::clone(container),
            stop: stop.clone(),
        };
        let task = tokio::spawn(task.run());
        self.started.push((Arc::clone(container), stop, task));
    }

    /// Ends all processes: the application's first, so that its last answers
    /// still go through the sidecar.
    pub(super) async fn stop(self, grace: Duration) {
        let pod = self.pod;
        let is_sidecar =
            |container: &Arc<ContainerHandle>| pod.meshed && container.name() == PROXY_CONTAINER;
        let (sidecar, applications): (Vec<_>, Vec<_>) =
            self.started.into_iter().partition(|(container, ..)| is_sidecar(container));
        for group in [applications, sidecar] {
            let deadline = tokio::time::Instant::now() + grace;
            for (_, stop, _) in &group {
                stop.cancel();
            }
            for (container, _, mut task) in group {
                if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                    signal(&container, Signal::SIGKILL);
                    let _ = task.await;
                }
            }
        }
    }
}

fn signal(container: &ContainerHandle, signal: Signal) {
    if let ContainerPhase::Running { pid, .. } = container.view().phase {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), signal);
    }
}

/// Runs one container until it is stopped or done.
struct Task {
    cluster: Arc<Cluster>,
    pod: Arc<Pod>,
    container: Arc<ContainerHandle>,
    stop: CancellationToken,
}

impl Task {
    async fn run(self) {
        let identity = match self.container.program {
            Program::Proxy => identity_file().map(Some),
            _ => Ok(None),
        };
        let identity = match identity {
            Ok(identity) => identity,
            Err(error) => return self.fail("CreateContainerError", &error),
        };
        let mut back_off = Duration::ZERO;
        loop {
            let started = Instant::now();
            let exit = match self.launch(identity.as_ref()).await {
                Ok(process) => self.attend(process).await,
                Err(error) => {
                    self.fail("CreateContainerConfigError", &*error);
                    Exit::Code(128)
                }
            };
            if self.stop.is_cancelled() || !self.restarts_after(exit) {
                return;
            }
            if started.elapsed() > FORGIVEN_AFTER {
                back_off = Duration::ZERO;
            }
            if !back_off.is_zero() {
                self.wait_to_restart(back_off);
            }
            tokio::select! {
                () = tokio::time::sleep(back_off) => {}
                () = self.stop.cancelled() => return,
            }
            back_off = (back_off * 2).clamp(FIRST_BACK_OFF, LONGEST_BACK_OFF);
            self.container.change(|state| state.restarts += 1);
        }
    }

    fn restarts_after(&self, exit: Exit) -> bool {
        match self.pod.object.spec.restart_policy.as_str() {
            "Never" => false,
            "OnFailure" => exit != Exit::Code(0),
            _ => !(self.container.is_init && exit == Exit::Code(0)),
        }
    }

    fn wait_to_restart(&self, back_off: Duration) {
        let message = format!("back-off {}s restarting failed container", back_off.as_secs());
        self.container.change(|state| {
            // A container that could not even start says why instead.
            if matches!(state.phase, ContainerPhase::Terminated { .. }) {
                state.phase = ContainerPhase::Waiting { reason: "CrashLoopBackOff", message };
            }
        });
    }

    fn fail(&self, reason: &'static str, error: &dyn std::error::Error) {
        let message = chain(error);
        self.container.log.note(&message);
        self.container.change(|state| state.phase = ContainerPhase::Waiting { reason, message });
    }

    async fn launch(
        &self,
        identity: Option<&std::os::fd::OwnedFd>,
    ) -> Result<Process, Box<dyn std::error::Error + Send + Sync>> {
        let output = self.container.log.pipe()?;
        let env = self.environment()?;
        *self.container.env.lock().unwrap_or_else(PoisonError::into_inner) = env.clone();
        let handed_over = match identity {
            Some(fd) => Some(("AMIME_IDENTITY_FD".to_owned(), fd.try_clone()?)),
            None => None,
        };
        let working_dir = Some(self.container.spec.working_dir.as_str()).filter(|d| !d.is_empty());
        let launch = Launch {
            argv: self.command(&env),
            env,
            working_dir: working_dir.map(Into::into),
            stdin: None,
            stderr: output.try_clone()?,
            stdout: output,
            handed_over,
        };
        let program = launch.argv.first().cloned().unwrap_or_default();
        let (reaper, pod) = (self.cluster.reaper.clone(), Arc::clone(&self.pod));
        let started =
            tokio::task::spawn_blocking(move || reaper.start(&pod.sandbox, launch)).await?;
        let process = started.map_err(|error| format!("could not start {program}: {error}"))?;
        let phase = ContainerPhase::Running { pid: process.pid, since: SystemTime::now() };
        self.container.change(|state| state.phase = phase);
        Ok(process)
    }

    fn command(&self, env: &[(String, String)]) -> Vec<String> {
        let known = env.iter().cloned().collect();
        let args = self.container.spec.args.iter().map(|arg| environment::expand(arg, &known));
        let exe = &self.cluster.self_exe;
        match &self.container.program {
            Program::Command(command) => command.iter().cloned().chain(args).collect(),
            Program::Proxy => sidecar::proxy_command(exe, proxy_kind(&self.pod)),
            Program::ControlPlane => sidecar::control_plane_command(
                exe,
                &self.cluster.state.api_socket(),
                &self.cluster.state.ca(),
            ),
        }
    }

    fn environment(
        &self,
    ) -> Result<Vec<(String, String)>, Box<dyn std::error::Error + Send + Sync>> {
        let pod = &self.pod;
        let mut env = base_env(&pod.name.name);
        if self.container.program == Program::Proxy {
            let files = proxy_files(&self.cluster, pod)?;
            env.extend(sidecar::proxy_env(&pod.object, pod.address, proxy_kind(pod), &files)?);
        }
        let own = environment::of_container(
            &self.container.spec,
            &pod.object,
            pod.address,
            &*self.cluster.store,
        )?;
        env.extend(own);
        Ok(env)
    }

    /// Watches over a process until its end.
    async fn attend(&self, mut process: Process) -> Exit {
        let spec = &self.container.spec;
        let exit = tokio::select! {
            exit = process.wait() => Some(exit),
            () = self.keep_ready(Schedule::readiness(spec, &self.container.program)) => None,
            () = self.keep_alive(Schedule::liveness(spec)) => {
                self.container.log.note("the liveness probe failed; restarting");
                None
            }
            () = self.stop.cancelled() => None,
        };
        let exit = match exit {
            Some(exit) => exit,
            None => {
                process.signal(Signal::SIGTERM);
                self.end(&mut process).await
            }
        };
        let (code, at) = (exit.code(), SystemTime::now());
        self.container.change(|state| {
            state.phase = ContainerPhase::Terminated { exit: code, at };
            state.ready = false;
            state.last = Some((code, at));
        });
        exit
    }

    /// Waits for a process that was told to end.
    async fn end(&self, process: &mut Process) -> Exit {
        let grace = self.pod.object.spec.termination_grace_period_seconds.unwrap_or(30);
        let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        match tokio::time::timeout(grace, process.wait()).await {
            Ok(exit) => exit,
            Err(_) => {
                process.signal(Signal::SIGKILL);
                process.wait().await
            }
        }
    }

    async fn keep_ready(&self, schedule: Option<Schedule>) {
        let report = |ready| self.container.change(|state| state.ready = ready);
        match schedule {
            Some(schedule) => {
                tokio::time::sleep(schedule.initial_delay).await;
                schedule.watch(&self.pod, report).await;
            }
            None => {
                report(!self.container.is_init);
                std::future::pending::<()>().await;
            }
        }
    }

    async fn keep_alive(&self, schedule: Option<Schedule>) {
        match schedule {
            Some(schedule) => schedule.failed(&self.pod).await,
            None => std::future::pending().await,
        }
    }
}

fn base_env(hostname: &str) -> Vec<(String, String)> {
    [("PATH", DEFAULT_PATH), ("HOME", "/"), ("HOSTNAME", hostname)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

/// True if every container has ended and none will start again.
pub(super) fn all_done(pod: &Pod) -> bool {
    let mut applications = pod
        .containers
        .iter()
        .filter(|container| !container.is_init && container.name() != PROXY_CONTAINER);
    let ends = matches!(pod.object.spec.restart_policy.as_str(), "Never" | "OnFailure");
    ends && applications.all(|container| container.is_done())
}
