//! Weights that endpoints report themselves: settings, and what an endpoint
//! has reported of late.
//!
//! Reading reports is `amime-upstream`'s; workers note the weights that follow
//! from them, and one thread puts them in force at the cluster's interval.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/load_balancing_policies/client_side_weighted_round_robin/v3/client_side_weighted_round_robin.proto>

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use envoy_types::pb::envoy::extensions::load_balancing_policies::client_side_weighted_round_robin::v3 as pb;
use envoy_types::pb::google::protobuf as wkt;

use super::endpoint_state::now_ms;
use amime_rules::Faults;
use amime_rules::values;

/// How weights follow from reports.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadReports {
    /// How long an endpoint must have reported before it counts.
    pub blackout_ms: u64,
    /// How long a report counts.
    pub expiration_ms: u64,
    /// How often weights change.
    pub update: Duration,
    /// What the share of errors adds to the utilization, as a factor; nothing
    /// by default, whatever Envoy's documentation says.
    pub error_penalty: f64,
    /// Metrics of which the greatest is the utilization.
    pub metrics: Vec<Box<str>>,
}

impl Default for LoadReports {
    fn default() -> Self {
        Self {
            blackout_ms: 10_000,
            expiration_ms: 180_000,
            update: Duration::from_secs(1),
            error_penalty: 0.0,
            metrics: Vec::new(),
        }
    }
}

const LEAST_UPDATE: Duration = Duration::from_millis(100);

impl LoadReports {
    pub(crate) fn compile(value: &pb::ClientSideWeightedRoundRobin, faults: &mut Faults) -> Self {
        if values::bool_or(value.enable_oob_load_report.as_ref(), false) {
            let reason = "reports are read from responses only";
            faults.ignore("enable_oob_load_report", reason);
            faults.ignore_if(value.oob_reporting_period.is_some(), "oob_reporting_period");
            faults.ignore_if(value.oob_reporting_config.is_some(), "oob_reporting_config");
        }
        let default = Self::default();
        let millis = |value: Option<&wkt::Duration>, default: u64| {
            let millis = |value| u64::try_from(values::duration(value).as_millis());
            value.map_or(default, |value| millis(value).unwrap_or(u64::MAX))
        };
        let penalty = value.error_utilization_penalty.as_ref();
        let penalty = penalty.map_or(default.error_penalty, |it| f64::from(it.value));
        if penalty.is_nan() || penalty < 0.0 {
            faults.reject("error_utilization_penalty", format!("{penalty} is negative"));
        }
        let update = value.weight_update_period.as_ref().map_or(default.update, values::duration);
        Self {
            blackout_ms: millis(value.blackout_period.as_ref(), default.blackout_ms),
            expiration_ms: millis(value.weight_expiration_period.as_ref(), default.expiration_ms),
            update: update.max(LEAST_UPDATE),
            error_penalty: penalty,
            metrics: value
                .metric_names_for_computing_utilization
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
        }
    }
}

/// The weight that an endpoint's reports give it.
#[derive(Debug, Default)]
pub struct ReportedWeight {
    last: AtomicU32,
    /// When it was last reported, and since when without a gap, by [`now_ms`];
    /// 0: not at all.
    at: AtomicU64,
    since: AtomicU64,
    in_force: AtomicU32,
}

impl ReportedWeight {
    /// Notes what follows from a report.
    pub fn note(&self, weight: u32) {
        let now = now_ms();
        self.last.store(weight, Ordering::Relaxed);
        self.at.store(now, Ordering::Relaxed);
        let _ = self.since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The weight, if the endpoint has reported for long enough and not too
    /// long ago.
    pub fn valid(&self, settings: &LoadReports) -> Option<u32> {
        let now = now_ms();
        let since = self.since.load(Ordering::Relaxed);
        if since == 0 || since.saturating_add(settings.blackout_ms) > now {
            return None;
        }
        if self.at.load(Ordering::Relaxed).saturating_add(settings.expiration_ms) < now {
            // It has to prove itself anew.
            self.since.store(0, Ordering::Relaxed);
            return None;
        }
        Some(self.last.load(Ordering::Relaxed))
    }

    /// Puts a weight in force; true if it is another one.
    pub fn enforce(&self, weight: u32) -> bool {
        let weight = weight.max(1);
        self.in_force.swap(weight, Ordering::Relaxed) != weight
    }

    /// The weight in force; `None` before there was any.
    #[inline]
    pub fn in_force(&self) -> Option<u32> {
        Some(self.in_force.load(Ordering::Relaxed)).filter(|weight| *weight > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(blackout_ms: u64, expiration_ms: u64) -> LoadReports {
        LoadReports { blackout_ms, expiration_ms, ..LoadReports::default() }
    }

    #[test]
    fn a_weight_counts_after_the_blackout_and_until_it_expires() {
        let weight = ReportedWeight::default();
        assert_eq!(weight.valid(&settings(0, 1000)), None, "nothing was reported");
        weight.note(7);
        assert_eq!(weight.valid(&settings(60_000, 60_000)), None, "too early");
        assert_eq!(weight.valid(&settings(0, 60_000)), Some(7));
        weight.at.store(1, Ordering::Relaxed);
        weight.since.store(1, Ordering::Relaxed);
        while now_ms() < 3 {}
        assert_eq!(weight.valid(&settings(0, 0)), None, "too old");
        assert_eq!(weight.valid(&settings(0, 60_000)), None, "the blackout begins anew");
        weight.note(9);
        assert_eq!(weight.valid(&settings(0, 60_000)), Some(9));
    }

    #[test]
    fn weights_change_ten_times_a_second_at_most() {
        let message = pb::ClientSideWeightedRoundRobin {
            weight_update_period: Some(wkt::Duration { seconds: 0, nanos: 1 }),
            ..Default::default()
        };
        let compiled = LoadReports::compile(&message, &mut Faults::default());
        assert_eq!(compiled.update, LEAST_UPDATE);
    }
}
