//! Fault injection: delays and aborts.

use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common_fault;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as fault;

use super::faults::Faults;
use super::head::RequestHead;
use super::matcher::{HeaderMatcher, header_matchers};
use super::values::{self, Fraction};

/// A compiled `HTTPFault`.
#[derive(Debug)]
pub struct Fault {
    /// `None` for the duration: a header of the request gives it.
    pub delay: Option<(Fraction, Option<Duration>)>,
    pub abort: Option<(Fraction, Abort)>,
    /// How fast responses may go: KiB a second, or what a header of the request
    /// says.
    pub pace: Option<(Fraction, Option<u64>)>,
    pub headers: Vec<HeaderMatcher>,
    pub upstream_cluster: String,
    /// Names of the nodes whose requests may be meant; all, if there is none.
    pub downstream_nodes: Vec<String>,
    pub max_active: u32,
}

/// What an aborted request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    Http(http::StatusCode),
    Grpc(u32),
    /// What a header of the request says.
    Header,
}

impl Fault {
    /// True if it is meant for a request of these headers.
    pub fn is_for(&self, head: &RequestHead) -> bool {
        let node = || head.headers.get("x-envoy-downstream-service-node");
        self.headers.iter().all(|header| header.matches(head))
            && (self.downstream_nodes.is_empty()
                || node().is_some_and(|node| self.downstream_nodes.iter().any(|one| node == one)))
    }

    pub fn compile(value: &fault::HttpFault, faults: &mut Faults) -> Self {
        let delay = value.delay.as_ref().and_then(|delay| {
            let fraction = delay.percentage.as_ref().map_or(Fraction::NEVER, Fraction::new);
            match delay.fault_delay_secifier.as_ref() {
                Some(common_fault::fault_delay::FaultDelaySecifier::FixedDelay(fixed)) => {
                    Some((fraction, Some(values::duration(fixed))))
                }
                Some(common_fault::fault_delay::FaultDelaySecifier::HeaderDelay(_)) => {
                    Some((fraction, None))
                }
                None => None,
            }
        });
        let abort = value.abort.as_ref().and_then(|abort| {
            let fraction = abort.percentage.as_ref().map_or(Fraction::NEVER, Fraction::new);
            match abort.error_type.as_ref() {
                Some(fault::fault_abort::ErrorType::HttpStatus(status)) => {
                    let code = u16::try_from(*status).ok();
                    match code.and_then(|code| http::StatusCode::from_u16(code).ok()) {
                        Some(status) => Some((fraction, Abort::Http(status))),
                        None => {
                            faults.reject("abort.http_status", format!("{status} is not a status"));
                            None
                        }
                    }
                }
                Some(fault::fault_abort::ErrorType::GrpcStatus(status)) => {
                    Some((fraction, Abort::Grpc(*status)))
                }
                Some(fault::fault_abort::ErrorType::HeaderAbort(_)) => {
                    Some((fraction, Abort::Header))
                }
                None => None,
            }
        });
        Self {
            delay,
            abort,
            pace: value.response_rate_limit.as_ref().and_then(pace),
            headers: header_matchers(&value.headers, "headers", faults),
            upstream_cluster: value.upstream_cluster.clone(),
            downstream_nodes: value.downstream_nodes.clone(),
            max_active: values::u32_or(value.max_active_faults.as_ref(), u32::MAX),
        }
    }
}

fn pace(value: &common_fault::FaultRateLimit) -> Option<(Fraction, Option<u64>)> {
    use common_fault::fault_rate_limit::LimitType;
    let fraction = value.percentage.as_ref().map_or(Fraction::NEVER, Fraction::new);
    match value.limit_type.as_ref()? {
        LimitType::FixedLimit(limit) => Some((fraction, Some(limit.limit_kbps.max(1)))),
        LimitType::HeaderLimit(_) => Some((fraction, None)),
    }
}
