//! Health checks of others that the proxy answers.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/health_check_filter>

use envoy_types::pb::envoy::extensions::filters::http::health_check::v3 as pb;
use http::HeaderValue;

use super::Compiler;
use amime_rules::head::RequestHead;
use amime_rules::matcher::{HeaderMatcher, header_matchers};
use amime_rules::values::bool_or;

/// A compiled `HealthCheck` filter.
#[derive(Debug)]
pub struct AnswerChecks {
    headers: Vec<HeaderMatcher>,
    /// The upstream answers.
    pub pass_through: bool,
    /// Our own cluster, which checkers are told.
    pub cluster: HeaderValue,
}

impl AnswerChecks {
    pub(crate) fn compile(value: &pb::HealthCheck, compiler: &mut Compiler<'_>) -> Option<Self> {
        let faults = &mut compiler.faults;
        if value.pass_through_mode.is_none() {
            faults.reject("pass_through_mode", "missing");
        }
        let percentages = !value.cluster_min_healthy_percentages.is_empty();
        faults.reject_if(percentages, "cluster_min_healthy_percentages");
        faults.ignore_if(value.cache_time.is_some(), "cache_time");
        Some(Self {
            headers: header_matchers(&value.headers, "headers", faults),
            pass_through: bool_or(value.pass_through_mode.as_ref(), false),
            cluster: HeaderValue::from_str(&compiler.node.cluster).ok()?,
        })
    }

    /// True if a request is a check.
    pub fn is_check(&self, head: &RequestHead) -> bool {
        self.headers.iter().all(|header| header.matches(head))
    }
}
