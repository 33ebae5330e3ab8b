//! What the connection manager and the router do to a response.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use amime_telemetry::ResponseFlags;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::body::ResponseBody;
use super::error::{LocalReply, ProxyError, grpc_status, percent_encode};
use super::exchange::{End, Exchange, ExchangeGuard, answered, protocol};
use super::filters::{self, Payload};
use super::names;
use amime_config::hcm::ServerHeader;
use amime_config::route_action::Action;
use amime_rules::format::FormatInput;
use amime_rules::headers::HeaderEdits;
use amime_rules::local_reply::Reply;

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
pub(super) fn from_upstream(
    exchange: &Rc<Exchange>,
    parts: &mut Parts,
    edits: &[&HeaderEdits],
    payload: Payload<'_>,
) {
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
    edit(exchange, &mut parts.headers, parts.status.as_u16(), edits);
    filters::on_response(exchange, &mut parts.headers, &mut parts.status, payload);
    exchange.log.borrow_mut().status = parts.status.as_u16();
    finish(exchange, &mut parts.headers);
}

/// Applies a route's edits; `status` is zero as long as there is none.
pub(super) fn edit(
    exchange: &Exchange,
    headers: &mut HeaderMap,
    status: u16,
    edits: &[&HeaderEdits],
) {
    if edits.iter().all(|edits| edits.is_empty()) {
        return;
    }
    with_input(exchange, status, |input| {
        edits.iter().for_each(|edits| edits.apply(headers, input));
    });
}

/// Calls `act` with what operators in a response's values refer to.
pub(super) fn with_input<T>(
    exchange: &Exchange,
    status: u16,
    act: impl FnOnce(&FormatInput<'_>) -> T,
) -> T {
    let head = exchange.head.borrow();
    let log = exchange.log.borrow();
    let downstream = &exchange.connection.downstream;
    let metadata = exchange.metadata.borrow();
    act(&FormatInput {
        request: Some(&head),
        editing_response: true,
        response_code: status,
        downstream_remote: Some(downstream.remote),
        downstream_local: Some(downstream.local),
        upstream_host: log.host.as_ref().map(|host| host.endpoint.address),
        sni: downstream.sni.as_deref(),
        protocol: protocol(head.version),
        tls: downstream.tls.as_ref(),
        route_name: log.route.as_ref().map_or("", |route| &route.name),
        cluster: log.cluster.as_ref().map_or("", |cluster| &cluster.config().name),
        details: &log.details,
        flags: log.flags,
        local_reply: "",
        metadata: metadata.as_deref(),
    })
}

/// What every response gets, the proxy's own included.
fn finish(exchange: &Exchange, headers: &mut HeaderMap) {
    let connection = &exchange.connection;
    let config = &connection.config;
    match config.server_header {
        ServerHeader::PassThrough => {}
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
    let leaves = connection.leaves_for_load();
    let shared = exchange.head.borrow().version >= http::Version::HTTP_2;
    if !shared && (leaves || connection.closing()) {
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
    log.response_bytes = header_bytes(headers);
}

/// About what a header section takes on the wire. Summed for each message:
/// statistics of every connection manager and cluster show it, and a dozen
/// lengths cost less than to know who wants them.
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
    let exchange = guard.exchange();
    let mut answer = Own::new(error.reply());
    match error {
        ProxyError::NormalizedRedirect(location) => {
            if let Ok(value) = HeaderValue::from_str(location) {
                answer.headers.insert(header::LOCATION, value);
            }
        }
        ProxyError::Filter(filter) => answer.headers.clone_from(&filter.headers),
        ProxyError::ResponseTimeout | ProxyError::PerTryTimeout
            if exchange.head.borrow().headers.contains_key(names::ALT_RESPONSE) =>
        {
            answer.status = StatusCode::NO_CONTENT;
            answer.body = bytes::Bytes::new();
        }
        ProxyError::Overflow if !exchange.connection.config.suppress_envoy_headers => {
            answer.headers.insert(names::OVERLOADED, HeaderValue::from_static("true"));
        }
        _ => {}
    }
    let closes = {
        let head = exchange.head.borrow();
        // What a client sends after CONNECT may not be HTTP.
        let forgiven = exchange.connection.config.forgiving && error.by_headers();
        let closes = error.closes() && !forgiven || head.method == http::Method::CONNECT;
        closes && head.version < http::Version::HTTP_2
    };
    if closes {
        answer.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if error.took_time() {
        exchange.drop_request();
    }
    tell(exchange, &answer);
    let route = exchange.log.borrow().route.clone();
    if let Some(route) = &route
        && matches!(route.action, Action::Forward(_))
    {
        let attempts = exchange.log.borrow().attempts;
        if attempts > 0 && route.attempt_count.in_response {
            answer.headers.insert(names::ATTEMPT_COUNT, HeaderValue::from(attempts));
        }
        edit(exchange, &mut answer.headers, 0, &[&route.response_edits]);
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
    /// The status for a gRPC client, if it does not follow from the HTTP one.
    pub(super) grpc: Option<u32>,
}

impl Own {
    pub(super) fn new(reply: LocalReply) -> Self {
        let LocalReply { status, flags, details, body, grpc } = reply;
        let body = match body {
            Cow::Borrowed(text) => bytes::Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => bytes::Bytes::from(text),
        };
        Self { status, headers: HeaderMap::with_capacity(8), body, flags, details, grpc }
    }

    /// Gives the answer its final form; a gRPC client gets its status in
    /// headers and no body.
    fn complete(&mut self, grpc: bool) {
        let headers = &mut self.headers;
        if grpc {
            let code = self.grpc.unwrap_or_else(|| grpc_status(self.status));
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(names::GRPC_STATUS, HeaderValue::from(code));
            let text = String::from_utf8_lossy(&self.body);
            if !text.is_empty()
                && let Ok(message) = HeaderValue::from_str(&percent_encode(text.trim_end()))
            {
                headers.insert(names::GRPC_MESSAGE, message);
            }
            self.body = bytes::Bytes::new();
            self.status = StatusCode::OK;
        } else if !self.body.is_empty() && !headers.contains_key(header::CONTENT_TYPE) {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        // Of nothing, the codec knows whether it is to be said.
        if !self.body.is_empty() {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        }
    }
}

/// Notes why there is this answer, for edits that say so.
pub(super) fn tell(exchange: &Exchange, answer: &Own) {
    let mut log = exchange.log.borrow_mut();
    log.flags.insert(answer.flags);
    log.details.clone_from(&answer.details);
}

pub(super) fn own(mut guard: ExchangeGuard, mut own: Own) -> Response<ResponseBody> {
    let exchange = guard.exchange().clone();
    {
        let mut log = exchange.log.borrow_mut();
        log.flags.insert(own.flags);
        answered(&mut log, own.status, own.details.clone());
    }
    if let Some(replies) = &exchange.connection.config.local_replies {
        with_input(&exchange, own.status.as_u16(), |input| {
            let flags = exchange.log.borrow().flags;
            let request = &exchange.head.borrow();
            let Own { status, headers, body, .. } = &mut own;
            replies.apply(Reply { request, status, headers, body, flags }, input);
        });
    }
    let grpc = exchange.log.borrow().grpc;
    let mut sent = own.status;
    own.complete(grpc);
    exchange.log.borrow_mut().status = own.status.as_u16();
    let Own { status, mut headers, mut body, .. } = own;
    let payload = match body.is_empty() || exchange.bodiless() {
        true => Payload::Nothing,
        false => Payload::Whole(&mut body),
    };
    filters::on_response(&exchange, &mut headers, &mut sent, payload);
    finish(&exchange, &mut headers);
    let bodiless = body.is_empty() || exchange.bodiless();
    let body = if bodiless {
        guard.finish(End::Complete);
        ResponseBody::bytes(bytes::Bytes::new(), None)
    } else {
        ResponseBody::bytes(body, Some(guard))
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
