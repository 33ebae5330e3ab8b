//! Virtual hosts of a sidecar's outbound listeners.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use amime_api::networking::Destination;
use amime_core::{Hostname, Protocol};
use amime_model::{
    EgressListener, MESH_GATEWAY, Port, Resolution, RouteSemantics, RoutedService, Service,
    UnknownDestinations,
};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, Route, RouteAction, VirtualHost,
};

use super::hosts::service_domains;
use super::http::{self, RouteTarget, default_outbound, destination_cluster, to_cluster};
use super::matching::everything;
use super::policy::{consistent_hash, hash_policy};
use crate::context::Context;
use crate::dynamic_dns;
use crate::names::{
    ALLOW_ANY, ALLOW_ANY_DYNAMIC_DNS, BLOCK_ALL, DYNAMIC_DNS_CLUSTER, HTTP_PROXY_ROUTE,
    PASSTHROUGH_CLUSTER, bracketed, domain, outbound_cluster,
};
use crate::origin::{mesh_path, origin, service_path};

/// Port on which rules for hosts that no service has take effect.
const DEFAULT_HTTP_PORT: u32 = 80;
/// Answer to requests for unknown hosts when they are refused.
const UNKNOWN_HOST_STATUS: u32 = 502;

/// Virtual hosts of the route configuration `name`; `None` if no listener has it.
pub(super) fn virtual_hosts(context: &Context<'_>, name: &str) -> Option<Vec<VirtualHost>> {
    let id = RouteName::parse(name)?;
    let egress = context.scope.egress_for_route(id.port, name)?;
    let mut hosts = HostBuilder::new(context, egress, id.port).build();
    if id.sniffed {
        return Some(of_service(hosts, name));
    }
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    hosts.push(unknown_hosts(context));
    Some(hosts)
}

/// A route configuration's name: a port, `host:port` of a listener that is one
/// service's alone, or the path of a socket.
struct RouteName {
    /// 0 for a socket and for the HTTP proxy port.
    port: u32,
    sniffed: bool,
}

impl RouteName {
    fn parse(name: &str) -> Option<Self> {
        if name.starts_with("unix://") || name == HTTP_PROXY_ROUTE {
            return Some(Self { port: 0, sniffed: false });
        }
        match name.rsplit_once(':') {
            Some((_, port)) => Some(Self { port: port.parse().ok()?, sniffed: true }),
            None => Some(Self { port: name.parse().ok()?, sniffed: false }),
        }
    }
}

/// The virtual hosts of the one service behind a listener, for any host header.
fn of_service(hosts: Vec<VirtualHost>, name: &str) -> Vec<VirtualHost> {
    let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
    let own = |virtual_host: &VirtualHost| {
        virtual_host.domains.iter().any(|domain| domain == name || domain == host)
    };
    let mut hosts: Vec<VirtualHost> = hosts.into_iter().filter(own).collect();
    if let [only] = hosts.as_mut_slice() {
        only.domains = vec!["*".to_owned()];
    }
    hosts
}

/// Hosts that share routes on one port.
struct HostGroup {
    port: u32,
    services: Vec<Arc<Service>>,
    /// Hosts of the rule that no service has.
    hosts: Vec<String>,
    routes: Vec<Route>,
}

struct HostBuilder<'b, 'c> {
    context: &'b Context<'c>,
    egress: &'b EgressListener,
    /// Port of the listener; 0 if it serves all ports.
    port: u32,
    /// Services on the port, by host.
    services: BTreeMap<String, Arc<Service>>,
}

impl<'b, 'c> HostBuilder<'b, 'c> {
    fn new(context: &'b Context<'c>, egress: &'b EgressListener, port: u32) -> Self {
        // An explicit proxy is asked for any port.
        let proxy = egress.port().is_some() && egress.protocol() == Some(Protocol::HttpProxy);
        let port = if proxy { 0 } else { port };
        let mut services = BTreeMap::new();
        for service in &egress.services {
            let own = if port == 0 {
                service.clone()
            } else if let Some(own) = service.port(port) {
                let ports: Vec<Port> = vec![own.clone()];
                Arc::new(Service { ports, ..Service::clone(service) })
            } else {
                continue;
            };
            services.insert(service.hostname.as_str().to_owned(), own);
        }
        Self { context, egress, port, services }
    }

    fn build(mut self) -> Vec<VirtualHost> {
        let groups = self.groups();
        let known: BTreeSet<String> = groups
            .iter()
            .flat_map(|group| {
                let names = |service: &Arc<Service>| {
                    let host = service.hostname.as_str();
                    [host.to_owned(), domain(host, group.port)]
                };
                group.services.iter().flat_map(names).collect::<Vec<_>>()
            })
            .collect();
        let mut taken = Taken::default();
        let mut by_port: BTreeMap<u32, Vec<VirtualHost>> = BTreeMap::new();
        for group in groups.into_iter().filter(|group| !group.routes.is_empty()) {
            let hosts = by_port.entry(group.port).or_default();
            for host in &group.hosts {
                hosts.extend(self.for_host(host, &group, &mut taken, &known));
            }
            for service in &group.services {
                hosts.extend(self.for_service(service, &group, &mut taken, &known));
            }
        }
        match self.port {
            0 => all_ports(by_port),
            port => by_port.remove(&port).unwrap_or_default(),
        }
    }

    /// Groups of rules in order of precedence, then one for each service that
    /// no rule is about.
    fn groups(&mut self) -> Vec<HostGroup> {
        let mut groups: Vec<HostGroup> = Vec::new();
        for rule in &self.egress.virtual_services {
            // Off the default port, a rule counts for services only.
            if self.port == DEFAULT_HTTP_PORT || self.concerns_service(rule) {
                groups.extend(self.of_rule(rule));
            }
        }
        for group in &groups {
            for service in &group.services {
                self.services.remove(service.hostname.as_str());
            }
        }
        for service in self.services.values() {
            if service.resolution == Resolution::Alias {
                continue;
            }
            let http = |port: &&Port| port.protocol.is_http() || port.protocol.is_auto();
            groups.extend(service.ports.iter().filter(http).map(|port| HostGroup {
                port: port.number,
                services: vec![service.clone()],
                hosts: Vec::new(),
                routes: vec![self.default_route(service, port)],
            }));
        }
        groups
    }

    fn concerns_service(&self, rule: &RoutedService) -> bool {
        rule.spec().hosts.iter().any(|host| {
            let host = Hostname::new(host.as_str());
            self.services.contains_key(host.as_str())
                || self.services.values().any(|service| {
                    let wildcard = host.is_wildcard() || service.hostname.is_wildcard();
                    wildcard && host.matches(&service.hostname)
                })
        })
    }

    fn of_rule(&self, rule: &Arc<RoutedService>) -> Vec<HostGroup> {
        let look_up = |host: &str| self.services.get(&host.to_ascii_lowercase()).cloned();
        let target = RouteTarget {
            port: self.port,
            gateway: MESH_GATEWAY,
            tls: false,
            look_up: &look_up,
            http3: false,
        };
        let routes = http::routes(self.context, rule, &target);
        if routes.is_empty() {
            return Vec::new();
        }
        let (hosts, services) = self.split_hosts(rule);
        if rule.semantics == RouteSemantics::Gateway {
            // A producer's rule is about its own services, a consumer's about
            // its own clients; nobody routes others' traffic to others.
            let owner = rule.config.namespace();
            let is_owner = |service: &Arc<Service>| service.namespace == owner;
            let consumes = self.context.proxy.namespace == owner && !services.is_empty();
            if !consumes && !services.iter().any(is_owner) {
                return Vec::new();
            }
        }
        let mut by_port: BTreeMap<u32, Vec<Arc<Service>>> = BTreeMap::new();
        for service in services {
            for port in &service.ports {
                if port.protocol.is_http() || port.protocol.is_auto() {
                    by_port.entry(port.number).or_default().push(service.clone());
                }
            }
        }
        if by_port.is_empty() && self.port == DEFAULT_HTTP_PORT {
            by_port.insert(DEFAULT_HTTP_PORT, Vec::new());
        }
        let group = |(port, services)| HostGroup {
            port,
            services,
            hosts: hosts.clone(),
            routes: routes.clone(),
        };
        by_port.into_iter().map(group).collect()
    }

    /// Hosts of a rule that are none of the services, and the services.
    fn split_hosts(&self, rule: &RoutedService) -> (Vec<String>, Vec<Arc<Service>>) {
        let mut others = Vec::new();
        let mut services: Vec<Arc<Service>> = Vec::new();
        let all = rule.spec().hosts.iter().map(|host| Hostname::new(host.as_str()));
        let (wildcards, exact): (Vec<Hostname>, Vec<Hostname>) =
            all.partition(Hostname::is_wildcard);
        for host in exact {
            match self.services.get(host.as_str()) {
                Some(service) => services.push(service.clone()),
                None => others.push(host.as_str().to_owned()),
            }
        }
        for host in wildcards {
            if rule.semantics == RouteSemantics::Gateway {
                others.push(host.as_str().to_owned());
                continue;
            }
            let mut covers_any = false;
            for service in self.services.values().filter(|s| s.hostname.matches(&host)) {
                covers_any = true;
                // Another rule may cover the service more closely.
                let closest = self.egress.most_specific.get(&service.hostname);
                if closest == Some(&rule.config.name) {
                    services.push(service.clone());
                }
            }
            if !covers_any {
                others.push(host.as_str().to_owned());
            }
        }
        (others, services)
    }

    fn default_route(&self, service: &Service, port: &Port) -> Route {
        let cluster = outbound_cluster(port.number, "", &service.hostname);
        let operation = operation(service.hostname.as_str(), port.number);
        let mut route = default_outbound(self.context, cluster, operation);
        route.metadata = origin(service_path(service), None);
        let host = service.hostname.as_str();
        let hash = consistent_hash(self.context, host, "", Some(port.number));
        if let (Some(hash), Some(Action::Route(action))) = (hash, &mut route.action) {
            action.hash_policy.extend(hash_policy(&hash));
        }
        route
    }

    fn for_host(
        &self,
        host: &str,
        group: &HostGroup,
        taken: &mut Taken,
        known: &BTreeSet<String>,
    ) -> Option<VirtualHost> {
        let domains = super::hosts::Domains { all: vec![bracketed(host)], short: Vec::new() };
        virtual_host(domain(host, group.port), domains, group, taken, known)
    }

    fn for_service(
        &self,
        service: &Service,
        group: &HostGroup,
        taken: &mut Taken,
        known: &BTreeSet<String>,
    ) -> Option<VirtualHost> {
        // The port of the host header is ignored, except where all ports meet.
        let port = (self.port == 0).then_some(group.port);
        let domains = service_domains(self.context, service, port);
        let name = domain(service.hostname.as_str(), group.port);
        virtual_host(name, domains, group, taken, known)
    }
}

/// Names and domains that are in use; Envoy refuses any twice.
#[derive(Default)]
struct Taken {
    names: BTreeSet<String>,
    domains: BTreeSet<String>,
}

fn virtual_host(
    name: String,
    domains: super::hosts::Domains,
    group: &HostGroup,
    taken: &mut Taken,
    known: &BTreeSet<String>,
) -> Option<VirtualHost> {
    if !taken.names.insert(name.clone()) {
        return None;
    }
    let mut own = Vec::new();
    for one in domains.all {
        let lower = one.to_ascii_lowercase();
        // A short form must not take the full name of another service.
        let foreign = domains.short.contains(&one) && known.contains(&one);
        if !taken.domains.contains(&lower) && !foreign {
            taken.domains.insert(lower);
            own.push(one);
        }
    }
    (!own.is_empty()).then(|| VirtualHost {
        name,
        domains: own,
        routes: group.routes.clone(),
        include_request_attempt_count: true,
        ..Default::default()
    })
}

/// All ports together: off the default port only domains that name their port.
fn all_ports(by_port: BTreeMap<u32, Vec<VirtualHost>>) -> Vec<VirtualHost> {
    let mut all = Vec::new();
    for (port, hosts) in by_port {
        for mut host in hosts {
            if port != DEFAULT_HTTP_PORT {
                host.domains.retain(|domain| domain.contains(':'));
            }
            if !host.domains.is_empty() {
                all.push(host);
            }
        }
    }
    all
}

/// What happens to requests for hosts that nobody has.
pub(crate) fn unknown_hosts(context: &Context<'_>) -> VirtualHost {
    let forwarded = |cluster| {
        let append_x_forwarded_host = context.settings.forwarded_host();
        RouteAction { append_x_forwarded_host, ..to_cluster(cluster) }
    };
    let (name, action) = match context.scope.unknown {
        UnknownDestinations::Refuse => {
            let status = UNKNOWN_HOST_STATUS;
            let refuse = DirectResponseAction { status, ..Default::default() };
            (BLOCK_ALL, Action::DirectResponse(refuse))
        }
        UnknownDestinations::ByName if dynamic_dns::is_on(context) => {
            (ALLOW_ANY_DYNAMIC_DNS, Action::Route(forwarded(DYNAMIC_DNS_CLUSTER.to_owned())))
        }
        UnknownDestinations::Allow | UnknownDestinations::ByName => {
            let cluster = egress_cluster(context.scope.egress_proxy.as_ref());
            (ALLOW_ANY, Action::Route(forwarded(cluster)))
        }
    };
    VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![Route {
            name: name.to_owned(),
            r#match: Some(everything()),
            metadata: origin(mesh_path(&context.mesh.root_namespace), None),
            action: Some(action),
            ..Default::default()
        }],
        include_request_attempt_count: context.settings.attempt_count(),
        ..Default::default()
    }
}

/// Cluster for unknown destinations that are let through.
pub(crate) fn egress_cluster(proxy: Option<&Destination>) -> String {
    match proxy {
        Some(destination) => destination_cluster(destination, None, 0),
        None => PASSTHROUGH_CLUSTER.to_owned(),
    }
}

/// What a trace calls requests to a service.
pub(crate) fn operation(host: &str, port: u32) -> String {
    format!("{host}:{port}/*")
}

/// Services by host, for looking destinations up.
pub(crate) type ServicesByHost = HashMap<String, Option<Arc<Service>>>;
