//! Endpoints of all services, and which services a workload serves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use amime_api::Kind;
use amime_api::k8s::{EndpointSlice, Endpoints, ServiceSpec};
use amime_api::networking::ServiceEntry;
use amime_api::{Object, ObjectKey, Resource};

use crate::service::{Labels, PortEndpoints, Resolution, Service, ServiceKey};
use crate::workload::Workload;
use crate::{kube, service_entry};

/// Objects by key; equal prefixes of the key stand together.
pub(crate) type Resources = BTreeMap<ObjectKey, Arc<Resource>>;

/// Objects of one kind in one namespace.
pub(crate) fn in_namespace<'a>(
    resources: &'a Resources,
    kind: Kind,
    namespace: &'a str,
) -> impl Iterator<Item = &'a Resource> {
    let first = ObjectKey { kind, namespace: namespace.to_owned(), name: String::new() };
    resources
        .range(first..)
        .take_while(move |(key, _)| key.kind == kind && key.namespace == namespace)
        .map(|(_, resource)| resource.as_ref())
}

/// Objects of one kind.
pub(crate) fn of_kind(resources: &Resources, kind: Kind) -> impl Iterator<Item = &Resource> {
    let first = ObjectKey { kind, namespace: String::new(), name: String::new() };
    resources
        .range(first..)
        .take_while(move |(key, _)| key.kind == kind)
        .map(|(_, resource)| resource.as_ref())
}

/// What stands behind one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEndpoints {
    /// Endpoints by service port.
    pub ports: PortEndpoints,
    /// Their identities, sorted.
    pub accounts: BTreeSet<String>,
}

/// Endpoints and workloads of all namespaces.
#[derive(Clone, Debug, Default)]
pub(crate) struct EndpointIndex {
    namespaces: BTreeMap<String, Arc<NamespaceEndpoints>>,
}

#[derive(Debug, Default)]
struct NamespaceEndpoints {
    services: HashMap<ServiceKey, ServiceEndpoints>,
    workloads: Vec<Arc<Workload>>,
}

/// Kinds whose objects endpoints are made from.
const SOURCES: [Kind; 6] = [
    Kind::Service,
    Kind::ServiceEntry,
    Kind::Pod,
    Kind::WorkloadEntry,
    Kind::EndpointSlice,
    Kind::Endpoints,
];

impl EndpointIndex {
    pub(crate) fn build(resources: &Resources, trust_domain: &str) -> Self {
        let keys = resources.keys().filter(|key| SOURCES.contains(&key.kind));
        let namespaces: BTreeSet<&str> = keys.map(|key| key.namespace.as_str()).collect();
        let mut index = Self::default();
        index.rebuild(resources, trust_domain, namespaces);
        index
    }

    /// Computes these namespaces anew; the others stay as they are.
    pub(crate) fn rebuild<'a>(
        &mut self,
        resources: &Resources,
        trust_domain: &str,
        namespaces: impl IntoIterator<Item = &'a str>,
    ) {
        for namespace in namespaces {
            let computed = NamespaceEndpoints::build(resources, trust_domain, namespace);
            self.namespaces.insert(namespace.to_owned(), Arc::new(computed));
        }
    }

    pub(crate) fn get(&self, namespace: &str, key: &ServiceKey) -> Option<&ServiceEndpoints> {
        self.namespaces.get(namespace)?.services.get(key)
    }

    /// Services of `namespace` whose endpoints differ between the two.
    pub(crate) fn differences(&self, other: &Self, namespace: &str) -> BTreeSet<ServiceKey> {
        let empty = NamespaceEndpoints::default();
        let side = |index: &Self| index.namespaces.get(namespace).cloned();
        let (a, b) = (side(self), side(other));
        let a = a.as_deref().unwrap_or(&empty);
        let b = b.as_deref().unwrap_or(&empty);
        let keys = a.services.keys().chain(b.services.keys());
        keys.filter(|key| a.services.get(key) != b.services.get(key)).cloned().collect()
    }

    pub(crate) fn workloads(&self, namespace: &str) -> &[Arc<Workload>] {
        self.namespaces.get(namespace).map_or(&[], |ns| &ns.workloads)
    }

    /// The workload with this address, in this namespace.
    pub(crate) fn workload_at(&self, namespace: &str, address: &str) -> Option<&Arc<Workload>> {
        let at = |w: &&Arc<Workload>| w.addresses.iter().any(|own| own == address);
        self.workloads(namespace).iter().find(at)
    }

    /// Service ports of the namespace that have an endpoint at this address,
    /// with the endpoint's port.
    pub(crate) fn serving(&self, namespace: &str, address: &str) -> Vec<(ServiceKey, u32, u32)> {
        let Some(own) = self.namespaces.get(namespace) else { return Vec::new() };
        let mut found = Vec::new();
        for (key, endpoints) in &own.services {
            for (port, list) in &endpoints.ports {
                for endpoint in list.iter().filter(|endpoint| endpoint.address == address) {
                    found.push((key.clone(), *port, endpoint.port));
                }
            }
        }
        found.sort();
        found
    }
}

impl NamespaceEndpoints {
    fn build(resources: &Resources, trust_domain: &str, namespace: &str) -> Self {
        let workloads = workloads(resources, trust_domain, namespace);
        let mut own = Self { services: HashMap::new(), workloads };
        let slices = slices(resources, namespace);
        for resource in in_namespace(resources, Kind::Service, namespace) {
            if let Resource::Service(object) = resource {
                own.add_kubernetes(resources, object, &slices, trust_domain);
            }
        }
        for resource in in_namespace(resources, Kind::ServiceEntry, namespace) {
            if let Resource::ServiceEntry(object) = resource {
                own.add_entry(object, trust_domain);
            }
        }
        own
    }

    fn add_kubernetes(
        &mut self,
        resources: &Resources,
        object: &Object<ServiceSpec>,
        slices: &HashMap<&str, Vec<&Object<EndpointSlice>>>,
        trust_domain: &str,
    ) {
        let meta = &object.metadata;
        // Endpoints do not depend on what the namespace says.
        let service = kube::service(object, trust_domain, &Labels::new());
        let key = ObjectKey {
            kind: Kind::Endpoints,
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
        };
        let endpoints: Option<&Object<Endpoints>> = match resources.get(&key).map(AsRef::as_ref) {
            Some(Resource::Endpoints(endpoints)) => Some(endpoints),
            _ => None,
        };
        let sources = kube::EndpointSources {
            slices: slices.get(meta.name.as_str()).map_or(&[], Vec::as_slice),
            endpoints,
            workloads: &self.workloads,
        };
        let ports = kube::endpoints(object, &service, &sources);
        self.insert(&service, ports);
    }

    fn add_entry(&mut self, object: &Object<ServiceEntry>, trust_domain: &str) {
        let mut done = BTreeSet::new();
        for service in service_entry::services(object) {
            // An entry with several addresses has its endpoints once.
            if done.insert(service.hostname.as_str().to_owned()) {
                let ports =
                    service_entry::endpoints(object, &service, &self.workloads, trust_domain);
                self.insert(&service, ports);
            }
        }
    }

    fn insert(&mut self, service: &Service, ports: PortEndpoints) {
        let own = self.services.entry(service.key()).or_default();
        for (port, endpoints) in ports {
            let all = own.ports.entry(port).or_default();
            all.extend(endpoints);
            if service.resolution == Resolution::DnsRoundRobin {
                // Envoy resolves one name only there; the oldest stands.
                all.truncate(1);
            }
            let accounts = all.iter().map(|endpoint| endpoint.service_account.clone());
            own.accounts.extend(accounts.filter(|account| !account.is_empty()));
        }
        own.accounts.extend(service.service_accounts.iter().cloned());
    }
}

fn slices<'a>(
    resources: &'a Resources,
    namespace: &'a str,
) -> HashMap<&'a str, Vec<&'a Object<EndpointSlice>>> {
    let mut by_service: HashMap<&str, Vec<&Object<EndpointSlice>>> = HashMap::new();
    for resource in in_namespace(resources, Kind::EndpointSlice, namespace) {
        if let Resource::EndpointSlice(slice) = resource
            && let Some(service) = slice.metadata.labels.get(kube::SLICE_SERVICE_LABEL)
        {
            by_service.entry(service).or_default().push(slice);
        }
    }
    by_service
}

/// Workload entries first, then pods, each by name.
fn workloads(resources: &Resources, trust_domain: &str, namespace: &str) -> Vec<Arc<Workload>> {
    let entries = in_namespace(resources, Kind::WorkloadEntry, namespace).filter_map(|r| match r {
        Resource::WorkloadEntry(object) => {
            Some(Workload::from_entry(&object.spec, &object.metadata, trust_domain))
        }
        _ => None,
    });
    let pods = in_namespace(resources, Kind::Pod, namespace).filter_map(|r| match r {
        Resource::Pod(object) => {
            Workload::from_pod(object, node_labels(resources, &object.spec.node_name), trust_domain)
        }
        _ => None,
    });
    entries.chain(pods).map(Arc::new).collect()
}

fn node_labels<'r>(resources: &'r Resources, name: &str) -> Option<&'r Labels> {
    let (kind, namespace) = (Kind::Node, String::new());
    let node = resources.get(&ObjectKey { kind, namespace, name: name.to_owned() })?;
    Some(&node.metadata().labels)
}

/// Labels of a workload as a selector sees them.
pub(crate) fn labels_of(workload: Option<&Arc<Workload>>, fallback: &Labels) -> Labels {
    workload.map_or_else(|| fallback.clone(), |workload| workload.labels().clone())
}
