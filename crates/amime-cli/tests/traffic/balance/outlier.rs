//! Endpoints that fail, and those far away.

use anyhow::ensure;

use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("an endpoint that fails gets no more requests", ejection),
    ("only status codes that the rule names eject an endpoint", codes),
    ("far endpoints serve when the near ones fail", failover),
];

const EJECTION: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ejection}
spec:
  hosts: [ejection.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: FIRST}, {address: SECOND}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ejection}
spec:
  host: ejection.test
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 2, interval: 500ms, baseEjectionTime: 600s, maxEjectionPercent: 100}
";

fn external(mesh: &Mesh, yaml: &str) -> String {
    let [first, second] = ["external-1", "external-2"].map(|pod| mesh.address("outside", pod));
    yaml.replace("FIRST", &first).replace("SECOND", &second)
}

fn ejection(mesh: &Mesh) {
    mesh.apply(&external(mesh, EJECTION));
    let ask = |orders: &str| mesh.get("client", "http://ejection.test/").order(orders);
    mesh.until(|| {
        let answer = ask("").try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    });
    // Retries would go elsewhere: 500 is not retried.
    mesh.until(|| {
        for _ in 0..20 {
            let answer = ask("status=500^external-1").try_send()?;
            ensure!(answer.pod().as_deref() == Some("external-2"), "{answer:?}");
        }
        Ok(())
    });
    let endpoints =
        mesh.ok(&["proxy-config", "endpoint", "client", "--cluster", "outbound|80||ejection.test"]);
    assert!(endpoints.contains("FAILED"), "{endpoints}");
}

const CODES: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: codes}
spec:
  hosts: [codes.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: FIRST}, {address: SECOND}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: codes}
spec:
  host: codes.test
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 2, interval: 500ms, baseEjectionTime: 600s, maxEjectionPercent: 100, outlierDetectionHttpErrorCodes: [429]}
";

fn codes(mesh: &Mesh) {
    mesh.apply(&external(mesh, CODES));
    let ask = |orders: &str| mesh.get("client", "http://codes.test/").order(orders);
    mesh.until(|| {
        let answer = ask("").try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    });
    let pods: Vec<_> = (0..30).map(|_| ask("status=500").send().pod()).collect();
    for pod in ["external-1", "external-2"] {
        let count = pods.iter().filter(|one| one.as_deref() == Some(pod)).count();
        assert!(count > 5, "{count} of 30 to {pod}");
    }
    mesh.until(|| {
        for _ in 0..20 {
            let answer = ask("status=429^external-1").try_send()?;
            ensure!(answer.pod().as_deref() == Some("external-2"), "{answer:?}");
        }
        Ok(())
    });
}

const FAILOVER: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: local, labels: {app: local, istio-locality: r1.z1}}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{name: portal, image: portal, args: [local]}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: failover}
spec:
  hosts: [failover.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints:
  - {address: FIRST, locality: r1/z1}
  - {address: SECOND, locality: r2/z2}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: failover}
spec:
  host: failover.test
  trafficPolicy:
    loadBalancer: {localityLbSetting: {failover: [{from: r1, to: r2}]}}
    outlierDetection: {consecutive5xxErrors: 2, interval: 500ms, baseEjectionTime: 600s, maxEjectionPercent: 100}
";

fn failover(mesh: &Mesh) {
    mesh.apply(&external(mesh, FAILOVER));
    let ask = |orders: &str| mesh.get("local", "http://failover.test/").order(orders);
    mesh.until(|| {
        for _ in 0..12 {
            let answer = ask("").try_send()?;
            ensure!(answer.pod().as_deref() == Some("external-1"), "{answer:?}");
        }
        Ok(())
    });
    mesh.until(|| {
        for _ in 0..12 {
            let answer = ask("status=500^external-1").try_send()?;
            ensure!(answer.pod().as_deref() == Some("external-2"), "{answer:?}");
        }
        Ok(())
    });
}
