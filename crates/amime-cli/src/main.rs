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

use args::{Cli, Part};

fn main() -> ExitCode {
    let is_part = std::env::args().nth(1).is_some_and(|name| Part::is_named(&name));
    let done =
        if is_part { commands::run_part(Part::parse()) } else { commands::run(Cli::parse()) };
    match done {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
