//! What the platform promises, one scenario each.

use std::collections::BTreeSet;
use std::net::TcpListener;

use tempfile::TempDir;

use crate::app::fetch;
use crate::mesh::{Mesh, Setup, eventually};

/// A named test.
type Test = (&'static str, fn());

macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        /// All of them.
        pub(crate) const ALL: &[Test] = &[$((stringify!($name), $name as fn())),*];
    };
}

tests![
    pods_reach_services_by_name_and_the_host_reaches_the_gateway,
    a_pod_has_its_own_name_files_and_environment,
    a_container_that_fails_is_restarted_with_back_off,
    a_changed_template_is_rolled_out_without_a_failed_request,
    replicas_follow_scale_and_deleted_workloads_go,
    commands_have_input_output_and_an_exit_code,
    a_second_up_and_a_busy_port_are_named,
    everything_dies_with_a_killed_up_and_the_next_one_starts,
    objects_survive_a_restart,
    faults_of_manifests_and_state_stop_the_start,
    a_job_runs_to_its_end,
    down_stops_a_running_mesh,
    a_meshed_pod_goes_through_its_sidecar,
];

fn dir() -> TempDir {
    tempfile::Builder::new().prefix("amime").tempdir().expect("directory")
}

fn deployment(name: &str, replicas: u32, args: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}, sidecar.istio.io/inject: \"false\"}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: main
          image: example.com/test:1
          args: {args}
          env:
            - {{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
          ports: [{{containerPort: 9080}}]
"
    )
}

fn service(name: &str, app: &str, namespace: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{app: {app}}}
  ports: [{{name: http, port: 80, targetPort: 9080}}]
"
    )
}

const SLEEP: &str = "
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client, sidecar.istio.io/inject: \"false\"}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: test, args: [wait]}]
";

/// A server with a service, and a client.
fn shop(replicas: u32) -> Setup {
    let server = deployment("web", replicas, "[serve, '9080', '$POD']");
    Setup::with(&format!("{server}{}{SLEEP}", service("web", "web", "default")))
}

fn pods_reach_services_by_name_and_the_host_reaches_the_gateway() {
    let dir = dir();
    let mut setup = shop(2);
    let gateway = deployment("gateway", 1, "[serve, '9080', through-the-gateway]")
        .replace("name: gateway", "name: gateway, namespace: istio-system");
    let gateway = gateway.replace(
        "matchLabels: {app: gateway, namespace: istio-system}",
        "matchLabels: {app: gateway}",
    );
    setup
        .files
        .push(format!("{gateway}{}", service("istio-ingressgateway", "gateway", "istio-system")));
    let mesh = setup.up(dir.path());
    let servers: BTreeSet<_> = mesh.pods("web-").into_iter().map(|(name, _)| name).collect();
    for address in ["web:80", "web.default:80", "web.default.svc.cluster.local:80"] {
        let answers: BTreeSet<_> = (0..20).map(|_| mesh.get_from("client", address)).collect();
        assert_eq!(answers, servers, "{address}");
    }
    // A server that calls its own service reaches itself, too.
    let own = mesh.pod("web-");
    let answers: BTreeSet<_> = (0..20).map(|_| mesh.get_from(&own, "web:80")).collect();
    assert_eq!(answers, servers);
    assert!(mesh.get_from("client", "nowhere:80").contains("error"));
    for _ in 0..20 {
        assert_eq!(fetch(&mesh.address()).expect("answered"), "through-the-gateway");
    }
}

fn a_pod_has_its_own_name_files_and_environment() {
    let dir = dir();
    let mesh = shop(1).up(dir.path());
    let script = "uname -n; cat /etc/resolv.conf; cat /etc/hosts; echo $HOSTNAME";
    let (code, out, _) = mesh.exec("client", &["sh", "-c", script], "");
    assert_eq!(code, 0);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], "client");
    assert!(lines.contains(&"nameserver 10.96.0.10"), "{out}");
    assert!(lines.contains(&"search default.svc.cluster.local svc.cluster.local cluster.local"));
    assert!(lines.iter().any(|line| line.starts_with("10.244.") && line.ends_with("client")));
    assert_eq!(lines.last(), Some(&"client"));
    let web = mesh.pod("web-");
    eventually("the log", || mesh.logs("web-").contains(&format!("serving {web}")));
    let status = mesh.call(|client| async move { client.status().await }).expect("status");
    let pod = status.pods.iter().find(|pod| pod.name == web).expect("there");
    assert!(pod.containers[0].rss_bytes > 100_000, "{pod:?}");
    assert!(status.totals.mesh_rss_bytes > 0 && status.totals.ready_pods == 2);
    let body = mesh
        .call(|client| {
            let web = web.clone();
            async move { client.pod_get("default", &web, 9080, "/x?y").await }
        })
        .expect("relayed");
    assert_eq!(body, web.as_bytes());
}

fn a_container_that_fails_is_restarted_with_back_off() {
    let dir = dir();
    let mesh = shop(1).up(dir.path());
    mesh.apply(&deployment("broken", 1, "[crash]")).expect("applied");
    let state = || {
        let status = mesh.call(|client| async move { client.status().await }).expect("status");
        let pod = status.pods.into_iter().find(|pod| pod.name.starts_with("broken-"));
        pod.map(|pod| (pod.state, pod.containers[0].restarts, pod.ready))
    };
    eventually("back-off", || {
        state().is_some_and(|(state, restarts, ready)| {
            state == "CrashLoopBackOff" && restarts >= 2 && !ready
        })
    });
    assert!(mesh.logs("broken-").matches("about to fail").count() >= 2);
}

fn a_changed_template_is_rolled_out_without_a_failed_request() {
    let dir = dir();
    let mesh = shop(2).up(dir.path());
    let before: BTreeSet<_> = mesh.pods("web-").into_iter().map(|(name, _)| name).collect();
    let changed = deployment("web", 2, "[serve, '9080', '$POD', changed]");
    mesh.apply(&changed).expect("applied");
    let mut seen = BTreeSet::new();
    eventually("the new pods serve alone", || {
        let answer = mesh.get_from("client", "web:80");
        assert!(answer.starts_with("web-"), "{answer}");
        seen.insert(answer);
        let now: BTreeSet<_> = mesh.pods("web-").into_iter().map(|(name, _)| name).collect();
        now.len() == 2 && now.is_disjoint(&before) && now.is_subset(&seen)
    });
}

fn replicas_follow_scale_and_deleted_workloads_go() {
    let dir = dir();
    let mesh = shop(1).up(dir.path());
    let scale = |n| mesh.call(|client| async move { client.scale("default", "web", n).await });
    scale(3).expect("scaled");
    let ready = || mesh.pods("web-").iter().filter(|(_, ready)| *ready).count();
    eventually("three ready pods", || ready() == 3);
    scale(0).expect("scaled");
    eventually("no pods", || mesh.pods("web-").is_empty());
    assert!(mesh.get_from("client", "web:80").contains("error"));
    scale(1).expect("scaled");
    eventually("one ready pod", || ready() == 1);
    mesh.call(|client| async move {
        client.objects().delete("deployment", Some("default"), "web").await
    })
    .expect("deleted");
    eventually("gone with its owner", || mesh.pods("web-").is_empty());
    let error = scale(1).expect_err("gone").to_string();
    assert!(error.contains("\"web\" not found"), "{error}");
}

fn commands_have_input_output_and_an_exit_code() {
    let dir = dir();
    let mesh = shop(1).up(dir.path());
    let big = "0123456789".repeat(50_000);
    let (code, out, err) = mesh.exec("client", &["sh", "-c", "cat; echo no >&2; exit 5"], &big);
    assert_eq!((code, out.len(), err.as_str()), (5, big.len(), "no\n"));
    assert_eq!(out, big);
    let (code, ..) = mesh.exec("client", &["sh", "-c", "kill -9 $$"], "");
    assert_eq!(code, 128 + 9);
    let request = amime_local::client::ExecRequest {
        namespace: "default".into(),
        pod: "client".into(),
        container: None,
        command: vec!["/no/such/program".into()],
    };
    let mut sink = (Vec::new(), Vec::new());
    let error = mesh
        .call(|client| {
            let (out, err) = (&mut sink.0, &mut sink.1);
            let request = &request;
            async move { client.exec(request, &b""[..], out, err).await }
        })
        .expect_err("no program");
    assert!(error.to_string().contains("/no/such/program"), "{error}");
}

fn a_second_up_and_a_busy_port_are_named() {
    let dir = dir();
    let mesh = shop(1).up(dir.path());
    let error = Setup::default().fails(dir.path());
    assert!(error.contains("already running") && error.contains(&mesh.url), "{error}");
    assert!(error.contains("amime down"), "{error}");
    let other = self::dir();
    let busy = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = busy.local_addr().expect("bound").port();
    let error = Setup { port, ..Setup::default() }.fails(other.path());
    assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("--port"), "{error}");
    assert!(error.contains(&std::process::id().to_string()), "names the holder: {error}");
}

/// Processes whose command line has this in it, of any namespace.
fn processes(mark: &str) -> usize {
    let own = std::process::id().to_string();
    std::fs::read_dir("/proc")
        .expect("proc")
        .flatten()
        .filter(|entry| entry.file_name().to_str() != Some(&own))
        .filter(|entry| {
            let path = entry.path().join("cmdline");
            std::fs::read(path).is_ok_and(|line| String::from_utf8_lossy(&line).contains(mark))
        })
        .count()
}

fn everything_dies_with_a_killed_up_and_the_next_one_starts() {
    let dir = dir();
    let mark = format!("mark-{}", std::process::id());
    let setup = Setup::with(&deployment("web", 2, &format!("[serve, '9080', {mark}]")));
    let mut mesh = setup.up(dir.path());
    assert_eq!(processes(&mark), 2);
    // SIGKILL: no handler of ours runs.
    mesh.process.kill().expect("killed");
    mesh.process.wait().expect("waited");
    eventually("no process is left", || processes(&mark) == 0);
    let mesh = setup.up(dir.path());
    eventually("the new pods only", || mesh.pods("web-").len() == 2);
}

fn objects_survive_a_restart() {
    let dir = dir();
    let mut mesh = shop(1).up(dir.path());
    mesh.apply(&service("later", "web", "default")).expect("applied");
    stop(&mut mesh);
    let bare = Setup { files: vec![], ..shop(1) };
    let mesh = bare.up(dir.path());
    eventually("the pods are back", || mesh.pods("web-").iter().any(|(_, ready)| *ready));
    eventually("the service too", || mesh.get_from("web-", "later:80").starts_with("web-"));
    drop(mesh);
    // The image of a stored workload is unknown now.
    let error = Setup::default().fails(dir.path());
    assert!(error.contains("Deployment default/web") && error.contains("--image"), "{error}");
}

fn stop(mesh: &mut Mesh) {
    mesh.call(|client| async move { client.shutdown().await }).expect("told");
    assert!(mesh.process.wait().expect("ended").success());
}

fn faults_of_manifests_and_state_stop_the_start() {
    let fails = |manifest: &str| Setup::with(manifest).fails(dir().path());
    let unknown = deployment("web", 1, "[wait]").replace("example.com/test:1", "nginx:1.27");
    let error = fails(&unknown);
    for part in ["Deployment default/web", "\"nginx:1.27\"", "--image nginx:1.27=COMMAND"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    let error = fails("{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containerz: []}}");
    assert!(error.contains("test.yaml:1:") && error.contains("containerz"), "{error}");

    let dir = dir();
    let mut mesh = shop(1).up(dir.path());
    let error = mesh.apply(&unknown).expect_err("refused");
    assert!(error.contains("--image nginx:1.27"), "{error}");
    assert!(mesh.pods("web-").iter().all(|(_, ready)| *ready), "nothing was applied");
    stop(&mut mesh);
    let journal = amime_control::store::journal_path(&dir.path().join("objects"));
    let text = std::fs::read_to_string(&journal).expect("journal");
    std::fs::write(&journal, format!("garbage\n{text}")).expect("written");
    let error = shop(1).fails(dir.path());
    assert!(error.contains("objects"), "{error}");
}

fn a_job_runs_to_its_end() {
    let dir = dir();
    let job = "
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  template:
    metadata: {labels: {sidecar.istio.io/inject: \"false\"}}
    spec:
      restartPolicy: Never
      containers: [{name: main, image: test, args: [print, done]}]
";
    let mesh = Setup::with(job).up(dir.path());
    let succeeded = || {
        let jobs =
            mesh.call(|client| async move {
                client.objects().objects("jobs", Some("default"), None).await
            })
            .expect("listed");
        jobs.items[0]["status"]["succeeded"] == 1
    };
    eventually("the job succeeds", succeeded);
    assert_eq!(mesh.logs("once-"), "done\n");
}

fn down_stops_a_running_mesh() {
    let dir = dir();
    let mut mesh = shop(1).up(dir.path());
    let down = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(amime_local::down(Some(dir.path()))).expect("down")
    };
    assert_eq!(down(), amime_local::Down::Stopped);
    assert!(mesh.process.wait().expect("ended").success());
    assert_eq!(down(), amime_local::Down::NothingThere);
    assert!(!dir.path().join("api.sock").exists());
    std::fs::write(dir.path().join("api.sock"), "").expect("written");
    assert_eq!(down(), amime_local::Down::Cleaned);
}

fn a_meshed_pod_goes_through_its_sidecar() {
    let dir = dir();
    let mesh = shop(1).up(dir.path());
    // The namespace is labelled for injection, only the pods opted out.
    let meshed =
        deployment("meshed", 1, "[serve, '9080', direct]").replace("\"false\"", "\"true\"");
    mesh.apply(&format!("{meshed}{}", service("meshed", "meshed", "default"))).expect("applied");
    eventually("ready", || mesh.pods("meshed-").iter().any(|(_, ready)| *ready));
    let this = std::env::current_exe().expect("own path");
    let get = |address: &str| {
        let command = [this.to_str().expect("text"), "app", "get", address];
        mesh.exec("meshed-", &command, "").1
    };
    // By address, because there is no DNS proxy behind the stand-in.
    assert_eq!(get("10.96.200.200:80"), "outbound 80");
    assert_eq!(get("127.0.0.1:9080"), "direct");
    assert_eq!(mesh.get_from("client", "meshed:80"), "inbound 9080");

    let proxy_log = || {
        let request = amime_local::client::LogRequest {
            namespace: "default".into(),
            pod: mesh.pod("meshed-"),
            container: Some("istio-proxy".into()),
            ..Default::default()
        };
        let mut out = Vec::new();
        let result = mesh.call(|client| {
            let (out, request) = (&mut out, &request);
            async move { client.logs(request, out).await }
        });
        result.expect("logs");
        String::from_utf8(out).expect("text")
    };
    assert_eq!(proxy_log(), "sidecar meshed meshed starts=1 token=3\n");
    let (_, _, error) = mesh.exec("meshed-", &["sh", "-c", KILL_PROXY], "");
    assert_eq!(error, "");
    eventually("restarted with its identity", || proxy_log().contains("starts=2"));
    eventually("ready again", || mesh.pods("meshed-").iter().any(|(_, ready)| *ready));
    let status = mesh.call(|client| async move { client.status().await }).expect("status");
    assert_eq!(status.totals.meshed_pods, 1);
}

/// Kills what runs as `proxy sidecar`; there is one in these tests.
const KILL_PROXY: &str = "for p in /proc/[0-9]*; do \
    if tr '\\0' ' ' < $p/cmdline | grep -q 'proxy sidecar'; then kill -9 ${p#/proc/}; fi; done";
