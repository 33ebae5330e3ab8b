//! Certificates and roots that are swapped while configurations use them.
//!
//! Invariant: a handshake sees one whole certificate or bundle, never a mix.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::bundle::TrustBundle;
use crate::cert::WorkloadCert;

/// The certificate that this end presents now; may not have arrived yet.
#[derive(Debug, Default)]
pub struct LiveCert(ArcSwapOption<WorkloadCert>);

impl LiveCert {
    /// Without a certificate: a server refuses handshakes, a client presents none.
    pub fn empty() -> Arc<Self> {
        Arc::default()
    }

    /// With a first certificate.
    pub fn new(cert: WorkloadCert) -> Arc<Self> {
        Arc::new(Self(ArcSwapOption::from_pointee(cert)))
    }

    /// Presents `cert` from the next handshake on.
    pub fn set(&self, cert: WorkloadCert) {
        self.0.store(Some(Arc::new(cert)));
    }

    /// The certificate in use.
    pub fn current(&self) -> Option<Arc<WorkloadCert>> {
        self.0.load_full()
    }

    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        self.0.load().as_ref().map(|cert| cert.certified())
    }
}

impl ResolvesServerCert for LiveCert {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }
}

impl ResolvesClientCert for LiveCert {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let certified = self.certified()?;
        certified.key.choose_scheme(schemes).is_some().then_some(certified)
    }

    fn has_certs(&self) -> bool {
        self.0.load().is_some()
    }
}

/// The roots that this end trusts now.
#[derive(Debug)]
pub struct LiveBundle(ArcSwap<TrustBundle>);

impl LiveBundle {
    /// With first roots; [`TrustBundle::empty`] trusts nobody until they come.
    pub fn new(bundle: TrustBundle) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(bundle)))
    }

    /// Trusts `bundle` from the next handshake on.
    pub fn set(&self, bundle: TrustBundle) {
        self.0.store(Arc::new(bundle));
    }

    /// The roots in use.
    pub fn current(&self) -> Arc<TrustBundle> {
        self.0.load_full()
    }
}
