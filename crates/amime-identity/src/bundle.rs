//! Sets of root certificates.

use std::fmt;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, pem::PemObject};
use webpki::{CertRevocationList, OwnedCertRevocationList, anchor_from_trusted_cert};

use crate::peer::PeerIdentities;
use crate::pem;

/// Why roots could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The text is not PEM.
    #[error("the root certificates are not valid PEM: {reason}")]
    Pem {
        /// What is wrong with the text.
        reason: String,
    },
    /// No certificate in the text or in the system's store.
    #[error("no root certificate found in {origin}")]
    Empty {
        /// Where they were looked for.
        origin: &'static str,
    },
    /// A revocation list cannot be read.
    #[error("revocation list {position} cannot be read")]
    RevocationList {
        /// Counted from 1.
        position: usize,
        /// What is wrong with it.
        #[source]
        source: webpki::Error,
    },
    /// One of them is not a certificate.
    #[error("root certificate {position} cannot be read")]
    Anchor {
        /// Counted from 1.
        position: usize,
        /// What is wrong with it.
        #[source]
        source: webpki::Error,
    },
}

/// Root certificates that a peer's chain may end in; several during a rotation
/// of the root.
#[derive(Clone, Default)]
pub struct TrustBundle {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Vec<Arc<CertRevocationList<'static>>>,
    identities: PeerIdentities,
}

impl TrustBundle {
    /// Trusts nobody.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Reads every certificate of a PEM text; an empty text is an error.
    pub fn from_pem(text: &[u8]) -> Result<Self, BundleError> {
        let certificates = pem::certificates(text)
            .map_err(|error| BundleError::Pem { reason: format!("{error:?}") })?;
        if certificates.is_empty() {
            return Err(BundleError::Empty { origin: "the PEM text" });
        }
        Self::from_certificates(certificates)
    }

    /// Makes a bundle of DER certificates; the same root given twice counts once.
    pub fn from_certificates(
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        let mut bundle = Self::empty();
        for (index, certificate) in certificates.into_iter().enumerate() {
            if bundle.certificates.contains(&certificate) {
                continue;
            }
            let anchor = anchor_from_trusted_cert(&certificate)
                .map_err(|source| BundleError::Anchor { position: index + 1, source })?
                .to_owned();
            bundle.anchors.push(anchor);
            bundle.certificates.push(certificate);
        }
        Ok(bundle)
    }

    /// The machine's roots. Certificates that cannot be read are left out, as
    /// every system store has some.
    pub fn system() -> Result<Self, BundleError> {
        let loaded = rustls_native_certs::load_native_certs();
        for error in &loaded.errors {
            tracing::debug!(%error, "system root skipped");
        }
        let mut bundle = Self::empty();
        for certificate in loaded.certs {
            if let Ok(anchor) = anchor_from_trusted_cert(&certificate) {
                bundle.anchors.push(anchor.to_owned());
                bundle.certificates.push(certificate);
            }
        }
        if bundle.certificates.is_empty() {
            return Err(BundleError::Empty { origin: "the system's store" });
        }
        Ok(bundle)
    }

    /// Adds the certificate revocation lists of a PEM text to those there are.
    pub fn with_revocation_lists(mut self, text: &[u8]) -> Result<Self, BundleError> {
        let mut position = 0;
        for list in CertificateRevocationListDer::pem_slice_iter(text) {
            position += 1;
            let list = list.map_err(|error| BundleError::Pem { reason: format!("{error:?}") })?;
            let list = OwnedCertRevocationList::from_der(&list)
                .map_err(|source| BundleError::RevocationList { position, source })?;
            self.revoked.push(Arc::new(list.into()));
        }
        if position == 0 {
            return Err(BundleError::Empty { origin: "the PEM text of the revocation list" });
        }
        Ok(self)
    }

    /// Names and pins that came with the roots and hold wherever these are used.
    #[must_use]
    pub fn with_identities(mut self, identities: PeerIdentities) -> Self {
        self.identities = identities;
        self
    }

    /// The roots of both bundles.
    pub fn union(mut self, other: &TrustBundle) -> Self {
        for (certificate, anchor) in other.certificates.iter().zip(&other.anchors) {
            if !self.certificates.contains(certificate) {
                self.certificates.push(certificate.clone());
                self.anchors.push(anchor.clone());
            }
        }
        self
    }

    /// The roots, in the order given.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The roots as PEM.
    pub fn to_pem(&self) -> String {
        pem::chain_to_pem(&self.certificates)
    }

    /// True if no peer can be verified.
    pub fn is_empty(&self) -> bool {
        self.certificates.is_empty()
    }

    pub(crate) fn revoked(&self) -> &[Arc<CertRevocationList<'static>>] {
        &self.revoked
    }

    pub(crate) fn identities(&self) -> &PeerIdentities {
        &self.identities
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle").field("roots", &self.certificates.len()).finish()
    }
}
