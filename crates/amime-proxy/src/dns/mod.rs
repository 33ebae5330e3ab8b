//! The sidecar's DNS proxy: answers names of the mesh from the control plane's
//! table and forwards the rest.
//!
//! Owns the listening sockets, the table and the upstream exchange. Answers
//! are computed by pure code ([`answer`]), so that arbitrary packets can be
//! tried against it.
//!
//! Invariant: packets never panic, and the number of queries in flight and of
//! TCP connections is bounded.

mod answer;
mod forward;
mod resolve;
mod server;
mod table;

pub(crate) use forward::Upstreams;
pub(crate) use resolve::resolve;

pub(crate) use server::{DnsError, DnsOptions, DnsProxy};
