//! What the runtime holds now, for the admin endpoints.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use amime_xds::TypeUrl;
use bytes::Bytes;

use amime_config::endpoint::{Endpoint, HealthStatus};
use amime_upstream::{ClusterSpec, EndpointShard};

/// A copy of the runtime's state.
#[derive(Clone, Debug, Default)]
pub struct RuntimeDump {
    /// Every resource held, in the order of types pushed, then by name.
    pub resources: Vec<ResourceDump>,
    /// Listeners in force.
    pub listeners: Vec<ListenerDump>,
    /// Clusters in force.
    pub clusters: Vec<ClusterDump>,
}

/// One configuration resource.
#[derive(Clone, Debug)]
pub struct ResourceDump {
    /// Kind of the message in `body`.
    pub type_url: TypeUrl,
    /// Name of the resource.
    pub name: String,
    /// Version in force; empty if none is.
    pub version: Arc<str>,
    /// The encoded message in force.
    pub body: Bytes,
    /// When it was last changed.
    pub last_updated: SystemTime,
    /// True if it came from the bootstrap file.
    pub is_static: bool,
    /// True while something it needs (a route configuration) has not arrived.
    pub warming: bool,
    /// Fields of it that have no effect here.
    pub ignored_fields: Vec<String>,
    /// The last version that was refused, if it is newer than the one in force.
    pub rejected: Option<RejectedDump>,
}

/// A refused version of a resource.
#[derive(Clone, Debug)]
pub struct RejectedDump {
    /// Its version.
    pub version: Arc<str>,
    /// Why it was refused.
    pub error: String,
    /// When.
    pub at: SystemTime,
}

/// A listener in force.
#[derive(Clone, Debug)]
pub struct ListenerDump {
    /// Name of the resource.
    pub name: String,
    /// Address bound, with the real port; the configured one if it binds none.
    pub address: Option<SocketAddr>,
    /// False for listeners reached only by hand-off.
    pub bound: bool,
}

/// A cluster in force.
#[derive(Clone, Debug)]
pub struct ClusterDump {
    /// Name of the resource.
    pub name: String,
    /// Whether it came by CDS.
    pub added_via_api: bool,
    /// Circuit breaker limits of default priority: connections, pending
    /// requests, requests, retries.
    pub limits: [u32; 4],
    /// Endpoints known now.
    pub endpoints: Vec<EndpointDump>,
}

/// One endpoint with its counters.
#[derive(Clone, Debug)]
pub struct EndpointDump {
    /// Where it is reached.
    pub address: SocketAddr,
    /// Name it was resolved from or given.
    pub hostname: String,
    /// Region, zone, sub zone.
    pub locality: [String; 3],
    /// Load-balancing weight.
    pub weight: u32,
    /// Priority; 0 is tried first.
    pub priority: u32,
    /// False if its discovery says so.
    pub eds_healthy: bool,
    /// Envoy's names of what is wrong with it.
    pub health_flags: Vec<&'static str>,
    /// True while outlier detection keeps it out.
    pub ejected: bool,
    /// Percent of good answers in the last interval of outlier detection.
    pub success_rate: Option<f64>,
    /// Percent of connections that came about in that interval.
    pub local_success_rate: Option<f64>,
    /// Connections open.
    pub cx_active: u64,
    /// Connections opened.
    pub cx_total: u64,
    /// Connections that failed to open.
    pub cx_connect_fail: u64,
    /// Requests in flight.
    pub rq_active: u64,
    /// Requests sent.
    pub rq_total: u64,
    /// Requests answered below 500.
    pub rq_success: u64,
    /// Requests answered with 5xx or not at all.
    pub rq_error: u64,
    /// Requests that timed out.
    pub rq_timeout: u64,
}

impl ClusterDump {
    /// A cluster as it is now.
    pub(crate) fn of(spec: &ClusterSpec, added_via_api: bool) -> Self {
        let limits = &spec.config.limits[0];
        let mut endpoints = Vec::new();
        for (priority, groups) in spec.endpoints.priorities.iter().enumerate() {
            let priority = u32::try_from(priority).unwrap_or(u32::MAX);
            for group in groups {
                let locality = [0, 1, 2].map(|part| group.locality[part].to_string());
                let dump = |endpoint: &Arc<Endpoint>| {
                    let weight = spec.config.lb.weight_of(endpoint);
                    EndpointDump {
                        weight,
                        ..EndpointDump::of(endpoint, locality.clone(), priority)
                    }
                };
                endpoints.extend(group.endpoints.iter().map(dump));
            }
        }
        Self {
            name: spec.config.name.to_string(),
            added_via_api,
            limits: [limits.connections, limits.pending, limits.requests, limits.retries],
            endpoints,
        }
    }
}

impl EndpointDump {
    fn of(endpoint: &Endpoint, locality: [String; 3], priority: u32) -> Self {
        let sum =
            |pick: &dyn Fn(&EndpointShard) -> u64| endpoint.state.shards.iter().map(pick).sum();
        let gauge = |value: i64| u64::try_from(value).unwrap_or(0);
        Self {
            address: endpoint.address,
            hostname: endpoint.hostname.to_string(),
            locality,
            weight: endpoint.weight,
            priority,
            eds_healthy: endpoint.configured_healthy(),
            health_flags: health_flags(endpoint),
            ejected: endpoint.state.ejected(),
            success_rate: endpoint.state.shown_rate(false),
            local_success_rate: endpoint.state.shown_rate(true),
            cx_active: sum(&|shard| gauge(shard.cx_active.value())),
            cx_total: sum(&|shard| shard.cx_total.value()),
            cx_connect_fail: sum(&|shard| shard.cx_connect_fail.value()),
            rq_active: sum(&|shard| gauge(shard.rq_active.value())),
            rq_total: sum(&|shard| shard.rq_total.value()),
            rq_success: sum(&|shard| shard.rq_success.value()),
            rq_error: sum(&|shard| shard.rq_error.value()),
            rq_timeout: sum(&|shard| shard.rq_timeout.value()),
        }
    }
}

/// In Envoy's order.
fn health_flags(endpoint: &Endpoint) -> Vec<&'static str> {
    let (state, status) = (&endpoint.state, endpoint.status);
    let flags = [
        (state.check_failed(), "failed_active_hc"),
        (state.ejected(), "failed_outlier_check"),
        (matches!(status, HealthStatus::Unhealthy | HealthStatus::Timeout), "failed_eds_health"),
        (state.check_degraded(), "degraded_active_hc"),
        (status == HealthStatus::Degraded, "degraded_eds_health"),
        (state.unchecked(), "pending_active_hc"),
        (state.excluded() && !state.unchecked(), "excluded_via_immediate_hc_fail"),
        (state.check_timed_out(), "active_hc_timeout"),
        (status == HealthStatus::Draining, "eds_status_draining"),
    ];
    flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect()
}
