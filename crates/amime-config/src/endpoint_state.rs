//! What all workers share about endpoints and clusters: counters, ejection,
//! circuit breakers.
//!
//! Counters have one writer each, the worker whose shard they are in, so
//! counting is a plain store. Circuit breakers are true atomics, touched only
//! where a limit is set.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use amime_telemetry::{Counter, Gauge};

use crate::cluster::{Limits, Outlier};

/// One worker's counters of an endpoint.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct EndpointShard {
    pub cx_active: Gauge,
    pub cx_total: Counter,
    pub cx_connect_fail: Counter,
    pub rq_active: Gauge,
    pub rq_total: Counter,
    pub rq_success: Counter,
    pub rq_error: Counter,
    pub rq_timeout: Counter,
}

/// State of an endpoint that survives updates of its cluster.
#[derive(Debug)]
pub struct EndpointState {
    pub shards: Box<[EndpointShard]>,
    /// When it became usable, by [`now_ms`].
    healthy_since: AtomicU64,
    /// Milliseconds since [`epoch`]; 0: in service.
    ejected_until: AtomicU64,
    ejections: AtomicU32,
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
}

/// How an attempt ended, for passive health checking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Status(u16),
    /// The connection could not be made or broke.
    LocalOrigin,
}

impl EndpointState {
    pub fn new(workers: usize) -> Self {
        Self {
            shards: (0..workers.max(1)).map(|_| EndpointShard::default()).collect(),
            healthy_since: AtomicU64::new(now_ms()),
            ejected_until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            consecutive_5xx: AtomicU32::new(0),
            consecutive_gateway: AtomicU32::new(0),
            consecutive_local: AtomicU32::new(0),
        }
    }

    /// True while outlier detection keeps the endpoint out.
    pub fn ejected(&self) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        until != 0 && now_ms() < until
    }

    /// When an ejection that is in force ends, by [`now_ms`].
    pub fn ejected_until_ms(&self) -> Option<u64> {
        let until = self.ejected_until.load(Ordering::Relaxed);
        (until != 0 && now_ms() < until).then_some(until)
    }

    /// An active check has found the endpoint healthy: slow start begins.
    pub fn mark_healthy(&self) {
        self.healthy_since.store(now_ms(), Ordering::Relaxed);
    }

    /// Since when the endpoint is usable, by [`now_ms`].
    pub fn healthy_since_ms(&self) -> u64 {
        self.healthy_since.load(Ordering::Relaxed)
    }

    /// Counts an outcome; true if the endpoint has now failed too often.
    pub fn observe(&self, outcome: Outcome, outlier: &Outlier) -> bool {
        let over = |counter: &AtomicU32, bad: bool, limit: u32| {
            if !bad {
                // Reading first keeps the line shared while all is well.
                if counter.load(Ordering::Relaxed) != 0 {
                    counter.store(0, Ordering::Relaxed);
                }
                return false;
            }
            counter.fetch_add(1, Ordering::Relaxed).saturating_add(1) >= limit
        };
        match outcome {
            Outcome::Status(status) => {
                over(&self.consecutive_local, false, u32::MAX);
                let gateway = matches!(status, 502..=504);
                over(&self.consecutive_5xx, status >= 500, outlier.consecutive_5xx)
                    | over(&self.consecutive_gateway, gateway, outlier.consecutive_gateway)
            }
            Outcome::LocalOrigin => match outlier.consecutive_local {
                Some(limit) => over(&self.consecutive_local, true, limit),
                // Without the split a broken connection counts as a 503.
                None => {
                    over(&self.consecutive_5xx, true, outlier.consecutive_5xx)
                        | over(&self.consecutive_gateway, true, outlier.consecutive_gateway)
                }
            },
        }
    }

    /// Takes the endpoint out for a time that grows with each ejection.
    pub fn eject(&self, outlier: &Outlier) {
        let times = self.ejections.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let time = outlier.base_ejection.saturating_mul(times).min(outlier.max_ejection);
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.ejected_until.store(now_ms().saturating_add(millis).max(1), Ordering::Relaxed);
        for counter in [&self.consecutive_5xx, &self.consecutive_gateway, &self.consecutive_local] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// Milliseconds since the first call in this process.
pub fn now_ms() -> u64 {
    static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let epoch = *EPOCH.get_or_init(|| Instant::now() - Duration::from_millis(1));
    u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Which limit of a circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Connections,
    Pending,
    Requests,
    Retries,
}

/// Use of a cluster's circuit breakers, by priority.
#[derive(Debug, Default)]
pub struct ClusterState {
    used: [[AtomicU32; 4]; 2],
    health_version: AtomicU64,
}

impl ClusterState {
    /// Some endpoint's health is another now: balancers look again.
    pub fn health_changed(&self) {
        self.health_version.fetch_add(1, Ordering::Release);
    }

    /// Moves whenever an endpoint's health changes.
    pub fn health_version(&self) -> u64 {
        self.health_version.load(Ordering::Acquire)
    }

    pub fn used(&self, priority: usize, resource: Resource) -> u32 {
        self.used[priority][resource as usize].load(Ordering::Relaxed)
    }

    /// Takes one of `resource`; false if its limit is reached.
    pub fn take(&self, limits: &[Limits; 2], priority: usize, resource: Resource) -> bool {
        let limits = &limits[priority];
        let limit = match resource {
            Resource::Connections => limits.connections,
            Resource::Pending => limits.pending,
            Resource::Requests => limits.requests,
            Resource::Retries => self.retry_limit(limits, priority),
        };
        let counted = limit != u32::MAX || self.counts_requests(limits, resource);
        if !counted {
            return true;
        }
        let slot = &self.used[priority][resource as usize];
        if slot.fetch_add(1, Ordering::Relaxed) >= limit {
            slot.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Takes one although the limit may be reached.
    pub fn force(&self, limits: &[Limits; 2], priority: usize) {
        if limits[priority].connections != u32::MAX {
            self.used[priority][Resource::Connections as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives back what `take` took.
    pub fn give(&self, limits: &[Limits; 2], priority: usize, resource: Resource) {
        let limits = &limits[priority];
        let counted = match resource {
            Resource::Connections => limits.connections != u32::MAX,
            Resource::Pending => limits.pending != u32::MAX,
            Resource::Requests => {
                limits.requests != u32::MAX || self.counts_requests(limits, resource)
            }
            Resource::Retries => limits.retries != u32::MAX || limits.retry_budget.is_some(),
        };
        if counted {
            let slot = &self.used[priority][resource as usize];
            // Saturating: the limit may have been set while the request ran.
            let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                Some(used.saturating_sub(1))
            });
        }
    }

    /// A retry budget needs to know the requests in flight.
    fn counts_requests(&self, limits: &Limits, resource: Resource) -> bool {
        resource == Resource::Requests && limits.retry_budget.is_some()
    }

    fn retry_limit(&self, limits: &Limits, priority: usize) -> u32 {
        let Some(budget) = limits.retry_budget else { return limits.retries };
        let active = f64::from(self.used(priority, Resource::Requests))
            + f64::from(self.used(priority, Resource::Pending));
        ((active * budget.percent / 100.0) as u32).max(budget.min)
    }
}
