//! Redirects of upstreams that are followed here instead of by the client.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/http/http_connection_management#internal-redirects>

use std::borrow::Cow;

use http::response::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Uri, header};

use super::exchange::{End, Exchange, answered};
use super::forward::{self, Plan, PreparedBody};
use super::names;
use amime_config::route::RouteRef;
use amime_config::route_action::Action;
use amime_rules::head::{RequestHead, Scheme};
use amime_rules::redirect::{InternalRedirect, RedirectPredicate};
use amime_rules::route_match::Asked;

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
    // Whatever was before it, a connection without TLS is not secure.
    let secure = exchange.connection.downstream.tls.is_some();
    let from = if secure { head.scheme } else { Scheme::Http };
    let Some(next) = target(policy, (&head, from), parts) else { return false };
    drop(head);
    let Some(route) = routed(exchange, &next) else { return false };
    let mut predicates = policy.predicates.iter();
    if !predicates.all(|one| agrees(one, plan, &route, (from, next.scheme))) {
        return false;
    }
    exchange.redirects.set(exchange.redirects.get() + 1);
    *exchange.head.borrow_mut() = next;
    note(exchange, route, parts);
    true
}

/// Tells telemetry of the request that ends here, as Envoy does: by then it is
/// known as the one that it becomes.
fn note(exchange: &Exchange, route: RouteRef, parts: &Parts) {
    let cluster = match &route.action {
        Action::Forward(action) => forward::cluster_of(exchange, action, None),
        _ => None,
    };
    {
        let mut log = exchange.log.borrow_mut();
        answered(&mut log, parts.status, "internal_redirect");
        log.route = Some(route);
        log.cluster = cluster;
        log.virtual_cluster = None;
    }
    exchange.record(End::Complete);
    // What it becomes has no answer yet.
    let mut log = exchange.log.borrow_mut();
    log.status = 0;
    log.details = Cow::Borrowed("");
}

/// The route that the request would take.
fn routed(exchange: &Exchange, head: &RequestHead) -> Option<RouteRef> {
    let table = exchange.connection.routes()?;
    // It would begin as a request of its own, of which nothing is noted.
    let asked = Asked { head, certificate: exchange.connection.certificate(), metadata: None };
    RouteRef::find(&table, asked)?.1
}

fn agrees(
    predicate: &RedirectPredicate,
    plan: &Plan<'_>,
    to: &RouteRef,
    (old, new): (Scheme, Scheme),
) -> bool {
    match predicate {
        RedirectPredicate::SafeScheme => old == Scheme::Https || new == Scheme::Http,
        RedirectPredicate::ToOneOf(names) => names.iter().any(|name| **name == *to.name),
        RedirectPredicate::NewRoute => {
            let mut gone = plan.exchange.redirected.borrow_mut();
            let step = (plan.route.name.clone(), to.name.clone());
            let new = !gone.contains(&step);
            if new {
                gone.push(step);
            }
            new
        }
    }
}

fn target(
    policy: &InternalRedirect,
    (head, from): (&RequestHead, Scheme),
    parts: &Parts,
) -> Option<RequestHead> {
    let location: Uri = parts.headers.get(header::LOCATION)?.to_str().ok()?.parse().ok()?;
    let scheme = match location.scheme_str()? {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    if scheme != from && !policy.cross_scheme {
        return None;
    }
    let old = format!("{}://{}{}", from.as_str(), head.authority(), head.path);
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
