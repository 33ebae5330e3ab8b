//! The configuration held: raw resources, what they compiled to, and what is
//! still awaited.
//!
//! Invariant: a resource that does not compile, or whose sockets cannot be
//! bound, leaves its predecessor in force. Listeners come up only after all
//! clusters known at the start are in force.

mod secret_files;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use amime_telemetry::{ServerStats, Telemetry};
use amime_xds::client::{Rejection, Update};
use amime_xds::{Resource, TypeUrl, XdsMessage};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use tokio::sync::Notify;

use crate::awaited::Need;
use crate::clusters::{ClusterEntry, Clusters, DnsJob};
use crate::dump::{ClusterDump, RuntimeDump};
use crate::held::Held;
use crate::listeners::Listeners;
use crate::names::Answer;
use crate::published::Published;
use crate::routes::Routes;
use crate::takeover::{Inherited, TakenSockets};
use amime_config::cluster::ClusterConfig;
use amime_config::host_cache::{HostCache, HostCaches};
use amime_config::listener::ListenerConfig;
use amime_config::names::Names;
use amime_config::route::RouteTable;
use amime_config::secrets::SecretStore;
use amime_config::{Compiler, Node, Required};
use amime_rules::{Fault, Faults};
use amime_upstream::LocalCluster;
use secret_files::SecretFiles;

/// What a state begins with.
pub struct StateOptions {
    /// Where secrets are kept that no resource brings.
    pub secrets: SecretStore,
    /// Where statistics of resources are kept.
    pub telemetry: Arc<Telemetry>,
    /// What configuration may say of the proxy itself.
    pub node: Node,
    /// `SO_MARK` of the sockets of checks.
    pub mark: Option<u32>,
    /// Threads that are to have sockets of each listener.
    pub workers: usize,
    /// The cluster that this node is part of, by which others keep requests in
    /// its zone.
    pub local_cluster: Option<Arc<LocalCluster>>,
    /// Sockets of a proxy before this one, perhaps none; absent if no other
    /// will take over from this one either.
    pub inherited: Option<Inherited>,
}

/// All configuration that a proxy holds.
pub struct State {
    names: Names,
    host_caches: HostCaches,
    secrets: SecretStore,
    telemetry: Arc<Telemetry>,
    node: Node,
    mark: Option<u32>,
    held: BTreeMap<(usize, String), Held>,
    listeners: Listeners,
    clusters: Clusters,
    routes: Routes,
    /// The clusters known at the start are in force: listeners may follow.
    clusters_up: bool,
    secret_files: SecretFiles,
    changed: bool,
}

/// Why a resource is refused, in words for the control plane.
pub(crate) type Refusal = String;

impl State {
    /// Nothing is configured yet.
    pub fn new(options: StateOptions) -> Self {
        let StateOptions { secrets, telemetry, node, mark, workers, local_cluster, inherited } =
            options;
        Self {
            names: Names::default(),
            host_caches: HostCaches::default(),
            secrets,
            telemetry: telemetry.clone(),
            node,
            mark,
            held: BTreeMap::new(),
            listeners: Listeners::new(workers, inherited),
            clusters: Clusters::new(workers, telemetry, local_cluster),
            routes: Routes::default(),
            clusters_up: false,
            secret_files: SecretFiles::default(),
            // Workers count as ready once they have seen even an empty one.
            changed: false,
        }
    }

    /// Applies an update; resources that are not in the answer are held.
    pub fn apply(&mut self, update: &Update, is_static: bool) -> Vec<Rejection> {
        let now = Instant::now();
        // Removals first, so that a new listener may have a gone one's address.
        for name in &update.removed {
            self.remove(update.type_url, name, now);
            count_removal(self.telemetry.server(), update.type_url);
        }
        let mut rejected = Vec::new();
        for resource in &update.added {
            let key = (resource.type_url.push_rank(), resource.name.clone());
            if let Some(held) = self.held.get_mut(&key) {
                // The bootstrap's own are not to be changed by discovery.
                if held.is_static && !is_static || held.repeats(resource) {
                    continue;
                }
            }
            let outcome = self.add(resource, now);
            let warming = matches!(resource.type_url, TypeUrl::Cluster | TypeUrl::Listener);
            let is_new = !self.held.contains_key(&key);
            let held = self.held.entry(key).or_insert_with(|| Held::new(is_static));
            count_change(self.telemetry.server(), resource.type_url, is_new, outcome.is_ok());
            match outcome {
                Ok(ignored) => held.accept(resource, ignored, warming),
                Err(error) => {
                    held.refuse(resource, &error);
                    rejected.push(Rejection { name: resource.name.clone(), error });
                }
            }
        }
        self.tick(now);
        self.listeners.close_spare();
        rejected
    }

    /// Copies of all listening sockets, for a proxy that takes over.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn copy_sockets(&self) -> std::io::Result<Vec<TakenSockets>> {
        self.listeners.copies()
    }

    /// Lets listening sockets close with those who accept from them.
    pub fn release_sockets(&mut self) {
        self.listeners.release();
    }

    /// Closes sockets of the proxy before that no listener has asked for.
    pub fn forget_inherited(&mut self) {
        self.listeners.forget_inherited();
    }

    fn add(&mut self, resource: &Resource, now: Instant) -> Result<Vec<Fault>, Refusal> {
        match resource.type_url {
            TypeUrl::Listener => self.add_listener(resource, now),
            TypeUrl::Route => self.add_route(resource),
            TypeUrl::Cluster => self.add_cluster(resource, now),
            TypeUrl::Endpoint => self.add_assignment(resource),
            TypeUrl::Secret => self.add_secret(resource),
            TypeUrl::ExtensionConfig | TypeUrl::NameTable => Ok(Vec::new()),
        }
    }

    /// Puts in force what has all it needs, or has waited long enough.
    pub fn tick(&mut self, now: Instant) {
        let secrets = &self.secrets;
        for name in self.clusters.promote(now, |name| secrets.has(name)) {
            self.promoted(TypeUrl::Cluster, &name);
        }
        if !self.clusters_up && self.listeners.any_warming() {
            self.clusters_up = !self.clusters.any_warming();
        }
        if self.clusters_up {
            let (routes, secrets) = (&self.routes, &self.secrets);
            let met = |need: &Need| match need {
                Need::Routes(name) => routes.has(name),
                Need::Secret(name) => secrets.has(name),
                Need::Endpoints(_) | Need::Addresses => true,
            };
            for name in self.listeners.promote(now, met) {
                self.promoted(TypeUrl::Listener, &name);
            }
        }
        let listeners = &self.listeners;
        let named = |name: &str| listeners.required().any(|one| one.routes.contains_key(name));
        let held = &mut self.held;
        // Forgotten, so that the same table is taken over when it comes anew.
        let mut forget = |type_url: TypeUrl, name: &str| {
            held.remove(&(type_url.push_rank(), name.to_owned()));
        };
        self.changed |= self.routes.sweep(now, named, |name| forget(TypeUrl::Route, name));
        for name in self.clusters.take_dropped() {
            forget(TypeUrl::Endpoint, &name);
        }
    }

    fn promoted(&mut self, type_url: TypeUrl, name: &str) {
        if let Some(held) = self.held.get_mut(&(type_url.push_rank(), name.to_owned())) {
            held.promote();
        }
        self.changed = true;
    }

    /// Compiles a message with its own faults and requirements.
    fn compile<M: XdsMessage, T>(
        &mut self,
        resource: &Resource,
        compile: impl FnOnce(&M, &mut Compiler<'_>) -> Option<T>,
    ) -> Result<(T, Required, Vec<Fault>), Refusal> {
        let message: M = resource.decode().map_err(|error| error.to_string())?;
        let mut compiler = Compiler::new(
            &mut self.names,
            &mut self.host_caches,
            &self.secrets,
            &self.telemetry,
            &self.node,
        );
        let compiled = compile(&message, &mut compiler);
        let required = std::mem::take(&mut compiler.required);
        finish(compiled, compiler.faults).map(|(value, ignored)| (value, required, ignored))
    }

    fn add_listener(&mut self, resource: &Resource, now: Instant) -> Result<Vec<Fault>, Refusal> {
        let (config, required, ignored) = self
            .compile::<Listener, _>(resource, |message, compiler| {
                ListenerConfig::compile(message, compiler)
            })?;
        self.listeners.add(config, required, now)?;
        Ok(ignored)
    }

    fn add_route(&mut self, resource: &Resource) -> Result<Vec<Fault>, Refusal> {
        let (table, _, ignored) = self
            .compile::<RouteConfiguration, _>(resource, |message, compiler| {
                Some(RouteTable::compile(message, compiler))
            })?;
        let id = self.names.route_config(&resource.name);
        self.routes.set(&resource.name, id, Arc::new(table));
        self.changed = true;
        Ok(ignored)
    }

    fn add_cluster(&mut self, resource: &Resource, now: Instant) -> Result<Vec<Fault>, Refusal> {
        let mut inline = None;
        let (config, required, mut ignored) =
            self.compile::<Cluster, _>(resource, |message, compiler| {
                inline.clone_from(&message.load_assignment);
                ClusterConfig::compile(message, compiler)
            })?;
        ignored.extend(self.clusters.add(config, required, inline, now)?);
        // Requests for it are to know that it comes.
        self.changed = true;
        Ok(ignored)
    }

    fn add_assignment(&mut self, resource: &Resource) -> Result<Vec<Fault>, Refusal> {
        let message: ClusterLoadAssignment =
            resource.decode().map_err(|error| error.to_string())?;
        let (changed, ignored) = self.clusters.add_assignment(&resource.name, message)?;
        self.changed |= changed;
        Ok(ignored)
    }

    fn add_secret(&mut self, resource: &Resource) -> Result<Vec<Fault>, Refusal> {
        let message: Secret = resource.decode().map_err(|error| error.to_string())?;
        let mut faults = Faults::default();
        let accepted = self.secrets.accept(&resource.name, &message, &mut faults);
        finish(accepted, faults).map(|((), ignored)| ignored)
    }

    fn remove(&mut self, type_url: TypeUrl, name: &str, now: Instant) {
        let key = (type_url.push_rank(), name.to_owned());
        if self.held.get(&key).is_some_and(|held| held.is_static) {
            return;
        }
        match type_url {
            TypeUrl::Listener => self.listeners.remove(name),
            TypeUrl::Cluster => {
                let id = self.names.cluster(name);
                self.clusters.remove(id);
            }
            // Like Envoy: what refers to them keeps them. They go when the
            // listener or cluster does.
            TypeUrl::Endpoint => {
                self.clusters.no_assignment(name);
                if self.clusters.holds_assignment(name) {
                    return;
                }
            }
            TypeUrl::Route => {
                let used = |one: &Required| one.routes.contains_key(name);
                if self.listeners.required().any(used) {
                    return;
                }
            }
            // A secret in use stays in force until its user goes.
            TypeUrl::Secret | TypeUrl::ExtensionConfig | TypeUrl::NameTable => {}
        }
        self.held.remove(&key);
        self.changed = true;
        self.tick(now);
    }

    /// The caches of hosts that requests name.
    pub fn host_caches(&mut self) -> Vec<Arc<HostCache>> {
        self.host_caches.live()
    }

    /// Told when such a cache has a name to look up.
    pub fn wake(&self) -> Arc<Notify> {
        self.host_caches.wake()
    }

    /// The configuration for the workers, if it has changed.
    pub fn publish(&mut self) -> Option<Published> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut clusters = vec![None; self.names.cluster_count()];
        let mut cluster_names = HashMap::with_capacity(self.clusters.active.len());
        for (id, entry) in &self.clusters.active {
            clusters[id.0 as usize] = Some(entry.spec.clone());
            cluster_names.insert(entry.spec.config.name.clone(), *id);
        }
        let mut routes = vec![None; self.names.route_config_count()];
        for (id, table) in self.routes.iter() {
            routes[id.0 as usize] = Some(table.clone());
        }
        let mut published = Published {
            clusters,
            cluster_names: Arc::new(cluster_names),
            expected: Arc::new(self.clusters.expected().collect()),
            routes,
            ..Published::default()
        };
        for (name, entry) in &self.listeners.active {
            published.listeners.insert(name.clone(), entry.config.clone());
            published.sockets.insert(name.clone(), entry.sockets.clone());
        }
        Some(published)
    }

    /// Names of the resources of a type that others refer to.
    pub fn required_names(&self, type_url: TypeUrl) -> Vec<String> {
        let listeners = || self.listeners.required();
        let names: BTreeSet<String> = match type_url {
            TypeUrl::Route => listeners().flat_map(|one| one.routes.keys().cloned()).collect(),
            TypeUrl::Secret => listeners()
                .flat_map(|one| one.secrets.keys().cloned())
                .chain(self.clusters.secret_names())
                .collect(),
            TypeUrl::Endpoint => self.clusters.assignment_names(),
            _ => BTreeSet::new(),
        };
        names.into_iter().collect()
    }

    /// True while something waits to come into force.
    pub fn warming(&self) -> bool {
        self.listeners.any_warming() || self.clusters.any_warming()
    }

    /// True once a listener is in force.
    pub fn serves(&self) -> bool {
        !self.listeners.active.is_empty()
    }

    /// The first bound address of a listener, with its real port.
    pub fn listener_address(&self, name: &str) -> Option<SocketAddr> {
        self.listeners.address(name)
    }

    /// All of them.
    pub fn listener_addresses(&self, name: &str) -> Vec<SocketAddr> {
        self.listeners.addresses(name).collect()
    }

    /// Fields of static resources that have no effect.
    pub fn ignored(&self) -> Vec<(TypeUrl, String, Fault)> {
        let mut all = Vec::new();
        for ((_, name), held) in self.held.iter().filter(|(_, held)| held.is_static) {
            let of_it = held.ignored();
            all.extend(of_it.map(|(type_url, fault)| (type_url, name.clone(), fault.clone())));
        }
        all
    }

    /// Names that are due to be looked up.
    pub fn names_due(&mut self, now: Instant) -> Vec<DnsJob> {
        self.clusters.names_due(now)
    }

    /// Brings gauges up to date that nothing counts by itself.
    pub fn refresh_gauges(&self) {
        self.clusters.refresh_gauges();
    }

    /// Endpoints to be checked actively.
    pub fn checks(&self) -> Vec<amime_upstream::health::Job> {
        self.clusters.checks(self.mark)
    }

    /// Does what passive health checks do at intervals.
    pub fn sweep(&mut self, now: Instant) {
        self.clusters.sweep(now);
    }

    /// When something is next to be done unasked.
    pub fn next_due(&self) -> Option<Instant> {
        self.clusters.next_due().into_iter().chain(self.listeners.deadline()).min()
    }

    /// Takes over what a name resolved to.
    pub fn resolved(&mut self, job: &DnsJob, answer: &Answer) {
        let now = Instant::now();
        self.changed |= self.clusters.resolved(job, answer, now);
        self.tick(now);
    }

    /// A copy of it all.
    pub fn dump(&self) -> RuntimeDump {
        let resources = self.held.iter().flat_map(|((_, name), held)| held.dump(name));
        let clusters = self.clusters.active.values().map(|entry| self.dump_cluster(entry));
        RuntimeDump {
            resources: resources.collect(),
            listeners: self.listeners.dump(),
            clusters: clusters.collect(),
        }
    }

    fn dump_cluster(&self, entry: &ClusterEntry) -> ClusterDump {
        let key = (TypeUrl::Cluster.push_rank(), entry.spec.config.name.to_string());
        let added_via_api = self.held.get(&key).is_some_and(|held| !held.is_static);
        ClusterDump::of(&entry.spec, added_via_api)
    }
}

/// The value, unless a fault forbids it.
pub(crate) fn finish<T>(value: Option<T>, faults: Faults) -> Result<(T, Vec<Fault>), Refusal> {
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

fn count_change(server: &ServerStats, type_url: TypeUrl, is_new: bool, accepted: bool) {
    match (type_url, accepted, is_new) {
        (TypeUrl::Cluster, true, true) => server.cluster_manager_cluster_added.inc(),
        (TypeUrl::Cluster, true, false) => server.cluster_manager_cluster_modified.inc(),
        (TypeUrl::Listener, true, true) => {
            server.listener_manager_listener_added.inc();
            server.listener_manager_listener_create_success.inc();
        }
        (TypeUrl::Listener, true, false) => {
            server.listener_manager_listener_modified.inc();
            server.listener_manager_listener_create_success.inc();
        }
        (TypeUrl::Listener, false, _) => server.listener_manager_listener_create_failure.inc(),
        _ => {}
    }
}

fn count_removal(server: &ServerStats, type_url: TypeUrl) {
    match type_url {
        TypeUrl::Cluster => server.cluster_manager_cluster_removed.inc(),
        TypeUrl::Listener => server.listener_manager_listener_removed.inc(),
        _ => {}
    }
}
