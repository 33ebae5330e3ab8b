//! A whole mesh, started, questioned, changed and stopped as a user does it.
//!
//! Needs root or user namespaces; everything stays in namespaces of its own
//! and on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const NETWORKING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/bookinfo/networking/");
/// Far more than a start or a change takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Mesh {
    dir: tempfile::TempDir,
    up: Child,
    address: String,
}

impl Mesh {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let mut up = amime(dir.path())
            .args(["up", "--port", "0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let lines = BufReader::new(up.stdout.take().expect("piped")).lines();
        let url = lines
            .map_while(Result::ok)
            .find_map(|line| line.trim().strip_prefix("http://").map(str::to_owned))
            .expect("the mesh gets ready and prints its address");
        let address = url.split('/').next().expect("an authority").to_owned();
        Self { dir, up, address }
    }

    /// Standard output of a command that has to succeed.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        String::from_utf8(output.stdout).expect("output is text")
    }

    fn run(&self, args: &[&str]) -> Output {
        amime(self.dir.path()).args(args).output().expect("the program starts")
    }

    fn apply(&self, files: &[&str]) {
        let paths: Vec<_> = files.iter().map(|file| format!("{NETWORKING}{file}")).collect();
        let flags = paths.iter().flat_map(|path| ["-f", path]);
        self.ok(&["apply"].into_iter().chain(flags).collect::<Vec<_>>());
    }

    /// The page; it has to be complete.
    #[track_caller]
    fn page(&self) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("the gateway listens");
        let host = &self.address;
        write!(stream, "GET /productpage HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
            .expect("request is sent");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("page is text");
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        assert!(page.contains("William Shakespeare"), "{page}");
        page
    }

    /// Version of `reviews` that served one page.
    #[track_caller]
    fn reviews(&self) -> String {
        let page = self.page();
        let served = page.split("Reviews served by: <code>").nth(1);
        let Some(version) = served.and_then(|rest| rest.get(.."reviews-v1".len())) else {
            panic!("no reviews are on {page}");
        };
        version.to_owned()
    }

    /// Waits until `count` pages in a row fit.
    #[track_caller]
    fn settles(&self, count: usize, fits: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut row = 0;
        while row < count {
            row = if fits(&self.reviews()) { row + 1 } else { 0 };
            assert!(Instant::now() < deadline, "the change does not take effect");
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.run(&["down"]);
        self.up.kill().ok();
        self.up.wait().ok();
    }
}

fn amime(state_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amime"));
    command.env("AMIME_STATE_DIR", state_dir);
    command
}

#[test]
fn a_mesh_starts_serves_obeys_and_stops() {
    let mut mesh = Mesh::start();

    let mut seen = std::collections::BTreeSet::new();
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < 3 {
        seen.insert(mesh.reviews());
        assert!(Instant::now() < deadline, "only {seen:?} of three versions were seen");
    }

    proxies_are_told_apart(&mesh);

    // Both at once: routes must not move before their new clusters are warm.
    mesh.apply(&["destination-rules.yaml", "all-v1.yaml"]);
    mesh.settles(20, |version| version == "reviews-v1");
    mesh.apply(&["reviews-50-v3.yaml"]);
    mesh.settles(1, |version| version == "reviews-v3");

    let exec =
        mesh.run(&["exec", "ratings-v1", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    let (out, err) = (&exec.stdout[..], &exec.stderr[..]);
    assert_eq!((out, err, exec.status.code()), (&b"out\n"[..], &b"err\n"[..], Some(7)));

    let second = mesh.run(&["up", "--port", "0"]);
    assert_eq!(second.status.code(), Some(1));
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(error.contains("already running"), "{error}");

    assert_eq!(mesh.ok(&["down"]), "the mesh has stopped\n");
    assert!(mesh.up.wait().expect("up ends").success());
    assert!(TcpStream::connect(&mesh.address).is_err(), "the port is free again");
    assert_eq!(mesh.ok(&["down"]), "no mesh was running\n");
}

#[track_caller]
fn proxies_are_told_apart(mesh: &Mesh) {
    let status = mesh.ok(&["proxy-status"]);
    // Six sidecars and two gateways under the header.
    assert_eq!(status.lines().count(), 9, "{status}");
    let listeners = mesh.ok(&["proxy-config", "listener", "productpage-v1"]);
    assert!(listeners.starts_with("ADDRESSES"), "{listeners}");
    assert!(listeners.contains("Route: 9080"), "{listeners}");
    let clusters = mesh.ok(&["pc", "c", "productpage-v1", "--fqdn", "reviews"]);
    assert!(clusters.contains("reviews.default.svc.cluster.local"), "{clusters}");
    let endpoints = mesh.ok(&["pc", "ep", "productpage-v1"]);
    assert!(endpoints.contains("HEALTHY"), "{endpoints}");
    let secrets = mesh.ok(&["pc", "s", "productpage-v1"]);
    assert!(secrets.contains("Cert Chain") && secrets.contains("ROOTCA"), "{secrets}");
    let table = mesh.ok(&["status"]);
    assert!(table.contains("9 of 9 pods ready"), "{table}");
}
