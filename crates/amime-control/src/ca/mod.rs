//! `istio.v1.auth.IstioCertificateService`: certificates for authenticated callers.
//!
//! Authentication has happened in [`crate::server`], which leaves the
//! [`CallerIdentity`] in the request's extensions; this service signs for that
//! caller and for nobody else.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use amime_ca::{CallerIdentity, CertificateAuthority, SignError};
use amime_xds::istio::ca::{
    IstioCertificateRequest, IstioCertificateResponse, IstioCertificateService,
};
use tonic::{Request, Response, Status};

use crate::metrics::CaMetrics;

/// The certificate service of one authority.
#[derive(Debug)]
pub struct CertificateService {
    authority: Arc<CertificateAuthority>,
    metrics: CaMetrics,
    clock: fn() -> SystemTime,
}

impl CertificateService {
    /// Signs with `authority` at the time that `clock` tells.
    pub fn new(
        authority: Arc<CertificateAuthority>,
        metrics: CaMetrics,
        clock: fn() -> SystemTime,
    ) -> Self {
        Self { authority, metrics, clock }
    }

    fn sign(
        &self,
        caller: &CallerIdentity,
        request: &IstioCertificateRequest,
    ) -> Result<Vec<String>, Status> {
        // The field is signed; a negative lifetime is nonsense, zero the default.
        let seconds = u64::try_from(request.validity_duration)
            .map_err(|_| Status::invalid_argument("validity_duration is negative"))?;
        let ttl = Some(Duration::from_secs(seconds));
        self.authority.sign(&request.csr, caller, ttl, (self.clock)()).map_err(|error| {
            tracing::warn!(%caller, error = &error as &dyn std::error::Error, "certificate refused");
            self.count(&error);
            status_of(&error)
        })
    }

    fn count(&self, error: &SignError) {
        match error {
            SignError::Malformed { .. } | SignError::TooLarge { .. } => {
                self.metrics.malformed.increment();
            }
            _ => self.metrics.failed.increment(),
        }
    }
}

impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.metrics.requests.increment();
        let (_, extensions, request) = request.into_parts();
        let Some(caller) = extensions.get::<CallerIdentity>() else {
            self.metrics.unauthenticated.increment();
            return Err(Status::unauthenticated("the request carries no identity"));
        };
        let cert_chain = self.sign(caller, &request)?;
        self.metrics.issued.increment();
        tracing::info!(%caller, "certificate issued");
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

fn status_of(error: &SignError) -> Status {
    let message = match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    match error {
        SignError::Malformed { .. }
        | SignError::TooLarge { .. }
        | SignError::WeakKey { .. }
        | SignError::Lifetime { .. } => Status::invalid_argument(message),
        SignError::CaExpired => Status::failed_precondition(message),
        SignError::Signing { .. } | SignError::Serving { .. } => Status::internal(message),
    }
}
