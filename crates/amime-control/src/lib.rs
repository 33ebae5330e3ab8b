//! The control plane: from objects to what proxies, workloads and operators ask for.
//!
//! Owns the object store and its API, the sources of configuration, the
//! servers of discovery and certificates, and the daemon made of them. What a
//! proxy is told is decided in `amime-translate`; signing is `amime-ca`'s.
//!
//! Invariant: an object that cannot be used changes nothing; what was in force
//! before stays in force.

pub mod ads;
pub mod api;
pub mod ca;
pub mod config;
pub mod daemon;
pub mod discovery;
mod mesh;
pub mod metrics;
pub mod run;
pub mod server;
pub mod source;
pub mod store;
mod validation;
