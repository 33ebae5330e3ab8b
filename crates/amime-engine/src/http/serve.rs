//! HTTP on a downstream connection: its facts and limits, either codec, and
//! what every request passes first.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use amime_telemetry::HttpStats;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::body::{DownstreamBody, ResponseBody};
use super::error::ProxyError;
use super::exchange::{Codec as ExchangeCodec, Exchange, ExchangeGuard, Log};
use super::h1::Channel;
use super::linger::Lingering;
use super::parsed::{self, Parsed};
use super::rate_limit::OwnBuckets;
use super::upgrade::OnUpgrade;
use super::{h1, limits, request, response, router};
use crate::listener::{ChainLife, Connection, DownstreamIo};
use crate::worker::Worker;
use amime_config::hcm::{Codec, HttpConfig, RouteSource};
use amime_config::route::LocalTable;
use amime_rules::tls_facts::TlsFacts;
use amime_rules::values::jittered;
use amime_upstream::LocalExecutor;

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
}

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
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.h2.max_concurrent_streams)
        .initial_stream_window_size(config.h2.stream_window)
        .initial_connection_window_size(config.h2.connection_window)
        .max_header_list_size(limits::decoded(&config))
        .max_send_buf_size(256 * 1024);
    let io = Lingering::new(io, config.timeouts.delayed_close);
    if config.h2.allow_connect {
        builder.enable_connect_protocol();
    }
    if let Some((interval, timeout)) = config.h2.keepalive {
        builder.keep_alive_interval(interval).keep_alive_timeout(timeout);
    }
    let service_connection = connection.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let connection = service_connection.clone();
        let refused = limits::check(&connection.config, request.headers()).err();
        let leaves = request.method() == http::Method::CONNECT;
        let upgrade = leaves.then(|| OnUpgrade::H2(hyper::upgrade::on(&mut request)));
        let (parsed, body) = Parsed::of_http2(request, connection.downstream.tls.is_some());
        let body = DownstreamBody::H2(body);
        async move {
            match refused {
                Some(details) => Err(limits::refuse(&connection, details)),
                None => Ok(handle(connection, parsed, (body, upgrade), Weak::new()).await),
            }
        }
    });
    let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
    tokio::select! {
        result = served.as_mut() => return count_protocol_error(&connection, result),
        () = close_requested(&connection, true) => {}
    }
    // GOAWAY; streams under way are finished.
    served.as_mut().graceful_shutdown();
    let _ = served.await;
}

fn count_protocol_error(connection: &HttpConnection, result: hyper::Result<()>) {
    if result.is_err_and(|error| error.is_parse()) {
        connection.stats.downstream_cx_protocol_error.inc();
    }
}

/// Resolves when the connection is to be closed: the proxy drains, its
/// listener has been replaced, it idled too long or lived too long.
///
/// A client of HTTP/1 that idled or lived too long has its drain timeout to
/// send another request, the answer to which says that the connection closes:
/// a request may be on its way. With HTTP/2 that is GOAWAY's part.
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
        if connection.draining() || drained {
            connection.stats.downstream_cx_drain_close.inc();
            return;
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
    channel: Weak<Channel>,
) -> Response<ResponseBody> {
    let Parsed { head, valid, case } = parsed;
    connection.begin(head.version);
    let exchange = Exchange::new(connection.clone(), head, ExchangeCodec { case, channel });
    let guard = ExchangeGuard::new(exchange.clone());
    exchange.log.borrow_mut().grpc = exchange.head.borrow().is_grpc();
    let admitted = match valid {
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
