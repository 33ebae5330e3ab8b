//! Choosing a filter chain.
//!
//! Criteria are looked at in Envoy's order. Each keeps the chains that match
//! it most specifically and drops the others for good: there is no way back
//! to a less specific chain if a later criterion fails.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/listener/v3/listener_components.proto>

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3 as pb;
use ipnet::IpNet;
use smallvec::SmallVec;

use super::listener::FilterChain;
use amime_rules::Faults;
use amime_rules::values::{cidr, within};

/// The criteria of one chain; empty ones match anything.
#[derive(Debug, Default)]
pub struct ChainMatch {
    destination_port: Option<u16>,
    prefixes: Vec<IpNet>,
    server_names: Vec<String>,
    transport: String,
    application: Vec<Vec<u8>>,
    direct_source: Vec<IpNet>,
    source_type: SourceType,
    source: Vec<IpNet>,
    source_ports: Vec<u16>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum SourceType {
    #[default]
    Any,
    Local,
    External,
}

/// What is known of a connection when the chain is chosen.
#[derive(Clone, Debug)]
pub struct ChainInput<'a> {
    pub destination: SocketAddr,
    pub source: SocketAddr,
    pub direct_source: IpAddr,
    /// Empty if none.
    pub server_name: &'a str,
    /// `tls` or `raw_buffer`.
    pub transport: &'a str,
    pub application: &'a [Vec<u8>],
}

impl ChainMatch {
    pub fn compile(value: Option<&pb::FilterChainMatch>, faults: &mut Faults) -> Option<Self> {
        let Some(value) = value else { return Some(Self::default()) };
        faults.reject_if(!value.address_suffix.is_empty(), "address_suffix");
        for name in &value.server_names {
            let rest = name.strip_prefix("*.").unwrap_or(name);
            if rest.contains('*') || rest.is_empty() {
                faults.reject("server_names", format!("`{name}` is no name and no whole wildcard"));
            }
        }
        let mut nets = |list: &[_], field: &str| -> Vec<IpNet> {
            faults.within(field, |faults| {
                list.iter().filter_map(|range| cidr(range, faults)).collect()
            })
        };
        let prefixes = nets(&value.prefix_ranges, "prefix_ranges");
        let direct_source = nets(&value.direct_source_prefix_ranges, "direct_source_prefix_ranges");
        let source = nets(&value.source_prefix_ranges, "source_prefix_ranges");
        let port = |port: u32| u16::try_from(port).ok();
        use pb::filter_chain_match::ConnectionSourceType;
        Some(Self {
            destination_port: value.destination_port.as_ref().and_then(|value| port(value.value)),
            prefixes,
            server_names: value.server_names.iter().map(|name| name.to_ascii_lowercase()).collect(),
            transport: value.transport_protocol.clone(),
            application: value
                .application_protocols
                .iter()
                .map(|name| name.clone().into())
                .collect(),
            direct_source,
            source_type: match value.source_type() {
                ConnectionSourceType::Any => SourceType::Any,
                ConnectionSourceType::SameIpOrLoopback => SourceType::Local,
                ConnectionSourceType::External => SourceType::External,
            },
            source,
            source_ports: value.source_ports.iter().filter_map(|value| port(*value)).collect(),
        })
    }

    /// How specifically criterion number `step` matches; `None`: not at all.
    fn specificity(&self, step: u8, input: &ChainInput<'_>) -> Option<usize> {
        match step {
            0 => option(self.destination_port.map(|port| port == input.destination.port())),
            1 => longest(&self.prefixes, input.destination.ip()),
            2 => server_name(&self.server_names, input.server_name),
            3 => option((!self.transport.is_empty()).then(|| self.transport == input.transport)),
            4 => application(&self.application, input.application),
            5 => longest(&self.direct_source, input.direct_source),
            6 => option(match self.source_type {
                SourceType::Any => None,
                SourceType::Local => Some(is_local(input)),
                SourceType::External => Some(!is_local(input)),
            }),
            7 => longest(&self.source, input.source.ip()),
            _ => option(
                (!self.source_ports.is_empty())
                    .then(|| self.source_ports.contains(&input.source.port())),
            ),
        }
    }
}

/// Refuses chains that would be chosen for the same connections: which of them
/// is meant cannot be told.
pub(crate) fn distinct(chains: &[Arc<FilterChain>], faults: &mut Faults) {
    let mut seen: HashMap<Criteria<'_>, usize> = HashMap::new();
    for (index, chain) in chains.iter().enumerate() {
        for criteria in chain.matcher.each() {
            let first = *seen.entry(criteria).or_insert(index);
            if first != index {
                let reason = format!("matches what filter_chains[{first}] matches");
                faults.reject(&format!("filter_chains[{index}].filter_chain_match"), reason);
                break;
            }
        }
    }
}

/// One combination of a chain's alternatives.
type Criteria<'a> = (
    Option<u16>,
    Option<&'a IpNet>,
    Option<&'a str>,
    (&'a str, Option<&'a [u8]>),
    (Option<&'a IpNet>, SourceType),
    (Option<&'a IpNet>, Option<u16>),
);

/// The alternatives of one criterion; one that is absent counts as one.
fn alternatives<T>(list: &[T]) -> impl Iterator<Item = Option<&T>> {
    let none = list.is_empty().then_some(None);
    list.iter().map(Some).chain(none)
}

impl ChainMatch {
    fn each(&self) -> impl Iterator<Item = Criteria<'_>> {
        let networks = alternatives(&self.prefixes).flat_map(move |prefix| {
            alternatives(&self.direct_source).flat_map(move |direct| {
                alternatives(&self.source).map(move |source| (prefix, direct, source))
            })
        });
        networks.flat_map(move |(prefix, direct, source)| {
            alternatives(&self.server_names).flat_map(move |name| {
                alternatives(&self.application).flat_map(move |protocol| {
                    alternatives(&self.source_ports).map(move |port| {
                        (
                            self.destination_port,
                            prefix,
                            name.map(String::as_str),
                            (self.transport.as_str(), protocol.map(Vec::as_slice)),
                            (direct, self.source_type),
                            (source, port.copied()),
                        )
                    })
                })
            })
        })
    }
}

/// The chain for a connection, if one matches.
pub fn choose<'a>(
    chains: &'a [Arc<FilterChain>],
    input: &ChainInput<'_>,
) -> Option<&'a Arc<FilterChain>> {
    let mut left: SmallVec<[&Arc<FilterChain>; 32]> = chains.iter().collect();
    for step in 0..9 {
        let mut best = None;
        for chain in &left {
            best = best.max(chain.matcher.specificity(step, input));
        }
        best?;
        left.retain(|chain| chain.matcher.specificity(step, input) == best);
    }
    left.first().copied()
}

fn option(matched: Option<bool>) -> Option<usize> {
    match matched {
        None => Some(0),
        Some(true) => Some(1),
        Some(false) => None,
    }
}

fn longest(nets: &[IpNet], ip: IpAddr) -> Option<usize> {
    if nets.is_empty() {
        return Some(0);
    }
    let matching = nets.iter().filter(|net| within(net, ip));
    matching.map(|net| usize::from(net.prefix_len()) + 1).max()
}

fn server_name(names: &[String], name: &str) -> Option<usize> {
    if names.is_empty() {
        return Some(0);
    }
    let rank = |pattern: &String| match pattern.strip_prefix('*') {
        Some("") => Some(1),
        Some(suffix) => {
            (name.len() > suffix.len() && name.ends_with(suffix)).then_some(1 + suffix.len())
        }
        // A whole name beats every wildcard.
        None => (pattern == name).then_some(usize::MAX),
    };
    names.iter().filter_map(rank).max()
}

fn application(wanted: &[Vec<u8>], offered: &[Vec<u8>]) -> Option<usize> {
    if wanted.is_empty() {
        return Some(0);
    }
    // The client's order of preference decides between chains.
    let position = offered.iter().position(|protocol| wanted.contains(protocol))?;
    Some(usize::MAX - position)
}

pub(crate) fn is_local(input: &ChainInput<'_>) -> bool {
    input.source.ip() == input.destination.ip() || input.source.ip().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::Terminal;

    fn chain(matcher: ChainMatch) -> Arc<FilterChain> {
        Arc::new(FilterChain {
            matcher,
            tls: None,
            handshake_timeout: None,
            rbac: Vec::new(),
            limits: Vec::new(),
            terminal: Terminal::Close,
            prints_certificates: false,
            origin: None,
            identity: 0,
        })
    }

    /// Index of the chain chosen for a connection to `10.0.0.5:80`.
    fn chosen(
        chains: Vec<ChainMatch>,
        name: &str,
        transport: &str,
        alpn: &[&str],
    ) -> Option<usize> {
        let chains: Vec<_> = chains.into_iter().map(chain).collect();
        let application: Vec<Vec<u8>> = alpn.iter().map(|name| (*name).into()).collect();
        let input = ChainInput {
            destination: "10.0.0.5:80".parse().expect("an address"),
            source: "10.0.0.9:4000".parse().expect("an address"),
            direct_source: "10.0.0.9".parse().expect("an address"),
            server_name: name,
            transport,
            application: &application,
        };
        let found = choose(&chains, &input)?;
        chains.iter().position(|chain| Arc::ptr_eq(chain, found))
    }

    fn names(list: &[&str]) -> ChainMatch {
        let server_names = list.iter().map(|name| (*name).to_owned()).collect();
        ChainMatch { server_names, ..ChainMatch::default() }
    }

    #[test]
    fn server_names_go_from_exact_to_wildcard_to_none() {
        let chains = || vec![names(&[]), names(&["*.example.com"]), names(&["a.example.com"])];
        assert_eq!(chosen(chains(), "a.example.com", "tls", &[]), Some(2));
        assert_eq!(chosen(chains(), "b.example.com", "tls", &[]), Some(1));
        assert_eq!(chosen(chains(), "example.com", "tls", &[]), Some(0));
    }

    #[test]
    fn chains_that_match_the_same_are_refused() {
        let refused = |list: Vec<ChainMatch>| {
            let chains: Vec<_> = list.into_iter().map(chain).collect();
            let mut faults = Faults::default();
            distinct(&chains, &mut faults);
            faults.fatal()
        };
        assert!(!refused(vec![names(&["a"]), names(&["b"]), names(&[])]));
        assert!(refused(vec![names(&["a", "b"]), names(&["c", "b"])]));
        assert!(refused(vec![names(&[]), names(&[])]));
        let tls = ChainMatch { transport: "tls".to_owned(), ..names(&["a"]) };
        assert!(!refused(vec![names(&["a"]), tls]));
    }

    #[test]
    fn a_chain_for_the_port_hides_the_others_even_if_it_fails_later() {
        let for_port = ChainMatch {
            destination_port: Some(80),
            transport: "tls".to_owned(),
            ..ChainMatch::default()
        };
        let chains = vec![ChainMatch::default(), for_port];
        assert_eq!(chosen(chains, "", "raw_buffer", &[]), None);
    }

    #[test]
    fn the_longest_prefix_and_the_protocols_decide() {
        let prefix = |net: &str| ChainMatch {
            prefixes: vec![net.parse().expect("a range")],
            ..ChainMatch::default()
        };
        assert_eq!(chosen(vec![prefix("10.0.0.0/8"), prefix("10.0.0.0/24")], "", "", &[]), Some(1));
        let istio = ChainMatch { application: vec![b"istio".to_vec()], ..ChainMatch::default() };
        let chains = || {
            vec![
                ChainMatch { application: istio.application.clone(), ..ChainMatch::default() },
                ChainMatch::default(),
            ]
        };
        assert_eq!(chosen(chains(), "", "tls", &["istio-peer-exchange", "istio"]), Some(0));
        assert_eq!(chosen(chains(), "", "tls", &["h2"]), Some(1));
    }
}
