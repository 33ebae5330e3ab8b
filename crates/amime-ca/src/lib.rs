//! The mesh's certificate authority and its workload tokens.
//!
//! Owns signing keys: that of the CA and that of the tokens which workloads
//! without a cluster authenticate with. Checking certificates is
//! `amime-identity`'s job; carrying requests is `amime-control`'s.
//!
//! Invariant: a certificate names its caller, as authenticated by the server
//! and whatever the signing request says, and nobody else.
//!
//! The time is always given by the caller.
//!
//! ```
//! use std::time::SystemTime;
//! use amime_ca::{CallerIdentity, CertificateAuthority, Credential};
//!
//! let dir = tempfile::tempdir()?;
//! let now = SystemTime::now();
//! let ca = CertificateAuthority::self_signed(dir.path(), "cluster.local", now)?;
//! let id: amime_core::SpiffeId = "spiffe://cluster.local/ns/default/sa/reviews".parse()?;
//! let request = amime_identity::new_key_and_csr(&id)?;
//! let caller = CallerIdentity { spiffe_id: id, credential: Credential::ClientCertificate };
//! let chain = ca.sign(&request.csr_pem, &caller, None, now)?;
//! assert_eq!(chain.len(), 2, "the leaf and the root");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod authority;
mod caller;
mod state;
mod tokens;

pub use authority::{CertificateAuthority, DEFAULT_TTL, MAX_TTL, OpenError, SignError};
pub use caller::{CallerIdentity, Credential};
pub use state::StateError;
pub use tokens::{TOKEN_AUDIENCE, TOKEN_ISSUER, TokenError, TokenSubject, WorkloadTokens};

#[cfg(test)]
mod tests;
