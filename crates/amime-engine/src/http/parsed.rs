//! Requests of both codecs in the one form that the rest knows.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Version, header};

use amime_http1::{HeaderCase, Target};
use amime_rules::head::{RequestHead, Scheme};

use super::error::ProxyError;

/// A request's head; the authority has moved into `host`.
pub(super) struct Parsed {
    pub(super) head: RequestHead,
    /// Whether the target can be served at all.
    pub(super) valid: Result<(), ProxyError>,
    /// How the client spelled the names of headers, if that matters.
    pub(super) case: Option<HeaderCase>,
}

impl Parsed {
    /// Takes a request of HTTP/1.
    pub(super) fn of_http1(head: amime_http1::RequestHead, tls: bool) -> Self {
        let amime_http1::RequestHead { method, target, version, mut headers, case, .. } = head;
        let own = if tls { Scheme::Https } else { Scheme::Http };
        let (scheme, authority, path) = match target {
            Target::Path(path) => (own, None, path),
            Target::Absolute { https, authority, path } => {
                let scheme = if https { Scheme::Https } else { Scheme::Http };
                (scheme, Some(authority), path)
            }
            Target::Authority(authority) => (own, Some(authority), Bytes::from_static(b"/")),
        };
        if let Some(authority) = authority
            && let Ok(value) = HeaderValue::from_maybe_shared(authority)
        {
            headers.insert(header::HOST, value);
        }
        let (path, valid) = path_of(path);
        Self { head: RequestHead { method, path, headers, version, scheme }, valid, case }
    }

    /// Takes a request of HTTP/2.
    pub(super) fn of_http2<B>(request: Request<B>, tls: bool) -> (Self, B) {
        let (parts, body) = request.into_parts();
        let uri = parts.uri.into_parts();
        let mut headers = parts.headers;
        if let Some(authority) = &uri.authority
            && let Ok(value) = HeaderValue::from_str(authority.as_str())
        {
            // `:authority` stands above any `host`.
            headers.insert(header::HOST, value);
        }
        let scheme = match &uri.scheme {
            Some(scheme) if *scheme == http::uri::Scheme::HTTPS => Scheme::Https,
            Some(_) => Scheme::Http,
            None if tls => Scheme::Https,
            None => Scheme::Http,
        };
        let bad = Err(ProxyError::BadRequest("http1.codec_error"));
        let valid = match (&parts.method, &uri.authority, &uri.path_and_query) {
            (&Method::CONNECT, Some(_), None) if has_body(&headers) => {
                Err(ProxyError::BadRequest("http1.body_disallowed"))
            }
            (&Method::CONNECT, Some(_), None) => Ok(()),
            (method, _, Some(path)) if path == "*" && *method != Method::OPTIONS => bad,
            (_, _, None) => bad,
            _ => Ok(()),
        };
        let path = uri.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let (mut method, version) = (parts.method, parts.version);
        if let Some(protocol) = parts.extensions.get::<hyper::ext::Protocol>()
            && let Ok(kind) = HeaderValue::from_str(protocol.as_str())
        {
            method = Method::GET;
            headers.insert(header::UPGRADE, kind);
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        let head = RequestHead { method, path, headers, version, scheme };
        (Self { head, valid, case: None }, body)
    }
}

/// True if the headers announce a body.
fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
}

fn path_of(raw: Bytes) -> (PathAndQuery, Result<(), ProxyError>) {
    let none = || PathAndQuery::from_static("/");
    if raw.first() != Some(&b'/') {
        // Kept for the access log, as far as it is a path at all.
        let path = PathAndQuery::from_maybe_shared(raw).unwrap_or_else(|_| none());
        return (path, Err(ProxyError::NotRelativePath));
    }
    let fragment = raw.contains(&b'#');
    let path = PathAndQuery::from_maybe_shared(raw.clone()).or_else(|_| {
        // Brackets and quotes that no URL may have, but that are forwarded:
        // they are written in the way that means the same.
        PathAndQuery::from_maybe_shared(Bytes::from(escape(&raw)))
    });
    match path {
        Ok(path) if fragment => (path, Err(ProxyError::Fragment(raw))),
        Ok(path) => (path, Ok(())),
        Err(_) => (none(), Err(ProxyError::BadRequest("http1.codec_error"))),
    }
}

fn escape(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + 8);
    for byte in raw {
        match byte {
            b'<' => out.extend(b"%3C"),
            b'>' => out.extend(b"%3E"),
            b'"' => out.extend(b"%22"),
            b'`' => out.extend(b"%60"),
            other => out.push(*other),
        }
    }
    out
}

/// Method of a request that could not be read.
const UNREADABLE: &[u8] = b"-";

/// Stands for a request that could not be read.
pub(super) fn unreadable() -> RequestHead {
    RequestHead {
        method: Method::from_bytes(UNREADABLE).expect("a dash is a token"),
        path: PathAndQuery::from_static("/"),
        headers: HeaderMap::new(),
        version: Version::HTTP_11,
        scheme: Scheme::Http,
    }
}

/// Path for the access log. A request to connect has none, nor has one that
/// could not be read.
pub(super) fn logged_path(head: &RequestHead) -> &str {
    let pathless = head.method == Method::CONNECT || head.method.as_str().as_bytes() == UNREADABLE;
    if pathless { "" } else { head.path.as_str() }
}
