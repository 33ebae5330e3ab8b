//! The one cryptography provider of the mesh: aws-lc-rs.
//!
//! Its preference order puts the X25519MLKEM768 hybrid first, so two of our own
//! proxies always agree on it; other peers fall back to the curve they know.

use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;

/// The provider that every configuration of this crate is built with.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())).clone()
}

/// Makes aws-lc-rs the process default, for libraries that ask rustls for one.
///
/// Call it first thing in `main`. A second call changes nothing.
pub fn install_default_provider() {
    if CryptoProvider::get_default().is_none() {
        // A racing caller installs the same provider, so losing the race is fine.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}
