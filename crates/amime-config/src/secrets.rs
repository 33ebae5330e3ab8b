//! Where certificates and roots come from: the workload's own identity and
//! secrets that arrive over SDS or stand in the configuration.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use amime_identity::{LiveBundle, LiveCert, PrivateKey, TrustBundle, WorkloadCert};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

use super::tls_validation::Validation;
use amime_rules::Faults;
use amime_rules::values::data_source;

/// Gives the certificate and roots behind an SDS name.
///
/// What it returns stays valid: a rotation changes what the live value holds,
/// so listeners and clusters need not be compiled again.
pub trait SecretSource: Send + Sync + 'static {
    /// The certificate named `name`, such as `default`.
    fn certificate(&self, name: &str) -> Option<Arc<LiveCert>>;
    /// The roots named `name`, such as `ROOTCA`.
    fn roots(&self, name: &str) -> Option<Arc<LiveBundle>>;
}

/// A source that knows no name.
#[derive(Debug, Default)]
pub struct NoSecrets;

impl SecretSource for NoSecrets {
    fn certificate(&self, _name: &str) -> Option<Arc<LiveCert>> {
        None
    }

    fn roots(&self, _name: &str) -> Option<Arc<LiveBundle>> {
        None
    }
}

/// The workload's identity in front of secrets received over SDS.
///
/// A name that nobody has delivered yet gets an empty live value: the
/// handshake fails until the secret arrives, the configuration stands.
pub struct SecretStore {
    workload: Arc<dyn SecretSource>,
    received: Mutex<Received>,
}

#[derive(Default)]
struct Received {
    certificates: HashMap<String, Arc<LiveCert>>,
    roots: HashMap<String, Arc<LiveBundle>>,
    /// Names of roots that have come.
    present: HashSet<String>,
}

impl SecretStore {
    pub fn new(workload: Arc<dyn SecretSource>) -> Self {
        Self { workload, received: Mutex::default() }
    }

    /// True if `name` is the workload's own and so is not asked for over SDS.
    pub fn is_local(&self, name: &str) -> bool {
        self.workload.certificate(name).is_some() || self.workload.roots(name).is_some()
    }

    /// True once a secret named `name` is there.
    pub fn has(&self, name: &str) -> bool {
        if self.is_local(name) {
            return true;
        }
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        received.certificates.get(name).is_some_and(|live| live.current().is_some())
            || received.present.contains(name)
    }

    pub fn certificate(&self, name: &str) -> Arc<LiveCert> {
        self.workload.certificate(name).unwrap_or_else(|| {
            let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
            received.certificates.entry(name.to_owned()).or_insert_with(LiveCert::empty).clone()
        })
    }

    pub fn roots(&self, name: &str) -> Arc<LiveBundle> {
        self.workload.roots(name).unwrap_or_else(|| {
            let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
            let empty = || LiveBundle::new(TrustBundle::empty());
            received.roots.entry(name.to_owned()).or_insert_with(empty).clone()
        })
    }

    /// Puts a received secret in force under `name`, whole or not at all.
    pub fn accept(&self, name: &str, secret: &pb::Secret, faults: &mut Faults) -> Option<()> {
        match &secret.r#type {
            Some(pb::secret::Type::TlsCertificate(certificate)) => {
                faults.enter("tls_certificate");
                let cert = compile_certificate(certificate, faults);
                faults.leave();
                self.certificate(name).set(cert?);
            }
            Some(pb::secret::Type::ValidationContext(context)) => {
                faults.enter("validation_context");
                let validation = Validation::compile(context, faults);
                let empty = |one: &Validation| one.roots.is_none() && one.identities.is_any();
                if validation.as_ref().is_some_and(empty) {
                    faults.reject("trusted_ca", "missing");
                }
                if validation.as_ref().is_some_and(Validation::has_modes) {
                    faults.ignore("", "how chains are verified is up to the context");
                }
                faults.leave();
                if faults.fatal() {
                    return None;
                }
                self.roots(name).set(validation?.into_bundle());
                let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
                received.present.insert(name.to_owned());
            }
            Some(_) | None => {
                faults.reject("type", "neither a certificate nor a validation context");
                return None;
            }
        }
        Some(())
    }
}

/// Where on this machine the secret of a name is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SecretFile {
    /// Among the resources of a file in the form of a discovery response.
    Response { path: PathBuf, name: String },
    /// In files that the name itself tells, as names of Istio's agent do.
    Named { name: String },
}

/// How names of Istio's agent for files begin: a certificate and its key with
/// a tilde between, and roots.
const CERTIFICATE_FILES: &str = "file-cert:";
const ROOT_FILE: &str = "file-root:";

impl SecretFile {
    /// The files that a name tells, if it is such a name.
    pub fn of_agent(name: &str) -> Option<Self> {
        let file = Self::Named { name: name.to_owned() };
        file.named_secret().is_some().then_some(file)
    }

    /// What the secret is kept by: names are unique only within a response.
    pub fn key(&self) -> String {
        match self {
            Self::Response { path, name } => format!("{name}@{}", path.display()),
            Self::Named { name } => name.clone(),
        }
    }

    /// The secret that a name tells, with its content still in files.
    pub fn named_secret(&self) -> Option<pb::Secret> {
        let Self::Named { name } = self else { return None };
        let file = |path: &str| {
            let specifier = core::data_source::Specifier::Filename(path.to_owned());
            Some(core::DataSource { specifier: Some(specifier), ..Default::default() })
        };
        let kind = if let Some(files) = name.strip_prefix(CERTIFICATE_FILES) {
            let (certificate, key) = files.split_once('~')?;
            pb::secret::Type::TlsCertificate(pb::TlsCertificate {
                certificate_chain: file(certificate),
                private_key: file(key),
                ..Default::default()
            })
        } else {
            let roots = name.strip_prefix(ROOT_FILE)?;
            pb::secret::Type::ValidationContext(pb::CertificateValidationContext {
                trusted_ca: file(roots),
                ..Default::default()
            })
        };
        Some(pb::Secret { name: name.clone(), r#type: Some(kind) })
    }

    /// The files to watch.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Response { path, .. } => vec![path.clone()],
            Self::Named { .. } => self.named_secret().as_ref().map(files_of).unwrap_or_default(),
        }
    }
}

/// Files whose content is part of a secret.
pub fn files_of(secret: &pb::Secret) -> Vec<PathBuf> {
    let sources = match &secret.r#type {
        Some(pb::secret::Type::TlsCertificate(certificate)) => {
            [&certificate.certificate_chain, &certificate.private_key, &certificate.ocsp_staple]
        }
        Some(pb::secret::Type::ValidationContext(context)) => {
            [&context.trusted_ca, &context.crl, &None]
        }
        _ => [&None, &None, &None],
    };
    let file = |source: &Option<core::DataSource>| match source.as_ref()?.specifier.as_ref()? {
        core::data_source::Specifier::Filename(path) => Some(PathBuf::from(path)),
        _ => None,
    };
    sources.into_iter().filter_map(file).collect()
}

/// Reads a certificate with its key, from wherever they stand.
pub fn compile_certificate(
    value: &pb::TlsCertificate,
    faults: &mut Faults,
) -> Option<WorkloadCert> {
    faults.reject_if(value.pkcs12.is_some(), "pkcs12");
    faults.reject_if(value.private_key_provider.is_some(), "private_key_provider");
    faults.reject_if(value.password.is_some(), "password");
    faults
        .ignore_if(!value.signed_certificate_timestamp.is_empty(), "signed_certificate_timestamp");
    let mut part = |source: Option<&core::DataSource>, field: &str| {
        let read = source.ok_or_else(|| "missing".to_owned()).and_then(data_source);
        read.map_err(|reason| faults.reject(field, reason)).ok()
    };
    let chain = part(value.certificate_chain.as_ref(), "certificate_chain");
    let key = part(value.private_key.as_ref(), "private_key");
    let staple = value.ocsp_staple.as_ref().and_then(|source| part(Some(source), "ocsp_staple"));
    let key = PrivateKey::from_pem(&key?);
    let key = key.map_err(|error| faults.reject("private_key", error.to_string())).ok();
    let cert = WorkloadCert::from_pem(&chain?, key?);
    let cert = cert.map_err(|error| faults.reject("certificate_chain", with_cause(&error))).ok()?;
    Some(match staple {
        Some(staple) => cert.with_ocsp(staple),
        None => cert,
    })
}

/// An error with its cause.
pub(crate) fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
