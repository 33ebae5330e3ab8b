//! Rate limits that a service decides on.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/rate_limit_filter>

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{GrpcService, grpc_service::TargetSpecifier};
use envoy_types::pb::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use envoy_types::pb::envoy::extensions::filters::http::ratelimit::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::ratelimit::v3 as network;
use http::uri::Authority;
use http::{HeaderValue, StatusCode};

use super::Compiler;
use super::names::ClusterId;
use amime_rules::Faults;
use amime_rules::headers::HeaderEdits;
use amime_rules::rate_limit::{Descriptor, LimitPolicy, OwnLimit, VhostLimits, policies};
use amime_rules::values::{self, Fraction};

/// Where the service is and what it is asked with.
#[derive(Debug)]
pub struct LimitService {
    pub cluster: ClusterId,
    pub authority: HeaderValue,
    pub domain: String,
    pub timeout: Duration,
    /// Refuse when the service does not answer.
    pub deny_on_failure: Fraction,
}

/// A compiled `RateLimit` filter of HTTP.
#[derive(Debug)]
pub struct GlobalLimit {
    pub service: LimitService,
    pub stage: u32,
    /// Requests of internal clients, and of others.
    pub applies: (bool, bool),
    pub resource_exhausted: bool,
    pub tell: bool,
    pub retry_after: bool,
    /// Say `x-envoy-ratelimited`.
    pub mark: bool,
    pub status: StatusCode,
    pub status_on_error: StatusCode,
    pub response_edits: HeaderEdits,
    pub policies: Vec<LimitPolicy>,
    pub enabled: Fraction,
    pub enforced: Fraction,
}

/// A compiled `RateLimitPerRoute`.
#[derive(Debug)]
pub struct GlobalLimitRoute {
    pub vhost: VhostLimits,
    pub policies: Vec<LimitPolicy>,
    pub domain: Option<String>,
}

/// A compiled `RateLimit` filter of TCP.
#[derive(Debug)]
pub struct GlobalConnectionLimit {
    pub service: LimitService,
    pub descriptors: Vec<Descriptor>,
}

/// How long the service may take when nothing is said.
const TIMEOUT: Duration = Duration::from_millis(20);

impl LimitService {
    fn compile(
        value: Option<&RateLimitServiceConfig>,
        domain: &str,
        (timeout, deny_on_failure): (Duration, Fraction),
        compiler: &mut Compiler<'_>,
    ) -> Option<Self> {
        let service: Option<&GrpcService> = value.and_then(|value| value.grpc_service.as_ref());
        if domain.is_empty() {
            compiler.faults.reject("domain", "missing");
            return None;
        }
        let Some(TargetSpecifier::EnvoyGrpc(target)) =
            service.and_then(|service| service.target_specifier.as_ref())
        else {
            let field = "rate_limit_service.grpc_service";
            compiler.faults.reject(field, "only envoy_grpc is supported");
            return None;
        };
        let authority = match target.authority.as_str() {
            "" => authority_of(&target.cluster_name),
            authority => authority.to_owned(),
        };
        let valid = authority.parse::<Authority>().is_ok();
        let Some(authority) = HeaderValue::from_str(&authority).ok().filter(|_| valid) else {
            compiler.faults.reject("rate_limit_service.grpc_service.authority", "not a host");
            return None;
        };
        Some(Self {
            cluster: compiler.names.cluster(&target.cluster_name),
            authority,
            domain: domain.to_owned(),
            timeout,
            deny_on_failure,
        })
    }
}

fn timeout(value: Option<&envoy_types::pb::google::protobuf::Duration>) -> Duration {
    value.map_or(TIMEOUT, values::duration)
}

impl GlobalLimit {
    pub(crate) fn compile(value: &pb::RateLimit, compiler: &mut Compiler<'_>) -> Option<Self> {
        let faults = &mut compiler.faults;
        faults.ignore_if(!value.metadata_namespace.is_empty(), "metadata_namespace");
        let deny = match &value.failure_mode_deny_percent {
            Some(percent) => Fraction::from_runtime(percent),
            None => Fraction::all_or_none(value.failure_mode_deny),
        };
        let how = (timeout(value.timeout.as_ref()), deny);
        let service = value.rate_limit_service.as_ref();
        let service = LimitService::compile(service, &value.domain, how, compiler);
        let faults = &mut compiler.faults;
        let applies = match value.request_type.as_str() {
            "" | "both" => (true, true),
            "internal" => (true, false),
            "external" => (false, true),
            other => {
                faults.reject("request_type", format!("`{other}` is none"));
                return None;
            }
        };
        let status = |code: Option<i32>, default| {
            let code = code.and_then(|code| u16::try_from(code).ok()).filter(|code| *code >= 400);
            code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(default)
        };
        let fraction = |value: Option<&_>| value.map_or(Fraction::ALWAYS, Fraction::from_runtime);
        Some(Self {
            service: service?,
            stage: value.stage,
            applies,
            resource_exhausted: value.rate_limited_as_resource_exhausted,
            tell: value.enable_x_ratelimit_headers()
                == pb::rate_limit::XRateLimitHeadersRfcVersion::DraftVersion03,
            retry_after: value.enable_retry_after_header,
            mark: !value.disable_x_envoy_ratelimited_header,
            status: status(
                value.rate_limited_status.as_ref().map(|status| status.code),
                StatusCode::TOO_MANY_REQUESTS,
            ),
            status_on_error: status(
                value.status_on_error.as_ref().map(|status| status.code),
                StatusCode::INTERNAL_SERVER_ERROR,
            ),
            response_edits: HeaderEdits::compile(
                &value.response_headers_to_add,
                &[],
                ["response_headers_to_add", ""],
                faults,
            ),
            policies: policies(&value.rate_limits, "rate_limits", faults),
            enabled: fraction(value.filter_enabled.as_ref()),
            enforced: fraction(value.filter_enforced.as_ref()),
        })
    }
}

impl GlobalLimitRoute {
    pub(crate) fn compile(value: &pb::RateLimitPerRoute, faults: &mut Faults) -> Self {
        use pb::rate_limit_per_route::{OverrideOptions, VhRateLimitsOptions};
        let other = value.override_option() != OverrideOptions::Default;
        faults.ignore_if(other, "override_option");
        Self {
            vhost: match value.vh_rate_limits() {
                VhRateLimitsOptions::Override => VhostLimits::Fallback,
                VhRateLimitsOptions::Include => VhostLimits::Include,
                VhRateLimitsOptions::Ignore => VhostLimits::Ignore,
            },
            policies: policies(&value.rate_limits, "rate_limits", faults),
            domain: Some(value.domain.clone()).filter(|domain| !domain.is_empty()),
        }
    }
}

impl GlobalConnectionLimit {
    pub(crate) fn compile(value: &network::RateLimit, compiler: &mut Compiler<'_>) -> Option<Self> {
        let deny = Fraction::all_or_none(value.failure_mode_deny);
        let how = (timeout(value.timeout.as_ref()), deny);
        let service = value.rate_limit_service.as_ref();
        let service = LimitService::compile(service, &value.domain, how, compiler)?;
        let descriptors = value.descriptors.iter().map(|descriptor| Descriptor {
            entries: descriptor
                .entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.value.clone()))
                .collect(),
            hits: descriptor.hits_addend.as_ref().map(|hits| hits.value),
            limit: descriptor
                .limit
                .as_ref()
                .map(|limit| OwnLimit { requests: limit.requests_per_unit, unit: limit.unit }),
        });
        Some(Self { service, descriptors: descriptors.collect() })
    }
}

/// A cluster's name as authority. Names such as `outbound|80||a.b` have what
/// no authority may have; servers hardly look at it.
fn authority_of(cluster: &str) -> String {
    let usual = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    cluster.chars().map(|c| if usual(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_clusters_become_authorities() {
        assert_eq!(authority_of("limits.example"), "limits.example");
        let name = authority_of("outbound|8081||limits.test.svc.cluster.local");
        assert_eq!(name, "outbound_8081__limits.test.svc.cluster.local");
        assert!(name.parse::<Authority>().is_ok());
    }
}
