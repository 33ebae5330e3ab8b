//! Is a container alive, is it ready?
//!
//! Probes run inside of the pod's network namespace against its loopback,
//! where no sidecar stands in between. The probe without a manifest differs
//! from Kubernetes: a container that declares TCP ports is ready when all of
//! them accept, not as soon as it runs, so that a start of the whole mesh
//! does not answer its first requests with errors.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use amime_api::k8s::{Container, HttpGetAction, IntOrString, Probe};
use amime_net::namespace::in_netns;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

use super::Pod;
use crate::image::Program;
use crate::sidecar::{READY_PATH, READY_PORT};

/// Between two checks of a container that is not ready yet.
const EAGER: Duration = Duration::from_millis(25);
const DEFAULT_PERIOD: Duration = Duration::from_secs(10);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest status line of an answer to a probe.
const LONGEST_LINE: u64 = 4096;

/// One kind of check.
#[derive(Clone, Debug)]
pub(super) enum Check {
    /// All of these ports accept.
    Accept(Vec<u16>),
    /// A GET is answered with a status from 200 to 399.
    Http { port: u16, request: String },
    /// The command exits with 0.
    Exec(Vec<String>),
}

/// A check and when to make it.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub(super) check: Check,
    pub(super) initial_delay: Duration,
    pub(super) period: Duration,
    timeout: Duration,
    pub(super) failures: u32,
}

impl Schedule {
    /// When the container is ready; none: as soon as it runs.
    pub(super) fn readiness(container: &Container, program: &Program) -> Option<Self> {
        if let Some(probe) = &container.readiness_probe {
            return Self::of(probe, container);
        }
        let check = match program {
            Program::Proxy => Check::Http { port: READY_PORT, request: get(READY_PATH, "", &[]) },
            _ => {
                let tcp = container.ports.iter().filter(|port| {
                    matches!(port.protocol.as_str(), "" | "TCP") && port.container_port != 0
                });
                let ports: Vec<_> = tcp.map(|port| port.container_port).collect();
                if ports.is_empty() {
                    return None;
                }
                Check::Accept(ports)
            }
        };
        Some(Self::new(check))
    }

    /// When the container is to be restarted although it runs.
    pub(super) fn liveness(container: &Container) -> Option<Self> {
        Self::of(container.liveness_probe.as_ref()?, container)
    }

    fn new(check: Check) -> Self {
        Self {
            check,
            initial_delay: Duration::ZERO,
            period: DEFAULT_PERIOD,
            timeout: DEFAULT_TIMEOUT,
            failures: 3,
        }
    }

    fn of(probe: &Probe, container: &Container) -> Option<Self> {
        let port = |port: &Option<IntOrString>| match port.as_ref()? {
            IntOrString::Int(number) => u16::try_from(*number).ok(),
            IntOrString::String(name) => {
                let named = container.ports.iter().find(|port| port.name == *name);
                named.map(|port| port.container_port)
            }
        };
        let check = if let Some(http) = &probe.http_get {
            Check::Http { port: port(&http.port)?, request: http_request(http) }
        } else if let Some(tcp) = &probe.tcp_socket {
            Check::Accept(vec![port(&tcp.port)?])
        } else if let Some(exec) = &probe.exec {
            Check::Exec(exec.command.clone())
        } else {
            Check::Accept(vec![probe.grpc.as_ref()?.port])
        };
        let seconds = |value: Option<i32>, or: Duration| match value {
            Some(value) => Duration::from_secs(u64::try_from(value).unwrap_or(0)),
            None => or,
        };
        Some(Self {
            check,
            initial_delay: seconds(probe.initial_delay_seconds, Duration::ZERO),
            period: seconds(probe.period_seconds, DEFAULT_PERIOD).max(EAGER),
            timeout: seconds(probe.timeout_seconds, DEFAULT_TIMEOUT).max(EAGER),
            failures: probe.failure_threshold.and_then(|n| u32::try_from(n).ok()).unwrap_or(3),
        })
    }

    /// Makes the check once.
    pub(super) async fn passes(&self, pod: &Pod) -> bool {
        let checking = check(pod, &self.check, self.timeout);
        match &self.check {
            // Has to end its process itself.
            Check::Exec(_) => checking.await.unwrap_or(false),
            _ => matches!(tokio::time::timeout(self.timeout, checking).await, Ok(Ok(true))),
        }
    }

    /// Tells `report` each time the verdict changes, for ever.
    pub(super) async fn watch(&self, pod: &Pod, mut report: impl FnMut(bool)) {
        let mut ready = false;
        let mut failures = 0;
        loop {
            if self.passes(pod).await {
                failures = 0;
                if !ready {
                    ready = true;
                    report(true);
                }
            } else {
                failures += 1;
                if ready && failures >= self.failures {
                    ready = false;
                    report(false);
                }
            }
            // While something waits for readiness, seconds count.
            let pause = if ready { self.period } else { EAGER.min(self.period) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Returns when the check has failed too often in a row.
    pub(super) async fn failed(&self, pod: &Pod) {
        tokio::time::sleep(self.initial_delay).await;
        let mut failures = 0;
        while failures < self.failures {
            tokio::time::sleep(self.period).await;
            failures = if self.passes(pod).await { 0 } else { failures + 1 };
        }
    }
}

async fn check(pod: &Pod, check: &Check, timeout: Duration) -> io::Result<bool> {
    match check {
        Check::Accept(ports) => {
            for port in ports {
                connect(pod, *port).await?;
            }
            Ok(true)
        }
        Check::Http { port, request } => {
            let mut stream = connect(pod, *port).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut line = String::new();
            BufReader::new(stream.take(LONGEST_LINE)).read_line(&mut line).await?;
            let status = line.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
            Ok(status.is_some_and(|status| (200..400).contains(&status)))
        }
        Check::Exec(command) => exec(pod, command, timeout).await,
    }
}

async fn exec(pod: &Pod, command: &[String], timeout: Duration) -> io::Result<bool> {
    let Some(container) = pod.container(None) else { return Ok(false) };
    let null = || std::fs::OpenOptions::new().write(true).open("/dev/null");
    let launch = crate::process::Launch {
        argv: command.to_vec(),
        env: container.env(),
        working_dir: None,
        stdin: None,
        stdout: null()?.into(),
        stderr: null()?.into(),
        handed_over: None,
    };
    let reaper = container.reaper().clone();
    let mut process = tokio::task::block_in_place(|| reaper.start(&pod.sandbox, launch))?;
    match tokio::time::timeout(timeout, process.wait()).await {
        Ok(exit) => Ok(exit == crate::process::Exit::Code(0)),
        Err(_) => {
            process.signal(nix::sys::signal::Signal::SIGKILL);
            Ok(false)
        }
    }
}

async fn connect(pod: &Pod, port: u16) -> io::Result<TcpStream> {
    pod_socket(pod)?.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

/// A TCP socket of the pod's network, to be connected from here.
pub(crate) fn pod_socket(pod: &Pod) -> io::Result<TcpSocket> {
    in_netns(pod.sandbox.net(), TcpSocket::new_v4)?
}

fn http_request(http: &HttpGetAction) -> String {
    let headers: Vec<_> =
        http.http_headers.iter().map(|h| (h.name.as_str(), h.value.as_str())).collect();
    get(&http.path, &http.host, &headers)
}

fn get(path: &str, host: &str, headers: &[(&str, &str)]) -> String {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let host = if host.is_empty() { "localhost" } else { host };
    let mut request =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kube-probe/1.35\r\n");
    for (name, value) in headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("Connection: close\r\n\r\n");
    request
}
