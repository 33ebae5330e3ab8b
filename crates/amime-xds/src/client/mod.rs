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
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use crate::{Resource, TypeUrl};

pub use delta::DeltaClient;
#[cfg(feature = "grpc")]
pub use run::{AdsClient, ClientConfig, Connection};

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
