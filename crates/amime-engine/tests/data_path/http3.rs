//! HTTP/3: listeners on UDP, requests over QUIC.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use http::{Request, Response, Version};
use http_body_util::Full;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::harness::{Backend, Proxy, listener, static_cluster};
use crate::pki::{Authority, Issued};
use amime_translate::offline::{NamedText, translate};
use amime_xds::Resource;

const HCM: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const QUIC: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.quic.v3.QuicDownstreamTransport";

/// A chain for a name, whose requests go to the cluster `c`.
fn chain(name: &str, certificate: &str) -> String {
    format!(
        r#"
- filter_chain_match: {{server_names: [{name}]}}
  transport_socket:
    name: quic
    typed_config:
      "@type": {QUIC}
      downstream_tls_context: {{common_tls_context: {{alpn_protocols: [h3], tls_certificates: [{certificate}]}}}}
  filters:
  - name: hcm
    typed_config:
      "@type": {HCM}
      codec_type: HTTP3
      stat_prefix: h3
      route_config:
        name: r
        virtual_hosts: [{{name: v, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: c}}}}], response_headers_to_add: [{{header: {{key: x-chain, value: {name}}}}}, {{header: {{key: x-protocol, value: "%PROTOCOL%"}}}}]}}]
      http_filters: [{{name: router, typed_config: {{"@type": {ROUTER}}}}}]"#
    )
}

fn quic_listener(chains: &str) -> amime_xds::Resource {
    listener(&format!(
        "name: http\naddress: {{socket_address: {{protocol: UDP, address: 127.0.0.1, port_value: 0}}}}\nudp_listener_config: {{quic_options: {{}}}}\nfilter_chains:{chains}"
    ))
}

/// A client's connection for one name.
struct Client {
    send: h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
    quic: quinn::Connection,
    _endpoint: quinn::Endpoint,
}

impl Client {
    async fn connect(ca: &Authority, address: SocketAddr, name: &str) -> Self {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).expect("PEM"))
            .expect("a root");
        let mut tls = rustls::ClientConfig::builder_with_provider(amime_identity::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let tls = QuicClientConfig::try_from(tls).expect("suites for QUIC");
        let mut endpoint =
            quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
        let quic = endpoint.connect(address, name).expect("an address");
        let quic = quic.await.expect("a handshake");
        let transport = h3_quinn::Connection::new(quic.clone());
        let (mut driver, send) = h3::client::new(transport).await.expect("HTTP/3");
        tokio::spawn(async move { driver.wait_idle().await });
        Self { send, quic, _endpoint: endpoint }
    }

    async fn ask(&mut self, request: Request<()>, body: &[Bytes]) -> Response<Bytes> {
        let mut stream = self.send.send_request(request).await.expect("a stream");
        for part in body {
            stream.send_data(part.clone()).await.expect("the proxy reads");
        }
        stream.finish().await.expect("the proxy reads");
        let response = stream.recv_response().await.expect("a response");
        let mut content = Vec::new();
        while let Some(mut data) = stream.recv_data().await.expect("a body") {
            content.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        response.map(|()| content.into())
    }
}

fn get(host: &str, path: &str) -> Request<()> {
    Request::get(format!("https://{host}{path}")).body(()).expect("a request")
}

#[tokio::test]
async fn requests_over_quic_reach_the_upstream() {
    let backend = Backend::start(|seen| {
        let mut response = Response::new(Full::from(seen.body.clone()));
        response.headers_mut().insert("x-upstream", http::HeaderValue::from_static("yes"));
        response
    })
    .await;
    let ca = Authority::new();
    let chains = ["a.test", "b.test"].map(|name| chain(name, &ca.host(name).yaml())).concat();
    let proxy =
        Proxy::with(vec![static_cluster("c", backend.address, ""), quic_listener(&chains)]).await;
    // The name chooses certificate and chain.
    for name in ["a.test", "b.test"] {
        let mut client = Client::connect(&ca, proxy.address(), name).await;
        let response = client.ask(get(name, "/empty"), &[]).await;
        assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_3));
        assert_eq!(response.headers()["x-chain"], name);
        assert_eq!(response.headers()["x-protocol"], "HTTP/3");
        assert_eq!(response.headers()["x-upstream"], "yes");
        assert!(!response.headers().contains_key("connection"));
    }
    let seen = backend.seen.lock().expect("not poisoned")[0].clone();
    assert_eq!(seen.head.version(), Version::HTTP_11);
    assert_eq!(seen.head.headers()["host"], "a.test");
    assert_eq!(seen.head.headers()["x-forwarded-proto"], "https");
    assert!(!seen.head.headers().contains_key("transfer-encoding"), "there is no body");
    // A long body in parts, up and down.
    let mut client = Client::connect(&ca, proxy.address(), "a.test").await;
    let parts: Vec<Bytes> = (0..64_u8).map(|part| Bytes::from(vec![part; 16 * 1024])).collect();
    let request = Request::post("https://a.test/echo").body(()).expect("a request");
    let response = client.ask(request, &parts).await;
    assert_eq!(response.into_body(), parts.concat());
    // Streams beside each other on one connection.
    let both = [client.send.clone(), client.send.clone()].map(|send| {
        let mut other =
            Client { send, quic: client.quic.clone(), _endpoint: client._endpoint.clone() };
        async move { other.ask(get("a.test", "/"), &[]).await.status() }
    });
    let [one, two] = both;
    assert_eq!(tokio::join!(one, two), (http::StatusCode::OK, http::StatusCode::OK));
    // Counters of a worker without such connections are shown once more only.
    let stats = proxy.stats("http.h3.downstream_");
    for line in ["http.h3.downstream_rq_http3_total: 5", "http.h3.downstream_cx_http3_total: 3"] {
        assert!(stats.iter().any(|have| have == line), "{line} not in {stats:?}");
    }
    drop(client);
    proxy.until_stat("http.h3.downstream_cx_http3_active: 0").await;
}

#[tokio::test]
async fn a_client_of_an_unknown_name_gets_no_certificate() {
    let ca = Authority::new();
    let chains = chain("a.test", &ca.host("a.test").yaml());
    let proxy = Proxy::with(vec![quic_listener(&chains)]).await;
    let endpoint =
        quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
    let mut tls = rustls::ClientConfig::builder_with_provider(amime_identity::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let tls = QuicClientConfig::try_from(tls).expect("suites for QUIC");
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let quic = endpoint.connect_with(config, proxy.address(), "other.test").expect("an address");
    assert!(quic.await.is_err());
    proxy.until_stat("ssl.connection_error: 1").await;
}

#[tokio::test]
async fn a_listener_for_quic_carries_nothing_else() {
    let ca = Authority::new();
    let proxy = Proxy::empty();
    let chain = chain("a.test", &ca.host("a.test").yaml());
    let refused = |resource| format!("{:?}", proxy.runtime.apply_static(vec![resource]).rejected);
    let other = refused(quic_listener(&chain.replace("HTTP3", "HTTP2")));
    assert!(other.contains("QUIC carries HTTP/3"), "{other}");
    let tcp = listener(&format!(
        "name: http\naddress: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\nfilter_chains:{chain}"
    ));
    let tcp = refused(tcp);
    assert!(tcp.contains("HTTP/3 needs a QUIC listener"), "{tcp}");
    assert!(tcp.contains("QuicDownstreamTransport is not supported"), "{tcp}");
}

#[tokio::test]
async fn draining_finishes_the_request_and_says_goaway() {
    let (release, held) = tokio::sync::oneshot::channel::<()>();
    let held = std::sync::Mutex::new(Some(held));
    let backend = Backend::start_async(move |_| {
        let held = held.lock().expect("not poisoned").take();
        async move {
            if let Some(held) = held {
                let _ = held.await;
            }
            Response::new(Full::from("late"))
        }
    })
    .await;
    let ca = Authority::new();
    let chains = chain("a.test", &ca.host("a.test").yaml());
    let proxy =
        Proxy::with(vec![static_cluster("c", backend.address, ""), quic_listener(&chains)]).await;
    let mut client = Client::connect(&ca, proxy.address(), "a.test").await;
    let quic = client.quic.clone();
    let asking = tokio::spawn(async move { client.ask(get("a.test", "/"), &[]).await });
    while backend.count() == 0 {
        tokio::task::yield_now().await;
    }
    let runtime = proxy.runtime.clone();
    let drain = tokio::spawn(async move { runtime.drain(Duration::from_secs(10)).await });
    proxy.until_stat("http.h3.downstream_cx_drain_close: 1").await;
    release.send(()).expect("the backend waits");
    let response = asking.await.expect("no panic");
    assert_eq!((response.status().as_u16(), &response.into_body()[..]), (200, &b"late"[..]));
    quic.close(0_u32.into(), b"");
    assert!(drain.await.expect("the task ends"), "the connection ended");
}

/// A port of the loopback that nobody has, for TCP as well as for UDP.
fn free_port() -> u16 {
    loop {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = tcp.local_addr().expect("bound");
        if std::net::UdpSocket::bind(address).is_ok() {
            return address.port();
        }
    }
}

/// What the control plane tells a gateway that can take QUIC.
fn told(port: u16, backend: SocketAddr, credential: &Issued) -> Vec<Resource> {
    let encoded = |pem: &str| STANDARD.encode(pem);
    let objects = format!(
        r#"
apiVersion: v1
kind: Secret
metadata: {{name: edge, namespace: istio-system}}
type: kubernetes.io/tls
data: {{tls.crt: {}, tls.key: {}}}
---
apiVersion: v1
kind: Service
metadata: {{name: ingress, namespace: istio-system}}
spec:
  selector: {{istio: ingressgateway}}
  ports: [{{name: https, port: {port}}}, {{name: http3, port: {port}, protocol: UDP}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: gateway, namespace: istio-system, labels: {{istio: ingressgateway}}}}
spec: {{containers: [{{name: gateway}}]}}
status: {{podIP: 127.0.0.1, phase: Running, conditions: [{{type: Ready, status: 'True'}}]}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge, namespace: istio-system}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - {{port: {{number: {port}, name: https, protocol: HTTPS}}, bind: 127.0.0.1, hosts: [a.test], tls: {{mode: SIMPLE, credentialName: edge}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: a, namespace: istio-system}}
spec: {{hosts: [a.test], gateways: [edge], http: [{{route: [{{destination: {{host: web.test}}}}]}}]}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web, namespace: istio-system}}
spec:
  hosts: [web.test]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {}}}}}]
"#,
        encoded(&credential.chain),
        encoded(&credential.key),
        backend.port(),
    );
    let proxy = r#"{"type": "router", "ips": ["127.0.0.1"], "id": "gateway.istio-system",
        "dns_domain": "istio-system.svc.cluster.local", "labels": {"istio": "ingressgateway"},
        "metadata": {"NAMESPACE": "istio-system", "LABELS": {"istio": "ingressgateway"}},
        "extensions": ["envoy.filters.http.router", "envoy.transport_sockets.quic"],
        "quic_listeners": true}"#;
    let file = NamedText { name: "objects.yaml", text: &objects };
    // Nobody here has certificates for traffic within the mesh.
    let mesh = NamedText { name: "mesh.yaml", text: "enableAutoMtls: false" };
    let translated = translate(&[file], Some(mesh), proxy).expect("objects");
    assert!(translated.skipped.is_empty(), "{:?}", translated.skipped);
    let dump = translated.dump;
    assert_eq!(dump.secrets.len(), 1, "the listener waits for its certificate");
    let mut all = Vec::new();
    all.extend(dump.secrets.iter().map(|one| Resource::encode(one.name.clone(), one)));
    all.extend(dump.clusters.iter().map(|one| Resource::encode(one.name.clone(), one)));
    all.extend(dump.endpoints.iter().map(|one| Resource::encode(one.cluster_name.clone(), one)));
    all.extend(dump.listeners.iter().map(|one| Resource::encode(one.name.clone(), one)));
    all.extend(dump.routes.iter().map(|one| Resource::encode(one.name.clone(), one)));
    all
}

#[tokio::test]
async fn a_gateways_https_server_is_there_over_http3_and_says_so() {
    let backend = Backend::named("ok").await;
    let ca = Authority::new();
    let port = free_port();
    let proxy = Proxy::with(told(port, backend.address, &ca.host("a.test"))).await;
    let address = proxy.runtime.listener_address(&format!("udp_127.0.0.1_{port}"));
    let address = address.expect("a listener for QUIC");
    let mut client = Client::connect(&ca, address, "a.test").await;
    let response = client.ask(get("a.test", "/"), &[]).await;
    assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_3));
    assert_eq!(response.headers()["alt-svc"], format!("h3=\":{port}\"; ma=86400"));
    assert_eq!(&response.into_body()[..], b"ok");
    assert_eq!(backend.only().head.headers()["x-forwarded-proto"], "https");
}
