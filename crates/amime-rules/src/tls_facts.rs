//! What a finished handshake tells about both ends.

use std::sync::Arc;

use amime_identity::{
    CertificateDetails, ShownCertificate, SubjectAltName, WorkloadCert, cipher_name,
};
use amime_telemetry::TlsRecord;
use rustls::{CommonState, ProtocolVersion};

/// Facts of one TLS session.
#[derive(Clone, Debug, Default)]
pub struct TlsFacts {
    pub version: &'static str,
    /// In OpenSSL's spelling.
    pub cipher: &'static str,
    /// The certificate that the peer showed.
    pub peer: Option<Arc<ShownCertificate>>,
    /// Ours.
    pub local: Option<Arc<WorkloadCert>>,
    /// Protocol agreed on.
    pub alpn: Option<Vec<u8>>,
}

impl TlsFacts {
    /// Reads the session's facts; `local` is our own certificate. Of the
    /// peer's only the leaf is kept, unless its chain is to be printed `whole`.
    pub fn of(session: &CommonState, local: Option<Arc<WorkloadCert>>, whole: bool) -> Self {
        let shown = session.peer_certificates().unwrap_or_default();
        Self {
            version: match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                _ => "TLSv1.2",
            },
            cipher: session
                .negotiated_cipher_suite()
                .map_or("", |suite| cipher_name(suite.suite())),
            peer: ShownCertificate::of(shown, whole).map(Arc::new),
            local,
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
        }
    }

    /// True if the peer has shown a certificate.
    pub fn mutual(&self) -> bool {
        self.peer.is_some()
    }

    /// What the peer's certificate says of itself.
    pub fn peer_details(&self) -> Option<&CertificateDetails> {
        self.peer.as_ref()?.details()
    }

    /// The first URI of our certificate.
    pub fn local_uri(&self) -> Option<&str> {
        self.local.as_ref()?.details().uri()
    }

    /// The name that access control knows the peer by.
    pub fn principal(&self) -> &str {
        let Some(details) = self.peer_details() else { return "" };
        let dns = || {
            details.subject_alt_names.iter().find_map(|name| match name {
                SubjectAltName::Dns(dns) => Some(dns.as_str()),
                _ => None,
            })
        };
        details.uri().or_else(dns).unwrap_or(&details.subject)
    }

    pub fn record(&self) -> TlsRecord<'_> {
        TlsRecord {
            version: self.version,
            cipher: self.cipher,
            peer_uri_san: self.peer_details().and_then(CertificateDetails::uri),
            local_uri_san: self.local_uri(),
            peer: self.peer.as_deref(),
            local: self.local.as_ref().map(|local| local.details()),
            mutual: self.mutual(),
        }
    }
}
