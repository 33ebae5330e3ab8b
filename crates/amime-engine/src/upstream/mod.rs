//! Connections to endpoints: pools, the HTTP protocols on them, calls of the
//! proxy's own.
//!
//! Which endpoint it is and how to reach it is `amime-upstream`'s; each worker
//! has pools of its own.

pub(crate) mod grpc;
pub(crate) mod h1;
pub(crate) mod h2;
pub(crate) mod pool;

pub(crate) use amime_upstream::{
    ClusterSpec, EndpointShard, Outcome, Resource, RetryInput, SharedLb, connect,
};
use pool::HostPool;

pub(crate) type ClusterRuntime = amime_upstream::ClusterRuntime<HostPool>;
pub(crate) type Host = amime_upstream::Host<HostPool>;
pub(crate) type LbInput<'a> = amime_upstream::LbInput<'a, HostPool>;
