//! What the router changes in a request before it is sent.

use http::{HeaderValue, header};

use super::exchange::{Exchange, protocol};
use super::forward::Plan;
use super::timeouts::Timeouts;
use super::{names, path, response};
use amime_config::route_action::HostRewrite;
use amime_config::route_cluster::WeightedCluster;
use amime_rules::format::FormatInput;
use amime_rules::head::RequestHead;
use amime_rules::headers::HeaderEdits;
use amime_rules::query_edits::QueryEdits;

/// Edits the request for the upstream, in the order of Envoy's router.
pub(super) fn prepare(plan: &Plan<'_>, timeouts: &Timeouts) {
    let weighted = plan.destination.weighted;
    let exchange = plan.exchange;
    let mut head = exchange.head.borrow_mut();
    let head = &mut *head;
    let config = &exchange.connection.config;
    let own = weighted.map(|entry| &entry.request_edits).filter(|edits| !edits.is_empty());
    for edits in own.into_iter().chain([&plan.route.request_edits]) {
        apply_edits(exchange, edits, head);
    }
    rewrite_host(plan, weighted, head);
    let before = head.path.clone();
    if path::rewrite(&plan.action.path_rewrite, &plan.route.matcher.path, head)
        && !config.suppress_envoy_headers
        && let Ok(value) = HeaderValue::from_str(before.as_str())
    {
        head.headers.insert(names::ORIGINAL_PATH, value);
    }
    if plan.admitted.internal {
        for name in names::FOR_ROUTER {
            head.headers.remove(name);
        }
    }
    if !config.suppress_envoy_headers
        && let Some(value) = timeouts.expected(plan.action)
    {
        head.headers.insert(names::EXPECTED_TIMEOUT, value);
    }
    if let Some(grpc) = timeouts.grpc
        && let Ok(value) = HeaderValue::from_str(&format!("{}m", grpc.as_millis()))
    {
        head.headers.insert(names::GRPC_TIMEOUT, value);
    }
    if config.peer_exchange.to_upstream
        && let Some((metadata, id)) = &exchange.connection.worker.own_metadata
    {
        head.headers.insert(names::PEER_METADATA, metadata.clone());
        head.headers.insert(names::PEER_METADATA_ID, id.clone());
    }
    join_cookies(head);
    exchange.log.borrow_mut().request_bytes = response::header_bytes(&head.headers);
}

/// Runs edits on the request.
pub(super) fn apply_edits(exchange: &Exchange, edits: &HeaderEdits, head: &mut RequestHead) {
    if edits.is_empty() {
        return;
    }
    let mut headers = std::mem::take(&mut head.headers);
    with_input(exchange, head, |input| edits.apply(&mut headers, input));
    head.headers = headers;
}

/// Edits the request's query parameters.
pub(super) fn edit_query(exchange: &Exchange, edits: &QueryEdits, head: &mut RequestHead) {
    if edits.is_empty() {
        return;
    }
    let path = with_input(exchange, head, |input| edits.apply(&head.path, &head.headers, input));
    if let Some(path) = path {
        head.path = path;
    }
}

/// Calls `act` with what operators in a request's values refer to.
pub(super) fn with_input<T>(
    exchange: &Exchange,
    head: &RequestHead,
    act: impl FnOnce(&FormatInput<'_>) -> T,
) -> T {
    let downstream = &exchange.connection.downstream;
    let log = exchange.log.borrow();
    let metadata = exchange.metadata.borrow();
    act(&FormatInput {
        metadata: metadata.as_deref(),
        request: Some(head),
        downstream_remote: Some(downstream.remote),
        downstream_local: Some(downstream.local),
        sni: downstream.sni.as_deref(),
        protocol: protocol(head.version),
        tls: downstream.tls.as_ref(),
        route_name: log.route.as_ref().map_or("", |route| &route.name),
        cluster: log.cluster.as_ref().map_or("", |cluster| &cluster.config().name),
        ..FormatInput::default()
    })
}

fn rewrite_host(plan: &Plan<'_>, weighted: Option<&WeightedCluster>, head: &mut RequestHead) {
    let new =
        match (weighted.and_then(|entry| entry.host_rewrite.clone()), &plan.action.host_rewrite) {
            (Some(host), _) => Some(host),
            (None, HostRewrite::Keep | HostRewrite::Endpoint) => None,
            (None, HostRewrite::Literal(host)) => Some(host.clone()),
            (None, HostRewrite::Header(name)) => head.headers.get(name).cloned(),
            (None, HostRewrite::PathRegex(regex, text)) => {
                HeaderValue::from_str(&path::substitute(regex, text, head.path.path())).ok()
            }
        };
    let Some(new) = new.filter(|host| !host.is_empty()) else { return };
    let old = head.headers.insert(header::HOST, new);
    let own = weighted.is_some_and(|entry| entry.host_rewrite.is_some());
    if !own
        && !plan.exchange.connection.config.suppress_envoy_headers
        && let Some(old) = &old
    {
        head.headers.insert(names::ORIGINAL_HOST, old.clone());
    }
    if plan.action.append_forwarded_host
        && let Some(old) = old
    {
        let joined = match head.headers.get(names::X_FORWARDED_HOST) {
            Some(before) => [before.as_bytes(), b",", old.as_bytes()].concat(),
            None => old.as_bytes().to_vec(),
        };
        if let Ok(joined) = HeaderValue::from_bytes(&joined) {
            head.headers.insert(names::X_FORWARDED_HOST, joined);
        }
    }
}

/// HTTP/2 may split cookies; HTTP/1 servers expect one header.
fn join_cookies(head: &mut RequestHead) {
    if head.version < http::Version::HTTP_2 {
        return;
    }
    let mut cookies = head.headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        head.headers.insert(header::COOKIE, value);
    }
}
