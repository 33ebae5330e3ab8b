//! The local platform: a whole mesh on one Linux machine, without a cluster.
//!
//! Owns what Kubernetes would do for a mesh: namespaces and addresses of
//! pods, their processes, service addresses and names, interception, logs,
//! and a port on the host. The objects are ordinary Kubernetes and Istio
//! YAML; discovery, certificates and proxies are the same programs as in a
//! cluster, started here as pods.
//!
//! Invariant: everything that runs is a descendant of one supervisor, which
//! is PID 1 of its own PID namespace and dies with `amime up`. Nothing
//! outlives it but files in the state directory.
//!
//! ```no_run
//! use amime_local::{Progress, UpOptions};
//!
//! # async fn demo() -> Result<(), amime_local::UpError> {
//! let options = UpOptions { port: 0, ..UpOptions::default() };
//! amime_local::up(options, |progress| {
//!     if let Progress::Ready { url, .. } = progress {
//!         println!("the mesh answers at {url}");
//!     }
//! })
//! .await
//! # }
//! ```

pub mod client;
pub mod status;
pub mod supervisor;

mod address;
mod cluster;
mod controller;
mod convergence;
mod dns;
mod environment;
mod forward;
mod frame;
mod image;
mod interception;
mod kubelet;
mod logs;
mod manifests;
mod network;
mod options;
mod process;
mod progress;
mod server;
mod service;
mod sidecar;
mod state;
mod up;

pub use image::{ImageMapping, ImageMappingError};
pub use options::{ManifestFile, UpOptions};
pub use progress::{Progress, StepState};
pub use state::{StateDir, StateError, default_state_dir};
pub use up::{Down, UpError, down, up};
