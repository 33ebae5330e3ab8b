//! Bodies of requests that another attempt may have to send again.
//!
//! Owns what was read of such a body, up to the route's limit; a body beyond
//! it goes on and cannot be repeated.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::body::{BodyError, DownstreamBody};
use super::exchange::Exchange;

/// A body that later attempts can send again.
pub(crate) struct ReplayBody {
    shared: Rc<RefCell<Replay>>,
    position: usize,
    trailers_sent: bool,
}

/// The client's body with what was read of it.
pub(crate) struct Replay {
    incoming: DownstreamBody,
    exchange: Rc<Exchange>,
    chunks: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    kept: usize,
    limit: usize,
    /// More was read than may be kept: no further attempt can send it all.
    overflow: bool,
    ended: bool,
}

impl Replay {
    pub(crate) fn new(
        incoming: DownstreamBody,
        exchange: Rc<Exchange>,
        limit: usize,
    ) -> Rc<RefCell<Self>> {
        let ended = incoming.is_end_stream();
        Rc::new(RefCell::new(Self {
            incoming,
            exchange,
            chunks: Vec::new(),
            trailers: None,
            kept: 0,
            limit,
            overflow: false,
            ended,
        }))
    }

    /// True if another attempt can send the whole body.
    pub(crate) fn repeatable(&self) -> bool {
        !self.overflow
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            let frame = ready!(self.incoming.poll_frame(cx));
            let Some(frame) = frame else {
                self.ended = true;
                self.exchange.request_received();
                return Poll::Ready(None);
            };
            let frame = frame.inspect_err(|error| self.exchange.body_failed.set(Some(*error)));
            match frame.map_err(BodyError::from)?.into_data() {
                Ok(data) => {
                    self.exchange.count_received(data.len());
                    self.kept += data.len();
                    if self.kept > self.limit {
                        self.overflow = true;
                        self.chunks.clear();
                    }
                    if self.incoming.is_end_stream() {
                        self.ended = true;
                        self.exchange.request_received();
                    }
                    return Poll::Ready(Some(Ok(data)));
                }
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            }
        }
    }
}

impl ReplayBody {
    pub(crate) fn new(shared: &Rc<RefCell<Replay>>) -> Self {
        Self { shared: shared.clone(), position: 0, trailers_sent: false }
    }

    /// True once nothing is left to send.
    pub(super) fn ended(&self) -> bool {
        let shared = self.shared.borrow();
        shared.ended && self.position >= shared.chunks.len() && shared.trailers.is_none()
    }

    /// Bytes to come, as far as that is known.
    pub(super) fn size_hint(&self) -> SizeHint {
        let shared = self.shared.borrow();
        let untouched = self.position == 0 && shared.chunks.is_empty();
        if untouched { shared.incoming.size_hint() } else { SizeHint::default() }
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut shared = self.shared.borrow_mut();
        if let Some(chunk) = shared.chunks.get(self.position) {
            self.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if !shared.ended
            && let Some(data) = ready!(shared.poll_next(cx))
        {
            let data = data?;
            if !shared.overflow {
                shared.chunks.push(data.clone());
                self.position += 1;
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match &shared.trailers {
            Some(trailers) if !self.trailers_sent => {
                self.trailers_sent = true;
                Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))))
            }
            _ => Poll::Ready(None),
        }
    }
}
