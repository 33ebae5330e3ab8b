//! Forwarding a request: cluster, edits, attempts, retries.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use amime_telemetry::ResponseFlags;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::attempt::{self, Attempt, Failure};
use super::body::{BodyLimits, Replay, ReplayBody, RequestBody, ResponseBody};
use super::error::ProxyError;
use super::exchange::{Exchange, ExchangeGuard, answered, protocol};
use super::request::Admitted;
use super::retry::{Decision, RetryState};
use super::{hash, mirror, names, path, response, upgrade};
use crate::upstream::{ClusterRuntime, Host, Resource};
use amime_config::format::FormatInput;
use amime_config::head::RequestHead;
use amime_config::headers::HeaderEdits;
use amime_config::route::RouteRef;
use amime_config::route_action::{
    ClusterChoice, Forward, HostRewrite, WeightedCluster, millis_value,
};

/// What is to be forwarded and how.
pub(super) struct Plan<'a> {
    pub(super) exchange: &'a Rc<Exchange>,
    pub(super) route: &'a RouteRef,
    pub(super) action: &'a Forward,
    pub(super) admitted: &'a Admitted,
    pub(super) cors: Option<HeaderMap>,
}

/// An upstream's response on its way down.
pub(super) struct Forwarded {
    parts: http::response::Parts,
    body: ForwardedBody,
}

enum ForwardedBody {
    Stream(Box<(Incoming, Attempt, BodyLimits)>),
    Tunnel(Box<upgrade::Tunnel>),
}

impl Forwarded {
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
            ForwardedBody::Tunnel(tunnel) => {
                tunnel.run(guard);
                ResponseBody::bytes(bytes::Bytes::new(), None)
            }
        };
        Response::from_parts(self.parts, body)
    }
}

/// Forwards the request and returns the response that the client is to get.
pub(super) async fn forward(
    plan: Plan<'_>,
    body: Incoming,
    on_upgrade: Option<OnUpgrade>,
) -> Result<Forwarded, ProxyError> {
    let exchange = plan.exchange;
    let (cluster, weighted) = choose_cluster(&plan)?;
    exchange.log.borrow_mut().cluster = Some(cluster.clone());
    let upgrade = wanted_upgrade(&plan)?;
    let timeouts = Timeouts::of(&plan);
    prepare(&plan, weighted, &timeouts);
    let body = PreparedBody::of(&plan, body);
    let hash = hash::of(&plan.action.hash, exchange, plan.admitted.remote);
    mirror::send_all(&plan, &body);
    let attempts = Attempts { plan: &plan, cluster: &cluster, timeouts, hash: hash.value };
    let (mut parts, incoming, attempt) = attempts.run(&body).await?;
    {
        let mut log = exchange.log.borrow_mut();
        answered(&mut log, parts.status, Cow::Borrowed("via_upstream"));
        log.upstream_peer = upstream_peer(exchange, &mut parts.headers);
    }
    let own = weighted.map(|entry| &entry.response_edits);
    let edits: Vec<&HeaderEdits> = own.into_iter().chain([&plan.route.response_edits]).collect();
    response::from_upstream(exchange, &mut parts, &edits);
    if let Some(cookie) = hash.cookie {
        parts.headers.append(header::SET_COOKIE, cookie);
    }
    if let Some(cors) = &plan.cors {
        parts.headers.extend(cors.clone());
    }
    let body = match (upgrade && parts.status == http::StatusCode::SWITCHING_PROTOCOLS, on_upgrade)
    {
        (true, Some(on_upgrade)) => {
            let upstream = hyper::upgrade::on(Response::from_parts(parts.clone(), incoming));
            ForwardedBody::Tunnel(Box::new(upgrade::Tunnel::new(on_upgrade, upstream, attempt)))
        }
        _ => ForwardedBody::Stream(Box::new((incoming, attempt, attempts.timeouts.body()))),
    };
    Ok(Forwarded { parts, body })
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

fn choose_cluster<'a>(
    plan: &Plan<'a>,
) -> Result<(Rc<ClusterRuntime>, Option<&'a WeightedCluster>), ProxyError> {
    let snapshot = plan.exchange.connection.worker.snapshot();
    let (cluster, weighted) = match &plan.action.cluster {
        ClusterChoice::One(id) => (snapshot.cluster(*id), None),
        ClusterChoice::Weighted { entries, total } => {
            let mut left = fastrand::u64(0..*total);
            let chosen = entries.iter().find(|entry| {
                let found = left < entry.weight;
                left = left.saturating_sub(entry.weight);
                found
            });
            let chosen = chosen.unwrap_or(&entries[0]);
            (snapshot.cluster(chosen.cluster), Some(chosen))
        }
        ClusterChoice::Header(name) => {
            let head = plan.exchange.head.borrow();
            let name = head.headers.get(name).and_then(|value| value.to_str().ok());
            (name.and_then(|name| snapshot.cluster_by_name(name)), None)
        }
    };
    match cluster {
        Some(cluster) => Ok((cluster, weighted)),
        None => {
            plan.exchange.connection.stats.no_cluster.inc();
            Err(ProxyError::ClusterNotFound(plan.action.cluster_not_found))
        }
    }
}

/// True if the request asks for an upgrade that its route allows.
fn wanted_upgrade(plan: &Plan<'_>) -> Result<bool, ProxyError> {
    if !plan.admitted.upgrade {
        return Ok(false);
    }
    let head = plan.exchange.head.borrow();
    let kind = head.headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    let kind = kind.unwrap_or_default().to_ascii_lowercase();
    let by_route = plan.action.upgrades.iter().find(|(name, _)| *name == kind);
    let allowed = match by_route {
        Some((_, enabled)) => *enabled,
        None => plan.exchange.connection.config.upgrades.contains(&kind),
    };
    if allowed { Ok(true) } else { Err(ProxyError::UpgradeRefused) }
}

/// Limits of one request, `None` for none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// From the request's end to the response's end.
    pub(super) route: Option<Duration>,
    pub(super) per_try: Option<Duration>,
    pub(super) idle: Option<Duration>,
    /// Until the request has been read.
    pub(super) request: Option<Duration>,
    pub(super) stream_deadline: Option<Instant>,
    overridden: bool,
}

impl Timeouts {
    /// Route settings under the headers by which trusted clients change them.
    fn of(plan: &Plan<'_>) -> Self {
        let action = plan.action;
        let config = &plan.exchange.connection.config;
        let head = plan.exchange.head.borrow();
        let header = |name| {
            let millis: u64 = head.headers.get(name)?.to_str().ok()?.parse().ok()?;
            Some(Duration::from_millis(millis))
        };
        let mut route = action.timeout;
        let mut overridden = false;
        if let Some(grpc) = action.grpc_timeout_max
            && let Some(asked) = grpc_timeout(&head)
        {
            let capped = if grpc.is_zero() { asked } else { asked.min(grpc) };
            route = Some(capped).filter(|timeout| !timeout.is_zero());
            overridden = true;
        }
        if let Some(timeout) = header(names::RQ_TIMEOUT) {
            route = Some(timeout).filter(|timeout| !timeout.is_zero());
            overridden = true;
        }
        let per_try = action.retry.as_ref().and_then(|retry| retry.per_try_timeout);
        let idle = action.idle_timeout.or(config.timeouts.stream_idle);
        let life = action.max_stream_duration.or(config.timeouts.max_stream);
        Self {
            route,
            per_try: header(names::RQ_PER_TRY_TIMEOUT).or(per_try),
            idle: idle.filter(|idle| !idle.is_zero()),
            request: config.timeouts.request,
            stream_deadline: life
                .filter(|life| !life.is_zero())
                .map(|life| Instant::from_std(plan.exchange.begun + life)),
            overridden,
        }
    }

    fn body(&self) -> BodyLimits {
        BodyLimits { timeout: self.route, deadline: self.stream_deadline, idle: self.idle }
    }

    /// The value of `x-envoy-expected-rq-timeout-ms`.
    fn expected(&self, action: &Forward) -> Option<HeaderValue> {
        match (self.per_try, self.route) {
            (Some(per_try), Some(route)) if per_try < route => Some(millis_value(per_try)),
            (Some(per_try), None) => Some(millis_value(per_try)),
            (_, Some(route)) if self.overridden => Some(millis_value(route)),
            (_, Some(_)) => action.timeout_header.clone(),
            (None, None) => None,
        }
    }
}

/// Reads `grpc-timeout`, such as `250m`.
fn grpc_timeout(head: &RequestHead) -> Option<Duration> {
    let text = head.headers.get(names::GRPC_TIMEOUT)?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u32 = number.parse().ok().filter(|_| number.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(3600) * number,
        "M" => Duration::from_secs(60) * number,
        "S" => Duration::from_secs(1) * number,
        "m" => Duration::from_millis(u64::from(number)),
        "u" => Duration::from_micros(u64::from(number)),
        "n" => Duration::from_nanos(u64::from(number)),
        _ => return None,
    })
}

/// Edits the request for the upstream, in the order of Envoy's router.
fn prepare(plan: &Plan<'_>, weighted: Option<&WeightedCluster>, timeouts: &Timeouts) {
    let exchange = plan.exchange;
    let mut head = exchange.head.borrow_mut();
    let head = &mut *head;
    let config = &exchange.connection.config;
    let own = weighted.map(|entry| &entry.request_edits).filter(|edits| !edits.is_empty());
    for edits in own.into_iter().chain([&plan.route.request_edits]) {
        apply_edits(exchange, plan.route, edits, head);
    }
    rewrite_host(plan, weighted, head);
    let before = head.path.clone();
    if path::rewrite(&plan.action.path_rewrite, &plan.route.matcher.path, head)
        && !config.suppress_envoy_headers
        && let Ok(value) = HeaderValue::from_str(before.as_str())
    {
        head.headers.insert(names::ORIGINAL_PATH, value);
    }
    if !config.suppress_envoy_headers {
        if plan.admitted.internal {
            for name in [names::RQ_TIMEOUT, names::RQ_PER_TRY_TIMEOUT] {
                head.headers.remove(name);
            }
        }
        if let Some(value) = timeouts.expected(plan.action) {
            head.headers.insert(names::EXPECTED_TIMEOUT, value);
        }
    }
    if config.peer_exchange.to_upstream
        && let Some((metadata, id)) = &exchange.connection.worker.own_metadata
    {
        head.headers.insert(names::PEER_METADATA, metadata.clone());
        head.headers.insert(names::PEER_METADATA_ID, id.clone());
    }
    join_cookies(head);
    if config.telemetry.istio_stats.is_some() {
        exchange.log.borrow_mut().request_bytes = response::header_bytes(&head.headers);
    }
}

fn apply_edits(exchange: &Exchange, route: &RouteRef, edits: &HeaderEdits, head: &mut RequestHead) {
    if edits.is_empty() {
        return;
    }
    let downstream = &exchange.connection.downstream;
    let mut headers = std::mem::take(&mut head.headers);
    let log = exchange.log.borrow();
    let input = FormatInput {
        request: Some(head),
        downstream_remote: Some(downstream.remote),
        downstream_local: Some(downstream.local),
        sni: downstream.sni.as_deref(),
        protocol: protocol(head.version),
        peer_uri_san: downstream.tls.as_ref().and_then(|tls| tls.peer_uri_san.as_deref()),
        route_name: &route.name,
        cluster: log.cluster.as_ref().map_or("", |cluster| &cluster.config().name),
        ..FormatInput::default()
    };
    edits.apply(&mut headers, &input);
    head.headers = headers;
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
    if !plan.exchange.connection.config.suppress_envoy_headers
        && let Some(old) = &old
    {
        head.headers.insert(names::ORIGINAL_HOST, old.clone());
    }
    if plan.action.append_forwarded_host
        && let Some(old) = old
    {
        head.headers.append(names::X_FORWARDED_HOST, old);
    }
}

/// HTTP/2 may split cookies; HTTP/1 servers expect one header.
fn join_cookies(head: &mut RequestHead) {
    if head.version != http::Version::HTTP_2 {
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

/// The request's body in the form that its attempts need.
pub(super) enum PreparedBody {
    Empty,
    /// Goes to the one attempt.
    Once(RefCell<Option<Incoming>>),
    Repeatable(Rc<RefCell<Replay>>),
}

impl PreparedBody {
    fn of(plan: &Plan<'_>, body: Incoming) -> Self {
        if body.is_end_stream() {
            plan.exchange.request_is_bodiless();
            return Self::Empty;
        }
        if plan.action.retry.is_none() && plan.action.mirrors.is_empty() {
            return Self::Once(RefCell::new(Some(body)));
        }
        Self::Repeatable(Replay::new(body, plan.exchange.clone(), plan.route.buffer_limit))
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

    fn repeatable(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(body) => body.borrow().is_some(),
            Self::Repeatable(replay) => replay.borrow().repeatable(),
        }
    }
}

struct Attempts<'a> {
    plan: &'a Plan<'a>,
    cluster: &'a Rc<ClusterRuntime>,
    timeouts: Timeouts,
    hash: Option<u64>,
}

type Answer = (http::response::Parts, Incoming, Attempt);

impl Attempts<'_> {
    /// Makes attempts until one is good or no more may be made.
    async fn run(&self, body: &PreparedBody) -> Result<Answer, ProxyError> {
        let limit = route_timeout(self.plan.exchange, self.timeouts);
        match limit {
            None => self.all(body).await,
            Some(limit) => {
                let mut limit = std::pin::pin!(limit);
                tokio::select! {
                    biased;
                    answer = self.all(body) => answer,
                    error = limit.as_mut() => {
                        self.cluster.stats.upstream_rq_timeout.inc();
                        if let Some(host) = &self.plan.exchange.log.borrow().host {
                            host.counters().rq_timeout.inc();
                        }
                        Err(error)
                    }
                }
            }
        }
    }

    async fn all(&self, body: &PreparedBody) -> Result<Answer, ProxyError> {
        let exchange = self.plan.exchange;
        let mut retry = RetryState::new(self.plan, self.cluster);
        let mut tried: Vec<Rc<Host>> = Vec::new();
        loop {
            exchange.log.borrow_mut().attempts += 1;
            let result = self.one(body, &tried).await;
            if let Some(host) = exchange.log.borrow().host.as_ref()
                && retry.active()
            {
                tried.push(host.clone());
            }
            let decision =
                if body.repeatable() { retry.decide(&result) } else { Decision::Deliver };
            match decision {
                Decision::Deliver => {
                    return result.map_err(|failure| failure.into_error(retry.used() > 0));
                }
                Decision::Exhausted => {
                    exchange.log.borrow_mut().flags.insert(ResponseFlags::URX);
                    return result.map_err(|failure| failure.into_error(retry.used() > 0));
                }
                Decision::Retry(back_off) => {
                    if let Ok((_, incoming, attempt)) = result {
                        attempt.discard(incoming);
                    }
                    tokio::time::sleep(back_off).await;
                }
            }
        }
    }

    async fn one(&self, body: &PreparedBody, tried: &[Rc<Host>]) -> Result<Answer, Failure> {
        let host = self.choose_host(tried)?;
        let exchange = self.plan.exchange;
        exchange.log.borrow_mut().host = Some(host.clone());
        if !self.cluster.take(self.priority(), Resource::Requests) {
            return Err(Failure::Overflow);
        }
        let attempt = attempt::Request {
            exchange,
            cluster: self.cluster,
            host: &host,
            priority: self.priority(),
            attempt_count: self.plan.route.attempt_count.in_request,
            endpoint_host: matches!(self.plan.action.host_rewrite, HostRewrite::Endpoint),
        };
        match self.timeouts.per_try {
            None => attempt.send(body).await,
            Some(limit) => match tokio::time::timeout(limit, attempt.send(body)).await {
                Ok(answer) => answer,
                Err(_) => {
                    self.cluster.stats.upstream_rq_per_try_timeout.inc();
                    Err(Failure::PerTryTimeout)
                }
            },
        }
    }

    fn priority(&self) -> usize {
        usize::from(self.plan.action.high_priority)
    }

    fn choose_host(&self, tried: &[Rc<Host>]) -> Result<Rc<Host>, Failure> {
        let retry = self.plan.action.retry.as_deref();
        let avoid = retry.is_some_and(|retry| retry.avoid_previous_hosts);
        let chosen = hash::host(
            self.plan,
            self.cluster,
            crate::upstream::LbInput {
                hash: self.hash,
                tried: if avoid { tried } else { &[] },
                reselect: retry.map_or(0, |retry| retry.reselect_limit),
            },
        );
        chosen.ok_or_else(|| {
            self.cluster.stats.upstream_cx_none_healthy.inc();
            Failure::NoHealthyUpstream
        })
    }
}

/// Waits for the request's end; false if that took too long.
async fn read_in_time(exchange: &Exchange, limit: Option<Duration>) -> bool {
    let read = exchange.complete.notified();
    match limit {
        None => {
            read.await;
            true
        }
        Some(limit) => tokio::time::timeout(limit, read).await.is_ok(),
    }
}

/// Resolves when the route's timeout or the stream's life is over; `None` if
/// neither is limited.
fn route_timeout(
    exchange: &Rc<Exchange>,
    timeouts: Timeouts,
) -> Option<impl Future<Output = ProxyError> + use<>> {
    let Timeouts { route, idle, request, stream_deadline, .. } = timeouts;
    if route.or(idle).or(request).is_none() && stream_deadline.is_none() {
        return None;
    }
    let exchange = exchange.clone();
    Some(async move {
        let deadline = timeouts.stream_deadline;
        let by_life = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
            ProxyError::StreamDuration
        };
        let by_route = async {
            // The clock of the route starts when the request has been read.
            if exchange.completed_at().is_none() && !read_in_time(&exchange, timeouts.request).await
            {
                return ProxyError::RequestTimeout;
            }
            match (timeouts.route, timeouts.idle) {
                (Some(route), idle) if idle.is_none_or(|idle| route <= idle) => {
                    tokio::time::sleep(route).await;
                    ProxyError::ResponseTimeout
                }
                (_, Some(idle)) => {
                    tokio::time::sleep(idle).await;
                    ProxyError::StreamIdle
                }
                _ => std::future::pending().await,
            }
        };
        if deadline.is_none() {
            return by_route.await;
        }
        tokio::select! {
            error = by_life => error,
            error = by_route => error,
        }
    })
}
