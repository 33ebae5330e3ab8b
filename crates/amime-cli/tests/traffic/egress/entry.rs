//! Services outside of the mesh, by every way to find them.

use std::collections::BTreeSet;

use anyhow::ensure;

use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("entries with given endpoints get addresses of their own", fixed),
    ("entries are found by DNS", dns),
    ("entries without endpoints lead where the client wanted to", none),
    ("external names are aliases", external_name),
    ("services without an address are reached by their pods", headless),
];

/// The pods that answered several requests.
fn pods(mesh: &Mesh, url: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut pods = BTreeSet::new();
    for _ in 0..12 {
        let answer = mesh.get("client", url).try_send()?;
        let pod = answer.pod();
        ensure!(pod.is_some(), "{answer:?}");
        pods.extend(pod);
    }
    Ok(pods)
}

const BOTH: [&str; 2] = ["external-1", "external-2"];

#[track_caller]
fn both(mesh: &Mesh, url: &str) {
    mesh.until(|| {
        let pods = pods(mesh, url)?;
        ensure!(pods.iter().eq(BOTH), "{pods:?}");
        Ok(())
    });
}

const FIXED: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: fixed}
spec:
  hosts: [fixed.ext.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports:
  - {number: 80, name: http, protocol: HTTP, targetPort: 8080}
  - {number: 9000, name: tcp, protocol: TCP}
  endpoints: [{address: FIRST}, {address: SECOND}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: fixed-too}
spec:
  hosts: [fixed-too.ext.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 9000, name: tcp, protocol: TCP}]
  endpoints: [{address: SECOND}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: addressed}
spec:
  hosts: [addressed.ext.test]
  addresses: [240.2.2.2]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 9000, name: tcp, protocol: TCP}]
  endpoints: [{address: FIRST, ports: {tcp: 9001}}]
";

fn fixed(mesh: &Mesh) {
    let [first, second] = BOTH.map(|pod| mesh.address("outside", pod));
    mesh.apply(&FIXED.replace("FIRST", &first).replace("SECOND", &second));
    both(mesh, "http://fixed.ext.test/");
    let address = |host: &str| mesh.resolve("client", host).expect("resolved").join(" ");
    let (one, two) = (address("fixed.ext.test"), address("fixed-too.ext.test"));
    assert!(one.starts_with("240.240.") && two.starts_with("240.240."), "{one} {two}");
    assert_ne!(one, two);
    // TCP on the same port is told apart by address.
    for _ in 0..8 {
        let heard = mesh.talk("client", "fixed-too.ext.test:9000", b"ping", 15).expect("answered");
        assert_eq!(heard, "external-2 ping");
    }
    assert_eq!(address("addressed.ext.test"), "240.2.2.2");
    let greeting = mesh.talk("client", "addressed.ext.test:9000", b"", 22).expect("answered");
    assert_eq!(greeting, "hello from external-1\n");
    mesh.resolve("visitor", "fixed.ext.test").expect_err("only sidecars know the name");
}

const DNS: &str = r"
apiVersion: v1
kind: Service
metadata: {name: unseen, namespace: outside, annotations: {networking.istio.io/exportTo: '~'}}
spec:
  clusterIP: None
  selector: {app: external}
  ports: [{name: http, port: 8081}]
---
apiVersion: v1
kind: Service
metadata: {name: external-pods, namespace: outside}
spec:
  clusterIP: None
  selector: {app: external}
  ports: [{name: http, port: 8080}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: strict}
spec:
  hosts: [strict.ext.test]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: external-pods.outside.svc.cluster.local, ports: {http: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: turns}
spec:
  hosts: [turns.ext.test]
  location: MESH_EXTERNAL
  resolution: DNS_ROUND_ROBIN
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: external-pods.outside.svc.cluster.local, ports: {http: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: itself}
spec:
  hosts: [unseen.outside.svc.cluster.local]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 8081, name: http-itself, protocol: HTTP}]
";

fn dns(mesh: &Mesh) {
    mesh.apply(DNS);
    both(mesh, "http://strict.ext.test/");
    mesh.until(|| {
        let pods = pods(mesh, "http://turns.ext.test/")?;
        ensure!(pods.len() == 1 || pods.iter().eq(BOTH), "{pods:?}");
        Ok(())
    });
    // Its address is for clients; the sidecar itself asks the name server.
    both(mesh, "http://unseen.outside.svc.cluster.local:8081/");
}

const NONE: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild}
spec:
  hosts: ['*.wild.ext.test']
  location: MESH_EXTERNAL
  resolution: NONE
  ports:
  - {number: 8080, name: http, protocol: HTTP}
  - {number: 8443, name: tls, protocol: TLS}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wild}
spec:
  hosts: ['*.wild.ext.test']
  http:
  - headers: {request: {set: {x-rule: wild}}}
    route: [{destination: {host: '*.wild.ext.test'}}]
";

fn none(mesh: &Mesh) {
    mesh.apply(NONE);
    for pod in BOTH {
        let address = mesh.address("outside", pod);
        mesh.until(|| {
            let ask =
                mesh.get("client", &format!("http://{address}:8080/")).host("a.wild.ext.test");
            let answer = ask.try_send()?;
            ensure!(answer.pod().as_deref() == Some(pod), "{answer:?}");
            ensure!(answer.saw("x-rule").as_deref() == Some("wild"), "{answer:?}");
            Ok(())
        });
        let ask = mesh.get("client", &format!("https://{address}:8443/")).host("b.wild.ext.test");
        let answer = ask.send();
        assert_eq!(answer.pod().as_deref(), Some(pod));
        assert_eq!(answer.said("sni"), "b.wild.ext.test");
    }
    let log =
        mesh.logged("default", "client", &["b.wild.ext.test", "outbound|8443||*.wild.ext.test"]);
    assert!(log.contains(":8443"), "{log}");
}

const EXTERNAL_NAME: &str = r"
apiVersion: v1
kind: Service
metadata: {name: alias}
spec:
  type: ExternalName
  externalName: external.outside.svc.cluster.local
  ports: [{name: http, port: 80}, {name: tcp, port: 9000}]
";

fn external_name(mesh: &Mesh) {
    mesh.apply(EXTERNAL_NAME);
    both(mesh, "http://alias.default/");
    mesh.until(|| {
        let heard = mesh.talk("client", "alias.default:9000", b"ping", 15)?;
        ensure!(heard.starts_with("external-"), "{heard:?}");
        Ok(())
    });
}

const HEADLESS: &str = r"
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: app}
  ports: [{name: http, port: 8080}, {name: tcp, port: 9000}]
";

fn headless(mesh: &Mesh) {
    mesh.apply(HEADLESS);
    let addresses = mesh.until(|| {
        let found: BTreeSet<_> = mesh.resolve("client", "headless")?.into_iter().collect();
        ensure!(found.len() == 2, "{found:?}");
        Ok(found)
    });
    let pods: BTreeSet<_> =
        ["app-v1", "app-v2"].iter().map(|pod| mesh.address("default", pod)).collect();
    assert_eq!(addresses, pods);
    mesh.until(|| {
        let answer = mesh.get("client", "http://headless:8080/").try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        // Between sidecars it is still mutual TLS.
        ensure!(answer.saw("x-forwarded-client-cert").is_some(), "{answer:?}");
        Ok(())
    });
    for pod in ["app-v1", "app-v2"] {
        let target = format!("{}:9000", mesh.address("default", pod));
        let want = format!("{pod} ping");
        assert_eq!(mesh.talk("client", &target, b"ping", want.len()).expect("answered"), want);
    }
}
