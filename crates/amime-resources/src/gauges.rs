//! Statistics that are worked out when somebody asks for them: circuit
//! breakers and health of clusters.

use amime_telemetry::{ClusterStats, Gauge};

use amime_config::endpoint::Health;
use amime_upstream::{ClusterSpec, Resource};

/// Brings the gauges of a cluster up to date; `stats` is the shared block.
pub(crate) fn refresh(spec: &ClusterSpec, stats: &ClusterStats) {
    let count = |health: Health| {
        let endpoints = spec.endpoints.endpoints().filter(|one| one.health() == health);
        i64::try_from(endpoints.count()).unwrap_or(i64::MAX)
    };
    stats.membership_healthy.set(count(Health::Healthy));
    stats.membership_degraded.set(count(Health::Degraded));
    stats.membership_excluded.set(count(Health::Excluded));
    if !spec.config.checks.is_empty() {
        let good = spec.endpoints.endpoints().filter(|one| !one.state.check_failed());
        stats.health_check_healthy.set(i64::try_from(good.count()).unwrap_or(i64::MAX));
        let degraded = spec.endpoints.endpoints().filter(|one| one.state.check_degraded());
        stats.health_check_degraded.set(i64::try_from(degraded.count()).unwrap_or(i64::MAX));
    }
    for (priority, breakers) in breakers(stats).into_iter().enumerate() {
        for (resource, open, remaining) in breakers {
            let limits = &spec.config.limits;
            let used = spec.state.used(priority, resource);
            let limit = spec.state.limit(limits, priority, resource);
            open.set(i64::from(used >= limit));
            if limits[priority].track_remaining {
                remaining.set(i64::from(limit.saturating_sub(used)));
            }
        }
    }
}

type Breaker<'a> = (Resource, &'a Gauge, &'a Gauge);

/// Whether it is open and what remains, by priority.
fn breakers(stats: &ClusterStats) -> [[Breaker<'_>; 4]; 2] {
    [
        [
            (
                Resource::Connections,
                &stats.circuit_breakers_default_cx_open,
                &stats.circuit_breakers_default_remaining_cx,
            ),
            (
                Resource::Pending,
                &stats.circuit_breakers_default_rq_pending_open,
                &stats.circuit_breakers_default_remaining_pending,
            ),
            (
                Resource::Requests,
                &stats.circuit_breakers_default_rq_open,
                &stats.circuit_breakers_default_remaining_rq,
            ),
            (
                Resource::Retries,
                &stats.circuit_breakers_default_rq_retry_open,
                &stats.circuit_breakers_default_remaining_retries,
            ),
        ],
        [
            (
                Resource::Connections,
                &stats.circuit_breakers_high_cx_open,
                &stats.circuit_breakers_high_remaining_cx,
            ),
            (
                Resource::Pending,
                &stats.circuit_breakers_high_rq_pending_open,
                &stats.circuit_breakers_high_remaining_pending,
            ),
            (
                Resource::Requests,
                &stats.circuit_breakers_high_rq_open,
                &stats.circuit_breakers_high_remaining_rq,
            ),
            (
                Resource::Retries,
                &stats.circuit_breakers_high_rq_retry_open,
                &stats.circuit_breakers_high_remaining_retries,
            ),
        ],
    ]
}
