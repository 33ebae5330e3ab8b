//! Where certificates and roots come from: the workload's own identity and
//! secrets that arrive over SDS or stand in the configuration.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use amime_identity::{LiveBundle, LiveCert, PrivateKey, TrustBundle, WorkloadCert};

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
            || received.roots.get(name).is_some_and(|live| !live.current().is_empty())
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

    /// Puts a certificate received as `name` in force.
    pub fn set_certificate(&self, name: &str, chain: &[u8], key: &[u8]) -> Result<(), String> {
        let cert = load_certificate(chain, key)?;
        self.certificate(name).set(cert);
        Ok(())
    }

    /// Puts roots received as `name` in force.
    pub fn set_roots(&self, name: &str, roots: &[u8]) -> Result<(), String> {
        let bundle = TrustBundle::from_pem(roots).map_err(|error| error.to_string())?;
        self.roots(name).set(bundle);
        Ok(())
    }
}

/// Reads a PEM chain and key.
pub fn load_certificate(chain: &[u8], key: &[u8]) -> Result<WorkloadCert, String> {
    let key = PrivateKey::from_pem(key).map_err(|error| error.to_string())?;
    WorkloadCert::from_pem(chain, key).map_err(|error| error.to_string())
}
