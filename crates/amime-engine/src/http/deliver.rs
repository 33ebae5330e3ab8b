//! An upstream's response on its way to the client: its head, and what follows.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use smallvec::SmallVec;

use super::attempt::Attempt;
use super::attempts::{Answer, Attempts};
use super::body::{BodyLimits, ResponseBody, UpstreamBody};
use super::error::ProxyError;
use super::exchange::{Exchange, ExchangeGuard, answered};
use super::filters::{self, Payload};
use super::pipe::Pipe;
use super::stage::Stage;
use super::{names, response, upgrade};
use amime_rules::headers::HeaderEdits;

/// An upstream's response on its way down.
pub(super) struct Forwarded {
    pub(super) parts: http::response::Parts,
    body: ForwardedBody,
}

enum ForwardedBody {
    Stream(Box<(UpstreamBody, Attempt, BodyLimits, Vec<Box<dyn Stage>>)>),
    /// A body that was waited for.
    Whole(Bytes),
    Tunnel(Box<upgrade::Tunnel>, Option<Pipe>),
    /// The upstream answered a request to leave HTTP with a message: its body
    /// is not what the client waits for.
    Refused,
}

impl Forwarded {
    pub(super) fn tunnel(
        parts: http::response::Parts,
        tunnel: upgrade::Tunnel,
        pipe: Option<Pipe>,
    ) -> Self {
        Self { parts, body: ForwardedBody::Tunnel(Box::new(tunnel), pipe) }
    }

    pub(super) fn into_response(self, mut guard: ExchangeGuard) -> Response<ResponseBody> {
        let body = match self.body {
            ForwardedBody::Stream(stream) => {
                let (incoming, attempt, limits, stages) = *stream;
                if guard.exchange().bodiless() && incoming.is_end_stream() {
                    attempt.release();
                    guard.finish(super::exchange::End::Complete);
                    ResponseBody::bytes(bytes::Bytes::new(), None)
                } else {
                    ResponseBody::upstream(incoming, attempt, (limits, stages), guard)
                }
            }
            ForwardedBody::Whole(body) if body.is_empty() => {
                guard.finish(super::exchange::End::Complete);
                ResponseBody::bytes(body, None)
            }
            ForwardedBody::Whole(body) => ResponseBody::bytes(body, Some(guard)),
            ForwardedBody::Refused => {
                guard.finish(super::exchange::End::Complete);
                ResponseBody::bytes(bytes::Bytes::new(), None)
            }
            ForwardedBody::Tunnel(tunnel, pipe) => {
                tunnel.run(guard);
                match pipe {
                    Some(pipe) => ResponseBody::pipe(pipe),
                    None => ResponseBody::bytes(bytes::Bytes::new(), None),
                }
            }
        };
        Response::from_parts(self.parts, body)
    }
}

/// Gives a response the form in which the client gets it.
pub(super) async fn deliver(
    attempts: &Attempts<'_>,
    (mut parts, incoming, attempt): Answer,
    (edits, cookies): (&[&HeaderEdits], SmallVec<[HeaderValue; 1]>),
    on_upgrade: Option<upgrade::OnUpgrade>,
) -> Result<Forwarded, ProxyError> {
    let plan = attempts.plan;
    let exchange = plan.exchange;
    let upgraded = plan.upgrade.is_some() && upgrade::accepted(exchange, &mut parts);
    let refused = plan.upgrade.is_some() && !upgraded && parts.status.is_success();
    if refused {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    {
        let mut log = exchange.log.borrow_mut();
        let details = if refused { "websocket_handshake_unsuccessful" } else { "via_upstream" };
        answered(&mut log, parts.status, Cow::Borrowed(details));
        log.upstream_peer = upstream_peer(exchange, &mut parts.headers);
    }
    let ended = upgraded || refused || incoming.is_end_stream() || exchange.bodiless();
    if !ended && let Some(wait) = filters::wait(exchange, &parts.headers, parts.status) {
        let mut whole = attempts.whole((incoming, attempt), wait).await?;
        let payload = match whole.is_empty() {
            true => Payload::Nothing,
            false => Payload::Whole(&mut whole),
        };
        response::from_upstream(exchange, &mut parts, edits, payload);
        tell_cookies(&mut parts.headers, cookies);
        return Ok(Forwarded { parts, body: ForwardedBody::Whole(whole) });
    }
    let mut stages = Vec::new();
    let payload = if ended { Payload::Nothing } else { Payload::Stream(&mut stages) };
    response::from_upstream(exchange, &mut parts, edits, payload);
    tell_cookies(&mut parts.headers, cookies);
    let body = match on_upgrade.filter(|_| upgraded) {
        Some(on_upgrade) => {
            let agreed = Response::from_parts(parts.clone(), incoming);
            upgrade::for_client(exchange, &mut parts);
            let tunnel = upgrade::Tunnel {
                downstream: upgrade::Downstream::Upgrade(on_upgrade),
                upstream: upgrade::Upstream::Upgrade(Box::new((agreed, attempt))),
                idle: attempts.timeouts.idle,
            };
            ForwardedBody::Tunnel(Box::new(tunnel), None)
        }
        None if refused => ForwardedBody::Refused,
        None => {
            let limits = attempts.timeouts.body();
            ForwardedBody::Stream(Box::new((incoming, attempt, limits, stages)))
        }
    };
    Ok(Forwarded { parts, body })
}

/// Tells the client the cookies by which it will be sent to the same endpoint.
fn tell_cookies(headers: &mut HeaderMap, cookies: SmallVec<[HeaderValue; 1]>) {
    for cookie in cookies {
        headers.append(header::SET_COOKIE, cookie);
    }
}

/// The peer's metadata, which is not for the client.
fn upstream_peer(
    exchange: &Exchange,
    headers: &mut HeaderMap,
) -> Option<std::sync::Arc<amime_telemetry::PeerMetadata>> {
    if !exchange.connection.config.peer_exchange.from_upstream {
        return None;
    }
    headers.remove(names::PEER_METADATA_ID);
    let peer = headers.remove(names::PEER_METADATA)?;
    exchange.connection.worker.telemetry.peer(peer.as_bytes())
}
