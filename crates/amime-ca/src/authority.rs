//! The signing authority.
//!
//! Owns the CA's key and chain. Lifetimes: 24 hours unless the caller asks for
//! less or more, 90 days at most, never beyond the CA certificate's own end.

use std::path::Path;
use std::time::{Duration, SystemTime};

use amime_identity::{
    BundleError, CertError, CertificateDetails, KeyError, PrivateKey, TrustBundle, WorkloadCert,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;

use crate::caller::CallerIdentity;
use crate::state::{self, StateDir, StateError};

/// Lifetime of a workload certificate whose request names none.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Longest lifetime that may be asked for.
pub const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

const ROOT_TTL: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Certificates start this long ago, for peers whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(120);
/// Several times the largest honest request (RSA 4096 with its names).
const MAX_CSR_BYTES: usize = 16 * 1024;
/// Length of an RSA 2048 public key in DER, less a few bytes of encoding.
const MIN_RSA_KEY_BYTES: usize = 256;

const CA_CERT: &str = "ca-cert.pem";
const CA_KEY: &str = "ca-key.pem";
const ROOT_CERT: &str = "root-cert.pem";
const CERT_CHAIN: &str = "cert-chain.pem";

/// Why an authority cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or one of its files cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A new key could not be made.
    #[error("a new CA could not be made")]
    Key(#[from] KeyError),
    /// A new root certificate could not be made.
    #[error("a new root certificate could not be made")]
    Root(#[source] rcgen::Error),
}

/// Why a request was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Not a signing request, or its own signature is wrong.
    #[error("the signing request of {caller} cannot be read")]
    Malformed {
        /// Who sent it.
        caller: String,
        /// What is wrong with it.
        #[source]
        source: rcgen::Error,
    },
    /// Larger than any honest request.
    #[error("the signing request of {caller} has {bytes} bytes, more than {MAX_CSR_BYTES}")]
    TooLarge {
        /// Who sent it.
        caller: String,
        /// Its size.
        bytes: usize,
    },
    /// An RSA key below 2048 bits.
    #[error("the key of {caller} is too short")]
    WeakKey {
        /// Who sent it.
        caller: String,
    },
    /// A lifetime above [`MAX_TTL`].
    #[error("the lifetime of {requested:?} that {caller} asks for is above {MAX_TTL:?}")]
    Lifetime {
        /// Who sent it.
        caller: String,
        /// What it asked for.
        requested: Duration,
    },
    /// The CA certificate is past its end.
    #[error("the CA certificate has expired")]
    CaExpired,
    /// The certificate could not be encoded or signed.
    #[error("signing for {caller} failed")]
    Signing {
        /// For whom.
        caller: String,
        /// The signer's reason.
        #[source]
        source: rcgen::Error,
    },
    /// The authority's own serving certificate could not be put together.
    #[error("a serving certificate could not be made")]
    Serving {
        /// What failed.
        #[source]
        source: CertError,
    },
}

/// Signs workload certificates.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    /// From the signing certificate towards the root, without the root.
    intermediates: Vec<CertificateDer<'static>>,
    roots: TrustBundle,
    signing_cert: CertificateDetails,
}

impl CertificateAuthority {
    /// Opens the self-signed CA of `dir`, making one if there is none yet.
    pub fn self_signed(dir: &Path, trust_domain: &str, now: SystemTime) -> Result<Self, OpenError> {
        let state = StateDir::open(dir)?;
        let (cert_path, key_path) = (state.file(CA_CERT), state.file(CA_KEY));
        match (state::read(&cert_path)?, state::read(&key_path)?) {
            (Some(_), Some(_)) => {}
            (None, None) => create_root(&state, trust_domain, now)?,
            (Some(_), None) => {
                return Err(StateError::Incomplete { missing: key_path, present: cert_path }.into());
            }
            (None, Some(_)) => {
                return Err(StateError::Incomplete { missing: cert_path, present: key_path }.into());
            }
        }
        Self::load(dir, CA_CERT, now)
    }

    /// Opens a CA made elsewhere: `ca-cert.pem`, `ca-key.pem`, `root-cert.pem`
    /// and, if the signing certificate is an intermediate, `cert-chain.pem`.
    pub fn plugged(dir: &Path, now: SystemTime) -> Result<Self, OpenError> {
        Self::load(dir, ROOT_CERT, now)
    }

    /// True if `dir` holds a CA made elsewhere.
    pub fn is_plugged(dir: &Path) -> bool {
        dir.join(ROOT_CERT).exists() && dir.join(CA_KEY).exists()
    }

    /// Certifies the key of `csr_pem` for `caller`, and for nothing that the
    /// request asks for. `ttl` of nothing or zero is [`DEFAULT_TTL`].
    ///
    /// Returns PEM: the leaf, the intermediates, the root last.
    pub fn sign(
        &self,
        csr_pem: &str,
        caller: &CallerIdentity,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<Vec<String>, SignError> {
        let name = caller.spiffe_id.to_string();
        if csr_pem.len() > MAX_CSR_BYTES {
            return Err(SignError::TooLarge { caller: name, bytes: csr_pem.len() });
        }
        let ttl = ttl.filter(|ttl| !ttl.is_zero()).unwrap_or(DEFAULT_TTL);
        if ttl > MAX_TTL {
            return Err(SignError::Lifetime { caller: name, requested: ttl });
        }
        let request = match CertificateSigningRequestParams::from_pem(csr_pem) {
            Ok(request) => request,
            Err(source) => return Err(SignError::Malformed { caller: name, source }),
        };
        let is_rsa = *PublicKeyData::algorithm(&request.public_key) == rcgen::PKCS_RSA_SHA256;
        if is_rsa && request.public_key.der_bytes().len() < MIN_RSA_KEY_BYTES {
            return Err(SignError::WeakKey { caller: name });
        }
        let failed = |source| SignError::Signing { caller: name.clone(), source };
        let uri = name.as_str().try_into().map_err(failed)?;
        let params = self.leaf_params(vec![SanType::URI(uri)], ttl, now)?;
        let leaf = params.signed_by(&request.public_key, &self.issuer).map_err(failed)?;
        let mut chain = vec![leaf.pem()];
        chain.extend(self.intermediates.iter().map(|cert| to_pem(cert)));
        chain.extend(self.roots.certificates().iter().map(|cert| to_pem(cert)));
        Ok(chain)
    }

    /// A certificate for a server of the control plane, by DNS names and addresses.
    pub fn serving_cert(
        &self,
        names: &[String],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<WorkloadCert, SignError> {
        let caller = names.join(", ");
        let failed = |source| SignError::Signing { caller: caller.clone(), source };
        let sans = names
            .iter()
            .map(|name| match name.parse() {
                Ok(ip) => Ok(SanType::IpAddress(ip)),
                Err(_) => name.as_str().try_into().map(SanType::DnsName),
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        let key = PrivateKey::generate()
            .map_err(|source| SignError::Serving { source: source.into() })?;
        let pair = KeyPair::try_from(key.secret_der()).map_err(failed)?;
        let params = self.leaf_params(sans, ttl.min(MAX_TTL), now)?;
        let leaf = params.signed_by(&pair, &self.issuer).map_err(failed)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        WorkloadCert::new(chain, key).map_err(|source| SignError::Serving { source })
    }

    /// The roots that every certificate of this authority ends in.
    pub fn roots(&self) -> &TrustBundle {
        &self.roots
    }

    /// The certificate that signs.
    pub fn signing_cert(&self) -> &CertificateDetails {
        &self.signing_cert
    }

    fn leaf_params(
        &self,
        sans: Vec<SanType>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<CertificateParams, SignError> {
        if self.signing_cert.not_after <= now {
            return Err(SignError::CaExpired);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = sans;
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = OffsetDateTime::from((now + ttl).min(self.signing_cert.not_after));
        params.serial_number = Some(random_serial());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn load(dir: &Path, root_file: &str, now: SystemTime) -> Result<Self, OpenError> {
        let (cert_path, key_path) = (dir.join(CA_CERT), dir.join(CA_KEY));
        let missing = |missing: &Path| StateError::Incomplete {
            missing: missing.to_owned(),
            present: dir.to_owned(),
        };
        let cert_pem = state::read(&cert_path)?.ok_or_else(|| missing(&cert_path))?;
        let key_pem = state::read(&key_path)?.ok_or_else(|| missing(&key_path))?;
        let root_path = dir.join(root_file);
        let root_pem = state::read(&root_path)?.ok_or_else(|| missing(&root_path))?;

        let roots = TrustBundle::from_pem(&root_pem)
            .map_err(|error| StateError::corrupt(&root_path, reason(&error)))?;
        let cert = CertificateDer::from_pem_slice(&cert_pem)
            .map_err(|_| StateError::corrupt(&cert_path, "no PEM certificate in it"))?;
        let signing_cert = CertificateDetails::of(&cert)
            .map_err(|error| StateError::corrupt(&cert_path, error.to_string()))?;
        if !signing_cert.is_ca {
            return Err(StateError::corrupt(&cert_path, "it is not a CA certificate").into());
        }
        if signing_cert.not_after <= now {
            return Err(StateError::corrupt(&cert_path, "the CA certificate has expired").into());
        }
        let key = PrivateKey::from_pem(&key_pem)
            .map_err(|error| StateError::corrupt(&key_path, error.to_string()))?;
        let pair = KeyPair::try_from(key.secret_der())
            .map_err(|error| StateError::corrupt(&key_path, error.to_string()))?;
        if !certifies(&cert, &pair) {
            let reason = format!("it does not belong to {}", cert_path.display());
            return Err(StateError::corrupt(&key_path, reason).into());
        }
        let intermediates = intermediates(dir, &cert, &roots)?;
        let issuer = Issuer::from_ca_cert_der(&cert, pair)
            .map_err(|error| StateError::corrupt(&cert_path, error.to_string()))?;
        Ok(Self { issuer, intermediates, roots, signing_cert })
    }
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("signing_cert", &self.signing_cert)
            .finish_non_exhaustive()
    }
}

fn create_root(state: &StateDir, trust_domain: &str, now: SystemTime) -> Result<(), OpenError> {
    let key = PrivateKey::generate()?;
    let pair = KeyPair::try_from(key.secret_der()).map_err(OpenError::Root)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(now + ROOT_TTL);
    params.serial_number = Some(random_serial());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(&pair).map_err(OpenError::Root)?.pem();
    let key_pem = key.to_pem();
    state.create(&[(CA_KEY, key_pem.as_bytes()), (CA_CERT, root.as_bytes())])?;
    Ok(())
}

/// The certificates between a leaf and the roots; for a signing certificate
/// without `cert-chain.pem` that is itself, unless it is a root.
fn intermediates(
    dir: &Path,
    cert: &CertificateDer<'static>,
    roots: &TrustBundle,
) -> Result<Vec<CertificateDer<'static>>, StateError> {
    let path = dir.join(CERT_CHAIN);
    let mut chain = vec![cert.clone()];
    if let Some(text) = state::read(&path)? {
        for parsed in CertificateDer::pem_slice_iter(&text) {
            let parsed = parsed
                .map_err(|error| StateError::corrupt(&path, format!("not PEM: {error:?}")))?;
            CertificateDetails::of(&parsed)
                .map_err(|error| StateError::corrupt(&path, error.to_string()))?;
            if !chain.contains(&parsed) {
                chain.push(parsed);
            }
        }
    }
    chain.retain(|cert| !roots.certificates().contains(cert));
    Ok(chain)
}

fn certifies(cert: &CertificateDer<'_>, pair: &KeyPair) -> bool {
    x509_parser::parse_x509_certificate(cert).is_ok_and(|(_, parsed)| {
        parsed.tbs_certificate.subject_pki.subject_public_key.data == pair.public_key_raw()
    })
}

fn random_serial() -> SerialNumber {
    let mut bytes = [0u8; 16];
    // The source fails only where the operating system has none; a fixed serial
    // would then be the smaller evil than a certificate authority that panics,
    // and key generation has failed before that.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    // Positive and without leading zeros, as RFC 5280 wants it.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn to_pem(cert: &CertificateDer<'_>) -> String {
    amime_identity::chain_to_pem(std::slice::from_ref(cert))
}

fn reason(error: &BundleError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
