//! `exec` and `logs`: into a pod and out of it.

use std::process::ExitCode;

use anyhow::{bail, ensure};
use clap::Args;

use crate::args::Globals;
use crate::session::Session;

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Pod, as `[TYPE/]NAME[.NAMESPACE]`
    pod: String,
    /// Container; the first one unless given
    #[arg(short, long)]
    container: Option<String>,
    /// Pass standard input on (always done)
    #[arg(short = 'i', long = "stdin", hide = true)]
    stdin: bool,
    /// Accepted for kubectl's sake; there is no terminal in a pod
    #[arg(short, long, hide = true)]
    tty: bool,
    /// Command and its arguments, behind `--`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs a command in a pod; its exit code becomes ours.
pub(crate) async fn exec(globals: &Globals, args: ExecArgs) -> anyhow::Result<ExitCode> {
    let session = Session::of(globals)?;
    let pod = session.pod(globals.namespace(), &args.pod).await?;
    let code = session.exec(&pod, args.container.as_deref(), args.command).await?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Pod, as `[TYPE/]NAME[.NAMESPACE]`
    pod: String,
    /// Container; the first one unless given
    #[arg(short, long)]
    container: Option<String>,
    /// Go on with what is printed from now on
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines; -1 for all
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_name = "LINES")]
    tail: i64,
}

/// Prints a container's output.
pub(crate) async fn logs(globals: &Globals, args: LogsArgs) -> anyhow::Result<()> {
    let session = Session::of(globals)?;
    let pod = session.pod(globals.namespace(), &args.pod).await?;
    let tail = match args.tail {
        -1 => None,
        lines @ 0.. => Some(usize::try_from(lines)?),
        lines => bail!("--tail must be -1 or more, not {lines}"),
    };
    ensure!(tail != Some(0) || args.follow, "--tail 0 shows nothing without --follow");
    session.logs(&pod, args.container.as_deref(), args.follow, tail).await
}
