//! Who asks for a certificate, as the server authenticated it.

use std::fmt;

use amime_core::SpiffeId;

use crate::tokens::TokenSubject;

/// How a caller proved who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A client certificate of this mesh.
    ClientCertificate,
    /// A workload token, and the pod that it was issued to.
    WorkloadToken(TokenSubject),
}

/// An authenticated caller; the only source of the names in its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerIdentity {
    /// The workload's identity.
    pub spiffe_id: SpiffeId,
    /// What proved it.
    pub credential: Credential,
}

impl fmt::Display for CallerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spiffe_id.fmt(f)
    }
}
