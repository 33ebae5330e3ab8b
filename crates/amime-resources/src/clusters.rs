//! Clusters in force, those that warm, and the endpoints they use.
//!
//! Invariant: a cluster is in force only after its first endpoints, names and
//! secrets, or after the time that its configuration gives them; until then
//! the version it replaces serves on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use amime_telemetry::Telemetry;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;

use crate::awaited::{Awaited, Need};
use crate::gauges;
use crate::names::{Answer, NamePort, Names};
use crate::state::{Refusal, finish};
use amime_config::Required;
use amime_config::cluster::ClusterConfig;
use amime_config::discovery::{Discovery, Dns};
use amime_config::endpoint::AssignmentSpec;
use amime_config::names::ClusterId;
use amime_config::outlier::Ejector;
use amime_rules::{Fault, Faults};
use amime_upstream::{ClusterSpec, LocalCluster, SharedLb, health, load_report};

/// One version of a cluster.
pub(crate) struct ClusterEntry {
    required: Required,
    assignment: AssignmentSpec,
    names: Names,
    awaited: Awaited,
    /// When endpoints are next compared by passive checks.
    sweep: Option<Instant>,
    /// When weights that endpoints have reported are next put in force.
    reweigh: Option<Instant>,
    pub(crate) spec: Arc<ClusterSpec>,
}

/// All clusters.
pub(crate) struct Clusters {
    pub(crate) active: BTreeMap<ClusterId, ClusterEntry>,
    warming: BTreeMap<ClusterId, ClusterEntry>,
    assignments: HashMap<String, ClusterLoadAssignment>,
    /// Assignments that were held and are no longer.
    dropped: Vec<String>,
    workers: usize,
    telemetry: Arc<Telemetry>,
    local: Option<Arc<LocalCluster>>,
}

/// A name to look up.
pub struct DnsJob {
    pub(crate) cluster: ClusterId,
    /// The name, and the port that its addresses are for.
    pub name: NamePort,
    /// How it is to be looked up.
    pub dns: Dns,
}

impl Clusters {
    pub(crate) fn new(
        workers: usize,
        telemetry: Arc<Telemetry>,
        local: Option<Arc<LocalCluster>>,
    ) -> Self {
        Self {
            active: BTreeMap::new(),
            warming: BTreeMap::new(),
            assignments: HashMap::new(),
            dropped: Vec::new(),
            workers,
            telemetry,
            local,
        }
    }

    /// Takes a compiled cluster over, to warm until [`Clusters::promote`].
    pub(crate) fn add(
        &mut self,
        config: ClusterConfig,
        required: Required,
        inline: Option<ClusterLoadAssignment>,
        now: Instant,
    ) -> Result<Vec<Fault>, Refusal> {
        let config = Arc::new(config);
        let message = match &config.discovery {
            Discovery::Eds(name) => self.assignments.get(name).cloned(),
            _ => inline,
        };
        let mut faults = Faults::default();
        let assignment =
            message.map(|message| AssignmentSpec::compile(&message, &config, &mut faults));
        let (assignment, ignored) = finish(Some(assignment.unwrap_or_default()), faults)?;
        check_names(&config, &assignment)?;
        let id = config.id;
        let previous = self.active.get(&id);
        let mut names = previous.map(|old| old.names.for_successor()).unwrap_or_default();
        names.follow(assignment.names(), now);
        let own_state = self.local.as_ref().and_then(|local| local.state_for(&config.name));
        let local = self.local.clone().filter(|_| own_state.is_none());
        let state = match (previous, own_state) {
            (Some(old), _) => old.spec.state.clone(),
            (None, own) => own.cloned().unwrap_or_default(),
        };
        let endpoints = assignment.resolve(
            &names.resolved(),
            config.discovery.spread(),
            previous.map(|old| &*old.spec.endpoints),
            self.workers,
        );
        // Like Envoy, a changed cluster knows nothing of earlier checks.
        endpoints.begin_checks(&config);
        let mut awaited = Awaited::default();
        if let Discovery::Eds(name) = &config.discovery {
            awaited.add(Need::Endpoints(name.clone()), config.fetch_timeout, now);
        }
        if config.wait_for_names {
            awaited.add(Need::Addresses, None, now);
        }
        for (name, timeout) in &required.secrets {
            awaited.add(Need::Secret(name.clone()), *timeout, now);
        }
        let spec = Arc::new(ClusterSpec {
            endpoints: Arc::new(endpoints),
            config,
            state,
            lb: SharedLb::default(),
            local,
        });
        let sweep = spec.config.outlier.as_ref().map(|outlier| now + outlier.interval);
        let reweigh = spec.config.lb.reports.as_ref().map(|reports| now + reports.update);
        let entry = ClusterEntry { required, assignment, names, awaited, sweep, reweigh, spec };
        self.warming.insert(id, entry);
        Ok(ignored)
    }

    /// Puts clusters in force that have all they need; their names.
    pub(crate) fn promote(
        &mut self,
        now: Instant,
        has_secret: impl Fn(&str) -> bool,
    ) -> Vec<Arc<str>> {
        let Self { warming, assignments, .. } = self;
        let mut ready = Vec::new();
        for (id, entry) in warming.iter_mut() {
            let looked_up = entry.names.all_answered();
            let met = |need: &Need| match need {
                Need::Endpoints(name) => assignments.contains_key(name),
                Need::Secret(name) => has_secret(name),
                Need::Addresses => looked_up,
                Need::Routes(_) => true,
            };
            if entry.awaited.settle(now, met) && entry.all_checked() {
                ready.push(*id);
            }
        }
        let mut names = Vec::with_capacity(ready.len());
        for id in ready {
            let Some(entry) = self.warming.remove(&id) else { continue };
            self.report_members(&entry);
            names.push(entry.spec.config.name.clone());
            self.active.insert(id, entry);
        }
        if !names.is_empty() {
            self.forget_unused();
        }
        names
    }

    /// Takes an assignment over for all clusters that use it; true if one of
    /// those in force does.
    pub(crate) fn add_assignment(
        &mut self,
        name: &str,
        message: ClusterLoadAssignment,
    ) -> Result<(bool, Vec<Fault>), Refusal> {
        let mut compiled = Vec::new();
        let mut ignored = Vec::new();
        for (warming, entries) in [(false, &self.active), (true, &self.warming)] {
            for (id, entry) in entries.iter().filter(|(_, entry)| entry.uses(name)) {
                let mut faults = Faults::default();
                let spec = AssignmentSpec::compile(&message, &entry.spec.config, &mut faults);
                let (spec, faults) = finish(Some(spec), faults)?;
                ignored = faults;
                compiled.push((warming, *id, spec));
            }
        }
        let mut changed = false;
        for (warming, id, assignment) in compiled {
            let entries = if warming { &mut self.warming } else { &mut self.active };
            let Some(entry) = entries.get_mut(&id) else { continue };
            entry.names.follow(assignment.names(), Instant::now());
            entry.assignment = assignment;
            entry.rebuild(self.workers);
            if !warming {
                changed = true;
                let entry = &self.active[&id];
                self.telemetry.shared_cluster(&entry.spec.config.name).update_success.inc();
                self.report_members(entry);
            }
        }
        self.assignments.insert(name.to_owned(), message);
        Ok((changed, ignored))
    }

    /// The control plane has no such assignment: clusters that wait for it
    /// wait no more, others keep the endpoints they have.
    pub(crate) fn no_assignment(&mut self, name: &str) {
        if self.warming.values().any(|entry| entry.uses(name)) {
            self.assignments.entry(name.to_owned()).or_default();
        }
    }

    pub(crate) fn remove(&mut self, id: ClusterId) {
        self.active.remove(&id);
        self.warming.remove(&id);
        self.forget_unused();
    }

    /// Drops assignments that no cluster uses: they are no longer asked for
    /// and would be stale when a cluster comes back.
    fn forget_unused(&mut self) {
        let Self { active, warming, assignments, dropped, .. } = self;
        let used: BTreeSet<&str> = active
            .values()
            .chain(warming.values())
            .filter_map(|entry| match &entry.spec.config.discovery {
                Discovery::Eds(name) => Some(name.as_str()),
                _ => None,
            })
            .collect();
        assignments.retain(|name, _| {
            let keep = used.contains(name.as_str());
            if !keep {
                dropped.push(name.clone());
            }
            keep
        });
    }

    /// Names of assignments dropped since the last call.
    pub(crate) fn take_dropped(&mut self) -> Vec<String> {
        std::mem::take(&mut self.dropped)
    }

    /// True if `name` is the assignment of a cluster.
    pub(crate) fn holds_assignment(&self, name: &str) -> bool {
        self.assignments.contains_key(name)
    }

    pub(crate) fn any_warming(&self) -> bool {
        !self.warming.is_empty()
    }

    /// Clusters of which no version is in force yet.
    pub(crate) fn expected(&self) -> impl Iterator<Item = ClusterId> {
        self.warming.keys().filter(|id| !self.active.contains_key(id)).copied()
    }

    fn all(&self) -> impl Iterator<Item = &ClusterEntry> {
        self.active.values().chain(self.warming.values())
    }

    /// Names of assignments in use.
    pub(crate) fn assignment_names(&self) -> BTreeSet<String> {
        let name = |entry: &ClusterEntry| match &entry.spec.config.discovery {
            Discovery::Eds(name) => Some(name.clone()),
            _ => None,
        };
        self.all().filter_map(name).collect()
    }

    /// What the clusters refer to.
    pub(crate) fn required(&self) -> impl Iterator<Item = &Required> {
        self.all().map(|entry| &entry.required)
    }

    /// Names of secrets in use.
    pub(crate) fn secret_names(&self) -> impl Iterator<Item = String> {
        self.all().flat_map(|entry| entry.required.secrets.keys().cloned())
    }

    fn report_members(&self, entry: &ClusterEntry) {
        let stats = self.telemetry.shared_cluster(&entry.spec.config.name);
        let states = entry.spec.endpoints.endpoints().map(|one| &*one.state);
        let less = entry.spec.state.recount_ejections(states);
        stats.outlier_detection_ejections_active.add(less);
        let endpoints = || entry.spec.endpoints.endpoints();
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        stats.membership_total.set(count(endpoints().count()));
        stats
            .membership_healthy
            .set(count(endpoints().filter(|one| one.configured_healthy()).count()));
        stats.membership_change.inc();
        // New members get the median at once.
        load_report::reweigh(&entry.spec);
        if let Some(local) = &self.local {
            local.follow(&entry.spec);
        }
    }

    /// Names that are due to be looked up.
    pub(crate) fn names_due(&mut self, now: Instant) -> Vec<DnsJob> {
        let mut jobs = Vec::new();
        for (id, entry) in self.active.iter_mut().chain(&mut self.warming) {
            for name in entry.names.take_due(now) {
                let dns = dns_settings(&entry.spec.config);
                jobs.push(DnsJob { cluster: *id, name, dns });
            }
        }
        jobs
    }

    /// Compares endpoints by how they answered, and weighs them by what they
    /// said, where it is time to.
    pub(crate) fn sweep(&mut self, now: Instant) {
        for entry in self.active.values_mut() {
            let spec = &entry.spec;
            if let Some(reports) = &spec.config.lb.reports
                && entry.reweigh.is_some_and(|at| at <= now)
            {
                entry.reweigh = Some(now + reports.update);
                load_report::reweigh(spec);
            }
            let Some(outlier) = &spec.config.outlier else { continue };
            if entry.sweep.is_none_or(|at| at > now) {
                continue;
            }
            entry.sweep = Some(now + outlier.interval);
            let endpoints: Vec<_> = spec.endpoints.endpoints().collect();
            let stats = self.telemetry.shared_cluster(&spec.config.name);
            let ejector =
                Ejector { outlier, cluster: &spec.state, stats: &stats, total: endpoints.len() };
            ejector.sweep(&endpoints);
        }
    }

    /// Brings gauges up to date that nothing counts by itself.
    pub(crate) fn refresh_gauges(&self) {
        for entry in self.active.values() {
            let stats = self.telemetry.shared_cluster(&entry.spec.config.name);
            gauges::refresh(&entry.spec, &stats);
        }
    }

    /// Endpoints to be checked actively.
    pub(crate) fn checks(&self, mark: Option<u32>) -> Vec<health::Job> {
        let mut jobs = Vec::new();
        for entry in self.all().filter(|entry| !entry.spec.config.checks.is_empty()) {
            let spec = &entry.spec;
            let stats = self.telemetry.shared_cluster(&spec.config.name);
            for endpoint in spec.endpoints.endpoints().filter(|one| !one.checked_as.disabled) {
                jobs.push(health::Job {
                    cluster: spec.config.clone(),
                    endpoint: endpoint.clone(),
                    state: spec.state.clone(),
                    stats: stats.clone(),
                    mark,
                });
            }
        }
        jobs
    }

    /// When something is next to be done unasked.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let due = self.all().filter_map(|entry| entry.names.next_due());
        let deadlines = self.warming.values().filter_map(|entry| entry.awaited.deadline());
        let sweeps = self.active.values().filter_map(|entry| entry.sweep);
        let weights = self.active.values().filter_map(|entry| entry.reweigh);
        due.chain(deadlines).chain(sweeps).chain(weights).min()
    }

    /// Takes over what a name resolved to; true if a cluster in force changes.
    pub(crate) fn resolved(&mut self, job: &DnsJob, answer: &Answer, now: Instant) -> bool {
        let workers = self.workers;
        if let Some(entry) = self.warming.get_mut(&job.cluster) {
            entry.take_answer(job, answer, workers, now);
        }
        let Some(entry) = self.active.get_mut(&job.cluster) else { return false };
        let stats = self.telemetry.shared_cluster(&entry.spec.config.name);
        stats.update_attempt.inc();
        match answer {
            None => stats.update_failure.inc(),
            Some((addresses, _)) if addresses.is_empty() => stats.update_empty.inc(),
            Some(_) => stats.update_success.inc(),
        }
        let changed = entry.take_answer(job, answer, workers, now);
        if changed {
            let entry = &self.active[&job.cluster];
            self.report_members(entry);
        }
        changed
    }
}

impl ClusterEntry {
    /// True if every endpoint was checked that is to be.
    fn all_checked(&self) -> bool {
        let mut endpoints = self.spec.endpoints.endpoints();
        self.spec.config.checks.is_empty()
            || endpoints.all(|one| one.checked_as.disabled || one.state.checked())
    }

    fn uses(&self, assignment: &str) -> bool {
        matches!(&self.spec.config.discovery, Discovery::Eds(name) if name == assignment)
    }

    fn take_answer(&mut self, job: &DnsJob, answer: &Answer, workers: usize, now: Instant) -> bool {
        let logical = matches!(self.spec.config.discovery, Discovery::LogicalDns(_));
        let changed = self.names.answer(&job.name, answer, (&job.dns, logical), now);
        if changed {
            self.rebuild(workers);
        }
        changed
    }

    fn rebuild(&mut self, workers: usize) {
        let old = &self.spec;
        let spread = old.config.discovery.spread();
        let resolved = self.names.resolved();
        let endpoints = self.assignment.resolve(&resolved, spread, Some(&old.endpoints), workers);
        endpoints.begin_checks(&old.config);
        self.spec = Arc::new(ClusterSpec {
            config: old.config.clone(),
            endpoints: Arc::new(endpoints),
            state: old.state.clone(),
            lb: SharedLb::default(),
            local: old.local.clone(),
        });
    }
}

/// A name in EDS is resolved as strict DNS would by default.
fn dns_settings(config: &ClusterConfig) -> Dns {
    config.discovery.dns().cloned().unwrap_or_default()
}

/// Refuses names where nothing resolves them.
fn check_names(config: &ClusterConfig, assignment: &AssignmentSpec) -> Result<(), Refusal> {
    let endpoints = || assignment.priorities.iter().flatten().flat_map(|group| &group.endpoints);
    match &config.discovery {
        Discovery::Static => match assignment.names().first() {
            Some((name, _)) => Err(format!(
                "load_assignment: `{name}` is not an IP address; names need a type of STRICT_DNS or LOGICAL_DNS"
            )),
            None => Ok(()),
        },
        Discovery::LogicalDns(_) if endpoints().count() != 1 => {
            Err("load_assignment: LOGICAL_DNS needs exactly one endpoint".to_owned())
        }
        _ => Ok(()),
    }
}
