//! The program as a child process, and its admin port.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The command that starts it on a bootstrap.
pub(crate) fn command(dir: &Path, bootstrap: &str) -> Command {
    let file = dir.join("bootstrap.yaml");
    std::fs::write(&file, bootstrap).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_amime-proxy"));
    command.arg("-c").arg(file).args(["--concurrency", "1", "--drain-time-s", "0"]);
    command
}

/// A running proxy; killed if a test fails before it ends by itself.
pub(crate) struct Running {
    pub(crate) child: Child,
}

impl Running {
    /// Starts it; answers with its admin address once it is live.
    pub(crate) fn start(dir: &Path, bootstrap: &str) -> (Self, String) {
        let address_file = dir.join("admin");
        let mut command = command(dir, bootstrap);
        command.arg("--admin-address-path").arg(&address_file).stderr(Stdio::null());
        let running = Self { child: command.spawn().expect("starts") };
        let address = wait("admin address", || {
            std::fs::read_to_string(&address_file).ok().filter(|address| !address.is_empty())
        });
        wait("ready", || ask(&address, "GET", "/ready").contains("LIVE").then_some(()));
        (running, address)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
    }
}

/// One request on a connection of its own.
pub(crate) fn ask(address: &str, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let request = format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    answer
}

/// Asks until there is an answer.
pub(crate) fn wait<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    let there = within_patience(|| {
        found = poll();
        found.is_some().then_some(())
    });
    assert!(there, "never: {what}");
    found.expect("just seen")
}

/// Whether there is an answer before patience ends.
pub(crate) fn within_patience(mut poll: impl FnMut() -> Option<()>) -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        if poll().is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
