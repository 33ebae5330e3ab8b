//! The commands: one module a group, each with its arguments and its `run`.

pub(crate) mod apply;
pub(crate) mod change;
pub(crate) mod completion;
pub(crate) mod dashboard;
pub(crate) mod get;
pub(crate) mod pod;
pub(crate) mod proxy_config;
pub(crate) mod proxy_status;
pub(crate) mod status;
pub(crate) mod up;
pub(crate) mod version;
pub(crate) mod xds_dump;

use std::process::ExitCode;

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};

use crate::args::{Cli, Command, Globals, Part};

/// Runs the command that was given.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { globals, command } = cli;
    match command {
        Command::Completion(args) => completion::run(&args),
        Command::XdsDump(args) => xds_dump::run(&args)?,
        command => {
            let runtime = runtime()?;
            let code = runtime.block_on(talk(&globals, command));
            // A read of standard input may still wait for a key.
            runtime.shutdown_background();
            return code;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the part of the mesh that was asked for.
pub(crate) fn run_part(part: Part) -> anyhow::Result<ExitCode> {
    // A mesh on a laptop has many of these, each mapping this whole program.
    amime_net::memory::keep_trimmed();
    match part {
        Part::Bookinfo(args) => runtime()?.block_on(bookinfo::run(args))?,
        // The others build the runtimes that fit them.
        Part::Proxy(args) => amime_proxy::run(args)?,
        Part::ControlPlane(args) => amime_control::daemon::run(args)?,
        Part::LocalSupervisor { args } => amime_local::supervisor::main(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Commands that start a mesh or talk to one.
async fn talk(globals: &Globals, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(args) => up::up(globals, args).await?,
        Command::Down => up::down(globals).await?,
        Command::Status(args) => status::run(globals, &args).await?,
        Command::Apply(args) => apply::apply(globals, args).await?,
        Command::Get(args) => get::run(globals, args).await?,
        Command::Delete(args) => apply::delete(globals, args).await?,
        Command::Label(args) => change::label(globals, args).await?,
        Command::Scale(args) => change::scale(globals, args).await?,
        Command::Exec(args) => return pod::exec(globals, args).await,
        Command::Logs(args) => pod::logs(globals, args).await?,
        Command::ProxyStatus(args) => proxy_status::run(globals, args).await?,
        Command::ProxyConfig(args) => proxy_config::run(globals, args).await?,
        Command::Dashboard(args) => dashboard::run(globals, args).await?,
        Command::Version(args) => version::run(globals, &args).await?,
        Command::Completion(_) | Command::XdsDump(_) => unreachable!("handled without a mesh"),
    }
    Ok(ExitCode::SUCCESS)
}

/// A runtime for commands that wait on one thing at a time.
fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("cannot start a runtime")
}
