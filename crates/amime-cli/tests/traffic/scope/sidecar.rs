//! Sidecar resources: what a workload sees, and what it listens on.

use anyhow::ensure;

use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] =
    &[("a sidecar sees its hosts only, and listens as it is told", narrow)];

const NARROW: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: narrow, labels: {istio-injection: enabled}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: narrow, namespace: narrow}
spec:
  workloadSelector: {labels: {app: narrow}}
  ingress:
  - port: {number: 9999, name: http, protocol: HTTP}
    defaultEndpoint: 127.0.0.1:8081
  egress:
  - port: {number: 7070, name: grpc, protocol: GRPC}
    bind: 127.0.0.1
    captureMode: NONE
    hosts: ['default/two.default.svc.cluster.local']
  - hosts: ['./*', 'default/one.default.svc.cluster.local']
---
apiVersion: v1
kind: Service
metadata: {name: narrow, namespace: narrow}
spec:
  selector: {app: narrow}
  ports: [{name: http, port: 80, targetPort: 9999}]
---
apiVersion: v1
kind: Pod
metadata: {name: narrow, namespace: narrow, labels: {app: narrow}}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{name: portal, image: portal, args: [narrow, '8080,8081'], ports: [{containerPort: 8080}]}]
";

fn narrow(mesh: &Mesh) {
    mesh.apply(NARROW);
    mesh.until(|| {
        let answer = mesh.get("client", "http://narrow.narrow/").try_send()?;
        ensure!(answer.status == 200 && answer.said("port") == "8081", "{answer:?}");
        Ok(())
    });
    // What is imported is spoken to as one of the mesh.
    mesh.until(|| {
        let seen = mesh.get("narrow", "http://one.default/").try_send()?;
        ensure!(seen.saw("x-forwarded-client-cert").is_some(), "{seen:?}");
        Ok(())
    });
    // Passed through, and so without the mesh's identity.
    let unseen = mesh.get("narrow", "http://two.default/").send();
    assert_eq!(unseen.pod().as_deref(), Some("app-v2"), "{unseen:?}");
    assert_eq!(unseen.saw("x-forwarded-client-cert"), None);
    let bound = mesh.get("narrow", "http://127.0.0.1:7070/pkg.Service/Call");
    let bound = bound.host("two.default:7070").grpc().send();
    assert_eq!(bound.trailer("x-pod"), Some("app-v2"), "{bound:?}");
}
