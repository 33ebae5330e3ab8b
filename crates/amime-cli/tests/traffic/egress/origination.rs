//! TLS that sidecars begin.

use anyhow::ensure;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::Test;
use crate::mesh::Mesh;
use crate::tls::Authority;

pub(super) const TESTS: &[Test] = &[("sidecars begin TLS with servers outside", origination)];

const ORIGINATION: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: origination}
spec:
  hosts: [simple.orig.test, mutual.orig.test, wrong.orig.test, unknown.orig.test]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8443}]
  endpoints: [{address: external.outside.svc.cluster.local}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: orig-simple}
spec:
  host: simple.orig.test
  workloadSelector: {matchLabels: {app: client}}
  trafficPolicy:
    portLevelSettings:
    - port: {number: 80}
      tls: {mode: SIMPLE, sni: other.test, credentialName: orig-root, subjectAltNames: [server.test]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: orig-mutual}
spec:
  host: mutual.orig.test
  workloadSelector: {matchLabels: {app: client}}
  trafficPolicy:
    tls:
      mode: MUTUAL
      credentialName: orig-client
      subjectAltNames: [server.test]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: orig-wrong}
spec:
  host: wrong.orig.test
  workloadSelector: {matchLabels: {app: client}}
  trafficPolicy: {tls: {mode: SIMPLE, credentialName: orig-root, subjectAltNames: [nobody.invalid]}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: orig-unknown}
spec:
  host: unknown.orig.test
  workloadSelector: {matchLabels: {app: client}}
  trafficPolicy: {tls: {mode: SIMPLE, credentialName: orig-stranger}}
";

fn origination(mesh: &Mesh) {
    let client = mesh.authority.issue(&["client.test"]);
    let roots = |name: &str, roots: &str| {
        let roots = STANDARD.encode(roots);
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ndata: {{ca.crt: {roots}}}\n---\n"
        )
    };
    let pair = format!(
        "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {{name: orig-client}}\n\
         data: {{tls.crt: {}, tls.key: {}, ca.crt: {}}}\n---\n",
        STANDARD.encode(&client.cert),
        STANDARD.encode(&client.key),
        STANDARD.encode(mesh.authority.pem())
    );
    let root = roots("orig-root", &mesh.authority.pem());
    let stranger = roots("orig-stranger", &Authority::new("Stranger").pem());
    mesh.apply(&(root + &stranger + &pair + ORIGINATION));
    let ask = |host: &str| mesh.get("client", &format!("http://{host}/origin-{host}"));
    let simple = mesh.until(|| {
        let answer = ask("simple.orig.test").try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer)
    });
    assert_eq!((simple.said("tls"), simple.said("sni")), ("true".into(), "other.test".into()));
    assert_eq!(simple.said("authority"), "simple.orig.test");
    assert_eq!(simple.said("client"), "null");
    let mutual = ask("mutual.orig.test").send();
    let shown = STANDARD.encode(client.leaf());
    assert_eq!((mutual.said("client"), mutual.said("sni")), (shown, "mutual.orig.test".to_owned()));
    for host in ["wrong.orig.test", "unknown.orig.test"] {
        let answer = ask(host).send();
        assert_eq!(answer.status, 503, "{answer:?}");
        let path = format!("/origin-{host}");
        // What set the flag first stands first.
        mesh.logged("default", "client", &[&path, " 503 ", "UF"]);
    }
}
