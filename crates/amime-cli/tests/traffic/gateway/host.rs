//! Hosts and ports of gateways, and TCP.

use anyhow::ensure;

use super::{EDGE, edge};
use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("hosts of several gateways share a port", hosts),
    ("TCP comes in", tcp),
    ("WebSockets and HTTP/2 come in", upgrades),
];

const HOSTS: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: hosts-a}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 7001, name: http, protocol: HTTP}
    hosts: [a.test, '*.w.test', 'other/only-other.test']
  - port: {number: 7002, name: http-2, protocol: HTTP}
    hosts: [a.test]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: hosts-b, namespace: other}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 7001, name: http, protocol: HTTP}
    hosts: [b.test]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hosts-a}
spec:
  hosts: [a.test, '*.w.test', not-of-the-gateway.test, only-other.test]
  gateways: [hosts-a]
  http:
  - match: [{port: 7002}]
    route: [{destination: {host: two, port: {number: 80}}}]
  - route: [{destination: {host: one, port: {number: 80}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hosts-b}
spec:
  hosts: [b.test]
  gateways: [other/hosts-b, mesh]
  http:
  - match: [{gateways: [mesh]}]
    route: [{destination: {host: one, port: {number: 80}}}]
  - match: [{gateways: [other/hosts-b], uri: {prefix: /far}}]
    route: [{destination: {host: far.other.svc.cluster.local, port: {number: 80}}}]
  - route: [{destination: {host: two, port: {number: 80}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hosts-other, namespace: other}
spec:
  hosts: [only-other.test]
  gateways: [default/hosts-a]
  http: [{route: [{destination: {host: far, port: {number: 80}}}]}]
";

fn hosts(mesh: &Mesh) {
    mesh.apply(HOSTS);
    for (port, host, path, want) in [
        (7001, "a.test", "/", Some("app-v1")),
        (7001, "b.test", "/", Some("app-v2")),
        (7001, "b.test", "/far", Some("far")),
        (7002, "a.test", "/", Some("app-v2")),
        (7001, "x.w.test", "/", Some("app-v1")),
        (7001, "a.test:7001", "/", Some("app-v1")),
        (7001, "A.test", "/", Some("app-v1")),
        // Routes of its own namespace only, as the gateway says.
        (7001, "only-other.test", "/", Some("far")),
        (7001, "not-of-the-gateway.test", "/", None),
        (7002, "x.w.test", "/", None),
        (7001, "unknown.test", "/", None),
    ] {
        mesh.until(|| {
            let answer = edge(mesh, "http", port, host, path).try_send()?;
            ensure!(answer.pod().as_deref() == want, "{host}:{port}{path}: {answer:?}");
            ensure!(answer.status == if want.is_some() { 200 } else { 404 }, "{answer:?}");
            Ok(())
        });
    }
    let mesh_only = mesh.get("client", "http://app/far").host("b.test").send();
    assert_eq!(mesh_only.pod().as_deref(), Some("app-v1"));
    mesh.logged_by("ingressgateway", &["unknown.test", " 404 NR route_not_found"]);
}

const TCP: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: tcp-in}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 31400, name: tcp, protocol: TCP}
    hosts: ['*']
  - port: {number: 7003, name: tcp-greeting, protocol: TCP}
    hosts: ['*']
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tcp-in}
spec:
  hosts: ['*']
  gateways: [tcp-in]
  tcp:
  - match: [{port: 31400}]
    route:
    - {destination: {host: one, port: {number: 9000}}, weight: 80}
    - {destination: {host: two, port: {number: 9000}}, weight: 20}
  - match: [{port: 7003}]
    route: [{destination: {host: two, port: {number: 9001}}}]
";

fn tcp(mesh: &Mesh) {
    mesh.apply(TCP);
    let target = format!("{EDGE}:31400");
    let ask = || mesh.talk("visitor", &target, b"ping", "app-v1 ping".len());
    mesh.until(|| {
        let heard = ask()?;
        ensure!(heard.ends_with(" ping"), "{heard:?}");
        Ok(())
    });
    let second = (0..200).filter(|_| ask().expect("answered") == "app-v2 ping").count();
    assert!((10..=75).contains(&second), "{second} of 200 went to a fifth");
    let want = "hello from app-v2\n";
    mesh.until(|| {
        let heard = mesh.talk("visitor", &format!("{EDGE}:7003"), b"", want.len())?;
        ensure!(heard == want, "{heard:?}");
        Ok(())
    });
}

const UPGRADES: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: upgrades}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 7004, name: http, protocol: HTTP}
    hosts: [upgrades.test]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: upgrades}
spec:
  hosts: [upgrades.test]
  gateways: [upgrades]
  http:
  - match: [{headers: {content-type: {prefix: application/grpc}}}]
    route: [{destination: {host: two, port: {number: 7070}}}]
  - route: [{destination: {host: one, port: {number: 80}}}]
";

fn upgrades(mesh: &Mesh) {
    mesh.apply(UPGRADES);
    let ask = || edge(mesh, "http", 7004, "upgrades.test", "/");
    mesh.until(|| {
        let socket = ask().header("connection", "upgrade").header("upgrade", "websocket");
        let heard = socket.upgrade("ping", "app-v1 ping".len())?;
        ensure!(heard == (101, "app-v1 ping".to_owned()), "{heard:?}");
        Ok(())
    });
    let http2 = ask().http2().send();
    assert_eq!((http2.status, http2.pod().as_deref()), (200, Some("app-v1")));
    let grpc = ask().grpc().send();
    assert_eq!((grpc.trailer("x-pod"), grpc.trailer("grpc-status")), (Some("app-v2"), Some("0")));
}
