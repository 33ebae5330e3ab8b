//! The program `amime-proxy` as an operator starts it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const BOOTSTRAP: &str = "
node: {id: test, cluster: test}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  clusters:
  - {name: app, connect_timeout: 1s, type: STATIC}
";

fn command(dir: &Path, bootstrap: &str) -> Command {
    let file = dir.join("bootstrap.yaml");
    std::fs::write(&file, bootstrap).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_amime-proxy"));
    command.arg("-c").arg(file).args(["--concurrency", "1", "--drain-time-s", "0"]);
    command
}

fn validate(bootstrap: &str, more: &[&str]) -> Output {
    let dir = tempfile::tempdir().expect("directory");
    let mut command = command(dir.path(), bootstrap);
    command.args(["--mode", "validate"]).args(more).output().expect("runs")
}

#[track_caller]
fn check_refused(bootstrap: &str, want: &str) {
    let output = validate(bootstrap, &[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains(want), "{want} in {error}");
    assert_eq!(error.lines().count(), 1, "one clear error: {error}");
}

#[test]
fn a_bootstrap_is_checked_before_it_runs() {
    let output = validate(BOOTSTRAP, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    check_refused(&BOOTSTRAP.replace("connect_timeout", "conect_timeout"), "conect_timeout");
    check_refused("{", "bootstrap.yaml:");
}

#[test]
fn what_has_no_effect_is_refused_unless_allowed() {
    let bootstrap = format!("{BOOTSTRAP}stats_flush_interval: 5s\n");
    check_refused(&bootstrap, "stats_flush_interval");
    assert!(validate(&bootstrap, &["--allow-unsupported"]).status.success());
}

/// A running proxy; killed if a test fails before it ends by itself.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
    }
}

fn ask(address: &str, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("admin listens");
    let request = format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    answer
}

fn wait<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        if let Some(value) = poll() {
            return value;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

#[test]
fn it_serves_its_configuration_and_ends_when_asked() {
    let dir = tempfile::tempdir().expect("directory");
    let address_file = dir.path().join("admin");
    let mut command = command(dir.path(), BOOTSTRAP);
    command.arg("--admin-address-path").arg(&address_file).stderr(Stdio::null());
    let mut running = Running(command.spawn().expect("starts"));
    let address = wait("admin address", || {
        std::fs::read_to_string(&address_file).ok().filter(|address| !address.is_empty())
    });
    wait("ready", || ask(&address, "GET", "/ready").contains("LIVE").then_some(()));
    let help = ask(&address, "GET", "/");
    assert!(help.starts_with("HTTP/1.1 200"), "{help}");
    for endpoint in ["/certs", "/clusters", "/config_dump", "/listeners", "/logging", "/stats"] {
        assert!(help.contains(&format!("\n  {endpoint}")), "{endpoint} in {help}");
    }
    let dump = ask(&address, "GET", "/config_dump");
    assert!(dump.contains("static_clusters") && dump.contains("\"app\""), "{dump}");
    assert!(ask(&address, "POST", "/quitquitquit").contains("OK"));
    let status = wait("end", || running.0.try_wait().expect("a child"));
    assert!(status.success());
}
