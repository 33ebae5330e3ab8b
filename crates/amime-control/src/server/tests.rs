//! The TLS listener with the certificate service behind it, over loopback.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use amime_ca::{CallerIdentity, CertificateAuthority, Credential, TokenSubject, WorkloadTokens};
use amime_core::SpiffeId;
use amime_identity::{
    CertificateDetails, ClientAuth, LiveBundle, LiveCert, PeerIdentities, PlainServerCheck,
    TlsOptions, WorkloadCert, new_key_and_csr, plain_client_config, server_config, server_name,
};
use amime_xds::istio::ca::{
    IstioCertificateRequest, IstioCertificateServiceClient, IstioCertificateServiceServer,
};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::{Authenticator, serve_tls};
use crate::ca::CertificateService;
use crate::metrics::{CaMetrics, Metrics};

const HOUR: Duration = Duration::from_secs(3600);
const NAME: &str = "istiod.istio-system.svc";

/// A control plane's TLS port.
struct Port {
    _dir: tempfile::TempDir,
    authority: Arc<CertificateAuthority>,
    tokens: Arc<WorkloadTokens>,
    metrics: CaMetrics,
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn authority(dir: &Path) -> CertificateAuthority {
    CertificateAuthority::self_signed(dir, "cluster.local", SystemTime::now()).expect("a new CA")
}

fn reviews() -> SpiffeId {
    SpiffeId::new("cluster.local", "default", "reviews")
}

fn subject() -> TokenSubject {
    TokenSubject {
        namespace: "default".into(),
        service_account: "reviews".into(),
        pod_name: "reviews-1".into(),
        pod_uid: "1".into(),
    }
}

/// A certificate of `authority` for a workload.
fn workload(
    authority: &CertificateAuthority,
    id: &SpiffeId,
    ttl: Duration,
    at: SystemTime,
) -> WorkloadCert {
    let request = new_key_and_csr(id).expect("CSR");
    let caller =
        CallerIdentity { spiffe_id: id.clone(), credential: Credential::ClientCertificate };
    let chain = authority.sign(&request.csr_pem, &caller, Some(ttl), at).expect("signed");
    WorkloadCert::from_pem(chain.concat().as_bytes(), request.key).expect("fits")
}

impl Port {
    async fn open() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let authority = Arc::new(authority(dir.path()));
        let tokens = Arc::new(WorkloadTokens::open(dir.path()).expect("opens"));
        let metrics = Metrics::new().ca.clone();
        let names = [NAME.to_owned()];
        let cert = authority.serving_cert(&names, HOUR, SystemTime::now()).expect("issued");
        let tls = server_config(
            LiveCert::new(cert),
            LiveBundle::new(authority.roots().clone()),
            ClientAuth::Optional(PeerIdentities::trust_domain("cluster.local")),
            &TlsOptions::with_alpn(["h2"]),
        )
        .expect("settings");
        let service = CertificateService::new(authority.clone(), metrics.clone(), SystemTime::now);
        let routes = Routes::new(IstioCertificateServiceServer::new(service)).into_axum_router();
        let auth = Authenticator::new(Some(tokens.clone()), "cluster.local", SystemTime::now);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let shutdown = CancellationToken::new();
        tokio::spawn(serve_tls(listener, tls, auth, routes, shutdown.clone()));
        Self { _dir: dir, authority, tokens, metrics, address, shutdown }
    }

    async fn connect(
        &self,
        cert: Option<WorkloadCert>,
    ) -> Result<Channel, tonic::transport::Error> {
        let roots = LiveBundle::new(self.authority.roots().clone());
        let tls = plain_client_config(
            cert.map(LiveCert::new),
            PlainServerCheck::ServerName(roots),
            &TlsOptions::with_alpn(["h2"]),
        )
        .expect("settings");
        let address = self.address;
        let connector = tower::service_fn(move |_| {
            let connector = TlsConnector::from(tls.clone());
            async move {
                let stream = TcpStream::connect(address).await?;
                let stream = connector.connect(server_name(Some(NAME)), stream).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        Endpoint::from_static("http://istiod").connect_with_connector(connector).await
    }

    /// Asks for a certificate with `csr` and returns the leaf's names.
    async fn ask(
        &self,
        cert: Option<WorkloadCert>,
        token: Option<&str>,
        csr: String,
    ) -> Result<Vec<String>, Status> {
        let refused = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        let channel = self.connect(cert).await.map_err(refused)?;
        let message = IstioCertificateRequest { csr, validity_duration: 3600, metadata: None };
        let mut request = Request::new(message);
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().expect("ASCII");
            request.metadata_mut().insert("authorization", value);
        }
        let mut client = IstioCertificateServiceClient::new(channel);
        let chain = client.create_certificate(request).await?.into_inner().cert_chain;
        let leaf = CertificateDetails::of_pem(chain[0].as_bytes()).expect("leaf");
        Ok(leaf.subject_alt_names.iter().map(ToString::to_string).collect())
    }
}

fn csr(id: &SpiffeId) -> String {
    new_key_and_csr(id).expect("CSR").csr_pem
}

#[tokio::test]
async fn a_token_or_a_certificate_names_the_caller_and_the_request_does_not() {
    let port = Port::open().await;
    let admin = SpiffeId::new("cluster.local", "kube-system", "admin");
    let token = port.tokens.issue(&subject(), HOUR, SystemTime::now()).expect("issued");
    let by_token = port.ask(None, Some(&token), csr(&admin)).await.expect("issued");
    assert_eq!(by_token, [reviews().to_string()]);

    let cert = || workload(&port.authority, &reviews(), HOUR, SystemTime::now());
    let by_cert = port.ask(Some(cert()), None, csr(&admin)).await.expect("issued");
    assert_eq!(by_cert, [reviews().to_string()]);
    // Next to a good certificate a bad token does not matter.
    port.ask(Some(cert()), Some("nonsense"), csr(&admin)).await.expect("issued");
    assert_eq!((port.metrics.requests.value(), port.metrics.issued.value()), (3, 3));
}

#[tokio::test]
async fn callers_without_an_identity_reach_nothing() {
    #[track_caller]
    fn check(got: Result<Vec<String>, Status>, want: &str) {
        let status = got.expect_err("must be refused");
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, want));
    }
    let port = Port::open().await;
    let ask = |token: Option<String>| {
        let port = &port;
        async move { port.ask(None, token.as_deref(), csr(&reviews())).await }
    };
    let invalid = "the bearer token is not valid";
    check(ask(None).await, "neither a client certificate nor a bearer token was presented");
    check(ask(Some("nonsense".into())).await, invalid);
    let yesterday = SystemTime::now() - 24 * HOUR;
    check(ask(port.tokens.issue(&subject(), HOUR, yesterday).ok()).await, invalid);
    let elsewhere = tempfile::tempdir().expect("dir");
    let foreign = WorkloadTokens::open(elsewhere.path()).expect("opens");
    check(ask(foreign.issue(&subject(), HOUR, SystemTime::now()).ok()).await, invalid);
    assert_eq!(port.metrics.requests.value(), 0, "the service never ran");
}

#[tokio::test]
async fn client_certificates_of_others_and_of_the_past_end_the_handshake() {
    let port = Port::open().await;
    let refused = |cert: WorkloadCert| {
        let port = &port;
        async move {
            let got = port.ask(Some(cert), None, csr(&reviews())).await;
            got.expect_err("must be refused").code()
        }
    };
    let dir = tempfile::tempdir().expect("dir");
    let stranger = authority(dir.path());
    let now = SystemTime::now();
    let codes = [
        refused(workload(&stranger, &reviews(), HOUR, now)).await,
        refused(workload(&port.authority, &reviews(), HOUR, now - 2 * HOUR)).await,
        refused(workload(&port.authority, &SpiffeId::new("other", "a", "b"), HOUR, now)).await,
    ];
    assert!(codes.iter().all(|code| *code != Code::Ok && *code != Code::Unauthenticated));
    assert_eq!(port.metrics.requests.value(), 0, "the service never ran");
}

#[tokio::test]
async fn bad_requests_are_the_callers_fault() {
    let port = Port::open().await;
    let token = port.tokens.issue(&subject(), HOUR, SystemTime::now()).expect("issued");
    for csr in ["garbage".to_owned(), String::new(), "A".repeat(100_000)] {
        let status = port.ask(None, Some(&token), csr).await.expect_err("must be refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    assert_eq!(port.metrics.malformed.value(), 3);
    let huge = port.ask(None, Some(&token), "A".repeat(8 << 20)).await.expect_err("too large");
    assert_eq!(huge.code(), Code::OutOfRange, "{huge:?}");
}

#[tokio::test]
async fn a_silent_client_does_not_keep_others_waiting() {
    let port = Port::open().await;
    let _silent = TcpStream::connect(port.address).await.expect("connects");
    let token = port.tokens.issue(&subject(), HOUR, SystemTime::now()).expect("issued");
    port.ask(None, Some(&token), csr(&reviews())).await.expect("issued");
}
