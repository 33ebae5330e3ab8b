//! The command line of the proxy, shared by `amime proxy` and `amime-proxy`.

use std::path::PathBuf;

use amime_core::log::{LogError, LogFormat, LogHandle, LogOptions};
use clap::{Args, ValueEnum};

use crate::admin::{CommandLine, log_level};
use crate::agent::{self, AgentConfig, AgentError, Outside, ProxyKind};
use crate::bootstrap::{self, BootstrapRun, Input, Restart};
use crate::flags::{Envoys, Inert};
use crate::json::{self, Converter};

/// Arguments of the proxy.
///
/// Either a role, with everything else from the environment, or `-c FILE` with
/// an Envoy bootstrap.
#[derive(Args, Clone, Debug, Default)]
pub struct ProxyArgs {
    /// Role in the mesh; settings come from the environment.
    #[arg(value_enum, conflicts_with_all = ["config_path", "config_yaml"])]
    role: Option<Role>,
    /// Envoy v3 bootstrap, YAML or JSON.
    #[arg(short = 'c', long, value_name = "FILE")]
    config_path: Option<PathBuf>,
    /// Bootstrap as YAML text, merged over the file.
    #[arg(long, value_name = "YAML")]
    config_yaml: Option<String>,
    /// Worker threads; 0 counts as 1. Default: CPUs with a bootstrap, 2 in a
    /// mesh.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1024))]
    concurrency: Option<u16>,
    /// Log level: trace, debug, info, warning, error, critical, off.
    #[arg(short = 'l', long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Log levels of single parts, as `TARGET:LEVEL,...`.
    #[arg(long, value_name = "LIST")]
    component_log_level: Option<String>,
    /// File to append log lines to. Default: standard error.
    #[arg(long, value_name = "FILE")]
    log_path: Option<PathBuf>,
    /// Log one JSON object a line.
    #[arg(long)]
    log_as_json: bool,
    /// Longest time to drain at the end, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    drain_time_s: u64,
    /// Node id, over the bootstrap's.
    #[arg(long, value_name = "ID")]
    service_node: Option<String>,
    /// Node cluster, over the bootstrap's.
    #[arg(long, value_name = "NAME")]
    service_cluster: Option<String>,
    /// Zone of the node's locality, over the bootstrap's.
    #[arg(long, value_name = "NAME")]
    service_zone: Option<String>,
    /// File to write the admin server's address to.
    #[arg(long, value_name = "FILE")]
    admin_address_path: Option<PathBuf>,
    /// Unix socket at which another process may take over from this one: it
    /// gets the listening sockets, then this one drains and ends. Only with a
    /// bootstrap.
    #[arg(long, value_name = "PATH", conflicts_with = "role")]
    restart_socket: Option<PathBuf>,
    /// Take over from the proxy at the restart socket.
    #[arg(long, requires = "restart_socket")]
    restart: bool,
    /// What to do.
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Ignore what is not supported instead of refusing it.
    #[arg(long)]
    allow_unsupported: bool,
    #[command(flatten)]
    envoys: Envoys,
    #[command(flatten)]
    inert: Inert,
}

/// Role in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    /// In front of one workload.
    Sidecar,
    /// A gateway.
    Router,
    /// Converts configuration for a proxy; see [`crate::json`].
    #[value(hide = true)]
    JsonConverter,
}

/// The hidden role in its spelling on the command line.
const CONVERTER: &str = "json-converter";

/// What to do with a bootstrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Run it.
    #[default]
    Serve,
    /// Check it.
    Validate,
}

/// Why the proxy ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Log levels.
    #[error("{0}")]
    Level(String),
    /// Logging.
    #[error("logging cannot be set up")]
    Log(#[source] LogError),
    /// A file that the command line names.
    #[error("{} cannot be written", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The agent's thread.
    #[error("agent cannot start")]
    Start(#[source] std::io::Error),
    /// The converter's pipes.
    #[error("configuration cannot be converted")]
    Convert(#[source] std::io::Error),
    /// Everything else.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Runs the proxy on this thread until it is ended; workers are threads of
/// their own.
///
/// # Errors
/// When it cannot start.
pub fn run(args: ProxyArgs) -> Result<(), RunError> {
    if args.role == Some(Role::JsonConverter) {
        return json::serve().map_err(RunError::Convert);
    }
    if args.envoys.hot_restart_version {
        println!("disabled");
        return Ok(());
    }
    amime_identity::install_default_provider();
    let log = init_log(&args)?;
    for flag in args.inert.given() {
        tracing::warn!(flag, "flag has no effect here");
    }
    if let Some(path) = &args.envoys.base_id_path {
        std::fs::write(path, "0")
            .map_err(|source| RunError::File { path: path.clone(), source })?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_stack_size(256 * 1024)
        .build()
        .map_err(RunError::Start)?;
    let outside = Outside { log, converter: Converter::of_this_program(CONVERTER) };
    let ended = runtime.block_on(async {
        match args.role {
            Some(Role::Router) => {
                agent::run(agent_config(&args, ProxyKind::Router)?, outside).await
            }
            Some(_) => agent::run(agent_config(&args, ProxyKind::Sidecar)?, outside).await,
            None => bootstrap::run(bootstrap_run(args, outside).await?).await,
        }
    });
    // Blocking work of the last moment must not hold up the end.
    runtime.shutdown_background();
    Ok(ended?)
}

/// Logging may be set up already by the program that embeds us.
fn init_log(args: &ProxyArgs) -> Result<Option<LogHandle>, RunError> {
    let level = args.log_level.as_deref().unwrap_or("info");
    let mut directives = log_level(level).map_err(RunError::Level)?.to_owned();
    for pair in args.component_log_level.iter().flat_map(|list| list.split(',')) {
        let (target, level) = pair
            .rsplit_once(':')
            .ok_or_else(|| RunError::Level(format!("{pair}: not TARGET:LEVEL")))?;
        let level = log_level(level).map_err(RunError::Level)?;
        directives.push_str(&format!(",{target}={level}"));
    }
    let format = if args.log_as_json { LogFormat::Json } else { LogFormat::Text };
    let options = LogOptions { directives, format };
    let set = match &args.log_path {
        None => amime_core::log::init(&options),
        Some(path) => {
            let file = std::fs::File::options().create(true).append(true).open(path);
            let file = file.map_err(|source| RunError::File { path: path.clone(), source })?;
            amime_core::log::init_to_file(&options, file)
        }
    };
    match set {
        Ok(log) => Ok(Some(log)),
        Err(LogError::AlreadySet(_)) => Ok(None),
        Err(error) => Err(RunError::Log(error)),
    }
}

fn agent_config(args: &ProxyArgs, kind: ProxyKind) -> Result<AgentConfig, AgentError> {
    let vars = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut config = AgentConfig::from_env(kind, vars)?;
    if let Some(concurrency) = args.concurrency {
        config.concurrency = usize::from(concurrency.max(1));
    }
    Ok(config)
}

async fn bootstrap_run(args: ProxyArgs, outside: Outside) -> Result<BootstrapRun, AgentError> {
    let Outside { log, converter } = outside;
    let path = args.config_path.as_deref();
    let allow_unknown_fields = args.envoys.allow_unknown_static_fields;
    let input = Input { path, overlay: args.config_yaml.as_deref(), allow_unknown_fields };
    let mut bootstrap = bootstrap::load(&converter, input).await?;
    let shown = shown(&args);
    let node = bootstrap.node.get_or_insert_default();
    if let Some(id) = args.service_node {
        node.id = id;
    }
    if let Some(cluster) = args.service_cluster {
        node.cluster = cluster;
    }
    if let Some(zone) = args.service_zone {
        node.locality.get_or_insert_default().zone = zone;
    }
    let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
    let options = CommandLine {
        concurrency: args.concurrency.map_or_else(cpus, |n| usize::from(n.max(1))),
        config_path: path.map(|path| path.display().to_string()).unwrap_or_default(),
        log_level: args.log_level.unwrap_or_else(|| "info".into()),
        service_node: node.id.clone(),
        service_cluster: node.cluster.clone(),
        drain_s: args.drain_time_s,
        others: shown,
    };
    Ok(BootstrapRun {
        bootstrap,
        options,
        allow_unsupported: args.allow_unsupported,
        validate: args.mode == Mode::Validate,
        admin_address_path: args.admin_address_path,
        restart: args.restart_socket.map(|door| Restart { door, take_over: args.restart }),
        log,
        converter,
    })
}

/// Options that only `/server_info` shows.
fn shown(args: &ProxyArgs) -> serde_json::Map<String, serde_json::Value> {
    let path = |path: &Option<PathBuf>| {
        path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
    };
    let options = [
        ("config_yaml", args.config_yaml.clone().unwrap_or_default().into()),
        ("allow_unknown_static_fields", args.envoys.allow_unknown_static_fields.into()),
        ("admin_address_path", path(&args.admin_address_path).into()),
        ("component_log_level", args.component_log_level.clone().unwrap_or_default().into()),
        ("log_path", path(&args.log_path).into()),
        ("service_zone", args.service_zone.clone().unwrap_or_default().into()),
        ("base_id_path", path(&args.envoys.base_id_path).into()),
    ];
    options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
