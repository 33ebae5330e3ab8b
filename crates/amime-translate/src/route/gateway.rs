//! Virtual hosts of a gateway's servers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use amime_core::Hostname;
use amime_model::{RoutedService, Service};
use envoy_types::pb::envoy::config::route::v3::virtual_host::TlsRequirementType;
use envoy_types::pb::envoy::config::route::v3::{Route, VirtualHost};

use super::http::{self, RouteTarget};
use super::matching::is_catch_all;
use super::sidecar::ServicesByHost;
use crate::context::Context;
use crate::gateway::{GatewayServer, intersect, visible_hosts};
use crate::names::domain;

/// A virtual host in the making.
struct Host {
    port: u32,
    /// Rules its routes come from, in order; equal lists can share a host.
    rules: Vec<RuleKey>,
    routes: Vec<Route>,
    tls_only: bool,
}

/// One rule as seen from one gateway.
type RuleKey = (String, String);

/// Virtual hosts of the route configuration `name`; `None` if no server has it.
pub(super) fn virtual_hosts(context: &Context<'_>, name: &str) -> Option<Vec<VirtualHost>> {
    let servers = context.gateway().servers_of_route(name);
    let first = servers.first()?;
    let mut builder = Builder { context, hosts: BTreeMap::new(), routes: HashMap::new() };
    for server in &servers {
        builder.add(server);
    }
    if builder.hosts.is_empty() {
        // No route at all: every request gets a 404, but the listener stands.
        return Some(vec![VirtualHost {
            name: domain("blackhole", first.port_number()),
            domains: vec!["*".to_owned()],
            ..Default::default()
        }]);
    }
    let mut virtual_hosts = collapse(builder.hosts);
    virtual_hosts.sort_by(|a, b| a.name.cmp(&b.name));
    Some(virtual_hosts)
}

struct Builder<'b, 'c> {
    context: &'b Context<'c>,
    hosts: BTreeMap<Hostname, Host>,
    routes: HashMap<RuleKey, Vec<Route>>,
}

impl Builder<'_, '_> {
    fn add(&mut self, server: &GatewayServer) {
        let redirects = server.redirects_to_https();
        let rules =
            self.context.snapshot.virtual_services(&self.context.proxy.namespace, &server.gateway);
        for rule in rules {
            let own = visible_hosts(&server.spec.hosts, rule.config.namespace());
            let theirs: Vec<Hostname> =
                rule.spec().hosts.iter().map(|host| Hostname::new(host.as_str())).collect();
            let shared = intersect(&own, &theirs);
            if shared.is_empty() {
                continue;
            }
            let (key, routes) = self.routes_of(server, &rule);
            if routes.is_empty() {
                continue;
            }
            for hostname in shared {
                let host = self.host(hostname, server.port_number());
                host.rules.push(key.clone());
                host.routes.extend(routes.iter().cloned());
                host.tls_only |= redirects;
            }
        }
        if redirects {
            for host in &server.spec.hosts {
                self.host(Hostname::new(host.as_str()), server.port_number()).tls_only = true;
            }
        }
    }

    fn host(&mut self, hostname: Hostname, port: u32) -> &mut Host {
        let new = || Host { port, rules: Vec::new(), routes: Vec::new(), tls_only: false };
        self.hosts.entry(hostname).or_insert_with(new)
    }

    /// Routes of a rule; made once for each gateway that they are bound to.
    fn routes_of(
        &mut self,
        server: &GatewayServer,
        rule: &Arc<RoutedService>,
    ) -> (RuleKey, Vec<Route>) {
        let key = (server.gateway.clone(), rule.config.name.to_string());
        if let Some(routes) = self.routes.get(&key) {
            return (key, routes.clone());
        }
        let services = services_of(self.context, rule);
        let look_up = |host: &str| services.get(host).cloned().flatten();
        let target = RouteTarget {
            port: server.port_number(),
            gateway: &server.gateway,
            tls: server.spec.tls.is_some(),
            look_up: &look_up,
            http3: self.context.gateway().advertises_http3(&server.route),
        };
        let routes = http::routes(self.context, rule, &target);
        if !routes.is_empty() {
            self.routes.insert(key.clone(), routes.clone());
        }
        (key, routes)
    }
}

/// Services that a rule's destinations mean: those of its own namespace first.
fn services_of(context: &Context<'_>, rule: &RoutedService) -> ServicesByHost {
    let mut services = ServicesByHost::new();
    let mut add = |host: &str| {
        let hostname = Hostname::new(host);
        let own = context.snapshot.services().get(rule.config.namespace(), &hostname);
        let visible = |service: &&Arc<Service>| {
            context.snapshot.services().is_visible(service, &context.proxy.namespace)
        };
        let service = own.filter(visible).or_else(|| context.scope.service(&hostname)).cloned();
        services.insert(host.to_owned(), service);
    };
    for http in &rule.spec().http {
        http.mirror.iter().for_each(|mirror| add(&mirror.host));
        http.mirrors.iter().for_each(|mirror| add(&mirror.destination.host));
        http.route.iter().for_each(|route| add(&route.destination.host));
    }
    services
}

/// Hosts with the same routes share one virtual host, named after the most
/// specific of them.
fn collapse(hosts: BTreeMap<Hostname, Host>) -> Vec<VirtualHost> {
    let mut virtual_hosts: Vec<VirtualHost> = Vec::new();
    let mut known: HashMap<(Vec<RuleKey>, bool), usize> = HashMap::new();
    for (hostname, host) in hosts {
        let key = (host.rules, host.tls_only);
        if let Some(index) = known.get(&key) {
            virtual_hosts[*index].domains.push(hostname.as_str().to_owned());
            continue;
        }
        known.insert(key, virtual_hosts.len());
        let tls = if host.tls_only { TlsRequirementType::All } else { TlsRequirementType::None };
        virtual_hosts.push(VirtualHost {
            name: domain(hostname.as_str(), host.port),
            domains: vec![hostname.as_str().to_owned()],
            routes: catch_alls_last(host.routes),
            require_tls: tls.into(),
            include_request_attempt_count: true,
            ..Default::default()
        });
    }
    virtual_hosts
}

/// Routes of several rules follow each other; one that takes everything would
/// hide the next rule's.
fn catch_alls_last(routes: Vec<Route>) -> Vec<Route> {
    let takes_all = |route: &Route| route.r#match.as_ref().is_some_and(is_catch_all);
    let (last, mut first): (Vec<Route>, Vec<Route>) = routes.into_iter().partition(takes_all);
    first.extend(last);
    first
}
