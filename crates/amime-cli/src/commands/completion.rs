//! `completion`: scripts for shells.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;

/// Arguments of `completion`.
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell
    pub(crate) shell: Shell,
}

/// Prints the script, for the name the program was called by.
pub(crate) fn run(args: &CompletionArgs) {
    let mut command = Cli::command();
    clap_complete::generate(args.shell, &mut command, program_name(), &mut std::io::stdout());
}

/// `amime`, or whatever link to it was used.
fn program_name() -> String {
    std::env::args_os()
        .next()
        .and_then(|path| std::path::Path::new(&path).file_name()?.to_str().map(str::to_owned))
        .unwrap_or_else(|| "amime".to_owned())
}
