//! The immutable picture of the mesh that configuration is made from.
//!
//! Owns the resources of one moment and every index over them, and the fold
//! from one moment to the next.
//!
//! Invariant: equal resources and mesh settings give equal answers, whatever
//! changes led there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use amime_api::gateway_api::GROUP;
use amime_api::k8s::{ConfigMap, Secret};
use amime_api::mesh::MeshConfig;
use amime_api::networking::{Gateway, Sidecar};
use amime_api::{Kind, Object, ObjectKey, Resource};
use amime_core::NamespacedName;

use crate::authn::{MtlsMode, PeerAuthnIndex};
use crate::config::{Config, sort_by_age};
use crate::destination_rule::DestinationRuleIndex;
use crate::endpoints::{EndpointIndex, Resources, ServiceEndpoints, in_namespace, of_kind};
use crate::envoy_filter::EnvoyFilterIndex;
use crate::network::Networks;
use crate::registry::ServiceIndex;
use crate::scope::{ScopeInputs, SidecarScope};
use crate::service::{Endpoint, Labels, Resolution, Service, ServiceKey, selects};
use crate::virtual_service::{RoutedService, VirtualServiceIndex};
use crate::{discovery, http_route, ingress, kube, service_entry, visibility};

/// One change to the resources.
#[derive(Clone, Debug)]
pub enum Change {
    /// The object is new or different.
    Set(Arc<Resource>),
    /// The object is gone.
    Delete(ObjectKey),
}

/// What a set of changes can touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeScope {
    /// Endpoints of these services and nothing else: no listener, route or
    /// cluster can differ, so the change need not wait for others.
    Endpoints {
        /// Services whose endpoints differ.
        services: BTreeSet<ServiceKey>,
    },
    /// Anything.
    Full,
}

/// Key of a memoised scope: namespace, and the Sidecar resource or the gateway.
type ScopeKey = (String, Option<NamespacedName>, bool);

/// Indexes over everything except endpoints.
struct Indexes {
    services: ServiceIndex,
    virtual_services: VirtualServiceIndex,
    destination_rules: DestinationRuleIndex,
    gateways: Vec<Arc<Config<Gateway>>>,
    sidecars: BTreeMap<String, Vec<Arc<Config<Sidecar>>>>,
    authn: PeerAuthnIndex,
    envoy_filters: EnvoyFilterIndex,
    networks: Networks,
    /// Scopes do not depend on endpoints, so they outlive endpoint changes.
    scopes: Mutex<HashMap<ScopeKey, Arc<SidecarScope>>>,
}

/// The mesh at one moment.
pub struct Snapshot {
    version: u64,
    mesh: Arc<MeshConfig>,
    /// All there are.
    resources: Resources,
    /// Those that count, if some do not.
    discovered: Option<Resources>,
    indexes: Arc<Indexes>,
    endpoints: EndpointIndex,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("version", &self.version)
            .field("resources", &self.resources.len())
            .finish_non_exhaustive()
    }
}

impl Snapshot {
    /// The mesh made of these resources; of two with one key the last counts.
    pub fn build(
        resources: impl IntoIterator<Item = Arc<Resource>>,
        mesh: Arc<MeshConfig>,
        version: u64,
    ) -> Self {
        let resources = resources.into_iter().map(|resource| (key_of(&resource), resource));
        Self::from_resources(resources.collect(), mesh, version)
    }

    fn from_resources(resources: Resources, mesh: Arc<MeshConfig>, version: u64) -> Self {
        let discovered = discovery::select(&resources, &mesh);
        let counting = discovered.as_ref().unwrap_or(&resources);
        let indexes = Arc::new(Indexes::build(counting, &mesh));
        let endpoints = EndpointIndex::build(counting, &mesh.trust_domain);
        Self { version, mesh, resources, discovered, indexes, endpoints }
    }

    /// The next snapshot, and what may differ from this one.
    pub fn with(&self, changes: &[Change]) -> (Self, ChangeScope) {
        let mut resources = self.resources.clone();
        let mut namespaces = BTreeSet::new();
        let mut endpoints_only = true;
        for change in changes {
            let key = match change {
                Change::Set(resource) => key_of(resource),
                Change::Delete(key) => key.clone(),
            };
            let old = match change {
                Change::Set(resource) => resources.insert(key.clone(), resource.clone()),
                Change::Delete(key) => resources.remove(key),
            };
            endpoints_only &= is_endpoint_change(key.kind, old.as_deref(), change);
            namespaces.insert(key.namespace);
        }
        let version = self.version + 1;
        if !endpoints_only {
            let next = Self::from_resources(resources, self.mesh.clone(), version);
            return (next, ChangeScope::Full);
        }
        let mut endpoints = self.endpoints.clone();
        let touched = namespaces.iter().map(String::as_str);
        let discovered = discovery::select(&resources, &self.mesh);
        let counting = discovered.as_ref().unwrap_or(&resources);
        endpoints.rebuild(counting, &self.mesh.trust_domain, touched);
        let next = Self {
            version,
            mesh: self.mesh.clone(),
            resources,
            discovered,
            indexes: self.indexes.clone(),
            endpoints,
        };
        let scope = self.endpoint_scope(&next, &namespaces);
        (next, scope)
    }

    fn endpoint_scope(&self, next: &Self, namespaces: &BTreeSet<String>) -> ChangeScope {
        let mut services = BTreeSet::new();
        for namespace in namespaces {
            for key in self.endpoints.differences(&next.endpoints, namespace) {
                if self.reaches_beyond_endpoints(next, &key) {
                    return ChangeScope::Full;
                }
                services.insert(key);
            }
        }
        ChangeScope::Endpoints { services }
    }

    /// True if clusters or listeners are made from the service's endpoints, or
    /// from the identities behind it, which differ.
    fn reaches_beyond_endpoints(&self, next: &Self, key: &ServiceKey) -> bool {
        let accounts = |snapshot: &Self| {
            snapshot.endpoints.get(&key.namespace, key).map(|own| own.accounts.clone())
        };
        let service = self.indexes.services.get(&key.namespace, &key.hostname);
        let is_static = service.is_none_or(|s| s.resolution == Resolution::Static);
        !is_static || accounts(self) != accounts(next)
    }

    /// The same mesh under other settings.
    pub fn with_mesh(&self, mesh: Arc<MeshConfig>) -> Self {
        Self::from_resources(self.resources.clone(), mesh, self.version + 1)
    }

    /// Version, counted by whoever builds snapshots.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Mesh-wide settings.
    pub fn mesh(&self) -> &MeshConfig {
        &self.mesh
    }

    /// Every resource, by key, whether the mesh takes notice of it or not.
    pub fn resources(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<Resource>)> {
        self.resources.iter()
    }

    /// One resource.
    pub fn resource(&self, key: &ObjectKey) -> Option<&Arc<Resource>> {
        self.resources.get(key)
    }

    /// A Kubernetes Secret.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Object<Secret>> {
        match self.named(Kind::Secret, namespace, name)? {
            Resource::Secret(object) => Some(object),
            _ => None,
        }
    }

    /// A Kubernetes ConfigMap.
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<&Object<ConfigMap>> {
        match self.named(Kind::ConfigMap, namespace, name)? {
            Resource::ConfigMap(object) => Some(object),
            _ => None,
        }
    }

    /// True if gateways of `from` may refer to a secret of another namespace.
    pub fn grants_secret(&self, from: &str, namespace: &str, name: &str) -> bool {
        let mut grants = in_namespace(self.raw_resources(), Kind::ReferenceGrant, namespace);
        grants.any(|resource| {
            let Resource::ReferenceGrant(object) = resource else { return false };
            let mut sources = object.spec.from.iter();
            let mut targets = object.spec.to.iter();
            sources.any(|s| s.group == GROUP && s.kind == "Gateway" && s.namespace == from)
                && targets.any(|t| {
                    t.group.is_empty()
                        && t.kind == "Secret"
                        && t.name.as_ref().is_none_or(|own| own == name)
                })
        })
    }

    fn named(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Resource> {
        let key = ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        self.raw_resources().get(&key).map(AsRef::as_ref)
    }

    /// All services.
    pub fn services(&self) -> &ServiceIndex {
        &self.indexes.services
    }

    /// Destination rules.
    pub fn destination_rules(&self) -> &DestinationRuleIndex {
        &self.indexes.destination_rules
    }

    /// Virtual services bound to a gateway that `namespace` may use.
    pub fn virtual_services(&self, namespace: &str, gateway: &str) -> Vec<Arc<RoutedService>> {
        self.indexes.virtual_services.for_gateway(namespace, gateway)
    }

    /// Gateways, the oldest first, whatever workload they select.
    pub fn gateways(&self) -> impl Iterator<Item = &Arc<Config<Gateway>>> {
        self.indexes.gateways.iter()
    }

    /// Peer authentication policies.
    pub fn authn(&self) -> &PeerAuthnIndex {
        &self.indexes.authn
    }

    /// Patches of what proxies are told.
    pub fn envoy_filters(&self) -> &EnvoyFilterIndex {
        &self.indexes.envoy_filters
    }

    /// Networks other than one's own.
    pub fn networks(&self) -> &Networks {
        &self.indexes.networks
    }

    /// What stands behind a service.
    pub fn endpoints(&self, service: &Service) -> Option<&ServiceEndpoints> {
        self.endpoints.get(&service.namespace, &service.key())
    }

    /// Endpoints of one port that have all of these labels.
    pub fn endpoints_on(
        &self,
        service: &Service,
        port: u32,
        labels: &Labels,
    ) -> Vec<Arc<Endpoint>> {
        let all = self.endpoints(service).and_then(|own| own.ports.get(&port));
        let matching = all.into_iter().flatten().filter(|e| selects(labels, &e.labels));
        matching.cloned().collect()
    }

    /// Identities that a service's endpoints may have, sorted.
    pub fn service_accounts(&self, service: &Service) -> Vec<String> {
        let own = self.endpoints(service).map(|endpoints| &endpoints.accounts);
        let mut accounts: BTreeSet<String> = own.cloned().unwrap_or_default();
        for alias in &self.mesh.trust_domain_aliases {
            let aliased: Vec<String> = accounts
                .iter()
                .filter_map(|account| account.parse::<amime_core::SpiffeId>().ok())
                .filter(|id| id.trust_domain == self.mesh.trust_domain)
                .map(|id| amime_core::SpiffeId { trust_domain: alias.clone(), ..id }.to_string())
                .collect();
            accounts.extend(aliased);
        }
        accounts.into_iter().collect()
    }

    /// Mutual TLS mode that clients assume for a port of a service; `None` if
    /// the service is none of the mesh's.
    ///
    /// Clients of a passthrough service dial addresses that no endpoint
    /// metadata is known for, so there all endpoints have to agree.
    pub fn service_mtls_mode(
        &self,
        service: &Service,
        port: u32,
        passthrough: bool,
    ) -> Option<MtlsMode> {
        if service.mesh_external {
            return None;
        }
        if passthrough || service.resolution == Resolution::Passthrough {
            let endpoints = self.endpoints_on(service, port, &Labels::new());
            let meshed = |e: &Arc<Endpoint>| e.tls_mode != crate::service::TLS_MODE_DISABLED;
            if endpoints.is_empty() || !endpoints.iter().all(meshed) {
                return Some(MtlsMode::Disable);
            }
        }
        Some(self.indexes.authn.namespace_mode(&service.namespace).unwrap_or(MtlsMode::Permissive))
    }

    /// What a sidecar in `namespace` with these labels may reach.
    pub fn sidecar_scope(&self, namespace: &str, labels: &Labels) -> Arc<SidecarScope> {
        let sidecar = self.sidecar_for(namespace, labels);
        let key = (namespace.to_owned(), sidecar.as_ref().map(|config| config.name.clone()), false);
        self.scope(key, |inputs| inputs.sidecar(namespace, sidecar))
    }

    /// What a gateway in `namespace` may reach.
    pub fn gateway_scope(&self, namespace: &str) -> Arc<SidecarScope> {
        let key = (namespace.to_owned(), None, true);
        self.scope(key, |inputs| inputs.gateway(namespace))
    }

    fn scope(
        &self,
        key: ScopeKey,
        compute: impl FnOnce(ScopeInputs<'_>) -> SidecarScope,
    ) -> Arc<SidecarScope> {
        let lock = || self.indexes.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scope) = lock().get(&key) {
            return scope.clone();
        }
        let scope = Arc::new(compute(ScopeInputs {
            services: &self.indexes.services,
            virtual_services: &self.indexes.virtual_services,
            unknown: self.mesh.outbound_traffic_policy.mode.into(),
        }));
        lock().entry(key).or_insert(scope).clone()
    }

    /// The Sidecar resource of a workload: one that selects it, then the one
    /// for its namespace, then the one for the mesh.
    fn sidecar_for(&self, namespace: &str, labels: &Labels) -> Option<Arc<Config<Sidecar>>> {
        let selector = |config: &Config<Sidecar>| config.spec.workload_selector.clone();
        let own = self.indexes.sidecars.get(namespace).into_iter().flatten();
        let mut own = own.filter(|config| {
            selector(config).is_none_or(|selector| selects(&selector.labels, labels))
        });
        let root = self.indexes.sidecars.get(&self.mesh.root_namespace).into_iter().flatten();
        let mesh_wide = |config: &&Arc<Config<Sidecar>>| selector(config).is_none();
        own.next().or_else(|| root.into_iter().find(mesh_wide)).cloned()
    }

    /// The resources that count.
    pub(crate) fn raw_resources(&self) -> &Resources {
        self.discovered.as_ref().unwrap_or(&self.resources)
    }

    pub(crate) fn endpoint_index(&self) -> &EndpointIndex {
        &self.endpoints
    }
}

fn key_of(resource: &Resource) -> ObjectKey {
    let meta = resource.metadata();
    ObjectKey { kind: resource.kind(), namespace: meta.namespace.clone(), name: meta.name.clone() }
}

/// True if the change can only concern endpoints: slices always, pods unless
/// one changes its labels, which decide what its own proxy gets.
fn is_endpoint_change(kind: Kind, old: Option<&Resource>, change: &Change) -> bool {
    match kind {
        Kind::EndpointSlice | Kind::Endpoints => true,
        Kind::Pod => match (old, change) {
            (Some(old), Change::Set(new)) => old.metadata().labels == new.metadata().labels,
            _ => true,
        },
        // A node says where the pods of all namespaces run.
        Kind::Node => match (old, change) {
            (Some(old), Change::Set(new)) => old.metadata().labels == new.metadata().labels,
            _ => false,
        },
        _ => false,
    }
}

/// What the ingresses of the mesh mean.
fn ingresses(resources: &Resources, mesh: &MeshConfig) -> ingress::Derived {
    let objects = of_kind(resources, Kind::Ingress).filter_map(|resource| match resource {
        Resource::Ingress(object) => Some(object),
        _ => None,
    });
    let port_number = |service: &NamespacedName, name: &str| {
        let NamespacedName { namespace, name: service } = service.clone();
        let key = ObjectKey { kind: Kind::Service, namespace, name: service };
        let Some(Resource::Service(object)) = resources.get(&key).map(AsRef::as_ref) else {
            return None;
        };
        object.spec.ports.iter().find(|port| port.name == name).map(|port| u32::from(port.port))
    };
    ingress::derive(objects, mesh, &port_number)
}

/// The namespace of this name.
fn namespace<'r>(resources: &'r Resources, name: &str) -> Option<&'r Arc<Resource>> {
    let (kind, name) = (Kind::Namespace, name.to_owned());
    resources.get(&ObjectKey { kind, namespace: String::new(), name })
}

fn networks(resources: &Resources, mesh: &MeshConfig) -> Networks {
    let services = of_kind(resources, Kind::Service).filter_map(|resource| match resource {
        Resource::Service(object) => Some(object),
        _ => None,
    });
    let home = namespace(resources, &mesh.root_namespace);
    Networks::build(services, home.map(|home| &home.metadata().labels))
}

/// Services of both registries.
fn services(resources: &Resources, mesh: &MeshConfig) -> Vec<Service> {
    let mut services = Vec::new();
    for resource in of_kind(resources, Kind::Service) {
        if let Resource::Service(object) = resource {
            let none = Labels::new();
            let namespace = namespace(resources, &object.metadata.namespace);
            let annotations = namespace.map_or(&none, |ns| &ns.metadata().annotations);
            services.push(kube::service(object, &mesh.trust_domain, annotations));
        }
    }
    for resource in of_kind(resources, Kind::ServiceEntry) {
        if let Resource::ServiceEntry(object) = resource {
            services.extend(service_entry::services(object));
        }
    }
    let labels = |name: &str| {
        let namespace = namespace(resources, name);
        namespace.map(|ns| ns.metadata().labels.clone()).unwrap_or_default()
    };
    visibility::narrow(&mut services, mesh, &labels);
    services
}

impl Indexes {
    fn build(resources: &Resources, mesh: &MeshConfig) -> Self {
        let services = services(resources, mesh);
        macro_rules! configs {
            ($kind:ident) => {
                of_kind(resources, Kind::$kind)
                    .filter_map(|resource| match resource {
                        Resource::$kind(object) => {
                            Some(Arc::new(Config::new(&object.metadata, object.spec.clone())))
                        }
                        _ => None,
                    })
                    .collect::<Vec<_>>()
            };
        }
        let ingress = ingresses(resources, mesh);
        let mut gateways = configs!(Gateway);
        gateways.extend(ingress.gateways.into_iter().map(Arc::new));
        sort_by_age(&mut gateways);
        let mut derived = ingress.virtual_services;
        derived.extend(http_route::routed(of_kind(resources, Kind::HTTPRoute).filter_map(
            |resource| match resource {
                Resource::HTTPRoute(object) => Some(object),
                _ => None,
            },
        )));
        let mut sidecars: BTreeMap<String, Vec<Arc<Config<Sidecar>>>> = BTreeMap::new();
        let mut sorted = configs!(Sidecar);
        sort_by_age(&mut sorted);
        sorted.sort_by_key(|config| config.spec.workload_selector.is_none());
        for config in sorted {
            sidecars.entry(config.namespace().to_owned()).or_default().push(config);
        }
        Self {
            services: ServiceIndex::build(services, &mesh.default_service_export_to),
            virtual_services: VirtualServiceIndex::build(
                configs!(VirtualService),
                derived,
                &mesh.default_virtual_service_export_to,
            ),
            destination_rules: DestinationRuleIndex::build(
                configs!(DestinationRule),
                &mesh.root_namespace,
                &mesh.default_destination_rule_export_to,
            ),
            gateways,
            sidecars,
            authn: PeerAuthnIndex::build(configs!(PeerAuthentication), &mesh.root_namespace),
            envoy_filters: EnvoyFilterIndex::build(configs!(EnvoyFilter), &mesh.root_namespace),
            networks: networks(resources, mesh),
            scopes: Mutex::default(),
        }
    }
}
