//! Who calls: by client certificate, else by bearer token.

use std::sync::Arc;
use std::time::SystemTime;

use amime_ca::{CallerIdentity, Credential, WorkloadTokens};
use amime_core::SpiffeId;
use http::HeaderMap;
use http::header::AUTHORIZATION;

/// Why a request has no caller; said to the client without details that would
/// help to forge a token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    /// Neither certificate nor token.
    #[error("neither a client certificate nor a bearer token was presented")]
    Missing,
    /// A header that is no bearer token.
    #[error("the authorization header is not a bearer token")]
    Malformed,
    /// No token issuer is known here.
    #[error("bearer tokens are not accepted here")]
    NoTokens,
    /// A token that does not verify.
    #[error("the bearer token is not valid")]
    Invalid,
}

/// Establishes the caller of a request.
#[derive(Clone, Debug)]
pub struct Authenticator {
    tokens: Option<Arc<WorkloadTokens>>,
    trust_domain: Arc<str>,
    clock: fn() -> SystemTime,
}

impl Authenticator {
    /// Accepts certificates and, if given, workload `tokens`, whose pods
    /// become identities of `trust_domain`.
    pub fn new(
        tokens: Option<Arc<WorkloadTokens>>,
        trust_domain: &str,
        clock: fn() -> SystemTime,
    ) -> Self {
        Self { tokens, trust_domain: trust_domain.into(), clock }
    }

    /// The caller, from the identity of the connection's verified certificate
    /// or from the request's headers. A certificate counts more: the token
    /// beside it is not even read.
    pub(crate) fn caller(
        &self,
        peer: Option<&SpiffeId>,
        headers: &HeaderMap,
    ) -> Result<CallerIdentity, AuthError> {
        if let Some(peer) = peer {
            let credential = Credential::ClientCertificate;
            return Ok(CallerIdentity { spiffe_id: peer.clone(), credential });
        }
        let header = headers.get(AUTHORIZATION).ok_or(AuthError::Missing)?;
        let token = header
            .to_str()
            .ok()
            .and_then(|text| text.strip_prefix("Bearer ").or(text.strip_prefix("bearer ")))
            .ok_or(AuthError::Malformed)?;
        let tokens = self.tokens.as_ref().ok_or(AuthError::NoTokens)?;
        tokens.authenticate(token.trim(), &self.trust_domain, (self.clock)()).map_err(|error| {
            tracing::debug!(error = &error as &dyn std::error::Error, "token refused");
            AuthError::Invalid
        })
    }
}
