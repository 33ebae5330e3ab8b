//! HTTP/1 to an endpoint: one connection, one request at a time.
//!
//! Whoever waits for the response drives the connection, in its own task: no
//! request passes through a queue. An idle connection is driven by nobody; it
//! is looked at before it is used, and now and then by the pool.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use amime_http1::{BodyLength, Casing, Client, Event, Follows, HeaderCase, Options, ReadError};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame};

use super::connect::UpstreamIo;
use super::open::OpenGuard;
use crate::http::body::RequestBody;
use crate::listener::Prefixed;
use amime_config::cluster::HttpUpstream;
use amime_rules::h1::Spelling;

/// An open connection.
pub(crate) struct H1 {
    client: RefCell<Client<UpstreamIo>>,
    open: OpenGuard,
    spelling: Spelling,
}

/// Called with heads that come before the response's.
pub(crate) type Interim<'a> = &'a dyn Fn(StatusCode, &HeaderMap);

/// A request's body that is not written to its end.
struct Outgoing {
    body: RequestBody,
    trailers: Option<HeaderMap>,
}

impl Outgoing {
    fn new(body: RequestBody) -> Option<Self> {
        (!body.is_end_stream()).then_some(Self { body, trailers: None })
    }
}

/// An upstream's stream after HTTP, with what was read of it.
pub(crate) type Upgraded = Prefixed<UpstreamIo>;

/// Longest head of a response, as in Envoy.
const MAX_RESPONSE_HEAD: usize = 80 * 1024;

/// Request bytes that may wait for a slow endpoint.
const HIGH_WATER: usize = 64 * 1024;

/// Why there is no response, or no more of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum H1Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The request's own body failed.
    #[error("the request's body broke off")]
    RequestBody,
}

impl H1 {
    pub(super) fn new(io: UpstreamIo, open: OpenGuard, config: &HttpUpstream) -> Rc<Self> {
        let options = Options {
            max_head_bytes: MAX_RESPONSE_HEAD,
            max_headers: config.max_headers,
            trailers: config.h1.trailers,
            keep_case: config.h1.spelling == Spelling::Kept,
            custom_methods: config.h1.custom_methods,
            allow_chunked_length: config.h1.allow_chunked_length,
        };
        let client = RefCell::new(Client::new(io, options));
        Rc::new(Self { client, open, spelling: config.h1.spelling })
    }

    /// True if the connection can take another request.
    pub(super) fn reusable(&self) -> bool {
        self.client.borrow().reusable()
    }

    /// True if the endpoint has closed the connection, as far as is known.
    pub(super) fn stale(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.client.borrow_mut().poll_stale(&mut cx).is_ready()
    }

    /// Sends a request and waits for the response's head.
    pub(super) async fn send(
        self: &Rc<Self>,
        request: Request<RequestBody>,
        interim: Interim<'_>,
    ) -> Result<Response<H1Body>, H1Error> {
        let (parts, body) = request.into_parts();
        let mut outgoing = Outgoing::new(body);
        let follows = match &outgoing {
            Some(_) => Follows::Body,
            None if parts.headers.contains_key(header::UPGRADE) => Follows::Upgrade,
            None => Follows::Nothing,
        };
        let target = match (&parts.method, parts.uri.authority()) {
            (&Method::CONNECT, Some(authority)) => authority.as_str(),
            _ => parts.uri.path_and_query().map_or("/", |path| path.as_str()),
        };
        let line = (&parts.method, target.as_bytes());
        let casing = match parts.extensions.get::<HeaderCase>() {
            Some(case) => Casing::Kept(case),
            None if self.spelling == Spelling::Proper => Casing::Proper,
            None => Casing::Lower,
        };
        self.client.borrow_mut().write_head(line, &parts.headers, follows, casing);
        let head = std::future::poll_fn(|cx| {
            if self.poll_send(&mut outgoing, cx).is_err() {
                return Poll::Ready(Err(H1Error::RequestBody));
            }
            loop {
                let head = ready!(self.client.borrow_mut().poll_head(cx))?;
                if !head.interim() {
                    return Poll::Ready(Ok(head));
                }
                interim(head.status, &head.headers);
            }
        })
        .await?;
        let left = match head.body {
            BodyLength::Empty | BodyLength::Raw => Some(0),
            BodyLength::Known(length) => Some(length),
            BodyLength::Chunked | BodyLength::UntilClose => None,
        };
        let ended = left == Some(0);
        let mut response =
            Response::new(H1Body { connection: self.clone(), outgoing, left, ended });
        *response.status_mut() = head.status;
        *response.version_mut() = head.version;
        *response.headers_mut() = head.headers;
        if let Some(case) = head.case {
            response.extensions_mut().insert(case);
        }
        Ok(response)
    }

    /// Sends of the request's body what there is and what the endpoint takes.
    fn poll_send(
        &self,
        outgoing: &mut Option<Outgoing>,
        cx: &mut Context<'_>,
    ) -> Result<(), H1Error> {
        loop {
            while let Some(Outgoing { body, trailers }) = outgoing
                && self.client.borrow().unwritten() < HIGH_WATER
            {
                match Pin::new(body).poll_frame(cx) {
                    Poll::Pending => break,
                    Poll::Ready(None) => {
                        self.client.borrow_mut().write_end(trailers.as_ref());
                        *outgoing = None;
                    }
                    Poll::Ready(Some(Err(_))) => return Err(H1Error::RequestBody),
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => self.client.borrow_mut().write_data(data),
                        Err(frame) => *trailers = frame.into_trailers().ok(),
                    },
                }
            }
            let mut client = self.client.borrow_mut();
            let full = client.unwritten() >= HIGH_WATER;
            if client.poll_flush(cx).is_pending() || !full {
                return Ok(());
            }
        }
    }

    /// The stream itself; the guard counts it as open. `None` while a response
    /// holds it.
    pub(super) fn into_upgraded(self: Rc<Self>) -> Option<(Upgraded, OpenGuard)> {
        let Self { client, open, .. } = Rc::into_inner(self)?;
        let (io, read) = client.into_inner().into_parts();
        Some((Prefixed::new(read, io), open))
    }
}

/// A response's body, which also sends what is left of the request's.
pub(crate) struct H1Body {
    connection: Rc<H1>,
    outgoing: Option<Outgoing>,
    /// Bytes to come, if that is known.
    left: Option<u64>,
    ended: bool,
}

impl H1Body {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, H1Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Err(error) = self.connection.poll_send(&mut self.outgoing, cx) {
            return Poll::Ready(Some(Err(error)));
        }
        let mut client = self.connection.client.borrow_mut();
        Poll::Ready(match ready!(client.poll_body(cx)) {
            Ok(Event::Data(data)) => {
                self.ended = client.response_read();
                if let Some(left) = &mut self.left {
                    *left = left.saturating_sub(data.len() as u64);
                }
                Some(Ok(Frame::data(data)))
            }
            Ok(Event::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(Event::End | Event::Head(())) => {
                self.ended = true;
                None
            }
            Err(error) => Some(Err(error.into())),
        })
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn left(&self) -> Option<u64> {
        self.left
    }
}
