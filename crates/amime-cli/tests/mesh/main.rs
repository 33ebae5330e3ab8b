//! A whole mesh, started, questioned, changed and stopped as a user does it.
//!
//! Needs root or user namespaces; everything stays in namespaces of its own
//! and on loopback.

mod dynamic;
mod harness;
mod life;
mod outage;
mod sidecar;
mod strict;
#[cfg(feature = "capture")]
mod wire;
