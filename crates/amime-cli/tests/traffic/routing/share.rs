//! Several destinations at a time: weights and mirrors.

use anyhow::ensure;

use super::to;
use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("weights share requests", weights),
    ("mirrors get copies, and their answers are dropped", mirrors),
];

const WEIGHTS: &str = r"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: weights}
spec:
  host: app
  exportTo: [.]
  subsets:
  - {name: w1, labels: {version: v1}}
  - {name: w2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: weights}
spec:
  hosts: [weights.test]
  http:
  - match: [{uri: {exact: /all}}]
    route:
    - {destination: {host: app, subset: w1, port: {number: 80}}, weight: 0}
    - {destination: {host: app, subset: w2, port: {number: 80}}, weight: 100}
  - route:
    - {destination: {host: app, subset: w1, port: {number: 80}}, weight: 80}
    - {destination: {host: app, subset: w2, port: {number: 80}}, weight: 20}
";

fn weights(mesh: &Mesh) {
    mesh.apply(WEIGHTS);
    mesh.until(|| {
        let answer = to(mesh, "weights.test", "/all").try_send()?;
        ensure!(answer.pod().is_some(), "{answer:?}");
        Ok(())
    });
    let count = |path: &str, requests: usize| {
        let mut connection = to(mesh, "weights.test", path).connect().expect("connects");
        let pods = (0..requests).map(|_| {
            let answer = to(mesh, "weights.test", path).over(&mut connection).expect("answered");
            answer.pod()
        });
        pods.filter(|pod| pod.as_deref() == Some("app-v2")).count()
    };
    assert_eq!(count("/all", 50), 50);
    // Six standard deviations around a fifth.
    let second = count("/", 400);
    assert!((32..=128).contains(&second), "{second} of 400 went to a fifth");
}

const MIRRORS: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: mirrors}
spec:
  hosts: [mirrors.test]
  http:
  - match: [{uri: {exact: /one}}]
    mirror: {host: two, port: {number: 80}}
    route: [{destination: {host: one}}]
  - match: [{uri: {exact: /several}}]
    mirrors:
    - {destination: {host: two, port: {number: 80}}, percentage: {value: 100}}
    - {destination: {host: far.other.svc.cluster.local, port: {number: 80}}}
    route: [{destination: {host: one}}]
  - match: [{uri: {exact: /half}}]
    mirror: {host: two, port: {number: 80}}
    mirrorPercentage: {value: 50}
    route: [{destination: {host: one}}]
  - mirror: {host: two, port: {number: 80}}
    mirrorPercentage: {value: 0}
    route: [{destination: {host: one}}]
";

fn mirrors(mesh: &Mesh) {
    mesh.apply(MIRRORS);
    mesh.until(|| {
        let answer = to(mesh, "mirrors.test", "/one").try_send()?;
        ensure!(answer.pod().as_deref() == Some("app-v1"), "{answer:?}");
        Ok(())
    });
    let pods = |case: &str| {
        let mut pods: Vec<_> = mesh.seen(case).into_iter().map(|seen| seen.pod).collect();
        pods.sort();
        pods
    };
    let send = |path: &str, case: &str| {
        let answer =
            to(mesh, "mirrors.test", path).case(case).method("POST").body("copy me").send();
        assert_eq!(answer.pod().as_deref(), Some("app-v1"));
    };
    send("/one", "mirror");
    mesh.until(|| {
        ensure!(pods("mirror") == ["app-v1", "app-v2"], "{:?}", pods("mirror"));
        Ok(())
    });
    let seen = mesh.seen("mirror");
    let copy = seen.iter().find(|seen| seen.pod == "app-v2").expect("seen above");
    assert_eq!(copy.header("host"), Some("mirrors.test"));
    send("/several", "mirrors");
    mesh.until(|| {
        ensure!(pods("mirrors") == ["app-v1", "app-v2", "far"], "{:?}", pods("mirrors"));
        Ok(())
    });
    for _ in 0..200 {
        send("/half", "half");
    }
    send("/none", "none");
    // Copies are on their way after the answer; this one is the last of them.
    send("/one", "last");
    mesh.until(|| {
        ensure!(pods("last").len() == 2, "{:?}", pods("last"));
        Ok(())
    });
    let copies = pods("half").len() - 200;
    assert!((58..=142).contains(&copies), "{copies} copies of 200 requests");
    assert_eq!(pods("none"), ["app-v1"]);
}
