//! A certificate authority, and a TLS client that tells what it met.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use amime_identity::{
    LiveBundle, LiveCert, PeerChecks, PrivateKey, ServerNameCheck, TlsOptions, TrustBundle,
    WorkloadCert, server_name, upstream_config,
};
use amime_xds::Resource;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Signs certificates of hosts.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Chain and key, PEM.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a root"))
    }

    pub(crate) fn host(&self, name: &str) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let cert = params.signed_by(&key, &self.0).expect("a certificate");
        Issued { chain: cert.pem(), key: key.serialize_pem() }
    }

    pub(crate) fn pem(&self) -> String {
        self.0.as_ref().pem()
    }

    /// A secret of what it takes to trust this authority.
    pub(crate) fn secret(&self, name: &str) -> Resource {
        secret(name, &format!("validation_context: {{trusted_ca: {}}}", inline(&self.pem())))
    }
}

impl Issued {
    /// A secret of the certificate.
    pub(crate) fn secret(&self, name: &str) -> Resource {
        secret(name, &format!("tls_certificate: {}", self.yaml()))
    }

    /// A `TlsCertificate` in YAML.
    pub(crate) fn yaml(&self) -> String {
        let (chain, key) = (inline(&self.chain), inline(&self.key));
        format!("{{certificate_chain: {chain}, private_key: {key}}}")
    }

    fn live(&self) -> Arc<LiveCert> {
        let key = PrivateKey::from_pem(self.key.as_bytes()).expect("our own key");
        LiveCert::new(WorkloadCert::from_pem(self.chain.as_bytes(), key).expect("our own chain"))
    }
}

/// An inline data source in YAML.
pub(crate) fn inline(pem: &str) -> String {
    format!("{{inline_string: \"{}\"}}", pem.replace("\r\n", "\n").replace('\n', "\\n"))
}

/// A secret resource from YAML.
pub(crate) fn secret(name: &str, fields: &str) -> Resource {
    let yaml = format!("name: \"{name}\"\n{fields}");
    let message: Secret = amime_xds::json::from_yaml(&yaml).expect("secret YAML");
    Resource::encode(name, &message)
}

/// A TLS client.
pub(crate) struct Client<'a> {
    /// Whom it trusts; nobody is anybody.
    pub(crate) trusts: Option<&'a Authority>,
    pub(crate) shows: Option<Issued>,
    pub(crate) sni: Option<&'a str>,
    pub(crate) options: TlsOptions,
}

impl<'a> Client<'a> {
    pub(crate) fn of(authority: &'a Authority, sni: &'a str) -> Self {
        let options = TlsOptions::default();
        Self { trusts: Some(authority), shows: None, sni: Some(sni), options }
    }

    /// Shakes hands with the server at `address`.
    pub(crate) async fn connect(
        self,
        address: SocketAddr,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let bundle = |authority: &Authority| {
            LiveBundle::new(TrustBundle::from_pem(authority.pem().as_bytes()).expect("a root"))
        };
        let checks = PeerChecks {
            roots: self.trusts.map(bundle),
            server_name: ServerNameCheck::Also,
            ..PeerChecks::default()
        };
        let checks = if self.trusts.is_none() { PeerChecks::default() } else { checks };
        let cert = self.shows.as_ref().map(Issued::live);
        let config = upstream_config(cert, checks, 0, &self.options).expect("client settings");
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(config).connect(server_name(self.sni), stream).await
    }

    /// A GET within TLS: the whole answer, empty if there was none.
    pub(crate) async fn get(self, address: SocketAddr, path: &str) -> String {
        match self.connect(address).await {
            Ok(mut stream) => get(&mut stream, path, "connection: close\r\n").await,
            Err(_) => String::new(),
        }
    }
}

/// A GET on an open connection; reads to its end.
pub(crate) async fn get(stream: &mut TlsStream<TcpStream>, path: &str, headers: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\n{headers}\r\n");
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        stream.read_to_end(&mut answer).await
    };
    let _ = tokio::time::timeout(Duration::from_secs(10), exchange).await.expect("in time");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The certificate that the server has shown.
pub(crate) fn shown(stream: &TlsStream<TcpStream>) -> String {
    let chain = stream.get_ref().1.peer_certificates().expect("a certificate");
    amime_identity::chain_to_pem(chain)
}
