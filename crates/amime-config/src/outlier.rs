//! Passive health checking: which endpoints are taken out because of how
//! they answer, and when they are taken back.
//!
//! Workers report outcomes as they happen and take out endpoints that fail
//! several times in a row; [`sweep`] compares endpoints with each other and
//! takes them back, at the cluster's interval.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier>

mod error_matcher;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use amime_telemetry::ClusterStats;
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::google::protobuf::UInt32Value;

use crate::endpoint::Endpoint;
use crate::endpoint_state::{ClusterState, EndpointShard, EndpointState, Outcome, now_ms};
use amime_rules::Faults;
use amime_rules::values::{self, bool_or, u32_or};
pub use error_matcher::ErrorMatcher;

/// A compiled `OutlierDetection`.
#[derive(Clone, Debug)]
pub struct Outlier {
    pub interval: Duration,
    base_ejection: Duration,
    max_ejection: Duration,
    jitter: Duration,
    max_percent: u32,
    always_one: bool,
    /// Failures in a row that take an endpoint out.
    consecutive_5xx: u32,
    consecutive_gateway: u32,
    consecutive_local: u32,
    /// Failures of the connection are counted apart from bad answers.
    pub split: bool,
    /// Percentage of detected endpoints that are taken out, by [`Ejection`].
    enforcing: [u32; 7],
    success_rate: Volume,
    stdev_factor: f64,
    failure_percentage: Volume,
    failure_threshold: f64,
    /// A good active check takes an endpoint back at once.
    pub uneject_on_check: bool,
}

/// How much must have been seen for endpoints to be compared.
#[derive(Clone, Copy, Debug)]
struct Volume {
    hosts: usize,
    requests: u64,
}

/// Why an endpoint is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejection {
    Consecutive5xx,
    ConsecutiveGateway,
    ConsecutiveLocal,
    SuccessRate,
    LocalSuccessRate,
    FailurePercentage,
    LocalFailurePercentage,
}

impl Outlier {
    pub(crate) fn compile(value: &pb::OutlierDetection, faults: &mut Faults) -> Self {
        let time = |value: Option<&_>, default| value.map_or(default, values::duration);
        let base = time(value.base_ejection_time.as_ref(), Duration::from_secs(30));
        let max = time(value.max_ejection_time.as_ref(), base.max(Duration::from_secs(300)));
        faults.enter("outlier_detection");
        if max < base {
            faults.reject("max_ejection_time", "smaller than base_ejection_time");
        }
        faults.ignore_if(!value.monitors.is_empty(), "monitors");
        faults.leave();
        let percent = |value: Option<&UInt32Value>, default| u32_or(value, default).min(100);
        let volume =
            |hosts: Option<&UInt32Value>, requests: Option<&UInt32Value>, default| Volume {
                hosts: u32_or(hosts, 5) as usize,
                requests: u64::from(u32_or(requests, default)),
            };
        Self {
            interval: time(value.interval.as_ref(), Duration::from_secs(10))
                .max(Duration::from_millis(1)),
            base_ejection: base,
            max_ejection: max,
            jitter: time(value.max_ejection_time_jitter.as_ref(), Duration::ZERO),
            max_percent: percent(value.max_ejection_percent.as_ref(), 10),
            always_one: bool_or(value.always_eject_one_host.as_ref(), false),
            consecutive_5xx: u32_or(value.consecutive_5xx.as_ref(), 5),
            consecutive_gateway: u32_or(value.consecutive_gateway_failure.as_ref(), 5),
            consecutive_local: u32_or(value.consecutive_local_origin_failure.as_ref(), 5),
            split: value.split_external_local_origin_errors,
            enforcing: [
                percent(value.enforcing_consecutive_5xx.as_ref(), 100),
                percent(value.enforcing_consecutive_gateway_failure.as_ref(), 0),
                percent(value.enforcing_consecutive_local_origin_failure.as_ref(), 100),
                percent(value.enforcing_success_rate.as_ref(), 100),
                percent(value.enforcing_local_origin_success_rate.as_ref(), 100),
                percent(value.enforcing_failure_percentage.as_ref(), 0),
                percent(value.enforcing_failure_percentage_local_origin.as_ref(), 0),
            ],
            success_rate: volume(
                value.success_rate_minimum_hosts.as_ref(),
                value.success_rate_request_volume.as_ref(),
                100,
            ),
            stdev_factor: f64::from(u32_or(value.success_rate_stdev_factor.as_ref(), 1900))
                / 1000.0,
            failure_percentage: volume(
                value.failure_percentage_minimum_hosts.as_ref(),
                value.failure_percentage_request_volume.as_ref(),
                50,
            ),
            failure_threshold: f64::from(percent(value.failure_percentage_threshold.as_ref(), 85)),
            uneject_on_check: bool_or(
                value.successful_active_health_check_uneject_host.as_ref(),
                true,
            ),
        }
    }

    fn enforces(&self, kind: Ejection) -> bool {
        match self.enforcing[kind as usize] {
            0 => false,
            100 => true,
            percent => fastrand::u32(0..100) < percent,
        }
    }
}

impl EndpointState {
    /// Counts an outcome; why the endpoint is now to be taken out, if it is.
    pub fn observe(
        &self,
        outcome: Outcome,
        outlier: &Outlier,
        shard: &EndpointShard,
    ) -> [Option<Ejection>; 2] {
        let status = match (outcome, outlier.split) {
            (Outcome::Status(status), _) => status,
            (Outcome::Connected | Outcome::Served, true) => {
                return self.observe_local(true, outlier, shard);
            }
            (_, true) => return self.observe_local(false, outlier, shard),
            (Outcome::Connected, false) => return [None; 2],
            (Outcome::Served, false) => 200,
            (Outcome::Timeout, false) => 504,
            (Outcome::LocalOrigin, false) => 503,
        };
        shard.answers.inc();
        let failed = (500..600).contains(&status);
        if !failed {
            shard.good_answers.inc();
            reset(&self.consecutive_5xx);
            reset(&self.consecutive_gateway);
            return [None; 2];
        }
        let gateway = if (502..=504).contains(&status) {
            again(&self.consecutive_gateway, outlier.consecutive_gateway)
        } else {
            reset(&self.consecutive_gateway);
            false
        };
        let five = again(&self.consecutive_5xx, outlier.consecutive_5xx);
        [gateway.then_some(Ejection::ConsecutiveGateway), five.then_some(Ejection::Consecutive5xx)]
    }

    fn observe_local(
        &self,
        good: bool,
        outlier: &Outlier,
        shard: &EndpointShard,
    ) -> [Option<Ejection>; 2] {
        shard.connects.inc();
        if good {
            shard.good_connects.inc();
            reset(&self.consecutive_local);
            return [None; 2];
        }
        let failed = again(&self.consecutive_local, outlier.consecutive_local);
        [failed.then_some(Ejection::ConsecutiveLocal), None]
    }
}

type Count = std::sync::atomic::AtomicU32;

/// Reading first keeps the line shared while all is well.
fn reset(count: &Count) {
    if count.load(Ordering::Relaxed) != 0 {
        count.store(0, Ordering::Relaxed);
    }
}

/// Counts a failure; true for the one that reaches the limit.
fn again(count: &Count, limit: u32) -> bool {
    count.fetch_add(1, Ordering::Relaxed).wrapping_add(1) == limit
}

/// What ejecting endpoints of one cluster needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Ejector<'a> {
    pub outlier: &'a Outlier,
    pub cluster: &'a ClusterState,
    /// Written by the calling thread alone.
    pub stats: &'a ClusterStats,
    /// Endpoints of the cluster.
    pub total: usize,
}

impl Ejector<'_> {
    /// Takes an endpoint out, unless too many are out already.
    pub fn eject(&self, endpoint: &EndpointState, kind: Ejection) {
        if endpoint.ejected() {
            return;
        }
        let (detected, enforced) = counters(self.stats, kind);
        detected.inc();
        if kind == Ejection::Consecutive5xx {
            self.stats.outlier_detection_ejections_consecutive_5xx.inc();
        }
        if matches!(kind, Ejection::SuccessRate | Ejection::LocalSuccessRate) {
            self.stats.outlier_detection_ejections_success_rate.inc();
        }
        if !self.may_eject() {
            self.stats.outlier_detection_ejections_overflow.inc();
        } else {
            if matches!(kind, Ejection::Consecutive5xx | Ejection::SuccessRate) {
                self.stats.outlier_detection_ejections_total.inc();
            }
            if self.outlier.enforces(kind) && endpoint.set_ejected() {
                self.cluster.ejections.fetch_add(1, Ordering::Relaxed);
                enforced.inc();
                self.stats.outlier_detection_ejections_enforced_total.inc();
                self.stats.outlier_detection_ejections_active.inc();
                self.remember(endpoint);
                self.cluster.health_changed();
            }
        }
        // A new row of failures is needed either way.
        match kind {
            Ejection::Consecutive5xx => reset(&endpoint.consecutive_5xx),
            Ejection::ConsecutiveGateway => reset(&endpoint.consecutive_gateway),
            Ejection::ConsecutiveLocal => reset(&endpoint.consecutive_local),
            _ => {}
        }
    }

    fn may_eject(&self) -> bool {
        let active = self.cluster.ejections.load(Ordering::Relaxed) as usize;
        self.outlier.always_one && active == 0
            || (active + 1) * 100 <= self.outlier.max_percent as usize * self.total
    }

    /// Notes when, and for how long by how often it happened of late.
    fn remember(&self, endpoint: &EndpointState) {
        let outlier = self.outlier;
        let jitter = u64::try_from(outlier.jitter.as_millis()).unwrap_or(u64::MAX);
        endpoint.ejection_jitter_ms.store(fastrand::u64(0..=jitter), Ordering::Relaxed);
        endpoint.ejected_at.store(now_ms(), Ordering::Relaxed);
        let times = endpoint.backoff.load(Ordering::Relaxed);
        if outlier.base_ejection * times < outlier.max_ejection + outlier.base_ejection {
            endpoint.backoff.store(times + 1, Ordering::Relaxed);
        }
    }

    /// Takes an endpoint back.
    pub fn uneject(&self, endpoint: &EndpointState) {
        if !endpoint.clear_ejected() {
            return;
        }
        let less = |count: u32| Some(count.saturating_sub(1));
        let _ = self.cluster.ejections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        self.stats.outlier_detection_ejections_active.dec();
        // Left near its limit, a counter would soon take it out again.
        reset(&endpoint.consecutive_5xx);
        reset(&endpoint.consecutive_gateway);
        reset(&endpoint.consecutive_local);
        endpoint.unejected_at.store(now_ms(), Ordering::Relaxed);
        self.cluster.health_changed();
    }

    fn is_over(&self, endpoint: &EndpointState) -> bool {
        let outlier = self.outlier;
        let times = endpoint.backoff.load(Ordering::Relaxed);
        let time = (outlier.base_ejection * times).min(outlier.max_ejection);
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let wait = millis.saturating_add(endpoint.ejection_jitter_ms.load(Ordering::Relaxed));
        now_ms().saturating_sub(endpoint.ejected_at.load(Ordering::Relaxed)) >= wait
    }

    /// What is due once per interval: takes endpoints back whose time is over
    /// and takes out those that do worse than the others.
    pub fn sweep(&self, endpoints: &[&Arc<Endpoint>]) {
        let mut rates = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let state = &endpoint.state;
            if state.ejected() && self.is_over(state) {
                self.uneject(state);
            }
            rates.push(state.rates());
        }
        for local in [false, true] {
            self.compare(endpoints, &rates, local);
        }
        let interval = u64::try_from(self.outlier.interval.as_millis()).unwrap_or(u64::MAX);
        for endpoint in endpoints.iter().filter(|one| !one.state.ejected()) {
            let since = endpoint.state.unejected_at.load(Ordering::Relaxed);
            let times = endpoint.state.backoff.load(Ordering::Relaxed);
            if since != 0 && times > 0 && now_ms().saturating_sub(since) >= interval {
                endpoint.state.backoff.store(times - 1, Ordering::Relaxed);
            }
        }
    }

    fn compare(&self, endpoints: &[&Arc<Endpoint>], rates: &[[Rate; 2]], local: bool) {
        let (by_rate, by_share) = (self.outlier.success_rate, self.outlier.failure_percentage);
        if endpoints.len() < by_rate.hosts.min(by_share.hosts) {
            return;
        }
        let mut seen = Vec::new();
        for (endpoint, rate) in endpoints.iter().zip(rates) {
            let rate = rate[usize::from(local)];
            let percent = rate.percent().filter(|_| !endpoint.state.ejected());
            let shown = percent.filter(|_| rate.total >= by_rate.requests.min(by_share.requests));
            endpoint.state.show_rate(local, shown);
            seen.extend(percent.map(|percent| (*endpoint, percent, rate.total)));
        }
        let enough = |volume: Volume| {
            let valid = seen.iter().filter(move |(.., total)| *total >= volume.requests);
            let valid: Vec<_> = valid.collect();
            if valid.is_empty() || valid.len() < volume.hosts { Vec::new() } else { valid }
        };
        let valid = enough(by_rate);
        let threshold = threshold(valid.iter().map(|(_, percent, _)| *percent), self.outlier);
        for (endpoint, percent, _) in valid {
            if *percent < threshold {
                let kinds = [Ejection::SuccessRate, Ejection::LocalSuccessRate];
                self.eject(&endpoint.state, kinds[usize::from(local)]);
            }
        }
        for (endpoint, percent, _) in enough(by_share) {
            if 100.0 - percent >= self.outlier.failure_threshold {
                let kinds = [Ejection::FailurePercentage, Ejection::LocalFailurePercentage];
                self.eject(&endpoint.state, kinds[usize::from(local)]);
            }
        }
    }
}

/// Mean of success rates less the configured number of standard deviations.
fn threshold(rates: impl Iterator<Item = f64> + Clone, outlier: &Outlier) -> f64 {
    let count = rates.clone().count() as f64;
    let mean = rates.clone().sum::<f64>() / count;
    let variance = rates.map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
    mean - outlier.stdev_factor * variance.sqrt()
}

/// Outcomes of an endpoint within the last interval.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rate {
    pub(crate) total: u64,
    pub(crate) good: u64,
}

impl Rate {
    fn percent(self) -> Option<f64> {
        (self.total > 0).then(|| self.good as f64 * 100.0 / self.total as f64)
    }
}

fn counters(
    stats: &ClusterStats,
    kind: Ejection,
) -> (&amime_telemetry::Counter, &amime_telemetry::Counter) {
    match kind {
        Ejection::Consecutive5xx => (
            &stats.outlier_detection_ejections_detected_consecutive_5xx,
            &stats.outlier_detection_ejections_enforced_consecutive_5xx,
        ),
        Ejection::ConsecutiveGateway => (
            &stats.outlier_detection_ejections_detected_consecutive_gateway_failure,
            &stats.outlier_detection_ejections_enforced_consecutive_gateway_failure,
        ),
        Ejection::ConsecutiveLocal => (
            &stats.outlier_detection_ejections_detected_consecutive_local_origin_failure,
            &stats.outlier_detection_ejections_enforced_consecutive_local_origin_failure,
        ),
        Ejection::SuccessRate => (
            &stats.outlier_detection_ejections_detected_success_rate,
            &stats.outlier_detection_ejections_enforced_success_rate,
        ),
        Ejection::LocalSuccessRate => (
            &stats.outlier_detection_ejections_detected_local_origin_success_rate,
            &stats.outlier_detection_ejections_enforced_local_origin_success_rate,
        ),
        Ejection::FailurePercentage => (
            &stats.outlier_detection_ejections_detected_failure_percentage,
            &stats.outlier_detection_ejections_enforced_failure_percentage,
        ),
        Ejection::LocalFailurePercentage => (
            &stats.outlier_detection_ejections_detected_local_origin_failure_percentage,
            &stats.outlier_detection_ejections_enforced_local_origin_failure_percentage,
        ),
    }
}

#[cfg(test)]
mod tests;
