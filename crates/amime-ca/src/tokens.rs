//! Signed tokens by which workloads without a cluster prove who they are.
//!
//! They have the shape of Kubernetes' bound service-account tokens: issuer,
//! audience, subject `system:serviceaccount:NAMESPACE:NAME` and the pod.
//!
//! Spec: <https://datatracker.ietf.org/doc/html/rfc7519>

use std::path::Path;
use std::time::{Duration, SystemTime};

use amime_core::SpiffeId;
use amime_identity::{KeyError, PrivateKey};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};

use crate::caller::{CallerIdentity, Credential};
use crate::state::{self, StateDir, StateError};

/// Audience that the control plane accepts.
pub const TOKEN_AUDIENCE: &str = "istio-ca";
/// Issuer of every token.
pub const TOKEN_ISSUER: &str = "https://amime.local";

const KEY_FILE: &str = "token-key.pem";
/// Far above what is ever issued.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// Tolerated difference between the clocks of issuer and verifier.
const LEEWAY: Duration = Duration::from_secs(60);

/// Why a token was refused or could not be issued.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The key could not be opened or made.
    #[error(transparent)]
    State(#[from] StateError),
    /// A new key could not be made.
    #[error("a token key could not be made")]
    Key(#[from] KeyError),
    /// Signing failed.
    #[error("the token could not be signed")]
    Sign(#[source] jsonwebtoken::errors::Error),
    /// Longer than any token of ours.
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLarge,
    /// Not ours: form, signature, issuer or audience.
    #[error("the token is not valid")]
    Invalid(#[source] jsonwebtoken::errors::Error),
    /// Used before its time or after its end.
    #[error("the token is not valid at this time")]
    Time,
    /// Subject and pod claims contradict each other.
    #[error("the token's subject {subject:?} does not fit its claims")]
    Subject {
        /// What it says.
        subject: String,
    },
}

/// The pod that a token is issued to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSubject {
    /// Namespace of pod and service account.
    pub namespace: String,
    /// Name of the service account.
    pub service_account: String,
    /// Name of the pod.
    pub pod_name: String,
    /// UID of the pod.
    pub pod_uid: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: Vec<String>,
    sub: String,
    iat: u64,
    nbf: u64,
    exp: u64,
    #[serde(rename = "kubernetes.io")]
    bound: BoundClaims,
}

#[derive(Serialize, Deserialize)]
struct BoundClaims {
    namespace: String,
    pod: PodClaim,
    serviceaccount: NameClaim,
}

#[derive(Serialize, Deserialize)]
struct PodClaim {
    name: String,
    uid: String,
}

#[derive(Serialize, Deserialize)]
struct NameClaim {
    name: String,
}

/// Issues and checks workload tokens with the key of one state directory.
pub struct WorkloadTokens {
    signing: EncodingKey,
    verifying: DecodingKey,
}

impl WorkloadTokens {
    /// Opens the token key of `dir`, making one if there is none yet.
    pub fn open(dir: &Path) -> Result<Self, TokenError> {
        let state = StateDir::open(dir)?;
        let path = state.file(KEY_FILE);
        let key = match state::read(&path)? {
            Some(text) => PrivateKey::from_pem(&text)
                .map_err(|error| StateError::corrupt(&path, error.to_string()))?,
            None => {
                let key = PrivateKey::generate()?;
                state.create(&[(KEY_FILE, key.to_pem().as_bytes())])?;
                key
            }
        };
        let pair = KeyPair::try_from(key.secret_der())
            .map_err(|error| StateError::corrupt(&path, error.to_string()))?;
        if *pair.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(StateError::corrupt(&path, "it is not a P-256 key").into());
        }
        Ok(Self {
            signing: EncodingKey::from_ec_der(key.secret_der().secret_der()),
            verifying: DecodingKey::from_ec_der(pair.public_key_raw()),
        })
    }

    /// A token for `subject` that ends `ttl` after `now`.
    pub fn issue(
        &self,
        subject: &TokenSubject,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<String, TokenError> {
        self.issue_for(subject, TOKEN_AUDIENCE, ttl, now)
    }

    /// Checks signature, issuer, audience and time of a bearer token.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<TokenSubject, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLarge);
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[TOKEN_AUDIENCE]);
        validation.set_issuer(&[TOKEN_ISSUER]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        // The library reads the system's clock; ours is given.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation)
            .map_err(TokenError::Invalid)?
            .claims;
        let now = unix_seconds(now);
        let expired = claims.exp.saturating_add(LEEWAY.as_secs()) <= now;
        if expired || claims.nbf > now.saturating_add(LEEWAY.as_secs()) {
            return Err(TokenError::Time);
        }
        let subject = TokenSubject {
            namespace: claims.bound.namespace,
            service_account: claims.bound.serviceaccount.name,
            pod_name: claims.bound.pod.name,
            pod_uid: claims.bound.pod.uid,
        };
        if claims.sub != subject_claim(&subject) {
            return Err(TokenError::Subject { subject: claims.sub });
        }
        Ok(subject)
    }

    /// [`WorkloadTokens::verify`], as the identity in `trust_domain`.
    pub fn authenticate(
        &self,
        token: &str,
        trust_domain: &str,
        now: SystemTime,
    ) -> Result<CallerIdentity, TokenError> {
        let subject = self.verify(token, now)?;
        // Parsed anew, so that a name with a slash cannot pose as another identity.
        let spiffe_id = SpiffeId::new(trust_domain, &subject.namespace, &subject.service_account)
            .to_string()
            .parse()
            .map_err(|_| TokenError::Subject { subject: subject_claim(&subject) })?;
        Ok(CallerIdentity { spiffe_id, credential: Credential::WorkloadToken(subject) })
    }

    pub(crate) fn issue_for(
        &self,
        subject: &TokenSubject,
        audience: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<String, TokenError> {
        let issued = unix_seconds(now);
        let claims = Claims {
            iss: TOKEN_ISSUER.to_owned(),
            aud: vec![audience.to_owned()],
            sub: subject_claim(subject),
            iat: issued,
            nbf: issued,
            exp: issued.saturating_add(ttl.as_secs()),
            bound: BoundClaims {
                namespace: subject.namespace.clone(),
                pod: PodClaim { name: subject.pod_name.clone(), uid: subject.pod_uid.clone() },
                serviceaccount: NameClaim { name: subject.service_account.clone() },
            },
        };
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.signing)
            .map_err(TokenError::Sign)
    }
}

impl std::fmt::Debug for WorkloadTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WorkloadTokens(..)")
    }
}

fn subject_claim(subject: &TokenSubject) -> String {
    format!("system:serviceaccount:{}:{}", subject.namespace, subject.service_account)
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
