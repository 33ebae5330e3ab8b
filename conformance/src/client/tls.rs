//! Our side of TLS: any server certificate is taken, and named in the result.

use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::case::Tls;
use crate::certs::Certs;

/// Connects; what was agreed on, or how the peer refused.
pub(super) async fn connect(
    settings: &Tls,
    stream: TcpStream,
    certs: &Certs,
) -> Result<(TlsStream<TcpStream>, String), String> {
    let config = config(settings, certs).map_err(|error| format!("bad case: {error:#}"))?;
    let name = settings.sni.clone().unwrap_or_else(|| "unnamed.test".into());
    let name = ServerName::try_from(name).map_err(|error| format!("bad case: {error}"))?;
    let connector = TlsConnector::from(Arc::new(config));
    match connector.connect(name, stream).await {
        Ok(stream) => {
            let facts = facts(stream.get_ref().1);
            Ok((stream, facts))
        }
        Err(error) => Err(alert(&error).unwrap_or_else(|| "closed in the handshake".into())),
    }
}

/// The alert behind a failed read or write.
pub(super) fn alert(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::AlertReceived(alert) => format!("refused: {alert:?}"),
        other => format!("refused by us: {other}"),
    })
}

fn config(settings: &Tls, certs: &Certs) -> anyhow::Result<ClientConfig> {
    let versions: &[&'static SupportedProtocolVersion] = match settings.version.as_deref() {
        Some("1.2") => &[&TLS12],
        Some("1.3") => &[&TLS13],
        Some(other) => anyhow::bail!("no version {other}"),
        None => &[&TLS13, &TLS12],
    };
    let builder = ClientConfig::builder_with_protocol_versions(versions)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match &settings.cert {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let (chain, key) = certs.leaf(name)?;
            builder.with_client_auth_cert(chain, key)?
        }
    };
    config.enable_sni = settings.sni.is_some();
    config.alpn_protocols = settings.alpn.iter().map(|name| name.clone().into_bytes()).collect();
    Ok(config)
}

fn facts(connection: &rustls::ClientConnection) -> String {
    let alpn = connection.alpn_protocol().map(String::from_utf8_lossy);
    let server = connection.peer_certificates().and_then(|chain| chain.first());
    format!(
        "{} alpn={} server={}",
        connection.protocol_version().map_or_else(String::new, |version| format!("{version:?}")),
        alpn.as_deref().unwrap_or("-"),
        server.map_or_else(|| "-".to_owned(), |one| Certs::name_of(one.as_ref())),
    )
}

/// The certificate is compared afterwards, so any will do.
#[derive(Debug)]
struct AnyServer;

impl AnyServer {
    fn provider() -> &'static Arc<CryptoProvider> {
        CryptoProvider::get_default().expect("installed when the program starts")
    }
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &Self::provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &Self::provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::provider().signature_verification_algorithms.supported_schemes()
    }
}
