//! Retry policies.

use amime_api::networking::HttpRetry;
use envoy_types::pb::envoy::config::route::v3::RetryPolicy;
use envoy_types::pb::envoy::config::route::v3::retry_policy::{
    RetryBackOff, RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority,
};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;

use crate::proto::{any, duration, u32_value};

/// Conditions under which a request was certainly not processed.
const DEFAULT_RETRY_ON: &str =
    "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
/// The same between the proxy and its own workload.
const DEFAULT_INBOUND_RETRY_ON: &str = "reset-before-request";
const DEFAULT_RETRIES: u32 = 2;
const STATUS_CODES: &str = "retriable-status-codes";
/// How often another host is drawn when one was tried already.
const HOST_SELECTION_ATTEMPTS: i64 = 5;
/// Tries after which the priorities are computed anew.
const PRIORITY_UPDATE_FREQUENCY: i32 = 2;

/// Policy of an outbound route; `None` if retries are switched off.
///
/// With consistent hashing the same host is the right one again.
pub(crate) fn outbound(settings: Option<&HttpRetry>, hashed: bool) -> Option<RetryPolicy> {
    let default = RetryPolicy {
        retry_on: DEFAULT_RETRY_ON.to_owned(),
        num_retries: u32_value(DEFAULT_RETRIES),
        host_selection_retry_max_attempts: HOST_SELECTION_ATTEMPTS,
        retry_host_predicate: if hashed { Vec::new() } else { vec![previous_hosts()] },
        ..Default::default()
    };
    let Some(settings) = settings else { return Some(default) };
    let mut policy = RetryPolicy { num_retries: u32_value(attempts(settings)?), ..default };
    apply_conditions(&mut policy, settings);
    policy.per_try_timeout = settings.per_try_timeout.map(|d| duration(d.std()));
    if let Some(ignore) = settings.retry_ignore_previous_hosts {
        policy.retry_host_predicate = if ignore { vec![previous_hosts()] } else { Vec::new() };
    }
    if settings.retry_remote_localities == Some(true) {
        policy.retry_priority = Some(previous_priorities());
    }
    Some(policy)
}

/// Policy of a route to the workload itself.
pub(crate) fn inbound(settings: Option<&HttpRetry>) -> Option<RetryPolicy> {
    let default = RetryPolicy {
        retry_on: DEFAULT_INBOUND_RETRY_ON.to_owned(),
        num_retries: u32_value(DEFAULT_RETRIES),
        ..Default::default()
    };
    let Some(settings) = settings else { return Some(default) };
    let mut policy = RetryPolicy { num_retries: u32_value(attempts(settings)?), ..default };
    apply_conditions(&mut policy, settings);
    Some(policy)
}

fn attempts(settings: &HttpRetry) -> Option<u32> {
    u32::try_from(settings.attempts).ok().filter(|attempts| *attempts > 0)
}

fn apply_conditions(policy: &mut RetryPolicy, settings: &HttpRetry) {
    if !settings.retry_on.is_empty() {
        let (conditions, codes) = parse_retry_on(&settings.retry_on);
        policy.retry_on = conditions;
        policy.retriable_status_codes = codes;
    }
    policy.retry_back_off = settings
        .backoff
        .map(|base| RetryBackOff { base_interval: Some(duration(base.std())), max_interval: None });
}

/// Conditions and status codes; codes need a condition of their own.
fn parse_retry_on(text: &str) -> (String, Vec<u32>) {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let (codes, mut conditions): (Vec<&str>, Vec<&str>) =
        parts.partition(|part| part.parse::<u32>().is_ok_and(|code| (100..600).contains(&code)));
    let codes: Vec<u32> = codes.iter().filter_map(|code| code.parse().ok()).collect();
    if !codes.is_empty() && !conditions.contains(&STATUS_CODES) {
        conditions.push(STATUS_CODES);
    }
    (conditions.join(","), codes)
}

fn previous_hosts() -> RetryHostPredicate {
    RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(any(
            &PreviousHostsPredicate {},
        ))),
    }
}

fn previous_priorities() -> RetryPriority {
    let config = PreviousPrioritiesConfig { update_frequency: PRIORITY_UPDATE_FREQUENCY };
    RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_owned(),
        config_type: Some(retry_priority::ConfigType::TypedConfig(any(&config))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_taken_out_of_the_conditions() {
        let want = ("5xx,retriable-status-codes".to_owned(), vec![503, 404]);
        assert_eq!(parse_retry_on("5xx, 503,404"), want);
        assert_eq!(parse_retry_on("reset"), ("reset".to_owned(), vec![]));
        assert_eq!(parse_retry_on("999"), ("999".to_owned(), vec![]));
    }

    #[test]
    fn no_attempts_means_no_policy() {
        assert_eq!(outbound(Some(&HttpRetry::default()), false), None);
        let default = outbound(None, true).expect("a default policy");
        assert!(default.retry_host_predicate.is_empty());
    }
}
