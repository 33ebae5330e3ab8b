//! `details`: facts about a book.

use http::{Method, Request, StatusCode};
use serde_json::json;

use crate::books;
use crate::reply::{self, Reply};

/// Answers one request.
pub(crate) fn handle<B>(request: &Request<B>) -> Reply {
    let path = request.uri().path();
    if request.method() != Method::GET {
        return reply::error(StatusCode::METHOD_NOT_ALLOWED, "only GET");
    }
    if path == "/health" {
        return reply::json(StatusCode::OK, &json!({ "status": "Details is healthy" }));
    }
    match path.strip_prefix("/details/").map(str::parse::<u64>) {
        Some(Ok(id)) => reply::json(StatusCode::OK, &books::details(id)),
        Some(Err(_)) => reply::error(StatusCode::BAD_REQUEST, "please provide numeric product id"),
        None => reply::not_found(),
    }
}
