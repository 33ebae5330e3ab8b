//! The whole daemon on loopback.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::api;
use crate::store::{Store, StoreOptions};

fn on_loopback(source: SourceConfig, dir: &Path) -> ControlPlaneConfig {
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    ControlPlaneConfig {
        grpc_addr: Some(any),
        secure_grpc_addr: any,
        http_addr: any,
        monitoring_addr: any,
        ..ControlPlaneConfig::new(source, dir.join("ca"))
    }
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("status"), body.to_owned())
}

/// Waits for readiness; a test that never gets ready is ended by its runner.
async fn ready(plane: &ControlPlane) {
    while get(plane.addresses().http, "/ready").await.0 != 200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn files_become_a_ready_control_plane_that_can_be_looked_into() {
    let dir = tempfile::tempdir().expect("dir");
    let config_dir = dir.path().join("config");
    fs::create_dir(&config_dir).expect("dir");
    let objects = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec: {clusterIP: 10.96.0.9, ports: [{port: 9080, name: http}], selector: {app: reviews}}
---
apiVersion: v1
kind: Secret
metadata: {name: s, namespace: default}
stringData: {password: hunter2}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec: {host: reviews}
";
    fs::write(config_dir.join("all.yaml"), objects).expect("written");
    let mesh = "trustDomain: file.example\naccessLogFile: /dev/example\n";
    fs::write(config_dir.join("mesh.yaml"), mesh).expect("written");
    let mut config = on_loopback(SourceConfig::Files(config_dir), dir.path());
    config.trust_domain = Some("flag.example".to_owned());
    let shutdown = CancellationToken::new();
    let plane = ControlPlane::start(config, shutdown.clone()).await.expect("starts");
    ready(&plane).await;

    let page = async |path: &str| {
        let (status, body) = get(plane.addresses().monitoring, path).await;
        assert_eq!(status, 200, "{path}: {body}");
        assert!(!body.contains("hunter2"), "{path} shows a secret");
        body
    };
    assert_eq!(page("/version").await, amime_core::build::VERSION);
    assert!(page("/debug/registryz").await.contains("reviews.default.svc.cluster.local"));
    assert!(page("/debug/configz").await.contains("\"DestinationRule\""));
    let mesh = page("/debug/mesh").await;
    assert!(mesh.contains("flag.example") && mesh.contains("/dev/example"), "{mesh}");
    assert_eq!(page("/debug/syncz").await, "[]");
    page("/debug/endpointz").await;
    page("/debug").await;
    let metrics = page("/metrics").await;
    for name in
        ["pilot_info{", "pilot_services ", "citadel_server_csr_count 0", "pilot_xds ", "# EOF"]
    {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
    let (status, _) = get(plane.addresses().monitoring, "/debug/config_dump?proxyID=x.y").await;
    assert_eq!(status, 404);

    shutdown.cancel();
    plane.wait().await.expect("a clean end");
}

#[tokio::test]
async fn without_its_source_the_control_plane_waits_and_is_not_ready() {
    let dir = tempfile::tempdir().expect("dir");
    let socket = dir.path().join("api");
    let config = on_loopback(SourceConfig::Api(socket.clone()), dir.path());
    let shutdown = CancellationToken::new();
    let plane = ControlPlane::start(config, shutdown.clone()).await.expect("starts");
    assert_eq!(get(plane.addresses().http, "/ready").await.0, 503);
    let (status, why) = get(plane.addresses().monitoring, "/debug/registryz").await;
    assert_eq!((status, why.trim_end()), (503, "waiting for the configuration source"));

    let store = Arc::new(Store::open(StoreOptions::default()).expect("opens"));
    let listener = tokio::net::UnixListener::bind(&socket).expect("free path");
    tokio::spawn(api::serve(listener, api::router(store), shutdown.clone()));
    ready(&plane).await;
    shutdown.cancel();
    plane.wait().await.expect("a clean end");
}

#[tokio::test]
async fn what_cannot_work_is_an_error_at_the_start() {
    #[track_caller]
    fn check(got: Result<ControlPlane, RunError>, want: &str) {
        let error = got.expect_err("must not start").to_string();
        assert!(error.contains(want), "{error:?} does not say {want:?}");
    }
    let dir = tempfile::tempdir().expect("dir");
    let config_dir = dir.path().join("config");
    fs::create_dir(&config_dir).expect("dir");
    let good = || on_loopback(SourceConfig::Files(config_dir.clone()), dir.path());
    let start = |config| ControlPlane::start(config, CancellationToken::new());

    let missing = on_loopback(SourceConfig::Files("/nonexistent".into()), dir.path());
    check(start(missing).await, "cannot read the directory /nonexistent");
    let busy = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let addr = busy.local_addr().expect("bound");
    let config = ControlPlaneConfig { secure_grpc_addr: addr, ..good() };
    check(start(config).await, &format!("cannot listen on {addr} (discovery)"));
    let mesh = dir.path().join("bad.yaml");
    fs::write(&mesh, "trustDomian: a\n").expect("written");
    let config = ControlPlaneConfig { mesh_config: Some(mesh), ..good() };
    check(start(config).await, "bad.yaml:1:1: ");
    fs::write(dir.path().join("ca/ca-key.pem"), "garbage").expect("written");
    check(start(good()).await, "the certificate authority cannot be opened");
}
