//! The daemon's listeners.
//!
//! Owns accept loops, TLS and caller authentication. What is served is handed
//! in as routers; they find the [`amime_ca::CallerIdentity`] of an
//! authenticated request in its extensions.
//!
//! Invariant: nothing behind the TLS listener runs for a caller without an
//! identity.

mod auth;
mod grpc;

pub use auth::Authenticator;
pub use grpc::{serve_plaintext, serve_tls};
