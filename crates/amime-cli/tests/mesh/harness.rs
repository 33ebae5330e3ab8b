//! A mesh of a test's own, and questions to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

const NETWORKING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/bookinfo/networking/");
/// Far more than a start or a change takes, also on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Mesh {
    dir: tempfile::TempDir,
    pub(crate) up: Child,
    /// Host and port of the ingress gateway.
    pub(crate) address: String,
}

impl Mesh {
    pub(crate) fn start() -> Self {
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
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        String::from_utf8(output.stdout).expect("output is text")
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program starts")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = amime(self.dir.path());
        command.args(args);
        command
    }

    pub(crate) fn apply(&self, files: &[&str]) {
        let paths: Vec<_> = files.iter().map(|file| format!("{NETWORKING}{file}")).collect();
        let flags = paths.iter().flat_map(|path| ["-f", path]);
        self.ok(&["apply"].into_iter().chain(flags).collect::<Vec<_>>());
    }

    /// Applies YAML.
    #[track_caller]
    pub(crate) fn apply_text(&self, yaml: &str) {
        let file = self.dir.path().join("applied.yaml");
        std::fs::write(&file, yaml).expect("written");
        self.ok(&["apply", "-f", file.to_str().expect("text")]);
    }

    /// The page; it has to be complete.
    #[track_caller]
    pub(crate) fn page(&self) -> String {
        let page = get(&self.address, &self.address);
        assert!(is_complete(&page), "{page}");
        page
    }

    /// Waits until `command` prints what fits.
    #[track_caller]
    pub(crate) fn wait_for(&self, command: &[&str], fits: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let out = self.ok(command);
            if fits(&out) {
                return out;
            }
            assert!(Instant::now() < deadline, "{command:?} still prints {out}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks for pages all the while `during` runs; each has to be complete.
    #[track_caller]
    pub(crate) fn under_load(&self, during: impl FnOnce()) {
        let (stop, served) = (AtomicBool::new(false), AtomicU32::new(0));
        let client = || {
            while !stop.load(Ordering::Relaxed) {
                let page = get(&self.address, &self.address);
                assert!(is_complete(&page), "{page}");
                served.fetch_add(1, Ordering::Relaxed);
            }
        };
        std::thread::scope(|scope| {
            let clients = [scope.spawn(client), scope.spawn(client)];
            during();
            // Some requests come after it, whatever it took.
            let enough = served.load(Ordering::Relaxed) + 20;
            while served.load(Ordering::Relaxed) < enough
                && clients.iter().all(|client| !client.is_finished())
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    /// Version of `reviews` that served one page.
    #[track_caller]
    pub(crate) fn reviews(&self) -> String {
        let page = self.page();
        let served = page.split("Reviews served by: <code>").nth(1);
        let Some(version) = served.and_then(|rest| rest.get(.."reviews-v1".len())) else {
            panic!("no reviews are on {page}");
        };
        version.to_owned()
    }

    /// Waits until `count` pages in a row fit.
    #[track_caller]
    pub(crate) fn settles(&self, count: usize, fits: impl Fn(&str) -> bool) {
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

/// The whole answer to `GET /productpage`.
pub(crate) fn get(address: &str, host: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the gateway listens");
    write!(stream, "GET /productpage HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
        .expect("request is sent");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("page is text");
    page
}

fn is_complete(page: &str) -> bool {
    page.starts_with("HTTP/1.1 200")
        && page.contains("William Shakespeare")
        && page.contains("ISBN")
        && page.contains("Reviews served by")
}
