//! Connections to endpoints: pools, the HTTP protocols on them, calls of the
//! proxy's own.
//!
//! Which endpoint it is and how to reach it is `amime-upstream`'s; each worker
//! has pools of its own.

pub(crate) mod grpc;
pub(crate) mod h1;
pub(crate) mod h2;
pub(crate) mod open;
pub(crate) mod pool;
mod preconnect;

use amime_config::endpoint_state::now_ms;
pub(crate) use amime_upstream::{Outcome, Resource, RetryInput, connect};
use pool::HostPool;

pub(crate) type ClusterRuntime = amime_upstream::ClusterRuntime<HostPool>;
pub(crate) type Host = amime_upstream::Host<HostPool>;
pub(crate) type LbInput<'a> = amime_upstream::LbInput<'a, HostPool>;

/// True, and counted, if a connection that idles since then has done so for
/// too long.
pub(crate) fn idled_out(cluster: &ClusterRuntime, since_ms: u64) -> bool {
    let Some(limit) = cluster.config().http.idle_timeout else { return false };
    let old = u128::from(now_ms().saturating_sub(since_ms)) >= limit.as_millis();
    if old {
        cluster.stats.upstream_cx_idle_timeout.inc();
    }
    old
}

/// True, and counted, if a connection that was opened then has lived for as
/// long as it may.
pub(crate) fn outlived(cluster: &ClusterRuntime, opened_ms: u64) -> bool {
    let Some(limit) = cluster.config().http.max_connection else { return false };
    let old = u128::from(now_ms().saturating_sub(opened_ms)) >= limit.as_millis();
    if old {
        cluster.stats.upstream_cx_max_duration_reached.inc();
    }
    old
}
