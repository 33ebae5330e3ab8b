//! The servers of all gateways that one workload runs, merged.
//!
//! Invariant: what is left can stand in one Envoy: one protocol a port and
//! address, no server name twice.

use std::collections::{BTreeMap, BTreeSet};

use amime_api::networking::{Gateway, Server, ServerTlsMode};
use amime_core::{Hostname, NamespacedName, Protocol};
use amime_model::{Config, Port, ServiceTarget, selects};

use crate::context::Context;

/// Annotation of a gateway that is bound to services instead of to labels.
const SERVICES: &str = "internal.istio.io/gateway-service";
/// Label of a service whose ports gateways do not translate.
const NO_PORT_TRANSLATION: &str = "experimental.istio.io/disable-gateway-port-translation";

/// One server of a gateway.
#[derive(Clone, Debug)]
pub(crate) struct GatewayServer {
    /// The server, hosts with their namespace spelled out.
    pub(crate) spec: Server,
    /// `namespace/name` of its gateway.
    pub(crate) gateway: String,
    pub(crate) name: NamespacedName,
    /// Position in the gateway.
    pub(crate) index: usize,
    /// Route configuration, if it routes HTTP.
    pub(crate) route: String,
}

impl GatewayServer {
    /// The port as written, which names virtual hosts.
    pub(crate) fn port_number(&self) -> u32 {
        self.spec.port.as_ref().map_or(0, |port| port.number)
    }

    /// The port as written, as if it were a service's.
    pub(crate) fn port(&self) -> Port {
        let name = self.spec.port.as_ref().map_or_else(String::new, |port| port.name.clone());
        Port { name, number: self.port_number(), protocol: self.protocol(), udp: false }
    }

    pub(crate) fn protocol(&self) -> Protocol {
        protocol_of(&self.spec)
    }

    pub(crate) fn redirects_to_https(&self) -> bool {
        self.spec.tls.as_ref().is_some_and(|tls| tls.https_redirect)
    }

    /// True if TLS goes through to the destination.
    pub(crate) fn passes_tls(&self) -> bool {
        passes_tls(&self.spec)
    }

    /// True if it can be offered over HTTP/3 too. Clients of QUIC show no
    /// certificates, so a server that demands one stays with TCP.
    fn may_use_quic(&self) -> bool {
        let tls = self.spec.tls.as_ref();
        self.terminates_https()
            && tls.is_some_and(|tls| {
                !matches!(tls.mode, ServerTlsMode::Mutual | ServerTlsMode::IstioMutual)
            })
    }

    /// True if it is HTTP behind TLS that ends here.
    pub(crate) fn terminates_https(&self) -> bool {
        self.spec.tls.is_some() && self.protocol() == Protocol::Https && !self.passes_tls()
    }

    /// Server names without namespaces, sorted.
    pub(crate) fn sni_hosts(&self) -> Vec<String> {
        let bare = |host: &String| host.rsplit('/').next().unwrap_or(host).to_owned();
        let hosts: BTreeSet<String> = self.spec.hosts.iter().map(bare).collect();
        hosts.into_iter().collect()
    }

    /// The rule in the gateway, for the origin of what is made of it.
    pub(crate) fn rule(&self) -> String {
        format!("servers[{}]", self.index)
    }
}

fn protocol_of(server: &Server) -> Protocol {
    let text = server.port.as_ref().map_or("", |port| port.protocol.as_str());
    text.parse().unwrap_or(Protocol::Auto)
}

fn passes_tls(server: &Server) -> bool {
    server.tls.as_ref().is_some_and(|tls| {
        matches!(tls.mode, ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough)
    })
}

/// TLS that is more than a redirect to it.
fn has_tls(server: &Server) -> bool {
    server.tls.is_some() && !protocol_of(server).is_http()
}

fn routes_http(server: &Server) -> bool {
    let protocol = protocol_of(server);
    protocol.is_http() || (protocol == Protocol::Https && !passes_tls(server))
}

/// Where servers meet: port, protocol and address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServerPort {
    pub(crate) number: u32,
    pub(crate) protocol: String,
    pub(crate) bind: String,
}

/// Servers that share a listener.
#[derive(Clone, Debug, Default)]
pub(crate) struct MergedServers {
    pub(crate) servers: Vec<GatewayServer>,
    /// Route configuration of plaintext HTTP servers.
    pub(crate) route: String,
}

/// All servers of one workload.
#[derive(Debug, Default)]
pub(crate) struct MergedGateway {
    /// In order of appearance.
    pub(crate) ports: Vec<ServerPort>,
    merged: BTreeMap<ServerPort, MergedServers>,
    by_route: BTreeMap<String, Vec<GatewayServer>>,
    /// Those that are there over HTTP/3 too.
    quic: BTreeMap<ServerPort, Vec<GatewayServer>>,
    auto_passthrough: bool,
}

impl MergedGateway {
    pub(crate) fn build(context: &Context<'_>) -> Self {
        let mut merging = Merging::default();
        for gateway in context.snapshot.gateways() {
            let Some(binding) = Binding::of(context, gateway) else { continue };
            for (index, server) in gateway.spec.servers.iter().enumerate() {
                let Some(port) = &server.port else { continue };
                merging.quic = context.proxy.takes_quic() && binding.has_datagrams(port.number);
                for number in binding.ports(port.number) {
                    merging.add(gateway_server(gateway, index, server, number), number);
                }
            }
        }
        merging.gateway
    }

    /// Servers that share a listener.
    pub(crate) fn servers(&self, port: &ServerPort) -> Option<&MergedServers> {
        self.merged.get(port)
    }

    /// Servers that share a listener for HTTP/3.
    pub(crate) fn quic_servers(&self, port: &ServerPort) -> &[GatewayServer] {
        self.quic.get(port).map_or(&[], Vec::as_slice)
    }

    /// True if clients are to be told that what is behind this route
    /// configuration is there over HTTP/3 too.
    pub(crate) fn advertises_http3(&self, route: &str) -> bool {
        self.quic.values().flatten().any(|server| server.route == route)
    }

    /// Servers behind a route configuration.
    pub(crate) fn servers_of_route(&self, route: &str) -> Vec<GatewayServer> {
        self.by_route.get(route).cloned().unwrap_or_default()
    }

    /// Names of all route configurations.
    pub(crate) fn route_names(&self) -> impl Iterator<Item = &String> {
        self.by_route.keys()
    }

    /// Every server that has a place.
    pub(crate) fn all_servers(&self) -> impl Iterator<Item = &GatewayServer> {
        self.merged.values().flat_map(|merged| &merged.servers)
    }

    /// True if some server picks clusters by SNI on its own.
    pub(crate) fn auto_passthrough(&self) -> bool {
        self.auto_passthrough
    }
}

/// How a gateway and a workload belong together.
enum Binding<'t> {
    /// By the workload's labels.
    Labels(&'t [ServiceTarget]),
    /// By services of the gateway's namespace that the workload serves.
    Services(Vec<&'t ServiceTarget>),
}

impl<'t> Binding<'t> {
    /// `None` if the workload does not run the gateway.
    fn of(context: &'t Context<'_>, gateway: &Config<Gateway>) -> Option<Self> {
        let Some(services) = gateway.annotations.get(SERVICES) else {
            let own = selects(&gateway.spec.selector, &context.labels);
            return own.then(|| Self::Labels(context.targets()));
        };
        let named = |target: &&ServiceTarget| {
            target.service.namespace == gateway.namespace()
                && services.split(',').any(|host| host == target.service.hostname.as_str())
        };
        let targets: Vec<&ServiceTarget> = context.targets().iter().filter(named).collect();
        (!targets.is_empty()).then_some(Self::Services(targets))
    }

    /// True if a service of the workload has this port for UDP.
    fn has_datagrams(&self, number: u32) -> bool {
        let is = |target: &&ServiceTarget| target.port.udp && target.port.number == number;
        match self {
            Self::Labels(targets) => targets.iter().any(|target| is(&target)),
            Self::Services(targets) => targets.iter().any(is),
        }
    }

    /// Ports that the workload listens on for a server's port.
    ///
    /// A gateway that is bound by labels may name either port, so a number that
    /// no service has stands for itself; services are named for their ports.
    fn ports(&self, number: u32) -> Vec<u32> {
        match self {
            Self::Labels(targets) => {
                let translates =
                    |t: &&ServiceTarget| !t.service.labels.contains_key(NO_PORT_TRANSLATION);
                let mut own = targets.iter().filter(translates);
                let own = own.find(|target| target.port.number == number);
                vec![own.map_or(number, |target| target.target_port)]
            }
            Self::Services(targets) => {
                let own = targets.iter().filter(|target| target.port.number == number);
                let ports: BTreeSet<u32> = own.map(|target| target.target_port).collect();
                ports.into_iter().collect()
            }
        }
    }
}

fn gateway_server(
    gateway: &Config<Gateway>,
    index: usize,
    server: &Server,
    port: u32,
) -> GatewayServer {
    let namespace = gateway.namespace();
    let mut spec = server.clone();
    let mut everything = false;
    for host in &mut spec.hosts {
        *host = match host.split_once('/') {
            Some((".", name)) => format!("{namespace}/{name}"),
            Some(("*", "*")) => {
                everything = true;
                "*".to_owned()
            }
            Some(("*", name)) => name.to_owned(),
            _ => host.clone(),
        };
    }
    if everything {
        spec.hosts = vec!["*".to_owned()];
    }
    GatewayServer {
        route: route_name(&spec, port, &gateway.name),
        spec,
        gateway: gateway.name.to_string(),
        name: gateway.name.clone(),
        index,
    }
}

/// Plaintext servers share a configuration a port; each HTTPS server has its own.
fn route_name(server: &Server, port: u32, gateway: &NamespacedName) -> String {
    let bind = match server.bind.as_str() {
        "" => String::new(),
        bind => format!(".{bind}"),
    };
    let protocol = protocol_of(server);
    if protocol.is_http() {
        return format!("http.{port}{bind}");
    }
    if protocol == Protocol::Https && !passes_tls(server) {
        let own = server.port.as_ref();
        let (number, name) = own.map_or((0, ""), |port| (port.number, port.name.as_str()));
        let NamespacedName { namespace, name: gateway } = gateway;
        return format!("https.{number}.{name}.{gateway}.{namespace}{bind}");
    }
    String::new()
}

/// The merge in progress.
#[derive(Default)]
struct Merging {
    gateway: MergedGateway,
    used_ports: BTreeSet<u32>,
    plaintext: BTreeMap<u32, ServerPort>,
    tls_binds: BTreeSet<(u32, String)>,
    tls_hosts: BTreeMap<u32, BTreeMap<String, String>>,
    /// The server at hand has a port for QUIC, should it be able to use it.
    quic: bool,
}

impl Merging {
    fn add(&mut self, server: GatewayServer, port: u32) {
        if let Some(tls) = &server.spec.tls {
            let known = self.tls_hosts.entry(port).or_default();
            if !claim_hosts(&server.spec.hosts, &server.spec.bind, known) {
                return;
            }
            self.gateway.auto_passthrough |= tls.mode == ServerTlsMode::AutoPassthrough;
        }
        let protocol = server.spec.port.as_ref().map_or("", |p| p.protocol.as_str()).to_owned();
        let place = ServerPort { number: port, protocol, bind: server.spec.bind.clone() };
        if self.used_ports.insert(port) {
            self.add_plain(server, place);
        } else if let Some(current) = self.plaintext.get(&port).cloned() {
            self.add_beside_plaintext(server, place, &current);
        } else if has_tls(&server.spec) {
            self.add_tls(server, place);
        } else {
            // Plaintext on a port with TLS, possibly on another address.
            self.plaintext.insert(port, place.clone());
            self.add_plain(server, place);
        }
    }

    fn add_plain(&mut self, server: GatewayServer, place: ServerPort) {
        if !has_tls(&server.spec) {
            self.plaintext.insert(place.number, place.clone());
        }
        let route = server.route.clone();
        if routes_http(&server.spec) {
            self.gateway.by_route.insert(route.clone(), vec![server.clone()]);
        }
        if !self.gateway.merged.contains_key(&place) {
            self.gateway.ports.push(place.clone());
        }
        self.mirror(&server, &place);
        self.gateway.merged.insert(place, MergedServers { servers: vec![server], route });
    }

    /// Offers a server over HTTP/3 too.
    fn mirror(&mut self, server: &GatewayServer, place: &ServerPort) {
        if self.quic && server.may_use_quic() {
            self.gateway.quic.entry(place.clone()).or_default().push(server.clone());
        }
    }

    fn add_beside_plaintext(
        &mut self,
        server: GatewayServer,
        place: ServerPort,
        current: &ServerPort,
    ) {
        let same_bind = current.bind == place.bind;
        let existing: Protocol = current.protocol.parse().unwrap_or(Protocol::Auto);
        let mergeable =
            (server.protocol().is_http() || server.protocol() == existing) && existing.is_http();
        // Opaque TCP cannot be told apart, and HTTP not from it.
        if same_bind && (!mergeable || server.route.is_empty()) {
            return;
        }
        if !same_bind && !self.gateway.merged.contains_key(&place) {
            self.add_plain(server, place);
            return;
        }
        let own = if same_bind { current } else { &place };
        let route = server.route.clone();
        let merged = self.gateway.merged.entry(own.clone()).or_default();
        merged.servers.push(server.clone());
        if !same_bind {
            merged.route.clone_from(&route);
        }
        self.gateway.by_route.entry(route).or_default().push(server);
    }

    fn add_tls(&mut self, server: GatewayServer, place: ServerPort) {
        if routes_http(&server.spec) {
            // Each HTTPS server needs a route configuration of its own.
            if server.route.is_empty() || self.gateway.by_route.contains_key(&server.route) {
                return;
            }
            self.gateway.by_route.insert(server.route.clone(), vec![server.clone()]);
        }
        let new_bind = self.tls_binds.insert((place.number, place.bind.clone()));
        if server.spec.tls.is_none() && !new_bind {
            return;
        }
        if !self.gateway.merged.contains_key(&place) {
            self.gateway.ports.push(place.clone());
        }
        self.mirror(&server, &place);
        self.gateway.merged.entry(place).or_default().servers.push(server);
    }
}

/// Takes server names on an address; false if one of them is taken.
pub(crate) fn claim_hosts(
    hosts: &[String],
    bind: &str,
    known: &mut BTreeMap<String, String>,
) -> bool {
    if hosts.iter().any(|host| known.get(host).is_some_and(|own| own == bind)) {
        return false;
    }
    known.extend(hosts.iter().map(|host| (host.clone(), bind.to_owned())));
    true
}

/// Hosts of a server that rules of `namespace` may use, without namespaces.
pub(crate) fn visible_hosts(hosts: &[String], namespace: &str) -> Vec<Hostname> {
    let own = |host: &String| match host.split_once('/') {
        Some((ns, name)) => (ns == namespace || ns == "*").then(|| Hostname::new(name)),
        None => Some(Hostname::new(host.as_str())),
    };
    hosts.iter().filter_map(own).collect()
}

/// Hosts that both lists cover, the narrower one of each pair.
pub(crate) fn intersect(own: &[Hostname], other: &[Hostname]) -> Vec<Hostname> {
    let mut shared: Vec<Hostname> = Vec::new();
    for a in own {
        for b in other {
            let narrower = if a.subset_of(b) {
                a
            } else if b.subset_of(a) {
                b
            } else {
                continue;
            };
            if !shared.contains(narrower) {
                shared.push(narrower.clone());
            }
        }
    }
    shared
}
