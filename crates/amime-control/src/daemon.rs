//! The control plane as a process: flags, log, runtime and signals. Both
//! programs that can be one, `amimed` and `amime control-plane`, call it.

use amime_core::log::{LogFormat, LogOptions};
use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::ControlPlaneArgs;

/// Flags of the process.
#[derive(Args, Clone, Debug)]
pub struct DaemonArgs {
    #[command(flatten)]
    control_plane: ControlPlaneArgs,
    /// Log levels, as in `info,amime_control=debug`
    #[arg(long = "log-level", default_value = "info", env = "AMIME_LOG", value_name = "LEVELS")]
    log_level: String,
    /// Log JSON instead of text
    #[arg(long = "log-as-json", alias = "log_as_json")]
    log_as_json: bool,
}

/// Runs the control plane until SIGTERM or SIGINT.
///
/// # Errors
/// Settings that make no sense, and whatever keeps the control plane from
/// starting.
pub fn run(args: DaemonArgs) -> anyhow::Result<()> {
    amime_identity::install_default_provider();
    let format = if args.log_as_json { LogFormat::Json } else { LogFormat::Text };
    amime_core::log::init(&LogOptions { directives: args.log_level, format })?;
    let config = args.control_plane.into_config()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        cancel_on_signal(shutdown.clone())?;
        Ok(crate::run::run(config, shutdown).await?)
    })
}

fn cancel_on_signal(shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shutting down");
        shutdown.cancel();
    });
    Ok(())
}
