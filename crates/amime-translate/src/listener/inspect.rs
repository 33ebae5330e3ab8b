//! Which listener filters look into a connection's first bytes, on which ports.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::{
    MatchSet, Rule,
};
use envoy_types::pb::envoy::config::listener::v3::{
    FilterChain, ListenerFilter, ListenerFilterChainMatchPredicate,
};
use envoy_types::pb::envoy::r#type::v3::Int32Range;

use super::chain::{PLAINTEXT_HTTP, TLS};
use crate::filters::{http_inspector, original_dst, original_src, tls_inspector};
use crate::proxy::{Interception, Proxy};

/// What the chains of one port need.
#[derive(Clone, Copy, Default)]
struct Needs {
    tls: bool,
    http: bool,
}

/// Listener filters of an inbound listener with these chains.
///
/// Ports on which the server speaks first must not be inspected for HTTP: the
/// inspector would wait for bytes that never come.
pub(super) fn inbound_filters(
    proxy: &Proxy,
    chains: &[FilterChain],
    binds_to_port: bool,
) -> Vec<ListenerFilter> {
    let mut filters = Vec::new();
    if !binds_to_port {
        filters.push(original_dst());
        if proxy.interception() == Interception::Tproxy {
            filters.push(original_src());
        }
    }
    // Port 0 stands for all ports without chains of their own.
    let mut needs: BTreeMap<u32, Needs> = BTreeMap::new();
    for chain in chains {
        let matched = chain.filter_chain_match.clone().unwrap_or_default();
        let port = matched.destination_port.map_or(0, |port| port.value);
        let own = needs.entry(port).or_default();
        own.tls |= matched.transport_protocol == TLS;
        let protocols = &matched.application_protocols;
        own.http |= protocols.iter().any(|p| PLAINTEXT_HTTP.contains(&p.as_str()));
    }
    if needs.values().any(|needs| needs.tls) {
        filters.push(tls_filter(&needs));
    }
    // After TLS inspection: what is TLS is not inspected for HTTP any more.
    if needs.values().any(|needs| needs.http) {
        let without: Vec<u32> =
            needs.iter().filter(|(_, needs)| !needs.http).map(|(port, _)| *port).collect();
        filters.push(ListenerFilter { filter_disabled: on_ports(&without), ..http_inspector() });
    }
    filters
}

fn tls_filter(needs: &BTreeMap<u32, Needs>) -> ListenerFilter {
    let everywhere = needs.get(&0).is_some_and(|needs| needs.tls);
    let others = needs.iter().filter(|(port, needs)| **port != 0 && needs.tls != everywhere);
    let ports: Vec<u32> = others.map(|(port, _)| *port).collect();
    let on = on_ports(&ports);
    let filter_disabled = if everywhere { on } else { on.map(negated) };
    ListenerFilter { filter_disabled, ..tls_inspector() }
}

/// A condition that holds on these ports; `None` for no port at all.
fn on_ports(ports: &[u32]) -> Option<ListenerFilterChainMatchPredicate> {
    let range = |port: &u32| {
        let start = i32::try_from(*port).unwrap_or(i32::MAX);
        let range = Int32Range { start, end: start.saturating_add(1) };
        predicate(Rule::DestinationPortRange(range))
    };
    match ports {
        [] => None,
        [only] => Some(range(only)),
        many => {
            Some(predicate(Rule::OrMatch(MatchSet { rules: many.iter().map(range).collect() })))
        }
    }
}

fn negated(inner: ListenerFilterChainMatchPredicate) -> ListenerFilterChainMatchPredicate {
    predicate(Rule::NotMatch(Box::new(inner)))
}

fn predicate(rule: Rule) -> ListenerFilterChainMatchPredicate {
    ListenerFilterChainMatchPredicate { rule: Some(rule) }
}
