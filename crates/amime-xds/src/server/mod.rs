//! Server side of one ADS stream, without I/O.
//!
//! [`DeltaSession`] and [`SotwSession`] speak the two variants of the
//! protocol: they keep subscriptions, nonces, and what the client holds.
//! [`Pusher`] drives either of them: it decides which type is sent next, so
//! that nothing is referred to before it was sent and nothing is taken away
//! while it is still referred to. Where resources come from, and how long a
//! client may take, is the caller's business.
//!
//! Invariants: one response of a type is in flight at a time, so a client that
//! does not answer costs one response a type; a nonce is used once and settles
//! once; what a client was sent is never sent again unless it changed, the
//! client asked for it anew, or it must follow a cluster that changed.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>

mod delta;
mod pusher;
mod sotw;
#[cfg(test)]
mod tests;
mod warming;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::core::v3::Node;

use crate::{Resource, TypeUrl};

pub use delta::DeltaSession;
pub use pusher::{Pusher, Source};
pub use sotw::SotwSession;
pub use warming::EdsCluster;

/// Names that one client may subscribe to in one type.
const MAX_NAMES: usize = 200_000;

/// Bytes of one resource name.
const MAX_NAME_BYTES: usize = 4096;

/// What a client wants of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// Everything there is for this client.
    All,
    /// These names.
    Names(&'a BTreeSet<String>),
}

/// What became of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reaction {
    /// Type that the request was about; `None` when we do not serve it.
    pub type_url: Option<TypeUrl>,
    /// The client waits for an answer: resources must be generated.
    pub asks: bool,
    /// Verdict on an earlier response, if the request carried one.
    pub verdict: Option<Verdict>,
}

/// A client's verdict on a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything in it is in force.
    Ack,
    /// Something in it was refused.
    Nack(Nack),
    /// It names a response other than the one in flight.
    Stale,
}

/// A refusal, as the client words it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    /// Nonce of the refused response.
    pub nonce: String,
    /// Version of the refused response.
    pub version: String,
    /// gRPC status code.
    pub code: i32,
    /// The client's words, cut at 4 KiB.
    pub message: String,
}

/// A request that no working client sends; it ends the stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// More names than any mesh has.
    #[error("more than {MAX_NAMES} {type_url} names subscribed")]
    TooManyNames {
        /// Type of the names.
        type_url: TypeUrl,
    },
    /// A name longer than any that we produce.
    #[error("{type_url} name of {bytes} bytes, at most {MAX_NAME_BYTES} are allowed")]
    NameTooLong {
        /// Type of the name.
        type_url: TypeUrl,
        /// Its length.
        bytes: usize,
    },
}

/// One response, named by nonce and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Unique on the stream.
    pub nonce: String,
    /// Version of the push that caused it.
    pub version: String,
}

/// Where a client stands with one type; the input of `proxy-status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeStatus {
    /// Last response sent.
    pub sent: Option<Stamp>,
    /// Last response acknowledged.
    pub acked: Option<Stamp>,
    /// Last refusal; gone once nothing refused is left.
    pub nack: Option<Nack>,
    /// Resources refused in the version sent last, with the client's error.
    pub rejected: BTreeMap<String, String>,
    /// Resources that the client was sent and that are still there.
    pub resources: usize,
}

impl TypeStatus {
    /// Whether the client has answered the last response, one way or the other.
    pub fn is_answered(&self) -> bool {
        let Some(sent) = &self.sent else { return true };
        let refused = |nack: &Nack| nack.nonce == sent.nonce;
        self.acked.as_ref() == Some(sent) || self.nack.as_ref().is_some_and(refused)
    }

    /// Whether the client has answered the last response and refused nothing.
    pub fn is_synced(&self) -> bool {
        self.rejected.is_empty() && self.nack.is_none() && self.sent == self.acked
    }
}

/// When resources that are gone are taken from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removals {
    /// With this push.
    Now,
    /// By a later [`Session::push_removals`], when nothing refers to them.
    Later,
}

/// One push of one type.
#[derive(Clone, Copy, Debug)]
pub struct Push<'a> {
    /// Type of all resources.
    pub type_url: TypeUrl,
    /// What there is now: all of it, or all that `only` names.
    pub resources: &'a [Resource],
    /// Restricts the push to these names; others stay as they are.
    pub only: Option<&'a BTreeSet<String>>,
    /// What happens to resources that are gone.
    pub removals: Removals,
    /// Version of the configuration that this push brings.
    pub version: &'a str,
}

/// One variant of the protocol.
pub trait Session: Send {
    /// What the client sends.
    type Request: Send;
    /// What it is sent.
    type Response: Send;

    /// The node in a request; clients send it at least with the first.
    fn node(request: &Self::Request) -> Option<&Node>;

    /// Takes in one request.
    ///
    /// # Errors
    /// When the client breaks a bound; the stream has to end.
    fn on_request(&mut self, request: Self::Request) -> Result<Reaction, SessionError>;

    /// What the client wants of a type; `None` when it never asked.
    fn wanted(&self, type_url: TypeUrl) -> Option<Wanted<'_>>;

    /// Whether a response of this type waits for the client's verdict.
    fn in_flight(&self, type_url: TypeUrl) -> bool;

    /// Records a push; `None` when the client holds all of it already, never
    /// asked, or has not answered the response before.
    fn push(&mut self, push: Push<'_>) -> Option<Self::Response>;

    /// Takes away what [`Removals::Later`] left; `None` when nothing is left.
    fn push_removals(&mut self, type_url: TypeUrl, version: &str) -> Option<Self::Response>;

    /// Whether [`Session::push_removals`] has something to do.
    fn has_removals(&self, type_url: TypeUrl) -> bool;

    /// Names whose resource must be sent again although it did not change.
    fn take_forced(&mut self) -> Option<(TypeUrl, BTreeSet<String>)>;

    /// Clusters with endpoints of their own that were sent since the last call.
    fn take_sent_clusters(&mut self) -> Vec<EdsCluster>;

    /// Whether the client asked for this name and was told about it.
    fn was_told(&self, type_url: TypeUrl, name: &str) -> bool;

    /// Where the client stands, by type.
    fn status(&self) -> BTreeMap<TypeUrl, TypeStatus>;
}
