//! The proxy as a program: sidecar, gateway or run from a bootstrap file.
//!
//! Owns what runs beside the data path on one small runtime: the control
//! plane's stream and the workload's certificate (`agent`), admin, health and
//! metrics ports (`admin`), DNS (`dns`) and Envoy's command line
//! (`bootstrap`). Traffic is `amime-engine`'s business, metrics and access
//! logs are `amime-telemetry`'s.
//!
//! Invariant: it reads xDS and has no idea of a VirtualService; with the
//! control plane away, the last good configuration goes on serving.

mod admin;
mod agent;
mod bootstrap;
mod dns;
mod flags;
mod json;
mod run;

pub use bootstrap::RestartError;
pub use run::{ProxyArgs, RunError, run};
