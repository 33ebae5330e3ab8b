//! A certificate chain together with its private key.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use amime_core::SpiffeId;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

use crate::details::{CertificateDetails, DetailsError, SubjectAltName, common_name};
use crate::key::{KeyError, PrivateKey};
use crate::peer::peer_spiffe_id;
use crate::pem;

/// Why a chain and a key do not make a usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// The chain text is not PEM.
    #[error("the certificate chain is not valid PEM: {reason}")]
    Pem {
        /// What is wrong with the text.
        reason: String,
    },
    /// The chain text holds no certificate.
    #[error("the certificate chain is empty")]
    Empty,
    /// The leaf cannot be read.
    #[error("the leaf certificate cannot be read")]
    Leaf {
        /// What is wrong with it.
        #[source]
        source: DetailsError,
    },
    /// The key is not usable.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The leaf certifies another key.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
}

/// A certificate chain and its key, ready for handshakes: a workload's, or that
/// of a gateway server (which then has no SPIFFE ID).
pub struct WorkloadCert {
    key: PrivateKey,
    certified: Arc<CertifiedKey>,
    details: CertificateDetails,
    spiffe_id: Option<SpiffeId>,
    server_names: Vec<String>,
}

impl WorkloadCert {
    /// Joins a PEM chain (leaf first) with its key, and checks that they match.
    pub fn from_pem(chain: &[u8], key: PrivateKey) -> Result<Self, CertError> {
        let chain = pem::certificates(chain)
            .map_err(|error| CertError::Pem { reason: format!("{error:?}") })?;
        Self::new(chain, key)
    }

    /// Joins a DER chain (leaf first) with its key, and checks that they match.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, CertError> {
        let leaf = chain.first().ok_or(CertError::Empty)?;
        let details = CertificateDetails::of(leaf).map_err(|source| CertError::Leaf { source })?;
        let spiffe_id = peer_spiffe_id(&chain);
        let server_names = server_names(&details, leaf);
        let certified = CertifiedKey::new(chain, key.tls_signer()?);
        certified.keys_match().map_err(|_| CertError::Mismatch)?;
        Ok(Self { key, certified: Arc::new(certified), details, spiffe_id, server_names })
    }

    /// Staples this OCSP response (DER) for clients that ask for one.
    #[must_use]
    pub fn with_ocsp(mut self, response: Vec<u8>) -> Self {
        let mut certified = (*self.certified).clone();
        certified.ocsp = Some(response);
        self.certified = Arc::new(certified);
        self
    }

    /// DNS names that the leaf is for, wildcards included; the common name of
    /// one without alternative names.
    pub fn server_names(&self) -> &[String] {
        &self.server_names
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The chain as PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        pem::chain_to_pem(self.chain())
    }

    /// The leaf's private key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// The leaf's single SPIFFE URI SAN, if it has one.
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        self.spiffe_id.as_ref()
    }

    /// Start of the leaf's validity.
    pub fn not_before(&self) -> SystemTime {
        self.details.not_before
    }

    /// End of the leaf's validity.
    pub fn not_after(&self) -> SystemTime {
        self.details.not_after
    }

    /// What the leaf says about itself.
    pub fn details(&self) -> &CertificateDetails {
        &self.details
    }

    /// When to ask for a successor: at `ratio` of the validity (0.5 is half
    /// life), counted from its start. Add jitter by varying `ratio`.
    pub fn rotate_at(&self, ratio: f64) -> SystemTime {
        let life = self.not_after().duration_since(self.not_before()).unwrap_or(Duration::ZERO);
        self.not_before() + life.mul_f64(ratio.clamp(0.0, 1.0))
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

fn server_names(details: &CertificateDetails, leaf: &CertificateDer<'_>) -> Vec<String> {
    if details.subject_alt_names.is_empty() {
        return common_name(leaf).into_iter().collect();
    }
    let dns = details.subject_alt_names.iter().filter_map(|name| match name {
        SubjectAltName::Dns(dns) => Some(dns.clone()),
        _ => None,
    });
    dns.collect()
}

impl fmt::Debug for WorkloadCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCert")
            .field("serial", &self.details.serial)
            .field("subject_alt_names", &self.details.subject_alt_names)
            .field("not_after", &self.details.not_after)
            .finish_non_exhaustive()
    }
}
