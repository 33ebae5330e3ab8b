//! Timeouts and retries.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{call, service, to};
use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("a request that takes too long ends", timeouts),
    ("requests are tried again on what the policy names", retries),
];

const TIMEOUTS: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: timeouts}
spec:
  hosts: [timeouts.test, timeouts]
  http:
  - match: [{uri: {prefix: /short}}]
    timeout: 200ms
    route: [{destination: {host: one, port: {number: 80}}}]
  - route: [{destination: {host: one, port: {number: 80}}}]
";

fn timeouts(mesh: &Mesh) {
    mesh.apply(&(service("timeouts") + TIMEOUTS));
    let slow = to(mesh, "timeouts.test", "/short").order("delay=3000");
    let answer = mesh.until(|| {
        let started = Instant::now();
        let answer = slow.clone().try_send()?;
        ensure!(answer.status == 504, "{answer:?}");
        let took = started.elapsed();
        ensure!(took >= Duration::from_millis(200) && took < Duration::from_secs(3), "{took:?}");
        Ok(answer)
    });
    assert_eq!(answer.body, "upstream request timeout");
    mesh.logged("default", "client", &["/short", " 504 UT response_timeout"]);
    // Without a timeout of the route there is none.
    let patient = to(mesh, "timeouts.test", "/").order("delay=500").send();
    assert_eq!(patient.status, 200);
    let grpc = call(mesh, "timeouts", "/short.Service/Call").order("delay=3000").send();
    assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("14")), "{grpc:?}");
}

const RETRIES: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: retries}
spec:
  hosts: [retries.test, retries]
  http:
  - match: [{uri: {exact: /5xx}}]
    retries: {attempts: 3, retryOn: 5xx, backoff: 1ms}
    route: [{destination: {host: one}}]
  - match: [{uri: {exact: /number}}]
    retries: {attempts: 2, retryOn: '418,connect-failure', backoff: 1ms}
    route: [{destination: {host: one}}]
  - match: [{uri: {exact: /try}}]
    retries: {attempts: 2, perTryTimeout: 300ms, retryOn: gateway-error, backoff: 1ms}
    route: [{destination: {host: one}}]
  - match: [{uri: {exact: /reset}}]
    retries: {attempts: 2, retryOn: reset, backoff: 1ms}
    route: [{destination: {host: external.outside.svc.cluster.local, port: {number: 80}}}]
  - match: [{uri: {exact: /none}}]
    retries: {attempts: 0}
    route: [{destination: {host: one}}]
  - match: [{uri: {prefix: /pkg.Service/}}]
    retries: {attempts: 2, retryOn: 'unavailable,resource-exhausted', backoff: 1ms}
    route: [{destination: {host: one, port: {number: 7070}}}]
  - route: [{destination: {host: one}}]
";

fn retries(mesh: &Mesh) {
    mesh.apply(&(service("retries") + RETRIES));
    mesh.until(|| {
        let answer = to(mesh, "retries.test", "/").try_send()?;
        ensure!(answer.pod().is_some(), "{answer:?}");
        Ok(())
    });
    // Path, orders, status and number of tries.
    for (case, path, orders, status, tries) in [
        ("r-heals", "/5xx", "status=500@2", 200, 3),
        ("r-spent", "/5xx", "status=500", 500, 4),
        ("r-other", "/5xx", "status=404", 404, 1),
        ("r-number", "/number", "status=418@1", 200, 2),
        ("r-not", "/number", "status=503@1", 503, 1),
        ("r-try", "/try", "delay=5000@1", 200, 2),
        ("r-try-spent", "/try", "delay=5000", 504, 3),
        ("r-reset", "/reset", "hang-up@1", 200, 2),
        ("r-none", "/none", "status=503@1", 503, 1),
        // Without a policy, only what is known not to have been processed.
        ("r-default", "/", "status=503@1", 503, 1),
    ] {
        let answer = to(mesh, "retries.test", path).case(case).order(orders).send();
        let seen = mesh.seen(case).len();
        assert_eq!((answer.status, seen), (status, tries), "{case}");
    }
    // A sidecar in front of the server makes an answer of it, once it has seen
    // that a connection of its own was not just kept for too long.
    let answer = to(mesh, "retries.test", "/number").case("r-reset-inside").order("hang-up").send();
    let seen = mesh.seen("r-reset-inside").len();
    assert!(answer.status == 503 && (seen == 1 || seen == 2), "{seen} tries of {answer:?}");
    mesh.logged("default", "client", &["/5xx", " 500 URX via_upstream"]);
    for (case, orders, status, tries) in [
        ("r-grpc", "grpc=14@1", "0", 2),
        ("r-grpc-exhausted", "grpc=8", "8", 3),
        ("r-grpc-other", "grpc=5", "5", 1),
    ] {
        let ask = call(mesh, "retries", "/pkg.Service/Call").case(case);
        let answer = ask.order(&format!("{orders} trailers-only")).send();
        let said = answer.header("grpc-status").or(answer.trailer("grpc-status"));
        assert_eq!((said, mesh.seen(case).len()), (Some(status), tries), "{case}: {answer:?}");
    }
}
