//! The commands that read and change objects, run as a user runs them,
//! against a real object store on a socket.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use amime_control::api;
use amime_control::store::{Store, StoreOptions};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples");

/// A state directory whose API is served, as a running mesh would.
struct Mesh {
    dir: TempDir,
    shutdown: CancellationToken,
}

impl Mesh {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let store = Store::open(StoreOptions::default()).expect("an empty store opens");
        let shutdown = CancellationToken::new();
        let socket = std::os::unix::net::UnixListener::bind(dir.path().join("api.sock"))
            .expect("the socket is free");
        let stop = shutdown.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(async move {
                socket.set_nonblocking(true).expect("socket can be polled");
                let socket = tokio::net::UnixListener::from_std(socket).expect("socket is polled");
                api::serve(socket, api::router(Arc::new(store)), stop).await.expect("API serves");
            });
        });
        Self { dir, shutdown }
    }

    fn run(&self, args: &[&str]) -> Output {
        run(self.dir.path(), args)
    }

    /// Standard output of a command that has to succeed.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        String::from_utf8(output.stdout).expect("output is text")
    }

    /// Standard error of a command that has to fail with code 1.
    #[track_caller]
    fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8(output.stderr).expect("errors are text")
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("file is written");
        path.display().to_string()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn run(state_dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_amime"))
        .args(args)
        .env("AMIME_STATE_DIR", state_dir)
        .output()
        .expect("the program starts")
}

fn sample(path: &str) -> String {
    format!("{SAMPLES}/{path}")
}

#[test]
fn objects_go_in_are_shown_and_go_out() {
    let mesh = Mesh::start();
    let shop = sample("bookinfo/bookinfo.yaml");
    let out = mesh.ok(&["apply", "-f", &shop]);
    assert!(out.starts_with("service/details created\n"), "{out}");
    assert!(out.contains("deployment.apps/reviews-v3 created\n"), "{out}");
    assert!(mesh.ok(&["apply", "-f", &shop]).contains("service/details unchanged"));

    let table = mesh.ok(&["get", "svc"]);
    assert!(table.starts_with("NAME          TYPE        CLUSTER-IP"), "{table}");
    assert_eq!(table.lines().count(), 5, "{table}");
    let names = mesh.ok(&["get", "deploy", "-l", "app=reviews", "-o", "name"]);
    assert_eq!(names.lines().count(), 3, "{names}");

    let out = mesh.ok(&["delete", "-f", &shop]);
    assert!(out.contains("service \"details\" deleted"), "{out}");
    assert_eq!(mesh.ok(&["get", "svc"]), "");
}

#[test]
fn a_change_is_told_from_a_repetition() {
    let mesh = Mesh::start();
    let rule = |host: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: r}}\nspec: {{host: {host}}}\n"
        )
    };
    let name = "destinationrule.networking.istio.io/r";
    let file = mesh.file("rule.yaml", rule("a"));
    assert_eq!(mesh.ok(&["apply", "-f", &file]), format!("{name} created\n"));
    let file = mesh.file("rule.yaml", rule("b"));
    assert_eq!(mesh.ok(&["apply", "-f", &file]), format!("{name} configured\n"));
    let json = mesh.ok(&["get", "dr", "r", "-o", "json"]);
    assert!(json.contains("\"host\": \"b\""), "{json}");
    let yaml = mesh.ok(&["get", "dr/r", "-o", "yaml"]);
    assert!(yaml.contains("host: b"), "{yaml}");
}

#[test]
fn labels_are_set_kept_and_removed() {
    let mesh = Mesh::start();
    let label = |label| mesh.ok(&["label", "namespace", "default", label]);
    assert_eq!(label("istio-injection=enabled"), "namespace/default labeled\n");
    assert_eq!(label("istio-injection=enabled"), "namespace/default not labeled\n");
    let error = mesh.fails(&["label", "ns", "default", "istio-injection=disabled"]);
    assert!(error.contains("--overwrite is false"), "{error}");
    assert_eq!(label("istio-injection-"), "namespace/default unlabeled\n");
}

#[test]
fn our_own_samples_are_without_fault() {
    let mesh = Mesh::start();
    for folder in ["bookinfo", "bookinfo/networking", "httpbin", "curl", "helloworld", "tcp-echo"] {
        mesh.ok(&["apply", "-f", &sample(folder)]);
    }
}

#[test]
fn nothing_of_a_faulty_apply_is_stored() {
    let mesh = Mesh::start();
    let good = sample("bookinfo/bookinfo.yaml");
    let cases = [
        ("syntax.yaml", &b"apiVersion: [v1\nkind: Service\n"[..], "syntax.yaml:"),
        (
            "field.yaml",
            b"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {prots: []}\n",
            "prots",
        ),
        ("kind.yaml", b"apiVersion: v1\nkind: Servce\nmetadata: {name: a}\n", "Servce"),
        ("bytes.yaml", &[0xff, 0xfe, 0x00], "is not text"),
    ];
    for (name, content, want) in cases {
        let bad = mesh.file(name, content);
        let error = mesh.fails(&["apply", "-f", &good, "-f", &bad]);
        assert!(error.starts_with("error: ") && error.contains(want), "{name}: {error}");
        assert_eq!(mesh.ok(&["get", "svc", "-A"]), "", "{name}");
    }
    let error = mesh.fails(&["apply", "-f", "no-such-file.yaml"]);
    assert!(error.contains("no-such-file.yaml cannot be read"), "{error}");
}

#[test]
fn ten_megabytes_of_garbage_are_refused_quickly() {
    let mesh = Mesh::start();
    let garbage: Vec<u8> =
        (0..10 << 20).map(|i: u32| b"{[a: -\n&*!"[(i as usize * 7) % 10]).collect();
    let file = mesh.file("garbage.yaml", garbage);
    let error = mesh.fails(&["apply", "-f", &file]);
    assert!(error.contains("garbage.yaml"), "{}", &error[..error.len().min(400)]);
}

#[test]
fn what_is_not_there_is_an_error() {
    let mesh = Mesh::start();
    let error = mesh.fails(&["get", "vs", "reviews"]);
    assert_eq!(error, "error: virtualservice.networking.istio.io \"reviews\" not found\n");
    let error = mesh.fails(&["delete", "svc", "a"]);
    assert_eq!(error, "error: service \"a\" not found\n");
    assert_eq!(mesh.ok(&["delete", "svc", "a", "--ignore-not-found"]), "");
    let error = mesh.fails(&["get", "virtualservce"]);
    assert!(error.contains("did you mean"), "{error}");
    let error = mesh.fails(&["exec", "nobody", "--", "true"]);
    assert!(error.contains("pods \"nobody\" not found in namespace default"), "{error}");
}

#[test]
fn without_a_mesh_the_commands_say_how_to_get_one() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let output = run(dir.path(), &["get", "pods"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("no mesh is running on"), "{error}");
    assert!(error.contains("amime up"), "{error}");
}

#[test]
fn an_address_is_given_to_each_service() {
    let mesh = Mesh::start();
    mesh.ok(&["apply", "-f", &sample("bookinfo/bookinfo.yaml")]);
    let json = mesh.ok(&["get", "svc", "details", "-o", "json"]);
    let object: serde_json::Value = serde_json::from_str(&json).expect("is JSON");
    let address = object["spec"]["clusterIP"].as_str().expect("has an address");
    assert!(address.parse::<Ipv4Addr>().is_ok(), "{address}");
}
