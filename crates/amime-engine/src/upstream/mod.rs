//! Clusters at run time: endpoints, load balancing, connection pools, passive
//! health checks, circuit breakers.
//!
//! Each worker has pools of its own; what must be common to all (ejection,
//! limits, counters) is in `amime_config::endpoint_state` and costs no lock.

pub(crate) mod cluster;
pub(crate) mod connect;
pub(crate) mod grpc;
pub(crate) mod h1;
pub(crate) mod lb;
pub(crate) mod pool;
mod proxy_header;

pub(crate) use amime_config::endpoint_state::{EndpointShard, Outcome, Resource};
pub(crate) use cluster::{ClusterRuntime, ClusterSpec, Host};
pub(crate) use lb::{LbInput, RetryInput, SharedLb};
