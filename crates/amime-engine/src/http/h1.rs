//! HTTP/1 on a downstream connection: one request after the other.
//!
//! Owns the order of things on the connection: when a request may begin, what
//! happens to what the client sends meanwhile, and how the connection closes.
//! One task does it all, so nothing is handed over between tasks.

use std::cell::{Cell, RefCell};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use amime_http1::{
    BodyLength, Casing, Event, HeaderCase, Options, ParseError, ReadError, Server, ServerOptions,
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body::{Body, Frame};
use tokio::sync::oneshot;

use super::body::{DownstreamBody, ResponseBody};
use super::date;
use super::error::ProxyError;
use super::exchange::Codec;
use super::parsed::Parsed;
use super::serve::{HttpConnection, close_requested, handle, refuse};
use super::stall::StallTimer;
use super::upgrade::OnUpgrade;
use crate::listener::{DownstreamIo, Prefixed};
use amime_config::hcm::HttpConfig;
use amime_rules::h1::Spelling;

/// A connection as its task and the body of its request share it.
pub(crate) struct Channel {
    server: RefCell<Server<DownstreamIo>>,
    /// The client has gone in the middle of a request's body.
    gone: Cell<bool>,
    /// Number of bodies that were dropped half-way: an older one that
    /// somebody still holds must not read what is the next one's.
    dropped: Cell<u32>,
    /// The connection's task, while another one reads the body.
    waker: RefCell<Option<Waker>>,
}

/// Body of the request that is being served.
pub(crate) struct ClientBody {
    channel: Rc<Channel>,
    /// The channel's number when the request began.
    dropped: u32,
    /// Bytes to come, if that is known.
    left: Option<u64>,
    ended: bool,
}

/// A connection's stream after HTTP, with what was read of it.
pub(crate) type Upgraded = Prefixed<DownstreamIo>;

/// Response bytes that may wait for a slow client.
const HIGH_WATER: usize = 64 * 1024;

/// What comes after waiting for a request.
enum Next {
    Request(Box<amime_http1::RequestHead>),
    Malformed(ProxyError),
    Closed,
}

/// What comes after a response.
enum After {
    Next,
    /// The response was the last one.
    Close,
    /// Nobody is there any more, or nothing can be said any more.
    Gone,
    /// The stream is not HTTP any more.
    Upgraded,
}

impl Channel {
    fn new(io: DownstreamIo, config: &HttpConfig) -> Rc<Self> {
        let decode = Options {
            max_head_bytes: config.max_headers_kb as usize * 1024,
            max_headers: config.max_headers,
            trailers: config.http1.trailers,
            keep_case: config.http1.spelling == Spelling::Kept,
            custom_methods: config.http1.custom_methods,
            allow_chunked_length: config.http1.allow_chunked_length,
        };
        let options = ServerOptions { decode, http_10: config.http1.accept_http_10 };
        Rc::new(Self {
            server: RefCell::new(Server::new(io, BytesMut::new(), options)),
            gone: Cell::new(false),
            dropped: Cell::new(0),
            waker: RefCell::default(),
        })
    }

    /// Writes a head that comes before the response's.
    pub(super) fn interim(&self, status: StatusCode, headers: &HeaderMap) {
        let mut server = self.server.borrow_mut();
        server.write_interim(status, headers);
        // What does not go now goes with the response.
        let _ = server.poll_flush(&mut Context::from_waker(Waker::noop()));
    }

    /// Takes what has come of the request's body, up to what a connection
    /// buffers anyway, so that a client that has sent it all keeps its
    /// connection. Returns the number of bytes.
    pub(super) fn drop_body(&self) -> usize {
        self.dropped.set(self.dropped.get().wrapping_add(1));
        let mut cx = Context::from_waker(Waker::noop());
        let mut server = self.server.borrow_mut();
        let mut bytes = 0;
        while bytes < HIGH_WATER && !server.request_read() {
            match server.poll_body(&mut cx) {
                Poll::Ready(Ok(Event::Data(data))) => bytes += data.len(),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) | Poll::Pending => break,
            }
        }
        bytes
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Resolves when the client has gone.
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.gone.get() {
            return Poll::Ready(());
        }
        let mut server = self.server.borrow_mut();
        if server.request_read() {
            return server.poll_gone(cx);
        }
        // Whoever reads the body finds out, perhaps in another task.
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl ClientBody {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ParseError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let channel = &self.channel;
        if channel.dropped.get() != self.dropped {
            // Whoever still sends it on must not take it for whole.
            self.ended = true;
            return Poll::Ready(Some(Err(ParseError::Truncated)));
        }
        let event = ready!(channel.server.borrow_mut().poll_body(cx));
        Poll::Ready(match event {
            Ok(Event::Data(data)) => {
                self.ended = channel.server.borrow().request_read();
                if let Some(left) = &mut self.left {
                    *left = left.saturating_sub(data.len() as u64);
                }
                Some(Ok(Frame::data(data)))
            }
            Ok(Event::Trailers(trailers)) => {
                // Nothing comes behind them, so nobody may ask again.
                let mut server = channel.server.borrow_mut();
                let _ = server.poll_body(&mut Context::from_waker(Waker::noop()));
                self.ended = server.request_read();
                drop(server);
                channel.wake();
                Some(Ok(Frame::trailers(trailers)))
            }
            Ok(Event::End | Event::Head(())) => {
                self.ended = true;
                // From now on its task watches the connection.
                channel.wake();
                None
            }
            Err(ReadError::Parse(error)) if error != ParseError::Truncated => {
                self.ended = true;
                Some(Err(error))
            }
            Err(_) => {
                // The connection's task drops the request and this body.
                channel.gone.set(true);
                channel.wake();
                return Poll::Pending;
            }
        })
    }

    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    pub(super) fn left(&self) -> Option<u64> {
        self.left
    }
}

/// Serves a connection until it closes.
pub(super) async fn serve(connection: Rc<HttpConnection>, io: DownstreamIo) {
    let channel = Channel::new(io, &connection.config);
    let mut close = pin!(close_requested(&connection, false));
    loop {
        let (after, upgrade) = match next(&connection, &channel, close.as_mut()).await {
            Next::Request(head) => one(&connection, &channel, *head).await,
            Next::Malformed(error) => {
                connection.stats.downstream_cx_protocol_error.inc();
                respond(&connection, &channel, refuse(&connection, &error)).await;
                (After::Close, None)
            }
            Next::Closed => (After::Close, None),
        };
        match after {
            After::Next => {}
            After::Close => {
                return finish(&channel, connection.config.timeouts.delayed_close).await;
            }
            After::Gone => return,
            After::Upgraded => {
                // The request is over, so nobody else holds the connection.
                if let (Some(upgrade), Some(channel)) = (upgrade, Rc::into_inner(channel)) {
                    let (io, read) = channel.server.into_inner().into_parts();
                    let _ = upgrade.send(Prefixed::new(read, io));
                }
                return;
            }
        }
    }
}

/// Waits for a request, or for a reason to close.
async fn next(
    connection: &HttpConnection,
    channel: &Channel,
    mut close: Pin<&mut impl Future<Output = ()>>,
) -> Next {
    let timeouts = &connection.config.timeouts;
    let mut timer = None;
    std::future::poll_fn(|cx| {
        let mut server = channel.server.borrow_mut();
        match server.poll_head(cx) {
            Poll::Ready(Ok(Some(head))) => return Poll::Ready(Next::Request(Box::new(head))),
            Poll::Ready(Err(ReadError::Parse(error))) if error != ParseError::Truncated => {
                return Poll::Ready(Next::Malformed(ProxyError::Malformed(error)));
            }
            Poll::Ready(Ok(None) | Err(_)) => return Poll::Ready(Next::Closed),
            Poll::Pending => {}
        }
        if !server.in_head() {
            return close.as_mut().poll(cx).map(|()| Next::Closed);
        }
        // A client that has begun has to go on.
        let (limit, error) = match (timeouts.request_headers, timeouts.stream_idle) {
            (Some(limit), idle) if idle.is_none_or(|idle| limit <= idle) => {
                (limit, ProxyError::HeadersTimeout)
            }
            (_, Some(idle)) => (idle, ProxyError::RequestIdle),
            _ => return Poll::Pending,
        };
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        timer.as_mut().poll(cx).map(|()| Next::Malformed(error))
    })
    .await
}

/// Serves one request.
async fn one(
    connection: &Rc<HttpConnection>,
    channel: &Rc<Channel>,
    head: amime_http1::RequestHead,
) -> (After, Option<oneshot::Sender<Upgraded>>) {
    if head.expect_continue && !connection.config.proxy_100_continue {
        channel.interim(StatusCode::CONTINUE, &HeaderMap::new());
    }
    let (to_tunnel, upgrade) = if head.body == BodyLength::Raw {
        let (sender, receiver) = oneshot::channel();
        (Some(sender), Some(OnUpgrade::H1(receiver)))
    } else {
        (None, None)
    };
    let connect = head.method == Method::CONNECT;
    let dropped = channel.dropped.get();
    let stream = |left| ClientBody { channel: channel.clone(), dropped, left, ended: false };
    let body = match head.body {
        BodyLength::Known(length) => DownstreamBody::H1(stream(Some(length))),
        BodyLength::Chunked => DownstreamBody::H1(stream(None)),
        BodyLength::Empty | BodyLength::Raw | BodyLength::UntilClose => DownstreamBody::Empty,
    };
    let response = {
        let parsed = Parsed::of_http1(head, connection.downstream.tls.is_some());
        let codec = Codec { channel: Rc::downgrade(channel), ..Codec::default() };
        let mut handler = pin!(handle(connection.clone(), parsed, (body, upgrade), codec));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(response) = handler.as_mut().poll(cx) {
                return Poll::Ready(Some(response));
            }
            channel.poll_gone(cx).map(|()| None)
        })
        .await
    };
    let Some(response) = response else { return (After::Gone, None) };
    let agrees = if connect {
        response.status().is_success()
    } else {
        response.status() == StatusCode::SWITCHING_PROTOCOLS
    };
    let upgraded = agrees && to_tunnel.as_ref().is_some_and(|tunnel| !tunnel.is_closed());
    match respond(connection, channel, response).await {
        After::Gone => (After::Gone, None),
        _ if upgraded => (After::Upgraded, to_tunnel),
        after => (after, None),
    }
}

/// A response on its way to the client.
struct Outgoing<'a> {
    channel: &'a Channel,
    body: ResponseBody,
    trailers: Option<HeaderMap>,
    /// For a client that reads nothing.
    stall: StallTimer,
    /// How long it is waited for.
    patience: Option<Duration>,
    /// Bytes that waited when it last read some, and how often it did.
    unread: (usize, u64),
    /// What follows once all is written; `None` while the body is read.
    after: Option<After>,
}

/// Writes a response.
async fn respond(
    connection: &HttpConnection,
    channel: &Channel,
    response: Response<ResponseBody>,
) -> After {
    let (mut parts, body) = response.into_parts();
    parts.headers.entry(header::DATE).or_insert_with(date::now);
    let more = !body.is_end_stream();
    let patience = body.patience();
    let stall = StallTimer::default();
    let mut response =
        Outgoing { channel, body, trailers: None, stall, patience, unread: (0, 0), after: None };
    {
        let mut server = channel.server.borrow_mut();
        let casing = match parts.extensions.get::<HeaderCase>() {
            Some(case) => Casing::Kept(case),
            None if connection.config.http1.spelling == Spelling::Proper => Casing::Proper,
            None => Casing::Lower,
        };
        server.write_head(parts.status, &mut parts.headers, more, casing);
    }
    if !more {
        response.end();
    }
    std::future::poll_fn(|cx| response.poll(cx)).await
}

impl Outgoing<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<After> {
        loop {
            let starved = self.fill(cx);
            let mut server = self.channel.server.borrow_mut();
            match server.poll_flush(cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(After::Gone),
                Poll::Ready(Ok(())) => match self.after.take() {
                    Some(after) => return Poll::Ready(after),
                    None if starved => break,
                    None => {}
                },
                Poll::Pending => {
                    let waits = server.unwritten();
                    drop(server);
                    if self.poll_stalled(cx, waits).is_ready() {
                        self.body.stalled();
                        return Poll::Ready(After::Gone);
                    }
                    break;
                }
            }
        }
        self.channel.poll_gone(cx).map(|()| After::Gone)
    }

    /// Ready once the client has read nothing for too long of what waits for
    /// it.
    fn poll_stalled(&mut self, cx: &mut Context<'_>, waits: usize) -> Poll<()> {
        let Some(patience) = self.patience else { return Poll::Pending };
        let (before, moves) = &mut self.unread;
        if waits != *before {
            (*before, *moves) = (waits, moves.wrapping_add(1));
        }
        self.stall.poll(cx, *moves, patience)
    }

    /// Takes of the body what there is, up to what may wait. True if there
    /// was less.
    fn fill(&mut self, cx: &mut Context<'_>) -> bool {
        while self.after.is_none() {
            if self.channel.server.borrow().unwritten() >= HIGH_WATER {
                return false;
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return true,
                Poll::Ready(None) => self.end(),
                // The client must not take what it got for all there is.
                Poll::Ready(Some(Err(_))) => self.after = Some(After::Close),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.channel.server.borrow_mut().write_data(data),
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
            }
        }
        false
    }

    fn end(&mut self) {
        let keep_alive = self.channel.server.borrow_mut().write_end(self.trailers.as_ref());
        self.after = Some(if keep_alive { After::Next } else { After::Close });
    }
}

/// Closes so that the client can still read what it was sent.
async fn finish(channel: &Channel, wait: Option<Duration>) {
    let closed = std::future::poll_fn(|cx| channel.server.borrow_mut().poll_shutdown(cx)).await;
    let Some(wait) = wait.filter(|_| closed.is_ok() && channel.server.borrow().unread()) else {
        return;
    };
    // Closing a socket that holds unread bytes resets the connection.
    let drained = std::future::poll_fn(|cx| channel.server.borrow_mut().poll_discard(cx));
    let _ = tokio::time::timeout(wait, drained).await;
}
