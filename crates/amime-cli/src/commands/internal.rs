//! What `amime` is when it runs as a part of its own mesh.

use amime_core::log::{LogFormat, LogOptions};
use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Arguments of `control-plane`.
#[derive(Debug, Args)]
pub(crate) struct EmbeddedControlPlane {
    #[command(flatten)]
    config: amime_control::config::ControlPlaneArgs,
    /// Log levels, as in `info,amime_control=debug`
    #[arg(long, default_value = "info", env = "AMIME_LOG", value_name = "LEVELS")]
    log_level: String,
    /// Log JSON instead of text
    #[arg(long)]
    log_as_json: bool,
}

/// Runs the control plane until it is told to stop.
pub(crate) fn control_plane(args: EmbeddedControlPlane) -> anyhow::Result<()> {
    amime_identity::install_default_provider();
    let format = if args.log_as_json { LogFormat::Json } else { LogFormat::Text };
    amime_core::log::init(&LogOptions { directives: args.log_level, format })?;
    let config = args.config.into_config()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        cancel_on_signal(shutdown.clone())?;
        Ok(amime_control::run::run(config, shutdown).await?)
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
