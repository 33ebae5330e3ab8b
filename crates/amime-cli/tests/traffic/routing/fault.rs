//! Faults that routes inject.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{call, service, to};
use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[("routes delay and abort", faults)];

const FAULTS: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: faults}
spec:
  hosts: [faults.test, faults]
  http:
  - match: [{uri: {exact: /delay}}]
    fault: {delay: {fixedDelay: 400ms, percentage: {value: 100}}}
    route: [{destination: {host: one}}]
  - match: [{uri: {exact: /abort}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: one}}]
  - match: [{uri: {exact: /both}}]
    fault:
      delay: {fixedDelay: 400ms, percentage: {value: 100}}
      abort: {httpStatus: 503, percentage: {value: 100}}
    route: [{destination: {host: one}}]
  - match: [{uri: {exact: /never}}]
    fault: {abort: {httpStatus: 500, percentage: {value: 0}}}
    route: [{destination: {host: one}}]
  - match: [{uri: {exact: /half}}]
    fault: {abort: {httpStatus: 500, percentage: {value: 50}}}
    route: [{destination: {host: one}}]
  - match: [{uri: {prefix: /pkg.Service/}}]
    fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}
    route: [{destination: {host: one, port: {number: 7070}}}]
  - route: [{destination: {host: one}}]
";

fn faults(mesh: &Mesh) {
    mesh.apply(&(service("faults") + FAULTS));
    let aborted = mesh.until(|| {
        let answer = to(mesh, "faults.test", "/abort").try_send()?;
        ensure!(answer.status == 418, "{answer:?}");
        Ok(answer)
    });
    assert_eq!(aborted.body, "fault filter abort");
    mesh.logged("default", "client", &["/abort", " 418 FI fault_filter_abort"]);
    let timed = |path: &str| {
        let started = Instant::now();
        let answer = to(mesh, "faults.test", path).send();
        (answer.status, started.elapsed() >= Duration::from_millis(400))
    };
    assert_eq!(timed("/delay"), (200, true));
    mesh.logged("default", "client", &["/delay", " 200 DI via_upstream"]);
    assert_eq!(timed("/both"), (503, true));
    mesh.logged("default", "client", &["/both", " 503 DI,FI fault_filter_abort"]);
    assert_eq!(timed("/"), (200, false));
    let failed = |path: &str| {
        let mut connection = to(mesh, "faults.test", path).connect().expect("connects");
        let ask = || to(mesh, "faults.test", path);
        let answers = (0..200).map(|_| ask().over(&mut connection).expect("answered").status);
        answers.filter(|status| *status == 500).count()
    };
    assert_eq!(failed("/never"), 0);
    let half = failed("/half");
    assert!((58..=142).contains(&half), "{half} of 200 were aborted");
    let grpc = call(mesh, "faults", "/pkg.Service/Call").send();
    assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("14")), "{grpc:?}");
}
