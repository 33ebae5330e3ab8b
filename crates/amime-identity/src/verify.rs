//! Verifiers of both directions: chain, validity, then the peer's names.
//!
//! Owns the decision whether a peer is who the configuration wants; what the
//! peer may then do is authorization policy and decided elsewhere.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyUsage};

use crate::details::{SubjectAltName, subject_alt_names};
use crate::live::LiveBundle;
use crate::peer::{PeerIdentities, spiffe_id_of};
use crate::provider::provider;

/// Why a peer with a good chain was refused all the same; found as the source
/// of the handshake's [`rustls::Error`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerRejected {
    /// No root has arrived yet.
    #[error("no trusted root certificate is known yet")]
    NoRoots,
    /// Not exactly one URI SAN, or not a SPIFFE ID.
    #[error("the peer's certificate names no single SPIFFE ID: [{names}]")]
    NoSpiffeId {
        /// The names that it has.
        names: String,
    },
    /// A workload of a foreign mesh.
    #[error("the peer's trust domain {found} is not one of [{accepted}]")]
    TrustDomain {
        /// Of the peer.
        found: String,
        /// By configuration.
        accepted: String,
    },
    /// None of the wanted names.
    #[error("the peer's names [{names}] match no accepted subject alternative name")]
    SubjectAltName {
        /// The names that it has.
        names: String,
    },
}

impl From<PeerRejected> for Error {
    fn from(rejected: PeerRejected) -> Self {
        let rejected = OtherError(Arc::new(rejected));
        Error::InvalidCertificate(CertificateError::Other(rejected))
    }
}

/// How a client checks the server's names.
#[derive(Clone, Debug)]
pub(crate) enum NameCheck {
    /// The identities alone; the server name is only a routing hint.
    Identities(PeerIdentities),
    /// The server name of the handshake must be one of the certificate's.
    ServerName,
}

/// Checks servers.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    chain: ChainVerifier,
    names: NameCheck,
}

impl ServerVerifier {
    pub(crate) fn new(bundle: Arc<LiveBundle>, names: NameCheck) -> Self {
        Self { chain: ChainVerifier::new(bundle), names }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.chain.verify(end_entity, intermediates, now, KeyUsage::server_auth())?;
        match &self.names {
            NameCheck::Identities(accepted) => check_names(end_entity, accepted)?,
            NameCheck::ServerName => EndEntityCert::try_from(end_entity)
                .and_then(|cert| cert.verify_is_valid_for_subject_name(server_name))
                .map_err(|_| CertificateError::NotValidForName)?,
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.chain.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.chain.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.algorithms.supported_schemes()
    }
}

/// Checks clients.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    chain: ChainVerifier,
    accepted: PeerIdentities,
    mandatory: bool,
}

impl ClientVerifier {
    pub(crate) fn new(bundle: Arc<LiveBundle>, accepted: PeerIdentities, mandatory: bool) -> Self {
        Self { chain: ChainVerifier::new(bundle), accepted, mandatory }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // The roots change under way, and clients of a mesh hold one certificate.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.chain.verify(end_entity, intermediates, now, KeyUsage::client_auth())?;
        check_names(end_entity, &self.accepted)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.chain.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.chain.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.algorithms.supported_schemes()
    }
}

/// Accepts any server: `insecureSkipVerify` of a DestinationRule. Signatures
/// of the handshake still count, so that the key is at least the certificate's.
#[derive(Debug)]
pub(crate) struct UncheckedServer {
    algorithms: WebPkiSupportedAlgorithms,
}

impl UncheckedServer {
    pub(crate) fn new() -> Self {
        Self { algorithms: provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for UncheckedServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Builds a path to a root of the bundle in force at the handshake.
#[derive(Debug)]
struct ChainVerifier {
    bundle: Arc<LiveBundle>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ChainVerifier {
    fn new(bundle: Arc<LiveBundle>) -> Self {
        Self { bundle, algorithms: provider().signature_verification_algorithms }
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: impl ExtendedKeyUsageValidator,
    ) -> Result<(), Error> {
        let bundle = self.bundle.current();
        if bundle.is_empty() {
            return Err(PeerRejected::NoRoots.into());
        }
        EndEntityCert::try_from(end_entity)
            .and_then(|cert| {
                cert.verify_for_usage(
                    self.algorithms.all,
                    bundle.anchors(),
                    intermediates,
                    now,
                    usage,
                    None,
                    None,
                )
                .map(|_| ())
            })
            .map_err(|error| Error::InvalidCertificate(certificate_error(error)))
    }
}

fn check_names(end_entity: &CertificateDer<'_>, accepted: &PeerIdentities) -> Result<(), Error> {
    if accepted.trust_domains.is_empty() && accepted.sans.is_empty() {
        return Ok(());
    }
    let names = subject_alt_names(end_entity).map_err(|_| CertificateError::BadEncoding)?;
    if !accepted.trust_domains.is_empty() {
        let id = spiffe_id_of(&names)
            .ok_or_else(|| PeerRejected::NoSpiffeId { names: listed(&names) })?;
        if !accepted.trust_domains.contains(&id.trust_domain) {
            let accepted = accepted.trust_domains.join(", ");
            return Err(PeerRejected::TrustDomain { found: id.trust_domain, accepted }.into());
        }
    }
    let matched = accepted.sans.is_empty()
        || accepted.sans.iter().any(|matcher| names.iter().any(|name| matcher.matches(name)));
    if !matched {
        return Err(PeerRejected::SubjectAltName { names: listed(&names) }.into());
    }
    Ok(())
}

fn listed(names: &[SubjectAltName]) -> String {
    // A hostile certificate may carry thousands of names; a log line shows a few.
    const SHOWN: usize = 8;
    let mut shown: Vec<String> = names.iter().take(SHOWN).map(ToString::to_string).collect();
    if names.len() > SHOWN {
        shown.push(format!("and {} more", names.len() - SHOWN));
    }
    shown.join(", ")
}

/// webpki's reasons in rustls' words, which decide the TLS alert that is sent.
fn certificate_error(error: webpki::Error) -> CertificateError {
    match error {
        webpki::Error::BadDer | webpki::Error::BadDerTime | webpki::Error::TrailingData(_) => {
            CertificateError::BadEncoding
        }
        webpki::Error::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
}
