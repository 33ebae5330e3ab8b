//! Short ways to write a response.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use serde_json::Value;

/// Body of every response.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;
/// What a handler returns.
pub(crate) type Reply = Response<Body>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

pub(crate) fn with_type(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(full(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    reply
}

pub(crate) fn json(status: StatusCode, value: &Value) -> Reply {
    with_type(status, "application/json", value.to_string())
}

pub(crate) fn html(body: String) -> Reply {
    with_type(StatusCode::OK, "text/html; charset=utf-8", body)
}

pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    with_type(status, "text/plain; charset=utf-8", body)
}

pub(crate) fn error(status: StatusCode, message: &str) -> Reply {
    json(status, &serde_json::json!({ "error": message }))
}

pub(crate) fn not_found() -> Reply {
    error(StatusCode::NOT_FOUND, "no such path")
}
