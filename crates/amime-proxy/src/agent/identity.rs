//! The workload's certificate: asked for, put in force, renewed.
//!
//! Owns key and CSR, the call to the CA and the time of the next one. Using
//! the certificate in handshakes is `amime-identity`'s job.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use amime_config::secrets::SecretSource;
use amime_core::SpiffeId;
use amime_identity::{
    CertError, CertificateDetails, KeyError, LiveBundle, LiveCert, TrustBundle, WorkloadCert,
    new_key_and_csr,
};
use amime_xds::istio::ca::{IstioCertificateRequest, IstioCertificateServiceClient};
use tokio::sync::watch;

use super::channel::{DialError, Dialer};
use super::handover::Handover;

/// SDS name of the workload's certificate.
pub(crate) const CERTIFICATE: &str = "default";
/// SDS name of the mesh's roots.
pub(crate) const ROOTS: &str = "ROOTCA";

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// However short a certificate lives, the CA is not asked more often.
const MIN_RENEWAL: Duration = Duration::from_secs(1);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    #[error("key for {identity} cannot be made")]
    Key {
        identity: Box<SpiffeId>,
        #[source]
        source: KeyError,
    },
    #[error("CA cannot be reached")]
    Dial(#[source] DialError),
    #[error("CA refused a certificate for {identity}: {code:?}: {message}")]
    Refused { identity: Box<SpiffeId>, code: tonic::Code, message: String },
    #[error("CA did not answer within {CALL_TIMEOUT:?}")]
    Timeout,
    #[error("certificate from the CA is not usable")]
    Certificate(#[source] CertError),
    #[error("roots from the CA are not usable")]
    Roots(#[source] amime_identity::BundleError),
    #[error("CA sent an empty chain")]
    Empty,
    #[error("CA certified {got} instead of {identity}")]
    WrongIdentity { identity: Box<SpiffeId>, got: String },
}

/// The workload's live certificate and roots.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) cert: Arc<LiveCert>,
    pub(crate) roots: Arc<LiveBundle>,
    present: watch::Sender<bool>,
}

impl Identity {
    /// No certificate yet; trusts nobody.
    pub(crate) fn empty() -> Arc<Self> {
        Arc::new(Self {
            cert: LiveCert::empty(),
            roots: LiveBundle::new(TrustBundle::empty()),
            present: watch::Sender::new(false),
        })
    }

    /// Puts a certificate in force for all handshakes to come.
    pub(crate) fn set(&self, cert: WorkloadCert, roots: TrustBundle) {
        self.roots.set(roots);
        self.cert.set(cert);
        self.present.send_replace(true);
    }

    /// Whether there is a certificate.
    pub(crate) fn is_present(&self) -> bool {
        *self.present.borrow()
    }
}

impl SecretSource for Identity {
    fn certificate(&self, name: &str) -> Option<Arc<LiveCert>> {
        (name == CERTIFICATE).then(|| self.cert.clone())
    }

    fn roots(&self, name: &str) -> Option<Arc<LiveBundle>> {
        (name == ROOTS).then(|| self.roots.clone())
    }
}

/// Keeps an [`Identity`] valid.
#[derive(Debug)]
pub(crate) struct Renewal {
    pub(crate) identity: Arc<Identity>,
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) dialer: Dialer,
    pub(crate) ttl: Duration,
    pub(crate) handover: Option<Handover>,
}

impl Renewal {
    /// Takes the identity that a former process left, if it is still good.
    pub(crate) fn adopt(&self, now: SystemTime) -> bool {
        let Some((cert, roots)) = self.handover.as_ref().and_then(Handover::load) else {
            return false;
        };
        let ours = cert.spiffe_id() == Some(&self.spiffe_id);
        if !ours || cert.not_after() <= now {
            return false;
        }
        tracing::info!(identity = %self.spiffe_id, "identity taken over from the former process");
        self.identity.set(cert, roots);
        true
    }

    /// Issues and renews for ever.
    pub(crate) async fn run(self) {
        let mut retry = FIRST_RETRY;
        let adopted = self.identity.cert.current();
        let mut due = adopted.map(|cert| cert.rotate_at(renewal_ratio(fastrand::f64())));
        loop {
            if let Some(due) = due {
                sleep_until(due).await;
            }
            match self.issue().await {
                Ok((cert, roots)) => {
                    retry = FIRST_RETRY;
                    due = Some(renewal_time(SystemTime::now(), cert.not_after(), fastrand::f64()));
                    self.install(cert, roots);
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(%error, retry_ms = retry.as_millis() as u64, "no certificate");
                    due = None;
                    tokio::time::sleep(retry.mul_f64(0.5 + fastrand::f64())).await;
                    retry = (retry * 2).min(LAST_RETRY);
                }
            }
        }
    }

    fn install(&self, cert: WorkloadCert, roots: TrustBundle) {
        let kept = self.handover.as_ref().map(|handover| handover.store(&cert, &roots));
        if let Some(Err(error)) = kept {
            tracing::warn!(%error, "identity not handed over");
        }
        let left = cert.not_after().duration_since(SystemTime::now()).unwrap_or_default();
        tracing::info!(identity = %self.spiffe_id, valid_s = left.as_secs(), "certificate issued");
        self.identity.set(cert, roots);
    }

    async fn issue(&self) -> Result<(WorkloadCert, TrustBundle), IssueError> {
        let identity = || Box::new(self.spiffe_id.clone());
        let request = new_key_and_csr(&self.spiffe_id)
            .map_err(|source| IssueError::Key { identity: identity(), source })?;
        let channel = self.dialer.dial().await.map_err(IssueError::Dial)?;
        let mut client = IstioCertificateServiceClient::new(channel);
        let call = client.create_certificate(tonic::Request::new(IstioCertificateRequest {
            csr: request.csr_pem,
            validity_duration: i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: None,
        }));
        let response = tokio::time::timeout(CALL_TIMEOUT, call)
            .await
            .map_err(|_| IssueError::Timeout)?
            .map_err(|status| IssueError::Refused {
                identity: identity(),
                code: status.code(),
                message: status.message().to_owned(),
            })?;
        let (leaf, roots) = split_chain(response.into_inner().cert_chain)?;
        let cert = WorkloadCert::from_pem(leaf.as_bytes(), request.key)
            .map_err(IssueError::Certificate)?;
        if cert.spiffe_id() != Some(&self.spiffe_id) {
            let got = cert.spiffe_id().map_or_else(|| "nobody".into(), ToString::to_string);
            return Err(IssueError::WrongIdentity { identity: identity(), got });
        }
        Ok((cert, roots))
    }
}

/// The chain to present and the roots behind it. Roots come last: the last
/// certificate is one, and so are the self-signed ones before it.
fn split_chain(mut chain: Vec<String>) -> Result<(String, TrustBundle), IssueError> {
    let mut roots = chain.pop().ok_or(IssueError::Empty)?;
    let is_root = |pem: &String| {
        let details = CertificateDetails::of_pem(pem.as_bytes());
        details.is_ok_and(|details| details.is_ca && details.subject == details.issuer)
    };
    while chain.last().is_some_and(is_root) {
        roots.push_str(&chain.pop().unwrap_or_default());
    }
    // A chain of roots alone has no certificate for us.
    if chain.is_empty() {
        return Err(IssueError::Empty);
    }
    let roots = TrustBundle::from_pem(roots.as_bytes()).map_err(IssueError::Roots)?;
    Ok((chain.concat(), roots))
}

/// When to renew a certificate that was issued now. Counted from now and not
/// from its start, which may lie far back to bridge clocks that differ: a short
/// life would then always be due.
fn renewal_time(now: SystemTime, not_after: SystemTime, random: f64) -> SystemTime {
    let life = not_after.duration_since(now).unwrap_or_default();
    now + life.mul_f64(renewal_ratio(random)).max(MIN_RENEWAL)
}

/// Sleeps by the wall clock: a timer stands still while a machine sleeps, the
/// certificate's end does not.
async fn sleep_until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(60))).await;
    }
}

/// Share of the certificate's life after which it is renewed: half, give or
/// take a tenth, so that workloads started together do not renew together.
fn renewal_ratio(random: f64) -> f64 {
    0.5 * (0.9 + 0.2 * random)
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_around_half_life() {
        for random in [0.0, 0.5, 0.999] {
            let ratio = renewal_ratio(random);
            assert!((0.45..0.55).contains(&ratio), "{ratio}");
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let due = renewal_time(now, now + Duration::from_secs(100), 0.5);
        assert_eq!(due, now + Duration::from_secs(50));
        assert_eq!(renewal_time(now, now, 0.5), now + MIN_RENEWAL);
    }
}
