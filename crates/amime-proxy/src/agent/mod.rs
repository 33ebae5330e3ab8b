//! The agent: what a workload's proxy does besides carrying traffic.
//!
//! Owns the way from environment to node and settings ([`AgentConfig`]), the
//! discovery client, the workload's identity and its rotation, the last good
//! configuration on disk, and start and end of the process. Applying
//! configuration is the runtime's job.
//!
//! Invariant: private keys stay in memory; nothing here writes one to a file.

mod channel;
mod env;
mod handler;
mod handover;
mod identity;
mod last_good;
mod lifecycle;
mod node;
mod ready;
mod self_discovery;

pub(crate) use env::{AgentConfig, AppMetrics, HostPort, ProxyKind};
pub(crate) use lifecycle::AgentError;

pub(crate) use channel::{Channel, DialError, Dialer};
pub(crate) use handler::DiscoveryHandler;
pub(crate) use identity::{CERTIFICATE, Identity, ROOTS};
pub(crate) use lifecycle::{Outside, run, until_end, watch_connection};
pub(crate) use node::server_info_node;
pub(crate) use ready::{Others, Readiness};

#[cfg(test)]
mod tests;
