//! Filter chains for TCP and TLS rules of sidecars.

use std::collections::BTreeSet;
use std::sync::Arc;

use amime_api::networking::{L4MatchAttributes, TlsMatchAttributes};
use amime_core::Hostname;
use amime_model::{
    Labels, MESH_GATEWAY, Port, Registry, Resolution, RoutedService, Service, UNSPECIFIED_V4,
    UNSPECIFIED_V6, selects,
};

use super::chain::{ChainBody, ChainOptions};
use super::tcp;
use crate::context::Context;
use crate::names::outbound_cluster;
use crate::origin::{OriginKind, config_path, origin, service_path};
use crate::route::alternatives;

/// What chains are made for.
pub(super) struct TcpTarget<'t> {
    pub(super) service: &'t Arc<Service>,
    /// Port of the listener.
    pub(super) port: &'t Port,
    /// Address of the listener.
    pub(super) bind: &'t str,
    /// Destinations that the listener tells apart.
    pub(super) cidrs: &'t [String],
    /// Rules in order of precedence.
    pub(super) rules: &'t [Arc<RoutedService>],
}

/// Chains of a port that is proxied as bytes.
pub(super) fn chains(context: &Context<'_>, target: &TcpTarget<'_>) -> Vec<ChainOptions> {
    let builder = Builder { context, target };
    if target.port.protocol.is_tls() { builder.tls() } else { builder.tcp() }
}

struct Builder<'b, 'c> {
    context: &'b Context<'c>,
    target: &'b TcpTarget<'b>,
}

/// Conditions that TLS and TCP rules have in common.
struct Conditions<'m> {
    port: u32,
    gateways: &'m [String],
    source_labels: &'m Labels,
    source_namespace: &'m str,
}

impl<'m> From<&'m TlsMatchAttributes> for Conditions<'m> {
    fn from(condition: &'m TlsMatchAttributes) -> Self {
        Self {
            port: condition.port,
            gateways: &condition.gateways,
            source_labels: &condition.source_labels,
            source_namespace: &condition.source_namespace,
        }
    }
}

impl<'m> From<&'m L4MatchAttributes> for Conditions<'m> {
    fn from(condition: &'m L4MatchAttributes) -> Self {
        Self {
            port: condition.port,
            gateways: &condition.gateways,
            source_labels: &condition.source_labels,
            source_namespace: &condition.source_namespace,
        }
    }
}

impl Builder<'_, '_> {
    fn rules(&self) -> impl Iterator<Item = &Arc<RoutedService>> {
        let hostname = &self.target.service.hostname;
        self.target.rules.iter().filter(|rule| {
            let mut hosts = rule.spec().hosts.iter();
            hosts.any(|host| Hostname::new(host.as_str()).matches(hostname))
        })
    }

    fn applies(&self, conditions: &Conditions<'_>) -> bool {
        let gateways = conditions.gateways;
        let source = conditions.source_namespace;
        (gateways.is_empty() || gateways.iter().any(|gateway| gateway == MESH_GATEWAY))
            && selects(conditions.source_labels, &self.context.labels)
            && (conditions.port == 0 || conditions.port == self.target.port.number)
            && (source.is_empty() || source == self.context.source_namespace())
    }

    fn rule_chain(
        &self,
        rule: &RoutedService,
        rule_name: &str,
        routes: &[amime_api::networking::RouteDestination],
    ) -> ChainOptions {
        let name = &rule.config.name;
        let stat = format!("{}.{}", name.name, name.namespace);
        let filters = tcp::to_destinations(self.context, routes, self.target.port, &stat, false);
        let mut chain = ChainOptions::new(ChainBody::Network(filters));
        let path = config_path(OriginKind::VirtualService, name);
        chain.metadata = origin(path, Some(rule_name));
        chain
    }

    /// The chain of a service that no rule is about.
    fn default_chain(&self) -> ChainOptions {
        let TcpTarget { service, port, cidrs, .. } = self.target;
        // A listener of its own port stands for the only port of the service.
        let number = match service.ports.as_slice() {
            [only] => only.number,
            _ => port.number,
        };
        let cluster = outbound_cluster(number, "", &service.hostname);
        let port = Port { number, ..Port::clone(port) };
        let filters = tcp::to_service(self.context, &cluster, service, &port);
        let mut chain = ChainOptions::new(ChainBody::Network(filters));
        chain.destination_cidrs = cidrs.to_vec();
        chain.metadata = origin(service_path(service), None);
        chain
    }

    fn tls(&self) -> Vec<ChainOptions> {
        let mut chains = Vec::new();
        let mut handled = BTreeSet::new();
        let mut cidrs = self.target.cidrs.to_vec();
        for rule in self.rules() {
            for (index, tls) in rule.spec().tls.iter().enumerate() {
                if tls.route.is_empty() {
                    continue;
                }
                let conditions = tls.r#match.iter().filter(|c| self.applies(&Conditions::from(*c)));
                for condition in conditions {
                    if !condition.destination_subnets.is_empty() && self.target.port.number > 0 {
                        cidrs.clone_from(&condition.destination_subnets);
                    }
                    // The same names and addresses again can never be reached.
                    let key = (&condition.sni_hosts, &condition.destination_subnets);
                    if handled.insert(key) {
                        let mut chain = self.rule_chain(rule, &format!("tls[{index}]"), &tls.route);
                        chain.sni_hosts.clone_from(&condition.sni_hosts);
                        chain.destination_cidrs.clone_from(&cidrs);
                        chains.push(chain);
                    }
                }
            }
        }
        if chains.is_empty() {
            let mut chain = self.default_chain();
            if self.needs_server_name() {
                chain.sni_hosts = self.server_names();
            }
            chains.push(chain);
        }
        chains
    }

    /// True if nothing but the server name tells the service from others.
    fn needs_server_name(&self) -> bool {
        let TcpTarget { service, bind, cidrs, .. } = self.target;
        let wildcard = self.context.wildcard();
        let mut listens_at = service.address_for(self.context.view);
        if listens_at.contains('/') {
            listens_at.clear();
        }
        let external = service.registry == Registry::External;
        if external && !self.context.view.v4 && listens_at == UNSPECIFIED_V4 {
            UNSPECIFIED_V6.clone_into(&mut listens_at);
        }
        let dynamic =
            service.hostname.is_wildcard() && service.resolution == Resolution::DynamicDns;
        !cidrs.is_empty()
            || listens_at.is_empty()
            || (listens_at == wildcard && *bind == wildcard)
            || dynamic
    }

    fn server_names(&self) -> Vec<String> {
        let service = self.target.service;
        let mut names = vec![service.hostname.as_str().to_owned()];
        for (_, alias) in &service.aliases {
            names.push(alias.as_str().to_owned());
            names.extend(alternatives(alias.as_str(), &self.context.proxy.dns_domain));
        }
        names
    }

    fn tcp(&self) -> Vec<ChainOptions> {
        let mut chains = Vec::new();
        let mut own = self.target.cidrs.to_vec();
        own.sort();
        let mut covered = false;
        for rule in self.rules() {
            for (index, tcp) in rule.spec().tcp.iter().enumerate() {
                if tcp.route.is_empty() {
                    continue;
                }
                let mut chain = self.rule_chain(rule, &format!("tcp[{index}]"), &tcp.route);
                let matching = tcp.r#match.iter().filter(|c| self.applies(&Conditions::from(*c)));
                let matching: Vec<&L4MatchAttributes> = matching.collect();
                let any_destination = |condition: &&L4MatchAttributes| {
                    condition.destination_subnets.is_empty() || self.target.port.number == 0
                };
                if tcp.r#match.is_empty() || matching.iter().any(any_destination) {
                    // It takes every connection; nothing after it is reached.
                    chain.destination_cidrs = self.target.cidrs.to_vec();
                    chains.push(chain);
                    return chains;
                }
                let mut subnets: Vec<String> =
                    matching.iter().flat_map(|c| c.destination_subnets.clone()).collect();
                if subnets.is_empty() {
                    continue;
                }
                subnets.sort();
                covered |= subnets == own;
                chain.destination_cidrs = subnets;
                chains.push(chain);
            }
        }
        if !covered {
            chains.push(self.default_chain());
        }
        chains
    }
}
