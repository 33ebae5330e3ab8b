//! Verifiers of both directions: chain, validity, then the peer's names.
//!
//! Owns the decision whether a peer is who the configuration wants; what the
//! peer may then do is authorization policy and decided elsewhere.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExtendedKeyUsageValidator, KeyUsage, RevocationCheckDepth,
    RevocationOptions, RevocationOptionsBuilder, VerifiedPath,
};

use crate::bundle::TrustBundle;
use crate::details::{CertificateDetails, SubjectAltName, public_key_info, subject_alt_names};
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
    /// Not the name that was asked for.
    #[error("the peer's names [{names}] do not include {expected}")]
    ServerName {
        /// The name of the handshake.
        expected: String,
        /// The names that it has.
        names: String,
    },
    /// None of the pinned certificates and keys.
    #[error("neither the peer's certificate nor its key is a pinned one")]
    Pin,
    /// More certificates between leaf and root than allowed.
    #[error("the peer's chain is longer than allowed")]
    Depth,
}

impl From<PeerRejected> for Error {
    fn from(rejected: PeerRejected) -> Self {
        let rejected = OtherError(Arc::new(rejected));
        Error::InvalidCertificate(CertificateError::Other(rejected))
    }
}

/// What is asked of a peer's certificate; the default asks nothing.
#[derive(Clone, Debug, Default)]
pub struct PeerChecks {
    /// Roots, one of which the chain must end in. `None`: the chain is not
    /// looked at.
    pub roots: Option<Arc<LiveBundle>>,
    /// Names and pins.
    pub identities: PeerIdentities,
    /// Whether the server name of the handshake must be one of the
    /// certificate's.
    pub server_name: ServerNameCheck,
    /// Let in peers that fail all this.
    pub accept_untrusted: bool,
    /// Do not look at validity periods.
    pub allow_expired: bool,
    /// Look up only the leaf in revocation lists, not its issuers.
    pub leaf_crl_only: bool,
    /// Most certificates between leaf and root. Default: what webpki allows.
    pub max_depth: Option<u32>,
}

/// What the server name of a handshake has to do with the certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerNameCheck {
    /// Nothing.
    #[default]
    Never,
    /// It must be one of the names, beside all else.
    Also,
    /// It must be one of the names, and takes the place of the SAN matchers;
    /// these count in a handshake without server name.
    InsteadOfSans,
}

/// Checks servers.
#[derive(Debug)]
pub(crate) struct ServerVerifier(Verifier);

impl ServerVerifier {
    pub(crate) fn new(checks: PeerChecks) -> Self {
        Self(Verifier::new(checks))
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
        let peer = Peer { end_entity, intermediates, server_name: Some(server_name), now };
        self.0.verify(&peer, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}

/// Checks clients.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    verifier: Verifier,
    mandatory: bool,
}

impl ClientVerifier {
    pub(crate) fn new(checks: PeerChecks, mandatory: bool) -> Self {
        Self { verifier: Verifier::new(checks), mandatory }
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
        let peer = Peer { end_entity, intermediates, server_name: None, now };
        self.verifier.verify(&peer, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.verifier.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.verifier.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.algorithms.supported_schemes()
    }
}

/// A peer as it presents itself.
struct Peer<'a> {
    end_entity: &'a CertificateDer<'a>,
    intermediates: &'a [CertificateDer<'a>],
    server_name: Option<&'a ServerName<'a>>,
    now: UnixTime,
}

/// Runs the checks with the roots in force at the handshake. Signatures of the
/// handshake count whatever the checks are, so that the key is at least the
/// certificate's.
#[derive(Debug)]
struct Verifier {
    checks: PeerChecks,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(checks: PeerChecks) -> Self {
        Self { checks, algorithms: provider().signature_verification_algorithms }
    }

    fn verify(&self, peer: &Peer<'_>, usage: KeyUsage) -> Result<(), Error> {
        match self.verify_strictly(peer, usage) {
            Err(error) if self.checks.accept_untrusted => {
                tracing::debug!(%error, "untrusted peer accepted, as configured");
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn verify_strictly(&self, peer: &Peer<'_>, usage: KeyUsage) -> Result<(), Error> {
        let Some(roots) = &self.checks.roots else {
            return check_names(peer, &self.checks, &PeerIdentities::any());
        };
        let bundle = roots.current();
        if !bundle.is_empty() {
            self.verify_chain(peer, &bundle, usage)?;
        } else if bundle.identities().is_any() {
            return Err(PeerRejected::NoRoots.into());
        }
        check_names(peer, &self.checks, bundle.identities())
    }

    fn verify_chain(
        &self,
        peer: &Peer<'_>,
        bundle: &TrustBundle,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let verified = self.path_to_root(peer, bundle, usage, peer.now);
        let expired = match verified {
            Err(
                webpki::Error::CertExpired { not_after: at, .. }
                | webpki::Error::CertNotValidYet { not_before: at, .. },
            ) if self.checks.allow_expired => at,
            // A certificate that is itself trusted needs no issuer.
            Err(error) if bundle.certificates().contains(peer.end_entity) => {
                return self
                    .verify_validity(peer)
                    .map_err(|()| Error::InvalidCertificate(certificate_error(error)));
            }
            other => return other.map_err(path_error),
        };
        // webpki has no switch for time, so the chain is judged as of the last
        // moment at which the certificate in question was valid.
        self.path_to_root(peer, bundle, usage, expired).map_err(path_error)
    }

    fn verify_validity(&self, peer: &Peer<'_>) -> Result<(), ()> {
        if self.checks.allow_expired {
            return Ok(());
        }
        let details = CertificateDetails::of(peer.end_entity).map_err(|_| ())?;
        let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(peer.now.as_secs());
        if details.valid_at(now) { Ok(()) } else { Err(()) }
    }

    fn path_to_root(
        &self,
        peer: &Peer<'_>,
        bundle: &TrustBundle,
        usage: impl ExtendedKeyUsageValidator,
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let lists: Vec<&CertRevocationList<'_>> =
            bundle.revoked().iter().map(|list| &**list).collect();
        let depth = |path: &VerifiedPath<'_>| match self.checks.max_depth {
            Some(limit) if path.intermediate_certificates().count() > limit as usize => {
                Err(webpki::Error::MaximumPathDepthExceeded)
            }
            _ => Ok(()),
        };
        EndEntityCert::try_from(peer.end_entity)?
            .verify_for_usage(
                self.algorithms.all,
                bundle.anchors(),
                peer.intermediates,
                now,
                usage,
                self.revocation(&lists),
                Some(&depth),
            )
            .map(|_| ())
    }

    fn revocation<'a>(
        &self,
        lists: &'a [&'a CertRevocationList<'a>],
    ) -> Option<RevocationOptions<'a>> {
        let depth = match self.checks.leaf_crl_only {
            true => RevocationCheckDepth::EndEntity,
            false => RevocationCheckDepth::Chain,
        };
        let builder = RevocationOptionsBuilder::new(lists).ok()?;
        Some(builder.with_depth(depth).build())
    }
}

/// Checks names and pins: those of the configuration and those that came with
/// the roots.
fn check_names(peer: &Peer<'_>, checks: &PeerChecks, more: &PeerIdentities) -> Result<(), Error> {
    let accepted = &checks.identities;
    let by_name = checks.server_name != ServerNameCheck::Never;
    let host = peer.server_name.filter(|name| by_name && is_named(name));
    if accepted.is_any() && more.is_any() && host.is_none() {
        return Ok(());
    }
    let names = subject_alt_names(peer.end_entity).map_err(|_| CertificateError::BadEncoding)?;
    if let Some(host) = host {
        EndEntityCert::try_from(peer.end_entity)
            .and_then(|cert| cert.verify_is_valid_for_subject_name(host))
            .map_err(|_| {
                let expected = host.to_str().into_owned();
                PeerRejected::ServerName { expected, names: listed(&names) }
            })?;
    }
    if !accepted.trust_domains.is_empty() {
        let id = spiffe_id_of(&names)
            .ok_or_else(|| PeerRejected::NoSpiffeId { names: listed(&names) })?;
        if !accepted.trust_domains.contains(&id.trust_domain) {
            let accepted = accepted.trust_domains.join(", ");
            return Err(PeerRejected::TrustDomain { found: id.trust_domain, accepted }.into());
        }
    }
    let mut wanted = accepted.sans.iter().chain(&more.sans).peekable();
    let replaced = host.is_some() && checks.server_name == ServerNameCheck::InsteadOfSans;
    if !replaced
        && wanted.peek().is_some()
        && !wanted.any(|matcher| names.iter().any(|name| matcher.matches(name)))
    {
        return Err(PeerRejected::SubjectAltName { names: listed(&names) }.into());
    }
    if (accepted.pins() || more.pins()) && !pinned(peer.end_entity, [accepted, more])? {
        return Err(PeerRejected::Pin.into());
    }
    Ok(())
}

/// False for the address that stands for "no server name".
fn is_named(name: &ServerName<'_>) -> bool {
    match name {
        ServerName::IpAddress(ip) => !std::net::IpAddr::from(*ip).is_unspecified(),
        _ => true,
    }
}

fn pinned(certificate: &CertificateDer<'_>, pins: [&PeerIdentities; 2]) -> Result<bool, Error> {
    let key = public_key_info(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let (whole, key) = (digest(&SHA256, certificate), digest(&SHA256, &key));
    let has = |list: &[[u8; 32]], sum: &[u8]| list.iter().any(|pin| pin == sum);
    Ok(pins.iter().any(|pins| {
        has(&pins.certificate_hashes, whole.as_ref()) || has(&pins.key_hashes, key.as_ref())
    }))
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

fn path_error(error: webpki::Error) -> Error {
    match error {
        webpki::Error::MaximumPathDepthExceeded => PeerRejected::Depth.into(),
        error => Error::InvalidCertificate(certificate_error(error)),
    }
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
        webpki::Error::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        webpki::Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
}
