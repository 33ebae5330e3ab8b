//! Services that a ServiceEntry declares, and their endpoints.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use amime_api::Object;
use amime_api::meta::ObjectMeta;
use amime_api::networking::{Location, Resolution as Declared, ServiceEntry, ServicePort};
use amime_core::{Hostname, NamespacedName, Protocol};

use crate::service::{
    Endpoint, Health, Port, PortEndpoints, Registry, Resolution, Service, TLS_MODE_DISABLED,
    TrafficDistribution, UNSPECIFIED_V4, selects,
};
use crate::workload::Workload;

/// One service for each host and each of its addresses.
pub(crate) fn services(object: &Object<ServiceEntry>) -> Vec<Service> {
    let entry = &object.spec;
    let mut services = Vec::new();
    for host in &entry.hosts {
        if entry.addresses.is_empty() {
            let mut service = service(object, host, UNSPECIFIED_V4.to_owned());
            service.allocated = allocated(object, host);
            services.push(service);
            continue;
        }
        let addresses = entry.addresses.iter().filter_map(|address| single_address(address));
        services.extend(addresses.map(|address| service(object, host, address)));
    }
    services
}

/// The address as clients dial it: a range of one address is that address.
fn single_address(text: &str) -> Option<String> {
    if text.parse::<IpAddr>().is_ok() {
        return Some(text.to_owned());
    }
    let net: ipnet::IpNet = text.parse().ok()?;
    let whole = net.prefix_len() == net.max_prefix_len();
    Some(if whole { net.addr().to_string() } else { text.to_owned() })
}

fn allocated(object: &Object<ServiceEntry>, host: &str) -> Vec<IpAddr> {
    let addresses = object.status.as_ref().and_then(|status| status.get("addresses"));
    let addresses = addresses.and_then(|list| list.as_array()).into_iter().flatten();
    let own = addresses.filter(|a| a.get("host").is_none_or(|h| h.as_str() == Some(host)));
    own.filter_map(|a| a.get("value")?.as_str()?.parse().ok()).collect()
}

fn service(object: &Object<ServiceEntry>, host: &str, address: String) -> Service {
    let (meta, entry) = (&object.metadata, &object.spec);
    let resolution = match entry.resolution {
        Declared::None => Resolution::Passthrough,
        Declared::Static => Resolution::Static,
        Declared::Dns => Resolution::Dns,
        Declared::DnsRoundRobin => Resolution::DnsRoundRobin,
        Declared::DynamicDns => Resolution::DynamicDns,
    };
    let redirected = entry.ports.iter().filter(|port| port.target_port != 0);
    let passthrough_ports = match resolution {
        Resolution::Passthrough => redirected.map(|p| (p.number, p.target_port)).collect(),
        _ => BTreeMap::new(),
    };
    Service {
        hostname: Hostname::new(host),
        name: host.to_owned(),
        namespace: meta.namespace.clone(),
        object: NamespacedName::new(meta.namespace.clone(), meta.name.clone()),
        registry: Registry::External,
        resolution,
        mesh_external: entry.location == Location::MeshExternal,
        address,
        cluster_ips: Vec::new(),
        allocated: Vec::new(),
        derived: Vec::new(),
        ports: entry.ports.iter().map(port).collect(),
        labels: meta.labels.clone(),
        selector: entry.workload_selector.as_ref().map(|selector| selector.labels.clone()),
        export_to: entry.export_to.iter().cloned().collect(),
        service_accounts: entry.subject_alt_names.clone(),
        created: meta.creation_timestamp.clone().unwrap_or_default(),
        alias_of: None,
        aliases: Vec::new(),
        passthrough_ports,
        publish_not_ready: false,
        traffic_distribution: TrafficDistribution::Any,
    }
}

fn port(port: &ServicePort) -> Port {
    let protocol = port.protocol.parse().unwrap_or(Protocol::Auto);
    Port { name: port.name.clone(), number: port.number, protocol, udp: protocol == Protocol::Udp }
}

/// Endpoints of one of the entry's services.
///
/// `workloads` are those of the entry's namespace, each kind sorted by name; pods
/// come first.
pub(crate) fn endpoints(
    object: &Object<ServiceEntry>,
    service: &Service,
    workloads: &[Arc<Workload>],
    trust_domain: &str,
) -> PortEndpoints {
    let (meta, entry) = (&object.metadata, &object.spec);
    let resolves = matches!(service.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    let mut found = PortEndpoints::new();
    let mut add = |workload: &Workload| {
        for port in &entry.ports {
            let mapped = workload.ports.get(&port.name).copied().filter(|number| *number > 0);
            let mapped = mapped.filter(|_| !workload.is_pod);
            let target = mapped.unwrap_or_else(|| own_target(port));
            if let Some(endpoint) = workload.endpoint(target, &port.name) {
                found.entry(port.number).or_default().push(Arc::new(endpoint));
            }
        }
    };
    if let Some(selector) = &service.selector {
        let usable = |w: &&Arc<Workload>| {
            let address = w.addresses.first().map(String::as_str).unwrap_or_default();
            resolves || address.is_empty() || address.parse::<IpAddr>().is_ok()
        };
        let of_kind = |pods: bool| workloads.iter().filter(move |w| w.is_pod == pods);
        let all = of_kind(true).chain(of_kind(false));
        let selected = all.filter(|w| selects(selector, w.labels()));
        selected.filter(usable).for_each(|w| add(w));
    } else if entry.endpoints.is_empty() && resolves {
        return by_name(object, service);
    } else {
        for (index, endpoint) in entry.endpoints.iter().enumerate() {
            let meta = ObjectMeta {
                name: format!("{}-{index}", meta.name),
                namespace: meta.namespace.clone(),
                ..ObjectMeta::default()
            };
            add(&Workload::from_entry(endpoint, &meta, trust_domain));
        }
    }
    found
}

fn own_target(port: &ServicePort) -> u32 {
    if port.target_port > 0 { port.target_port } else { port.number }
}

/// An entry without endpoints stands for the host itself.
fn by_name(object: &Object<ServiceEntry>, service: &Service) -> PortEndpoints {
    let endpoint = |port: &ServicePort| Endpoint {
        address: service.hostname.to_string(),
        port: own_target(port),
        port_name: port.name.clone(),
        labels: Arc::default(),
        locality: amime_core::Locality::default(),
        service_account: String::new(),
        tls_mode: TLS_MODE_DISABLED.to_owned(),
        namespace: object.metadata.namespace.clone(),
        workload: object.metadata.name.clone(),
        health: Health::Healthy,
        weight: 1,
        network: String::new(),
        hostname: String::new(),
        subdomain: String::new(),
    };
    let ports = object.spec.ports.iter();
    ports.map(|port| (port.number, vec![Arc::new(endpoint(port))])).collect()
}
