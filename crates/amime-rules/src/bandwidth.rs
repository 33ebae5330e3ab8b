//! How fast bodies may pass.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/bandwidth_limit_filter>

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::http::bandwidth_limit::v3 as pb;

use super::faults::Faults;
use super::token_bucket::TokenBucket;
use super::values::{self, bool_or};

/// Bytes that may pass in time, for all bodies that share it.
#[derive(Debug)]
pub struct Pace {
    pub bucket: TokenBucket,
    /// How long to wait for more of them.
    pub interval: Duration,
}

/// A compiled `BandwidthLimit`; `None` for a direction that is not limited.
#[derive(Debug)]
pub struct Bandwidth {
    pub request: Option<Arc<Pace>>,
    pub response: Option<Arc<Pace>>,
}

/// What Envoy takes for an interval when nothing is said.
const INTERVAL: Duration = Duration::from_millis(50);

impl Pace {
    /// So many KiB a second, beginning with what comes in one interval.
    pub fn of_kib(kib: u64, interval: Duration) -> Arc<Self> {
        let max = u32::try_from(kib.saturating_mul(1024)).unwrap_or(u32::MAX);
        let first = f64::from(max) * interval.as_secs_f64();
        Arc::new(Self { bucket: TokenBucket::of_a_second(max, first), interval })
    }

    /// The same with the usual interval.
    pub fn usual(kib: u64) -> Arc<Self> {
        Self::of_kib(kib, INTERVAL)
    }
}

impl Bandwidth {
    pub fn compile(value: &pb::BandwidthLimit, faults: &mut Faults) -> Option<Self> {
        use pb::bandwidth_limit::EnableMode;
        faults.ignore_if(value.enable_response_trailers, "enable_response_trailers");
        let enabled = value.runtime_enabled.as_ref().and_then(|flag| flag.default_value.as_ref());
        let mode = match value.enable_mode() {
            mode if bool_or(enabled, true) => mode,
            _ => EnableMode::Disabled,
        };
        if mode == EnableMode::Disabled {
            return Some(Self { request: None, response: None });
        }
        let Some(kib) = value.limit_kbps.as_ref().filter(|limit| limit.value > 0) else {
            faults.reject("limit_kbps", "missing");
            return None;
        };
        let interval = value.fill_interval.as_ref().map_or(INTERVAL, values::duration);
        if !(Duration::from_millis(20)..=Duration::from_secs(1)).contains(&interval) {
            faults.reject("fill_interval", "must be between 20ms and 1s");
            return None;
        }
        // Both directions draw on one bucket, as in Envoy.
        let pace = Pace::of_kib(kib.value, interval);
        let both = mode == EnableMode::RequestAndResponse;
        Some(Self {
            request: Some(&pace).filter(|_| both || mode == EnableMode::Request).cloned(),
            response: Some(&pace).filter(|_| both || mode == EnableMode::Response).cloned(),
        })
    }
}
