//! X.509 identities of the mesh and the TLS settings made from them.
//!
//! Owns trust bundles, parsing of certificates, key and CSR creation, and the
//! rustls configurations of both ends of a mutual-TLS hop and of plain TLS at
//! gateways. It verifies and never signs a certificate; that is `amime-ca`.
//!
//! Invariant: a configuration reads its certificate and its roots anew at each
//! handshake ([`LiveCert`], [`LiveBundle`]). A rotation is one store; it
//! rebuilds no listener and touches no open connection.
//!
//! Spec: <https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>
//!
//! ```
//! use amime_identity::{CertificateRequest, PrivateKey};
//!
//! let id = "spiffe://cluster.local/ns/default/sa/reviews".parse().expect("a SPIFFE ID");
//! let CertificateRequest { key, csr_pem } = amime_identity::new_key_and_csr(&id)?;
//! assert!(csr_pem.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
//! assert_eq!(format!("{key:?}"), "PrivateKey(..)");
//! # let _: PrivateKey = key;
//! # Ok::<(), amime_identity::KeyError>(())
//! ```

mod bundle;
mod cert;
mod choose;
mod config;
mod details;
mod key;
mod live;
mod name;
mod peer;
mod pem;
mod plain;
mod provider;
mod shown;
mod verify;

pub use bundle::{BundleError, TrustBundle};
pub use cert::{CertError, WorkloadCert};
pub use choose::CertSet;
pub use config::{
    ClientAuth, ConfigError, SessionResumption, TlsOptions, TlsVersion, client_config,
    downstream_config, server_config, upstream_config,
};
pub use details::{CertificateDetails, DetailsError, SubjectAltName, subject_alt_names};
pub use key::{CertificateRequest, KeyError, PrivateKey, new_key_and_csr};
pub use live::{LiveBundle, LiveCert};
pub use peer::{PeerIdentities, SanMatcher, SanPattern, SanType, peer_spiffe_id};
pub use pem::chain_to_pem;
pub use plain::{PlainServerCheck, plain_client_config, plain_server_config, server_name};
pub use provider::{
    UnusedNames, cipher_name, install_default_provider, provider, with_cipher_suites, with_groups,
};
pub use shown::{Fingerprint, NameKind, ShownCertificate};
pub use verify::{PeerChecks, PeerRejected, ServerNameCheck};

#[cfg(test)]
mod tests;
