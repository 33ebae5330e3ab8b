//! The table of routes.

use anyhow::ensure;
use serde_json::Value;

use super::PADDING;
use super::dump::{ConfigDump, at, field, list, origin, strings, text};
use crate::table::Table;

const PASSTHROUGH: &str = "PassthroughCluster";
/// Domains named before the rest is only counted.
const DOMAINS_SHOWN: usize = 2;

/// Which route configurations to show.
#[derive(Clone, Debug)]
pub(crate) struct RouteFilter {
    /// Name; empty for all.
    pub(crate) name: String,
    /// Whether routes are shown instead of the number of virtual hosts.
    pub(crate) verbose: bool,
}

/// Route configurations of the dump: numeric names in order, then the rest.
pub(crate) fn select<'a>(
    dump: &'a ConfigDump,
    filter: &RouteFilter,
) -> anyhow::Result<Vec<&'a Value>> {
    let mut routes = dump.resources(
        "RoutesConfigDump",
        &[
            ("dynamic_route_configs", &["route_config"]),
            ("static_route_configs", &["route_config"]),
        ],
    );
    ensure!(!routes.is_empty(), "no routes found");
    routes.sort_by_key(|route| text(route, "name").parse::<u32>().unwrap_or(u32::MAX));
    routes.retain(|route| filter.name.is_empty() || text(route, "name") == filter.name);
    Ok(routes)
}

/// istioctl's table: a row for each route, or for each configuration.
pub(crate) fn table(routes: &[&Value], verbose: bool, named: bool) -> Table {
    let header: &[&str] = if verbose {
        &["NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE"]
    } else {
        &["NAME", "VIRTUAL HOSTS"]
    };
    let mut table = Table::new(PADDING, header.iter().copied());
    for config in routes {
        let prefix = if named { "route/" } else { "" };
        let name = format!("{prefix}{}", text(config, "name"));
        let hosts = list(config, "virtual_hosts");
        if !verbose {
            table.row([name, hosts.len().to_string()]);
            continue;
        }
        for host in hosts {
            let first =
                [name.clone(), text(host, "name").to_owned(), domains(&strings(host, "domains"))];
            if list(host, "routes").is_empty() {
                table.row(first.clone().into_iter().chain(["/*", "404"].map(str::to_owned)));
            }
            for route in list(host, "routes").iter().filter(|route| !is_passthrough(route)) {
                let last = [describe_match(field(route, "match")), origin(route)];
                table.row(first.clone().into_iter().chain(last));
            }
        }
    }
    table
}

fn is_passthrough(route: &Value) -> bool {
    at(route, &["route", "cluster"]) == PASSTHROUGH
}

/// What a route takes; headers are left out, as istioctl does.
pub(crate) fn describe_match(matches: &Value) -> String {
    let mut parts = Vec::new();
    let mut add = |text: &str, before: &str, after: &str| {
        if !text.is_empty() {
            parts.push(format!("{before}{text}{after}"));
        }
    };
    add(text(matches, "prefix"), "", "*");
    add(text(matches, "path_separated_prefix"), "PathPrefix:", "");
    add(text(matches, "path"), "", "");
    add(text(field(matches, "safe_regex"), "regex"), "regex ", "");
    parts.join(" ")
}

/// Domains without ports and without the longer forms of the same name.
fn domains(all: &[&str]) -> String {
    if let [only] = all {
        return (*only).to_owned();
    }
    let without_port: Vec<&str> = all
        .iter()
        .copied()
        .filter(|d| !d.contains(':') || (d.matches(':').count() > 2 && d.ends_with(']')))
        .collect();
    let longer = |domain: &str, suffix: &str| {
        domain.strip_suffix(suffix).is_some_and(|short| without_port.contains(&short))
    };
    let short: Vec<&str> = without_port
        .iter()
        .copied()
        .filter(|domain| !longer(domain, ".svc.cluster.local") && !longer(domain, ".svc"))
        .collect();
    if short.len() > DOMAINS_SHOWN {
        let more = short.len() - DOMAINS_SHOWN;
        return format!("{} + {more} more...", short[..DOMAINS_SHOWN].join(", "));
    }
    short.join(", ")
}
