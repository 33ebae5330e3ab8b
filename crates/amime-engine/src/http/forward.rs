//! Forwarding a request: cluster, edits, attempts, retries.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;

use http::{HeaderMap, HeaderName, Response, header};

use super::attempt::Attempt;
use super::attempts::Attempts;
use super::body::{
    BodyLimits, DownstreamBody, Replay, ReplayBody, RequestBody, ResponseBody, UpstreamBody,
};
use super::error::ProxyError;
use super::exchange::{Exchange, ExchangeGuard, answered};
use super::pipe::Pipe;
use super::prepare::prepare;
use super::request::Admitted;
use super::retry::RetrySettings;
use super::timeouts::Timeouts;
use super::upgrade::Upgrade;
use super::{connect, hash, mirror, names, redirect, response, upgrade};
use crate::upstream::{ClusterRuntime, LbInput};
use amime_config::headers::HeaderEdits;
use amime_config::route::RouteRef;
use amime_config::route_action::Forward;
use amime_config::route_cluster::{ClusterChoice, Destination, WeightedCluster};

/// What is to be forwarded and how.
pub(super) struct Plan<'a> {
    pub(super) exchange: &'a Rc<Exchange>,
    pub(super) route: &'a RouteRef,
    pub(super) action: &'a Forward,
    pub(super) admitted: &'a Admitted,
    /// The destination drawn, if the action has several.
    pub(super) weighted: Option<&'a WeightedCluster>,
    pub(super) upgrade: Option<Upgrade>,
}

/// An upstream's response on its way down.
pub(super) struct Forwarded {
    parts: http::response::Parts,
    body: ForwardedBody,
}

enum ForwardedBody {
    Stream(Box<(UpstreamBody, Attempt, BodyLimits)>),
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
                let (incoming, attempt, limits) = *stream;
                if guard.exchange().bodiless() && incoming.is_end_stream() {
                    attempt.release();
                    guard.finish(super::exchange::End::Complete);
                    ResponseBody::bytes(bytes::Bytes::new(), None)
                } else {
                    ResponseBody::upstream(incoming, attempt, limits, guard)
                }
            }
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

/// Forwards the request and returns the response that the client is to get;
/// none if the request has become another one.
pub(super) async fn forward(
    plan: Plan<'_>,
    body: DownstreamBody,
    on_upgrade: Option<upgrade::OnUpgrade>,
) -> Result<Option<Forwarded>, ProxyError> {
    let exchange = plan.exchange;
    let weighted = plan.weighted;
    let Some(cluster) = cluster_of(exchange, plan.action, weighted) else {
        exchange.connection.stats.no_cluster.inc();
        return Err(ProxyError::ClusterNotFound(plan.action.cluster_not_found));
    };
    exchange.log.borrow_mut().cluster = Some(cluster.clone());
    let timeouts = Timeouts::of(&plan);
    let retry = RetrySettings::of(&plan);
    prepare(&plan, &timeouts);
    let hash = hash::of(&plan, &cluster);
    let metadata = match weighted {
        Some(entry) => entry.metadata_match.as_ref(),
        None => plan.action.metadata_match.as_ref(),
    };
    let input = LbInput { hash: hash.value, metadata, retry: None };
    let attempts = Attempts { plan: &plan, cluster: &cluster, timeouts, retry, input };
    let own = weighted.map(|entry| &entry.response_edits);
    let edits: Vec<&HeaderEdits> = own.into_iter().chain([&plan.route.response_edits]).collect();
    if plan.upgrade == Some(Upgrade::Terminate) {
        let mut forwarded = connect::terminate(&plan, &attempts, body, on_upgrade).await?;
        let details = Cow::Borrowed("via_upstream");
        answered(&mut exchange.log.borrow_mut(), forwarded.parts.status, details);
        response::from_upstream(exchange, &mut forwarded.parts, &edits);
        return Ok(Some(forwarded));
    }
    let body = PreparedBody::of(&plan, body, attempts.retry.active());
    mirror::send_all(&plan, &body);
    let (mut parts, incoming, attempt) = attempts.run(&body).await?;
    if redirect::follow(&plan, &body, &parts) {
        attempt.discard(incoming);
        return Ok(None);
    }
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
    response::from_upstream(exchange, &mut parts, &edits);
    for cookie in hash.cookies {
        parts.headers.append(header::SET_COOKIE, cookie);
    }
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
        None => ForwardedBody::Stream(Box::new((incoming, attempt, attempts.timeouts.body()))),
    };
    Ok(Some(Forwarded { parts, body }))
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

/// The cluster that a route's action names, if there is one.
pub(super) fn cluster_of(
    exchange: &Exchange,
    action: &Forward,
    weighted: Option<&WeightedCluster>,
) -> Option<Rc<ClusterRuntime>> {
    match (&action.cluster, weighted) {
        (_, Some(entry)) => find(exchange, &entry.cluster),
        (ClusterChoice::One(id), None) => exchange.connection.worker.snapshot().cluster(*id),
        (ClusterChoice::Weighted { .. }, None) => None,
        (ClusterChoice::Header(name), None) => by_header(exchange, name),
    }
}

/// The cluster of one destination.
pub(super) fn find(exchange: &Exchange, destination: &Destination) -> Option<Rc<ClusterRuntime>> {
    match destination {
        Destination::Cluster(id) => exchange.connection.worker.snapshot().cluster(*id),
        Destination::Header(name) => by_header(exchange, name),
    }
}

fn by_header(exchange: &Exchange, name: &HeaderName) -> Option<Rc<ClusterRuntime>> {
    let head = exchange.head.borrow();
    let name = head.headers.get(name)?.to_str().ok()?;
    exchange.connection.worker.snapshot().cluster_by_name(name)
}

/// The request's body in the form that its attempts need.
pub(super) enum PreparedBody {
    Empty,
    /// Goes to the one attempt.
    Once(RefCell<Option<DownstreamBody>>),
    Repeatable(Rc<RefCell<Replay>>),
}

impl PreparedBody {
    fn of(plan: &Plan<'_>, body: DownstreamBody, retries: bool) -> Self {
        if plan.upgrade.is_some() {
            // It has not ended: what follows is the tunnel.
            return Self::Empty;
        }
        if body.is_end_stream() {
            plan.exchange.request_is_bodiless();
            return Self::Empty;
        }
        if !retries && plan.action.mirrors.is_empty() {
            return Self::Once(RefCell::new(Some(body)));
        }
        let limit = plan.route.buffer_limit.of(plan.exchange.connection.config.buffer_limit);
        Self::Repeatable(Replay::new(body, plan.exchange.clone(), limit))
    }

    pub(super) fn attempt(&self, exchange: &Rc<Exchange>) -> RequestBody {
        match self {
            Self::Empty => RequestBody::Empty,
            Self::Once(body) => match body.borrow_mut().take() {
                Some(incoming) => RequestBody::Stream(incoming, exchange.clone()),
                None => RequestBody::Empty,
            },
            Self::Repeatable(replay) => RequestBody::Replay(ReplayBody::new(replay)),
        }
    }

    pub(super) fn repeatable(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(body) => body.borrow().is_some(),
            Self::Repeatable(replay) => replay.borrow().repeatable(),
        }
    }
}
