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
    /// Judged, but not refused.
    shadow: Fraction,
    origins: Vec<StringMatcher>,
}

/// What is to be said of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is none that could do harm, or nobody asks.
    Passed,
    Valid,
    Invalid {
        /// It does not say where it is from.
        sourceless: bool,
        /// It goes no further.
        refused: bool,
    },
}

impl Csrf {
    pub fn compile(value: &pb::CsrfPolicy, faults: &mut Faults) -> Self {
        let origins = value.additional_origins.iter();
        let fraction = |value: Option<&_>| value.map_or(Fraction::NEVER, Fraction::from_runtime);
        Self {
            enabled: fraction(value.filter_enabled.as_ref()),
            shadow: fraction(value.shadow_enabled.as_ref()),
            origins: origins.filter_map(|it| StringMatcher::compile(it, faults)).collect(),
        }
    }

    /// Whether the request may come from where it says that it does.
    pub fn judge(&self, head: &RequestHead) -> Verdict {
        let refused = self.enabled.draw();
        if !(refused || self.shadow.draw())
            || !matches!(head.method, Method::POST | Method::PUT | Method::DELETE | Method::PATCH)
        {
            return Verdict::Passed;
        }
        let value = |name| head.headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
        let source = match host_and_port(value(header::ORIGIN)) {
            b"" => host_and_port(value(header::REFERER)),
            origin => origin,
        };
        let valid = source == host_and_port(head.authority().as_bytes())
            || self.origins.iter().any(|origin| origin.matches(source));
        // A browser says `null` where it may not say.
        match matches!(source, b"" | b"null") {
            false if valid => Verdict::Valid,
            sourceless => Verdict::Invalid { sourceless, refused },
        }
    }
}

/// Host and port of a URL; all of what is none.
fn host_and_port(text: &[u8]) -> &[u8] {
    let rest = text.strip_prefix(b"http://").or_else(|| text.strip_prefix(b"https://"));
    let Some(rest) = rest else { return text };
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
    &rest[..end.unwrap_or(rest.len())]
}
