//! One process takes over from another under load.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crate::running::{ask, wait};

fn bootstrap(answer: &str) -> String {
    format!(
        r#"
node: {{id: test, cluster: test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
static_resources:
  listeners:
  - name: main
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          route_config: {{name: r, virtual_hosts: [{{name: v, domains: ["*"], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {answer}}}}}}}]}}]}}
          http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
"#
    )
}

/// A process, killed if a test fails before it ends by itself.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path, name: &str, workers: u16, take_over: bool) -> (Process, PathBuf) {
    let file = dir.join(format!("{name}.yaml"));
    std::fs::write(&file, bootstrap(name)).expect("written");
    let admin = dir.join(format!("{name}.admin"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_amime-proxy"));
    command.arg("-c").arg(file).args(["--drain-time-s", "20"]).stderr(Stdio::null());
    command.arg("--concurrency").arg(workers.to_string());
    command.arg("--admin-address-path").arg(&admin);
    command.arg("--restart-socket").arg(dir.join("door"));
    if take_over {
        command.arg("--restart");
    }
    (Process(command.spawn().expect("starts")), admin)
}

fn admin(file: &Path) -> String {
    wait("admin address", || std::fs::read_to_string(file).ok().filter(|it| !it.is_empty()))
}

/// What clients saw.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    answered: AtomicUsize,
    failed: AtomicUsize,
}

impl Load {
    fn count(&self, answer: Option<bool>) -> bool {
        let counter = if answer.is_some() { &self.answered } else { &self.failed };
        counter.fetch_add(1, Ordering::SeqCst);
        answer.unwrap_or(false)
    }
}

/// Asks time and again: on a new connection each time, or on one as long as
/// the proxy lets it.
fn client(load: &Arc<Load>, address: &str, keeps: bool) -> JoinHandle<()> {
    let (load, address) = (load.clone(), address.to_owned());
    std::thread::spawn(move || {
        while !load.stop.load(Ordering::SeqCst) {
            let Ok(stream) = TcpStream::connect(&address) else {
                load.count(None);
                continue;
            };
            let mut stream = BufReader::new(stream);
            while load.count(exchange(&mut stream, keeps)) && !load.stop.load(Ordering::SeqCst) {}
        }
    })
}

/// Whether the connection stays; nothing if there is no whole answer.
fn exchange(stream: &mut BufReader<TcpStream>, keeps: bool) -> Option<bool> {
    let close = if keeps { "" } else { "connection: close\r\n" };
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{close}\r\n");
    stream.get_mut().write_all(request.as_bytes()).ok()?;
    let (mut stays, mut length, mut first) = (true, 0, true);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|count| *count > 0)?;
        let line = line.trim_end().to_ascii_lowercase();
        if std::mem::take(&mut first) && line != "http/1.1 200 ok" {
            return None;
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().ok()?;
        }
        stays &= line != "connection: close";
        if line.is_empty() {
            break;
        }
    }
    stream.read_exact(&mut vec![0; length]).ok()?;
    Some(stays)
}

#[test]
fn no_request_fails_while_another_process_takes_over() {
    let dir = tempfile::tempdir().expect("directory");
    let (mut old, file) = start(dir.path(), "old", 2, false);
    let first_admin = admin(&file);
    wait("ready", || ask(&first_admin, "GET", "/ready").contains("LIVE").then_some(()));
    let listeners = ask(&first_admin, "GET", "/listeners");
    let line = listeners.lines().find_map(|line| line.strip_prefix("main::"));
    let address = line.expect("the listener").to_owned();
    wait("the door", || dir.path().join("door").exists().then_some(()));

    let load = Arc::<Load>::default();
    let clients: Vec<_> = (0..6).map(|n| client(&load, &address, n % 2 == 0)).collect();
    let after = |more: usize| {
        let until = load.answered.load(Ordering::SeqCst) + more;
        wait("more answers", || (load.answered.load(Ordering::SeqCst) >= until).then_some(()));
    };
    after(200);
    // More workers than before, then fewer.
    let mut files = vec![];
    for (name, workers) in [("second", 3), ("third", 1)] {
        let (new, file) = start(dir.path(), name, workers, true);
        let status = wait("the old process ends", || old.0.try_wait().expect("a child"));
        assert!(status.success(), "{status}");
        old = new;
        files.push(file);
        after(200);
        assert!(ask(&address, "GET", "/").ends_with(name));
    }
    load.stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().expect("no panic");
    }
    assert_eq!(load.failed.load(Ordering::SeqCst), 0, "of {:?}", load.answered);
    // The admin port has gone with the rest.
    assert_eq!(admin(&files[1]), first_admin);
    assert!(ask(&first_admin, "GET", "/ready").contains("LIVE"));
}

#[test]
fn a_process_that_does_not_come_up_leaves_the_old_one_as_it_is() {
    let dir = tempfile::tempdir().expect("directory");
    let (mut old, file) = start(dir.path(), "old", 1, false);
    let admin = admin(&file);
    wait("ready", || ask(&admin, "GET", "/ready").contains("LIVE").then_some(()));
    wait("the door", || dir.path().join("door").exists().then_some(()));
    let bad = dir.path().join("bad.yaml");
    std::fs::write(&bad, bootstrap("bad").replace("direct_response", "no_such_field"))
        .expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_amime-proxy"));
    command.arg("-c").arg(bad).arg("--restart").arg("--restart-socket");
    let output = command.arg(dir.path().join("door")).output().expect("runs");
    assert!(!output.status.success());
    assert!(ask(&admin, "GET", "/ready").contains("LIVE"));
    assert!(old.0.try_wait().expect("a child").is_none());
}

#[test]
fn there_has_to_be_a_process_to_take_over_from() {
    let dir = tempfile::tempdir().expect("directory");
    let (mut process, _) = start(dir.path(), "new", 1, true);
    let status = wait("the end", || process.0.try_wait().expect("a child"));
    assert!(!status.success());
}
