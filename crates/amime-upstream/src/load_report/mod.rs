//! Load reports of endpoints: which weights follow from them.
//!
//! Owns the way from a response's head or trailers to an endpoint's weight,
//! and putting the weights of a cluster in force; what is noted in between is
//! with the endpoint's state.
//!
//! Invariant: clusters that do not weigh by reports never look for one.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/load_balancing_policies/client_side_weighted_round_robin/v3/client_side_weighted_round_robin.proto>

mod parse;

use std::sync::Arc;

use amime_config::endpoint::Endpoint;
use amime_config::load_reports::LoadReports;
use http::HeaderMap;

use crate::cluster::{ClusterRuntime, ClusterSpec, Host, Pool};
use parse::LoadReport;

impl<P: Pool> ClusterRuntime<P> {
    /// Notes the report in `headers`, or trailers, if the cluster weighs by
    /// reports; true if there is one.
    pub fn take_report(&self, host: &Host<P>, headers: &HeaderMap) -> bool {
        let Some(settings) = &self.config().lb.reports else { return false };
        let Ok(report) = LoadReport::read(headers) else { return false };
        if let Some(weight) = weight(&report, settings) {
            host.endpoint.state.reported.note(weight);
        }
        true
    }

    /// True if there is a report in `headers` that counts.
    pub fn has_report(&self, headers: &HeaderMap) -> bool {
        self.config().lb.reports.is_some() && LoadReport::read(headers).is_ok()
    }
}

/// Requests per second over utilization: the less is left of an endpoint, the
/// less it gets. `None` if the report does not tell.
fn weight(report: &LoadReport, settings: &LoadReports) -> Option<u32> {
    let rate = report.rps_fractional;
    if rate <= 0.0 || rate.is_nan() {
        return None;
    }
    let named = settings.metrics.iter().filter_map(|name| report.metric(name));
    let named = named.fold(0.0, f64::max);
    let candidates = [named, report.application_utilization];
    let used = candidates.into_iter().find(|used| *used > 0.0).unwrap_or(report.cpu_utilization);
    let utilization = used + settings.error_penalty * report.eps / rate;
    (utilization > 0.0).then(|| {
        // Casts of floats saturate.
        (rate / utilization) as u32
    })
}

/// Puts the weights in force that the endpoints of a cluster have reported of
/// late; those that have not get the median of the others.
pub fn reweigh(spec: &ClusterSpec) {
    let Some(settings) = &spec.config.lb.reports else { return };
    let mut changed = false;
    for groups in &spec.endpoints.priorities {
        let endpoints = || groups.iter().flat_map(|group| &group.endpoints);
        changed |= reweigh_all(endpoints, settings);
    }
    if changed {
        spec.state.health_changed();
    }
}

fn reweigh_all<'a, I: Iterator<Item = &'a Arc<Endpoint>>>(
    endpoints: impl Fn() -> I,
    settings: &LoadReports,
) -> bool {
    let valid: Vec<Option<u32>> =
        endpoints().map(|endpoint| endpoint.state.reported.valid(settings)).collect();
    let default = median(valid.iter().flatten().copied().collect());
    let mut changed = false;
    for (endpoint, weight) in endpoints().zip(valid) {
        changed |= endpoint.state.reported.enforce(weight.unwrap_or(default));
    }
    changed
}

/// The weight in the middle; 1 without any.
fn median(mut weights: Vec<u32>) -> u32 {
    if weights.is_empty() {
        return 1;
    }
    weights.sort_unstable();
    let middle = weights.len() / 2;
    if weights.len() % 2 == 1 {
        return weights[middle];
    }
    let sum = u64::from(weights[middle - 1]) + u64::from(weights[middle]);
    u32::try_from(sum / 2).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use amime_config::load_reports::LoadReports;

    use super::*;

    fn settings(metrics: &[&str]) -> LoadReports {
        let metrics = metrics.iter().map(|name| (*name).into()).collect();
        LoadReports { metrics, error_penalty: 1.0, ..LoadReports::default() }
    }

    #[track_caller]
    fn check(report: &str, metrics: &[&str], want: Option<u32>) {
        let mut headers = HeaderMap::new();
        headers.insert("endpoint-load-metrics", report.parse().expect("a header"));
        let report = LoadReport::read(&headers).expect("a report");
        assert_eq!(weight(&report, &settings(metrics)), want);
    }

    #[test]
    fn an_endpoint_weighs_what_it_serves_over_what_that_takes() {
        check("TEXT rps_fractional=100,cpu_utilization=0.5", &[], Some(200));
        check(
            "TEXT rps_fractional=100,cpu_utilization=0.5,application_utilization=0.25",
            &[],
            Some(400),
        );
        let named = "TEXT rps_fractional=100,application_utilization=0.25,named_metrics.a=0.5,named_metrics.b=0.8";
        check(named, &[], Some(400));
        check(named, &["named_metrics.a", "named_metrics.b", "named_metrics.c"], Some(125));
        check(named, &["named_metrics.*"], Some(125));
        check(named, &["named_metrics.c"], Some(400));
    }

    #[test]
    fn errors_count_against_an_endpoint() {
        check("TEXT rps_fractional=100,cpu_utilization=0.5,eps=50", &[], Some(100));
        check("TEXT rps_fractional=100,eps=50", &[], Some(200));
    }

    #[test]
    fn a_report_without_rate_or_utilization_says_nothing() {
        check("TEXT cpu_utilization=0.5", &[], None);
        check("TEXT rps_fractional=100", &[], None);
        check("TEXT rps_fractional=1e300,cpu_utilization=1e-9", &[], Some(u32::MAX));
    }

    #[test]
    fn the_median_stands_in_for_what_nobody_reported() {
        assert_eq!(median(vec![]), 1);
        assert_eq!(median(vec![9, 1, 5]), 5);
        assert_eq!(median(vec![9, 1, 5, 4]), 4);
        assert_eq!(median(vec![u32::MAX, u32::MAX]), u32::MAX);
    }
}
