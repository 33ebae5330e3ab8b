//! Gateway servers that proxy bytes: TCP, terminated TLS, and TLS that goes
//! through by server name.

use std::collections::BTreeMap;
use std::sync::Arc;

use amime_api::networking::{RouteDestination, ServerTlsMode, TlsMatchAttributes};
use amime_core::{Hostname, Protocol};
use amime_model::{RoutedService, selects};
use envoy_types::pb::envoy::config::listener::v3::Filter;

use super::origin_of;
use crate::context::{Context, Direction};
use crate::filters::ListenerClass;
use crate::gateway::{GatewayServer, claim_hosts, intersect, visible_hosts};
use crate::listener::chain::{ChainBody, ChainOptions, MTLS_ALL, owned};
use crate::listener::{tcp, tls};
use crate::names::outbound_sni;
use crate::origin::{OriginKind, config_path, origin, service_path};

/// Annotation of rules that stand for objects of another API.
const PARENTS: &str = "internal.istio.io/parents";

/// Chains of a server that does not route HTTP.
pub(super) fn chains(
    context: &Context<'_>,
    server: &GatewayServer,
    passed: &mut BTreeMap<String, String>,
) -> Vec<ChainOptions> {
    let opaque = Opaque { context, server };
    match server.spec.tls.as_ref().map(|tls| tls.mode) {
        None => opaque.bytes().into_iter().collect(),
        Some(ServerTlsMode::AutoPassthrough) => opaque.by_own_name(),
        Some(ServerTlsMode::Passthrough) => opaque.by_rule(passed),
        Some(_) if server.protocol() == Protocol::Https => Vec::new(),
        Some(_) => opaque.terminated().into_iter().collect(),
    }
}

struct Opaque<'o, 'c> {
    context: &'o Context<'c>,
    server: &'o GatewayServer,
}

impl Opaque<'_, '_> {
    /// Rules bound to the gateway that share a host with the server.
    fn rules(&self) -> Vec<(Arc<RoutedService>, Vec<Hostname>)> {
        let namespace = &self.context.proxy.namespace;
        let rules = self.context.snapshot.virtual_services(namespace, &self.server.gateway);
        let shared = |rule: Arc<RoutedService>| {
            let own = visible_hosts(&self.server.spec.hosts, rule.config.namespace());
            let hosts = rule.spec().hosts.iter().map(|host| Hostname::new(host.as_str()));
            let shared = intersect(&own, &hosts.collect::<Vec<_>>());
            (!shared.is_empty()).then_some((rule, shared))
        };
        rules.into_iter().filter_map(shared).collect()
    }

    fn applies(&self, port: u32, gateways: &[String], labels: &amime_model::Labels) -> bool {
        (port == 0 || port == self.server.port_number())
            && (gateways.is_empty() || gateways.contains(&self.server.gateway))
            && selects(labels, &self.context.labels)
    }

    /// Filters of the first TCP rule that matches, and their rule.
    fn tcp(&self) -> Option<(Vec<Filter>, Arc<RoutedService>, String)> {
        for (rule, _) in self.rules() {
            for (index, tcp) in rule.spec().tcp.iter().enumerate() {
                let matches = tcp.r#match.is_empty()
                    || tcp.r#match.iter().any(|condition| {
                        self.applies(condition.port, &condition.gateways, &condition.source_labels)
                    });
                if matches && !tcp.route.is_empty() {
                    let filters = self.filters(&rule, &tcp.route);
                    return Some((filters, rule, format!("tcp[{index}]")));
                }
            }
            if let Some((filters, name)) = self.ended_tls(&rule) {
                return Some((filters, rule, name));
            }
        }
        None
    }

    /// Filters of a TLSRoute, which means TLS that ends here as well.
    fn ended_tls(&self, rule: &RoutedService) -> Option<(Vec<Filter>, String)> {
        let from_route =
            rule.config.annotations.get(PARENTS).is_some_and(|p| p.starts_with("TLSRoute/"));
        if !from_route || self.server.passes_tls() {
            return None;
        }
        let applies = |condition: &TlsMatchAttributes| {
            self.applies(condition.port, &condition.gateways, &condition.source_labels)
        };
        let mut rules = rule.spec().tls.iter().enumerate();
        let (index, tls) = rules.find(|(_, tls)| tls.r#match.iter().any(applies))?;
        Some((self.filters(rule, &tls.route), format!("tls[{index}]")))
    }

    fn filters(&self, rule: &RoutedService, routes: &[RouteDestination]) -> Vec<Filter> {
        let name = &rule.config.name;
        let stat = format!("{}.{}", name.name, name.namespace);
        let mode = self.server.spec.tls.as_ref().map(|tls| tls.mode);
        let mutual = mode == Some(ServerTlsMode::IstioMutual);
        tcp::to_destinations(self.context, routes, &self.server.port(), &stat, mutual)
    }

    fn chain(&self, filters: Vec<Filter>, rule: &RoutedService, name: &str) -> ChainOptions {
        let mut chain = ChainOptions::new(ChainBody::Network(filters));
        let path = config_path(OriginKind::VirtualService, &rule.config.name);
        chain.metadata = origin(path, Some(name));
        chain
    }

    /// One chain for all connections.
    fn bytes(&self) -> Option<ChainOptions> {
        let (filters, rule, name) = self.tcp()?;
        Some(self.chain(filters, &rule, &name))
    }

    /// One chain for the server's names, TLS ending here.
    fn terminated(&self) -> Option<ChainOptions> {
        let settings = self.server.spec.tls.as_ref()?;
        let (filters, rule, name) = self.tcp()?;
        let mut chain = self.chain(filters, &rule, &name);
        chain.sni_hosts = self.server.sni_hosts();
        chain.tls = Some(Box::new(tls::server(self.context, settings, true)));
        Some(chain)
    }

    /// A chain for each TLS rule.
    fn by_rule(&self, passed: &mut BTreeMap<String, String>) -> Vec<ChainOptions> {
        let mut chains = Vec::new();
        let bind = &self.server.spec.bind;
        for (rule, _) in self.rules() {
            for (index, tls) in rule.spec().tls.iter().enumerate() {
                for condition in &tls.r#match {
                    let own =
                        self.applies(condition.port, &condition.gateways, &condition.source_labels);
                    if !own || tls.route.is_empty() {
                        continue;
                    }
                    let hosts = condition.sni_hosts.clone();
                    if hosts.is_empty() || !claim_hosts(&hosts, bind, passed) {
                        continue;
                    }
                    let filters = self.filters(&rule, &tls.route);
                    let mut chain = self.chain(filters, &rule, &format!("tls[{index}]"));
                    chain.sni_hosts = hosts;
                    chains.push(chain);
                }
            }
        }
        chains
    }

    /// A chain for each cluster of the mesh, named by the client as its SNI.
    fn by_own_name(&self) -> Vec<ChainOptions> {
        let mut chains = Vec::new();
        // Namespaces before hosts choose rules, and there are none here.
        let hosts: Vec<Hostname> = self.server.sni_hosts().into_iter().map(Hostname::new).collect();
        let services = self.context.scope.services.iter().filter(|service| !service.mesh_external);
        for service in services {
            if !hosts.iter().any(|host| service.hostname.subset_of(host)) {
                continue;
            }
            let rule = self.context.destination_rule(&service.hostname, Direction::Outbound);
            let subsets = rule.map_or(&[][..], |rule| rule.spec().subsets.as_slice());
            let path = service_path(service);
            for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
                let all = std::iter::once("").chain(subsets.iter().map(|s| s.name.as_str()));
                for subset in all {
                    let name = outbound_sni(port.number, subset, &service.hostname);
                    let class = ListenerClass::Gateway;
                    let filters = tcp::to_cluster(self.context, class, &name, &name);
                    let mut chain = ChainOptions::new(ChainBody::Network(filters));
                    chain.sni_hosts = vec![name];
                    chain.application_protocols = owned(&MTLS_ALL);
                    chain.metadata = origin(path.clone(), None).or_else(|| origin_of(self.server));
                    chains.push(chain);
                }
            }
        }
        chains
    }
}
