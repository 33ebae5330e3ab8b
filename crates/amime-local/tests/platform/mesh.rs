//! A mesh under test: `up` in a process of its own, and a client.

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use amime_local::client::{Client, ExecRequest, LogRequest};
use amime_local::{ManifestFile, Progress, StateDir, UpOptions};
use serde_json::{Value, json};

const OPTIONS: &str = "AMIME_TEST_OPTIONS";
const PATIENCE: Duration = Duration::from_secs(30);

/// The `up` role: prints progress as JSON lines, an error on standard error.
pub(crate) fn run_up() -> ExitCode {
    let options: Value =
        serde_json::from_str(&std::env::var(OPTIONS).expect("options")).expect("JSON");
    let text = |key: &str| options[key].as_str().expect("text").to_owned();
    let list = |key: &str| options[key].as_array().cloned().unwrap_or_default();
    let options = UpOptions {
        state_dir: Some(text("state").into()),
        port: options["port"].as_u64().and_then(|port| port.try_into().ok()).unwrap_or(0),
        files: list("files")
            .iter()
            .map(|file| ManifestFile {
                name: "test.yaml".into(),
                text: file.as_str().expect("text").into(),
            })
            .collect(),
        images: list("images")
            .iter()
            .map(|image| image.as_str().expect("text").parse().expect("mapping"))
            .collect(),
        demo: false,
        mesh: false,
        ..UpOptions::default()
    };
    let up = amime_local::up(options, |event| {
        println!("{}", serde_json::to_string(&event).expect("JSON"));
    });
    match runtime().block_on(up) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

/// What to start a mesh with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    pub(crate) files: Vec<String>,
    pub(crate) images: Vec<String>,
    pub(crate) port: u16,
}

impl Setup {
    /// With `image: test` standing for the applications of this program.
    pub(crate) fn with(manifest: &str) -> Self {
        let this = std::env::current_exe().expect("own path");
        Self {
            files: vec![manifest.to_owned()],
            images: vec![format!("test='{}' app", this.display())],
            port: 0,
        }
    }

    fn command(&self, state: &Path) -> Command {
        let options = json!({
            "state": state, "files": self.files, "images": self.images, "port": self.port,
        });
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.arg("up").env(OPTIONS, options.to_string());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a mesh that must become ready.
    pub(crate) fn up(&self, state: &Path) -> Mesh {
        let mut process = self.command(state).spawn().expect("started");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let mut mesh = Mesh { process, state: state.to_owned(), url: String::new() };
        for line in lines {
            let event: Progress = serde_json::from_str(&line.expect("text")).expect("JSON");
            if let Progress::Ready { url, .. } = event {
                mesh.url = url;
                return mesh;
            }
        }
        panic!("not ready: {}\n{}", mesh.error(), mesh.log());
    }

    /// Starts a mesh that must fail; returns the error.
    pub(crate) fn fails(&self, state: &Path) -> String {
        let output = self.command(state).output().expect("ran");
        assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

/// A running mesh; it is stopped when dropped.
pub(crate) struct Mesh {
    pub(crate) process: Child,
    pub(crate) state: PathBuf,
    pub(crate) url: String,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the supervisor:\n{}", self.log());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Mesh {
    fn error(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.process.stderr.take() {
            let _ = std::io::Read::read_to_string(&mut stderr, &mut text);
        }
        text
    }

    pub(crate) fn log(&self) -> String {
        let state = StateDir::new(&self.state);
        std::fs::read_to_string(state.supervisor_log()).unwrap_or_default()
    }

    pub(crate) fn call<T, F: Future<Output = T>>(&self, call: impl FnOnce(Client) -> F) -> T {
        runtime().block_on(call(Client::new(&StateDir::new(&self.state))))
    }

    pub(crate) fn address(&self) -> String {
        self.url.strip_prefix("http://").expect("url").to_owned()
    }

    /// Applies a manifest; returns the errors, if any.
    pub(crate) fn apply(&self, text: &str) -> Result<(), String> {
        let file = amime_control::store::SourceFile { name: "test.yaml".into(), text: text.into() };
        let apply =
            amime_control::store::Apply { files: vec![file], namespace: "default".to_owned() };
        let objects = self.call(|client| async move { client.objects().apply(&apply).await });
        objects.map(|_| ()).map_err(|error| format!("{error:?}"))
    }

    /// Names of the pods whose name starts so, and whether they are ready.
    pub(crate) fn pods(&self, prefix: &str) -> Vec<(String, bool)> {
        let status = self.call(|client| async move { client.status().await }).expect("status");
        let pods = status.pods.into_iter().filter(|pod| pod.name.starts_with(prefix));
        pods.map(|pod| (pod.name, pod.ready)).collect()
    }

    pub(crate) fn pod(&self, prefix: &str) -> String {
        let mut pods = self.pods(prefix);
        assert!(!pods.is_empty(), "no pod {prefix}");
        pods.remove(0).0
    }

    /// Runs a command; returns exit code, standard output and error.
    pub(crate) fn exec(&self, pod: &str, command: &[&str], input: &str) -> (i32, String, String) {
        let request = ExecRequest {
            namespace: "default".into(),
            pod: self.pod(pod),
            container: None,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = self
            .call(|client| {
                let (out, err, request) = (&mut out, &mut err, &request);
                async move { client.exec(request, input.as_bytes(), out, err).await }
            })
            .expect("ran");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (code, text(out), text(err))
    }

    /// The body that a pod gets from an address.
    pub(crate) fn get_from(&self, pod: &str, address: &str) -> String {
        let this = std::env::current_exe().expect("own path");
        let this = this.to_str().expect("text");
        let (code, out, err) = self.exec(pod, &[this, "app", "get", address], "");
        if code == 0 { out } else { format!("error: {err}") }
    }

    pub(crate) fn logs(&self, pod: &str) -> String {
        let request =
            LogRequest { namespace: "default".into(), pod: self.pod(pod), ..LogRequest::default() };
        let mut out = Vec::new();
        self.call(|client| {
            let (out, request) = (&mut out, &request);
            async move { client.logs(request, out).await }
        })
        .expect("logs");
        String::from_utf8(out).expect("text")
    }
}

/// Waits until the test holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !test() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
