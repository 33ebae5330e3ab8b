//! Hosts that no service is known for: sidecars look them up themselves.

use std::path::Path;
use std::time::Instant;

use crate::harness::{Mesh, PATIENCE};
use crate::sidecar::certificates;

/// Where nobody is: who connects to it gets an answer only by the host that the
/// request names.
const NOWHERE: &str = "240.9.9.9";

/// `details` once more, without a sidecar, and `ratings` behind TLS of its own.
/// The services have names in DNS and are hidden from sidecars.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: beyond}
---
apiVersion: v1
kind: Service
metadata: {name: hidden, namespace: beyond, annotations: {networking.istio.io/exportTo: '~'}}
spec:
  clusterIP: None
  selector: {app: details}
  ports: [{name: http, port: 9080}]
---
apiVersion: v1
kind: Service
metadata: {name: sealed, namespace: default, annotations: {networking.istio.io/exportTo: '~'}}
spec:
  clusterIP: None
  selector: {app: ratings}
  ports: [{name: https, port: 9443}]
---
apiVersion: v1
kind: Pod
metadata: {name: details, namespace: beyond, labels: {app: details}}
spec:
  containers:
    - name: details
      image: docker.io/istio/examples-bookinfo-details-v1:1.20.3
      ports: [{containerPort: 9080}]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: ratings, namespace: default}
spec:
  workloadSelector: {labels: {app: ratings}}
  ingress:
    - port: {number: 9443, protocol: HTTPS, name: https}
      defaultEndpoint: 127.0.0.1:9080
      tls: {mode: SIMPLE, serverCertificate: DIR/chain.pem, privateKey: DIR/key.pem}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: ratings, namespace: default}
spec:
  selector: {matchLabels: {app: ratings}}
  mtls: {mode: PERMISSIVE}
  portLevelMtls: {9443: {mode: DISABLE}}
"#;

/// A name for all hosts of a namespace, each of which is looked up.
const WILDCARD: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: beyond, namespace: default}
spec:
  hosts: ['*.beyond.svc.cluster.local']
  location: MESH_EXTERNAL
  resolution: DYNAMIC_DNS
  ports: [{number: 9080, name: http, protocol: HTTP}]
"#;

const HIDDEN: &str = "hidden.beyond.svc.cluster.local:9080";
const SEALED: &str = "sealed.default.svc.cluster.local:9443";

#[test]
fn unknown_hosts_are_looked_up_by_sidecars() {
    let mesh = Mesh::start();
    let dir = tempfile::tempdir().expect("a folder");
    certificates(dir.path(), "sealed.default.svc.cluster.local");
    mesh.apply_text(&OBJECTS.replace("DIR", &dir.path().display().to_string()));

    // By an entry, on a port that sidecars have a listener for.
    mesh.apply_text(WILDCARD);
    until(&mesh, (NOWHERE, 9080), (HIDDEN, "/details/0"), |answer| answer.contains("ISBN-10"));
    logged(&mesh, "outbound|9080||*.beyond.svc.cluster.local");
    mesh.ok(&["delete", "serviceentry", "beyond"]);

    // By the mesh's policy, on any port.
    mesh.apply_text(&settings(""));
    until(&mesh, (NOWHERE, 81), (HIDDEN, "/details/0"), |answer| answer.contains("ISBN-10"));
    logged(&mesh, "AllowAnyDynamicDNSCluster");
    // What has no name goes nowhere.
    let nobody = ask(&mesh, (NOWHERE, 81), ("nobody.example:80", "/"));
    assert!(nobody.contains(" 503 "), "{nobody}");

    // The same with TLS, to servers that have the name that was asked for.
    let authority = |dir: &Path| {
        format!("tls: {{mode: SIMPLE, caCertificates: {}}}", dir.join("ca.pem").display())
    };
    mesh.apply_text(&settings(&authority(dir.path())));
    until(&mesh, (NOWHERE, 81), (SEALED, "/ratings/0"), |answer| answer.contains("Reviewer"));
    let plain = ask(&mesh, (NOWHERE, 81), (HIDDEN, "/details/0"));
    assert!(plain.contains(" 503 "), "it speaks no TLS: {plain}");
}

/// The mesh's settings, without a word to say about them.
fn settings(tls: &str) -> String {
    let mode = "mode: ALLOW_ANY_DYNAMIC_DNS";
    let policy = if tls.is_empty() { mode.to_owned() } else { format!("{mode}, {tls}") };
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data:\n  mesh: |\n    accessLogFile: /dev/stdout\n    outboundTrafficPolicy: {{{policy}}}\n"
    )
}

/// Waits for an answer that fits.
#[track_caller]
fn until(mesh: &Mesh, to: (&str, u16), what: (&str, &str), fits: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask(mesh, to, what);
        if fits(&answer) {
            return;
        }
        assert!(Instant::now() < deadline, "{to:?}, {what:?}: still {answer}");
    }
}

/// Waits for a line of the client's log.
#[track_caller]
fn logged(mesh: &Mesh, cluster: &str) {
    mesh.wait_for(&["logs", "reviews-v1", "-c", "istio-proxy"], |log| log.contains(cluster));
}

/// The whole answer to a request from a pod; what came of it if none came.
fn ask(mesh: &Mesh, (address, port): (&str, u16), (host, path): (&str, &str)) -> String {
    let script = format!(
        "exec 3<>/dev/tcp/{address}/{port} && \
         printf 'GET {path} HTTP/1.1\\r\\nhost: {host}\\r\\nconnection: close\\r\\n\\r\\n' >&3 && \
         timeout 20 cat <&3"
    );
    let output = mesh.run(&["exec", "reviews-v1", "--", "bash", "-c", &script]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
