//! What a finished handshake tells about both ends.

use amime_identity::{CertificateDetails, SubjectAltName, cipher_name};
use amime_telemetry::TlsRecord;
use rustls::{CommonState, ProtocolVersion};
use rustls_pki_types::CertificateDer;

/// Facts of one TLS session.
#[derive(Clone, Debug, Default)]
pub struct TlsFacts {
    pub version: &'static str,
    /// In OpenSSL's spelling.
    pub cipher: &'static str,
    /// The peer showed a certificate.
    pub mutual: bool,
    pub peer_uri_san: Option<String>,
    pub peer_dns_san: Option<String>,
    pub peer_subject: Option<String>,
    pub peer_issuer: Option<String>,
    /// Hex.
    pub peer_serial: Option<String>,
    /// SHA-256 of the peer's certificate, hex.
    pub peer_hash: Option<String>,
    pub local_uri_san: Option<String>,
    /// Protocol agreed on.
    pub alpn: Option<Vec<u8>>,
}

impl TlsFacts {
    /// Reads the session's facts; `local_uri_san` names our own certificate.
    pub fn of(session: &CommonState, local_uri_san: Option<String>) -> Self {
        let mut facts = Self {
            version: match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                _ => "TLSv1.2",
            },
            cipher: session
                .negotiated_cipher_suite()
                .map_or("", |suite| cipher_name(suite.suite())),
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
            local_uri_san,
            ..Self::default()
        };
        if let Some(leaf) = session.peer_certificates().and_then(<[CertificateDer<'_>]>::first) {
            facts.mutual = true;
            facts.peer_hash = Some(sha256(leaf));
            if let Ok(details) = CertificateDetails::of(leaf) {
                facts.read_peer(details);
            }
        }
        facts
    }

    fn read_peer(&mut self, details: CertificateDetails) {
        for name in details.subject_alt_names {
            match name {
                SubjectAltName::Uri(uri) if self.peer_uri_san.is_none() => {
                    self.peer_uri_san = Some(uri);
                }
                SubjectAltName::Dns(dns) if self.peer_dns_san.is_none() => {
                    self.peer_dns_san = Some(dns);
                }
                _ => {}
            }
        }
        self.peer_issuer = Some(details.issuer);
        self.peer_serial = Some(details.serial);
        self.peer_subject = Some(details.subject).filter(|subject| !subject.is_empty());
    }

    /// The name that access control knows the peer by.
    pub fn principal(&self) -> &str {
        let name = self.peer_uri_san.as_ref().or(self.peer_dns_san.as_ref());
        name.or(self.peer_subject.as_ref()).map_or("", String::as_str)
    }

    pub fn record(&self) -> TlsRecord<'_> {
        TlsRecord {
            version: self.version,
            cipher: self.cipher,
            peer_uri_san: self.peer_uri_san.as_deref(),
            local_uri_san: self.local_uri_san.as_deref(),
            peer_dns_san: self.peer_dns_san.as_deref(),
            peer_subject: self.peer_subject.as_deref(),
            peer_issuer: self.peer_issuer.as_deref(),
            peer_serial: self.peer_serial.as_deref(),
            peer_fingerprint: self.peer_hash.as_deref(),
            mutual: self.mutual,
        }
    }
}

fn sha256(leaf: &CertificateDer<'_>) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
