//! The mesh that all tests share, and what tests do with it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::client::{Answer, Ask};
use crate::portal;
use crate::server::{Seen, Servers};
use crate::tls::Authority;

/// Far more than a change takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Pods and services that are there for all tests.
const PLACE: &str = include_str!("place.yaml");

/// Names a folder in which the mesh's folder stays after the tests: logs,
/// configurations and objects, to find out why a test failed.
const KEEP: &str = "AMIME_KEEP";

pub(crate) struct Mesh {
    dir: tempfile::TempDir,
    up: Child,
    runtime: tokio::runtime::Runtime,
    servers: Arc<Servers>,
    nowhere: OnceLock<String>,
    /// Signs what the servers outside of the mesh show.
    pub(crate) authority: Authority,
}

impl Mesh {
    pub(crate) fn start() -> Self {
        let dir = match std::env::var_os(KEEP) {
            Some(keep) => tempfile::Builder::new().disable_cleanup(true).tempdir_in(keep),
            None => tempfile::tempdir(),
        };
        let dir = dir.expect("temporary folder");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let authority = Authority::new("Tests");
        let servers = Servers::new(&authority);
        runtime.block_on(async { servers.listen(dir.path()) }).expect("a socket");
        let place = dir.path().join("place.yaml");
        std::fs::write(&place, PLACE).expect("written");

        let this = std::env::current_exe().expect("this program");
        let (this, sockets) = (this.display(), dir.path().display());
        let image = format!("portal='{this}' {} '{sockets}'", portal::ARGUMENT);
        // The mesh ends with this process, however that ends.
        let mut up = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", env!("CARGO_BIN_EXE_amime"), "up", "--port", "0"])
            .args(["--no-demo", "--image", &image, "-f"])
            .arg(&place)
            .env("AMIME_STATE_DIR", dir.path().join("state"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(up.stdout.take().expect("piped")).lines();
        let ready = lines.any(|line| line.is_ok_and(|line| line.trim().starts_with("http://")));
        assert!(ready, "the mesh does not start");
        Self { dir, up, runtime, servers, nowhere: OnceLock::new(), authority }
    }

    /// Folder of the portals' sockets.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Requests that servers saw with this value of `x-case`, in order.
    pub(crate) fn seen(&self, case: &str) -> Vec<Seen> {
        self.servers.seen(case)
    }

    pub(crate) fn amime(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amime"));
        command.env("AMIME_STATE_DIR", self.dir.path().join("state"));
        command.args(args).output().expect("the program starts")
    }

    /// Standard output of a command that has to succeed.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.amime(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        String::from_utf8(output.stdout).expect("output is text")
    }

    fn apply_with(&self, yaml: &str) -> Output {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile_in(self.dir.path());
        let file = file.expect("a file");
        std::fs::write(file.path(), yaml).expect("written");
        self.amime(&["apply", "-f", file.path().to_str().expect("text")])
    }

    /// Applies YAML without a warning.
    #[track_caller]
    pub(crate) fn apply(&self, yaml: &str) {
        let output = self.apply_with(yaml);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }

    /// Applies YAML that may draw warnings or be refused; what was said.
    pub(crate) fn apply_loosely(&self, yaml: &str) -> String {
        String::from_utf8(self.apply_with(yaml).stderr).expect("text")
    }

    /// What `apply` says against YAML; it has to refuse it.
    #[track_caller]
    pub(crate) fn refused(&self, yaml: &str) -> String {
        let output = self.apply_with(yaml);
        assert!(!output.status.success(), "this was applied: {yaml}");
        String::from_utf8(output.stderr).expect("text")
    }

    /// Deletes objects that have been applied.
    #[track_caller]
    pub(crate) fn delete(&self, namespace: &str, objects: &[&str]) {
        self.ok(&[&["-n", namespace, "delete"], objects].concat());
    }

    /// Tries again until it succeeds.
    #[track_caller]
    pub(crate) fn until<T>(&self, attempt: impl FnMut() -> anyhow::Result<T>) -> T {
        match self.within(PATIENCE, attempt) {
            Ok(done) => done,
            Err(error) => panic!("still, after {PATIENCE:?}: {error:#}"),
        }
    }

    fn within<T>(
        &self,
        patience: Duration,
        mut attempt: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            match attempt() {
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                outcome => return outcome,
            }
        }
    }

    /// Address of a pod.
    #[track_caller]
    pub(crate) fn address(&self, namespace: &str, pod: &str) -> String {
        let pod = self.ok(&["-n", namespace, "get", "pod", pod, "-o", "json"]);
        let pod: serde_json::Value = serde_json::from_str(&pod).expect("JSON");
        pod["status"]["podIP"].as_str().expect("it runs").to_owned()
    }

    /// Address of a pod that listens nowhere.
    #[track_caller]
    pub(crate) fn nowhere(&self) -> &str {
        self.nowhere.get_or_init(|| self.address("outside", "visitor"))
    }

    /// Statistics of a sidecar with this start of their names.
    pub(crate) fn stats(&self, pod: &str, start: &str) -> Vec<(String, String)> {
        let target = "127.0.0.1:15000";
        let answer = self.get(pod, &format!("http://{target}/stats")).send();
        let lines = answer.body.lines().filter(|line| line.starts_with(start));
        let pairs = lines.filter_map(|line| line.split_once(": "));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Asks all the while `during` runs, each over connections of its own and
    /// over one that is kept; every answer has to be 200.
    #[track_caller]
    pub(crate) fn under_load(&self, asks: &[Ask<'_>], during: impl FnOnce()) {
        let (stop, served) = (AtomicBool::new(false), AtomicU32::new(0));
        let count = |answer: Answer| {
            assert_eq!(answer.status, 200, "{answer:?}");
            served.fetch_add(1, Ordering::Relaxed);
        };
        let fresh = |ask: &Ask<'_>| {
            while !stop.load(Ordering::Relaxed) {
                count(ask.clone().send());
            }
        };
        let kept = |ask: &Ask<'_>| {
            let mut connection = ask.connect().expect("connects");
            while !stop.load(Ordering::Relaxed) {
                count(ask.clone().over(&mut connection).expect("the connection stays"));
            }
        };
        std::thread::scope(|scope| {
            let clients: Vec<_> = asks
                .iter()
                .flat_map(|ask| [scope.spawn(move || fresh(ask)), scope.spawn(move || kept(ask))])
                .collect();
            during();
            // Some requests come after it, whatever it took.
            let enough = served.load(Ordering::Relaxed) + 50;
            while served.load(Ordering::Relaxed) < enough
                && clients.iter().all(|client| !client.is_finished())
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    /// Waits for a line of the access log of a gateway.
    #[track_caller]
    pub(crate) fn logged_by(&self, gateway: &str, words: &[&str]) -> String {
        self.logged("istio-system", &format!("istio-{gateway}"), words)
    }

    /// Waits for a line of a proxy's access log that has all of these words.
    #[track_caller]
    pub(crate) fn logged(&self, namespace: &str, pod: &str, words: &[&str]) -> String {
        self.until(|| {
            let log = self.ok(&["-n", namespace, "logs", pod, "-c", "istio-proxy"]);
            let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
            let last = log.len().saturating_sub(1500);
            line.map(str::to_owned).ok_or_else(|| {
                anyhow::anyhow!("no {words:?} in …{}", log.get(last..).unwrap_or(&log))
            })
        })
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::env::var_os(KEEP).is_none() {
            self.amime(&["down"]);
        }
        self.up.kill().ok();
        self.up.wait().ok();
    }
}
