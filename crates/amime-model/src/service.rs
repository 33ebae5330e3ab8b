//! Services and the endpoints behind them, whatever registry they come from.
//!
//! Owns the shapes that the rest of the control plane computes with; turning
//! Kubernetes or Istio objects into them is the business of `kube` and
//! `service_entry`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use amime_core::{Hostname, Locality, NamespacedName, Protocol};

/// Address of a service without a virtual IP.
pub const UNSPECIFIED_V4: &str = "0.0.0.0";
/// Its IPv6 form.
pub const UNSPECIFIED_V6: &str = "::";

/// Labels of a workload or a selector.
pub type Labels = BTreeMap<String, String>;

/// True if every label of `selector` is among `labels`.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name; unique within the service as far as the author kept to the rules.
    pub name: String,
    /// Number that clients dial.
    pub number: u32,
    /// Declared protocol.
    pub protocol: Protocol,
    /// True for datagram ports, which no proxy handles.
    pub udp: bool,
}

/// How a client finds the endpoints of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The control plane sends them.
    Static,
    /// The proxy resolves names and balances over all answers.
    Dns,
    /// The proxy resolves names and uses one answer at a time.
    DnsRoundRobin,
    /// The address that the client dialed.
    Passthrough,
    /// Another service stands behind it (Kubernetes `ExternalName`).
    Alias,
    /// The proxy resolves the name in the request.
    DynamicDns,
}

/// Where a service was declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registry {
    /// A Kubernetes Service.
    Kubernetes,
    /// A ServiceEntry.
    External,
}

impl Registry {
    /// Name as it stands in the DNS name table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kubernetes => "Kubernetes",
            Self::External => "External",
        }
    }
}

/// Namespaces that may see an object: `*`, `.`, `~` or names; empty = default.
pub type ExportTo = BTreeSet<String>;

/// What a client can address.
///
/// A ServiceEntry with several addresses yields one `Service` an address, all
/// with the same host name.
#[derive(Clone, Debug)]
pub struct Service {
    /// Fully qualified host name.
    pub hostname: Hostname,
    /// Service name for Kubernetes, the host for a ServiceEntry.
    pub name: String,
    /// Namespace of the declaring object.
    pub namespace: String,
    /// Object that declares it (differs from `name` for a ServiceEntry).
    pub object: NamespacedName,
    /// Registry.
    pub registry: Registry,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Outside the mesh: no mutual TLS by default.
    pub mesh_external: bool,
    /// Virtual IP, CIDR, or [`UNSPECIFIED_V4`].
    pub address: String,
    /// All cluster IPs of a Kubernetes service.
    pub cluster_ips: Vec<String>,
    /// Virtual IPs that were allocated for a ServiceEntry without addresses.
    pub allocated: Vec<IpAddr>,
    /// Virtual IPs that follow from the host, for proxies that ask for them.
    pub derived: Vec<IpAddr>,
    /// Ports in declaration order.
    pub ports: Vec<Port>,
    /// Labels of the declaring object.
    pub labels: Labels,
    /// Workload selector; `None` if it has none.
    pub selector: Option<Labels>,
    /// Visibility; empty means the mesh default.
    pub export_to: ExportTo,
    /// Identities that endpoints may have in addition to their own.
    pub service_accounts: Vec<String>,
    /// Creation time as written, an order key; empty sorts first.
    pub created: String,
    /// Host that an alias stands for.
    pub alias_of: Option<Hostname>,
    /// Aliases of this service, sorted by namespace and host.
    pub aliases: Vec<(String, Hostname)>,
    /// Port overrides of a passthrough ServiceEntry: service port → target.
    pub passthrough_ports: BTreeMap<u32, u32>,
    /// Endpoints count although they are not ready.
    pub publish_not_ready: bool,
    /// Which endpoints its clients should prefer.
    pub traffic_distribution: TrafficDistribution,
}

/// Which endpoints clients of a service should prefer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// None in particular.
    #[default]
    Any,
    /// Those of the same zone, then region, then network.
    SameZone,
    /// Those of the same node, then as for the zone.
    SameNode,
}

impl TrafficDistribution {
    /// Annotation of services and namespaces that asks for it.
    const ANNOTATION: &str = "networking.istio.io/traffic-distribution";

    /// The wish of a service: in its spec, else in its annotation, else in that
    /// of its namespace.
    pub(crate) fn of(spec: &str, service: &Labels, namespace: &Labels) -> Self {
        if let Some(own) = Self::parse(spec) {
            return own;
        }
        // An annotation that cannot be read does not fall through.
        let own = service.get(Self::ANNOTATION).or_else(|| namespace.get(Self::ANNOTATION));
        own.and_then(|text| Self::parse(text)).unwrap_or_default()
    }

    fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "preferclose" | "prefersamezone" => Some(Self::SameZone),
            "prefersamenode" => Some(Self::SameNode),
            _ => None,
        }
    }
}

/// Labels of services whose clients stay with an endpoint.
const SESSION_LABELS: [&str; 2] =
    ["istio.io/persistent-session", "istio.io/persistent-session-header"];

impl Service {
    /// True if clients stay with an endpoint until it is gone.
    pub fn keeps_sessions(&self) -> bool {
        let labels = SESSION_LABELS.iter().filter_map(|label| self.labels.get(*label));
        labels.into_iter().any(|value| !value.is_empty())
    }

    /// The port with this number.
    pub fn port(&self, number: u32) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Key under which its endpoints are kept.
    pub fn key(&self) -> ServiceKey {
        ServiceKey { namespace: self.namespace.clone(), hostname: self.hostname.clone() }
    }

    /// Address at which a proxy with this view listens for it.
    pub fn address_for(&self, view: AddressView) -> String {
        if view.in_cluster
            && let Some(ip) = self.cluster_ips.iter().find(|ip| view.supports(ip))
        {
            return ip.clone();
        }
        if view.uses_allocated && self.address == UNSPECIFIED_V4 {
            let mine = |ip: &&IpAddr| if ip.is_ipv4() { view.v4 } else { view.v6 };
            if let Some(ip) = self.own_addresses(view).iter().find(mine) {
                return ip.to_string();
            }
        }
        self.address.clone()
    }

    /// Addresses that the control plane chose.
    fn own_addresses(&self, view: AddressView) -> &[IpAddr] {
        match self.allocated.as_slice() {
            [] if view.uses_derived => &self.derived,
            allocated => allocated,
        }
    }

    /// Every address a proxy with this view may use for it.
    pub fn addresses_for(&self, view: AddressView) -> Vec<String> {
        let mut addresses: Vec<String> =
            if view.in_cluster { self.cluster_ips.clone() } else { Vec::new() };
        if addresses.is_empty() && view.uses_allocated {
            addresses = self.own_addresses(view).iter().map(IpAddr::to_string).collect();
        }
        addresses.retain(|address| view.supports(address));
        if !addresses.is_empty() || self.address.is_empty() {
            return addresses;
        }
        if !self.cluster_ips.is_empty() && !view.supports(&self.address) {
            return Vec::new();
        }
        vec![self.address.clone()]
    }
}

/// Which of a service's addresses make sense to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressView {
    /// The proxy runs in the cluster whose IPs Kubernetes services carry.
    pub in_cluster: bool,
    /// The proxy has an IPv4 address.
    pub v4: bool,
    /// The proxy has an IPv6 address.
    pub v6: bool,
    /// The proxy answers DNS itself, so allocated addresses reach it.
    pub uses_allocated: bool,
    /// It asks for addresses where none was allocated.
    pub uses_derived: bool,
}

impl AddressView {
    fn supports(self, address: &str) -> bool {
        let ip = address.split('/').next().unwrap_or(address);
        match ip.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => self.v4,
            Ok(IpAddr::V6(_)) => self.v6,
            Err(_) => false,
        }
    }
}

/// Namespace and host: what endpoints belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace of the service.
    pub namespace: String,
    /// Host name.
    pub hostname: Hostname,
}

/// Readiness of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Takes traffic.
    Healthy,
    /// Listed, but not ready.
    Unhealthy,
    /// On its way out but still serving.
    Draining,
    /// On its way out.
    Terminating,
}

/// One address behind one port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// IP address, DNS name, or path of a Unix socket (then `port` is 0).
    pub address: String,
    /// Port that the workload listens on.
    pub port: u32,
    /// Name of the service port it serves.
    pub port_name: String,
    /// Labels of the workload.
    pub labels: Arc<Labels>,
    /// Where it runs.
    pub locality: Locality,
    /// SPIFFE identity; empty if unknown.
    pub service_account: String,
    /// The workload speaks mesh mutual TLS (`security.istio.io/tlsMode`).
    pub tls_mode: String,
    /// Namespace of the workload.
    pub namespace: String,
    /// Name of the workload (the controller of a pod).
    pub workload: String,
    /// Readiness.
    pub health: Health,
    /// Load-balancing weight, at least 1.
    pub weight: u32,
    /// Network it is on; empty = the default one.
    pub network: String,
    /// Host name of a pod of a StatefulSet.
    pub hostname: String,
    /// Headless service that governs the pod.
    pub subdomain: String,
}

/// Value of `tls_mode` for workloads with a mesh identity.
pub const TLS_MODE_ISTIO: &str = "istio";
/// Value of `tls_mode` for all others.
pub const TLS_MODE_DISABLED: &str = "disabled";
/// Label that declares it.
pub const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";

impl Endpoint {
    /// True if the address is an IP address.
    pub fn is_ip(&self) -> bool {
        self.address.parse::<IpAddr>().is_ok()
    }
}

/// Endpoints of one service by service port number.
pub type PortEndpoints = BTreeMap<u32, Vec<Arc<Endpoint>>>;

/// A port of a service that a given workload serves.
#[derive(Clone, Debug)]
pub struct ServiceTarget {
    /// The service.
    pub service: Arc<Service>,
    /// Its port.
    pub port: Port,
    /// Port that the workload listens on.
    pub target_port: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(in_cluster: bool, v4: bool, v6: bool) -> AddressView {
        AddressView { in_cluster, v4, v6, uses_allocated: false, uses_derived: false }
    }

    fn service(address: &str, cluster_ips: &[&str]) -> Service {
        Service {
            hostname: Hostname::new("a.ns.svc.cluster.local"),
            name: "a".into(),
            namespace: "ns".into(),
            object: NamespacedName::new("ns", "a"),
            registry: Registry::Kubernetes,
            resolution: Resolution::Static,
            mesh_external: false,
            address: address.into(),
            cluster_ips: cluster_ips.iter().map(|ip| (*ip).to_owned()).collect(),
            derived: Vec::new(),
            allocated: vec!["240.240.0.1".parse().expect("an address")],
            ports: Vec::new(),
            labels: Labels::new(),
            selector: None,
            export_to: ExportTo::new(),
            service_accounts: Vec::new(),
            created: String::new(),
            alias_of: None,
            aliases: Vec::new(),
            passthrough_ports: BTreeMap::new(),
            publish_not_ready: false,
            traffic_distribution: TrafficDistribution::Any,
        }
    }

    #[test]
    fn a_proxy_uses_the_cluster_ip_of_its_family() {
        let dual = service("10.0.0.1", &["10.0.0.1", "fd00::1"]);
        assert_eq!(dual.address_for(view(true, false, true)), "fd00::1");
        assert_eq!(dual.address_for(view(false, false, true)), "10.0.0.1");
        assert_eq!(dual.addresses_for(view(true, true, true)), ["10.0.0.1", "fd00::1"]);
        assert!(
            service("10.0.0.1", &["10.0.0.1"]).addresses_for(view(true, false, true)).is_empty()
        );
    }

    #[test]
    fn allocated_addresses_serve_proxies_that_answer_dns() {
        let entry = service(UNSPECIFIED_V4, &[]);
        assert_eq!(entry.address_for(view(true, true, false)), UNSPECIFIED_V4);
        let dns = AddressView { uses_allocated: true, ..view(true, true, false) };
        assert_eq!(entry.address_for(dns), "240.240.0.1");
    }
}
