//! The commands: one module a group, each with its arguments and its `run`.

pub(crate) mod completion;
pub(crate) mod proxy_config;
pub(crate) mod version;

use std::process::ExitCode;

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};

use crate::args::{Cli, Command};

/// Runs the command that was given.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { globals, command } = cli;
    match command {
        Command::ProxyConfig(args) => proxy_config::run(&globals, args)?,
        Command::Completion(args) => completion::run(&args),
        Command::Version(args) => version::run(&globals, &args)?,
        Command::Bookinfo(args) => runtime()?.block_on(bookinfo::run(args))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A runtime for commands that wait on one thing at a time.
fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("cannot start a runtime")
}
