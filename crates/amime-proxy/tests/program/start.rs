//! Start, check and end.

use std::process::Output;

use crate::running::{Running, ask, command, wait};

const BOOTSTRAP: &str = "
node: {id: test, cluster: test}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  clusters:
  - {name: app, connect_timeout: 1s, type: STATIC}
";

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
fn all_faults_are_told_at_once() {
    let bootstrap = format!(
        "{BOOTSTRAP}  - {{name: app, connect_timeout: 1s}}\n  - {{name: odd, type: STATIC, \
         load_assignment: {{endpoints: [{{lb_endpoints: [{{endpoint: {{}}}}]}}]}}}}\nflags_path: x\n"
    );
    let output = validate(&bootstrap, &[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    for want in ["static_resources.clusters[1].name", "static_resources.clusters[2]", "flags_path"]
    {
        assert!(error.contains(want), "{want} in {error}");
    }
}

#[test]
fn a_check_takes_no_port() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let listener = format!(
        "  listeners:\n  - name: l\n    address: {{socket_address: {{address: 127.0.0.1, \
         port_value: {port}}}}}\n    filter_chains: [{{}}]\n"
    );
    let output = validate(&format!("{BOOTSTRAP}{listener}"), &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("OK"));
}

#[test]
fn envoys_flags_are_taken_and_idle_ones_named() {
    let flags = [
        "--use-dynamic-base-id",
        "--drain-strategy",
        "immediate",
        "--service-zone",
        "z",
        "-l",
        "warning",
        "--file-flush-interval-msec",
        "100",
        "--disable-hot-restart",
        "--cpuset-threads",
        "--bootstrap-version",
        "3",
        "--ignore-unknown-dynamic-fields",
    ];
    let output = validate(BOOTSTRAP, &flags);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    for flag in ["--use-dynamic-base-id", "--drain-strategy", "--file-flush-interval-msec"] {
        assert!(error.contains(flag), "{flag} in {error}");
    }
    assert!(!error.contains("--cpuset-threads"), "{error}");
    assert!(!validate(BOOTSTRAP, &["--bootstrap-version", "2"]).status.success());
    let lenient = BOOTSTRAP.replace("connect_timeout", "conect_timeout");
    assert!(validate(&lenient, &["--allow-unknown-static-fields"]).status.success());
}

#[test]
fn what_has_no_effect_is_refused_unless_allowed() {
    let bootstrap = format!("{BOOTSTRAP}stats_flush_interval: 5s\n");
    check_refused(&bootstrap, "stats_flush_interval");
    assert!(validate(&bootstrap, &["--allow-unsupported"]).status.success());
}

#[test]
fn requests_to_the_admin_port_are_logged() {
    let dir = tempfile::tempdir().expect("directory");
    let log = dir.path().join("admin.log");
    let path = format!("admin: {{access_log_path: {}, ", log.display());
    let (_running, address) = Running::start(dir.path(), &BOOTSTRAP.replace("admin: {", &path));
    ask(&address, "GET", "/certs?x=1");
    wait("a line", || {
        let lines = std::fs::read_to_string(&log).ok()?;
        lines.contains("\"GET /certs?x=1 HTTP/1.1\" 200").then_some(())
    });
}

#[test]
fn it_serves_its_configuration_and_ends_when_asked() {
    let dir = tempfile::tempdir().expect("directory");
    let (mut running, address) = Running::start(dir.path(), BOOTSTRAP);
    let help = ask(&address, "GET", "/");
    assert!(help.starts_with("HTTP/1.1 200"), "{help}");
    for endpoint in ["/certs", "/clusters", "/config_dump", "/listeners", "/logging", "/stats"] {
        assert!(help.contains(&format!("\n  {endpoint}")), "{endpoint} in {help}");
    }
    let dump = ask(&address, "GET", "/config_dump");
    assert!(dump.contains("static_clusters") && dump.contains("\"app\""), "{dump}");
    assert!(ask(&address, "POST", "/quitquitquit").contains("OK"));
    let status = wait("end", || running.child.try_wait().expect("a child"));
    assert!(status.success());
}
