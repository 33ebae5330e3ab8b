//! The daemon's listeners.
//!
//! Owns accept loops, TLS, caller authentication and the pages for operators.
//! The services behind gRPC are handed in as routers; they find the
//! [`amime_ca::CallerIdentity`] of an authenticated request in its extensions.
//!
//! Invariant: nothing behind the TLS listener runs for a caller without an
//! identity.

mod auth;
mod debug;
mod grpc;
pub(crate) mod http;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use auth::Authenticator;
pub use grpc::{serve_plaintext, serve_tls};

/// Time that open connections get to end after a shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(2);

/// Ends when a shutdown was asked for and the time to drain is over.
async fn drained(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(DRAIN).await;
}

#[cfg(test)]
mod tests;
