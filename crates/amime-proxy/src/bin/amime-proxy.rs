//! The data plane as a program of its own.

use std::process::ExitCode;

use amime_proxy::ProxyArgs;
use clap::Parser;

/// Sidecar and gateway proxy: Envoy's configuration, in one small process.
#[derive(Parser)]
#[command(name = "amime-proxy", version)]
struct Cli {
    #[command(flatten)]
    proxy: ProxyArgs,
}

fn main() -> ExitCode {
    amime_net::memory::keep_trimmed();
    match amime_proxy::run(Cli::parse().proxy) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}
