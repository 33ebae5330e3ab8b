//! Filter chains before they become protobuf: what they match and carry.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChainMatch};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;

use super::hcm::HttpOptions;
use crate::proto;

/// Transport protocol that the TLS inspector reports for TLS.
pub(crate) const TLS: &str = "tls";
/// Transport protocol of everything else.
pub(crate) const RAW_BUFFER: &str = "raw_buffer";
/// What the HTTP inspector reports for plaintext HTTP.
pub(crate) const PLAINTEXT_HTTP: [&str; 2] = ["http/1.1", "h2c"];
/// ALPN of HTTP inside mesh mutual TLS.
pub(crate) const MTLS_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// ALPN of other bytes inside mesh mutual TLS.
pub(crate) const MTLS_TCP: [&str; 2] = ["istio-peer-exchange", "istio"];
/// Every ALPN of mesh mutual TLS.
pub(crate) const MTLS_ALL: [&str; 5] =
    ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// What a filter chain does with a connection.
pub(crate) enum ChainBody {
    /// Routes it as HTTP.
    Http(Box<HttpOptions>),
    /// Hands it to network filters.
    Network(Vec<Filter>),
}

/// One filter chain: what it matches and what it does.
pub(crate) struct ChainOptions {
    pub(crate) sni_hosts: Vec<String>,
    pub(crate) destination_cidrs: Vec<String>,
    pub(crate) application_protocols: Vec<String>,
    pub(crate) transport_protocol: &'static str,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) tls: Option<Box<DownstreamTlsContext>>,
    pub(crate) body: ChainBody,
}

impl ChainOptions {
    /// A chain that matches everything.
    pub(crate) fn new(body: ChainBody) -> Self {
        Self {
            sni_hosts: Vec::new(),
            destination_cidrs: Vec::new(),
            application_protocols: Vec::new(),
            transport_protocol: "",
            metadata: None,
            tls: None,
            body,
        }
    }

    /// The same chain for plaintext HTTP only, as the HTTP inspector sees it.
    pub(crate) fn for_plaintext_http(mut self) -> Self {
        self.application_protocols = owned(&PLAINTEXT_HTTP);
        self.transport_protocol = RAW_BUFFER;
        self
    }

    /// True if it matches every connection.
    pub(crate) fn is_match_all(&self) -> bool {
        (self.sni_hosts.is_empty() || self.any_sni())
            && self.application_protocols.is_empty()
            && self.transport_protocol.is_empty()
            && self.destination_cidrs.is_empty()
    }

    /// True if Envoy would refuse both in one listener: the same match twice.
    pub(crate) fn conflicts_with(&self, other: &Self) -> bool {
        self.transport_protocol == other.transport_protocol
            && self.application_protocols == other.application_protocols
            && self.sni_set() == other.sni_set()
            && self.cidr_set() == other.cidr_set()
    }

    /// True if matching it takes the TLS inspector.
    pub(crate) fn needs_tls_inspector(&self) -> bool {
        let offers_alpn = |tls: &DownstreamTlsContext| {
            tls.common_tls_context.as_ref().is_some_and(|c| !c.alpn_protocols.is_empty())
        };
        !self.sni_hosts.is_empty() || self.tls.as_deref().is_some_and(offers_alpn)
    }

    /// The match; `None` if it matches everything.
    pub(crate) fn to_match(&self) -> Option<FilterChainMatch> {
        if self.is_match_all() {
            return None;
        }
        let mut server_names = if self.any_sni() { Vec::new() } else { self.sni_hosts.clone() };
        server_names.sort();
        let mut cidrs: Vec<&String> = self.destination_cidrs.iter().collect();
        cidrs.sort();
        Some(FilterChainMatch {
            application_protocols: self.application_protocols.clone(),
            transport_protocol: self.transport_protocol.to_owned(),
            server_names,
            prefix_ranges: cidrs
                .into_iter()
                .filter_map(|cidr| proto::cidr(cidr))
                .filter(|range| range.address_prefix != "0.0.0.0")
                .collect(),
            ..Default::default()
        })
    }

    fn any_sni(&self) -> bool {
        self.sni_hosts.iter().any(|host| host == "*")
    }

    fn sni_set(&self) -> BTreeSet<&str> {
        self.sni_hosts.iter().map(String::as_str).filter(|host| *host != "*").collect()
    }

    // Host bits do not matter: 1.2.3.4/8 and 1.5.6.7/8 are the same range.
    fn cidr_set(&self) -> BTreeSet<ipnet::IpNet> {
        self.destination_cidrs
            .iter()
            .filter_map(|cidr| proto::parse_net(cidr))
            .filter(|net| net.addr().to_string() != "0.0.0.0")
            .map(|net| net.trunc())
            .collect()
    }
}

pub(crate) fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|item| (*item).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(sni: &[&str], cidrs: &[&str]) -> ChainOptions {
        let mut chain = ChainOptions::new(ChainBody::Network(Vec::new()));
        chain.sni_hosts = owned(sni);
        chain.destination_cidrs = owned(cidrs);
        chain
    }

    #[test]
    fn the_same_range_written_twice_conflicts() {
        assert!(chain(&[], &["1.2.3.4/8"]).conflicts_with(&chain(&[], &["1.5.6.7/8"])));
        assert!(!chain(&[], &["1.2.3.4/8"]).conflicts_with(&chain(&[], &["1.2.3.4/16"])));
        assert!(chain(&["a", "b"], &[]).conflicts_with(&chain(&["b", "a", "*"], &[])));
    }

    #[test]
    fn a_wildcard_name_matches_everything() {
        assert!(chain(&["a", "*"], &[]).is_match_all());
        assert_eq!(chain(&["*"], &[]).to_match(), None);
        let names = chain(&["b", "a"], &[]).to_match().map(|m| m.server_names);
        assert_eq!(names, Some(vec!["a".to_owned(), "b".to_owned()]));
    }
}
