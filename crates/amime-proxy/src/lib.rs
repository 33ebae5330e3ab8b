//! The data plane: sidecar and gateway proxy with its agent.
//!
//! Interprets xDS; it has no idea of a VirtualService. The data path
//! (`listener`, `http`, `tcp`, `tls`, `upstream`) runs on worker threads;
//! agent duties (`agent`, `admin`, `dns`) run beside them on one small runtime.

pub mod admin;
pub mod agent;
pub mod bootstrap;
mod config;
pub mod dns;
mod http;
mod json;
mod listener;
mod run;
pub mod runtime;
mod tcp;
pub mod telemetry;
pub mod tls;
mod upstream;
mod worker;

pub use run::{ProxyArgs, RunError, run};
