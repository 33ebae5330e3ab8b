//! HTTP filters: fault injection, CORS and access control, and what routes
//! say about them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common_fault;
use envoy_types::pb::envoy::extensions::filters::http::{
    cors::v3 as cors, fault::v3 as fault, rbac::v3 as rbac,
};
use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher as PbStringMatcher;
use envoy_types::pb::google::protobuf::{Any, BoolValue};
use http::HeaderValue;
use prost::Message;

use super::Compiler;
use super::faults::Faults;
use super::matcher::{HeaderMatcher, StringMatcher, header_matchers};
use super::rbac::{Rbac, Rules};
use super::values::{self, Fraction, is, type_name, unpack};

/// Filter settings of a route, the route's own before its parents'.
#[derive(Clone, Debug, Default)]
pub struct PerRoute {
    pub fault: Option<Arc<Fault>>,
    pub cors: Option<Arc<Cors>>,
    /// `Some(None)` switches the filter off for the route.
    pub rbac: Option<Option<Arc<Rbac>>>,
}

/// A compiled `HTTPFault`.
#[derive(Debug)]
pub struct Fault {
    pub delay: Option<(Fraction, Duration)>,
    pub abort: Option<(Fraction, Abort)>,
    pub headers: Vec<HeaderMatcher>,
    pub upstream_cluster: String,
    pub max_active: u32,
}

/// What an aborted request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    Http(http::StatusCode),
    Grpc(u32),
}

/// A compiled CORS policy.
#[derive(Debug)]
pub struct Cors {
    pub enabled: Fraction,
    pub origins: Vec<StringMatcher>,
    pub methods: Option<HeaderValue>,
    pub headers: Option<HeaderValue>,
    pub expose: Option<HeaderValue>,
    pub max_age: Option<HeaderValue>,
    pub credentials: bool,
    pub forward_unmatched_preflights: bool,
}

impl PerRoute {
    pub fn compile(configs: &HashMap<String, Any>, compiler: &mut Compiler<'_>) -> Self {
        let mut filters = Self::default();
        let faults = &mut compiler.faults;
        for (name, any) in configs {
            faults.enter(format!("typed_per_filter_config[{name}]"));
            filters.add(any, faults);
            faults.leave();
        }
        filters
    }

    fn add(&mut self, any: &Any, faults: &mut Faults) {
        if is::<fault::HttpFault>(any) {
            self.fault = unpack(any, faults).map(|value| Arc::new(Fault::compile(&value, faults)));
        } else if is::<cors::CorsPolicy>(any) {
            self.cors = unpack(any, faults).and_then(|value: cors::CorsPolicy| {
                CorsFields::of_filter(&value).compile(faults).map(Arc::new)
            });
        } else if is::<rbac::RbacPerRoute>(any) {
            let value: Option<rbac::RbacPerRoute> = unpack(any, faults);
            self.rbac =
                value.map(|value| value.rbac.map(|rbac| Arc::new(compile_rbac(&rbac, faults))));
        } else if is::<route::FilterConfig>(any) {
            if let Ok(route::FilterConfig { config: Some(inner), .. }) =
                route::FilterConfig::decode(any.value.as_slice())
            {
                self.add(&inner, faults);
            }
        } else {
            faults.ignore("", format!("{} is not supported", type_name(any)));
        }
    }

    /// Adds the CORS policy that older control planes put on routes.
    pub fn add_cors(&mut self, policy: Option<&route::CorsPolicy>, compiler: &mut Compiler<'_>) {
        if let Some(policy) = policy
            && self.cors.is_none()
        {
            self.cors = compiler
                .faults
                .within("cors", |faults| CorsFields::of_route(policy).compile(faults))
                .map(Arc::new);
        }
    }

    /// Takes from `parent` what is not set here.
    pub fn inherit(&mut self, parent: &Self) {
        self.fault = self.fault.take().or_else(|| parent.fault.clone());
        self.cors = self.cors.take().or_else(|| parent.cors.clone());
        self.rbac = self.rbac.take().or_else(|| parent.rbac.clone());
    }
}

impl Fault {
    pub fn compile(value: &fault::HttpFault, faults: &mut Faults) -> Self {
        faults.ignore_if(value.response_rate_limit.is_some(), "response_rate_limit");
        faults.ignore_if(!value.downstream_nodes.is_empty(), "downstream_nodes");
        let delay = value.delay.as_ref().and_then(|delay| {
            let fraction = delay.percentage.as_ref().map_or(Fraction::NEVER, Fraction::new);
            match delay.fault_delay_secifier.as_ref() {
                Some(common_fault::fault_delay::FaultDelaySecifier::FixedDelay(fixed)) => {
                    Some((fraction, values::duration(fixed)))
                }
                _ => {
                    faults.ignore("delay.header_delay", "not supported");
                    None
                }
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
                _ => {
                    faults.ignore("abort.header_abort", "not supported");
                    None
                }
            }
        });
        Self {
            delay,
            abort,
            headers: header_matchers(&value.headers, "headers", faults),
            upstream_cluster: value.upstream_cluster.clone(),
            max_active: values::u32_or(value.max_active_faults.as_ref(), u32::MAX),
        }
    }
}

/// Compiles the HTTP filter's two sets of rules.
pub fn compile_rbac(value: &rbac::Rbac, faults: &mut Faults) -> Rbac {
    faults.reject_if(value.matcher.is_some(), "matcher");
    faults.ignore_if(value.shadow_matcher.is_some(), "shadow_matcher");
    let mut rules = |rules: Option<&_>, field: &str| {
        rules.map(|rules| faults.within(field, |faults| Rules::compile(rules, faults)))
    };
    Rbac {
        rules: rules(value.rules.as_ref(), "rules"),
        shadow: rules(value.shadow_rules.as_ref(), "shadow_rules"),
    }
}

/// The fields that the two messages for a CORS policy share.
struct CorsFields<'a> {
    enabled: Fraction,
    origins: &'a [PbStringMatcher],
    methods: &'a str,
    headers: &'a str,
    expose: &'a str,
    max_age: &'a str,
    credentials: Option<&'a BoolValue>,
    forward: Option<&'a BoolValue>,
}

impl<'a> CorsFields<'a> {
    fn of_filter(value: &'a cors::CorsPolicy) -> Self {
        Self {
            enabled: value.filter_enabled.as_ref().map_or(Fraction::ALWAYS, Fraction::from_runtime),
            origins: &value.allow_origin_string_match,
            methods: &value.allow_methods,
            headers: &value.allow_headers,
            expose: &value.expose_headers,
            max_age: &value.max_age,
            credentials: value.allow_credentials.as_ref(),
            forward: value.forward_not_matching_preflights.as_ref(),
        }
    }

    fn of_route(value: &'a route::CorsPolicy) -> Self {
        use route::cors_policy::EnabledSpecifier;
        Self {
            enabled: match value.enabled_specifier.as_ref() {
                Some(EnabledSpecifier::FilterEnabled(fraction)) => Fraction::from_runtime(fraction),
                None => Fraction::ALWAYS,
            },
            origins: &value.allow_origin_string_match,
            methods: &value.allow_methods,
            headers: &value.allow_headers,
            expose: &value.expose_headers,
            max_age: &value.max_age,
            credentials: value.allow_credentials.as_ref(),
            forward: value.forward_not_matching_preflights.as_ref(),
        }
    }

    fn compile(self, faults: &mut Faults) -> Option<Cors> {
        let mut header = |text: &str, field: &str| match (text, HeaderValue::from_str(text)) {
            ("", _) => None,
            (_, Ok(value)) => Some(value),
            (_, Err(_)) => {
                faults.reject(field, format!("`{text}` is not a header value"));
                None
            }
        };
        let methods = header(self.methods, "allow_methods");
        let headers = header(self.headers, "allow_headers");
        let expose = header(self.expose, "expose_headers");
        let max_age = header(self.max_age, "max_age");
        let compile = |origin: &PbStringMatcher| StringMatcher::compile(origin, faults);
        let origins: Option<Vec<_>> = self.origins.iter().map(compile).collect();
        Some(Cors {
            enabled: self.enabled,
            origins: origins?,
            methods,
            headers,
            expose,
            max_age,
            credentials: values::bool_or(self.credentials, false),
            forward_unmatched_preflights: values::bool_or(self.forward, true),
        })
    }
}
