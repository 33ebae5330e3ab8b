//! What one proxy may reach: the Sidecar resource, applied.
//!
//! Owns the choice of services and virtual services for each egress listener
//! and the union over them. Gateways see everything that is visible in their
//! namespace.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use amime_api::mesh::MeshOutboundTrafficMode;
use amime_api::networking::{Destination, IstioEgressListener, OutboundTrafficMode, Sidecar};
use amime_core::{Hostname, NamespacedName, Protocol};

use crate::config::Config;
use crate::names::MESH_GATEWAY;
use crate::registry::ServiceIndex;
use crate::service::{Port, Registry, Service};
use crate::virtual_service::{RouteSemantics, RoutedService, VirtualServiceIndex, destinations};

/// Services and rules behind one egress listener.
#[derive(Debug)]
pub struct EgressListener {
    /// The listener as written; `None` for the default one.
    pub listener: Option<IstioEgressListener>,
    /// Services it imports, the oldest first.
    pub services: Vec<Arc<Service>>,
    /// Rules it imports, in order of precedence.
    pub virtual_services: Vec<Arc<RoutedService>>,
    /// For each service, the rule with the most specific host that covers it.
    pub most_specific: HashMap<Hostname, NamespacedName>,
}

impl EgressListener {
    /// Port it is bound to; `None` for the catch-all listener.
    pub fn port(&self) -> Option<u32> {
        Some(self.listener.as_ref()?.port.as_ref()?.number)
    }

    /// Declared protocol of its port.
    pub fn protocol(&self) -> Option<Protocol> {
        let port = self.listener.as_ref()?.port.as_ref()?;
        Some(port.protocol.parse().unwrap_or(Protocol::Auto))
    }

    /// Address or socket it is bound to; empty if not given.
    pub fn bind(&self) -> &str {
        self.listener.as_ref().map_or("", |listener| &listener.bind)
    }

    fn matched_port(&self) -> Option<u32> {
        self.port().filter(|port| *port != 0 && self.protocol() != Some(Protocol::HttpProxy))
    }
}

/// The part of the mesh that one proxy sees.
#[derive(Debug)]
pub struct SidecarScope {
    /// Namespace it was computed for.
    pub namespace: String,
    /// The resource behind it, if any.
    pub sidecar: Option<Arc<Config<Sidecar>>>,
    /// Egress listeners in order; the catch-all one is last.
    pub egress: Vec<EgressListener>,
    /// Union of what the listeners import, merged by host.
    pub services: Vec<Arc<Service>>,
    by_host: HashMap<Hostname, usize>,
    /// What happens to unknown destinations.
    pub unknown: UnknownDestinations,
    /// Where they are sent instead of where they were going.
    pub egress_proxy: Option<Destination>,
}

impl SidecarScope {
    /// The service a host name means to this proxy.
    pub fn service(&self, hostname: &Hostname) -> Option<&Arc<Service>> {
        self.by_host.get(hostname).map(|index| &self.services[*index])
    }

    /// The listener that a route configuration belongs to: the one on its port
    /// or socket, else the catch-all one.
    pub fn egress_for_route(&self, port: u32, bind: &str) -> Option<&EgressListener> {
        self.egress.iter().find(|egress| match egress.port() {
            None => true,
            Some(0) => port == 0 && egress.bind() == bind,
            Some(own) => own == port,
        })
    }

    /// Inbound listeners as written; empty if they follow from the services.
    pub fn ingress(&self) -> &[amime_api::networking::IstioIngressListener] {
        self.sidecar.as_ref().map_or(&[], |sidecar| &sidecar.spec.ingress)
    }
}

/// What happens to connections to destinations that nobody has declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownDestinations {
    /// They are refused.
    Refuse,
    /// They go where they were going.
    Allow,
    /// As before, but the host of an HTTP request is resolved anew.
    ByName,
}

impl From<MeshOutboundTrafficMode> for UnknownDestinations {
    fn from(mode: MeshOutboundTrafficMode) -> Self {
        match mode {
            MeshOutboundTrafficMode::RegistryOnly => Self::Refuse,
            MeshOutboundTrafficMode::AllowAny => Self::Allow,
            MeshOutboundTrafficMode::AllowAnyDynamicDns => Self::ByName,
        }
    }
}

impl From<OutboundTrafficMode> for UnknownDestinations {
    fn from(mode: OutboundTrafficMode) -> Self {
        match mode {
            OutboundTrafficMode::RegistryOnly => Self::Refuse,
            OutboundTrafficMode::AllowAny => Self::Allow,
        }
    }
}

/// Inputs that a scope is computed from.
pub(crate) struct ScopeInputs<'a> {
    pub(crate) services: &'a ServiceIndex,
    pub(crate) virtual_services: &'a VirtualServiceIndex,
    /// The mesh's way with unknown destinations.
    pub(crate) unknown: UnknownDestinations,
}

impl ScopeInputs<'_> {
    /// Scope of a gateway.
    pub(crate) fn gateway(&self, namespace: &str) -> SidecarScope {
        let mut union = ServiceUnion::default();
        for service in self.services.visible_in(namespace) {
            union.add(service.clone());
        }
        let egress = EgressListener {
            listener: None,
            services: Vec::new(),
            virtual_services: self.virtual_services.for_gateway(namespace, MESH_GATEWAY),
            most_specific: HashMap::new(),
        };
        SidecarScope {
            namespace: namespace.to_owned(),
            sidecar: None,
            egress: vec![egress],
            services: union.services,
            by_host: union.by_host,
            unknown: UnknownDestinations::Refuse,
            egress_proxy: None,
        }
    }

    /// Scope of sidecars under `sidecar`, or of those without one.
    pub(crate) fn sidecar(
        &self,
        namespace: &str,
        sidecar: Option<Arc<Config<Sidecar>>>,
    ) -> SidecarScope {
        let spec = sidecar.as_ref().map(|config| &config.spec);
        let everything =
            IstioEgressListener { hosts: vec!["*/*".to_owned()], ..Default::default() };
        let listeners = match spec.map(|spec| spec.egress.as_slice()) {
            None | Some([]) => vec![everything],
            Some(listeners) => listeners.to_vec(),
        };
        let egress: Vec<EgressListener> =
            listeners.into_iter().map(|listener| self.egress(namespace, listener)).collect();
        let mut union = ServiceUnion::default();
        for listener in &egress {
            listener.services.iter().for_each(|service| union.add(service.clone()));
            self.add_destinations(namespace, listener, &mut union);
        }
        let policy = spec.and_then(|spec| spec.outbound_traffic_policy.as_ref());
        SidecarScope {
            namespace: namespace.to_owned(),
            unknown: policy.map_or(self.unknown, |policy| policy.mode.into()),
            egress_proxy: policy.and_then(|policy| policy.egress_proxy.clone()),
            sidecar,
            egress,
            services: union.services,
            by_host: union.by_host,
        }
    }

    fn egress(&self, namespace: &str, listener: IstioEgressListener) -> EgressListener {
        let imports = Imports::new(&listener.hosts, namespace);
        let mut egress = EgressListener {
            listener: Some(listener),
            services: Vec::new(),
            virtual_services: imports.virtual_services(self.virtual_services, namespace),
            most_specific: HashMap::new(),
        };
        let visible = self.services.visible_in(namespace);
        egress.services = imports.services(visible, namespace, egress.matched_port());
        egress.most_specific = most_specific(&egress.virtual_services, &egress.services);
        egress
    }

    /// Adds services that imported rules send traffic to.
    fn add_destinations(&self, namespace: &str, egress: &EgressListener, union: &mut ServiceUnion) {
        for rule in &egress.virtual_services {
            for (host, ports) in destinations(rule.spec(), namespace) {
                let Some(candidates) = self.services.by_host(&Hostname::new(host)) else {
                    continue;
                };
                let chosen = candidates
                    .get(namespace)
                    .or_else(|| self.best_visible(candidates.values(), namespace));
                let trimmed = chosen.and_then(|service| match egress.matched_port() {
                    Some(port) => with_port(service, port),
                    None => with_ports(service, &ports),
                });
                if let Some(service) = trimmed {
                    union.add(service);
                }
            }
        }
    }

    /// A Kubernetes service before others, then the oldest.
    fn best_visible<'b>(
        &self,
        candidates: impl Iterator<Item = &'b Arc<Service>>,
        namespace: &str,
    ) -> Option<&'b Arc<Service>> {
        let visible = candidates.filter(|service| self.services.is_visible(service, namespace));
        visible.min_by_key(|service| (service.registry != Registry::Kubernetes, &service.created))
    }
}

/// The service with one port only; `None` if it lacks the port.
fn with_port(service: &Arc<Service>, number: u32) -> Option<Arc<Service>> {
    let port = service.port(number)?;
    if service.ports.len() == 1 {
        return Some(service.clone());
    }
    let ports = vec![Port { udp: false, ..port.clone() }];
    Some(Arc::new(Service { ports, ..Service::clone(service) }))
}

/// The service with the ports that rules name; 0 stands for "any port".
fn with_ports(service: &Arc<Service>, numbers: &BTreeSet<u32>) -> Option<Arc<Service>> {
    if numbers.is_empty() || numbers.contains(&0) {
        return Some(service.clone());
    }
    let named = service.ports.iter().filter(|port| numbers.contains(&port.number));
    let ports: Vec<Port> = named.cloned().collect();
    match ports.len() {
        0 => None,
        all if all == service.ports.len() => Some(service.clone()),
        _ => Some(Arc::new(Service { ports, ..Service::clone(service) })),
    }
}

/// Services by host; the first one stands, some are merged into it.
#[derive(Default)]
struct ServiceUnion {
    services: Vec<Arc<Service>>,
    by_host: HashMap<Hostname, usize>,
}

impl ServiceUnion {
    fn add(&mut self, service: Arc<Service>) {
        let Some(index) = self.by_host.get(&service.hostname).copied() else {
            self.by_host.insert(service.hostname.clone(), self.services.len());
            self.services.push(service);
            return;
        };
        let existing = &mut self.services[index];
        match (existing.registry, service.registry) {
            (Registry::Kubernetes, Registry::External) => {}
            (Registry::External, Registry::Kubernetes) => *existing = service,
            _ if existing.ports != service.ports && mergeable(existing, &service) => {
                let mut merged = Service::clone(existing);
                for port in &service.ports {
                    if merged.port(port.number).is_none() {
                        merged.ports.push(port.clone());
                    }
                }
                *existing = Arc::new(merged);
            }
            _ => {}
        }
    }
}

fn mergeable(a: &Service, b: &Service) -> bool {
    a.namespace == b.namespace
        && a.resolution == b.resolution
        && a.labels == b.labels
        && a.selector == b.selector
        && a.export_to == b.export_to
}

/// Hosts that an egress listener imports, by namespace (`*` = any).
struct Imports {
    by_namespace: BTreeMap<String, HostSet>,
}

#[derive(Default)]
struct HostSet {
    hosts: Vec<Hostname>,
    excluded: Vec<Hostname>,
}

impl HostSet {
    fn excludes(&self, host: &Hostname) -> bool {
        self.excluded.iter().any(|excluded| host.subset_of(excluded))
    }

    fn covers(&self, host: &Hostname) -> bool {
        self.hosts.iter().any(|imported| host.subset_of(imported))
    }

    // A rule for `*.com` is imported by `a.com`, although it covers more.
    fn overlaps(&self, host: &Hostname) -> bool {
        self.hosts.iter().any(|imported| host.matches(imported))
    }
}

impl Imports {
    fn new(hosts: &[String], namespace: &str) -> Self {
        let mut by_namespace: BTreeMap<String, HostSet> = BTreeMap::new();
        for (ns, host) in hosts.iter().filter_map(|entry| entry.split_once('/')) {
            let (ns, excluded) = match ns.strip_prefix('~') {
                // `~/*` imports nothing; `~ns/host` takes one away.
                Some("") if host == "*" => continue,
                Some("") => ("*", true),
                Some(rest) => (rest, true),
                None => (ns, false),
            };
            let ns = if ns == "." { namespace } else { ns };
            let set = by_namespace.entry(ns.to_owned()).or_default();
            let list = if excluded { &mut set.excluded } else { &mut set.hosts };
            list.push(Hostname::new(host));
        }
        Self { by_namespace }
    }

    /// Sets that concern objects of `namespace`: its own, then the one for all.
    fn sets(&self, namespace: &str) -> impl Iterator<Item = &HostSet> {
        [namespace, "*"].into_iter().filter_map(|ns| self.by_namespace.get(ns))
    }

    fn excludes(&self, namespace: &str, host: &Hostname) -> bool {
        self.sets(namespace).any(|set| set.excludes(host))
    }

    fn virtual_services(
        &self,
        index: &VirtualServiceIndex,
        namespace: &str,
    ) -> Vec<Arc<RoutedService>> {
        let mut rules = index.for_gateway(namespace, MESH_GATEWAY);
        let mut seen = BTreeSet::new();
        rules.retain(|rule| {
            let owner = rule.config.namespace();
            let mut hosts = rule.spec().hosts.iter().map(|host| Hostname::new(host.as_str()));
            let imported = hosts.any(|host| {
                let overlaps = self.sets(owner).any(|set| match rule.semantics {
                    RouteSemantics::Gateway => set.covers(&host),
                    _ => set.overlaps(&host),
                });
                overlaps && !self.excludes(owner, &host)
            });
            imported && seen.insert(rule.config.name.clone())
        });
        rules
    }

    fn services<'a>(
        &self,
        visible: impl Iterator<Item = &'a Arc<Service>>,
        namespace: &str,
        port: Option<u32>,
    ) -> Vec<Arc<Service>> {
        let mut imported: Vec<Arc<Service>> =
            visible.filter_map(|service| self.service(service, port)).collect();
        let mut owners: HashMap<Hostname, (String, Registry)> = HashMap::new();
        for service in &imported {
            let own = (service.namespace.clone(), service.registry);
            let takes = match owners.get(&service.hostname) {
                None => true,
                Some(_) if service.namespace == namespace => true,
                Some((owner, registry)) => {
                    *registry == Registry::External
                        && service.registry == Registry::Kubernetes
                        && owner != namespace
                }
            };
            if takes {
                owners.insert(service.hostname.clone(), own);
            }
        }
        imported.retain(|service| {
            owners.get(&service.hostname).is_some_and(|(owner, _)| *owner == service.namespace)
        });
        imported
    }

    fn service(&self, service: &Arc<Service>, port: Option<u32>) -> Option<Arc<Service>> {
        if self.excludes(&service.namespace, &service.hostname) {
            return None;
        }
        let set = self.sets(&service.namespace).find(|set| set.covers(&service.hostname))?;
        let trimmed = match port {
            Some(port) => with_port(service, port)?,
            None => service.clone(),
        };
        if trimmed.aliases.iter().all(|(_, alias)| set.covers(alias)) {
            return Some(trimmed);
        }
        let mut narrowed = Service::clone(&trimmed);
        narrowed.aliases.retain(|(_, alias)| set.covers(alias));
        Some(Arc::new(narrowed))
    }
}

/// For each service, the rule whose host is the most specific one covering it;
/// of equal hosts the first rule counts.
fn most_specific(
    rules: &[Arc<RoutedService>],
    services: &[Arc<Service>],
) -> HashMap<Hostname, NamespacedName> {
    let mut hosts: HashMap<Hostname, &NamespacedName> = HashMap::new();
    for rule in rules {
        for host in &rule.spec().hosts {
            hosts.entry(Hostname::new(host.as_str())).or_insert(&rule.config.name);
        }
    }
    let mut wildcards: Vec<&Hostname> = hosts.keys().filter(|host| host.is_wildcard()).collect();
    wildcards.sort();
    let find = |host: &Hostname| {
        hosts
            .get_key_value(host)
            .map(|(host, _)| host)
            .or_else(|| wildcards.iter().copied().find(|wildcard| host.subset_of(wildcard)))
    };
    let entry = |service: &Arc<Service>| {
        let host = find(&service.hostname)?;
        Some((service.hostname.clone(), NamespacedName::clone(hosts[host])))
    };
    services.iter().filter_map(entry).collect()
}
