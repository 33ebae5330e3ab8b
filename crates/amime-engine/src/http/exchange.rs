//! One request and its response, from first byte to record.
//!
//! Owns what telemetry is told at the end. Fields are cells because body and
//! request future share them within the thread; each is written by one step.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use amime_http1::{HeaderCase, ParseError};
use amime_telemetry::{
    DynamicMetadata, HttpRecord, HttpTiming, PeerMetadata, ResponseFlags, TlsRecord, UpstreamRecord,
};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};
use tokio::sync::Notify;

use super::error::ProxyError;
use super::filters::OnResponse;
use super::frames::Flood;
use super::h1::Channel;
use super::parsed::logged_path;
use super::serve::HttpConnection;
use super::stall::Progress;
use crate::upstream::pool::UpstreamConn;
use crate::upstream::{ClusterRuntime, Host};
use amime_config::route::RouteRef;
use amime_config::virtual_cluster::VirtualCluster;
use amime_rules::head::RequestHead;
use amime_rules::tls_facts::TlsFacts;

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Complete,
    DownstreamGone,
    /// The client gave up this request alone.
    DownstreamReset,
    /// The client sent too much besides.
    Flood(Flood),
    UpstreamReset,
    /// What the upstream sent cannot be understood.
    UpstreamProtocol,
    Deadline,
    /// The stream's whole life was too long.
    Duration,
    Idle,
}

/// One request and its response.
pub(crate) struct Exchange {
    pub(crate) connection: Rc<HttpConnection>,
    start: SystemTime,
    pub(crate) begun: Instant,
    /// The request as sent upstream; its headers are kept only if wanted.
    pub(crate) head: RefCell<RequestHead>,
    pub(crate) log: RefCell<Log>,
    /// What filters do to the response, in the order in which they ran.
    pub(crate) on_response: RefCell<Vec<OnResponse>>,
    /// Redirects followed.
    pub(crate) redirects: Cell<u32>,
    /// Names of the routes that redirects went from and to, where they count.
    pub(super) redirected: RefCell<Vec<(Arc<str>, Arc<str>)>>,
    pub(super) codec: Codec,
    /// Told when the request has been read.
    pub(crate) complete: Notify,
    /// Reading the request's body failed.
    pub(crate) body_failed: Cell<Option<ParseError>>,
    /// What a filter says of the request's body.
    refusal: RefCell<Option<ProxyError>>,
    /// What filters found out.
    pub(super) metadata: RefCell<Option<Box<DynamicMetadata>>>,
    received: Cell<u64>,
    received_after: Cell<Option<Duration>>,
    sent: Cell<u64>,
}

/// What the downstream codec has to say or can do besides.
#[derive(Default)]
pub(crate) struct Codec {
    /// How the client spelled the names of headers, if that matters.
    pub(super) case: Option<HeaderCase>,
    /// The connection, if it is one of HTTP/1. Not held: what follows an
    /// upgrade needs it whole.
    pub(super) channel: Weak<Channel>,
    /// How the response gets on, if others share the connection with it.
    pub(super) progress: Option<Rc<Progress>>,
}

/// What the record says beyond counters.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) status: u16,
    pub(crate) details: Cow<'static, str>,
    pub(crate) flags: ResponseFlags,
    pub(crate) route: Option<RouteRef>,
    pub(crate) cluster: Option<Rc<ClusterRuntime>>,
    /// Where the request would have gone, had no filter answered it.
    pub(crate) missed: Option<Rc<ClusterRuntime>>,
    pub(crate) host: Option<Rc<Host>>,
    pub(crate) conn: Option<Rc<UpstreamConn>>,
    pub(crate) attempts: u32,
    pub(crate) transport_failure: Option<String>,
    pub(crate) response_after: Option<Duration>,
    pub(crate) response_headers: HeaderMap,
    pub(crate) response_trailers: Option<HeaderMap>,
    pub(crate) response_bytes: u64,
    pub(crate) request_bytes: u64,
    pub(crate) downstream_peer: Option<Arc<PeerMetadata>>,
    /// The client told who it is and is to hear who we are.
    pub(crate) answer_peer: bool,
    pub(crate) upstream_peer: Option<Arc<PeerMetadata>>,
    pub(crate) grpc: bool,
    /// The target as it came, where it says more than the path.
    pub(crate) target: Option<Bytes>,
    pub(crate) health_check: bool,
    /// The client counts as internal.
    pub(crate) internal: bool,
    /// Number of the virtual cluster within the route's virtual host.
    pub(crate) virtual_cluster: Option<usize>,
}

impl Exchange {
    pub(crate) fn new(connection: Rc<HttpConnection>, head: RequestHead, codec: Codec) -> Rc<Self> {
        Rc::new(Self {
            connection,
            start: SystemTime::now(),
            begun: Instant::now(),
            head: RefCell::new(head),
            log: RefCell::default(),
            on_response: RefCell::default(),
            redirects: Cell::new(0),
            redirected: RefCell::default(),
            codec,
            complete: Notify::new(),
            body_failed: Cell::new(None),
            refusal: RefCell::default(),
            metadata: RefCell::default(),
            received: Cell::new(0),
            received_after: Cell::new(None),
            sent: Cell::new(0),
        })
    }

    pub(crate) fn count_received(&self, bytes: usize) {
        self.received.set(self.received.get().wrapping_add(bytes as u64));
    }

    /// Takes back what others will count.
    pub(super) fn uncount_received(&self, bytes: usize) {
        // More may be taken back than came, where a filter makes more of it.
        self.received.set(self.received.get().wrapping_sub(bytes as u64));
    }

    /// Keeps a filter's answer to the request's body until its turn comes.
    pub(super) fn refuse(&self, error: ProxyError) {
        *self.refusal.borrow_mut() = Some(error);
    }

    pub(super) fn refused(&self) -> bool {
        self.refusal.borrow().is_some()
    }

    pub(super) fn take_refusal(&self) -> Option<ProxyError> {
        self.refusal.take()
    }

    /// Bytes of the request's body so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.get()
    }

    pub(crate) fn count_sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }

    /// The request's last byte has come.
    pub(crate) fn request_received(&self) {
        if self.received_after.get().is_none() {
            self.received_after.set(Some(self.begun.elapsed()));
            self.complete.notify_one();
        }
    }

    /// The request has no body: all of it has come.
    pub(crate) fn request_is_bodiless(&self) {
        self.received_after.set(Some(Duration::ZERO));
    }

    /// Takes what the client has sent of its request and nobody will read.
    pub(super) fn drop_request(&self) {
        if self.received_after.get().is_none()
            && let Some(channel) = self.codec.channel.upgrade()
        {
            self.count_received(channel.drop_body());
        }
    }

    /// How long the request took to come.
    pub(crate) fn received_after(&self) -> Option<Duration> {
        self.received_after.get()
    }

    /// When the request had been read.
    pub(crate) fn completed_at(&self) -> Option<Instant> {
        self.received_after.get().map(|after| self.begun + after)
    }

    pub(crate) fn response_trailers(&self, trailers: &HeaderMap) {
        let mut log = self.log.borrow_mut();
        // A report in the head counts; there is one for each response.
        if let (Some(cluster), Some(host)) = (&log.cluster, &log.host)
            && !cluster.has_report(&log.response_headers)
        {
            cluster.take_report(host, trailers);
        }
        log.response_trailers = Some(trailers.clone());
    }

    /// True if the response has no body whatever its source says.
    pub(crate) fn bodiless(&self) -> bool {
        let status = self.log.borrow().status;
        self.head.borrow().method == Method::HEAD || matches!(status, 100..=199 | 204 | 304)
    }

    pub(super) fn progress(&self) -> Option<&Progress> {
        self.codec.progress.as_deref()
    }

    /// Why it is over, when all that is known is that nobody waits any more.
    fn why_dropped(&self) -> End {
        let fate = &self.connection.fate;
        if fate.stalled() || self.progress().is_some_and(Progress::stalled) {
            return End::Idle;
        }
        let shared = self.head.borrow().version == Version::HTTP_2;
        match fate.flood() {
            Some(flood) => End::Flood(flood),
            None if shared && !fate.gone() => End::DownstreamReset,
            None => End::DownstreamGone,
        }
    }

    /// Tells telemetry that it is over.
    fn finish(&self, end: End) {
        let end = if end == End::DownstreamGone { self.why_dropped() } else { end };
        if end == End::Idle {
            self.connection.stats.downstream_rq_idle_timeout.inc();
        }
        let total = self.record(end);
        self.count();
        self.connection.count_end(&self.log.borrow(), self.begun + total, total);
    }

    /// Records how the request ended, which may go on as another one; how long
    /// it took.
    pub(super) fn record(&self, end: End) -> Duration {
        let connection = &self.connection;
        let config = &connection.config;
        let mut log = self.log.borrow_mut();
        let total = self.begun.elapsed();
        log.end(end);
        let head = self.head.borrow();
        let log = &*log;
        let mut record =
            HttpRecord::new(&config.telemetry, self.start, &head.headers, &log.response_headers);
        record.timing = HttpTiming {
            total,
            request_received: self.received_after.get(),
            response_started: log.response_after,
        };
        record.method = head.method.as_str();
        record.path = match &log.target {
            Some(target) => std::str::from_utf8(target).unwrap_or_default(),
            None => logged_path(&head),
        };
        record.authority = head.authority();
        record.scheme = head.scheme.as_str();
        record.protocol = protocol(head.version);
        record.response_trailers = log.response_trailers.as_ref();
        record.response_code = log.status;
        record.response_code_details = &log.details;
        record.flags = log.flags;
        record.bytes_received = self.received.get();
        record.bytes_sent = self.sent.get();
        (record.wire_bytes_received, record.wire_bytes_sent) = self.wire_bytes(log);
        record.route_name = log.route.as_ref().map(|route| &*route.name);
        record.config_origin = log.route.as_ref().and_then(|route| route.origin.as_deref());
        record.grpc = log.grpc;
        record.health_check = log.health_check;
        let metadata = self.metadata.borrow();
        record.metadata = metadata.as_deref();
        record.virtual_cluster = log.virtual_cluster().and_then(|one| one.name.as_deref());
        record.downstream = connection.downstream.record();
        record.downstream.peer = log.downstream_peer.as_ref();
        record.upstream = log.upstream();
        connection.worker.telemetry.http(&record);
        total
    }
}

impl Exchange {
    /// Bytes received and sent, heads included.
    fn wire_bytes(&self, log: &Log) -> (u64, u64) {
        (self.received.get() + log.request_bytes, self.sent.get() + log.response_bytes)
    }

    /// Counts the request for its cluster, with the answer that the client
    /// got: attempts that were repeated count as retries only. Bytes are those
    /// of messages, without framing.
    fn count(&self) {
        let log = self.log.borrow();
        let (received, sent) = self.wire_bytes(&log);
        let stats = &self.connection.stats;
        stats.downstream_cx_rx_bytes_total.add(received);
        stats.downstream_cx_tx_bytes_total.add(sent);
        let Some(cluster) = &log.cluster else { return };
        if log.status != 0 {
            cluster.stats.codes.record(log.status);
            cluster.stats.by_origin.record(log.internal, log.status);
            if let Some(one) = log.virtual_cluster() {
                one.count(log.status);
            }
            cluster.stats.upstream_rq_completed.inc();
        }
        if log.conn.is_some() {
            cluster.stats.upstream_cx_tx_bytes_total.add(received);
            cluster.stats.upstream_cx_rx_bytes_total.add(sent);
        }
    }
}

impl Log {
    fn virtual_cluster(&self) -> Option<&VirtualCluster> {
        self.route.as_ref()?.virtual_cluster(self.virtual_cluster?)
    }

    fn end(&mut self, end: End) {
        match end {
            End::Complete => {}
            End::DownstreamGone => {
                self.flags.insert(ResponseFlags::DC);
                self.details = Cow::Borrowed("downstream_remote_disconnect");
            }
            End::DownstreamReset => {
                self.flags.insert(ResponseFlags::DR);
                self.details = Cow::Borrowed("http2.remote_reset");
            }
            End::Flood(flood) => {
                self.flags.insert(ResponseFlags::DPE);
                self.details = Cow::Borrowed(flood.details());
            }
            End::UpstreamReset => {
                self.flags.insert(ResponseFlags::UC);
                self.details =
                    Cow::Borrowed("upstream_reset_after_response_started{connection_termination}");
            }
            End::UpstreamProtocol => {
                self.flags.insert(ResponseFlags::UPE);
                self.details =
                    Cow::Borrowed("upstream_reset_after_response_started{protocol_error}");
            }
            End::Deadline => {
                self.flags.insert(ResponseFlags::UT);
                self.details = Cow::Borrowed("response_timeout");
            }
            End::Duration => self.details = Cow::Borrowed("max_duration_timeout"),
            End::Idle => {
                self.flags.insert(ResponseFlags::SI);
                self.details = Cow::Borrowed("stream_idle_timeout");
            }
        }
    }

    fn upstream(&self) -> UpstreamRecord<'_> {
        let tls: Option<TlsRecord<'_>> =
            self.conn.as_ref().and_then(|conn| conn.facts.tls.as_ref()).map(TlsFacts::record);
        let peer = self.upstream_peer.as_ref();
        UpstreamRecord {
            host: self.host.as_ref().map(|host| host.endpoint.address),
            host_name: self
                .host
                .as_ref()
                .map(|host| &*host.endpoint.hostname)
                .filter(|name| !name.is_empty()),
            local_address: self.conn.as_ref().and_then(|conn| conn.facts.local),
            cluster: self.cluster.as_ref().or(self.missed.as_ref()).map(|to| &to.config().info),
            tls,
            transport_failure: self.transport_failure.as_deref(),
            peer: peer.or(self.host.as_ref().and_then(|host| host.endpoint.peer.as_ref())),
            attempts: self.attempts,
            protocol: self.conn.as_ref().map(
                |conn| {
                    if conn.is_http2() { "HTTP/2" } else { "HTTP/1.1" }
                },
            ),
        }
    }
}

pub(crate) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_3 => "HTTP/3",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// Ends an exchange once, at the latest when dropped: a request whose client
/// leaves is dropped wherever it waits.
pub(crate) struct ExchangeGuard(Option<Rc<Exchange>>, Rc<Exchange>);

impl ExchangeGuard {
    pub(crate) fn new(exchange: Rc<Exchange>) -> Self {
        Self(Some(exchange.clone()), exchange)
    }

    pub(crate) fn exchange(&self) -> &Rc<Exchange> {
        &self.1
    }

    pub(crate) fn finish(&mut self, end: End) {
        if let Some(exchange) = self.0.take() {
            exchange.finish(end);
        }
    }
}

impl Drop for ExchangeGuard {
    fn drop(&mut self) {
        self.finish(End::DownstreamGone);
    }
}

/// Marks a status in the log together with why.
pub(crate) fn answered(log: &mut Log, status: StatusCode, details: impl Into<Cow<'static, str>>) {
    log.status = status.as_u16();
    log.details = details.into();
}
