//! Client side of ADS: what a proxy holds and what it asks for.
//!
//! Owns subscriptions, nonces and the version held of each resource; applying
//! a resource is the [`Handler`]'s job.
//!
//! Invariant: a rejected version is never held, so a reconnect does not claim
//! it and the server sends it again.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>

mod delta;
#[cfg(feature = "grpc")]
mod run;
mod sotw;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::BTreeSet;

use crate::{Resource, TypeUrl};

pub use delta::DeltaClient;
#[cfg(feature = "grpc")]
pub use run::{AdsClient, ClientConfig, Connection, Variant};
pub use sotw::SotwClient;

/// The name that stands for all names.
const WILDCARD: &str = "*";

/// One response of the server, decoded down to its resources.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Kind of all resources in this update.
    pub type_url: TypeUrl,
    /// New and changed resources.
    pub added: Vec<Resource>,
    /// Names that the server no longer has.
    pub removed: Vec<String>,
}

/// A resource that the handler refuses; the version it replaces stays in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Name of the refused resource.
    pub name: String,
    /// What is wrong with it, for the operator at the server's end.
    pub error: String,
}

/// What a client wants of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subscription {
    /// Everything that the server has for this client.
    Wildcard,
    /// These names only. An empty set asks for nothing.
    Names(BTreeSet<String>),
}

/// Client side of one variant of the protocol, across reconnects.
pub trait StreamState {
    /// What the server is sent.
    type Request;
    /// What the server sends.
    type Response;

    /// Starts a stream: everything wanted is asked for, with what is held.
    fn on_connect(&mut self, handler: &dyn Handler) -> Vec<Self::Request>;

    /// Requests for what the handler wants now and did not want before.
    fn refresh(&mut self, handler: &dyn Handler) -> Vec<Self::Request>;

    /// Applies one response: the verdict goes first, then what the applied
    /// resources made necessary.
    ///
    /// A response of a type never asked for is ignored.
    fn on_response(
        &mut self,
        response: Self::Response,
        handler: &mut dyn Handler,
    ) -> Vec<Self::Request>;
}

/// The party that applies resources.
pub trait Handler: Send {
    /// Applies `update` and names the resources that it refuses.
    ///
    /// All or nothing per resource: what is not in the answer is in force.
    fn apply(&mut self, update: Update) -> Vec<Rejection>;

    /// What is wanted now, asked again after every [`Handler::apply`]: names of
    /// RDS, EDS and SDS follow from the listeners and clusters in force.
    ///
    /// Types are requested in the order of this list.
    fn subscriptions(&self) -> Vec<(TypeUrl, Subscription)>;
}
