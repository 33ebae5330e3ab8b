//! Kubernetes services and what stands behind them.

use std::collections::BTreeMap;
use std::sync::Arc;

use amime_api::Object;
use amime_api::k8s::{
    EndpointSlice, Endpoints, IntOrString, ServicePort, ServiceSpec, SliceEndpoint,
    SliceEndpointConditions,
};
use amime_core::{Hostname, NamespacedName, Protocol, SpiffeId};

use crate::names::service_host;
use crate::service::{
    Endpoint, Health, Labels, Port, PortEndpoints, Registry, Resolution, Service,
    TLS_MODE_DISABLED, TrafficDistribution, UNSPECIFIED_V4,
};
use crate::workload::Workload;

/// Label that ties an endpoint slice to its service.
pub(crate) const SLICE_SERVICE_LABEL: &str = "kubernetes.io/service-name";
const EXPORT_TO: &str = "networking.istio.io/exportTo";
const CANONICAL_ACCOUNTS: &str = "alpha.istio.io/canonical-serviceaccounts";
const KUBERNETES_ACCOUNTS: &str = "alpha.istio.io/kubernetes-serviceaccounts";

/// The service in the mesh's terms; `namespace` are annotations of its namespace.
pub(crate) fn service(
    object: &Object<ServiceSpec>,
    trust_domain: &str,
    namespace: &Labels,
) -> Service {
    let (meta, spec) = (&object.metadata, &object.spec);
    let alias_of = (spec.r#type == "ExternalName" && !spec.external_name.is_empty())
        .then(|| Hostname::new(spec.external_name.as_str()));
    let headless = spec.cluster_ip == "None";
    let resolution = match (headless, &alias_of) {
        (true, _) => Resolution::Passthrough,
        (false, Some(_)) => Resolution::Alias,
        (false, None) => Resolution::Static,
    };
    let cluster_ips = match spec.cluster_ip.as_str() {
        "" | "None" => vec![UNSPECIFIED_V4.to_owned()],
        _ if spec.cluster_ips.len() > 1 => spec.cluster_ips.clone(),
        ip => vec![ip.to_owned()],
    };
    let list = |key: &str| {
        let text = meta.annotations.get(key).map(String::as_str).unwrap_or_default();
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(str::to_owned).collect::<Vec<_>>()
    };
    let mut service_accounts = list(CANONICAL_ACCOUNTS);
    let spiffe = |sa: String| SpiffeId::new(trust_domain, &*meta.namespace, sa).to_string();
    service_accounts.extend(list(KUBERNETES_ACCOUNTS).into_iter().map(spiffe));
    Service {
        hostname: Hostname::new(service_host(&meta.name, &meta.namespace)),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        object: NamespacedName::new(meta.namespace.clone(), meta.name.clone()),
        registry: Registry::Kubernetes,
        resolution,
        mesh_external: alias_of.is_some(),
        address: cluster_ips[0].clone(),
        cluster_ips,
        allocated: Vec::new(),
        derived: Vec::new(),
        ports: spec.ports.iter().map(port).collect(),
        labels: meta.labels.clone(),
        selector: (!spec.selector.is_empty()).then(|| spec.selector.clone()),
        export_to: list(EXPORT_TO).into_iter().collect(),
        service_accounts,
        created: meta.creation_timestamp.clone().unwrap_or_default(),
        alias_of,
        aliases: Vec::new(),
        passthrough_ports: BTreeMap::new(),
        publish_not_ready: spec.publish_not_ready_addresses,
        traffic_distribution: TrafficDistribution::of(
            &spec.traffic_distribution,
            &meta.annotations,
            namespace,
        ),
    }
}

fn port(port: &ServicePort) -> Port {
    let udp = port.protocol.eq_ignore_ascii_case("UDP");
    let protocol = if udp {
        Protocol::Udp
    } else {
        Protocol::from_port(&port.name, port.app_protocol.as_deref(), port.port)
    };
    Port { name: port.name.clone(), number: u32::from(port.port), protocol, udp }
}

/// Port that a workload listens on for a service port; `None` if it does not
/// have the named one.
pub(crate) fn target_port(port: &ServicePort, workload: Option<&Workload>) -> Option<u32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(u32::from(port.port)),
        Some(IntOrString::Int(number)) => u32::try_from(*number).ok(),
        Some(IntOrString::String(name)) => match name.parse() {
            Ok(number) => Some(number),
            Err(_) => workload?.ports.get(name).copied(),
        },
    }
}

/// Where endpoints may come from, in order of preference.
pub(crate) struct EndpointSources<'a> {
    pub(crate) slices: &'a [&'a Object<EndpointSlice>],
    pub(crate) endpoints: Option<&'a Object<Endpoints>>,
    /// Workloads of the service's namespace.
    pub(crate) workloads: &'a [Arc<Workload>],
}

/// Endpoints of a Kubernetes service: from its slices, else from its Endpoints
/// object, else from the pods that its selector finds.
pub(crate) fn endpoints(
    object: &Object<ServiceSpec>,
    service: &Service,
    sources: &EndpointSources<'_>,
) -> PortEndpoints {
    let mut found = PortEndpoints::new();
    if !sources.slices.is_empty() {
        for slice in sources.slices {
            from_slice(slice, service, sources.workloads, &mut found);
        }
    } else if let Some(endpoints) = sources.endpoints {
        from_endpoints(endpoints, service, sources.workloads, &mut found);
    } else if let Some(selector) = &service.selector {
        let pods = sources.workloads.iter().filter(|w| w.is_pod);
        from_workloads(object, selector, pods, &mut found);
    }
    // Services of the load-balanced kind find workload entries as well.
    if let (Some(selector), Resolution::Static) = (&service.selector, service.resolution) {
        let entries = sources.workloads.iter().filter(|w| !w.is_pod);
        from_workloads(object, selector, entries, &mut found);
    }
    found
}

fn from_workloads<'a>(
    object: &Object<ServiceSpec>,
    selector: &Labels,
    workloads: impl Iterator<Item = &'a Arc<Workload>>,
    found: &mut PortEndpoints,
) {
    for workload in workloads.filter(|w| crate::service::selects(selector, w.labels())) {
        for port in &object.spec.ports {
            // A workload entry maps service port names; a pod has named ports.
            let mapped = workload.ports.get(&port.name).copied().filter(|_| !workload.is_pod);
            let target = mapped.or_else(|| target_port(port, Some(workload)));
            let is_ip =
                workload.addresses.first().is_some_and(|a| a.parse::<std::net::IpAddr>().is_ok());
            if let Some(endpoint) =
                target.filter(|_| is_ip).and_then(|target| workload.endpoint(target, &port.name))
            {
                found.entry(u32::from(port.port)).or_default().push(Arc::new(endpoint));
            }
        }
    }
}

fn from_slice(
    slice: &Object<EndpointSlice>,
    service: &Service,
    workloads: &[Arc<Workload>],
    found: &mut PortEndpoints,
) {
    if slice.spec.address_type == "FQDN" {
        return;
    }
    for endpoint in &slice.spec.endpoints {
        let Some(address) = endpoint.addresses.first() else { continue };
        let workload = behind(endpoint, address, workloads);
        for slice_port in &slice.spec.ports {
            let (Some(number), Some(port)) =
                (slice_port.port, service.ports.iter().find(|port| port.name == slice_port.name))
            else {
                continue;
            };
            let mut one = base(service, workload, address);
            one.port = u32::from(number);
            one.port_name.clone_from(&port.name);
            one.health = slice_health(&endpoint.conditions);
            if !endpoint.hostname.is_empty() {
                one.hostname.clone_from(&endpoint.hostname);
                one.subdomain.clone_from(&service.name);
            }
            found.entry(port.number).or_default().push(Arc::new(one));
        }
    }
}

fn behind<'a>(
    endpoint: &SliceEndpoint,
    address: &str,
    workloads: &'a [Arc<Workload>],
) -> Option<&'a Workload> {
    let named = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod");
    let by_name = |w: &&Arc<Workload>| named.is_some_and(|t| w.is_pod && w.object == t.name);
    let by_address = |w: &&Arc<Workload>| w.addresses.iter().any(|own| own == address);
    let found = workloads.iter().find(by_name).or_else(|| workloads.iter().find(by_address));
    found.map(AsRef::as_ref)
}

fn slice_health(conditions: &SliceEndpointConditions) -> Health {
    if conditions.ready.unwrap_or(true) {
        Health::Healthy
    } else if conditions.terminating.unwrap_or(false) {
        let serving = conditions.serving.unwrap_or(false);
        if serving { Health::Draining } else { Health::Terminating }
    } else {
        Health::Unhealthy
    }
}

fn from_endpoints(
    endpoints: &Object<Endpoints>,
    service: &Service,
    workloads: &[Arc<Workload>],
    found: &mut PortEndpoints,
) {
    for subset in &endpoints.spec.subsets {
        let ready = subset.addresses.iter().map(|address| (address, Health::Healthy));
        let unready = subset.not_ready_addresses.iter().map(|a| (a, Health::Unhealthy));
        for (address, health) in ready.chain(unready) {
            let by_address = |w: &&Arc<Workload>| w.addresses.contains(&address.ip);
            let workload = workloads.iter().find(by_address).map(AsRef::as_ref);
            for subset_port in &subset.ports {
                let Some(port) = service.ports.iter().find(|p| p.name == subset_port.name) else {
                    continue;
                };
                let mut one = base(service, workload, &address.ip);
                one.port = u32::from(subset_port.port);
                one.port_name.clone_from(&port.name);
                one.health = health;
                found.entry(port.number).or_default().push(Arc::new(one));
            }
        }
    }
}

/// An endpoint with what its workload tells, or with nothing if it is unknown.
fn base(service: &Service, workload: Option<&Workload>, address: &str) -> Endpoint {
    let mut endpoint = match workload {
        Some(workload) => workload.template.clone(),
        None => Endpoint {
            address: String::new(),
            port: 0,
            port_name: String::new(),
            labels: Arc::default(),
            locality: amime_core::Locality::default(),
            service_account: String::new(),
            tls_mode: TLS_MODE_DISABLED.to_owned(),
            namespace: service.namespace.clone(),
            workload: String::new(),
            health: Health::Healthy,
            weight: 1,
            network: String::new(),
            hostname: String::new(),
            subdomain: String::new(),
        },
    };
    address.clone_into(&mut endpoint.address);
    endpoint
}
