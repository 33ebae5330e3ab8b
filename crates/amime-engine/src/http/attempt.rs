//! One attempt to send a request to one endpoint.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use amime_http1::ParseError;
use http::uri::Uri;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};

use super::body::{RequestBody, UpstreamBody};
use super::error::{ProxyError, ResetReason};
use super::exchange::Exchange;
use super::forward::PreparedBody;
use super::names;
use super::pipe::Duplex;
use crate::upstream::connect::ConnectError;
use crate::upstream::h2::{breaks_protocol, cause};
use crate::upstream::pool::{
    Acquire, ConnKey, Held, Lease, Owner, SendError, Sender, UpstreamError, acquire,
};
use crate::upstream::{ClusterRuntime, Host, Outcome, Resource};
use amime_config::cluster::UpstreamProtocol;
use amime_config::host_cache::HostFailure;
use amime_config::tls::Alpn;
use amime_rules::head::RequestHead;

/// An upstream has sent an informational head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun(pub(super) bool);

/// Why an attempt gave no response.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    NoHealthyUpstream,
    /// The host that the request names is not known.
    NoHost(HostFailure),
    /// The endpoint of a strict session is gone.
    SessionLost(StatusCode),
    Overflow,
    Connect(ConnectError),
    /// Perhaps after an informational head.
    Reset(ResetReason, Begun),
    /// Broke before the request's head was written.
    ResetBeforeRequest,
    PerTryTimeout,
    Protocol(String),
    /// The client's own body is broken.
    Downstream(ParseError),
    /// A filter answers what it found in the client's body.
    Refused(Box<ProxyError>),
}

impl Failure {
    /// What the client is told.
    pub(super) fn into_error(self, retried: bool) -> ProxyError {
        match self {
            Self::NoHealthyUpstream => ProxyError::NoHealthyUpstream(None),
            Self::NoHost(failure) => ProxyError::NoHost(failure),
            Self::SessionLost(status) => ProxyError::NoHealthyUpstream(Some(status)),
            Self::Overflow => ProxyError::Overflow,
            Self::Connect(error) => ProxyError::Connect { error, retried },
            Self::Reset(reason, Begun(begun)) => ProxyError::Reset { reason, retried, begun },
            Self::ResetBeforeRequest => ProxyError::Reset {
                reason: ResetReason::ConnectionTermination,
                retried,
                begun: false,
            },
            Self::PerTryTimeout => ProxyError::PerTryTimeout,
            Self::Protocol(reason) => ProxyError::UpstreamProtocol(reason.into()),
            Self::Downstream(error) => ProxyError::Malformed(error),
            Self::Refused(error) => *error,
        }
    }
}

/// What one attempt sends and where.
pub(super) struct Request<'a> {
    pub(super) exchange: &'a Rc<Exchange>,
    pub(super) cluster: &'a Rc<ClusterRuntime>,
    pub(super) host: &'a Rc<Host>,
    pub(super) priority: usize,
    pub(super) attempt_count: bool,
    pub(super) endpoint_host: bool,
    /// The request wants to leave HTTP.
    pub(super) upgrade: bool,
    /// The policy says what follows if a connection closes without an answer.
    pub(super) once: bool,
    /// Takes the place of the timeout that the upstream is told.
    pub(super) timeout_left: Option<HeaderValue>,
}

/// An attempt in flight: holds its connection and its place in the counters.
pub(crate) struct Attempt {
    lease: Lease,
    flight: InFlight,
}

/// Counts a request as active until dropped.
pub(super) struct InFlight {
    cluster: Rc<ClusterRuntime>,
    host: Rc<Host>,
    priority: usize,
}

impl InFlight {
    pub(super) fn new(cluster: &Rc<ClusterRuntime>, host: &Rc<Host>, priority: usize) -> Self {
        let (cluster, host) = (cluster.clone(), host.clone());
        cluster.stats.upstream_rq_total.inc();
        cluster.stats.upstream_rq_active.inc();
        host.active.set(host.active.get() + 1);
        host.counters().rq_total.inc();
        host.counters().rq_active.inc();
        Self { cluster, host, priority }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.cluster.stats.upstream_rq_active.dec();
        self.host.active.set(self.host.active.get().saturating_sub(1));
        self.host.counters().rq_active.dec();
        self.cluster.give(self.priority, Resource::Requests);
    }
}

impl Attempt {
    /// The bytes behind a response that ends HTTP, and what keeps the request
    /// counted meanwhile.
    pub(super) async fn into_tunnel(
        self,
        response: http::Response<UpstreamBody>,
    ) -> io::Result<(Box<dyn Duplex>, (Held, InFlight))> {
        let Self { lease, flight } = self;
        let (io, held) = lease.into_tunnel(response).await?;
        Ok((io, (held, flight)))
    }

    /// Gives the connection back; the response has ended.
    pub(super) fn release(self) {
        self.lease.release(&self.flight.cluster, &self.flight.host);
    }

    /// Drops a response that is not passed on, keeping the connection if the
    /// rest of it is short.
    pub(super) fn discard(self, mut incoming: UpstreamBody) {
        const SHORT: u64 = 64 * 1024;
        if incoming.is_end_stream() {
            return self.release();
        }
        if incoming.size_hint().upper().is_some_and(|rest| rest <= SHORT) {
            tokio::task::spawn_local(async move {
                if incoming.drain().await {
                    self.release();
                }
            });
        }
    }
}

impl Request<'_> {
    /// Connects, sends, and waits for the response's head.
    pub(super) async fn send(
        self,
        body: &PreparedBody,
    ) -> Result<(http::response::Parts, UpstreamBody, Attempt), Failure> {
        let flight = InFlight::new(self.cluster, self.host, self.priority);
        let result = self.send_counted(body, flight).await;
        match &result {
            Ok((parts, ..)) => self.count_response(parts),
            Err(failure) => self.count_failure(failure),
        }
        result
    }

    async fn send_counted(
        &self,
        body: &PreparedBody,
        flight: InFlight,
    ) -> Result<(http::response::Parts, UpstreamBody, Attempt), Failure> {
        let mut acquired = Acquire {
            cluster: self.cluster,
            host: self.host,
            priority: self.priority,
            mark: self.exchange.connection.worker.mark,
            fresh: false,
        };
        let key = self.key();
        let mut carried: Option<RequestBody> = None;
        let begun = Cell::new(false);
        let interim = |status: StatusCode, headers: &HeaderMap| {
            begun.set(true);
            self.pass_on(status, headers);
        };
        loop {
            let lease = match acquire(acquired, key.clone()).await {
                Ok(lease) => lease,
                Err(ConnectError::Overflow) => return Err(Failure::Overflow),
                Err(error) => return Err(Failure::Connect(error)),
            };
            self.exchange.log.borrow_mut().conn = Some(lease.conn.clone());
            self.cluster.observe(self.host, Outcome::Connected);
            let sent = carried.take().unwrap_or_else(|| body.attempt(self.exchange));
            let mut lease = lease;
            let request = self.build(&lease, sent);
            let error = match lease.sender.send_and_tell(request, &interim).await {
                Ok(response) => {
                    self.exchange.log.borrow_mut().response_after =
                        Some(self.exchange.begun.elapsed());
                    let (parts, incoming) = response.into_parts();
                    if has_forbidden_body(&parts) {
                        return Err(Failure::Protocol("body on 204".to_owned()));
                    }
                    return Ok((parts, incoming, Attempt { lease, flight }));
                }
                Err(error) => error,
            };
            match error {
                // An idle connection that closed in the same moment: the
                // request was not sent, another connection takes it.
                SendError::Unsent(unsent) if lease.reused => carried = Some(unsent.into_body()),
                SendError::Unsent(_) if lease.conn.misspoke.get() => {
                    return Err(Failure::Protocol(String::new()));
                }
                SendError::Unsent(_) => return Err(Failure::ResetBeforeRequest),
                // It may have been read, but not answered: the endpoint tired of
                // the connection as the request came. Asking again does no harm.
                SendError::Broken(error)
                    if lease.reused
                        && !acquired.fresh
                        && !begun.get()
                        && error.is_closed()
                        && self.is_safe(body) =>
                {
                    acquired.fresh = true;
                }
                SendError::Broken(error) => {
                    return Err(self.failure(&error, Begun(begun.get())));
                }
            }
        }
    }

    /// Passes a head on that comes before the response's.
    fn pass_on(&self, status: StatusCode, headers: &HeaderMap) {
        // Others are for the next hop alone.
        if self.exchange.connection.config.proxy_100_continue
            && let Some(channel) = self.exchange.codec.channel.upgrade()
            && matches!(status.as_u16(), 100 | 102..=104)
        {
            channel.interim(status, headers);
        }
    }

    /// True if the request may be sent again unasked: it does not matter how
    /// often the endpoint gets it, and no policy counts how often.
    fn is_safe(&self, body: &PreparedBody) -> bool {
        !self.upgrade
            && !self.once
            && matches!(body, PreparedBody::Empty)
            && self.exchange.head.borrow().method.is_safe()
    }

    /// Which connections of the endpoint will do.
    fn key(&self) -> ConnKey {
        let config = self.cluster.config();
        let transport = &self.host.endpoint.transport;
        // Without a handshake to agree in, the older protocol it is.
        let either = config.http.protocol == UpstreamProtocol::Auto && transport.tls().is_some();
        let http2 = match config.http.protocol {
            UpstreamProtocol::Http1 => false,
            UpstreamProtocol::Auto => either,
            UpstreamProtocol::Http2 => true,
            UpstreamProtocol::Downstream => self.exchange.head.borrow().version >= Version::HTTP_2,
        };
        let downstream = &self.exchange.connection.downstream;
        let client =
            (transport.proxy_header().is_some() && downstream.proxied).then(|| downstream.ends());
        let owner = config.pool_per_client.then(|| Owner::of(&self.exchange.connection));
        if transport.tls().is_none() {
            return ConnKey { client, owner, ..ConnKey::plain(http2) };
        }
        let alpn = match (self.exchange.connection.config.istio_alpn, http2) {
            (false, _) if either => Alpn::Either,
            (false, false) => Alpn::Http1,
            (false, true) => Alpn::Http2,
            (true, false) => Alpn::IstioHttp1,
            (true, true) => Alpn::IstioHttp2,
        };
        let sni = config.http.auto_sni.then(|| {
            let head = self.exchange.head.borrow();
            amime_config::route::without_port(head.authority()).into()
        });
        ConnKey { http2, alpn, sni, client, owner }
    }

    /// The request for the chosen connection. The head itself stays: a retry
    /// and the access log need it.
    fn build(&self, lease: &Lease, body: RequestBody) -> http::Request<RequestBody> {
        let head = self.exchange.head.borrow();
        let mut request = http::Request::new(body);
        *request.method_mut() = head.method.clone();
        let mut headers = head.headers.clone();
        if self.attempt_count {
            let count = self.exchange.log.borrow().attempts;
            headers.insert(names::ATTEMPT_COUNT, HeaderValue::from(count));
        }
        if let Some(left) = &self.timeout_left {
            headers.insert(names::EXPECTED_TIMEOUT, left.clone());
        }
        if self.endpoint_host
            && let Ok(name) = HeaderValue::from_str(&self.host.endpoint.hostname)
            && !name.is_empty()
        {
            headers.insert(header::HOST, name);
        }
        match &lease.sender {
            Sender::H1(_) if head.method == Method::CONNECT => {
                *request.uri_mut() = authority(&head);
            }
            Sender::H1(_) => *request.uri_mut() = head.origin_form(),
            Sender::H2 { .. } => {
                *request.version_mut() = Version::HTTP_2;
                if head.method == Method::CONNECT {
                    *request.uri_mut() = authority(&head);
                    headers.remove(header::HOST);
                } else {
                    if self.upgrade
                        && let Some(kind) = headers.get(header::UPGRADE)
                        && let Ok(kind) = kind.to_str()
                    {
                        *request.method_mut() = Method::CONNECT;
                        request.extensions_mut().insert(hyper::ext::Protocol::from(kind));
                    }
                    *request.uri_mut() = absolute(&head, &mut headers);
                }
            }
        }
        *request.headers_mut() = headers;
        if let Some(case) = &self.exchange.codec.case {
            request.extensions_mut().insert(case.clone());
        }
        request
    }

    fn count_response(&self, parts: &http::response::Parts) {
        let status = parts.status.as_u16();
        let counters = self.host.counters();
        if status < 500 {
            counters.rq_success.inc();
        } else {
            counters.rq_error.inc();
        }
        let grpc = self.exchange.log.borrow().grpc.then(|| parts.headers.get(names::GRPC_STATUS));
        let outcome = grpc.flatten().and_then(grpc_to_http).unwrap_or(status);
        let errors = self.cluster.config().http.errors.as_deref();
        let outcome = errors.map_or(outcome, |errors| errors.judged(parts, outcome));
        let checked = !self.cluster.config().checks.is_empty();
        if checked && parts.headers.contains_key(names::CHECK_FAIL) {
            self.host.endpoint.state.exclude();
            self.cluster.stats.health_check_passive_failure.inc();
            self.cluster.spec.state.health_changed();
        }
        self.cluster.take_report(self.host, &parts.headers);
        self.cluster.observe(self.host, Outcome::Status(outcome));
        let log = self.exchange.log.borrow();
        let millis = log.response_after.map_or(0, |after| after.as_millis());
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        self.cluster.stats.upstream_rq_time.record(millis);
        self.cluster.stats.by_origin.record_time(log.internal, millis);
    }

    fn count_failure(&self, failure: &Failure) {
        match failure {
            Failure::Connect(error) => {
                let reason = Some(error.to_string()).filter(|reason| !reason.is_empty());
                self.exchange.log.borrow_mut().transport_failure = reason;
            }
            Failure::Overflow
            | Failure::NoHealthyUpstream
            | Failure::NoHost(_)
            | Failure::SessionLost(_)
            | Failure::Downstream(_)
            | Failure::Refused(_) => return,
            _ => self.cluster.stats.upstream_rq_rx_reset.inc(),
        }
        self.host.counters().rq_error.inc();
        self.cluster.observe(self.host, Outcome::LocalOrigin);
    }

    fn failure(&self, error: &UpstreamError, begun: Begun) -> Failure {
        if let Some(error) = self.exchange.take_refusal() {
            return Failure::Refused(Box::new(error));
        }
        if let Some(error) = self.exchange.body_failed.get() {
            return Failure::Downstream(error);
        }
        match error {
            UpstreamError::H2(error) if error.is_parse() || error.is_parse_too_large() => {
                Failure::Protocol(error.to_string())
            }
            UpstreamError::H2(error) if breaks_protocol(error) => Failure::Protocol(String::new()),
            UpstreamError::H2(error) => Failure::Reset(h2_reset(error), begun),
            error if error.is_malformed() => Failure::Protocol(String::new()),
            UpstreamError::H1(_) => Failure::Reset(ResetReason::ConnectionTermination, begun),
        }
    }
}

fn h2_reset(error: &hyper::Error) -> ResetReason {
    let reason = cause(error)
        .filter(|error| error.is_reset() && error.is_remote())
        .and_then(h2::Error::reason);
    match reason {
        Some(h2::Reason::REFUSED_STREAM) => ResetReason::Refused,
        Some(_) => ResetReason::Remote,
        None => ResetReason::ConnectionTermination,
    }
}

/// What a gRPC status in a response's head is for passive health checks.
fn grpc_to_http(status: &HeaderValue) -> Option<u16> {
    Some(match status.to_str().ok()?.parse().ok()? {
        0_u32 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    })
}

/// A 204 has no body; bytes that follow one would be taken for the next
/// response on the connection.
fn has_forbidden_body(parts: &http::response::Parts) -> bool {
    parts.status == StatusCode::NO_CONTENT
        && (parts.headers.contains_key(header::TRANSFER_ENCODING)
            || parts.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0"))
}

/// The target of a request to connect.
fn authority(head: &RequestHead) -> Uri {
    let authority = head.headers.get(header::HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    let mut parts = http::uri::Parts::default();
    parts.authority = authority.try_into().ok();
    Uri::from_parts(parts).unwrap_or_default()
}

/// The absolute form that HTTP/2 wants; the authority leaves the headers.
pub(super) fn absolute(head: &RequestHead, headers: &mut HeaderMap) -> Uri {
    let authority = headers.remove(header::HOST);
    headers.remove(header::CONNECTION);
    headers.remove(header::UPGRADE);
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(match head.scheme {
        amime_rules::head::Scheme::Http => http::uri::Scheme::HTTP,
        amime_rules::head::Scheme::Https => http::uri::Scheme::HTTPS,
    });
    parts.authority = authority.and_then(|value| value.as_bytes().try_into().ok());
    parts.path_and_query = Some(head.path.clone());
    Uri::from_parts(parts).unwrap_or_else(|_| head.origin_form())
}
