//! Whether an attempt is repeated.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter>

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};

use super::attempt::{Attempt, Failure};
use super::body::UpstreamBody;
use super::error::ResetReason;
use super::forward::Plan;
use super::names;
use crate::upstream::connect::ConnectError;
use crate::upstream::{ClusterRuntime, Resource};
use amime_rules::retry::{RetryOn, RetryPolicy};

/// What to do with an attempt's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Deliver,
    /// It would be repeated, but no attempts are left.
    Exhausted,
    /// It would be repeated, but too many others are.
    Overflow,
    Retry(Duration),
}

/// What a request's retries go by: the route's policy with what a trusted
/// client adds to it by headers.
pub(super) struct RetrySettings {
    policy: Option<Arc<RetryPolicy>>,
    on: RetryOn,
    limit: u32,
    status_codes: Vec<u16>,
    header_names: Vec<HeaderName>,
}

impl RetrySettings {
    pub(super) fn of(plan: &Plan<'_>) -> Self {
        let policy = plan.action.retry.clone();
        let mut settings = Self {
            on: policy.as_ref().map_or(RetryOn::default(), |policy| policy.on),
            limit: policy.as_ref().map_or(1, |policy| policy.limit),
            policy,
            status_codes: Vec::new(),
            header_names: Vec::new(),
        };
        let head = plan.exchange.head.borrow();
        // Those of other clients were removed when the request came in.
        if plan.admitted.internal {
            settings.add(&head.headers);
        }
        let wanted = settings.policy.as_ref().is_none_or(|policy| {
            policy.request_headers.is_empty()
                || policy.request_headers.iter().any(|header| header.matches(&head))
        });
        if !wanted {
            settings.on = RetryOn::default();
        }
        settings
    }

    fn add(&mut self, headers: &HeaderMap) {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        for name in [names::RETRY_ON, names::RETRY_GRPC_ON] {
            if let Some(list) = text(name) {
                self.on = self.on.union(RetryOn::parse(list));
            }
        }
        if let Some(max) = text(names::MAX_RETRIES).and_then(|text| text.parse().ok()) {
            self.limit = max;
        }
        let codes = text(names::RETRIABLE_STATUS_CODES).unwrap_or_default().split(',');
        self.status_codes.extend(codes.filter_map(|code| code.trim().parse::<u16>().ok()));
        let list = text(names::RETRIABLE_HEADER_NAMES).unwrap_or_default().split(',');
        self.header_names.extend(list.filter_map(|name| name.trim().parse::<HeaderName>().ok()));
    }

    /// True if some result may lead to a retry.
    pub(super) fn active(&self) -> bool {
        !self.on.is_empty()
    }

    /// True if a connection that closes without an answer leads to a retry.
    pub(super) fn on_reset(&self) -> bool {
        [RetryOn::RESET, RetryOn::FIVE_XX, RetryOn::GATEWAY_ERROR]
            .iter()
            .any(|one| self.on.contains(*one))
    }
}

/// Retries of one request.
pub(super) struct RetryState<'a> {
    settings: &'a RetrySettings,
    used: u32,
    cluster: &'a Rc<ClusterRuntime>,
    priority: usize,
    /// A retry is under way and counts against the circuit breaker.
    taken: bool,
}

impl<'a> RetryState<'a> {
    pub(super) fn new(
        settings: &'a RetrySettings,
        cluster: &'a Rc<ClusterRuntime>,
        priority: usize,
    ) -> Self {
        Self { settings, used: 0, cluster, priority, taken: false }
    }

    pub(super) fn used(&self) -> u32 {
        self.used
    }

    pub(super) fn decide(
        &mut self,
        result: &Result<(http::response::Parts, UpstreamBody, Attempt), Failure>,
    ) -> Decision {
        if self.taken {
            self.taken = false;
            self.cluster.give(self.priority, Resource::Retries);
        }
        let again = self.settings.active()
            && match result {
                Ok((parts, ..)) => self.by_response(parts),
                Err(failure) => self.by_failure(failure),
            };
        let stats = &self.cluster.stats;
        if !again {
            if self.used > 0 && result.is_ok() {
                stats.upstream_rq_retry_success.inc();
            }
            return Decision::Deliver;
        }
        if self.used >= self.settings.limit {
            stats.upstream_rq_retry_limit_exceeded.inc();
            return Decision::Exhausted;
        }
        if !self.cluster.take(self.priority, Resource::Retries) {
            stats.upstream_rq_retry_overflow.inc();
            return Decision::Overflow;
        }
        self.taken = true;
        self.used += 1;
        stats.upstream_rq_retry.inc();
        let policy = self.settings.policy.as_ref();
        let asked = match result {
            Ok((parts, ..)) => {
                policy.and_then(|it| it.asked_back_off(&parts.headers, SystemTime::now()))
            }
            Err(_) => None,
        };
        let back_off = asked
            .unwrap_or_else(|| policy.map_or(Duration::ZERO, |policy| policy.back_off(self.used)));
        Decision::Retry(back_off)
    }

    fn by_response(&self, parts: &http::response::Parts) -> bool {
        let on = self.settings.on;
        let status = parts.status.as_u16();
        if parts.headers.contains_key("x-envoy-ratelimited") {
            return on.contains(RetryOn::RATE_LIMITED);
        }
        if on.contains(RetryOn::FIVE_XX) && status >= 500
            || on.contains(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status)
            || on.contains(RetryOn::RETRIABLE_4XX) && status == 409
        {
            return true;
        }
        let settings = self.settings;
        if on.contains(RetryOn::STATUS_CODES) && settings.status_codes.contains(&status)
            || on.contains(RetryOn::HEADERS)
                && settings.header_names.iter().any(|name| parts.headers.contains_key(name))
        {
            return true;
        }
        if let Some(policy) = &settings.policy {
            if on.contains(RetryOn::STATUS_CODES) && policy.status_codes.contains(&status) {
                return true;
            }
            if on.contains(RetryOn::HEADERS)
                && policy
                    .response_headers
                    .iter()
                    .any(|header| header.matches_headers(&parts.headers))
            {
                return true;
            }
        }
        let grpc = parts.headers.get(names::GRPC_STATUS).and_then(|value| value.to_str().ok());
        match grpc {
            Some("1") => on.contains(RetryOn::GRPC_CANCELLED),
            Some("4") => on.contains(RetryOn::GRPC_DEADLINE),
            Some("8") => on.contains(RetryOn::GRPC_EXHAUSTED),
            Some("13") => on.contains(RetryOn::GRPC_INTERNAL),
            Some("14") => on.contains(RetryOn::GRPC_UNAVAILABLE),
            _ => false,
        }
    }

    fn by_failure(&self, failure: &Failure) -> bool {
        let on = self.settings.on;
        // A broken stream is no response at all, which 5xx includes.
        let broken = on.contains(RetryOn::RESET)
            || on.contains(RetryOn::FIVE_XX)
            || on.contains(RetryOn::GATEWAY_ERROR);
        match failure {
            Failure::Overflow
            | Failure::NoHealthyUpstream
            | Failure::NoHost(_)
            | Failure::SessionLost(_)
            | Failure::Downstream(_)
            | Failure::Refused(_) => false,
            Failure::Connect(ConnectError::Overflow) => false,
            Failure::Connect(_) => {
                broken
                    || on.contains(RetryOn::CONNECT_FAILURE)
                    || on.contains(RetryOn::RESET_BEFORE_REQUEST)
            }
            Failure::ResetBeforeRequest => broken || on.contains(RetryOn::RESET_BEFORE_REQUEST),
            Failure::Reset(ResetReason::Refused, _) => {
                broken
                    || on.contains(RetryOn::REFUSED_STREAM)
                    || on.contains(RetryOn::RESET_BEFORE_REQUEST)
            }
            Failure::Reset(..) | Failure::PerTryTimeout | Failure::Protocol(_) => broken,
        }
    }
}

impl Drop for RetryState<'_> {
    fn drop(&mut self) {
        if self.taken {
            self.cluster.give(self.priority, Resource::Retries);
        }
    }
}
