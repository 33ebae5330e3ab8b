//! The configuration held: raw resources, what they compiled to, and what is
//! still awaited.
//!
//! Invariant: a resource that does not compile, or whose sockets cannot be
//! bound, leaves its predecessor in force. A listener whose routes have not
//! arrived waits beside the one it replaces.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Instant;

use amime_telemetry::Telemetry;
use amime_xds::client::{Rejection, Update};
use amime_xds::{Resource, TypeUrl, XdsMessage};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};

use super::dump::{ClusterDump, ListenerDump, RuntimeDump};
use super::held::Held;
use super::{Fault, RuntimeOptions};
use crate::upstream::{ClusterSpec, ClusterState};
use crate::worker::{Published, SocketSet};
use amime_config::cluster::{ClusterConfig, Discovery};
use amime_config::endpoint::{AssignmentSpec, Resolved};
use amime_config::listener::ListenerConfig;
use amime_config::names::{ClusterId, Names, RouteConfigId};
use amime_config::route::RouteTable;
use amime_config::secrets::SecretStore;
use amime_config::tls::inline_certificate;
use amime_config::values::data_source;
use amime_config::{Compiler, Faults, Required};

struct ListenerEntry {
    config: Arc<ListenerConfig>,
    required: Required,
}

struct ClusterEntry {
    config: Arc<ClusterConfig>,
    required: Required,
    assignment: AssignmentSpec,
    resolved: Resolved,
    /// When names are to be resolved again.
    due: Option<Instant>,
    spec: Arc<ClusterSpec>,
}

/// All configuration of a runtime.
pub(super) struct State {
    names: Names,
    secrets: SecretStore,
    telemetry: Arc<Telemetry>,
    workers: usize,
    gateway: bool,
    held: BTreeMap<(usize, String), Held>,
    listeners: HashMap<Arc<str>, ListenerEntry>,
    /// Listeners whose routes have not arrived.
    warming: HashMap<Arc<str>, ListenerEntry>,
    sockets: HashMap<Arc<str>, (SocketAddr, Arc<SocketSet>)>,
    clusters: BTreeMap<ClusterId, ClusterEntry>,
    assignments: HashMap<String, ClusterLoadAssignment>,
    routes: HashMap<RouteConfigId, Arc<RouteTable>>,
    changed: bool,
}

/// Why a resource is refused, in words for the control plane.
type Refusal = String;

impl State {
    pub(super) fn new(options: &RuntimeOptions, secrets: SecretStore, workers: usize) -> Self {
        Self {
            names: Names::default(),
            secrets,
            telemetry: options.telemetry.clone(),
            workers,
            gateway: options.gateway,
            held: BTreeMap::new(),
            listeners: HashMap::new(),
            warming: HashMap::new(),
            sockets: HashMap::new(),
            clusters: BTreeMap::new(),
            assignments: HashMap::new(),
            routes: HashMap::new(),
            // Workers count as ready once they have seen even an empty one.
            changed: false,
        }
    }

    pub(super) fn apply(&mut self, update: &Update, is_static: bool) -> Vec<Rejection> {
        let mut rejected = Vec::new();
        for resource in &update.added {
            if self.is_current(resource) {
                continue;
            }
            let outcome = self.add(resource);
            let key = (resource.type_url.push_rank(), resource.name.clone());
            let held = self.held.entry(key).or_insert_with(|| Held::new(is_static));
            match outcome {
                Ok(ignored) => held.accept(resource, ignored),
                Err(error) => {
                    held.refuse(resource, &error);
                    rejected.push(Rejection { name: resource.name.clone(), error });
                }
            }
        }
        for name in &update.removed {
            self.remove(update.type_url, name);
        }
        self.promote();
        rejected
    }

    /// True if this very version is in force.
    fn is_current(&self, resource: &Resource) -> bool {
        let key = (resource.type_url.push_rank(), resource.name.clone());
        self.held.get(&key).is_some_and(|held| {
            let same =
                |have: &Resource| have.version == resource.version && have.body == resource.body;
            held.resource.as_ref().is_some_and(same)
        })
    }

    fn add(&mut self, resource: &Resource) -> Result<Vec<Fault>, Refusal> {
        match resource.type_url {
            TypeUrl::Listener => self.add_listener(resource),
            TypeUrl::Route => self.add_route(resource),
            TypeUrl::Cluster => self.add_cluster(resource),
            TypeUrl::Endpoint => self.add_assignment(resource),
            TypeUrl::Secret => self.add_secret(resource),
            TypeUrl::ExtensionConfig | TypeUrl::NameTable => Ok(Vec::new()),
        }
    }

    /// Compiles a message with its own faults and requirements.
    fn compile<M: XdsMessage, T>(
        &mut self,
        resource: &Resource,
        compile: impl FnOnce(&M, &mut Compiler<'_>) -> Option<T>,
    ) -> Result<(T, Required, Vec<Fault>), Refusal> {
        let message: M = resource.decode().map_err(|error| error.to_string())?;
        let mut compiler =
            Compiler::new(&mut self.names, &self.secrets, &self.telemetry, self.gateway);
        let compiled = compile(&message, &mut compiler);
        let required = std::mem::take(&mut compiler.required);
        finish(compiled, compiler.faults).map(|(value, ignored)| (value, required, ignored))
    }

    fn add_listener(&mut self, resource: &Resource) -> Result<Vec<Fault>, Refusal> {
        let (config, required, ignored) = self
            .compile::<Listener, _>(resource, |message, compiler| {
                ListenerConfig::compile(message, compiler)
            })?;
        let entry = ListenerEntry { config: Arc::new(config), required };
        let name = entry.config.name.clone();
        // Bound before it is in force, so that a busy port refuses the resource.
        self.bind(&entry.config)?;
        if self.routes_present(&entry.required) {
            self.warming.remove(&name);
            self.listeners.insert(name, entry);
        } else {
            self.warming.insert(name, entry);
        }
        self.changed = true;
        Ok(ignored)
    }

    fn routes_present(&mut self, required: &Required) -> bool {
        required.routes.iter().all(|name| {
            let id = self.names.route_config(name);
            self.routes.contains_key(&id)
        })
    }

    /// Puts listeners in force whose routes have arrived.
    fn promote(&mut self) {
        let waiting: Vec<Arc<str>> = self.warming.keys().cloned().collect();
        for name in waiting {
            let Some(entry) = self.warming.remove(&name) else { continue };
            if self.routes_present(&entry.required) {
                self.listeners.insert(name, entry);
                self.changed = true;
            } else {
                self.warming.insert(name, entry);
            }
        }
    }

    fn bind(&mut self, config: &ListenerConfig) -> Result<(), Refusal> {
        if !config.bind {
            if self.sockets.remove(&config.name).is_some() {
                self.changed = true;
            }
            return Ok(());
        }
        if self.sockets.get(&config.name).is_some_and(|(address, _)| *address == config.address) {
            return Ok(());
        }
        let bound = bind_all(config, self.workers)
            .map_err(|error| format!("address: cannot bind {}: {error}", config.address))?;
        self.sockets.insert(config.name.clone(), (config.address, bound));
        Ok(())
    }

    fn add_route(&mut self, resource: &Resource) -> Result<Vec<Fault>, Refusal> {
        let (table, _, ignored) = self
            .compile::<RouteConfiguration, _>(resource, |message, compiler| {
                Some(RouteTable::compile(message, compiler))
            })?;
        let id = self.names.route_config(&resource.name);
        self.routes.insert(id, Arc::new(table));
        self.changed = true;
        Ok(ignored)
    }

    fn add_cluster(&mut self, resource: &Resource) -> Result<Vec<Fault>, Refusal> {
        let mut inline = None;
        let (config, required, mut ignored) =
            self.compile::<Cluster, _>(resource, |message, compiler| {
                inline.clone_from(&message.load_assignment);
                ClusterConfig::compile(message, compiler)
            })?;
        let config = Arc::new(config);
        let message = match &config.discovery {
            Discovery::Eds(name) => self.assignments.get(name).cloned(),
            _ => inline,
        };
        let mut faults = Faults::default();
        let assignment =
            message.map(|message| AssignmentSpec::compile(&message, &config, &mut faults));
        let (assignment, more) = finish(Some(assignment.unwrap_or_default()), faults)?;
        ignored.extend(more);
        let previous = self.clusters.remove(&config.id);
        let id = config.id;
        let (resolved, state, endpoints) = match previous {
            Some(old) => (old.resolved, old.spec.state.clone(), Some(old.spec.endpoints.clone())),
            None => (Resolved::default(), Arc::new(ClusterState::default()), None),
        };
        let names = !assignment.names().is_empty();
        let spec = Arc::new(ClusterSpec {
            endpoints: Arc::new(assignment.resolve(
                &resolved,
                is_logical(&config),
                endpoints.as_deref(),
                self.workers,
            )),
            config: config.clone(),
            state,
        });
        let due = names.then(Instant::now);
        let entry = ClusterEntry { config, required, assignment, resolved, due, spec };
        self.report_members(&entry);
        self.clusters.insert(id, entry);
        self.changed = true;
        Ok(ignored)
    }

    fn add_assignment(&mut self, resource: &Resource) -> Result<Vec<Fault>, Refusal> {
        let message: ClusterLoadAssignment =
            resource.decode().map_err(|error| error.to_string())?;
        let users: Vec<ClusterId> = self.eds_users(&resource.name);
        let mut compiled = Vec::with_capacity(users.len());
        let mut ignored = Vec::new();
        for id in users {
            let mut faults = Faults::default();
            let spec = AssignmentSpec::compile(&message, &self.clusters[&id].config, &mut faults);
            let (spec, faults) = finish(Some(spec), faults)?;
            ignored = faults;
            compiled.push((id, spec));
        }
        for (id, assignment) in compiled {
            self.set_assignment(id, assignment);
        }
        self.assignments.insert(resource.name.clone(), message);
        Ok(ignored)
    }

    fn eds_users(&self, name: &str) -> Vec<ClusterId> {
        let uses = |entry: &ClusterEntry| matches!(&entry.config.discovery, Discovery::Eds(service) if service == name);
        self.clusters.iter().filter(|(_, entry)| uses(entry)).map(|(id, _)| *id).collect()
    }

    fn set_assignment(&mut self, id: ClusterId, assignment: AssignmentSpec) {
        let workers = self.workers;
        let Some(entry) = self.clusters.get_mut(&id) else { return };
        if !assignment.names().is_empty() {
            entry.due = Some(Instant::now());
        }
        entry.assignment = assignment;
        entry.rebuild(workers);
        self.changed = true;
        let entry = &self.clusters[&id];
        self.report_members(entry);
    }

    fn report_members(&self, entry: &ClusterEntry) {
        let stats = self.telemetry.shared_cluster(&entry.config.name);
        let endpoints = || entry.spec.endpoints.endpoints();
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        stats.membership_total.set(count(endpoints().count()));
        stats
            .membership_healthy
            .set(count(endpoints().filter(|one| one.configured_healthy()).count()));
        stats.membership_change.inc();
        stats.update_success.inc();
    }

    fn add_secret(&mut self, resource: &Resource) -> Result<Vec<Fault>, Refusal> {
        let message: Secret = resource.decode().map_err(|error| error.to_string())?;
        match message.r#type {
            Some(secret::Type::TlsCertificate(certificate)) => {
                let (chain, key) = inline_certificate(&certificate)?;
                self.secrets.set_certificate(&resource.name, &chain, &key)?;
            }
            Some(secret::Type::ValidationContext(context)) => {
                let source = context.trusted_ca.ok_or("validation_context.trusted_ca: missing")?;
                self.secrets.set_roots(&resource.name, &data_source(&source)?)?;
            }
            Some(_) | None => return Err("type: neither certificate nor validation context".into()),
        }
        Ok(Vec::new())
    }

    fn remove(&mut self, type_url: TypeUrl, name: &str) {
        let key = (type_url.push_rank(), name.to_owned());
        if self.held.get(&key).is_some_and(|held| held.is_static) {
            return;
        }
        self.held.remove(&key);
        match type_url {
            TypeUrl::Listener => {
                self.listeners.remove(name);
                self.warming.remove(name);
                self.sockets.remove(name);
            }
            TypeUrl::Route => {
                let id = self.names.route_config(name);
                self.routes.remove(&id);
            }
            TypeUrl::Cluster => {
                let id = self.names.cluster(name);
                self.clusters.remove(&id);
            }
            TypeUrl::Endpoint => {
                self.assignments.remove(name);
                for id in self.eds_users(name) {
                    self.set_assignment(id, AssignmentSpec::default());
                }
            }
            // A secret in use stays in force until its user goes.
            TypeUrl::Secret | TypeUrl::ExtensionConfig | TypeUrl::NameTable => {}
        }
        self.changed = true;
    }

    /// The configuration for the workers, if it has changed.
    pub(super) fn publish(&mut self) -> Option<Published> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut clusters = vec![None; self.names.cluster_count()];
        let mut cluster_names = HashMap::with_capacity(self.clusters.len());
        for (id, entry) in &self.clusters {
            clusters[id.0 as usize] = Some(entry.spec.clone());
            cluster_names.insert(entry.config.name.clone(), *id);
        }
        let mut routes = vec![None; self.names.route_config_count()];
        for (id, table) in &self.routes {
            routes[id.0 as usize] = Some(table.clone());
        }
        let listeners = self.listeners.iter();
        let sockets = self.sockets.iter().filter(|(name, _)| self.listeners.contains_key(*name));
        Some(Published {
            listeners: listeners
                .map(|(name, entry)| (name.clone(), entry.config.clone()))
                .collect(),
            sockets: sockets.map(|(name, (_, set))| (name.clone(), set.clone())).collect(),
            clusters,
            cluster_names: Arc::new(cluster_names),
            routes,
            adopted: Default::default(),
        })
    }

    pub(super) fn required_names(&self, type_url: TypeUrl) -> Vec<String> {
        let listeners = || self.listeners.values().chain(self.warming.values());
        let names: BTreeSet<String> = match type_url {
            TypeUrl::Route => listeners().flat_map(|entry| entry.required.routes.clone()).collect(),
            TypeUrl::Secret => listeners()
                .flat_map(|entry| entry.required.secrets.clone())
                .chain(self.clusters.values().flat_map(|entry| entry.required.secrets.clone()))
                .collect(),
            TypeUrl::Endpoint => self
                .clusters
                .values()
                .filter_map(|entry| match &entry.config.discovery {
                    Discovery::Eds(name) => Some(name.clone()),
                    _ => None,
                })
                .collect(),
            _ => BTreeSet::new(),
        };
        names.into_iter().collect()
    }

    /// True while a listener waits for its routes.
    pub(super) fn warming(&self) -> bool {
        !self.warming.is_empty()
    }

    pub(super) fn listener_address(&self, name: &str) -> Option<SocketAddr> {
        self.sockets.get(name).map(|(_, set)| set.address)
    }

    /// Fields of static resources that have no effect.
    pub(super) fn ignored(&self) -> Vec<String> {
        let mut all = Vec::new();
        for ((_, name), held) in self.held.iter().filter(|(_, held)| held.is_static) {
            let kind = held.resource.as_ref().map_or("", |resource| resource.type_url.short());
            all.extend(held.ignored.iter().map(|fault| format!("{kind} {name}: {fault}")));
        }
        all
    }

    /// Names that are due for resolving, by cluster.
    pub(super) fn names_due(&mut self, now: Instant) -> Vec<DnsJob> {
        let mut jobs = Vec::new();
        for (id, entry) in &mut self.clusters {
            let Some((refresh, family)) = dns_settings(&entry.config) else { continue };
            if entry.due.is_some_and(|due| due <= now) {
                entry.due = Some(now + refresh);
                jobs.push(DnsJob { cluster: *id, names: entry.assignment.names(), family });
            }
        }
        jobs
    }

    /// When names are next due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.clusters.values().filter_map(|entry| entry.due).min()
    }

    /// Takes over addresses that names resolved to. A name that did not
    /// resolve keeps the addresses it had.
    pub(super) fn resolved(&mut self, cluster: ClusterId, found: Resolved) {
        let workers = self.workers;
        let Some(entry) = self.clusters.get_mut(&cluster) else { return };
        let mut changed = false;
        for (name, addresses) in found {
            changed |= entry.resolved.get(&name) != Some(&addresses);
            entry.resolved.insert(name, addresses);
        }
        if changed {
            entry.rebuild(workers);
            self.changed = true;
            let entry = &self.clusters[&cluster];
            self.report_members(entry);
        }
    }

    pub(super) fn dump(&self) -> RuntimeDump {
        let resources = self.held.iter().filter_map(|((rank, name), held)| {
            let waiting =
                *rank == TypeUrl::Listener.push_rank() && self.warming.contains_key(name.as_str());
            held.dump(name, waiting)
        });
        let mut listeners: Vec<ListenerDump> = self
            .listeners
            .iter()
            .map(|(name, entry)| ListenerDump {
                name: name.to_string(),
                address: self
                    .sockets
                    .get(name)
                    .map(|(_, set)| set.address)
                    .or(Some(entry.config.address)),
                bound: entry.config.bind,
            })
            .collect();
        listeners.sort_by(|a, b| a.name.cmp(&b.name));
        let clusters = self.clusters.values().map(|entry| self.dump_cluster(entry));
        RuntimeDump { resources: resources.collect(), listeners, clusters: clusters.collect() }
    }

    fn dump_cluster(&self, entry: &ClusterEntry) -> ClusterDump {
        let key = (TypeUrl::Cluster.push_rank(), entry.config.name.to_string());
        let added_via_api = self.held.get(&key).is_some_and(|held| !held.is_static);
        ClusterDump::of(&entry.spec, added_via_api)
    }
}

/// Names of one cluster to resolve.
pub(super) struct DnsJob {
    pub(super) cluster: ClusterId,
    pub(super) names: Vec<(String, u16)>,
    pub(super) family: amime_config::cluster::Family,
}

fn dns_settings(
    config: &ClusterConfig,
) -> Option<(std::time::Duration, amime_config::cluster::Family)> {
    match config.discovery {
        Discovery::StrictDns { refresh, family } | Discovery::LogicalDns { refresh, family } => {
            Some((refresh, family))
        }
        // A name in EDS is resolved as strict DNS would.
        Discovery::Eds(_) => {
            Some((std::time::Duration::from_secs(5), amime_config::cluster::Family::Both))
        }
        Discovery::Static | Discovery::OriginalDst { .. } => None,
    }
}

fn is_logical(config: &ClusterConfig) -> bool {
    matches!(config.discovery, Discovery::LogicalDns { .. })
}

impl ClusterEntry {
    fn rebuild(&mut self, workers: usize) {
        let first = is_logical(&self.config);
        let old = &self.spec;
        let endpoints =
            self.assignment.resolve(&self.resolved, first, Some(&old.endpoints), workers);
        self.spec = Arc::new(ClusterSpec {
            config: self.config.clone(),
            endpoints: Arc::new(endpoints),
            state: old.state.clone(),
        });
    }
}

/// The value, unless a fault forbids it.
fn finish<T>(value: Option<T>, faults: Faults) -> Result<(T, Vec<Fault>), Refusal> {
    let fatal = faults.fatal();
    let list = faults.into_list();
    match value {
        Some(value) if !fatal => Ok((value, list)),
        _ => {
            let reasons: Vec<String> =
                list.iter().filter(|fault| fault.fatal).map(ToString::to_string).collect();
            Err(if reasons.is_empty() { "cannot be used".to_owned() } else { reasons.join("; ") })
        }
    }
}

fn bind_all(config: &ListenerConfig, workers: usize) -> std::io::Result<Arc<SocketSet>> {
    let mut address = config.address;
    let mut sockets: Vec<TcpListener> = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket = amime_net::socket::ListenerBuilder::new(address)
            .backlog(i32::try_from(config.backlog).unwrap_or(i32::MAX))
            .reuse_port(true)
            .transparent(config.transparent)
            .listen()?;
        socket.set_nonblocking(true)?;
        // Port 0 is decided by the first; the others share it.
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok(SocketSet::new(address, sockets))
}
