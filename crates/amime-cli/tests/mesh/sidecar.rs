//! A Sidecar's own listeners: at a Unix socket, in front of one, and with TLS
//! that ends at the sidecar.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::harness::{Mesh, PATIENCE};

/// Clients of `details` go through a socket of its sidecar, requests to
/// `ratings` and to a host of its own end at a socket of the test's. At a
/// socket, hosts of services are known on port 80 only.
const OBJECTS: &str = r#"
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: details, namespace: default}
spec:
  workloadSelector: {labels: {app: details}}
  egress:
    - port: {number: 0, protocol: HTTP, name: http}
      bind: unix://DIR/egress
      hosts: ["./*"]
    - hosts: ["./*"]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: ratings, namespace: default}
spec:
  workloadSelector: {labels: {app: ratings}}
  ingress:
    - port: {number: 9080, protocol: HTTP, name: http}
      defaultEndpoint: unix://DIR/app
    - port: {number: 9443, protocol: HTTPS, name: https}
      defaultEndpoint: unix://DIR/app
      tls: {mode: SIMPLE, serverCertificate: DIR/chain.pem, privateKey: DIR/key.pem}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: ratings, namespace: default}
spec:
  selector: {matchLabels: {app: ratings}}
  mtls: {mode: STRICT}
  portLevelMtls: {9443: {mode: DISABLE}}
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: default}
spec:
  selector: {app: reviews, version: v1}
  ports: [{name: http, port: 80, targetPort: 9080}]
---
apiVersion: v1
kind: Service
metadata: {name: mutual, namespace: default}
spec:
  selector: {app: ratings}
  ports: [{name: http, port: 80, targetPort: 9080}]
---
apiVersion: v1
kind: Service
metadata: {name: own, namespace: default}
spec:
  selector: {app: ratings}
  ports: [{name: http, port: 80, targetPort: 9443}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: own, namespace: default}
spec:
  host: own
  trafficPolicy:
    tls: {mode: SIMPLE, caCertificates: DIR/ca.pem, sni: ratings.test, subjectAltNames: [ratings.test]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: socket, namespace: default}
spec:
  hosts: [socket.test]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: "unix://DIR/app"}]
"#;

#[test]
fn a_sidecar_listens_at_sockets_forwards_to_them_and_ends_tls() {
    let mesh = Mesh::start();
    let dir = tempfile::tempdir().expect("a folder");
    certificates(dir.path(), "ratings.test");
    serve(&dir.path().join("app"));
    mesh.apply_text(&OBJECTS.replace("DIR", &dir.path().display().to_string()));
    let egress = dir.path().join("egress");
    let answer = |host: &str, fits: &dyn Fn(&str) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = ask(&egress, host).unwrap_or_default();
            if fits(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{host}: still {answer}");
            std::thread::yield_now();
        }
    };
    // From a socket into the mesh.
    answer("plain", &|answer| answer.contains("200 OK"));
    let ours = |answer: &str| answer.contains("this is the test");
    // To a socket in place of an address.
    answer("socket.test", &ours);
    // Through mutual TLS to a socket behind the other sidecar.
    let mutual = answer("mutual", &ours).to_ascii_lowercase();
    assert!(mutual.contains("x-forwarded-client-cert: by=spiffe://cluster.local/ns/default/sa/"));
    // Through TLS that ends there: the client checks the certificate, which is
    // out of files, and the port takes nothing but TLS.
    let own = answer("own", &ours).to_ascii_lowercase();
    assert!(!own.contains("x-forwarded-client-cert"), "no client certificate is asked for: {own}");
}

/// Files of a server certificate for `name` and of its CA.
pub(crate) fn certificates(dir: &Path, name: &str) {
    let mut params = CertificateParams::new(vec![]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"));
    let ca = ca.expect("signs itself");
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let leaf = leaf.signed_by(&key, &ca).expect("signs");
    for (name, text) in
        [("ca.pem", ca.pem()), ("chain.pem", leaf.pem()), ("key.pem", key.serialize_pem())]
    {
        std::fs::write(dir.join(name), text).expect("written");
    }
}

/// Answers with a word of its own and the head of the request.
fn serve(path: &Path) {
    let socket = UnixListener::bind(path).expect("a free path");
    std::thread::spawn(move || {
        for stream in socket.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut part = [0; 4096];
                while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                    match stream.read(&mut part) {
                        Ok(count) if count > 0 => head.extend_from_slice(&part[..count]),
                        _ => return,
                    }
                }
                let body = format!("this is the test\n{}", String::from_utf8_lossy(&head));
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
                let _ = stream.write_all(answer.as_bytes());
            });
        }
    });
}

/// The whole answer; an error while nobody listens.
fn ask(path: &Path, host: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    let request = format!("GET /reviews/0 HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
