//! The certificate that a peer has shown, as headers and logs print it.
//!
//! Owns the peer's certificates as they came; whether they are to be trusted
//! was decided in the handshake.
//!
//! Invariant: nothing is read out of them before somebody asks, and then once:
//! most connections print at most the peer's URI.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::OnceLock;

use aws_lc_rs::digest::{self, Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use rustls_pki_types::CertificateDer;

use crate::details::{CertificateDetails, SubjectAltName};
use crate::pem;

/// A kind of alternative name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// URIs.
    Uri,
    /// DNS names.
    Dns,
    /// IP addresses.
    Ip,
    /// E-mail addresses.
    Email,
    /// Names of a type of their own; without that type.
    Other,
}

impl SubjectAltName {
    /// The name, if it is one of this kind.
    fn of_kind(&self, kind: NameKind) -> Option<Cow<'_, str>> {
        match (self, kind) {
            (Self::Uri(text), NameKind::Uri)
            | (Self::Dns(text), NameKind::Dns)
            | (Self::Email(text), NameKind::Email)
            | (Self::Other { value: text, .. }, NameKind::Other) => Some(Cow::Borrowed(text)),
            (Self::Ip(ip), NameKind::Ip) => Some(Cow::Owned(ip.to_string())),
            _ => None,
        }
    }
}

impl CertificateDetails {
    /// All names of one kind; they allocate nothing but for addresses, since
    /// every line of a mesh's access logs has them.
    pub fn names(&self, kind: NameKind) -> impl Iterator<Item = Cow<'_, str>> {
        self.subject_alt_names.iter().filter_map(move |name| name.of_kind(kind))
    }

    /// The same with commas between; empty if there is none.
    pub fn joined_names(&self, kind: NameKind) -> String {
        self.names(kind).collect::<Vec<_>>().join(",")
    }

    /// The first URI.
    pub fn uri(&self) -> Option<&str> {
        self.subject_alt_names.iter().find_map(|name| match name {
            SubjectAltName::Uri(uri) => Some(uri.as_str()),
            _ => None,
        })
    }
}

/// A hash function for fingerprints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fingerprint {
    /// SHA-1, which tells certificates apart and no more.
    Sha1,
    /// SHA-256.
    Sha256,
}

impl Fingerprint {
    fn of(self, certificate: &CertificateDer<'_>) -> String {
        let algorithm: &'static Algorithm = match self {
            Self::Sha1 => &SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &SHA256,
        };
        hex(digest::digest(algorithm, certificate).as_ref())
    }
}

/// Certificates that a peer has shown.
#[derive(Debug)]
pub struct ShownCertificate {
    /// The leaf, and what came after it if that is kept.
    chain: Vec<CertificateDer<'static>>,
    /// `None` where the leaf cannot be read.
    details: OnceLock<Option<CertificateDetails>>,
    sha256: OnceLock<String>,
    /// The leaf and the chain as [`encoded`] PEM.
    pem: OnceLock<String>,
    chain_pem: OnceLock<String>,
}

impl ShownCertificate {
    /// Keeps the leaf of `chain`, or all of it if it is to be printed `whole`.
    pub fn of(chain: &[CertificateDer<'static>], whole: bool) -> Option<Self> {
        let kept = if whole { chain } else { chain.get(..1)? };
        if kept.is_empty() {
            return None;
        }
        Some(Self {
            chain: kept.to_vec(),
            details: OnceLock::new(),
            sha256: OnceLock::new(),
            pem: OnceLock::new(),
            chain_pem: OnceLock::new(),
        })
    }

    /// What the leaf says of itself.
    pub fn details(&self) -> Option<&CertificateDetails> {
        self.details.get_or_init(|| CertificateDetails::of(&self.chain[0]).ok()).as_ref()
    }

    /// SHA-256 of the leaf, lower-case hex.
    pub fn sha256(&self) -> &str {
        self.sha256.get_or_init(|| Fingerprint::Sha256.of(&self.chain[0]))
    }

    /// The leaf's fingerprint, lower-case hex.
    pub fn fingerprint(&self, hash: Fingerprint) -> String {
        hash.of(&self.chain[0])
    }

    /// The fingerprints of all that is kept, with commas between.
    pub fn fingerprints(&self, hash: Fingerprint) -> String {
        let all: Vec<_> = self.chain.iter().map(|one| hash.of(one)).collect();
        all.join(",")
    }

    /// The serial numbers of all that is kept, with commas between.
    pub fn serials(&self) -> String {
        let serial = |one| CertificateDetails::of(one).map(|details| whole_bytes(&details.serial));
        let all: Vec<_> = self.chain.iter().filter_map(|one| serial(one).ok()).collect();
        all.join(",")
    }

    /// The leaf's serial number, two hex digits a byte.
    pub fn serial(&self) -> Option<String> {
        self.details().map(|details| whole_bytes(&details.serial))
    }

    /// The leaf as PEM, encoded as part of a URL.
    pub fn encoded_pem(&self) -> &str {
        self.pem.get_or_init(|| encoded(&pem::chain_to_pem(&self.chain[..1])))
    }

    /// All that is kept as PEM, encoded as part of a URL.
    pub fn encoded_chain(&self) -> &str {
        self.chain_pem.get_or_init(|| encoded(&pem::chain_to_pem(&self.chain)))
    }
}

/// Puts a zero before an odd number of hex digits.
fn whole_bytes(hex: &str) -> String {
    if hex.len().is_multiple_of(2) { hex.to_owned() } else { format!("0{hex}") }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // A write to a `String` cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// PEM has few characters that URLs do not.
fn encoded(pem: &str) -> String {
    let mut out = String::with_capacity(pem.len() + pem.len() / 8);
    for character in pem.chars() {
        match character {
            '\n' => out.push_str("%0A"),
            ' ' => out.push_str("%20"),
            '+' => out.push_str("%2B"),
            '/' => out.push_str("%2F"),
            '=' => out.push_str("%3D"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, SerialNumber};

    use super::*;

    fn shown() -> ShownCertificate {
        let mut params = CertificateParams::new(vec!["a.test".to_owned(), "b.test".to_owned()])
            .expect("names are names");
        params.subject_alt_names.push(SanType::URI("spiffe://t/a".try_into().expect("ascii")));
        params.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 1].into()));
        params.serial_number = Some(SerialNumber::from(0x0a_u64));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Mesh, \"Inc\"");
        params.distinguished_name.push(DnType::CommonName, "a");
        let key = KeyPair::generate().expect("a key");
        let leaf = params.self_signed(&key).expect("signs").der().clone();
        ShownCertificate::of(&[leaf.clone(), leaf], false).expect("not empty")
    }

    #[test]
    fn a_certificate_is_printed_as_openssl_prints_it() {
        let shown = shown();
        let details = shown.details().expect("readable");
        assert_eq!(details.subject, "CN=a,O=Mesh\\, \\\"Inc\\\"");
        assert_eq!(details.joined_names(NameKind::Dns), "a.test,b.test");
        assert_eq!(details.joined_names(NameKind::Ip), "10.0.0.1");
        assert_eq!(details.joined_names(NameKind::Email), "");
        assert_eq!(details.uri(), Some("spiffe://t/a"));
        assert_eq!(shown.serial().as_deref(), Some("0a"));
        assert_eq!(shown.sha256(), shown.fingerprint(Fingerprint::Sha256));
        assert_eq!(shown.fingerprint(Fingerprint::Sha1).len(), 40);
        let pem = shown.encoded_pem();
        assert!(pem.starts_with("-----BEGIN%20CERTIFICATE-----%0A"), "{pem}");
        assert!(!pem.contains(['\n', ' ', '+', '/', '=']), "{pem}");
        // Only the leaf is kept unless the chain is printed.
        assert_eq!(shown.encoded_chain(), pem);
    }

    #[test]
    fn what_cannot_be_read_has_no_details() {
        let broken = CertificateDer::from(vec![1, 2, 3]);
        let shown = ShownCertificate::of(&[broken], true).expect("not empty");
        assert!(shown.details().is_none() && shown.serial().is_none());
        assert_eq!(shown.sha256().len(), 64);
        assert!(ShownCertificate::of(&[], true).is_none());
    }
}
