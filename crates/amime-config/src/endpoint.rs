//! Endpoints of a cluster: addresses, weights, localities, health.
//!
//! Invariant: an endpoint that survives an update keeps its state (counters,
//! ejection), so a push resets nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use amime_telemetry::PeerMetadata;
use envoy_types::pb::envoy::config::core::v3 as core;
pub use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use envoy_types::pb::google::protobuf as wkt;

use super::cluster::ClusterConfig;
use super::health_check::CheckedAs;
use super::tls::UpstreamTransport;
use crate::endpoint_state::EndpointState;
use amime_rules::Faults;
use amime_rules::criteria::NAMESPACE;
use amime_rules::values::{self, HostAddress};

/// An endpoint as configured, its address perhaps still a name.
#[derive(Clone, Debug)]
pub struct EndpointSpec {
    pub address: HostAddress,
    /// Further addresses of the same endpoint.
    pub more: Vec<SocketAddr>,
    pub checked_as: CheckedAs,
    pub hostname: Arc<str>,
    pub weight: u32,
    pub status: HealthStatus,
    pub transport: UpstreamTransport,
    /// Index of the transport among the cluster's: part of a pool's key.
    pub transport_index: usize,
    pub peer: Option<Arc<PeerMetadata>>,
    /// Metadata under `envoy.lb`: subsets and hash keys are made of it.
    pub lb: Option<Arc<wkt::Struct>>,
}

/// Endpoints of one locality within a priority.
#[derive(Clone, Debug)]
pub struct LocalitySpec {
    pub locality: [Arc<str>; 3],
    pub weight: u32,
    pub endpoints: Vec<EndpointSpec>,
}

/// A compiled `ClusterLoadAssignment`: localities by priority.
#[derive(Clone, Debug, Default)]
pub struct AssignmentSpec {
    pub priorities: Vec<Vec<LocalitySpec>>,
    /// Percent; 140 by default.
    pub overprovisioning: u32,
    /// Priorities lose health by weight rather than by number of endpoints.
    pub weighted_health: bool,
}

/// An endpoint that can be connected to.
#[derive(Debug)]
pub struct Endpoint {
    /// That of an IP socket, or the stand-in of a Unix one.
    pub address: SocketAddr,
    /// Further addresses, tried when the first one is slow or fails.
    pub more: Vec<SocketAddr>,
    pub checked_as: CheckedAs,
    pub hostname: Arc<str>,
    pub weight: u32,
    /// Health by configuration.
    pub status: HealthStatus,
    /// Index of its priority in the set.
    pub priority: u32,
    pub transport: UpstreamTransport,
    pub transport_index: usize,
    pub peer: Option<Arc<PeerMetadata>>,
    /// Metadata under `envoy.lb`: subsets and hash keys are made of it.
    pub lb: Option<Arc<wkt::Struct>>,
    pub state: Arc<EndpointState>,
}

/// What load balancing may do with an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Healthy,
    /// Used for what healthy endpoints cannot take.
    Degraded,
    /// Used in panic only.
    Unhealthy,
    /// Unhealthy, and left out where the share of healthy ones is counted.
    Excluded,
}

impl Endpoint {
    /// Health from all sources; see [`ClusterState::health_changed`].
    ///
    /// [`ClusterState::health_changed`]: crate::endpoint_state::ClusterState::health_changed
    pub fn health(&self) -> Health {
        if self.state.excluded() {
            return Health::Excluded;
        }
        if self.state.ejected() || self.state.check_failed() {
            return Health::Unhealthy;
        }
        match self.status {
            HealthStatus::Unknown | HealthStatus::Healthy if self.state.check_degraded() => {
                Health::Degraded
            }
            HealthStatus::Unknown | HealthStatus::Healthy => Health::Healthy,
            HealthStatus::Degraded => Health::Degraded,
            HealthStatus::Unhealthy | HealthStatus::Timeout => Health::Unhealthy,
            HealthStatus::Draining => Health::Excluded,
        }
    }

    /// Health in the words of configuration, all sources considered.
    pub fn health_status(&self) -> HealthStatus {
        match self.health() {
            Health::Unhealthy | Health::Excluded if self.configured_healthy() => {
                HealthStatus::Unhealthy
            }
            Health::Degraded => HealthStatus::Degraded,
            _ => self.status,
        }
    }

    /// A text in the metadata under `envoy.lb`.
    pub fn lb_text(&self, key: &str) -> Option<&str> {
        match &self.lb.as_ref()?.fields.get(key)?.kind {
            Some(wkt::value::Kind::StringValue(text)) => Some(text),
            _ => None,
        }
    }

    /// True if metadata marks it as a canary.
    pub fn is_canary(&self) -> bool {
        let canary = self.lb.as_ref().and_then(|lb| lb.fields.get("canary"));
        canary.is_some_and(|value| value.kind == Some(wkt::value::Kind::BoolValue(true)))
    }

    /// True if configuration says nothing against it.
    pub fn configured_healthy(&self) -> bool {
        matches!(
            self.status,
            HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded
        )
    }
}

/// Endpoints of one locality, all addresses known.
#[derive(Debug)]
pub struct LocalityGroup {
    pub locality: [Arc<str>; 3],
    pub weight: u32,
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// What load balancing works on.
#[derive(Debug, Default)]
pub struct EndpointSet {
    pub priorities: Vec<Vec<LocalityGroup>>,
    pub overprovisioning: u32,
    pub weighted_health: bool,
}

/// Addresses that names resolved to.
pub type Resolved = HashMap<(String, u16), Vec<SocketAddr>>;

/// What becomes of the addresses of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Each is an endpoint.
    Each,
    /// The first is the endpoint.
    First,
    /// All are one endpoint.
    Together,
}

impl AssignmentSpec {
    pub fn compile(
        value: &pb::ClusterLoadAssignment,
        cluster: &ClusterConfig,
        faults: &mut Faults,
    ) -> Self {
        let policy = value.policy.as_ref();
        let drops = policy.is_some_and(|policy| !policy.drop_overloads.is_empty());
        faults.ignore_if(drops, "policy.drop_overloads");
        let overprovisioning = policy.and_then(|policy| policy.overprovisioning_factor.as_ref());
        let mut spec = Self {
            priorities: Vec::new(),
            overprovisioning: values::u32_or(overprovisioning, 140),
            weighted_health: policy.is_some_and(|policy| policy.weighted_priority_health),
        };
        for (index, group) in value.endpoints.iter().enumerate() {
            faults.enter(format!("endpoints[{index}]"));
            // Envoy's own bound; an index from a peer must not size a table.
            if group.priority > 128 {
                faults.reject("priority", "above 128");
            } else {
                let priority = group.priority as usize;
                if spec.priorities.len() <= priority {
                    spec.priorities.resize_with(priority + 1, Vec::new);
                }
                spec.priorities[priority].push(LocalitySpec::compile(group, cluster, faults));
            }
            faults.leave();
        }
        spec
    }

    /// Names that must be resolved first.
    pub fn names(&self) -> Vec<(String, u16)> {
        let mut names = Vec::new();
        for endpoint in self.priorities.iter().flatten().flat_map(|group| &group.endpoints) {
            if let HostAddress::Name(name, port) = &endpoint.address {
                names.push((name.clone(), *port));
            }
        }
        names
    }

    /// The endpoints with names replaced by `resolved` addresses; states are
    /// taken over from `previous`.
    pub fn resolve(
        &self,
        resolved: &Resolved,
        spread: Spread,
        previous: Option<&EndpointSet>,
        workers: usize,
    ) -> EndpointSet {
        let mut states: HashMap<(Option<SocketAddr>, usize), Arc<EndpointState>> = HashMap::new();
        for endpoint in previous.iter().flat_map(|set| set.endpoints()) {
            let key = (spread.key(endpoint.address), endpoint.transport_index);
            states.insert(key, endpoint.state.clone());
        }
        let mut build = |spec: &EndpointSpec, addresses: &[SocketAddr], priority: u32| {
            let (address, more) = (addresses[0], addresses[1..].to_vec());
            let key = (spread.key(address), spec.transport_index);
            let new = || Arc::new(EndpointState::new(workers));
            Arc::new(Endpoint {
                address,
                more,
                checked_as: spec.checked_as.clone(),
                hostname: spec.hostname.clone(),
                weight: spec.weight,
                status: spec.status,
                priority,
                transport: spec.transport.clone(),
                transport_index: spec.transport_index,
                peer: spec.peer.clone(),
                lb: spec.lb.clone(),
                state: states.entry(key).or_insert_with(new).clone(),
            })
        };
        let mut set = EndpointSet {
            priorities: Vec::new(),
            overprovisioning: self.overprovisioning,
            weighted_health: self.weighted_health,
        };
        for (groups, priority) in self.priorities.iter().zip(0..) {
            let mut localities = Vec::with_capacity(groups.len());
            for group in groups {
                let mut endpoints = Vec::with_capacity(group.endpoints.len());
                for spec in &group.endpoints {
                    for addresses in spec.addresses(resolved, spread) {
                        endpoints.push(build(spec, &addresses, priority));
                    }
                }
                localities.push(LocalityGroup {
                    locality: group.locality.clone(),
                    weight: group.weight,
                    endpoints,
                });
            }
            set.priorities.push(localities);
        }
        set
    }
}

impl EndpointSpec {
    /// The addresses of each endpoint that it stands for.
    fn addresses(&self, resolved: &Resolved, spread: Spread) -> Vec<Vec<SocketAddr>> {
        match &self.address {
            HostAddress::Ip(address) | HostAddress::Pipe(address) => {
                vec![[&[*address], self.more.as_slice()].concat()]
            }
            HostAddress::Name(name, port) => {
                let found = resolved.get(&(name.clone(), *port));
                let found = found.map(Vec::as_slice).unwrap_or_default();
                match spread {
                    Spread::Each => found.chunks(1).map(<[_]>::to_vec).collect(),
                    Spread::First => found.first().map(|first| vec![*first]).into_iter().collect(),
                    Spread::Together => {
                        found.chunks(found.len().max(1)).map(<[_]>::to_vec).collect()
                    }
                }
            }
        }
    }
}

impl Spread {
    /// What an endpoint is known by across updates: its address, unless it
    /// is the same endpoint at whichever address.
    pub fn key(self, address: SocketAddr) -> Option<SocketAddr> {
        (self == Self::Each).then_some(address)
    }
}

impl EndpointSet {
    /// Makes endpoints wait for their first active check, if there is to be
    /// one, or forget earlier ones.
    pub fn begin_checks(&self, cluster: &ClusterConfig) {
        for endpoint in self.endpoints() {
            match !cluster.checks.is_empty() && !endpoint.checked_as.disabled {
                true => endpoint.state.await_check(cluster.ignore_unchecked),
                false => endpoint.state.end_checks(),
            }
        }
    }

    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.priorities.iter().flatten().flat_map(|group| &group.endpoints)
    }
}

impl LocalitySpec {
    fn compile(
        value: &pb::LocalityLbEndpoints,
        cluster: &ClusterConfig,
        faults: &mut Faults,
    ) -> Self {
        faults.reject_if(value.lb_config.is_some(), "lb_config");
        let locality = value.locality.clone().unwrap_or_default();
        let mut endpoints = Vec::with_capacity(value.lb_endpoints.len());
        for (index, endpoint) in value.lb_endpoints.iter().enumerate() {
            let compiled = faults.within(format!("lb_endpoints[{index}]"), |faults| {
                EndpointSpec::compile(endpoint, cluster, faults)
            });
            endpoints.extend(compiled);
        }
        Self {
            locality: [
                locality.region.as_str().into(),
                locality.zone.as_str().into(),
                locality.sub_zone.as_str().into(),
            ],
            weight: values::u32_or(value.load_balancing_weight.as_ref(), 0),
            endpoints,
        }
    }
}

impl EndpointSpec {
    fn compile(
        value: &pb::LbEndpoint,
        cluster: &ClusterConfig,
        faults: &mut Faults,
    ) -> Option<Self> {
        let Some(pb::lb_endpoint::HostIdentifier::Endpoint(endpoint)) = &value.host_identifier
        else {
            faults.reject("endpoint", "missing");
            return None;
        };
        let address = values::address(endpoint.address.as_ref(), faults)?;
        let hostname = match (&address, endpoint.hostname.as_str()) {
            (HostAddress::Name(name, _), "") => name.as_str(),
            (_, name) => name,
        };
        let (transport_index, transport) = cluster.transport_of(value.metadata.as_ref());
        let metadata = value.metadata.as_ref();
        let lb = metadata.and_then(|metadata| metadata.filter_metadata.get(NAMESPACE));
        let mut more = Vec::new();
        for (index, one) in endpoint.additional_addresses.iter().enumerate() {
            faults.enter(format!("endpoint.additional_addresses[{index}]"));
            match values::address(one.address.as_ref(), faults) {
                Some(HostAddress::Ip(address) | HostAddress::Pipe(address)) => more.push(address),
                Some(_) => faults.reject("address", "neither an IP address nor a Unix socket"),
                None => {}
            }
            faults.leave();
        }
        let checked_as = endpoint.health_check_config.as_ref();
        Some(Self {
            more,
            checked_as: checked_as
                .map(|config| CheckedAs::compile(config, faults))
                .unwrap_or_default(),
            hostname: hostname.into(),
            weight: values::u32_or(value.load_balancing_weight.as_ref(), 1).max(1),
            status: value.health_status(),
            transport,
            transport_index,
            peer: values::metadata_string(value.metadata.as_ref(), "istio", "workload")
                .and_then(PeerMetadata::from_endpoint)
                .map(Arc::new),
            lb: lb.cloned().map(Arc::new),
            address,
        })
    }
}

/// True if every entry of `want` is in the endpoint's metadata.
pub fn metadata_contains(metadata: Option<&core::Metadata>, want: &wkt::Struct) -> bool {
    let have =
        metadata.and_then(|metadata| metadata.filter_metadata.get("envoy.transport_socket_match"));
    want.fields.iter().all(|(key, value)| {
        have.and_then(|have| have.fields.get(key)).is_some_and(|have| have == value)
    })
}
