//! Redirects of upstreams that are followed here instead of by the client.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/http/http_connection_management#internal-redirects>

use http::response::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Uri, header};

use super::exchange::Exchange;
use super::forward::{Plan, PreparedBody};
use super::names;
use amime_config::head::{RequestHead, Scheme};
use amime_config::redirect::InternalRedirect;
use amime_config::route::RouteRef;

/// Turns the request into the one that the response redirects to; false if
/// the client is to follow by itself.
pub(super) fn follow(plan: &Plan<'_>, body: &PreparedBody, parts: &Parts) -> bool {
    let Some(policy) = &plan.action.internal_redirect else { return false };
    let exchange = plan.exchange;
    let status = parts.status.as_u16();
    // A body has gone by; only a redirect that drops it can be followed.
    let bodiless =
        matches!(body, PreparedBody::Empty) || status == 303 && exchange.completed_at().is_some();
    if exchange.redirects.get() >= policy.max || !policy.status_codes.contains(&status) || !bodiless
    {
        return false;
    }
    let head = exchange.head.borrow();
    let Some(next) = target(policy, &head, parts) else { return false };
    drop(head);
    if !routed(exchange, &next) {
        return false;
    }
    exchange.redirects.set(exchange.redirects.get() + 1);
    *exchange.head.borrow_mut() = next;
    true
}

fn routed(exchange: &Exchange, head: &RequestHead) -> bool {
    let Some(table) = exchange.connection.routes() else { return false };
    let found = RouteRef::find(&table, head, exchange.connection.certificate());
    found.is_some_and(|(_, route)| route.is_some())
}

fn target(policy: &InternalRedirect, head: &RequestHead, parts: &Parts) -> Option<RequestHead> {
    let location: Uri = parts.headers.get(header::LOCATION)?.to_str().ok()?.parse().ok()?;
    let scheme = match location.scheme_str()? {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    if scheme != head.scheme && !policy.cross_scheme {
        return None;
    }
    let old = format!("{}://{}{}", head.scheme.as_str(), head.authority(), head.path);
    let mut next = head.clone();
    next.headers.insert(names::ORIGINAL_URL, HeaderValue::from_str(&old).ok()?);
    let host = HeaderValue::from_str(location.authority()?.as_str()).ok()?;
    next.headers.insert(header::HOST, host);
    next.path =
        location.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    next.scheme = scheme;
    if parts.status.as_u16() == 303 && !matches!(head.method, Method::GET | Method::HEAD) {
        next.method = Method::GET;
        next.headers.remove(header::CONTENT_LENGTH);
        next.headers.remove(header::TRANSFER_ENCODING);
    }
    for name in &policy.copy {
        next.headers.remove(name);
        if let Some(value) = parts.headers.get(name) {
            next.headers.insert(name.clone(), value.clone());
        }
    }
    Some(next)
}
