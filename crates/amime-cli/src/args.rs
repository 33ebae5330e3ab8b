//! The arguments: every command with the flags that istioctl or kubectl gave
//! it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands;

/// A service mesh, and the commands to run and question it.
#[derive(Debug, Parser)]
#[command(
    name = "amime",
    version,
    about = "A service mesh: run one on this machine, configure it, question it",
    propagate_version = false,
    disable_help_subcommand = false,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Globals {
    /// Namespace of the objects; `default` unless given
    #[arg(short = 'n', long, global = true, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Namespace of the control plane
    #[arg(
        long = "istioNamespace",
        global = true,
        value_name = "NAME",
        default_value = "istio-system",
        hide_short_help = true
    )]
    pub(crate) istio_namespace: String,
    /// Folder with the state of the local mesh
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "AMIME_STATE_DIR",
        hide_short_help = true
    )]
    pub(crate) state_dir: Option<PathBuf>,
}

impl Globals {
    /// The namespace to use for objects that name none.
    pub(crate) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a whole mesh on this machine
    Up(commands::up::UpArgs),
    /// Stop the mesh, or clean up after one that was killed
    Down,
    /// Show what runs, and what memory it takes
    Status(commands::status::StatusArgs),
    /// Create or change objects from files
    Apply(commands::apply::ApplyArgs),
    /// Show objects
    Get(commands::get::GetArgs),
    /// Delete objects
    Delete(commands::apply::DeleteArgs),
    /// Set and remove labels
    Label(commands::change::LabelArgs),
    /// Change the number of pods of a workload
    Scale(commands::change::ScaleArgs),
    /// Run a command in a pod
    Exec(commands::pod::ExecArgs),
    /// Show what a container printed
    Logs(commands::pod::LogsArgs),
    /// Show where each proxy stands with its configuration
    #[command(visible_alias = "ps")]
    ProxyStatus(commands::proxy_status::ProxyStatusArgs),
    /// Show what a proxy was told: listeners, routes, clusters …
    #[command(visible_alias = "pc")]
    ProxyConfig(commands::proxy_config::ProxyConfigArgs),
    /// Open a page of the mesh
    #[command(visible_aliases = ["dash", "d"])]
    Dashboard(commands::dashboard::DashboardArgs),
    /// Translate files to a proxy's configuration, without a mesh
    XdsDump(commands::xds_dump::XdsDumpArgs),
    /// Print a completion script for a shell
    Completion(commands::completion::CompletionArgs),
    /// Print versions
    Version(commands::version::VersionArgs),
}

/// What the program is when it runs as a part of its own mesh.
///
/// A parser of its own: a sidecar should not pay for the arguments of all
/// commands.
#[derive(Debug, Parser)]
#[command(name = "amime")]
pub(crate) enum Part {
    /// One of the sample's services
    Bookinfo(bookinfo::Args),
    /// A proxy
    Proxy(amime_proxy::ProxyArgs),
    /// The control plane
    ControlPlane(amime_control::daemon::DaemonArgs),
    /// The supervisor of a local mesh; started by `up` only
    LocalSupervisor {
        /// Number of the descriptor with the configuration
        args: Vec<String>,
    },
}

impl Part {
    /// Whether a first argument asks for a part.
    pub(crate) fn is_named(name: &str) -> bool {
        matches!(name, "bookinfo" | "proxy" | "control-plane" | "local-supervisor")
    }
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// A table
    Short,
    /// A table with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// Kind and name only
    Name,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use expect_test::expect_file;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
        Part::command().debug_assert();
    }

    #[test]
    fn every_part_is_known_by_its_name() {
        for part in Part::command().get_subcommands() {
            assert!(Part::is_named(part.get_name()), "{}", part.get_name());
        }
    }

    #[test]
    fn the_commands_are_listed() {
        // Kept as a file: `cargo xtask tidy` holds the documents against it.
        let help = Cli::command().render_help().to_string();
        expect_file!["../tests/golden/help.txt"].assert_eq(&help);
    }
}
