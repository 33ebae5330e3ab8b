//! The agent against a control plane of this process.

mod control;

use std::os::fd::{AsFd, IntoRawFd};
use std::time::Duration;

use amime_xds::TypeUrl;
use amime_xds::istio::nds::{NameInfo, NameTable};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use self::control::Control;
use super::lifecycle::Agent;
use super::*;

/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(20);

async fn request(method: Method, port: u16, path: &str) -> (StatusCode, String) {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("server listens");
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut send, connection) = handshake.expect("handshake");
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "localhost");
    let request = request.body(Empty::<Bytes>::new()).expect("valid");
    let response = send.send_request(request).await.expect("answer");
    let status = response.status();
    let body = response.into_body().collect().await.expect("body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

async fn get(port: u16, path: &str) -> (StatusCode, String) {
    request(Method::GET, port, path).await
}

/// Waits until `holds` does.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "never: {what}");
}

async fn until_ready(agent: &Agent) {
    let port = agent.servers.ready.address().port();
    until("ready", async || get(port, "/healthz/ready").await.0 == StatusCode::OK).await;
}

fn names() -> NameTable {
    let info = NameInfo { ips: vec!["10.96.0.1".into()], ..NameInfo::default() };
    NameTable { table: [("reviews.default.svc.cluster.local".to_owned(), info)].into() }
}

#[tokio::test]
async fn a_sidecar_gets_identity_configuration_and_names() {
    let control = Control::start().await;
    control.serve_bookinfo();
    let agent = Agent::start(control.agent_config(), Outside::default()).await.expect("starts");
    until_ready(&agent).await;

    let admin = agent.servers.admin.address().port();
    assert_eq!(get(admin, "/ready").await, (StatusCode::OK, "LIVE\n".into()));
    let (_, dump) = get(admin, "/config_dump").await;
    let dump: serde_json::Value = serde_json::from_str(&dump).expect("JSON");
    let section = |name: &str| {
        let sections = dump["configs"].as_array().expect("sections");
        let of = |one: &&serde_json::Value| one["@type"].as_str().unwrap_or("").ends_with(name);
        sections.iter().find(of).cloned().unwrap_or_default()
    };
    let clusters = section("ClustersConfigDump");
    assert_eq!(clusters["dynamic_active_clusters"][0]["cluster"]["name"], "BlackHoleCluster");
    let secrets = section("SecretsConfigDump").to_string();
    assert!(secrets.contains("\"default\"") && secrets.contains("\"ROOTCA\""), "{secrets}");
    assert!(!dump.to_string().contains("PRIVATE KEY"));
    let node = section("BootstrapConfigDump")["bootstrap"]["node"].clone();
    assert_eq!(node["id"], "sidecar~10.0.0.7~reviews-v1-0.default~default.svc.cluster.local");

    let (_, certs) = get(admin, "/certs").await;
    assert!(certs.contains("spiffe://cluster.local/ns/default/sa/bookinfo-reviews"), "{certs}");
    assert!(agent.dns.as_ref().is_some_and(|dns| dns.is_synced()));

    let status = agent.servers.status.address().port();
    let (_, metrics) = get(status, "/stats/prometheus").await;
    assert!(metrics.contains("envoy_control_plane_connected_state{} 1"), "{metrics}");
    let (quit, _) = get(status, "/quitquitquit").await;
    assert_eq!(quit, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn without_a_certificate_it_is_not_ready_and_says_so() {
    let control = Control::start().await;
    control.serve_bookinfo();
    control.refuse_certificates(true);
    let agent = Agent::start(control.agent_config(), Outside::default()).await.expect("starts");
    let port = agent.servers.status.address().port();
    let reason = async || get(port, "/healthz/ready").await.1;
    until("only the certificate is missing", async || {
        reason().await == "proxy is not ready: no workload certificate yet\n"
    })
    .await;
    control.refuse_certificates(false);
    until_ready(&agent).await;
}

#[tokio::test]
async fn the_certificate_is_renewed_before_it_ends() {
    let control = Control::start().await;
    control.serve_bookinfo();
    let mut config = control.agent_config();
    config.secret_ttl = Duration::from_secs(3);
    let agent = Agent::start(config, Outside::default()).await.expect("starts");
    until_ready(&agent).await;
    let identity = agent.context.identity.clone().expect("identity");
    let serial = || identity.cert.current().expect("certificate").details().serial.clone();
    let first = serial();
    until("a new certificate", async || serial() != first).await;
    let (_, present) = get(agent.servers.ready.address().port(), "/healthz/ready").await;
    assert_eq!(present, "");
}

#[tokio::test]
async fn a_restart_without_a_control_plane_serves_the_last_good_configuration() {
    let control = Control::start().await;
    control.serve_bookinfo();
    let memory = amime_net::socket::memfd(c"identity").expect("memfd");
    let inherit = || {
        let copy = memory.as_fd().try_clone_to_owned().expect("descriptor");
        Some(copy.into_raw_fd())
    };
    let dir = tempfile::tempdir().expect("directory");
    let mut config = control.agent_config();
    config.state_dir = Some(dir.path().to_owned());
    config.identity_fd = inherit();
    let first = Agent::start(config.clone(), Outside::default()).await.expect("starts");
    until_ready(&first).await;
    let saved = dir.path().join("last-good.pb");
    until("saved", async || saved.exists()).await;
    drop(first);
    control.stop();

    config.identity_fd = inherit();
    let second = Agent::start(config, Outside::default()).await.expect("starts");
    until_ready(&second).await;
    assert!(second.dns.as_ref().is_some_and(|dns| dns.is_synced()));
    let resources = second.context.runtime.dump().resources;
    assert!(resources.iter().any(|one| one.type_url == TypeUrl::Cluster));
    let saved = std::fs::read(&saved).expect("readable");
    assert!(!String::from_utf8_lossy(&saved).contains("PRIVATE KEY"));
}

#[tokio::test]
async fn an_operators_wish_to_quit_ends_the_process() {
    let control = Control::start().await;
    let agent = Agent::start(control.agent_config(), Outside::default()).await.expect("starts");
    let (admin, status) =
        (agent.servers.admin.address().port(), agent.servers.status.address().port());
    let context = agent.context.clone();
    let end = tokio::spawn(async move { until_end(&context, Duration::ZERO).await });
    // The wish counts also if it is uttered before anybody listens.
    tokio::task::yield_now().await;
    let (code, _) = request(Method::POST, status, "/quitquitquit").await;
    assert_eq!(code, StatusCode::OK);
    let ended = tokio::time::timeout(PATIENCE, end).await;
    assert!(matches!(ended, Ok(Ok(Ok(())))), "{ended:?}");
    assert_eq!(get(admin, "/ready").await.1, "DRAINING\n");
}
