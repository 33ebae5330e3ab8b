//! Requests' bodies that filters change or wait for.
//!
//! Owns what was read of the client ahead of the upstream, and says so to the
//! exchange, whose count is of bytes that came.

use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use amime_http1::ParseError;
use amime_telemetry::ResponseFlags;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Frame, SizeHint};

use super::body::DownstreamBody;
use super::error::{FilterReply, LocalReply, ProxyError};
use super::exchange::Exchange;
use super::stage::{Stage, StageError, Stages};

/// A client's body behind filters.
pub(crate) struct HeldBody {
    source: DownstreamBody,
    stages: Stages,
    /// Bytes are not those that the client announced.
    changed: bool,
    exchange: Rc<Exchange>,
}

/// Why a body cannot be waited for.
pub(super) enum NotHeld {
    TooLarge,
    Failed(ParseError),
}

impl HeldBody {
    /// Puts a body behind filters.
    pub(super) fn of<'a>(body: &'a mut DownstreamBody, exchange: &Rc<Exchange>) -> &'a mut Self {
        if !matches!(body, DownstreamBody::Held(_)) {
            let source = std::mem::replace(body, DownstreamBody::Empty);
            let held = Self {
                source,
                stages: Stages::default(),
                changed: false,
                exchange: exchange.clone(),
            };
            *body = DownstreamBody::Held(Box::new(held));
        }
        match body {
            DownstreamBody::Held(held) => held,
            _ => unreachable!("it has just become one"),
        }
    }

    /// Adds a change.
    pub(super) fn push(&mut self, stage: Box<dyn Stage>) {
        self.changed = true;
        self.stages.push(stage);
    }

    /// Adds a step that leaves all bytes as they are.
    pub(super) fn watch(&mut self, stage: Box<dyn Stage>) {
        self.stages.push(stage);
    }

    /// Tells nobody how long the body is.
    pub(super) fn hide_length(&mut self) {
        self.changed = true;
    }

    /// Waits for all of the body, at most `limit` bytes. Returns their number.
    pub(super) async fn wait(&mut self, limit: usize) -> Result<usize, NotHeld> {
        std::future::poll_fn(|cx| {
            while !self.stages.all_came() {
                match ready!(self.poll_source(cx)) {
                    Ok(()) if self.stages.ready_bytes() > limit => {
                        return Poll::Ready(Err(NotHeld::TooLarge));
                    }
                    Ok(()) => {}
                    Err(error) => return Poll::Ready(Err(NotHeld::Failed(error))),
                }
            }
            Poll::Ready(Ok(self.stages.ready_bytes()))
        })
        .await
    }

    /// Looks at what has come already, so that what is wrong with it is known
    /// before anybody is asked for an answer.
    pub(super) fn look_ahead(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        if !self.stages.all_came() && self.stages.ready_bytes() == 0 {
            // What failed is told to the exchange.
            let _ = self.poll_source(&mut cx);
        }
    }

    /// Takes a frame of the client's.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ParseError>> {
        let frame = match ready!(self.source.poll_frame(cx)) {
            Some(Ok(frame)) => Some(frame),
            Some(Err(error)) => return Poll::Ready(Err(error)),
            None => None,
        };
        if let Some(data) = frame.as_ref().and_then(Frame::data_ref) {
            self.exchange.count_received(data.len());
        }
        let last = frame.as_ref().is_none_or(Frame::is_trailers) || self.source.is_end_stream();
        let mut taken = Ok(());
        if let Some(frame) = frame {
            taken = self.stages.take(Some(frame));
        }
        if last {
            self.exchange.request_received();
            if taken.is_ok() && !self.stages.all_came() {
                taken = self.stages.take(None);
            }
        }
        Poll::Ready(taken.map_err(|error| {
            self.exchange.refuse(refusal(error));
            ParseError::Truncated
        }))
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ParseError>>> {
        loop {
            if let Some(frame) = ready!(self.stages.poll_pop(cx)) {
                if let Some(data) = frame.data_ref() {
                    // It is counted again by whoever sends it on.
                    self.exchange.uncount_received(data.len());
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            if self.stages.all_came() {
                return Poll::Ready(None);
            }
            if self.exchange.refused() {
                return Poll::Ready(Some(Err(ParseError::Truncated)));
            }
            if let Err(error) = ready!(self.poll_source(cx)) {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.stages.done()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        if self.stages.all_came() && !self.changed {
            SizeHint::with_exact(self.stages.ready_bytes() as u64)
        } else if self.changed || self.stages.ready_bytes() > 0 {
            SizeHint::default()
        } else {
            self.source.size_hint()
        }
    }
}

fn refusal(error: StageError) -> ProxyError {
    let reply = LocalReply {
        status: StatusCode::BAD_REQUEST,
        flags: ResponseFlags::NONE,
        details: error.details.into(),
        body: error.body.into(),
        grpc: None,
    };
    ProxyError::Filter(Box::new(FilterReply { reply, headers: HeaderMap::new(), unread: true }))
}
