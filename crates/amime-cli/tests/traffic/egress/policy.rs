//! Whether a workload may reach what no service is known for.

use anyhow::ensure;

use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("unknown places are reached as they are", allowed),
    ("unknown places are not reached where the registry decides", registry_only),
];

fn allowed(mesh: &Mesh) {
    let address = mesh.address("outside", "external-1");
    let url = format!("http://{address}:8081/allowed");
    let answer = mesh.until(|| {
        let answer = mesh.get("client", &url).host("unknown.example").try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer)
    });
    assert_eq!(answer.pod().as_deref(), Some("external-1"));
    mesh.logged("default", "client", &["/allowed", "PassthroughCluster"]);
    let heard = mesh.talk("client", &format!("{address}:9001"), b"", 22).expect("answered");
    assert_eq!(heard, "hello from external-1\n");
}

const REGISTRY_ONLY: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: walled, labels: {istio-injection: enabled}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: walled}
spec:
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  egress: [{hosts: ['./*', 'default/one.default.svc.cluster.local']}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: known, namespace: walled}
spec:
  hosts: [known.ext.test]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 443, name: tls, protocol: TLS}]
  endpoints: [{address: external.outside.svc.cluster.local, ports: {tls: 8443}}]
---
apiVersion: v1
kind: Pod
metadata: {name: walled, namespace: walled, labels: {app: walled}}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{name: portal, image: portal, args: [walled]}]
";

fn registry_only(mesh: &Mesh) {
    mesh.apply(REGISTRY_ONLY);
    mesh.until(|| {
        let answer = mesh.get("walled", "http://one.default/").try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    });
    let known = mesh.until(|| mesh.get("walled", "https://known.ext.test/").try_send());
    assert_eq!(known.said("sni"), "known.ext.test");
    let address = mesh.address("outside", "external-1");
    // A port that has HTTP services, and one that has none.
    let refused = mesh.get("walled", "http://one.default/wall").host("unknown.example").send();
    assert_eq!(refused.status, 502, "{refused:?}");
    mesh.logged("walled", "walled", &["/wall", " 502 - direct_response", "unknown.example"]);
    let url = format!("https://{address}:443/");
    mesh.get("walled", &url).host("unknown.example").try_send().expect_err("not in the registry");
    let heard = mesh.talk("walled", &format!("{address}:9001"), b"", 22);
    assert!(heard.as_deref().unwrap_or_default().is_empty(), "{heard:?}");
    mesh.logged("walled", "walled", &["UH", "BlackHoleCluster", ":9001"]);
}
