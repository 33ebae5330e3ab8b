//! Requests that another site makes its visitors send.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/csrf_filter>

use envoy_types::pb::envoy::extensions::filters::http::csrf::v3 as pb;
use http::{HeaderValue, Method, header};

use super::faults::Faults;
use super::head::RequestHead;
use super::matcher::StringMatcher;
use super::values::Fraction;

/// A compiled `CsrfPolicy`.
#[derive(Debug)]
pub struct Csrf {
    enabled: Fraction,
    origins: Vec<StringMatcher>,
}

impl Csrf {
    pub(crate) fn compile(value: &pb::CsrfPolicy, faults: &mut Faults) -> Self {
        faults.ignore_if(value.shadow_enabled.is_some(), "shadow_enabled");
        let origins = value.additional_origins.iter();
        Self {
            enabled: value.filter_enabled.as_ref().map_or(Fraction::NEVER, Fraction::from_runtime),
            origins: origins.filter_map(|it| StringMatcher::compile(it, faults)).collect(),
        }
    }

    /// True if the request may come from where it says that it does.
    pub fn admits(&self, head: &RequestHead) -> bool {
        if !self.enabled.draw()
            || !matches!(head.method, Method::POST | Method::PUT | Method::DELETE | Method::PATCH)
        {
            return true;
        }
        let value = |name| head.headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
        let source = match host_and_port(value(header::ORIGIN)) {
            b"" => host_and_port(value(header::REFERER)),
            origin => origin,
        };
        !source.is_empty()
            && (source == host_and_port(head.authority().as_bytes())
                || self.origins.iter().any(|origin| origin.matches(source)))
    }
}

/// Host and port of a URL; all of what is none.
fn host_and_port(text: &[u8]) -> &[u8] {
    let rest = text.strip_prefix(b"http://").or_else(|| text.strip_prefix(b"https://"));
    let Some(rest) = rest else { return text };
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
    &rest[..end.unwrap_or(rest.len())]
}
