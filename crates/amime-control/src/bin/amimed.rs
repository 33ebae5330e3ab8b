//! The control plane as a daemon of its own.

use std::process::ExitCode;

use amime_control::config::ControlPlaneArgs;
use amime_core::log::{LogFormat, LogOptions};
use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The mesh's control plane.
#[derive(Parser)]
#[command(name = "amimed", version)]
struct Cli {
    #[command(flatten)]
    control_plane: ControlPlaneArgs,
    /// Log levels, as in `info,amime_control=debug`
    #[arg(long = "log-level", default_value = "info", env = "AMIME_LOG", value_name = "LEVELS")]
    log_level: String,
    /// Log JSON instead of text
    #[arg(long = "log-as-json", alias = "log_as_json")]
    log_as_json: bool,
}

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    amime_identity::install_default_provider();
    let format = if cli.log_as_json { LogFormat::Json } else { LogFormat::Text };
    amime_core::log::init(&LogOptions { directives: cli.log_level, format })?;
    let config = cli.control_plane.into_config()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        cancel_on_signal(shutdown.clone())?;
        Ok(amime_control::run::run(config, shutdown).await?)
    })
}

fn cancel_on_signal(shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("no signal handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signal handler")?;
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
