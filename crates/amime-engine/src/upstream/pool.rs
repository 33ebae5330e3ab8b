//! Connections of one worker to one endpoint.
//!
//! HTTP/1 connections wait on a stack, the last used first, so that the
//! others grow old and are closed. HTTP/2 connections are shared by requests
//! until their peer's stream limit is reached.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use amime_http1::ReadError;
use hyper::client::conn::{TrySendError, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;

use super::connect::{ConnectError, ConnectionFacts, Target, UpstreamIo, connect};
use super::h1::{H1, H1Error, Interim};
use super::h2::breaks_protocol;
use super::open::{OpenGuard, count_failure, pending};
use super::preconnect::keep_ahead;
use super::{ClusterRuntime, Host, idled_out, outlived};
use crate::http::body::{RequestBody, UpstreamBody};
use crate::http::pipe::Duplex;
use amime_config::endpoint_state::{EndpointState, Resource, now_ms};
use amime_config::tls::Alpn;
use amime_upstream::{LocalExecutor, Pool};

/// What distinguishes connections to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConnKey {
    pub(crate) http2: bool,
    pub(crate) alpn: Alpn,
    /// Server name taken from the request.
    pub(crate) sni: Option<Rc<str>>,
    /// Whom the PROXY header names: such a connection serves one client.
    pub(crate) client: Option<(SocketAddr, SocketAddr)>,
    /// Set where clients do not share connections.
    pub(crate) owner: Option<Owner>,
}

/// The client's connection that an upstream connection serves alone.
#[derive(Clone, Debug)]
pub(crate) struct Owner(Weak<dyn Any>);

impl Owner {
    pub(crate) fn of<T: 'static>(connection: &Rc<T>) -> Self {
        let connection: Weak<T> = Rc::downgrade(connection);
        Self(connection)
    }

    /// True while the client is there.
    fn stays(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(self.0.as_ptr(), other.0.as_ptr())
    }
}

impl Eq for Owner {}

impl ConnKey {
    /// Of connections that look the same whatever the request.
    pub(crate) fn plain(http2: bool) -> Self {
        let alpn = if http2 { Alpn::Http2 } else { Alpn::Http1 };
        Self { http2, alpn, sni: None, client: None, owner: None }
    }

    /// False once nobody can ask for it any more.
    fn is_wanted(&self) -> bool {
        self.owner.as_ref().is_none_or(Owner::stays)
    }
}

/// An open upstream connection, as its users share it.
pub(crate) struct UpstreamConn {
    pub(crate) facts: ConnectionFacts,
    key: ConnKey,
    opened_ms: u64,
    endpoint: Arc<EndpointState>,
    requests: Cell<u32>,
    streams: Cell<u32>,
    open: Cell<bool>,
    /// What came on it was not HTTP/2.
    pub(crate) misspoke: Cell<bool>,
}

struct Idle {
    sender: Rc<H1>,
    conn: Rc<UpstreamConn>,
    since_ms: u64,
}

#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    conn: Rc<UpstreamConn>,
    since_ms: Rc<Cell<u64>>,
}

/// Connections of one endpoint.
#[derive(Default)]
pub(crate) struct HostPool {
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Shared>>,
    /// An HTTP/2 connection being opened; its followers wait for it.
    opening: RefCell<Option<Rc<Opening>>>,
    /// Connections open, idle or not.
    pub(super) open: Rc<Cell<u32>>,
    /// Told when a connection comes free or closes.
    pub(super) freed: Rc<Notify>,
}

#[derive(Default)]
struct Opening {
    done: Notify,
    failed: RefCell<Option<ConnectError>>,
}

/// The right to send one request.
pub(crate) enum Sender {
    H1(Rc<H1>),
    H2 { sender: http2::SendRequest<RequestBody>, _stream: StreamGuard },
}

/// Counts a stream as open until dropped.
pub(crate) struct StreamGuard(Rc<UpstreamConn>);

impl StreamGuard {
    fn new(conn: &Rc<UpstreamConn>) -> Self {
        conn.streams.set(conn.streams.get() + 1);
        Self(conn.clone())
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
    }
}

/// A connection taken for one request; give it back with [`Lease::release`]
/// when the response has ended, drop it to close or reset.
pub(crate) struct Lease {
    pub(crate) sender: Sender,
    pub(crate) conn: Rc<UpstreamConn>,
    /// The connection served requests before.
    pub(crate) reused: bool,
}

impl Pool for HostPool {
    fn take(&self) -> Self {
        Self {
            idle: RefCell::new(self.idle.take()),
            shared: RefCell::new(self.shared.take()),
            opening: RefCell::new(None),
            open: self.open.clone(),
            freed: self.freed.clone(),
        }
    }

    fn clear(&self) {
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().clear();
    }
}

impl HostPool {
    /// Closes connections that have idled for too long and lets go of those that
    /// the endpoint has closed.
    pub(crate) fn sweep(&self, cluster: &ClusterRuntime) {
        self.idle.borrow_mut().retain(|idle| idle.usable(cluster));
        self.shared.borrow_mut().retain(|shared| shared.usable(cluster));
    }

    fn pop_idle(&self, key: &ConnKey, cluster: &ClusterRuntime) -> Option<Lease> {
        let mut idle = self.idle.borrow_mut();
        loop {
            let at = idle.iter().rposition(|idle| idle.conn.key == *key)?;
            let found = idle.remove(at);
            // Sweeps come seldom; what is over before the next is not used.
            if found.usable(cluster) {
                let Idle { sender, conn, .. } = found;
                return Some(Lease { sender: Sender::H1(sender), conn, reused: true });
            }
        }
    }

    fn share(&self, key: &ConnKey, cluster: &ClusterRuntime) -> Option<Lease> {
        let mut shared = self.shared.borrow_mut();
        shared.retain(|shared| shared.usable(cluster));
        let limit = cluster.config().http.h2.max_concurrent_streams;
        let found = shared.iter().find(|shared| {
            shared.conn.key == *key && shared.conn.streams.get() < limit && shared.sender.is_ready()
        })?;
        let lease = found.clone().lease(true);
        let max = cluster.config().http.max_requests_per_connection;
        if max.is_some_and(|max| lease.conn.requests.get() >= max) {
            // Its last request: nobody else finds it any more.
            shared.retain(|shared| !Rc::ptr_eq(&shared.conn, &lease.conn));
        }
        Some(lease)
    }
}

impl Idle {
    /// True if it may serve another request.
    fn usable(&self, cluster: &ClusterRuntime) -> bool {
        !self.sender.stale()
            && self.conn.key.is_wanted()
            && !idled_out(cluster, self.since_ms)
            && !self.conn.is_over(cluster)
    }
}

impl Shared {
    /// True if it may serve another request; those under way end on it.
    fn usable(&self, cluster: &ClusterRuntime) -> bool {
        let used = self.conn.streams.get() > 0;
        !self.sender.is_closed()
            && (used || self.conn.key.is_wanted())
            && (used || !idled_out(cluster, self.since_ms.get()))
            && !self.conn.is_over(cluster)
    }

    fn lease(self, reused: bool) -> Lease {
        let guard = StreamGuard::new(&self.conn);
        self.conn.requests.set(self.conn.requests.get() + 1);
        self.since_ms.set(now_ms());
        Lease {
            sender: Sender::H2 { sender: self.sender, _stream: guard },
            conn: self.conn,
            reused,
        }
    }
}

/// What opening a connection needs beyond its key.
#[derive(Clone, Copy)]
pub(crate) struct Acquire<'a> {
    pub(crate) cluster: &'a Rc<ClusterRuntime>,
    pub(crate) host: &'a Rc<Host>,
    pub(crate) priority: usize,
    pub(crate) mark: Option<u32>,
    /// No connection will do that idles now.
    pub(crate) fresh: bool,
}

/// A connection for one request: an idle or shared one, else a new one.
pub(crate) async fn acquire(request: Acquire<'_>, key: ConnKey) -> Result<Lease, ConnectError> {
    let Acquire { cluster, host, fresh, .. } = request;
    let pool = &host.pool;
    if key.alpn == Alpn::Either && !fresh {
        // Here the handshake decides the protocol, so either kind will do.
        let http1 = ConnKey { http2: false, ..key.clone() };
        if let Some(lease) = pool.pop_idle(&http1, cluster) {
            lease.conn.requests.set(lease.conn.requests.get() + 1);
            return Ok(lease);
        }
    }
    if !key.http2 {
        if !fresh && let Some(lease) = pool.pop_idle(&key, cluster) {
            lease.conn.requests.set(lease.conn.requests.get() + 1);
            keep_ahead(request, &key);
            return Ok(lease);
        }
        return pending(request, open_h1(request, key)).await;
    }
    if let Some(lease) = pool.share(&key, cluster) {
        return Ok(lease);
    }
    pending(request, open_h2(request, key)).await
}

async fn open_h1(request: Acquire<'_>, key: ConnKey) -> Result<Lease, ConnectError> {
    let Acquire { cluster, host, priority, .. } = request;
    loop {
        // An endpoint without any connection may always open one: a request
        // queued behind none would never be served.
        let first = host.pool.open.get() == 0;
        let full = host.endpoint.state.is_full(&cluster.config().limits[priority]);
        if !full && cluster.take(priority, Resource::Connections) {
            break;
        }
        if first {
            cluster.spec.state.force(&cluster.config().limits, priority);
            break;
        }
        cluster.stats.upstream_cx_overflow.inc();
        host.pool.freed.notified().await;
        if let Some(lease) = host.pool.pop_idle(&key, cluster) {
            lease.conn.requests.set(lease.conn.requests.get() + 1);
            return Ok(lease);
        }
    }
    let guard = OpenGuard::new(request);
    keep_ahead(request, &key);
    let (io, facts) = dial(request, &key).await?;
    Ok(start_h1(request, io, facts, key, guard))
}

/// Speaks HTTP/1 on a connection that stands.
pub(super) fn start_h1(
    request: Acquire<'_>,
    io: UpstreamIo,
    facts: ConnectionFacts,
    key: ConnKey,
    guard: OpenGuard,
) -> Lease {
    let Acquire { cluster, host, .. } = request;
    let sender = H1::new(io, guard, &cluster.config().http);
    let conn = UpstreamConn::new(facts, key, host);
    cluster.stats.upstream_cx_http1_total.inc();
    Lease { sender: Sender::H1(sender), conn, reused: false }
}

async fn open_h2(request: Acquire<'_>, key: ConnKey) -> Result<Lease, ConnectError> {
    let Acquire { cluster, host, .. } = request;
    loop {
        let waiting = host.pool.opening.borrow().clone();
        let Some(opening) = waiting else { break };
        opening.done.notified().await;
        if let Some(error) = opening.failed.borrow().clone() {
            return Err(error);
        }
        if let Some(lease) = host.pool.share(&key, cluster) {
            return Ok(lease);
        }
    }
    let opening = Rc::new(Opening::default());
    *host.pool.opening.borrow_mut() = Some(opening.clone());
    // Also when this request is given up half-way, the others must go on.
    let _done = Done { host, opening: &opening };
    let result = open_h2_now(request, key).await;
    if let Err(error) = &result {
        *opening.failed.borrow_mut() = Some(error.clone());
    }
    result
}

struct Done<'a> {
    host: &'a Host,
    opening: &'a Opening,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        *self.host.pool.opening.borrow_mut() = None;
        self.opening.done.notify_waiters();
    }
}

async fn open_h2_now(request: Acquire<'_>, key: ConnKey) -> Result<Lease, ConnectError> {
    let Acquire { cluster, host, priority, .. } = request;
    let full = host.endpoint.state.is_full(&cluster.config().limits[priority]);
    if full || !cluster.take(priority, Resource::Connections) {
        cluster.stats.upstream_cx_overflow.inc();
        if host.pool.open.get() > 0 {
            return Err(ConnectError::Overflow);
        }
        cluster.spec.state.force(&cluster.config().limits, priority);
    }
    let guard = OpenGuard::new(request);
    let (io, facts) = dial(request, &key).await?;
    let agreed = facts.tls.as_ref().and_then(|tls| tls.alpn.as_deref());
    if key.alpn == Alpn::Either && agreed != Some(b"h2") {
        let key = ConnKey { http2: false, ..key };
        return Ok(start_h1(request, io, facts, key, guard));
    }
    let settings = &cluster.config().http.h2;
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_header_list_size(64 * 1024)
        .max_send_buf_size(256 * 1024);
    if let Some((interval, timeout)) = settings.keepalive {
        builder
            .keep_alive_interval(interval)
            .keep_alive_timeout(timeout)
            .keep_alive_while_idle(true);
    }
    let (sender, driver) = builder
        .handshake::<_, RequestBody>(TokioIo::new(io))
        .await
        .map_err(|error| ConnectError::Failed(error.to_string().into()))?;
    let conn = UpstreamConn::new(facts, key, host);
    let task_conn = conn.clone();
    tokio::task::spawn_local(async move {
        let ended = driver.await;
        task_conn.open.set(false);
        task_conn.misspoke.set(ended.is_err_and(|error| breaks_protocol(&error)));
        drop(guard);
    });
    cluster.stats.upstream_cx_http2_total.inc();
    let shared = Shared { sender, conn, since_ms: Rc::new(Cell::new(now_ms())) };
    if !host.retired() {
        host.pool.shared.borrow_mut().push(shared.clone());
    }
    shared.conn.requests.set(0);
    Ok(shared.lease(false))
}

pub(super) async fn dial(
    request: Acquire<'_>,
    key: &ConnKey,
) -> Result<(UpstreamIo, ConnectionFacts), ConnectError> {
    let Acquire { cluster, host, mark, .. } = request;
    let target = Target {
        address: host.endpoint.address,
        more: &host.endpoint.more,
        hostname: &host.endpoint.hostname,
        transport: &host.endpoint.transport,
        alpn: key.alpn,
        sni: key.sni.as_deref(),
        client: key.client,
        mark,
    };
    let result = connect(cluster.config(), target).await;
    match &result {
        Ok((_, facts)) if facts.tls.is_some() => cluster.stats.ssl_handshake.inc(),
        Ok(_) => {}
        Err(error) => count_failure(cluster, host, error),
    }
    result
}

impl UpstreamConn {
    /// True if it takes no more requests: it has lived as long as it may, or
    /// its endpoint has failed meanwhile; a new one may find a better way.
    fn is_over(&self, cluster: &ClusterRuntime) -> bool {
        self.endpoint.failed_since(self.opened_ms) || outlived(cluster, self.opened_ms)
    }

    /// The same before its first request.
    pub(super) fn unused(&self) {
        self.requests.set(0);
    }

    fn new(facts: ConnectionFacts, key: ConnKey, host: &Host) -> Rc<Self> {
        Rc::new(Self {
            facts,
            key,
            opened_ms: now_ms(),
            endpoint: host.endpoint.state.clone(),
            requests: Cell::new(1),
            streams: Cell::new(0),
            open: Cell::new(true),
            misspoke: Cell::new(false),
        })
    }

    pub(crate) fn is_http2(&self) -> bool {
        self.key.http2
    }
}

impl Lease {
    /// Puts the connection back after its response has ended.
    pub(crate) fn release(self, cluster: &ClusterRuntime, host: &Rc<Host>) {
        let conn = self.conn;
        let Sender::H1(sender) = self.sender else { return };
        let spent = cluster
            .config()
            .http
            .max_requests_per_connection
            .is_some_and(|max| conn.requests.get() >= max);
        if !spent && !host.retired() && sender.reusable() && !conn.is_over(cluster) {
            host.pool.put(sender, conn);
        }
    }

    /// The bytes behind a response that ends HTTP, and what keeps the
    /// connection or stream counted meanwhile.
    pub(crate) async fn into_tunnel(
        self,
        mut response: http::Response<UpstreamBody>,
    ) -> io::Result<(Box<dyn Duplex>, Held)> {
        match self.sender {
            Sender::H1(sender) => {
                // It holds the connection as well.
                drop(response);
                let upgraded = sender.into_upgraded();
                let (io, open) = upgraded.ok_or(io::ErrorKind::ResourceBusy)?;
                Ok((Box::new(io), Held { _connection: Some(open), ..Held::default() }))
            }
            Sender::H2 { _stream, .. } => {
                let upgraded = hyper::upgrade::on(&mut response).await.map_err(io::Error::other)?;
                Ok((
                    Box::new(TokioIo::new(upgraded)),
                    Held { _stream: Some(_stream), ..Held::default() },
                ))
            }
        }
    }
}

/// What counts the upstream's end of a tunnel until dropped.
#[derive(Default)]
pub(crate) struct Held {
    _connection: Option<OpenGuard>,
    _stream: Option<StreamGuard>,
}

/// Why there is no response.
pub(crate) enum SendError {
    /// Nothing was written; the request can go elsewhere whole.
    Unsent(Box<http::Request<RequestBody>>),
    Broken(UpstreamError),
}

/// Why there is no response, or no more of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error(transparent)]
    H1(H1Error),
    #[error(transparent)]
    H2(hyper::Error),
}

impl UpstreamError {
    /// True if an HTTP/1 connection ended before the response's head had come.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self, Self::H1(H1Error::Read(ReadError::Closed | ReadError::Io(_))))
    }

    /// True if what the endpoint sent cannot be understood.
    pub(crate) fn is_malformed(&self) -> bool {
        matches!(self, Self::H1(H1Error::Read(ReadError::Parse(_))))
    }
}

impl From<TrySendError<http::Request<RequestBody>>> for SendError {
    fn from(mut error: TrySendError<http::Request<RequestBody>>) -> Self {
        match error.take_message() {
            Some(request) => Self::Unsent(Box::new(request)),
            None => Self::Broken(UpstreamError::H2(error.into_error())),
        }
    }
}

impl Sender {
    /// Sends a request and waits for the response's head.
    pub(crate) async fn send(
        &mut self,
        request: http::Request<RequestBody>,
    ) -> Result<http::Response<UpstreamBody>, SendError> {
        self.send_and_tell(request, &|_, _| {}).await
    }

    /// As [`Sender::send`], and tells of heads that come before.
    pub(crate) async fn send_and_tell(
        &mut self,
        request: http::Request<RequestBody>,
        interim: Interim<'_>,
    ) -> Result<http::Response<UpstreamBody>, SendError> {
        match self {
            Self::H1(sender) => {
                let response = sender.send(request, interim).await.map_err(UpstreamError::H1);
                Ok(response.map_err(SendError::Broken)?.map(UpstreamBody::H1))
            }
            Self::H2 { sender, .. } => {
                Ok(sender.try_send_request(request).await?.map(UpstreamBody::H2))
            }
        }
    }
}

impl HostPool {
    pub(super) fn put(&self, sender: Rc<H1>, conn: Rc<UpstreamConn>) {
        self.idle.borrow_mut().push(Idle { sender, conn, since_ms: now_ms() });
        self.freed.notify_one();
    }
}
