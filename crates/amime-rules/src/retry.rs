//! Retry policies of routes.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::retry::host::{
    omit_canary_hosts::v3::OmitCanaryHostsPredicate,
    omit_host_metadata::v3::OmitHostMetadataConfig, previous_hosts::v3::PreviousHostsPredicate,
};
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;

use super::criteria::{Criteria, NAMESPACE};
use http::{HeaderMap, HeaderName};

use super::faults::Faults;
use super::matcher::{HeaderMatcher, header_matchers};
use super::values::{self, is, unpack};

/// Conditions under which an attempt is repeated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn(u32);

impl RetryOn {
    pub const FIVE_XX: Self = Self(1);
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    pub const RESET: Self = Self(1 << 2);
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    pub const CONNECT_FAILURE: Self = Self(1 << 4);
    pub const RETRIABLE_4XX: Self = Self(1 << 5);
    pub const REFUSED_STREAM: Self = Self(1 << 6);
    pub const STATUS_CODES: Self = Self(1 << 7);
    pub const HEADERS: Self = Self(1 << 8);
    pub const RATE_LIMITED: Self = Self(1 << 9);
    pub const GRPC_CANCELLED: Self = Self(1 << 10);
    pub const GRPC_DEADLINE: Self = Self(1 << 11);
    pub const GRPC_INTERNAL: Self = Self(1 << 12);
    pub const GRPC_EXHAUSTED: Self = Self(1 << 13);
    pub const GRPC_UNAVAILABLE: Self = Self(1 << 14);

    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Reads a comma-separated list; unknown words have no effect, as in Envoy.
    pub fn parse(list: &str) -> Self {
        let mut all = Self::default();
        for word in list.split(',') {
            all.0 |= match word.trim() {
                "5xx" => Self::FIVE_XX.0,
                "gateway-error" => Self::GATEWAY_ERROR.0,
                "reset" => Self::RESET.0,
                "reset-before-request" => Self::RESET_BEFORE_REQUEST.0,
                "connect-failure" => Self::CONNECT_FAILURE.0,
                "retriable-4xx" => Self::RETRIABLE_4XX.0,
                "refused-stream" => Self::REFUSED_STREAM.0,
                "retriable-status-codes" => Self::STATUS_CODES.0,
                "retriable-headers" => Self::HEADERS.0,
                "envoy-ratelimited" => Self::RATE_LIMITED.0,
                "cancelled" => Self::GRPC_CANCELLED.0,
                "deadline-exceeded" => Self::GRPC_DEADLINE.0,
                "internal" => Self::GRPC_INTERNAL.0,
                "resource-exhausted" => Self::GRPC_EXHAUSTED.0,
                "unavailable" => Self::GRPC_UNAVAILABLE.0,
                _ => 0,
            };
        }
        all
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A compiled `RetryPolicy`.
#[derive(Debug, Default)]
pub struct RetryPolicy {
    pub on: RetryOn,
    /// Attempts beyond the first.
    pub limit: u32,
    pub per_try_timeout: Option<Duration>,
    /// Longest silence of an attempt.
    pub per_try_idle_timeout: Option<Duration>,
    pub status_codes: Vec<u16>,
    pub response_headers: Vec<HeaderMatcher>,
    pub request_headers: Vec<HeaderMatcher>,
    pub(crate) back_off_base: Duration,
    pub(crate) back_off_max: Duration,
    reset: Option<ResetBackOff>,
    pub reselect: Reselect,
}

/// Which endpoints retries stay away from.
#[derive(Debug, Default)]
pub struct Reselect {
    /// Those that were tried already.
    pub previous_hosts: bool,
    /// Those marked as canaries.
    pub canaries: bool,
    /// Those with all of this metadata.
    pub omit: Vec<Criteria>,
    /// Times another endpoint is drawn when one of the above refuses one.
    pub limit: u32,
    /// After so many attempts the priorities tried are left out.
    pub priorities_after: Option<u32>,
}

/// Waits that a response asks for.
#[derive(Debug)]
struct ResetBackOff {
    /// Headers that tell the time, and whether it is a point in time.
    headers: Vec<(HeaderName, bool)>,
    max: Duration,
}

impl ResetBackOff {
    fn compile(value: &pb::retry_policy::RateLimitedRetryBackOff, faults: &mut Faults) -> Self {
        use pb::retry_policy::ResetHeaderFormat;
        let mut headers = Vec::with_capacity(value.reset_headers.len());
        for header in &value.reset_headers {
            match header.name.to_ascii_lowercase().parse() {
                Ok(name) => {
                    headers.push((name, header.format() == ResetHeaderFormat::UnixTimestamp));
                }
                Err(_) => {
                    faults.reject("reset_headers", format!("`{}` is no header", header.name));
                }
            }
        }
        let max = value.max_interval.as_ref();
        Self { headers, max: max.map_or(Duration::from_secs(300), values::duration) }
    }

    fn wait(&self, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
        self.headers.iter().find_map(|(name, point)| {
            let seconds: u64 = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
            let seconds = match point {
                false => seconds,
                true => seconds.checked_sub(now.duration_since(UNIX_EPOCH).ok()?.as_secs())?,
            };
            let wait = Duration::from_secs(seconds);
            (!wait.is_zero() && wait <= self.max).then_some(wait)
        })
    }
}

/// Envoy's default base interval.
const BASE: Duration = Duration::from_millis(25);

impl Reselect {
    fn compile(value: &pb::RetryPolicy, faults: &mut Faults) -> Self {
        let limit = u32::try_from(value.host_selection_retry_max_attempts).unwrap_or(0).max(1);
        let mut reselect = Self { limit, ..Self::default() };
        for (index, predicate) in value.retry_host_predicate.iter().enumerate() {
            faults.enter(format!("retry_host_predicate[{index}]({})", predicate.name));
            reselect.add(predicate, faults);
            faults.leave();
        }
        if let Some(priority) = &value.retry_priority {
            use pb::retry_policy::retry_priority::ConfigType;
            let Some(ConfigType::TypedConfig(any)) = &priority.config_type else {
                faults.reject("retry_priority", "missing");
                return reselect;
            };
            let config: Option<PreviousPrioritiesConfig> =
                faults.within("retry_priority", |faults| unpack(any, faults));
            let frequency = config.and_then(|config| u32::try_from(config.update_frequency).ok());
            reselect.priorities_after = frequency.filter(|frequency| *frequency > 0);
        }
        reselect
    }

    fn add(&mut self, predicate: &pb::retry_policy::RetryHostPredicate, faults: &mut Faults) {
        use pb::retry_policy::retry_host_predicate::ConfigType;
        let any = predicate.config_type.as_ref().map(|ConfigType::TypedConfig(any)| any);
        match (predicate.name.as_str(), any) {
            (_, Some(any)) if is::<PreviousHostsPredicate>(any) => self.previous_hosts = true,
            (_, Some(any)) if is::<OmitCanaryHostsPredicate>(any) => self.canaries = true,
            (_, Some(any)) if is::<OmitHostMetadataConfig>(any) => {
                let config: Option<OmitHostMetadataConfig> = unpack(any, faults);
                let metadata = config.and_then(|config| config.metadata_match);
                let own = metadata.as_ref().and_then(|all| all.filter_metadata.get(NAMESPACE));
                self.omit.extend(own.map(Criteria::of));
            }
            ("envoy.retry_host_predicates.previous_hosts", None) => self.previous_hosts = true,
            ("envoy.retry_host_predicates.omit_canary_hosts", None) => self.canaries = true,
            _ => faults.ignore("", "not supported"),
        }
    }
}

impl RetryPolicy {
    pub fn compile(value: &pb::RetryPolicy, faults: &mut Faults) -> Option<Arc<Self>> {
        faults.ignore_if(!value.retry_options_predicates.is_empty(), "retry_options_predicates");
        let reset = value.rate_limited_retry_back_off.as_ref().map(|value| {
            let field = "rate_limited_retry_back_off";
            faults.within(field, |faults| ResetBackOff::compile(value, faults))
        });
        let reselect = Reselect::compile(value, faults);
        let back_off = value.retry_back_off.as_ref();
        let base = back_off
            .and_then(|back_off| back_off.base_interval.as_ref())
            .map_or(BASE, values::duration)
            .max(Duration::from_millis(1));
        let max = back_off.and_then(|back_off| back_off.max_interval.as_ref());
        Some(Arc::new(Self {
            on: RetryOn::parse(&value.retry_on),
            limit: values::u32_or(value.num_retries.as_ref(), 1),
            per_try_timeout: values::timeout(value.per_try_timeout.as_ref(), None),
            per_try_idle_timeout: values::timeout(value.per_try_idle_timeout.as_ref(), None),
            status_codes: value
                .retriable_status_codes
                .iter()
                .filter_map(|code| u16::try_from(*code).ok())
                .collect(),
            response_headers: header_matchers(
                &value.retriable_headers,
                "retriable_headers",
                faults,
            ),
            request_headers: header_matchers(
                &value.retriable_request_headers,
                "retriable_request_headers",
                faults,
            ),
            back_off_base: base,
            back_off_max: max.map_or(base * 10, values::duration).max(base),
            reset,
            reselect,
        }))
    }

    /// How long a response asks to wait, and up to half as long again, so that
    /// clients do not come back all at once.
    pub fn asked_back_off(&self, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
        let wait = self.reset.as_ref()?.wait(headers, now)?;
        Some(wait.mul_f64(1.0 + fastrand::f64() / 2.0))
    }

    /// How long to wait before retry number `retry` (from 1): a random part
    /// of an interval that doubles, as Envoy's jittered back-off.
    pub fn back_off(&self, retry: u32) -> Duration {
        let ceiling = self
            .back_off_base
            .saturating_mul(1 << retry.saturating_sub(1).min(20))
            .min(self.back_off_max);
        let millis = u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(fastrand::u64(0..millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The wait that a response with this header asks for at second 1000.
    fn asked(name: &'static str, value: &str) -> Option<u64> {
        let reset = ResetBackOff {
            headers: vec![
                (HeaderName::from_static("retry-after"), false),
                (HeaderName::from_static("x-reset"), true),
            ],
            max: Duration::from_secs(300),
        };
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().expect("a value"));
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        reset.wait(&headers, now).map(|wait| wait.as_secs())
    }

    #[test]
    fn a_response_may_say_how_long_to_wait() {
        assert_eq!(asked("retry-after", "7"), Some(7));
        assert_eq!(asked("x-reset", "1012"), Some(12));
        assert_eq!(asked("x-reset", "990"), None);
        assert_eq!(asked("retry-after", "301"), None);
        assert_eq!(asked("retry-after", "soon"), None);
    }
}
