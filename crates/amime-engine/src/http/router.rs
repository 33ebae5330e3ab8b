//! From an admitted request to its answer: route, filters, action.
//!
//! Forwarding itself, with its attempts, is in [`super::forward`].

use std::rc::Rc;

use amime_telemetry::ResponseFlags;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::body::{DownstreamBody, ResponseBody};
use super::error::ProxyError;
use super::exchange::{Exchange, ExchangeGuard};
use super::request::Admitted;
use super::response::{self, Own};
use super::{filters, forward, hash, names, path, upgrade};
use amime_config::route::{RequireTls, RouteRef};
use amime_config::route_action::Action;
use amime_rules::head::{RequestHead, Scheme};
use amime_rules::redirect::Redirect;
use amime_rules::route_match::Asked;

/// Answers a request.
pub(super) async fn route(
    mut guard: ExchangeGuard,
    admitted: Admitted,
    body: DownstreamBody,
    on_upgrade: Option<upgrade::OnUpgrade>,
) -> Response<ResponseBody> {
    note_peer(guard.exchange(), &admitted);
    let mut rest = (body, on_upgrade);
    loop {
        guard.exchange().connection.stats.rq_total.inc();
        match round(guard, &admitted, rest).await {
            Ok(response) => return response,
            // A redirect that is followed here: it all begins again.
            Err(again) => guard = again,
        }
        let exchange = guard.exchange();
        exchange.on_response.take();
        exchange.log.borrow_mut().attempts = 0;
        rest = (DownstreamBody::Empty, None);
    }
}

/// Answers a request, unless that has become another one.
async fn round(
    guard: ExchangeGuard,
    admitted: &Admitted,
    (mut body, on_upgrade): (DownstreamBody, Option<upgrade::OnUpgrade>),
) -> Result<Response<ResponseBody>, ExchangeGuard> {
    let exchange = guard.exchange().clone();
    let mut next = 0;
    loop {
        let route = match find(&exchange, admitted.internal) {
            Ok(route) => route,
            Err(redirect) => return Ok(answer(guard, *redirect, None)),
        };
        exchange.log.borrow_mut().route.clone_from(&route);
        let weighted = match route.as_deref().map(|route| &route.action) {
            Some(Action::Forward(action)) => {
                let hash = || hash::of_route(&exchange, &action.hash, admitted.remote);
                action.cluster.draw(&exchange.head.borrow().headers, hash)
            }
            _ => None,
        };
        let destination = forward::Destined::of(&exchange, route.as_ref(), weighted);
        let scope = filters::Scope { route: route.as_deref(), weighted, admitted };
        let wanted = match &route {
            Some(route) => upgrade::wanted(&exchange, admitted, route),
            None => Ok(None),
        };
        let upgrade = match wanted {
            Ok(upgrade) => upgrade,
            Err(error) => return Ok(stopped(guard, &scope, error.into())),
        };
        match filters::run(&exchange, &scope, &mut body, next).await {
            Ok(None) => {}
            Ok(Some(number)) => {
                next = number;
                continue;
            }
            Err(stop) => return Ok(stopped(guard, &scope, stop)),
        }
        let Some(route) = &route else {
            exchange.connection.stats.no_route.inc();
            return Ok(response::local(guard, &ProxyError::NoRoute));
        };
        let way = (admitted, destination, upgrade);
        return act(guard, route, way, (body, on_upgrade)).await;
    }
}

/// The answer to a request that goes no further.
fn stopped(
    guard: ExchangeGuard,
    scope: &filters::Scope<'_>,
    stop: filters::Stop,
) -> Response<ResponseBody> {
    let exchange = guard.exchange();
    let missed = scope.cluster(exchange);
    exchange.log.borrow_mut().missed = missed;
    match stop {
        filters::Stop::Preflight(headers) => {
            response::own(guard, simple(StatusCode::OK, headers, "cors_response"))
        }
        filters::Stop::Error(error) => response::local(guard, &error),
    }
}

/// Does what the route says.
async fn act(
    guard: ExchangeGuard,
    route: &RouteRef,
    (admitted, destination, upgrade): (&Admitted, forward::Destined<'_>, Option<upgrade::Upgrade>),
    (body, on_upgrade): (DownstreamBody, Option<upgrade::OnUpgrade>),
) -> Result<Response<ResponseBody>, ExchangeGuard> {
    let exchange = guard.exchange().clone();
    Ok(match &route.action {
        Action::Forward(action) => {
            let exchange = &exchange;
            let plan = forward::Plan { exchange, route, action, admitted, destination, upgrade };
            match forward::forward(plan, body, on_upgrade).await {
                Ok(Some(forwarded)) => forwarded.into_response(guard),
                Ok(None) => return Err(guard),
                Err(error) => response::local(guard, &error),
            }
        }
        Action::Redirect(redirect) => {
            // Envoy counts both as one kind.
            exchange.connection.stats.rq_direct_response.inc();
            let own = redirected(&exchange, route, redirect);
            answer(guard, own, Some(route))
        }
        Action::Direct { status, body } => {
            exchange.connection.stats.rq_direct_response.inc();
            let own = direct(&exchange, *status, body);
            answer(guard, own, Some(route))
        }
        Action::NonForwarding => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            response::local(guard, &ProxyError::ClusterNotFound(status))
        }
    })
}

/// Keeps what the client told of itself.
fn note_peer(exchange: &Exchange, admitted: &Admitted) {
    if let Some(peer) = &admitted.peer_metadata {
        let peer = exchange.connection.worker.telemetry.peer(peer.as_bytes());
        let mut log = exchange.log.borrow_mut();
        log.downstream_peer = peer;
        log.answer_peer = exchange.connection.config.peer_exchange.to_client;
    }
}

/// A response that the route holds ready.
fn direct(exchange: &Exchange, status: StatusCode, body: &bytes::Bytes) -> Own {
    let mut headers = HeaderMap::with_capacity(6);
    if status == StatusCode::CREATED || status.is_redirection() {
        let head = exchange.head.borrow();
        let location = format!("{}://{}{}", head.scheme.as_str(), head.authority(), head.path);
        headers.extend(HeaderValue::from_str(&location).ok().map(|url| (header::LOCATION, url)));
    }
    Own { body: body.clone(), ..simple(status, headers, "direct_response") }
}

/// The route, or a redirect to https where the virtual host demands it.
fn find(exchange: &Exchange, internal: bool) -> Result<Option<RouteRef>, Box<Own>> {
    let Some(table) = exchange.connection.routes() else { return Ok(None) };
    let mut head = exchange.head.borrow_mut();
    if !internal {
        for name in &table.internal_only {
            head.headers.remove(name);
        }
    }
    let metadata = exchange.metadata.borrow();
    let certificate = exchange.connection.certificate();
    let asked = Asked { head: &head, certificate, metadata: metadata.as_deref() };
    let Some((require_tls, route)) = RouteRef::find(&table, asked) else { return Ok(None) };
    let secure = head.headers.get(names::X_FORWARDED_PROTO).is_some_and(|proto| proto == "https");
    let demanded = match require_tls {
        RequireTls::No => false,
        RequireTls::ExternalOnly => !internal,
        RequireTls::All => true,
    };
    if demanded && !secure {
        let location = format!("https://{}{}", head.authority(), head.path);
        return Err(Box::new(located(StatusCode::MOVED_PERMANENTLY, &location)));
    }
    Ok(route)
}

fn answer(guard: ExchangeGuard, mut own: Own, route: Option<&RouteRef>) -> Response<ResponseBody> {
    if let Some(route) = route {
        response::tell(guard.exchange(), &own);
        response::edit(guard.exchange(), &mut own.headers, 0, &[&route.response_edits]);
    }
    response::own(guard, own)
}

fn simple(status: StatusCode, headers: HeaderMap, details: &'static str) -> Own {
    Own {
        status,
        headers,
        body: bytes::Bytes::new(),
        flags: ResponseFlags::NONE,
        details: details.into(),
        grpc: None,
    }
}

fn located(status: StatusCode, location: &str) -> Own {
    let mut headers = HeaderMap::with_capacity(6);
    if let Ok(value) = HeaderValue::from_str(location) {
        headers.insert(header::LOCATION, value);
    }
    simple(status, headers, "direct_response")
}

fn redirected(exchange: &Rc<Exchange>, route: &RouteRef, redirect: &Redirect) -> Own {
    let head = exchange.head.borrow();
    let location = location(&head, route, redirect);
    located(redirect.status, &location)
}

fn location(head: &RequestHead, route: &RouteRef, redirect: &Redirect) -> String {
    let old = head.scheme.as_str();
    let scheme = match &redirect.scheme {
        Some(scheme) => scheme.as_str(),
        None if redirect.https => Scheme::Https.as_str(),
        None => old,
    };
    let authority = head.authority();
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => (name, Some(port)),
        _ => (authority, None),
    };
    let name = if redirect.host.is_empty() { name } else { &redirect.host };
    let port = match redirect.port {
        // The default port of the old scheme means nothing under a new one.
        0 if scheme != old && matches!(port, Some("80" | "443")) => None,
        0 if !redirect.host.is_empty() => None,
        0 => port.map(str::to_owned),
        port => Some(port.to_string()),
    };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let path = path::redirected(&redirect.path, &route.matcher.path, head, redirect.strip_query);
    format!("{scheme}://{name}{port}{path}")
}
