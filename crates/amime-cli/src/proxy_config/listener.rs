//! The table of listeners.

use anyhow::ensure;
use serde_json::Value;

use super::dump::{ConfigDump, at, field, list, number, strings, text};
use super::route::describe_match;
use crate::table::Table;

/// Spaces between columns; listeners are printed closer than the rest.
const LISTENER_PADDING: usize = 1;
const HTTP: &str = "envoy.filters.network.http_connection_manager";
const TCP: &str = "envoy.filters.network.tcp_proxy";
const BLACK_HOLE: &str = "BlackHoleCluster";

/// Names for the lists of ALPN that Istio uses.
const ALPN_NAMES: [(&str, &[&str]); 4] = [
    (
        "App: HTTP TLS",
        &["http/1.0", "http/1.1", "h2c", "istio-http/1.0", "istio-http/1.1", "istio-h2"],
    ),
    ("App: Istio HTTP Plain", &["istio", "istio-http/1.0", "istio-http/1.1", "istio-h2"]),
    ("App: TCP TLS", &["istio-peer-exchange", "istio"]),
    ("App: HTTP", &["http/1.0", "http/1.1", "h2c"]),
];

/// Which listeners to show; empty fields let all pass.
#[derive(Clone, Debug)]
pub(crate) struct ListenerFilter {
    /// One of the listener's addresses.
    pub(crate) address: String,
    /// Port; 0 for all.
    pub(crate) port: u16,
    /// `HTTP`, `TCP` or `HTTP+TCP`.
    pub(crate) kind: String,
    /// Whether matches and destinations are shown instead of the type.
    pub(crate) verbose: bool,
}

impl ListenerFilter {
    fn passes(&self, listener: &Value) -> bool {
        let is = |want: &str, got: &str| want.is_empty() || want.eq_ignore_ascii_case(got);
        (self.address.is_empty() || addresses(listener).iter().any(|a| is(&self.address, a)))
            && (self.port == 0 || port(listener) == u64::from(self.port))
            && is(&self.kind, kind(listener))
    }
}

/// Listeners of the dump, ordered by port, address and type.
pub(crate) fn select<'a>(
    dump: &'a ConfigDump,
    filter: &ListenerFilter,
) -> anyhow::Result<Vec<&'a Value>> {
    let mut listeners = dump.resources(
        "ListenersConfigDump",
        &[
            ("dynamic_listeners", &["active_state", "listener"]),
            ("static_listeners", &["listener"]),
        ],
    );
    ensure!(!listeners.is_empty(), "no listeners found");
    listeners.sort_by_cached_key(|l| (port(l), address(l).to_owned(), kind(l)));
    listeners.retain(|listener| filter.passes(listener));
    Ok(listeners)
}

/// istioctl's table: a row for each filter chain, or for each listener.
pub(crate) fn table(listeners: &[&Value], verbose: bool, named: bool) -> Table {
    let tail: &[&str] = if verbose { &["MATCH", "DESTINATION"] } else { &["TYPE"] };
    let header = ["ADDRESSES", "PORT"].iter().chain(tail).copied();
    let mut table = Table::new(LISTENER_PADDING, named.then_some("NAME").into_iter().chain(header));
    for listener in listeners {
        let first = || {
            let name = named.then(|| format!("listener/{}", text(listener, "name")));
            name.into_iter().chain([addresses(listener).join(","), port(listener).to_string()])
        };
        if !verbose {
            table.row(first().chain([kind(listener).to_owned()]));
            continue;
        }
        let mut rows: Vec<(String, String)> = filter_chains(listener)
            .map(|chain| (describe_chain_match(field(chain, "filter_chain_match")), target(chain)))
            .collect();
        rows.sort_by(|a, b| b.1.cmp(&a.1));
        for (matches, destination) in rows {
            table.row(first().chain([matches, destination]));
        }
    }
    table
}

fn address(listener: &Value) -> &str {
    let socket = at(listener, &["address", "socket_address", "address"]);
    socket
        .as_str()
        .unwrap_or_else(|| at(listener, &["address", "pipe", "path"]).as_str().unwrap_or_default())
}

fn addresses(listener: &Value) -> Vec<&str> {
    let more = list(listener, "additional_addresses")
        .iter()
        .filter_map(|extra| at(extra, &["address", "socket_address", "address"]).as_str());
    std::iter::once(address(listener)).chain(more).collect()
}

fn port(listener: &Value) -> u64 {
    number(at(listener, &["address", "socket_address"]), "port_value")
}

fn filter_chains(listener: &Value) -> impl Iterator<Item = &Value> {
    let default = field(listener, "default_filter_chain");
    list(listener, "filter_chains").iter().chain(default.is_object().then_some(default))
}

fn is_black_hole(filter: &Value) -> bool {
    text(field(filter, "typed_config"), "cluster").contains(BLACK_HOLE)
}

fn kind(listener: &Value) -> &'static str {
    let filters = || filter_chains(listener).flat_map(|chain| list(chain, "filters"));
    let http = filters().any(|filter| text(filter, "name") == HTTP);
    let tcp = filters().any(|filter| text(filter, "name") == TCP && !is_black_hole(filter));
    match (http, tcp) {
        (true, true) => "HTTP+TCP",
        (true, false) => "HTTP",
        (false, true) => "TCP",
        (false, false) => "UNKNOWN",
    }
}

/// What a filter chain takes, in istioctl's words.
fn describe_chain_match(matches: &Value) -> String {
    let mut parts = Vec::new();
    let names = strings(matches, "server_names");
    if !names.is_empty() {
        parts.push(format!("SNI: {}", names.join(",")));
    }
    let transport = text(matches, "transport_protocol");
    if !transport.is_empty() {
        parts.push(format!("Trans: {transport}"));
    }
    let protocols = strings(matches, "application_protocols");
    if !protocols.is_empty() {
        let known = ALPN_NAMES.iter().find(|(_, list)| *list == protocols);
        let other = || format!("App: {}", protocols.join(","));
        parts.push(known.map_or_else(other, |(name, _)| (*name).to_owned()));
    }
    let port = match number(matches, "destination_port") {
        0 => String::new(),
        port => format!(":{port}"),
    };
    let ranges: Vec<String> = list(matches, "prefix_ranges")
        .iter()
        .map(|range| format!("{}/{}", text(range, "address_prefix"), number(range, "prefix_len")))
        .collect();
    if !ranges.is_empty() {
        parts.push(format!("Addr: {}{port}", ranges.join(",")));
    } else if !port.is_empty() {
        parts.push(format!("Addr: *{port}"));
    }
    if parts.is_empty() { "ALL".to_owned() } else { parts.join("; ") }
}

/// Where a filter chain leads.
fn target(chain: &Value) -> String {
    for filter in list(chain, "filters") {
        let config = field(filter, "typed_config");
        match text(filter, "name") {
            HTTP => return http_target(config),
            TCP if !is_black_hole(filter) => return cluster_words(text(config, "cluster")),
            _ => {}
        }
    }
    "Non-HTTP/Non-TCP".to_owned()
}

fn http_target(config: &Value) -> String {
    let inline = field(config, "route_config");
    if inline.is_object() {
        return match_all_cluster(inline).map_or_else(
            || format!("Inline Route: {}", describe_hosts(inline)),
            |cluster| cluster_words(&cluster),
        );
    }
    match at(config, &["rds", "route_config_name"]).as_str() {
        Some(name) if !name.is_empty() => format!("Route: {name}"),
        _ => "HTTP".to_owned(),
    }
}

/// `PassthroughCluster` and its like speak for themselves.
fn cluster_words(name: &str) -> String {
    if name.contains("Cluster") { name.to_owned() } else { format!("Cluster: {name}") }
}

/// The cluster of a configuration that sends everything to one.
fn match_all_cluster(config: &Value) -> Option<String> {
    let [host] = list(config, "virtual_hosts") else { return None };
    let [route] = list(host, "routes") else { return None };
    let all = strings(host, "domains") == ["*"] && text(field(route, "match"), "prefix") == "/";
    let cluster = at(route, &["route", "cluster"]).as_str().filter(|_| all)?;
    Some(cluster.to_owned())
}

fn describe_hosts(config: &Value) -> String {
    let hosts = list(config, "virtual_hosts").iter().map(|host| {
        let domains = strings(host, "domains");
        let routes: Vec<String> =
            list(host, "routes").iter().map(|r| describe_match(field(r, "match"))).collect();
        let routes = routes.join(", ");
        if domains == ["*"] { routes } else { format!("{} {routes}", domains.join("/")) }
    });
    hosts.collect::<Vec<_>>().join("; ")
}
