//! Faults, cross-origin rules, mirrors and hashing of routes.

use amime_api::networking::{
    Abort, ConsistentHashLb, CorsPolicy as CorsSettings, Delay, HttpFaultInjection, HttpRoute,
    LoadBalancerSettings, Percent, StringMatch, TrafficPolicy, UnmatchedPreflights,
};
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, RuntimeFractionalPercent,
};
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{
    ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter,
};
use envoy_types::pb::envoy::config::route::v3::route_action::{HashPolicy, RequestMirrorPolicy};
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::FaultDelay;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault};
use envoy_types::pb::google::protobuf::BoolValue;

use super::matching::string_matcher;
use crate::context::{Context, Direction};
use crate::proto::{bool_value, duration, fine_percent, percent, runtime_percent};
use amime_core::{Hostname, grpc};

/// The header that tells clients of HTTP/3 on the same port, for a day.
pub(crate) fn alt_svc(port: u32) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: "alt-svc".to_owned(),
            value: format!("h3=\":{port}\"; ma=86400"),
            ..Default::default()
        }),
        append_action: HeaderAppendAction::AppendIfExistsOrAdd.into(),
        ..Default::default()
    }
}

/// The faults; `None` if none of them can be injected.
pub(crate) fn fault(settings: &HttpFaultInjection) -> Option<HttpFault> {
    let fault = HttpFault {
        delay: settings.delay.as_ref().and_then(delay),
        abort: settings.abort.as_ref().and_then(abort),
        ..Default::default()
    };
    (fault.delay.is_some() || fault.abort.is_some()).then_some(fault)
}

fn delay(settings: &Delay) -> Option<FaultDelay> {
    let fixed = duration(settings.fixed_delay?.std());
    let share = match &settings.percentage {
        Some(share) => fine_percent(share.value),
        None => percent(whole(settings.percent)),
    };
    Some(FaultDelay {
        percentage: Some(share),
        fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(fixed)),
    })
}

fn abort(settings: &Abort) -> Option<FaultAbort> {
    let error = match (&settings.http_status, &settings.grpc_status) {
        (Some(status), _) => ErrorType::HttpStatus(u32::try_from(*status).ok()?),
        (None, Some(name)) => {
            let code = grpc::STATUS_NAMES.iter().position(|status| status == name)?;
            ErrorType::GrpcStatus(u32::try_from(code).ok()?)
        }
        (None, None) => return None,
    };
    // Old rules give a whole number; without any share no request is aborted.
    let share = match (&settings.percentage, settings.percent) {
        (Some(share), _) => Some(fine_percent(share.value)),
        (None, old) => old.map(|share| percent(whole(Some(share)))),
    };
    Some(FaultAbort { percentage: share, error_type: Some(error), ..Default::default() })
}

fn whole(share: Option<i32>) -> u32 {
    share.and_then(|share| u32::try_from(share).ok()).unwrap_or(0)
}

/// Cross-origin rules of a route.
pub(crate) fn cors(settings: &CorsSettings) -> CorsPolicy {
    let origins = if settings.allow_origins.is_empty() {
        let exact = |origin: &String| string_matcher(&StringMatch::Exact(origin.clone()));
        settings.allow_origin.iter().filter_map(exact).collect()
    } else {
        settings.allow_origins.iter().filter_map(string_matcher).collect()
    };
    CorsPolicy {
        allow_origin_string_match: origins,
        allow_methods: settings.allow_methods.join(","),
        allow_headers: settings.allow_headers.join(","),
        expose_headers: settings.expose_headers.join(","),
        max_age: settings.max_age.map_or(String::new(), |age| age.as_secs().to_string()),
        allow_credentials: settings.allow_credentials.map(|value| BoolValue { value }),
        filter_enabled: Some(runtime_percent(percent(100))),
        forward_not_matching_preflights: bool_value(
            settings.unmatched_preflights != UnmatchedPreflights::Ignore,
        ),
        ..Default::default()
    }
}

/// Share of requests that go to `mirror`; `None` if it is nothing.
pub(crate) fn mirror_share(route: &HttpRoute) -> Option<RuntimeFractionalPercent> {
    match (&route.mirror_percentage, route.mirror_percent) {
        (Some(share), _) => share_of(Some(share)),
        (None, Some(0)) => None,
        (None, Some(share)) => Some(runtime_percent(percent(share))),
        (None, None) => share_of(None),
    }
}

/// The share, everything without one; `None` if it is nothing.
pub(crate) fn share_of(share: Option<&Percent>) -> Option<RuntimeFractionalPercent> {
    match share {
        None => Some(runtime_percent(percent(100))),
        Some(share) => (share.value > 0.0).then(|| runtime_percent(fine_percent(share.value))),
    }
}

pub(crate) fn mirror(cluster: String, share: RuntimeFractionalPercent) -> RequestMirrorPolicy {
    RequestMirrorPolicy {
        cluster,
        runtime_fraction: Some(share),
        trace_sampled: bool_value(false),
        disable_shadow_host_suffix_append: true,
        ..Default::default()
    }
}

/// The key that a rule hashes requests by.
pub(crate) fn hash_policy(hash: &ConsistentHashLb) -> Option<HashPolicy> {
    let specifier = if let Some(name) = &hash.http_header_name {
        PolicySpecifier::Header(Header { header_name: name.clone(), ..Default::default() })
    } else if let Some(cookie) = &hash.http_cookie {
        let attributes = cookie.attributes.iter().map(|attribute| CookieAttribute {
            name: attribute.name.clone(),
            value: attribute.value.clone(),
        });
        PolicySpecifier::Cookie(Cookie {
            name: cookie.name.clone(),
            ttl: cookie.ttl.map(|ttl| duration(ttl.std())),
            path: cookie.path.clone(),
            attributes: attributes.collect(),
        })
    } else if let Some(source_ip) = hash.use_source_ip {
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip })
    } else if let Some(name) = &hash.http_query_parameter_name {
        PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() })
    } else {
        return None;
    };
    Some(HashPolicy { terminal: false, policy_specifier: Some(specifier) })
}

/// Consistent hashing that holds for a destination: of the subset's port, the
/// subset, the port, the host, in this order.
pub(crate) fn consistent_hash(
    context: &Context<'_>,
    host: &str,
    subset: &str,
    port: Option<u32>,
) -> Option<ConsistentHashLb> {
    let rule = context.destination_rule(&Hostname::new(host), Direction::Outbound)?.spec();
    let of = |lb: &Option<LoadBalancerSettings>| lb.as_ref()?.consistent_hash.clone();
    let of_port = |policy: &TrafficPolicy| {
        let number = port?;
        let settings = policy.port_level_settings.iter();
        let mut own = settings.filter(|s| s.port.as_ref().is_some_and(|p| p.number == number));
        own.next().and_then(|setting| of(&setting.load_balancer))
    };
    let named = rule.subsets.iter().find(|s| !subset.is_empty() && s.name == subset);
    let subset_policy = named.and_then(|subset| subset.traffic_policy.as_ref());
    let policy = rule.traffic_policy.as_ref();
    subset_policy
        .and_then(of_port)
        .or_else(|| subset_policy.and_then(|policy| of(&policy.load_balancer)))
        .or_else(|| policy.and_then(of_port))
        .or_else(|| policy.and_then(|policy| of(&policy.load_balancer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abort_without_a_share_hits_no_request() {
        let settings = Abort { http_status: Some(500), ..Default::default() };
        assert_eq!(abort(&settings).map(|abort| abort.percentage), Some(None));
    }

    #[test]
    fn grpc_names_are_codes() {
        let settings = Abort { grpc_status: Some("UNAVAILABLE".into()), ..Default::default() };
        let error = abort(&settings).and_then(|abort| abort.error_type);
        assert_eq!(error, Some(ErrorType::GrpcStatus(14)));
        let unknown = Abort { grpc_status: Some("NOPE".into()), ..Default::default() };
        assert_eq!(abort(&unknown), None);
    }
}
