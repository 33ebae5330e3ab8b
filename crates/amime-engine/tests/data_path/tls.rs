//! Mutual TLS between two proxies.

use std::sync::Arc;

use amime_config::secrets::SecretSource;
use amime_identity::{LiveBundle, LiveCert, PrivateKey, TrustBundle, WorkloadCert};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

use crate::harness::{Backend, Proxy, cluster, http_listener, listener, routes, static_cluster};

struct Secrets {
    cert: Arc<LiveCert>,
    roots: Arc<LiveBundle>,
}

impl SecretSource for Secrets {
    fn certificate(&self, name: &str) -> Option<Arc<LiveCert>> {
        (name == "default").then(|| self.cert.clone())
    }

    fn roots(&self, name: &str) -> Option<Arc<LiveBundle>> {
        (name == "ROOTCA").then(|| self.roots.clone())
    }
}

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root")
}

/// Some root certificate in PEM.
pub(crate) fn any_root() -> String {
    ca().as_ref().pem()
}

fn workload(ca: &Ca, account: &str) -> Arc<dyn SecretSource> {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    let id = format!("spiffe://cluster.local/ns/default/sa/{account}");
    params.subject_alt_names = vec![SanType::URI(id.try_into().expect("a URI"))];
    let cert = params.signed_by(&key, ca).expect("a certificate");
    let private = PrivateKey::from_pem(key.serialize_pem().as_bytes()).expect("our own key");
    let cert = WorkloadCert::from_pem(cert.pem().as_bytes(), private).expect("our own chain");
    let roots = TrustBundle::from_pem(ca.as_ref().pem().as_bytes()).expect("our own root");
    Arc::new(Secrets { cert: LiveCert::new(cert), roots: LiveBundle::new(roots) })
}

const COMMON: &str = "tls_certificate_sds_secret_configs: [{name: default}]";

/// A proxy before `backend` that takes mutual TLS only, as an inbound sidecar.
async fn server(ca: &Ca, backend: &Backend) -> Proxy {
    let proxy = Proxy::with_secrets(workload(ca, "server"));
    let message = format!(
        r#"name: http
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
listener_filters:
- name: envoy.filters.listener.tls_inspector
  typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}
filter_chains:
- filter_chain_match: {{transport_protocol: tls, application_protocols: [istio, istio-peer-exchange]}}
  transport_socket:
    name: tls
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      require_client_certificate: true
      common_tls_context:
        {COMMON}
        alpn_protocols: [h2, http/1.1]
        combined_validation_context:
          default_validation_context: {{match_typed_subject_alt_names: [{{san_type: URI, matcher: {{prefix: "spiffe://cluster.local/"}}}}]}}
          validation_context_sds_secret_config: {{name: ROOTCA}}
  filters:
  - name: hcm
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: in
      forward_client_cert_details: APPEND_FORWARD
      set_current_client_cert_details: {{uri: true}}
      route_config: {{name: r, virtual_hosts: [{{name: v, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: a}}}}]}}]}}
      http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]"#
    );
    proxy.apply(vec![listener(&message), static_cluster("a", backend.address, "")]).await;
    proxy
}

/// A proxy that calls `to` by mutual TLS where endpoint metadata says so.
async fn client(ca: &Ca, to: &Proxy, san: &str) -> Proxy {
    let proxy = Proxy::with_secrets(workload(ca, "client"));
    let address = to.address();
    let message = format!(
        r#"name: mesh
type: STATIC
connect_timeout: 2s
transport_socket_matches:
- name: tlsMode-istio
  match: {{tlsMode: istio}}
  transport_socket:
    name: tls
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
      sni: outbound_.9080_._.server.default.svc.cluster.local
      common_tls_context:
        {COMMON}
        alpn_protocols: [istio-peer-exchange, istio]
        combined_validation_context:
          default_validation_context: {{match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: "{san}"}}}}]}}
          validation_context_sds_secret_config: {{name: ROOTCA}}
- {{name: tlsMode-disabled, match: {{}}}}
load_assignment:
  cluster_name: mesh
  endpoints:
  - lb_endpoints:
    - endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}
      metadata: {{filter_metadata: {{envoy.transport_socket_match: {{tlsMode: istio}}}}}}"#,
        address.ip(),
        address.port()
    );
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: mesh}");
    proxy.apply(vec![http_listener(&hcm), cluster(&message)]).await;
    proxy
}

#[tokio::test]
async fn two_proxies_know_each_other_by_certificate() {
    let (ca, backend) = (ca(), Backend::named("secret").await);
    let server = server(&ca, &backend).await;
    let client = client(&ca, &server, "spiffe://cluster.local/ns/default/sa/server").await;
    let reply = client.get("server", "/").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "secret"));
    let seen = backend.only().head;
    let xfcc = seen.headers()["x-forwarded-client-cert"].to_str().expect("text");
    assert!(xfcc.contains("By=spiffe://cluster.local/ns/default/sa/server;Hash="), "{xfcc}");
    assert!(xfcc.contains("URI=spiffe://cluster.local/ns/default/sa/client"), "{xfcc}");
}

#[tokio::test]
async fn a_server_of_another_identity_is_refused() {
    let (ca, backend) = (ca(), Backend::named("secret").await);
    let server = server(&ca, &backend).await;
    let client = client(&ca, &server, "spiffe://cluster.local/ns/default/sa/other").await;
    let reply = client.get("server", "/").await;
    assert_eq!(reply.status, 503);
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn plaintext_finds_no_chain_where_only_mutual_tls_is_taken() {
    let (ca, backend) = (ca(), Backend::named("secret").await);
    let server = server(&ca, &backend).await;
    let answer = server.raw("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert_eq!(answer, "");
    assert_eq!(backend.count(), 0);
}
