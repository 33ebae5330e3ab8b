//! What all workers share about endpoints and clusters: counters, ejection,
//! circuit breakers.
//!
//! Counters have one writer each, the worker whose shard they are in, so
//! counting is a plain store. Circuit breakers are true atomics, touched only
//! where a limit is set.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use amime_telemetry::{Counter, Gauge};
use tokio::sync::Notify;

use crate::cluster::Limits;
use crate::load_reports::ReportedWeight;
use crate::outlier::Rate;

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
    /// For passive checks: answers, and those below 500.
    pub(crate) answers: Counter,
    pub(crate) good_answers: Counter,
    /// For passive checks: connections tried, and those that came about.
    pub(crate) connects: Counter,
    pub(crate) good_connects: Counter,
}

/// State of an endpoint that survives updates of its cluster.
#[derive(Debug)]
pub struct EndpointState {
    pub shards: Box<[EndpointShard]>,
    /// When it became usable, by [`now_ms`].
    healthy_since: AtomicU64,
    flags: AtomicU32,
    /// When it was last taken out and back, by [`now_ms`]; 0: never.
    pub(crate) ejected_at: AtomicU64,
    pub(crate) unejected_at: AtomicU64,
    pub(crate) ejection_jitter_ms: AtomicU64,
    /// Multiple of the base time that the present or next ejection lasts.
    pub(crate) backoff: AtomicU32,
    pub(crate) consecutive_5xx: AtomicU32,
    pub(crate) consecutive_gateway: AtomicU32,
    pub(crate) consecutive_local: AtomicU32,
    /// What the endpoint says of its load.
    pub reported: ReportedWeight,
    /// Told when checks of either kind take the endpoint out.
    pub failed: Notify,
    /// When they last did, by [`now_ms`]; 0: never.
    failed_ms: AtomicU64,
    /// Sums of the shards at the last sweep: answers, connections.
    swept: [[AtomicU64; 2]; 2],
    /// Success rates of the last interval as bits of an `f64`; 0: none known.
    rates: [AtomicU64; 2],
}

/// Flags of an endpoint.
mod flag {
    pub(super) const EJECTED: u32 = 1;
    /// The active check fails, or there was none yet.
    pub(super) const CHECK_FAILED: u32 = 1 << 1;
    pub(super) const CHECKED: u32 = 1 << 2;
    pub(super) const CHECK_DEGRADED: u32 = 1 << 3;
    pub(super) const CHECK_TIMEOUT: u32 = 1 << 4;
    /// The endpoint itself asked to be left out.
    pub(super) const EXCLUDED: u32 = 1 << 5;
    /// Left out until its first check.
    pub(super) const UNCHECKED: u32 = 1 << 6;
    pub(super) const CHECKS: u32 =
        CHECK_FAILED | CHECKED | CHECK_DEGRADED | CHECK_TIMEOUT | EXCLUDED | UNCHECKED;
}

/// How an attempt ended, for passive health checking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Status(u16),
    /// There is a connection; the answer is reported apart.
    Connected,
    /// There is a connection, and nothing else to tell a good end by.
    Served,
    /// The connection could not be made or broke.
    LocalOrigin,
    /// No answer came in time.
    Timeout,
}

impl EndpointState {
    pub fn new(workers: usize) -> Self {
        Self {
            shards: (0..workers.max(1)).map(|_| EndpointShard::default()).collect(),
            healthy_since: AtomicU64::new(now_ms()),
            flags: AtomicU32::new(0),
            ejected_at: AtomicU64::new(0),
            unejected_at: AtomicU64::new(0),
            ejection_jitter_ms: AtomicU64::new(0),
            backoff: AtomicU32::new(0),
            consecutive_5xx: AtomicU32::new(0),
            consecutive_gateway: AtomicU32::new(0),
            consecutive_local: AtomicU32::new(0),
            reported: ReportedWeight::default(),
            failed: Notify::new(),
            failed_ms: AtomicU64::new(0),
            swept: Default::default(),
            rates: Default::default(),
        }
    }

    /// True while outlier detection keeps the endpoint out.
    pub fn ejected(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & flag::EJECTED != 0
    }

    /// Marks it as taken out; false if it was.
    pub(crate) fn set_ejected(&self) -> bool {
        let first = self.flags.fetch_or(flag::EJECTED, Ordering::Relaxed) & flag::EJECTED == 0;
        if first {
            self.note_failure();
        }
        first
    }

    fn note_failure(&self) {
        self.failed_ms.store(now_ms(), Ordering::Relaxed);
        self.failed.notify_waiters();
    }

    /// True if checks have taken the endpoint out since then, by [`now_ms`].
    pub fn failed_since(&self, opened_ms: u64) -> bool {
        self.failed_ms.load(Ordering::Relaxed) >= opened_ms
    }

    /// Marks it as in service; false if it was.
    pub(crate) fn clear_ejected(&self) -> bool {
        self.flags.fetch_and(!flag::EJECTED, Ordering::Relaxed) & flag::EJECTED != 0
    }

    /// True if no more connections of this priority may be opened to it.
    pub fn is_full(&self, limits: &Limits) -> bool {
        let active = || self.shards.iter().map(|shard| shard.cx_active.value()).sum::<i64>();
        limits.per_host != u32::MAX && active() >= i64::from(limits.per_host)
    }

    fn has(&self, flags: u32) -> bool {
        self.flags.load(Ordering::Relaxed) & flags != 0
    }

    /// Keeps the endpoint out until its first active check; `ignored` until
    /// then, it counts as if it were not there.
    pub fn await_check(&self, ignored: bool) {
        if !self.has(flag::CHECKED) {
            let flags = flag::CHECK_FAILED | if ignored { flag::UNCHECKED } else { 0 };
            self.flags.fetch_or(flags, Ordering::Relaxed);
        }
    }

    /// Forgets what active checks found: there are none any more.
    pub fn end_checks(&self) {
        if self.has(flag::CHECKS) {
            self.flags.fetch_and(!flag::CHECKS, Ordering::Relaxed);
        }
    }

    /// True once an active check has come to a result.
    pub fn checked(&self) -> bool {
        self.has(flag::CHECKED)
    }

    /// Notes that there was a check; true if there was one before.
    pub fn mark_checked(&self) -> bool {
        self.flags.fetch_and(!flag::UNCHECKED, Ordering::Relaxed);
        self.flags.fetch_or(flag::CHECKED, Ordering::Relaxed) & flag::CHECKED != 0
    }

    /// True while active checks keep the endpoint out.
    pub fn check_failed(&self) -> bool {
        self.has(flag::CHECK_FAILED)
    }

    /// True if the last failed check ran into its timeout.
    pub fn check_timed_out(&self) -> bool {
        self.has(flag::CHECK_TIMEOUT)
    }

    /// True if the endpoint calls itself degraded when it is checked.
    pub fn check_degraded(&self) -> bool {
        self.has(flag::CHECK_DEGRADED)
    }

    /// True while the endpoint is left out until its first check.
    pub fn unchecked(&self) -> bool {
        self.has(flag::UNCHECKED)
    }

    /// True if the endpoint asked to be left out, or is to be until its check.
    pub fn excluded(&self) -> bool {
        self.has(flag::EXCLUDED | flag::UNCHECKED)
    }

    /// Takes the endpoint out by active checks.
    pub fn fail_check(&self, timeout: bool) {
        let flags = flag::CHECK_FAILED | if timeout { flag::CHECK_TIMEOUT } else { 0 };
        self.flags.fetch_or(flags, Ordering::Relaxed);
        self.note_failure();
    }

    /// Takes the endpoint out because it asks for it; a good check ends it.
    pub fn exclude(&self) {
        self.flags.fetch_or(flag::CHECK_FAILED | flag::EXCLUDED, Ordering::Relaxed);
        self.note_failure();
    }

    /// Puts the endpoint into service by active checks.
    pub fn pass_check(&self) {
        let flags = flag::CHECK_FAILED | flag::CHECK_TIMEOUT | flag::EXCLUDED;
        self.flags.fetch_and(!flags, Ordering::Relaxed);
        self.mark_healthy();
    }

    /// Notes whether it calls itself degraded; true if that is new.
    pub fn set_check_degraded(&self, degraded: bool) -> bool {
        let flag = flag::CHECK_DEGRADED;
        let before = match degraded {
            true => self.flags.fetch_or(flag, Ordering::Relaxed),
            false => self.flags.fetch_and(!flag, Ordering::Relaxed),
        };
        (before & flag != 0) != degraded
    }

    /// Outcomes since the last call: answers, connections.
    pub(crate) fn rates(&self) -> [Rate; 2] {
        let sum = |pick: fn(&EndpointShard) -> &Counter| {
            self.shards.iter().map(|shard| pick(shard).value()).sum::<u64>()
        };
        let now = [
            [sum(|shard| &shard.answers), sum(|shard| &shard.good_answers)],
            [sum(|shard| &shard.connects), sum(|shard| &shard.good_connects)],
        ];
        [0, 1].map(|kind: usize| {
            let [total, good] = [0, 1].map(|at: usize| {
                now[kind][at] - self.swept[kind][at].swap(now[kind][at], Ordering::Relaxed)
            });
            Rate { total, good }
        })
    }

    /// Remembers a success rate in percent for [`EndpointState::shown_rate`].
    pub(crate) fn show_rate(&self, local: bool, rate: Option<f64>) {
        // A rate of zero must differ from none.
        let bits = rate.map_or(0, |rate| rate.max(f64::MIN_POSITIVE).to_bits());
        self.rates[usize::from(local)].store(bits, Ordering::Relaxed);
    }

    /// Success rate in percent within the last interval of passive checks, of
    /// answers or of connections; `None` if there was too little to tell.
    pub fn shown_rate(&self, local: bool) -> Option<f64> {
        let bits = self.rates[usize::from(local)].load(Ordering::Relaxed);
        (bits != 0).then(|| f64::from_bits(bits))
    }

    /// An active check has found the endpoint healthy: slow start begins.
    pub fn mark_healthy(&self) {
        self.healthy_since.store(now_ms(), Ordering::Relaxed);
    }

    /// Since when the endpoint is usable, by [`now_ms`].
    pub fn healthy_since_ms(&self) -> u64 {
        self.healthy_since.load(Ordering::Relaxed)
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
    /// Connections were opened for requests.
    traffic: AtomicBool,
    /// Endpoints that passive checks keep out.
    pub(crate) ejections: AtomicU32,
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

    /// Counts anew how many are kept out of a changed set; the change.
    pub fn recount_ejections<'a>(&self, states: impl Iterator<Item = &'a EndpointState>) -> i64 {
        let now = states.filter(|state| state.ejected()).count();
        let now = u32::try_from(now).unwrap_or(u32::MAX);
        i64::from(now) - i64::from(self.ejections.swap(now, Ordering::Relaxed))
    }

    /// Notes that the cluster is used.
    pub fn note_traffic(&self) {
        if !self.has_traffic() {
            self.traffic.store(true, Ordering::Relaxed);
        }
    }

    /// True once the cluster was used.
    pub fn has_traffic(&self) -> bool {
        self.traffic.load(Ordering::Relaxed)
    }

    pub fn used(&self, priority: usize, resource: Resource) -> u32 {
        self.used[priority][resource as usize].load(Ordering::Relaxed)
    }

    /// How much of `resource` may be in use now.
    pub fn limit(&self, limits: &[Limits; 2], priority: usize, resource: Resource) -> u32 {
        let limits = &limits[priority];
        match resource {
            Resource::Connections => limits.connections,
            Resource::Pending => limits.pending,
            Resource::Requests => limits.requests,
            Resource::Retries => self.retry_limit(limits, priority),
        }
    }

    /// Takes one of `resource`; false if its limit is reached.
    pub fn take(&self, limits: &[Limits; 2], priority: usize, resource: Resource) -> bool {
        let limit = self.limit(limits, priority, resource);
        let limits = &limits[priority];
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
