//! Which of several certificates a server shows to a client.
//!
//! A certificate that names the client's server name goes before others, a
//! whole name before a wildcard, and among equals an ECDSA key before an RSA
//! one if the client can verify it.

use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};

use crate::cert::WorkloadCert;
use crate::live::LiveCert;

/// The certificates of one server; those that have not arrived do not count.
#[derive(Debug, Default)]
pub struct CertSet {
    certs: Vec<Arc<LiveCert>>,
    /// Where no certificate has the client's server name: look through all for
    /// one that the client can verify, rather than show the first.
    full_scan: bool,
}

impl CertSet {
    /// Certificates in order of preference.
    pub fn new(certs: Vec<Arc<LiveCert>>, full_scan: bool) -> Arc<Self> {
        Arc::new(Self { certs, full_scan })
    }

    /// The first certificate there is.
    pub fn first(&self) -> Option<Arc<WorkloadCert>> {
        self.certs.iter().find_map(|cert| cert.current())
    }

    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<WorkloadCert>> {
        let all: Vec<_> = self.certs.iter().filter_map(|cert| cert.current()).collect();
        if let Some(name) = name {
            let name = name.to_ascii_lowercase();
            let wildcard = name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
            for pattern in [Some(name), wildcard].into_iter().flatten() {
                let named = |cert: &&Arc<WorkloadCert>| {
                    cert.server_names().iter().any(|have| have.eq_ignore_ascii_case(&pattern))
                };
                if let Some(found) = fitting(all.iter().filter(named), schemes) {
                    return Some(found);
                }
            }
            if !self.full_scan {
                return all.first().cloned();
            }
        }
        fitting(all.iter(), schemes).or_else(|| all.first().cloned())
    }
}

/// The first whose key is not RSA and that the client can verify, else the
/// first with an RSA key.
fn fitting<'a>(
    certs: impl Iterator<Item = &'a Arc<WorkloadCert>>,
    schemes: &[SignatureScheme],
) -> Option<Arc<WorkloadCert>> {
    let mut rsa = None;
    for cert in certs {
        let key = &cert.certified().key;
        if key.algorithm() == SignatureAlgorithm::RSA {
            rsa = rsa.or(Some(cert));
        } else if key.choose_scheme(schemes).is_some() {
            return Some(cert.clone());
        }
    }
    rsa.cloned()
}

impl ResolvesServerCert for CertSet {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Nearly all servers have one certificate, which is the one to show.
        let chosen = match self.certs.as_slice() {
            [only] => only.current(),
            _ => self.choose(hello.server_name(), hello.signature_schemes()),
        };
        chosen.map(|cert| cert.certified())
    }
}
