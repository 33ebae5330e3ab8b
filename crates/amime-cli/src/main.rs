//! The `amime` command line; called `istioctl`, it is the same.
//!
//! Owns arguments, output and exit codes; what the commands do lives in the
//! crates below. Exit codes: 0 done, 1 failed, 2 wrong usage.

mod age;
mod args;
mod commands;
mod files;
mod output;
mod proxy_config;
mod proxy_status;
mod relay;
mod session;
mod table;
mod target;

use std::process::ExitCode;

use clap::Parser;

use args::Cli;

fn main() -> ExitCode {
    match commands::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
