//! Request heads as filters and routing see them.
//!
//! This is the boundary between codecs and the rest: codecs fill these in,
//! everything above only reads and edits them, so that another HTTP/1 codec
//! can take hyper's place.
//!
//! Invariant: the authority is the `host` entry of `headers`, whatever the
//! downstream protocol; a codec that has a pseudo header converts.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Uri, Version, header};

/// URL scheme of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Scheme {
    #[default]
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Head of a request.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub method: Method,
    pub path: PathAndQuery,
    pub headers: HeaderMap,
    /// What the client speaks.
    pub version: Version,
    /// Scheme the request was made with, `x-forwarded-proto` included.
    pub scheme: Scheme,
}

impl RequestHead {
    pub(crate) fn authority_value(&self) -> Option<&HeaderValue> {
        self.headers.get(header::HOST)
    }

    /// The authority, empty if there is none or it is not text.
    pub fn authority(&self) -> &str {
        self.authority_value().and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// True for a gRPC request: its errors travel as `grpc-status`.
    pub fn is_grpc(&self) -> bool {
        let Some(value) = self.headers.get(header::CONTENT_TYPE) else { return false };
        let value = value.as_bytes();
        // `application/grpc-web` is not gRPC: it has its own framing of errors.
        value
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| rest.is_empty() || rest[0] == b'+')
    }

    /// The request target for an upstream of HTTP/1.
    pub fn origin_form(&self) -> Uri {
        Uri::from(self.path.clone())
    }
}
