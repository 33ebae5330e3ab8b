//! What is not plain HTTP: gRPC, upgrades, tunnels, TCP and TLS.

use anyhow::ensure;

use super::{call, service};
use crate::Test;
use crate::mesh::Mesh;
use crate::tls::ClientTls;

pub(super) const TESTS: &[Test] = &[
    ("gRPC calls are routed by service", grpc),
    ("WebSockets go through", websocket),
    ("TCP is routed and shared by weight", tcp),
    ("a server may speak first", server_first),
    ("TLS is routed by server name", sni),
    ("TCP goes through a tunnel", tunnel),
];

const GRPC: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: grpc}
spec:
  hosts: [grpc]
  http:
  - match: [{uri: {prefix: /pkg.One/}}]
    route: [{destination: {host: one, port: {number: 7070}}}]
  - route: [{destination: {host: two, port: {number: 7070}}}]
";

fn grpc(mesh: &Mesh) {
    mesh.apply(&(service("grpc") + GRPC));
    let call = |service: &str| call(mesh, "grpc", &format!("/{service}/Call"));
    let answer = mesh.until(|| {
        let answer = call("pkg.One").try_send()?;
        ensure!(answer.trailer("x-pod") == Some("app-v1"), "{answer:?}");
        Ok(answer)
    });
    assert_eq!((answer.status, answer.trailer("grpc-status")), (200, Some("0")));
    assert_eq!(answer.body, "\0\0\0\0\u{4}ping");
    assert_eq!(call("pkg.Two").send().trailer("x-pod"), Some("app-v2"));
    let failed = call("pkg.Two").order("grpc=7").send();
    assert_eq!((failed.status, failed.trailer("grpc-status")), (200, Some("7")));
}

fn websocket(mesh: &Mesh) {
    // Without proxies, with one on either side, with both.
    for (pod, host, server) in [
        ("visitor", "external.outside", "external-"),
        ("client", "external.outside", "external-"),
        ("visitor", "one.default", "app-v1"),
        ("client", "one.default", "app-v1"),
    ] {
        let ask = mesh.get(pod, &format!("http://{host}/socket")).header("connection", "Upgrade");
        let ask = ask.header("upgrade", "websocket").header("sec-websocket-version", "13");
        let (status, heard) = ask.upgrade("ping", 11).expect("answered");
        assert_eq!(status, 101, "{pod} to {host}");

        assert!(
            heard.starts_with(server) && heard.ends_with(" ping"),
            "{pod} to {host}: {heard:?}"
        );
    }
}

const TCP: &str = r"
apiVersion: v1
kind: Service
metadata: {name: shared}
spec:
  selector: {app: none}
  ports: [{name: tcp, port: 9000}, {name: tcp-all, port: 9100, targetPort: 9000}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shared}
spec:
  hosts: [shared]
  tcp:
  - match: [{port: 9100}]
    route: [{destination: {host: two, port: {number: 9000}}}]
  - match: [{port: 9000, sourceLabels: {app: client}}]
    route:
    - {destination: {host: one, port: {number: 9000}}, weight: 75}
    - {destination: {host: two, port: {number: 9000}}, weight: 25}
";

fn tcp(mesh: &Mesh) {
    mesh.apply(TCP);
    let ask = |target: &str| mesh.talk("client", target, b"ping", "app-v1 ping".len());
    mesh.until(|| {
        for _ in 0..10 {
            let heard = ask("shared:9100")?;
            ensure!(heard == "app-v2 ping", "{heard:?}");
        }
        Ok(())
    });
    let second = (0..200).filter(|_| ask("shared:9000").expect("answered") == "app-v2 ping");
    let second = second.count();
    assert!((14..=86).contains(&second), "{second} of 200 went to a quarter");
}

fn server_first(mesh: &Mesh) {
    for pod in ["client", "visitor"] {
        let heard = mesh.until(|| {
            let want = "hello from app-v1\n";
            let heard = mesh.talk(pod, "one.default:9001", b"", want.len())?;
            ensure!(heard == want, "{heard:?}");
            Ok(heard)
        });
        assert_eq!(heard, "hello from app-v1\n");
    }
}

const SNI: &str = r"
apiVersion: v1
kind: Service
metadata: {name: names}
spec:
  selector: {app: none}
  ports: [{name: tls, port: 8443}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: names}
spec:
  hosts: [names, a.names.test, '*.wild.names.test']
  tls:
  - match: [{port: 8443, sniHosts: [a.names.test]}]
    route: [{destination: {host: one, port: {number: 8443}}}]
  - match: [{port: 8443, sniHosts: ['*.wild.names.test', names]}]
    route: [{destination: {host: two, port: {number: 8443}}}]
";

fn sni(mesh: &Mesh) {
    mesh.apply(SNI);
    let ask = |name: &str| {
        mesh.get("client", "https://names:8443/").tls(|tls| *tls = ClientTls::named(name))
    };
    let answer = mesh.until(|| {
        let answer = ask("a.names.test").try_send()?;
        ensure!(answer.pod().as_deref() == Some("app-v1"), "{answer:?}");
        Ok(answer)
    });
    assert_eq!(answer.said("sni"), "a.names.test");
    for _ in 0..5 {
        assert_eq!(ask("a.names.test").send().pod().as_deref(), Some("app-v1"));
        assert_eq!(ask("x.wild.names.test").send().pod().as_deref(), Some("app-v2"));
        assert_eq!(ask("names").send().pod().as_deref(), Some("app-v2"));
    }
}

const TUNNEL: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: forward-proxy}
spec:
  hosts: [forward-proxy.test]
  addresses: [240.1.1.1]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 8080, name: tcp, protocol: TCP}]
  endpoints: [{address: external.outside.svc.cluster.local, ports: {tcp: 8081}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: tunneled}
spec:
  hosts: [tunneled.test]
  addresses: [240.1.1.2]
  location: MESH_EXTERNAL
  resolution: NONE
  ports: [{number: 7777, name: tcp, protocol: TCP}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: forward-proxy}
spec:
  host: forward-proxy.test
  subsets:
  - name: tunneled
    trafficPolicy: {tunnel: {protocol: CONNECT, targetHost: tunneled.test, targetPort: 7777}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tunneled}
spec:
  hosts: [tunneled.test]
  tcp:
  - match: [{port: 7777}]
    route: [{destination: {host: forward-proxy.test, port: {number: 8080}, subset: tunneled}}]
";

fn tunnel(mesh: &Mesh) {
    mesh.apply(TUNNEL);
    let heard = mesh.until(|| {
        // Servers say to where they were asked to connect.
        let enough = "external-1 tunneled.test:7777 ping".len();
        let heard = mesh.talk("client", "tunneled.test:7777", b"ping", enough)?;
        ensure!(heard.ends_with(" ping"), "{heard:?}");
        Ok(heard)
    });
    assert!(heard.ends_with(" tunneled.test:7777 ping"), "{heard:?}");
    mesh.logged(
        "default",
        "client",
        &["outbound|8080|tunneled|forward-proxy.test", " 240.1.1.2:7777 "],
    );
}
