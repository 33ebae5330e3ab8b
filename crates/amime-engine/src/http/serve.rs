//! HTTP on a downstream connection: its facts and limits, either codec, and
//! what every request passes first.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amime_telemetry::HttpStats;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;

use super::body::{DownstreamBody, ResponseBody};
use super::error::ProxyError;
use super::exchange::{Codec as ExchangeCodec, Exchange, ExchangeGuard, Log};
use super::frames::Flood;
use super::linger::Lingering;
use super::parsed::{self, Parsed};
use super::rate_limit::OwnBuckets;
use super::stall::StreamExecutor;
use super::upgrade::OnUpgrade;
use super::watch::{Fate, Patience, Watched};
use super::{h1, limits, request, response, router};
use crate::listener::{ChainLife, Connection, DownstreamIo};
use crate::worker::Worker;
use amime_config::hcm::{Codec, HttpConfig, RouteSource};
use amime_config::route::LocalTable;
use amime_rules::tls_facts::TlsFacts;
use amime_rules::values::jittered;

/// A downstream connection that speaks HTTP.
pub(crate) struct HttpConnection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) downstream: Connection,
    pub(crate) config: Arc<HttpConfig>,
    pub(crate) stats: Arc<HttpStats>,
    chain: Rc<ChainLife>,
    inline_routes: Option<Rc<LocalTable>>,
    requests: Cell<u32>,
    active: Cell<u32>,
    last_used: Cell<Instant>,
    /// Buckets that belong to this connection alone.
    pub(super) buckets: OwnBuckets,
    opened: Instant,
    /// How long it may live.
    max_life: Option<Duration>,
    /// When it ends, once its client of HTTP/1 is to leave.
    ends: Cell<Option<Instant>>,
    /// It ends for the load's sake.
    leaving: Cell<bool>,
    leave: Notify,
    /// What its requests have to know of it, if it is one of HTTP/2.
    pub(super) fate: Rc<Fate>,
    /// Requests that ended, and how many of them were given up at once.
    ended: Cell<(u32, u32)>,
}

/// Requests after which half may have been given up.
const GIVEN_UP: u32 = 500;

/// A request that lived longer was not given up at once: whole seconds count.
const AT_ONCE: Duration = Duration::from_secs(2);

impl HttpConnection {
    pub(crate) fn new(
        worker: Rc<Worker>,
        downstream: Connection,
        config: Arc<HttpConfig>,
        chain: Rc<ChainLife>,
    ) -> Rc<Self> {
        let inline_routes = match &config.routes {
            RouteSource::Inline(table) => Some(Rc::new(LocalTable(table.clone()))),
            RouteSource::Rds(_) => None,
        };
        let stats = worker.telemetry.http_manager(&config.stat_prefix);
        let now = Instant::now();
        let timeouts = &config.timeouts;
        let life = |limit| jittered(limit, timeouts.max_connection_jitter);
        let max_life = timeouts.max_connection.map(life);
        Rc::new(Self {
            worker,
            downstream,
            config,
            stats,
            chain,
            inline_routes,
            requests: Cell::new(0),
            active: Cell::new(0),
            last_used: Cell::new(now),
            buckets: OwnBuckets::default(),
            opened: now,
            max_life,
            ends: Cell::new(None),
            leaving: Cell::new(false),
            leave: Notify::new(),
            fate: Rc::default(),
            ended: Cell::default(),
        })
    }

    /// True if the client has shown a certificate, and a valid one.
    pub(crate) fn certificate(&self) -> bool {
        self.downstream.tls.as_ref().is_some_and(TlsFacts::mutual)
    }

    /// The route table for a request that begins now.
    pub(crate) fn routes(&self) -> Option<Rc<LocalTable>> {
        match (&self.inline_routes, &self.config.routes) {
            (Some(table), _) => Some(table.clone()),
            (None, RouteSource::Rds(id)) => self.worker.snapshot().routes(*id),
            (None, RouteSource::Inline(_)) => None,
        }
    }

    /// True if the client is to be told to come back on a new connection.
    pub(crate) fn closing(&self) -> bool {
        self.draining()
            || self.chain.retired()
            || self.ends.get().is_some()
            || self.config.max_requests_per_connection.is_some_and(|max| self.requests.get() >= max)
            || self.max_life.is_some_and(|max| self.opened.elapsed() >= max)
    }

    /// True if this answer is the last because the proxy has too much to do.
    pub(crate) fn leaves_for_load(&self) -> bool {
        if !self.worker.overload().close_connections.drawn() || self.leaving.get() {
            return self.leaving.get();
        }
        self.stats.downstream_cx_overload_disable_keepalive.inc();
        self.leaving.set(true);
        self.leave.notify_one();
        true
    }

    /// True if the proxy drains, and this connection with it.
    fn draining(&self) -> bool {
        self.config.drains && self.worker.draining()
    }

    /// What is left until it has idled or lived too long, which is counted
    /// when nothing is.
    fn left(&self, now: Instant) -> Option<Duration> {
        let idle_left = self.config.timeouts.idle.map(|limit| {
            let busy = self.active.get() > 0;
            let since = if busy { now } else { self.last_used.get() };
            (since + limit).saturating_duration_since(now)
        });
        if idle_left.is_some_and(|left| left.is_zero()) {
            self.stats.downstream_cx_idle_timeout.inc();
            return idle_left;
        }
        let life_left =
            self.max_life.map(|limit| (self.opened + limit).saturating_duration_since(now));
        if life_left.is_some_and(|left| left.is_zero()) {
            self.stats.downstream_cx_max_duration_reached.inc();
        }
        [idle_left, life_left].into_iter().flatten().min()
    }

    pub(super) fn begin(&self, version: Version) {
        self.requests.set(self.requests.get().saturating_add(1));
        self.active.set(self.active.get() + 1);
        self.stats.downstream_rq_total.inc();
        self.stats.downstream_rq_active.inc();
        match version {
            Version::HTTP_3 => self.stats.downstream_rq_http3_total.inc(),
            Version::HTTP_2 => self.stats.downstream_rq_http2_total.inc(),
            _ => self.stats.downstream_rq_http1_total.inc(),
        }
    }

    /// Counts the end of a request.
    pub(super) fn count_end(&self, log: &Log, now: Instant, total: Duration) {
        self.active.set(self.active.get().saturating_sub(1));
        self.last_used.set(now);
        let stats = &self.stats;
        stats.downstream_rq_active.dec();
        stats.downstream_rq_completed.inc();
        if log.status == 0 {
            stats.downstream_rq_rx_reset.inc();
        } else {
            stats.codes.record(log.status);
        }
        stats.downstream_rq_time.record(u64::try_from(total.as_millis()).unwrap_or(u64::MAX));
        self.count_given_up(log.status == 0 && total < AT_ONCE);
    }

    /// Ends a connection whose client asks only to give up: each request costs
    /// an upstream's work and its client next to nothing.
    fn count_given_up(&self, at_once: bool) {
        let (ended, given_up) = self.ended.get();
        let (ended, given_up) =
            (ended.saturating_add(1), given_up.saturating_add(u32::from(at_once)));
        self.ended.set((ended, given_up));
        // Also before there were so many, if not even good ones could help.
        let too_many = at_once && given_up.saturating_mul(2) >= ended.max(GIVEN_UP);
        if too_many && self.fate.flood().is_none() {
            self.stats.downstream_rq_too_many_premature_resets.inc();
            self.stats.downstream_cx_protocol_error.inc();
            self.fate.end(Flood::Resets);
        }
    }
}

/// Serves one connection until it closes.
pub(crate) async fn serve(connection: Rc<HttpConnection>, mut io: DownstreamIo) {
    let stats = connection.stats.clone();
    stats.downstream_cx_total.inc();
    stats.downstream_cx_active.inc();
    let secure = connection.downstream.tls.is_some();
    if secure {
        stats.downstream_cx_ssl_total.inc();
        stats.downstream_cx_ssl_active.inc();
    }
    let http2 = match connection.config.codec {
        Codec::Http1 => Some(false),
        Codec::Http2 => Some(true),
        // Its connections come from a socket of another kind.
        Codec::Http3 => None,
        // A client that says nothing is as idle as one that has said enough.
        Codec::Auto => tokio::select! {
            http2 = io.starts_http2(&connection.downstream) => Some(http2),
            () = close_requested(&connection, false) => None,
        },
    };
    if http2 == Some(true) {
        stats.downstream_cx_http2_total.inc();
        stats.downstream_cx_http2_active.inc();
        serve_http2(connection, io).await;
        stats.downstream_cx_http2_active.dec();
    } else if http2 == Some(false) {
        stats.downstream_cx_http1_total.inc();
        stats.downstream_cx_http1_active.inc();
        h1::serve(connection, io).await;
        stats.downstream_cx_http1_active.dec();
    }
    if secure {
        stats.downstream_cx_ssl_active.dec();
    }
    stats.downstream_cx_active.dec();
    stats.downstream_cx_destroy.inc();
}

async fn serve_http2(connection: Rc<HttpConnection>, io: DownstreamIo) {
    let config = connection.config.clone();
    let executor = StreamExecutor::default();
    let mut builder = http2::Builder::new(executor.clone());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.h2.max_concurrent_streams)
        .initial_stream_window_size(config.h2.stream_window)
        .initial_connection_window_size(config.h2.connection_window)
        .header_table_size(config.h2.header_table)
        .max_header_list_size(limits::decoded(&config))
        // Resets are counted here, as Envoy does.
        .max_pending_accept_reset_streams(GIVEN_UP as usize)
        .max_send_buf_size(256 * 1024);
    if config.h2.allow_connect {
        builder.enable_connect_protocol();
    }
    if let Some((interval, timeout)) = config.h2.keepalive {
        builder.keep_alive_interval(interval).keep_alive_timeout(timeout);
    }
    let service_connection = connection.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let connection = service_connection.clone();
        let progress = Some(executor.next());
        let refused = limits::check(&connection.config, request.headers()).err();
        let leaves = request.method() == http::Method::CONNECT;
        let upgrade = leaves.then(|| OnUpgrade::H2(hyper::upgrade::on(&mut request)));
        let (parsed, body) = Parsed::of_http2(request, connection.downstream.tls.is_some());
        let body = DownstreamBody::H2(body);
        async move {
            let codec = ExchangeCodec { progress, ..ExchangeCodec::default() };
            match refused {
                Some(details) => Err(limits::refuse(&connection, details)),
                None => Ok(handle(connection, parsed, (body, upgrade), codec).await),
            }
        }
    });
    let io = TokioIo::new(watched(&connection, io));
    let mut served = pin!(builder.serve_connection(io, service));
    tokio::select! {
        result = served.as_mut() => return count_protocol_error(&connection, result),
        () = close_requested(&connection, true) => {}
    }
    // GOAWAY; streams under way are finished.
    served.as_mut().graceful_shutdown();
    tokio::select! {
        _ = served => {}
        // A client that does not answer is not waited for.
        () = left_alone(&connection) => {}
    }
}

fn watched(connection: &HttpConnection, io: DownstreamIo) -> Watched<Lingering<DownstreamIo>> {
    let timeouts = &connection.config.timeouts;
    // Streams that are not read end first, each by itself.
    let write = timeouts.stream_idle.map(|idle| idle * 2);
    let patience = Patience { head: timeouts.request_headers, write };
    let io = Lingering::new(io, timeouts.delayed_close);
    let shared = (connection.fate.clone(), connection.worker.telemetry.http2().clone());
    Watched::new(io, connection.config.h2.frames, shared, patience)
}

/// Resolves once no request has been under way for the drain timeout.
async fn left_alone(connection: &HttpConnection) {
    let wait = connection.config.timeouts.drain.max(Duration::from_millis(1));
    let begun = Instant::now();
    loop {
        let since = begun.max(connection.last_used.get());
        let busy = connection.active.get() > 0;
        let left = if busy { wait } else { wait.saturating_sub(since.elapsed()) };
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

fn count_protocol_error(connection: &HttpConnection, result: hyper::Result<()>) {
    if result.is_err_and(|error| error.is_parse()) {
        connection.stats.downstream_cx_protocol_error.inc();
    }
}

/// How long a request may have been on its way to a proxy that drains.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// Resolves when the connection is to be closed: the proxy drains, its
/// listener has been replaced, it idled too long or lived too long.
///
/// A client of HTTP/1 that idled or lived too long has its drain timeout to
/// send another request, the answer to which says that the connection closes:
/// a request may be on its way. With HTTP/2 that is GOAWAY's part. A proxy that
/// drains waits so too, for a moment.
///
/// A replaced listener closes no HTTP/1 connection that idles: a request may
/// be on its way. The next response says so instead. HTTP/2 has GOAWAY.
pub(super) async fn close_requested(connection: &HttpConnection, http2: bool) {
    let timeouts = connection.config.timeouts;
    loop {
        let now = Instant::now();
        let drain_left =
            connection.chain.drained_at().map(|end| end.saturating_duration_since(now));
        let drained = drain_left.is_some_and(|left| http2 || left.is_zero());
        let draining = connection.draining();
        if drained || draining && (http2 || timeouts.drain.is_zero()) {
            connection.stats.downstream_cx_drain_close.inc();
            return;
        }
        if draining && connection.ends.get().is_none() {
            connection.stats.downstream_cx_drain_close.inc();
            connection.ends.set(Some(now + timeouts.drain.min(ON_ITS_WAY)));
        }
        let left = match connection.ends.get() {
            Some(end) => Some(end.saturating_duration_since(now)),
            None => connection.left(now),
        };
        if left.is_some_and(|left| left.is_zero()) {
            let over = http2 || connection.ends.get().is_some() || connection.requests.get() == 0;
            if over || timeouts.drain.is_zero() {
                return;
            }
            connection.ends.set(Some(now + jittered(timeouts.drain, timeouts.drain_jitter)));
            continue;
        }
        let wait = [left, drain_left].into_iter().flatten().min();
        tokio::select! {
            () = connection.worker.changed() => {}
            // The answer to HTTP/1 says so.
            () = connection.leave.notified(), if http2 => return,
            () = wait_for(wait) => {}
        }
    }
}

async fn wait_for(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

/// Serves one request.
pub(super) async fn handle(
    connection: Rc<HttpConnection>,
    parsed: Parsed,
    (body, upgrade): (DownstreamBody, Option<OnUpgrade>),
    codec: ExchangeCodec,
) -> Response<ResponseBody> {
    let Parsed { head, valid, case } = parsed;
    connection.begin(head.version);
    let exchange = Exchange::new(connection.clone(), head, ExchangeCodec { case, ..codec });
    let guard = ExchangeGuard::new(exchange.clone());
    exchange.log.borrow_mut().grpc = exchange.head.borrow().is_grpc();
    let admitted = match valid {
        Ok(()) if connection.worker.overload().refuse_requests.drawn() => {
            connection.stats.downstream_rq_overload_close.inc();
            Err(ProxyError::Overloaded)
        }
        Ok(()) => request::admit(&connection, &mut exchange.head.borrow_mut()),
        Err(error) => Err(error),
    };
    let admitted = match admitted {
        Ok(admitted) => admitted,
        Err(error) => {
            if let ProxyError::Fragment(target) = &error {
                exchange.log.borrow_mut().target = Some(target.clone());
            }
            if error.by_codec() && exchange.head.borrow().version < Version::HTTP_2 {
                // Envoy's codec refuses these before it has told anybody what
                // the request was.
                *exchange.head.borrow_mut() = parsed::unreadable();
            }
            return response::local(guard, &error);
        }
    };
    exchange.log.borrow_mut().internal = admitted.internal;
    router::route(guard, admitted, body, upgrade).await
}

/// Answers what cannot be read as a request.
pub(super) fn refuse(
    connection: &Rc<HttpConnection>,
    error: &ProxyError,
) -> Response<ResponseBody> {
    connection.begin(Version::HTTP_11);
    let exchange =
        Exchange::new(connection.clone(), parsed::unreadable(), ExchangeCodec::default());
    response::local(ExchangeGuard::new(exchange), error)
}
