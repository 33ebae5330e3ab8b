//! The data plane: sidecar and gateway proxy with its agent.
//!
//! Interprets xDS; it has no idea of a VirtualService. The data path
//! (`listener`, `http`, `tcp`, `tls`, `upstream`) runs on worker threads;
//! agent duties (`agent`, `admin`, `dns`) run beside them on one small runtime.

pub mod dns;
pub mod telemetry;
