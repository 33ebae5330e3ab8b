//! The control plane as a daemon of its own.

use std::process::ExitCode;

use amime_control::daemon::{DaemonArgs, run};
use clap::Parser;

/// The mesh's control plane.
#[derive(Parser)]
#[command(name = "amimed", version)]
struct Cli {
    #[command(flatten)]
    daemon: DaemonArgs,
}

fn main() -> ExitCode {
    match run(Cli::parse().daemon) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
