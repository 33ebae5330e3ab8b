//! TLS at gateways.

use anyhow::ensure;

use super::{edge, secret};
use crate::Test;
use crate::mesh::Mesh;
use crate::tls::{Authority, ClientTls};

pub(super) const TESTS: &[Test] = &[
    ("server names share a port, each with its own TLS", modes),
    ("plain HTTP is sent to HTTPS", https_redirect),
    ("TLS versions and suites are limited", parameters),
    ("names lead through to other clusters", auto_passthrough),
];

const MODES: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: modes}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 7443, name: simple, protocol: HTTPS}
    hosts: [simple.test, '*.simple.test']
    tls: {mode: SIMPLE, credentialName: modes-simple}
  - port: {number: 7443, name: mutual, protocol: HTTPS}
    hosts: [mutual.test]
    tls: {mode: MUTUAL, credentialName: modes-mutual}
  - port: {number: 7443, name: optional, protocol: HTTPS}
    hosts: [optional.test]
    tls: {mode: OPTIONAL_MUTUAL, credentialName: modes-mutual}
  - port: {number: 7443, name: through, protocol: TLS}
    hosts: [through.test]
    tls: {mode: PASSTHROUGH}
  - port: {number: 7443, name: ended, protocol: TLS}
    hosts: [ended.test]
    tls: {mode: SIMPLE, credentialName: modes-simple}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: modes}
spec:
  hosts: [simple.test, '*.simple.test', mutual.test, optional.test]
  gateways: [modes]
  http: [{route: [{destination: {host: one, port: {number: 80}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: modes-through}
spec:
  hosts: [through.test]
  gateways: [modes]
  tls:
  - match: [{port: 7443, sniHosts: [through.test]}]
    route: [{destination: {host: two, port: {number: 8443}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: modes-ended}
spec:
  hosts: [ended.test]
  gateways: [modes]
  tcp:
  - match: [{port: 7443}]
    route: [{destination: {host: two, port: {number: 8081}}}]
";

fn modes(mesh: &Mesh) {
    let clients = Authority::new("Clients");
    let simple = mesh.authority.issue(&["simple.test", "*.simple.test", "ended.test"]);
    let mutual = mesh.authority.issue(&["mutual.test", "optional.test"]);
    let secrets = secret("modes-simple", &simple, None)
        + &secret("modes-mutual", &mutual, Some(&clients.pem()));
    mesh.apply(&(secrets + MODES));
    let ask = |host: &str| edge(mesh, "https", 7443, host, "/");
    let answer = mesh.until(|| ask("simple.test").try_send());
    assert_eq!(answer.pod().as_deref(), Some("app-v1"));
    assert_eq!(answer.server, Some(simple.leaf()));
    assert_eq!(answer.saw("x-forwarded-proto").as_deref(), Some("https"));
    assert_eq!(ask("x.simple.test").http2().send().pod().as_deref(), Some("app-v1"));
    ask("unknown.test").try_send().expect_err("no server has this name");

    mesh.until(|| ask("optional.test").try_send());
    ask("mutual.test").try_send().expect_err("a certificate is needed");
    let pair = clients.issue(&["client.test", "spiffe://clients/one"]);
    let with = |host: &str, pair| ask(host).tls(|tls| tls.pair = Some(pair));
    let named = with("mutual.test", pair.clone()).send();
    assert_eq!((named.pod().as_deref(), named.server), (Some("app-v1"), Some(mutual.leaf())));
    with("optional.test", pair).send();
    let stranger = Authority::new("Strangers").issue(&["client.test"]);
    with("mutual.test", stranger.clone()).try_send().expect_err("nobody knows its issuer");
    with("optional.test", stranger).try_send().expect_err("nobody knows its issuer");

    let through = mesh.until(|| ask("through.test").try_send());
    assert_eq!(
        (through.pod().as_deref(), through.said("sni")),
        (Some("app-v2"), "through.test".into())
    );
    let ended = mesh.until(|| ask("ended.test").try_send());
    assert_eq!((ended.pod().as_deref(), ended.said("port")), (Some("app-v2"), "8081".to_owned()));
    assert_eq!(ended.server, Some(simple.leaf()));
}

const HTTPS_REDIRECT: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: https-redirect}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 7005, name: http, protocol: HTTP}
    hosts: [secure.test]
    tls: {httpsRedirect: true}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: https-redirect}
spec:
  hosts: [secure.test]
  gateways: [https-redirect]
  http: [{route: [{destination: {host: one, port: {number: 80}}}]}]
";

fn https_redirect(mesh: &Mesh) {
    mesh.apply(HTTPS_REDIRECT);
    mesh.until(|| {
        let answer = edge(mesh, "http", 7005, "secure.test", "/a?b=c").try_send()?;
        ensure!(answer.status == 301, "{answer:?}");
        let location = answer.header("location");
        ensure!(location == Some("https://secure.test/a?b=c"), "{location:?}");
        Ok(())
    });
}

const PARAMETERS: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: parameters}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 7444, name: new, protocol: HTTPS}
    hosts: [new.test]
    tls: {mode: SIMPLE, credentialName: parameters, minProtocolVersion: TLSV1_3}
  - port: {number: 7444, name: old, protocol: HTTPS}
    hosts: [old.test]
    tls:
      mode: SIMPLE
      credentialName: parameters
      maxProtocolVersion: TLSV1_2
      cipherSuites: [ECDHE-ECDSA-AES256-GCM-SHA384]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: parameters}
spec:
  hosts: [new.test, old.test]
  gateways: [parameters]
  http: [{route: [{destination: {host: one, port: {number: 80}}}]}]
";

fn parameters(mesh: &Mesh) {
    let pair = mesh.authority.issue(&["new.test", "old.test"]);
    mesh.apply(&(secret("parameters", &pair, None) + PARAMETERS));
    let ask = |host: &str, change: fn(&mut ClientTls)| {
        edge(mesh, "https", 7444, host, "/").tls(change).try_send()
    };
    mesh.until(|| ask("new.test", |_| ()));
    ask("new.test", |tls| tls.old = true).expect_err("1.2 is too old");
    mesh.until(|| ask("old.test", |tls| tls.old = true));
    let with = |suite: &'static str| {
        edge(mesh, "https", 7444, "old.test", "/")
            .tls(|tls| (tls.old, tls.suite) = (true, Some(suite)))
            .try_send()
    };
    with("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384").expect("the suite is the server's");
    with("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256").expect_err("the suite is not the server's");
    edge(mesh, "https", 7444, "old.test", "/")
        .tls(|tls| tls.suite = Some("TLS13_AES_128_GCM_SHA256"))
        .try_send()
        .expect_err("1.3 is too new");
}

const AUTO_PASSTHROUGH: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: auto-passthrough}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 15443, name: tls, protocol: TLS}
    hosts: ['*.local']
    tls: {mode: AUTO_PASSTHROUGH}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: elsewhere}
spec:
  hosts: [elsewhere.test, nowhere.test]
  location: MESH_INTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: edge.istio-system.svc.cluster.local, ports: {http: 15443}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: elsewhere}
spec:
  host: elsewhere.test
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL, sni: outbound_.80_._.one.default.svc.cluster.local}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: nowhere}
spec:
  host: nowhere.test
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL, sni: outbound_.80_._.none.default.svc.cluster.local}}
";

/// As between clusters: a sidecar, the gateway, and the other side's sidecar.
fn auto_passthrough(mesh: &Mesh) {
    mesh.apply(AUTO_PASSTHROUGH);
    let answer = mesh.until(|| {
        let answer = mesh.get("client", "http://elsewhere.test/").try_send()?;
        ensure!(answer.pod().as_deref() == Some("app-v1"), "{answer:?}");
        Ok(answer)
    });
    // From sidecar to sidecar: the gateway has ended nothing.
    let certificate = answer.saw("x-forwarded-client-cert").unwrap_or_default();
    assert!(
        certificate.contains("URI=spiffe://cluster.local/ns/default/sa/default"),
        "{certificate}"
    );
    assert_eq!(mesh.get("client", "http://nowhere.test/").send().status, 503);
    let plain = "outbound_.80_._.one.default.svc.cluster.local";
    edge(mesh, "https", 15443, plain, "/").try_send().expect_err("not from a sidecar");
}
