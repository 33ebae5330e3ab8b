//! Private keys and certificate signing requests.
//!
//! Invariant: key bytes are wiped when dropped and never reach a log, an error
//! or a `Debug` form.

use std::fmt;
use std::sync::Arc;

use amime_core::SpiffeId;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rcgen::{CertificateParams, DistinguishedName, PublicKeyData, SanType, SigningKey};
use rustls::sign::SigningKey as TlsSigningKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::pem::write_section;

/// Why a key or a signing request could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The random source or the key generator failed.
    #[error("a P-256 key could not be generated")]
    Generate,
    /// The text holds no private key.
    #[error("no private key found in the PEM text")]
    NoKey,
    /// The key is of a type, or has a content, that cannot be used for TLS.
    #[error("the private key is not usable")]
    Unusable {
        /// What the cryptography library said.
        #[source]
        source: rustls::Error,
    },
    /// The signing request could not be encoded.
    #[error("a signing request for {identity} could not be encoded")]
    Csr {
        /// Who the request was for.
        identity: String,
        /// The encoder's reason.
        #[source]
        source: rcgen::Error,
    },
}

/// A private key in memory.
pub struct PrivateKey(Zeroizing<PrivateKeyDer<'static>>);

impl PrivateKey {
    /// A new P-256 key.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map_err(|_| KeyError::Generate)?;
        Self::of_pair(&pair)
    }

    /// Reads the first PKCS#8, PKCS#1 or SEC1 key of a PEM text.
    pub fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        let der = PrivateKeyDer::from_pem_slice(text).map_err(|_| KeyError::NoKey)?;
        Ok(Self(Zeroizing::new(der)))
    }

    /// Takes over a key in PKCS#8 DER.
    pub fn from_pkcs8_der(der: Vec<u8>) -> Self {
        Self(Zeroizing::new(PrivatePkcs8KeyDer::from(der).into()))
    }

    /// The key as PEM, for handing it to a successor process or keeping a CA
    /// key; wiped when dropped.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let label = match &*self.0 {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        let der = self.0.secret_der();
        let mut out = Zeroizing::new(String::with_capacity(der.len() * 3 / 2 + 128));
        write_section(&mut out, label, der);
        out
    }

    /// The DER bytes, for a signer that lives in another crate.
    pub fn secret_der(&self) -> &PrivateKeyDer<'static> {
        &self.0
    }

    /// The key in the form that rustls signs handshakes with.
    pub(crate) fn tls_signer(&self) -> Result<Arc<dyn TlsSigningKey>, KeyError> {
        rustls::crypto::aws_lc_rs::sign::any_supported_type(&self.0)
            .map_err(|source| KeyError::Unusable { source })
    }

    fn of_pair(pair: &EcdsaKeyPair) -> Result<Self, KeyError> {
        let document = pair.to_pkcs8v1().map_err(|_| KeyError::Generate)?;
        Ok(Self::from_pkcs8_der(document.as_ref().to_vec()))
    }
}

impl Clone for PrivateKey {
    fn clone(&self) -> Self {
        Self(Zeroizing::new(self.0.clone_key()))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// A new key with the request that asks a CA to certify it.
#[derive(Debug)]
pub struct CertificateRequest {
    /// Stays with the requester.
    pub key: PrivateKey,
    /// PKCS#10, PEM.
    pub csr_pem: String,
}

/// Makes a P-256 key and a signing request that names `identity` as URI SAN.
///
/// The CA decides the SAN from who calls it; the name in the request is for
/// CAs that insist on seeing it.
pub fn new_key_and_csr(identity: &SpiffeId) -> Result<CertificateRequest, KeyError> {
    let pair =
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| KeyError::Generate)?;
    let key = PrivateKey::of_pair(&pair)?;
    let refused = |source| KeyError::Csr { identity: identity.to_string(), source };
    let uri = identity.to_string().try_into().map_err(refused)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri)];
    let csr_pem = params
        .serialize_request(&RequestSigner(pair))
        .and_then(|request| request.pem())
        .map_err(refused)?;
    Ok(CertificateRequest { key, csr_pem })
}

/// Lets rcgen sign without a second copy of the key bytes in its own type.
struct RequestSigner(EcdsaKeyPair);

impl PublicKeyData for RequestSigner {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for RequestSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature =
            self.0.sign(&SystemRandom::new(), message).map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(signature.as_ref().to_vec())
    }
}
