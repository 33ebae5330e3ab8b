//! `proxy-config`: arguments, and where the dump comes from.

use std::io::Read;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use crate::args::{Globals, Output};
use crate::output::{self, Document};
use crate::proxy_config::dump::ConfigDump;
use crate::proxy_config::{self, ClusterFilter, EndpointFilter, ListenerFilter, RouteFilter, View};
use crate::session::Session;

/// Arguments of `proxy-config`.
#[derive(Debug, Args)]
pub(crate) struct ProxyConfigArgs {
    #[command(subcommand)]
    section: Section,
}

/// Part of the configuration.
#[derive(Debug, Subcommand)]
enum Section {
    /// Clusters
    #[command(visible_aliases = ["clusters", "c"])]
    Cluster {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        filter: ClusterArgs,
    },
    /// Listeners
    #[command(visible_aliases = ["listeners", "l"])]
    Listener {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        filter: ListenerArgs,
        /// Show the type of each listener instead of its matches with `--verbose=false`
        #[command(flatten)]
        verbose: Verbose,
    },
    /// Routes
    #[command(visible_aliases = ["routes", "r"])]
    Route {
        #[command(flatten)]
        from: From,
        /// Name of the route configuration
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
        #[command(flatten)]
        verbose: Verbose,
    },
    /// Endpoints
    #[command(visible_aliases = ["endpoints", "ep"])]
    Endpoint {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        filter: EndpointArgs,
    },
    /// Secrets: which certificates the proxy holds
    #[command(visible_aliases = ["secrets", "s"])]
    Secret {
        #[command(flatten)]
        from: From,
    },
    /// What the proxy was started with
    #[command(visible_alias = "b")]
    Bootstrap {
        #[command(flatten)]
        from: From,
    },
    /// Log levels, shown or changed
    #[command(visible_alias = "o")]
    Log(LogArgs),
    /// Everything
    #[command(visible_alias = "a")]
    All {
        #[command(flatten)]
        from: From,
    },
}

/// Which proxy, and how to print.
#[derive(Debug, Args)]
struct From {
    /// Pod, as `[TYPE/]NAME[.NAMESPACE]`
    pod: Option<String>,
    /// Read a config dump from a file (`-` for standard input) instead of a pod
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Format: short, json or yaml
    #[arg(short, long)]
    output: Option<Output>,
}

#[derive(Debug, Args)]
struct LogArgs {
    /// Pod, as `[TYPE/]NAME[.NAMESPACE]`
    pod: String,
    /// Level of all loggers, or of some: `debug`, `http:debug,router:info`
    #[arg(long, value_name = "[LOGGER:]LEVEL,…")]
    level: Option<String>,
    /// Set all loggers back to warning
    #[arg(short, long, conflicts_with = "level")]
    reset: bool,
}

#[derive(Debug, Args)]
struct Verbose {
    /// Show details; `--verbose=false` for one line a resource
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true,
        action = clap::ArgAction::Set, default_missing_value = "true", hide_default_value = true)]
    verbose: bool,
}

#[derive(Debug, Args)]
struct ClusterArgs {
    /// Part of the host name
    #[arg(long, default_value = "", hide_default_value = true)]
    fqdn: String,
    /// inbound or outbound
    #[arg(long, default_value = "", hide_default_value = true)]
    direction: String,
    /// Part of the subset's name
    #[arg(long, default_value = "", hide_default_value = true)]
    subset: String,
    /// Port of the service
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    port: u16,
}

#[derive(Debug, Args)]
struct ListenerArgs {
    /// Address
    #[arg(long, default_value = "", hide_default_value = true)]
    address: String,
    /// Port
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// HTTP, TCP or HTTP+TCP
    #[arg(long = "type", default_value = "", hide_default_value = true)]
    kind: String,
}

#[derive(Debug, Args)]
struct EndpointArgs {
    /// Address
    #[arg(long, default_value = "", hide_default_value = true)]
    address: String,
    /// Port
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// Name of the cluster
    #[arg(long, default_value = "", hide_default_value = true)]
    cluster: String,
    /// healthy, unhealthy …
    #[arg(long, default_value = "", hide_default_value = true)]
    status: String,
}

/// What is asked of the proxy's admin interface.
const CONFIG_DUMP: &str = "/config_dump?include_eds";
/// Port of the admin interface inside a pod.
const ADMIN_PORT: u16 = 15000;
/// Levels of Envoy's loggers.
const LEVELS: [&str; 7] = ["trace", "debug", "info", "warning", "error", "critical", "off"];
const CLUSTERS: &str = "/clusters?format=json";

/// Prints one part of a proxy's configuration.
pub(crate) async fn run(globals: &Globals, args: ProxyConfigArgs) -> anyhow::Result<()> {
    output::print(text(globals, args.section).await?)?;
    Ok(())
}

async fn text(globals: &Globals, section: Section) -> anyhow::Result<String> {
    match section {
        Section::Cluster { from, filter } => {
            let ClusterArgs { fqdn, direction, subset, port } = filter;
            let filter = ClusterFilter { fqdn, direction, subset, port };
            proxy_config::clusters(&from.dump(globals).await?, &filter, from.view()?)
        }
        Section::Listener { from, filter, verbose } => {
            let ListenerArgs { address, port, kind } = filter;
            let filter = ListenerFilter { address, port, kind, verbose: verbose.verbose };
            proxy_config::listeners(&from.dump(globals).await?, &filter, from.view()?)
        }
        Section::Route { from, name, verbose } => {
            let filter = RouteFilter { name, verbose: verbose.verbose };
            proxy_config::routes(&from.dump(globals).await?, &filter, from.view()?)
        }
        Section::Endpoint { from, filter } => {
            let EndpointArgs { address, port, cluster, status } = filter;
            let filter = EndpointFilter { address, port, cluster, status };
            let statuses = from.fetch(globals, CLUSTERS).await?;
            let statuses =
                serde_json::from_str(&statuses).context("the list of clusters is not JSON")?;
            proxy_config::endpoints(&statuses, &filter, from.view()?)
        }
        Section::Secret { from } => {
            proxy_config::secrets(&from.dump(globals).await?, now(), from.view()?)
        }
        Section::Bootstrap { from } => match from.output {
            Some(Output::Short) => proxy_config::versions(&from.dump(globals).await?),
            Some(Output::Yaml) => {
                proxy_config::bootstrap(&from.dump(globals).await?, Document::Yaml)
            }
            _ => proxy_config::bootstrap(&from.dump(globals).await?, Document::Json),
        },
        Section::Log(args) => log(globals, &args).await,
        Section::All { from } => all(&from.dump(globals).await?, from.view()?),
    }
}

/// Changes levels if asked, and prints them.
async fn log(globals: &Globals, args: &LogArgs) -> anyhow::Result<String> {
    let session = Session::of(globals)?;
    let pod = session.pod(globals.namespace(), &args.pod).await?;
    let mut text = String::new();
    for query in log_queries(args.level.as_deref(), args.reset)? {
        text = session.http_post(&pod, ADMIN_PORT, &format!("/logging{query}")).await?;
    }
    Ok(format!("{}.{}:\n{text}", pod.name, pod.namespace))
}

/// The queries to `/logging`, one after the other; an empty one only asks.
fn log_queries(level: Option<&str>, reset: bool) -> anyhow::Result<Vec<String>> {
    if reset {
        return Ok(vec!["?level=warning".to_owned()]);
    }
    let Some(level) = level else { return Ok(vec![String::new()]) };
    level
        .split(',')
        .map(|part| {
            let (logger, level) = match part.split_once([':', '=']) {
                Some((logger, level)) => (logger, level),
                None => ("level", part),
            };
            let known = LEVELS.iter().find(|known| known.eq_ignore_ascii_case(level));
            let known = known.with_context(|| {
                format!("unrecognized logging level: {level}; use one of {}", LEVELS.join(", "))
            })?;
            Ok(format!("?{logger}={known}"))
        })
        .collect()
}

/// Every table, with the type in front of each name; or the whole dump.
fn all(dump: &ConfigDump, view: View) -> anyhow::Result<String> {
    if let View::Document(document) = view {
        return document.render(dump.value());
    }
    let view = View::Table { named: true };
    let listener =
        ListenerFilter { address: String::new(), port: 0, kind: String::new(), verbose: true };
    let route = RouteFilter { name: String::new(), verbose: true };
    let parts = [
        proxy_config::clusters(dump, &ClusterFilter::default(), view)?,
        proxy_config::listeners(dump, &listener, view)?,
        proxy_config::routes(dump, &route, view)?,
        proxy_config::secrets(dump, now(), view)?,
    ];
    Ok(parts.join("\n"))
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

impl From {
    fn view(&self) -> anyhow::Result<View> {
        match self.output {
            None | Some(Output::Short | Output::Wide) => Ok(View::Table { named: false }),
            Some(Output::Json) => Ok(View::Document(Document::Json)),
            Some(Output::Yaml) => Ok(View::Document(Document::Yaml)),
            Some(Output::Name) => bail!("output format \"name\" not supported"),
        }
    }

    async fn dump(&self, globals: &Globals) -> anyhow::Result<ConfigDump> {
        ConfigDump::parse(&self.fetch(globals, CONFIG_DUMP).await?)
    }

    async fn fetch(&self, globals: &Globals, path: &str) -> anyhow::Result<String> {
        match &self.file {
            Some(path) if path.as_os_str() == "-" => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
                Ok(text)
            }
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display())),
            None => {
                let pod = self.pod.as_deref().context("a pod is needed, or --file")?;
                let session = Session::of(globals)?;
                let pod = session.pod(globals.namespace(), pod).await?;
                session.http_get(&pod, ADMIN_PORT, path).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_become_queries() {
        let queries = |text| log_queries(Some(text), false).expect("levels are read");
        assert_eq!(queries("debug"), ["?level=debug"]);
        assert_eq!(queries("http:DEBUG,router:info"), ["?http=debug", "?router=info"]);
        assert_eq!(log_queries(None, true).expect("resets"), ["?level=warning"]);
        assert!(log_queries(Some("loud"), false).is_err());
    }
}
