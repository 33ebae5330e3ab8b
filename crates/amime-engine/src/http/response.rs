//! What the connection manager and the router do to a response.

use std::time::Duration;

use amime_telemetry::ResponseFlags;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::body::ResponseBody;
use super::error::{LocalReply, ProxyError};
use super::exchange::{End, Exchange, ExchangeGuard, answered, protocol};
use super::names;
use amime_config::format::FormatInput;
use amime_config::hcm::ServerHeader;
use amime_config::headers::HeaderEdits;

thread_local! {
    /// Ready-made values for short service times.
    static MILLIS: Vec<HeaderValue> = (0..1024_u32).map(HeaderValue::from).collect();
}

/// A duration in milliseconds as a header value.
fn millis(duration: Duration) -> HeaderValue {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let known = usize::try_from(millis).ok();
    MILLIS.with(|table| {
        known.and_then(|at| table.get(at).cloned()).unwrap_or_else(|| HeaderValue::from(millis))
    })
}

/// Edits the headers of an upstream's response for the client.
pub(super) fn from_upstream(exchange: &Exchange, parts: &mut Parts, edits: &[&HeaderEdits]) {
    let upgrade = exchange.head.borrow().headers.contains_key(header::UPGRADE);
    let upgraded = upgrade && parts.status == StatusCode::SWITCHING_PROTOCOLS;
    remove_hop_by_hop(&mut parts.headers, upgraded);
    let config = &exchange.connection.config;
    if !config.suppress_envoy_headers {
        let log = exchange.log.borrow();
        // The time from the request's end; while it still comes there is none.
        if let Some(sent) = exchange.received_after() {
            let value = millis(log.response_after.unwrap_or_default().saturating_sub(sent));
            parts.headers.insert(names::UPSTREAM_SERVICE_TIME, value);
        }
        if log.route.as_ref().is_some_and(|route| route.attempt_count.in_response) {
            parts.headers.insert(names::ATTEMPT_COUNT, HeaderValue::from(log.attempts));
        }
    }
    edit(exchange, &mut parts.headers, parts.status, edits);
    finish(exchange, &mut parts.headers, true);
}

/// Applies a route's edits.
pub(super) fn edit(
    exchange: &Exchange,
    headers: &mut HeaderMap,
    status: StatusCode,
    edits: &[&HeaderEdits],
) {
    if edits.iter().all(|edits| edits.is_empty()) {
        return;
    }
    let head = exchange.head.borrow();
    let log = exchange.log.borrow();
    let downstream = &exchange.connection.downstream;
    let input = FormatInput {
        request: Some(&head),
        editing_response: true,
        response_code: status.as_u16(),
        downstream_remote: Some(downstream.remote),
        downstream_local: Some(downstream.local),
        upstream_host: log.host.as_ref().map(|host| host.endpoint.address),
        sni: downstream.sni.as_deref(),
        protocol: protocol(head.version),
        peer_uri_san: downstream.tls.as_ref().and_then(|tls| tls.peer_uri_san.as_deref()),
        route_name: log.route.as_ref().map_or("", |route| &route.name),
        cluster: log.cluster.as_ref().map_or("", |cluster| &cluster.config().name),
    };
    edits.iter().for_each(|edits| edits.apply(headers, &input));
}

/// What every response gets, the proxy's own included.
fn finish(exchange: &Exchange, headers: &mut HeaderMap, from_upstream: bool) {
    let connection = &exchange.connection;
    let config = &connection.config;
    match config.server_header {
        ServerHeader::PassThrough if from_upstream => {}
        ServerHeader::AppendIfAbsent if headers.contains_key(header::SERVER) => {}
        _ => {
            headers.insert(header::SERVER, config.server_name.clone());
        }
    }
    if config.request_id.always_in_response
        && let Some(id) = exchange.head.borrow().headers.get(names::X_REQUEST_ID)
    {
        headers.insert(names::X_REQUEST_ID, id.clone());
    }
    if let Some(via) = &config.via {
        headers.append(header::VIA, via.clone());
    }
    if exchange.head.borrow().version != http::Version::HTTP_2 && connection.closing() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let mut log = exchange.log.borrow_mut();
    if log.answer_peer
        && let Some((metadata, id)) = &connection.worker.own_metadata
    {
        headers.insert(names::PEER_METADATA, metadata.clone());
        headers.insert(names::PEER_METADATA_ID, id.clone());
    }
    if !config.telemetry.access_logs.is_empty() {
        log.response_headers = headers.clone();
    } else if log.grpc
        && let Some(status) = headers.get(names::GRPC_STATUS)
    {
        log.response_headers.insert(names::GRPC_STATUS, status.clone());
    }
    if config.telemetry.istio_stats.is_some() {
        log.response_bytes = header_bytes(headers);
    }
}

/// About what a header section takes on the wire.
pub(super) fn header_bytes(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len() + 4) as u64).sum()
}

fn remove_hop_by_hop(headers: &mut HeaderMap, upgraded: bool) {
    let mut found = false;
    for name in headers.keys() {
        found |= matches!(
            name.as_str(),
            "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade"
        );
    }
    if !found {
        return;
    }
    if !upgraded {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
    }
    headers.remove(names::KEEP_ALIVE);
    headers.remove(names::PROXY_CONNECTION);
    headers.remove(header::TRANSFER_ENCODING);
}

/// The proxy's answer for `error`.
pub(super) fn local(guard: ExchangeGuard, error: &ProxyError) -> Response<ResponseBody> {
    let reply = error.reply();
    if let ProxyError::NormalizedRedirect(location) = error {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_str(location) {
            headers.insert(header::LOCATION, value);
        }
        return own(guard, Own { status: reply.status, headers, ..Own::new(reply, false) });
    }
    let grpc = guard.exchange().log.borrow().grpc;
    let mut answer = Own::new(reply, grpc);
    let closes = {
        let head = guard.exchange().head.borrow();
        // What a client sends after CONNECT may not be HTTP.
        let closes = error.closes() || head.method == http::Method::CONNECT;
        closes && head.version != http::Version::HTTP_2
    };
    if closes {
        answer.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    own(guard, answer)
}

/// A response that the proxy makes itself.
pub(super) struct Own {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: bytes::Bytes,
    pub(super) flags: ResponseFlags,
    pub(super) details: std::borrow::Cow<'static, str>,
}

impl Own {
    pub(super) fn new(reply: LocalReply, grpc: bool) -> Self {
        let (flags, details) = (reply.flags, reply.details.clone());
        let (status, headers, body) = reply.into_parts(grpc);
        Self { status, headers, body, flags, details }
    }
}

pub(super) fn own(mut guard: ExchangeGuard, own: Own) -> Response<ResponseBody> {
    let Own { status, mut headers, body, flags, details } = own;
    {
        let mut log = guard.exchange().log.borrow_mut();
        log.flags.insert(flags);
        answered(&mut log, status, details);
    }
    finish(guard.exchange(), &mut headers, false);
    if body.is_empty() || guard.exchange().bodiless() {
        guard.finish(End::Complete);
        let mut response = Response::new(ResponseBody::bytes(bytes::Bytes::new(), None));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        return response;
    }
    let mut response = Response::new(ResponseBody::bytes(body, Some(guard)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
