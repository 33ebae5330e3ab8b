//! What leaves the mesh through the egress gateway.

use anyhow::ensure;

use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("HTTP leaves through the gateway, which begins TLS", http),
    ("TLS leaves through the gateway by its name", tls),
];

const HTTP: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: way-out}
spec:
  hosts: [way-out.test]
  location: MESH_EXTERNAL
  resolution: DNS
  ports:
  - {number: 80, name: http, protocol: HTTP}
  - {number: 443, name: https, protocol: HTTPS}
  endpoints: [{address: external.outside.svc.cluster.local, ports: {http: 80, https: 8443}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: way-out}
spec:
  selector: {istio: egressgateway}
  servers:
  - port: {number: 80, name: https-way-out, protocol: HTTPS}
    hosts: [way-out.test]
    tls: {mode: ISTIO_MUTUAL}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: way-out-gateway}
spec:
  host: istio-egressgateway.istio-system.svc.cluster.local
  subsets:
  - name: way-out
    trafficPolicy:
      portLevelSettings:
      - port: {number: 80}
        tls: {mode: ISTIO_MUTUAL, sni: way-out.test}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: way-out}
spec:
  hosts: [way-out.test]
  gateways: [way-out, mesh]
  http:
  - match: [{gateways: [mesh], port: 80}]
    route:
    - destination: {host: istio-egressgateway.istio-system.svc.cluster.local, subset: way-out, port: {number: 80}}
  - match: [{gateways: [way-out], port: 80}]
    route: [{destination: {host: way-out.test, port: {number: 443}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: way-out}
spec:
  host: way-out.test
  trafficPolicy:
    portLevelSettings:
    - port: {number: 443}
      tls: {mode: SIMPLE, insecureSkipVerify: true, sni: way-out.test}
";

fn http(mesh: &Mesh) {
    mesh.apply(HTTP);
    let answer = mesh.until(|| {
        let answer = mesh.get("client", "http://way-out.test/out").try_send()?;
        ensure!(answer.status == 200 && answer.said("tls") == "true", "{answer:?}");
        Ok(answer)
    });
    assert_eq!(
        (answer.said("sni"), answer.said("authority")),
        ("way-out.test".into(), "way-out.test".into())
    );
    let who = "spiffe://cluster.local/ns/default/sa/default";
    mesh.logged_by("egressgateway", &["/out", " 200 ", "way-out.test", who]);
}

const TLS: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: secret-way}
spec:
  hosts: [secret-way.test]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 443, name: tls, protocol: TLS}]
  endpoints: [{address: external.outside.svc.cluster.local, ports: {tls: 8443}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: secret-way}
spec:
  selector: {istio: egressgateway}
  servers:
  - port: {number: 443, name: tls, protocol: TLS}
    hosts: [secret-way.test]
    tls: {mode: PASSTHROUGH}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: secret-way}
spec:
  hosts: [secret-way.test]
  gateways: [mesh, secret-way]
  tls:
  - match: [{gateways: [mesh], port: 443, sniHosts: [secret-way.test]}]
    route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, port: {number: 443}}}]
  - match: [{gateways: [secret-way], port: 443, sniHosts: [secret-way.test]}]
    route: [{destination: {host: secret-way.test, port: {number: 443}}}]
";

fn tls(mesh: &Mesh) {
    mesh.apply(TLS);
    let answer = mesh.until(|| mesh.get("client", "https://secret-way.test/").try_send());
    assert_eq!(answer.said("sni"), "secret-way.test");
    mesh.until(|| {
        mesh.get("client", "https://secret-way.test/").try_send()?;
        let log = mesh.ok(&["-n", "istio-system", "logs", "istio-egressgateway"]);
        ensure!(log.contains("outbound|443||secret-way.test"), "{log}");
        Ok(())
    });
}
