//! Where a connection or request would go, by the rules that Envoy chooses
//! listener, filter chain, virtual host and route by.

use amime_translate::Dump;
use serde_json::Value;

use crate::support::{json_of, list, text};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    Plaintext,
    /// Of the application's own.
    Own,
    /// The mesh's.
    Mutual,
}

/// A call; the default is plaintext HTTP/1.1 for `/` to nobody in particular.
#[derive(Clone, Debug)]
pub(crate) struct Call<'c> {
    pub(crate) inbound: bool,
    pub(crate) address: &'c str,
    pub(crate) port: u64,
    pub(crate) http: bool,
    pub(crate) tls: Tls,
    pub(crate) host: &'c str,
    pub(crate) path: &'c str,
}

impl<'c> Call<'c> {
    pub(crate) fn http(port: u64, host: &'c str) -> Self {
        let (address, path, tls) = ("192.0.2.99", "/", Tls::Plaintext);
        Self { inbound: false, address, port, http: true, tls, host, path }
    }

    pub(crate) fn inbound(port: u64, http: bool, tls: Tls) -> Self {
        Self { inbound: true, http, tls, ..Self::http(port, "") }
    }
}

/// `LISTENER CHAIN ROUTES VIRTUAL-HOST ROUTE CLUSTER`, as far as they have
/// names, or why the call ends before.
pub(crate) fn reached(dump: &Dump, call: &Call<'_>) -> String {
    trace(dump, call).unwrap_or_else(|why| why.to_owned())
}

fn trace(dump: &Dump, call: &Call<'_>) -> Result<String, &'static str> {
    let listeners: Vec<Value> = dump.listeners.iter().map(json_of).collect();
    let listener = listener(&listeners, call).ok_or("no listener")?;
    let chain = chain(listener, call)?;
    let tls = chain.get("transport_socket");
    match (tls, call.tls) {
        (Some(_), Tls::Plaintext) => return Err("TLS expected"),
        (Some(socket), tls) if is_mesh(socket) != (tls == Tls::Mutual) => {
            return Err("other TLS expected");
        }
        _ => {}
    }
    let mut names = vec![text(listener, "name").to_owned(), text(chain, "name").to_owned()];
    let last = &list(chain, "filters").last().ok_or("no filters")?["typed_config"];
    if last.get("http_filters").is_some() {
        if !call.http || (call.tls != Tls::Plaintext && tls.is_none()) {
            return Err("not HTTP");
        }
        names.extend(request(dump, last, call)?);
    } else {
        names.push(text(last, "cluster").to_owned());
    }
    names.retain(|name| !name.is_empty());
    Ok(names.join(" "))
}

fn request(dump: &Dump, manager: &Value, call: &Call<'_>) -> Result<Vec<String>, &'static str> {
    let name = text(&manager["rds"], "route_config_name");
    let named = dump.routes.iter().find(|routes| routes.name == name).map(json_of);
    let routes = named.unwrap_or_else(|| manager["route_config"].clone());
    let host = virtual_host(&routes, call.host).ok_or("no virtual host")?;
    if text(host, "require_tls") == "ALL" && call.tls == Tls::Plaintext {
        return Err("redirect to TLS");
    }
    let takes = |route: &&Value| {
        let matched = &route["match"];
        let prefix = matched["prefix"].as_str().or(matched["path_separated_prefix"].as_str());
        prefix.is_some_and(|prefix| call.path.starts_with(prefix))
            || matched["path"].as_str() == Some(call.path)
    };
    let route = list(host, "routes").iter().find(takes).ok_or("no route")?;
    let cluster = text(&route["route"], "cluster");
    let parts = [name, text(host, "name"), text(route, "name"), cluster];
    Ok(parts.map(str::to_owned).to_vec())
}

fn listener<'l>(listeners: &'l [Value], call: &Call<'_>) -> Option<&'l Value> {
    let named = |name: &str| listeners.iter().find(|listener| text(listener, "name") == name);
    if call.inbound {
        return named("virtualInbound");
    }
    let at = |address: &str| {
        listeners.iter().find(|listener| {
            let socket = &listener["address"]["socket_address"];
            text(socket, "address") == address && socket["port_value"].as_u64() == Some(call.port)
        })
    };
    at(call.address).or_else(|| at("0.0.0.0")).or_else(|| named("virtualOutbound"))
}

fn has_inspector(listener: &Value, kind: &str, port: u64) -> bool {
    list(listener, "listener_filters").iter().any(|filter| {
        let disabled = filter.get("filter_disabled").is_some_and(|when| holds(when, port));
        text(filter, "name").ends_with(kind) && !disabled
    })
}

fn holds(predicate: &Value, port: u64) -> bool {
    if let Some(range) = predicate.get("destination_port_range") {
        let bound = |key: &str| range[key].as_u64().unwrap_or_default();
        return (bound("start")..bound("end")).contains(&port);
    }
    if let Some(inner) = predicate.get("not_match") {
        return !holds(inner, port);
    }
    let rules = |key: &str| list(&predicate[key], "rules");
    predicate["any_match"].as_bool().unwrap_or_default()
        || rules("or_match").iter().any(|rule| holds(rule, port))
}

/// The chain, by one property after the other: chains that ask for what the
/// call has beat those that do not ask.
fn chain<'l>(listener: &'l Value, call: &Call<'_>) -> Result<&'l Value, &'static str> {
    let sees_tls = has_inspector(listener, "tls_inspector", call.port);
    let sees_http = has_inspector(listener, "http_inspector", call.port);
    let alpn = match call.tls {
        Tls::Plaintext if sees_http && call.http => "http/1.1",
        Tls::Own if sees_tls && call.http => "http/1.1",
        Tls::Mutual if sees_tls && call.http => "istio-http/1.1",
        Tls::Mutual if sees_tls => "istio",
        _ => "",
    };
    let transport = if sees_tls && call.tls != Tls::Plaintext { "tls" } else { "raw_buffer" };
    let address: std::net::IpAddr = call.address.parse().expect("an address");
    let covers = |range: &Value| {
        let text = format!("{}/{}", text(range, "address_prefix"), range["prefix_len"]);
        let net: ipnet::IpNet = text.parse().expect("a range");
        net.contains(&address).then(|| usize::from(net.prefix_len()) + 1)
    };
    let sni = if call.tls == Tls::Plaintext { "" } else { call.host };
    let mut chains: Vec<&Value> = list(listener, "filter_chains").iter().collect();
    keep(&mut chains, "destination_port", |port| usize::from(port.as_u64() == Some(call.port)));
    keep(&mut chains, "prefix_ranges", |ranges| best(ranges, covers));
    keep(&mut chains, "server_names", |names| best(names, |name| name_rank(name, sni)));
    keep(&mut chains, "transport_protocol", |own| usize::from(own == transport));
    keep(&mut chains, "application_protocols", |own| best(own, |one| (one == alpn).then_some(1)));
    match chains[..] {
        [only] => Ok(only),
        [] => listener.get("default_filter_chain").ok_or("no filter chain"),
        _ => Err("several filter chains"),
    }
}

fn best(items: &Value, rank: impl Fn(&Value) -> Option<usize>) -> usize {
    items.as_array().into_iter().flatten().filter_map(rank).max().unwrap_or_default()
}

fn name_rank(name: &Value, sni: &str) -> Option<usize> {
    let name = name.as_str()?;
    match name.strip_prefix('*') {
        Some(suffix) => (!sni.is_empty() && sni.ends_with(suffix)).then_some(name.len()),
        None => (name == sni).then_some(usize::MAX),
    }
}

/// Keeps the chains with the best rank for a property, else those without it.
fn keep(chains: &mut Vec<&Value>, key: &str, rank: impl Fn(&Value) -> usize) {
    let of = |chain: &Value| chain["filter_chain_match"].get(key).cloned();
    let ranks: Vec<usize> = chains.iter().map(|c| of(c).map_or(0, |own| rank(&own))).collect();
    let highest = ranks.iter().copied().max().unwrap_or_default();
    let mut ranks = ranks.into_iter();
    chains.retain(|chain| {
        let own = ranks.next().unwrap_or_default();
        if highest > 0 { own == highest } else { of(chain).is_none() }
    });
}

fn is_mesh(socket: &Value) -> bool {
    let tls = &socket["typed_config"];
    let secrets = list(&tls["common_tls_context"], "tls_certificate_sds_secret_configs");
    secrets.first().is_some_and(|secret| text(secret, "name") == "default")
        && tls["require_client_certificate"] == true
}

fn virtual_host<'r>(routes: &'r Value, host: &str) -> Option<&'r Value> {
    let ranked = list(routes, "virtual_hosts").iter().map(|virtual_host| {
        let rank = |domain: &Value| {
            let domain = domain.as_str()?;
            match domain.strip_prefix('*') {
                Some(suffix) => host.ends_with(suffix).then_some(domain.len()),
                None => (domain == host).then_some(usize::MAX),
            }
        };
        (best(&virtual_host["domains"], rank), virtual_host)
    });
    ranked.filter(|(rank, _)| *rank > 0).max_by_key(|(rank, _)| *rank).map(|(_, found)| found)
}
