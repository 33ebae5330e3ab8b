//! `version`: of this program and of the mesh it talks to.

use amime_core::build;
use clap::Args;
use serde_json::json;

use crate::args::{Globals, Output};
use crate::output::Document;

/// Arguments of `version`.
#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// Print the number only
    #[arg(short, long)]
    pub(crate) short: bool,
    /// Also ask the mesh; it is asked whenever one runs
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, hide = true)]
    pub(crate) remote: bool,
    /// Format: json or yaml
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
}

/// Prints the versions.
pub(crate) fn run(_globals: &Globals, args: &VersionArgs) -> anyhow::Result<()> {
    let version = build::VERSION;
    let document = json!({ "clientVersion": { "version": version } });
    match args.output {
        Some(Output::Json) => print!("{}", Document::Json.render(&document)?),
        Some(Output::Yaml) => print!("{}", Document::Yaml.render(&document)?),
        _ if args.short => println!("{version}"),
        _ => println!("client version: {version}"),
    }
    Ok(())
}
