//! What gateways tell servers about clients.

use anyhow::ensure;

use super::{edge, secret};
use crate::Test;
use crate::mesh::Mesh;
use crate::tls::Authority;

pub(super) const TESTS: &[Test] = &[
    ("clients' addresses and certificates are forwarded", addresses),
    ("trusted proxies and the PROXY protocol name the client", trusted),
];

const FORWARDED: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: forwarded}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 7006, name: http, protocol: HTTP}
    hosts: [forwarded.test]
  - port: {number: 7447, name: https, protocol: HTTPS}
    hosts: [forwarded.test]
    tls: {mode: MUTUAL, credentialName: forwarded}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: forwarded}
spec:
  hosts: [forwarded.test]
  gateways: [forwarded]
  http: [{route: [{destination: {host: one, port: {number: 80}}}]}]
";

fn addresses(mesh: &Mesh) {
    let clients = Authority::new("Clients");
    let pair = mesh.authority.issue(&["forwarded.test"]);
    mesh.apply(&(secret("forwarded", &pair, Some(&clients.pem())) + FORWARDED));
    let visitor = mesh.address("outside", "visitor");
    let plain = edge(mesh, "http", 7006, "forwarded.test", "/");
    let answer = mesh.until(|| {
        let answer = plain.clone().try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer)
    });
    assert_eq!(answer.saw("x-forwarded-for").as_deref(), Some(visitor.as_str()));
    assert_eq!(answer.saw("x-forwarded-proto").as_deref(), Some("http"));
    assert!(answer.saw("x-request-id").is_some());
    // Nobody outside is believed.
    let lying = plain
        .header("x-forwarded-for", "1.2.3.4")
        .header("x-forwarded-client-cert", "Hash=lie")
        .header("x-envoy-internal", "true")
        .send();
    assert_eq!(lying.saw("x-forwarded-for"), Some(format!("1.2.3.4,{visitor}")));
    let told = lying.saw("x-forwarded-client-cert").unwrap_or_default();
    assert!(!told.contains("lie"), "{told}");

    let client = clients.issue(&["client.test", "spiffe://clients/one"]);
    let secure =
        edge(mesh, "https", 7447, "forwarded.test", "/").tls(|tls| tls.pair = Some(client));
    let answer = mesh.until(|| secure.clone().try_send());
    assert_eq!(answer.saw("x-forwarded-proto").as_deref(), Some("https"));
    let certificate = answer.saw("x-forwarded-client-cert").unwrap_or_default();
    for part in
        ["Hash=", "URI=spiffe://clients/one", "By=spiffe://cluster.local/ns/default/sa/default"]
    {
        assert!(certificate.contains(part), "{part} is not in {certificate}");
    }
}

const TRUSTED: &str = r"
apiVersion: v1
kind: Service
metadata: {name: trusting, namespace: istio-system}
spec:
  selector: {istio: trusting}
  ports: [{name: http, port: 7080}, {name: http-proxied, port: 7081}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: trusting, namespace: istio-system}
spec:
  replicas: 1
  selector: {matchLabels: {istio: trusting}}
  template:
    metadata:
      labels: {istio: trusting}
      annotations:
        inject.istio.io/templates: gateway
        proxy.istio.io/config: '{gatewayTopology: {numTrustedProxies: 1, forwardClientCertDetails: ALWAYS_FORWARD_ONLY}}'
    spec:
      containers: [{name: istio-proxy, image: auto}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: trusting}
spec:
  selector: {istio: trusting}
  servers:
  - port: {number: 7080, name: http, protocol: HTTP}
    hosts: [trusting.test]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: trusting}
spec:
  hosts: [trusting.test]
  gateways: [trusting, proxied]
  http: [{route: [{destination: {host: one, port: {number: 80}}}]}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: proxied}
spec:
  selector: {istio: trusting}
  servers:
  - port: {number: 7081, name: http, protocol: HTTP}
    hosts: [trusting.test]
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: proxied, namespace: istio-system}
spec:
  workloadSelector: {labels: {istio: trusting}}
  configPatches:
  - applyTo: LISTENER_FILTER
    match: {context: GATEWAY, listener: {portNumber: 7081}}
    patch:
      operation: INSERT_FIRST
      value:
        name: envoy.filters.listener.proxy_protocol
        typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol}
";

fn trusted(mesh: &Mesh) {
    mesh.apply(TRUSTED);
    let visitor = mesh.address("outside", "visitor");
    let ask = |port: u16| {
        mesh.get("visitor", &format!("http://trusting.istio-system:{port}/")).host("trusting.test")
    };
    let trusted = mesh.until(|| {
        let answer = ask(7080)
            .header("x-forwarded-for", "5.5.5.5, 9.9.9.9")
            .header("x-forwarded-client-cert", "Hash=believed")
            .try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer)
    });
    assert_eq!(trusted.saw("x-forwarded-for"), Some(format!("5.5.5.5, 9.9.9.9,{visitor}")));
    assert_eq!(trusted.saw("x-envoy-external-address").as_deref(), Some("9.9.9.9"));
    let certificate = trusted.saw("x-forwarded-client-cert").unwrap_or_default();
    assert!(certificate.contains("Hash=believed"), "{certificate}");
    let proxied = mesh.until(|| {
        let answer = ask(7081).preamble(b"PROXY TCP4 7.7.7.7 8.8.8.8 77 88\r\n").try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer)
    });
    assert_eq!(proxied.saw("x-forwarded-for").as_deref(), Some("7.7.7.7"));
    ask(7081).try_send().expect_err("a PROXY header has to come first");
}
