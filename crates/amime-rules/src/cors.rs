//! Policies for requests from other origins.

use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as cors;
use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher as PbStringMatcher;
use envoy_types::pb::google::protobuf::BoolValue;
use http::HeaderValue;

use super::faults::Faults;
use super::matcher::StringMatcher;
use super::values::{self, Fraction};

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

/// The fields that the two messages for a CORS policy share.
pub struct CorsFields<'a> {
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
    pub fn of_filter(value: &'a cors::CorsPolicy) -> Self {
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

    pub fn of_route(value: &'a route::CorsPolicy) -> Self {
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

    pub fn compile(self, faults: &mut Faults) -> Option<Cors> {
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
