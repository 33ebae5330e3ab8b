//! Waiting for the signal that ends the process.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// Returns when SIGTERM or SIGINT arrives.
pub(crate) async fn requested() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
