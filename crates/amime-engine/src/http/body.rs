//! Message bodies: closed sets of what flows up and down.
//!
//! Bodies stream; nothing is buffered except what a retry may need, up to the
//! route's limit. Backpressure is the codec's: a frame is asked for when the
//! other side can take it.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use amime_http1::ParseError;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::attempt::Attempt;
use super::exchange::{End, Exchange, ExchangeGuard};
use super::h1;
#[cfg(feature = "http3")]
use super::h3;
use super::held::HeldBody;
use super::pipe::Pipe;
use super::replay::ReplayBody;
use super::stage::{Stage, StageError, StagedError, Stages};
use crate::upstream::h1::H1Body;
use crate::upstream::pool::UpstreamError;

/// Error of a body, as codecs want it.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// What a client sends after a request's head.
pub(crate) enum DownstreamBody {
    Empty,
    H1(h1::ClientBody),
    H2(Incoming),
    /// Behind filters.
    Held(Box<HeldBody>),
    #[cfg(feature = "http3")]
    H3(Box<h3::ClientBody>),
}

impl DownstreamBody {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ParseError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::H1(body) => body.poll_frame(cx),
            Self::H2(body) => match ready!(Pin::new(body).poll_frame(cx)) {
                // The stream's task drops the request and this body.
                Some(Err(error)) if given_up(&error) => Poll::Pending,
                frame => Poll::Ready(frame.map(|it| it.map_err(|_| ParseError::Truncated))),
            },
            Self::Held(body) => body.poll_frame(cx),
            #[cfg(feature = "http3")]
            Self::H3(body) => body.poll_frame(cx),
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::H1(body) => body.ended(),
            Self::H2(body) => body.is_end_stream(),
            Self::Held(body) => body.is_end_stream(),
            #[cfg(feature = "http3")]
            Self::H3(body) => body.ended(),
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::H1(body) => body.left().map(SizeHint::with_exact).unwrap_or_default(),
            Self::H2(body) => body.size_hint(),
            Self::Held(body) => body.size_hint(),
            #[cfg(feature = "http3")]
            Self::H3(body) => body.size_hint(),
        }
    }
}

/// True if the client has gone or wants no answer any more.
fn given_up(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let error = source.and_then(|source| source.downcast_ref::<h2::Error>());
    error.is_some_and(|error| error.is_io() || error.is_remote())
}

/// What an upstream sends after a response's head.
pub(crate) enum UpstreamBody {
    H1(H1Body),
    H2(Incoming),
}

impl UpstreamBody {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        match self {
            Self::H1(body) => {
                body.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(UpstreamError::H1)))
            }
            Self::H2(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(UpstreamError::H2))),
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        match self {
            Self::H1(body) => body.ended(),
            Self::H2(body) => body.is_end_stream(),
        }
    }

    /// Bytes to come, as far as that is known.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self {
            Self::H1(body) => body.left().map(SizeHint::with_exact).unwrap_or_default(),
            Self::H2(body) => body.size_hint(),
        }
    }

    /// Reads the rest and drops it; false if it did not come.
    pub(crate) async fn drain(&mut self) -> bool {
        loop {
            match std::future::poll_fn(|cx| self.poll_frame(cx)).await {
                None => return true,
                Some(Ok(_)) => {}
                Some(Err(_)) => return false,
            }
        }
    }
}

/// A request's body on its way up.
pub(crate) enum RequestBody {
    Empty,
    Stream(DownstreamBody, Rc<Exchange>),
    Replay(ReplayBody),
    /// Bytes of a tunnel.
    Pipe(Pipe),
    /// One message of the proxy's own.
    Bytes(Option<Bytes>),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Stream(incoming, exchange) => {
                let frame = ready!(incoming.poll_frame(cx));
                match &frame {
                    Some(Ok(frame)) => {
                        exchange.count_received(frame.data_ref().map_or(0, Bytes::len));
                    }
                    Some(Err(error)) => exchange.body_failed.set(Some(*error)),
                    None => {}
                }
                // Codecs do not ask again once the end is known.
                let last = frame.as_ref().is_none_or(|frame| {
                    frame.as_ref().is_ok_and(|it| it.is_trailers() || incoming.is_end_stream())
                });
                if last {
                    exchange.request_received();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
            }
            Self::Replay(replay) => replay.poll(cx),
            Self::Pipe(pipe) => pipe.poll(cx),
            Self::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(incoming, _) => incoming.is_end_stream(),
            Self::Replay(replay) => replay.ended(),
            Self::Pipe(pipe) => pipe.ended(),
            Self::Bytes(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // Else hyper would announce a length that the client has not.
            Self::Empty => SizeHint::default(),
            Self::Stream(incoming, _) => incoming.size_hint(),
            Self::Replay(replay) => replay.size_hint(),
            Self::Pipe(_) => SizeHint::default(),
            Self::Bytes(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}

/// A response's body on its way down.
pub(crate) struct ResponseBody {
    source: Source,
    /// Ends the exchange when dropped; `None` for bodies that nobody counts.
    guard: Option<ExchangeGuard>,
    failed: Option<Failed>,
}

/// A failure that is told once what came before has been sent.
struct Failed {
    why: BodyFailure,
    turns: u8,
}

/// Turns of other tasks in which a codec sends what it has.
const TURNS: u8 = 2;

enum Source {
    Bytes(Option<Bytes>),
    Upstream(Box<Answer>),
    Staged(Box<(Answer, Stages)>),
    Pipe(Pipe),
}

/// An upstream's body with what ends it.
struct Answer {
    incoming: UpstreamBody,
    attempt: Option<Attempt>,
    limits: BodyLimits,
    timer: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

/// Until when a response's body must have come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BodyLimits {
    /// From the request's end to the response's.
    pub(crate) timeout: Option<Duration>,
    /// Whatever the request does.
    pub(crate) deadline: Option<Instant>,
    pub(crate) idle: Option<Duration>,
}

impl ResponseBody {
    pub(crate) fn bytes(bytes: Bytes, guard: Option<ExchangeGuard>) -> Self {
        let source = Source::Bytes(Some(bytes).filter(|bytes| !bytes.is_empty()));
        Self { source, guard, failed: None }
    }

    /// A tunnel's bytes; the tunnel itself tells of its end.
    pub(crate) fn pipe(pipe: Pipe) -> Self {
        Self { source: Source::Pipe(pipe), guard: None, failed: None }
    }

    pub(crate) fn upstream(
        incoming: UpstreamBody,
        attempt: Attempt,
        (limits, stages): (BodyLimits, Vec<Box<dyn Stage>>),
        guard: ExchangeGuard,
    ) -> Self {
        let ended = incoming.is_end_stream();
        let mut body = Answer { incoming, attempt: Some(attempt), limits, timer: None, ended };
        if ended {
            body.release();
        }
        let source = match stages.is_empty() {
            true => Source::Upstream(Box::new(body)),
            false => Source::Staged(Box::new((body, Stages::new(stages)))),
        };
        if let Some(progress) = guard.exchange().progress() {
            progress.begin(limits.idle);
        }
        Self { source, guard: Some(guard), failed: None }
    }
}

impl Answer {
    fn release(&mut self) {
        if let Some(attempt) = self.attempt.take() {
            attempt.release();
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        completed: impl Fn() -> Option<std::time::Instant>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        let frame = match self.incoming.poll_frame(cx) {
            Poll::Pending => {
                return self.poll_limits(cx, completed()).map(|failure| Some(Err(failure)));
            }
            Poll::Ready(frame) => frame,
        };
        if self.limits.idle.is_some() {
            self.timer = None;
        }
        match frame {
            None => {
                self.ended = true;
                self.release();
                Poll::Ready(None)
            }
            Some(Err(error)) => Poll::Ready(Some(Err(BodyFailure::Upstream(error)))),
            Some(Ok(frame)) => {
                // Known now, not at the next poll, which may never come.
                if self.incoming.is_end_stream() {
                    self.ended = true;
                    self.release();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    /// Arms a timer only once there is something to wait for.
    fn poll_limits(
        &mut self,
        cx: &mut Context<'_>,
        completed: Option<std::time::Instant>,
    ) -> Poll<BodyFailure> {
        let BodyLimits { timeout, deadline, idle } = self.limits;
        let by_timeout =
            timeout.zip(completed).map(|(timeout, at)| Instant::from_std(at + timeout));
        let life = deadline;
        let deadline = match (deadline, by_timeout) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let idle_at = || idle.map(|idle| Instant::now() + idle);
        if self.timer.is_none() {
            let until = match (deadline, idle_at()) {
                (Some(deadline), Some(idle)) => deadline.min(idle),
                (Some(until), None) | (None, Some(until)) => until,
                (None, None) => return Poll::Pending,
            };
            self.timer = Some(Box::pin(tokio::time::sleep_until(until)));
        }
        let Some(timer) = self.timer.as_mut() else { return Poll::Pending };
        let fired_at = timer.deadline();
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(if life.is_some_and(|life| life <= fired_at) {
            BodyFailure::Duration
        } else if deadline.is_some_and(|deadline| deadline <= fired_at) {
            BodyFailure::Deadline
        } else {
            BodyFailure::Idle
        })
    }
}

enum BodyFailure {
    Upstream(UpstreamError),
    /// A filter cannot make of it what it has to.
    Stage(StageError),
    Deadline,
    Duration,
    Idle,
}

impl BodyFailure {
    fn told(self) -> (End, BodyError) {
        match self {
            Self::Upstream(error) if error.is_malformed() => (End::UpstreamProtocol, error.into()),
            Self::Upstream(error) => (End::UpstreamReset, error.into()),
            Self::Stage(error) => (End::UpstreamProtocol, error.into()),
            Self::Deadline => (End::Deadline, "response timeout".into()),
            Self::Duration => (End::Duration, "stream duration timeout".into()),
            Self::Idle => (End::Idle, "stream idle timeout".into()),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(failed) = this.failed.take() {
            return Poll::Ready(Some(Err(ready!(this.tell(failed, cx)))));
        }
        if let Some(guard) = &this.guard {
            // What the client does not read stays where it is.
            ready!(guard.exchange().connection.fate.poll_free(cx));
        }
        let polled = this.poll_source(cx);
        if let Some(progress) = this.guard.as_ref().and_then(|it| it.exchange().progress()) {
            match &polled {
                Poll::Ready(_) => progress.moved(),
                Poll::Pending => progress.empty(),
            }
        }
        let frame = match ready!(polled) {
            Polled::Pipe(frame) => return Poll::Ready(frame),
            Polled::Frame(frame) => frame,
        };
        let Some(guard) = &mut this.guard else {
            return Poll::Ready(frame.map(|frame| frame.map_err(|_| "no exchange".into())));
        };
        match frame {
            Some(Ok(frame)) => {
                match frame.data_ref() {
                    Some(data) => guard.exchange().count_sent(data.len()),
                    None => {
                        if let Some(trailers) = frame.trailers_ref() {
                            guard.exchange().response_trailers(trailers);
                        }
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(why)) => {
                let http2 = guard.exchange().head.borrow().version >= http::Version::HTTP_2;
                // Resetting a stream of HTTP/2 drops what waits on it.
                let turns = if http2 { TURNS } else { 0 };
                let error = ready!(this.tell(Failed { why, turns }, cx));
                Poll::Ready(Some(Err(error)))
            }
            None => {
                guard.finish(End::Complete);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Bytes(bytes) => bytes.is_none(),
            Source::Upstream(body) => body.ended,
            Source::Staged(body) => body.1.done(),
            Source::Pipe(pipe) => pipe.ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Bytes(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Source::Upstream(body) => body.incoming.size_hint(),
            Source::Staged(_) | Source::Pipe(_) => SizeHint::default(),
        }
    }
}

/// What came of asking a source.
enum Polled {
    Pipe(Option<Result<Frame<Bytes>, BodyError>>),
    Frame(Option<Result<Frame<Bytes>, BodyFailure>>),
}

impl ResponseBody {
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Polled> {
        let guard = self.guard.as_ref();
        let completed = || guard?.exchange().completed_at();
        Poll::Ready(Polled::Frame(match &mut self.source {
            Source::Pipe(pipe) => return pipe.poll(cx).map(Polled::Pipe),
            Source::Bytes(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Upstream(body) => ready!(body.poll(cx, completed)),
            Source::Staged(body) => {
                let (answer, stages) = &mut **body;
                let source = |cx: &mut Context<'_>| answer.poll(cx, completed);
                let frame = ready!(stages.poll(cx, source));
                frame.map(|frame| {
                    frame.map_err(|error| match error {
                        StagedError::Source(failure) => failure,
                        StagedError::Stage(error) => BodyFailure::Stage(error),
                    })
                })
            }
        }))
    }

    /// How long the body may wait for its client to take a part of it.
    pub(super) fn patience(&self) -> Option<Duration> {
        match &self.source {
            Source::Upstream(body) => body.limits.idle,
            Source::Staged(body) => body.0.limits.idle,
            Source::Bytes(_) => {
                let config = &self.guard.as_ref()?.exchange().connection.config;
                config.timeouts.stream_idle
            }
            // A tunnel has limits of its own.
            Source::Pipe(_) => None,
        }
    }

    /// Ends the exchange of a client that takes nothing.
    pub(super) fn stalled(&mut self) {
        if let Some(guard) = &mut self.guard {
            guard.finish(End::Idle);
        }
    }

    /// Ends the exchange for a failure, once its turn has come.
    fn tell(&mut self, failed: Failed, cx: &mut Context<'_>) -> Poll<BodyError> {
        let Failed { why, turns } = failed;
        if let Some(turns) = turns.checked_sub(1) {
            self.failed = Some(Failed { why, turns });
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let (end, error) = why.told();
        if let Some(guard) = &mut self.guard {
            guard.finish(end);
        }
        Poll::Ready(error)
    }
}

impl Drop for ResponseBody {
    /// A codec that has written all of a body drops it without a last poll;
    /// one whose client has gone drops it half-way.
    fn drop(&mut self) {
        if let Some(guard) = &mut self.guard {
            let complete = match &self.source {
                Source::Bytes(bytes) => bytes.is_none() || guard.exchange().bodiless(),
                Source::Upstream(body) => body.ended || guard.exchange().bodiless(),
                Source::Staged(body) => body.1.done() || guard.exchange().bodiless(),
                Source::Pipe(pipe) => pipe.ended(),
            };
            guard.finish(if complete { End::Complete } else { End::DownstreamGone });
        }
    }
}
