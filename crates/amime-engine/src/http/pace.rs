//! Bodies that pass no faster than they may.
//!
//! Owns the waiting; how much may pass is what the bucket says, which other
//! bodies may share.
//!
//! Invariant: what waits is no more than one part of a body, since its source
//! is asked for the next part only when it has gone on.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::time::Sleep;

use super::body::DownstreamBody;
use super::exchange::Exchange;
use super::fault::ActiveFault;
use super::filters::{OnResponse, Payload};
use super::held::HeldBody;
use super::stage::{Output, Stage, StageError};
use amime_rules::bandwidth::{Bandwidth, Pace};
use amime_rules::token_bucket::now;

/// The wait for leave to pass.
pub(super) struct Paced {
    pace: Arc<Pace>,
    /// Bytes that may pass already.
    granted: usize,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    pub(super) fn new(pace: Arc<Pace>) -> Self {
        Self { pace, granted: 0, wait: None }
    }

    /// How many of `wanted` bytes may pass, at least one.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        while self.granted == 0 {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(cx));
                self.wait = None;
            }
            let some = u32::try_from(wanted).unwrap_or(u32::MAX);
            self.granted = self.pace.bucket.take_some(some, now()) as usize;
            if self.granted == 0 {
                self.wait = Some(Box::pin(tokio::time::sleep(self.pace.interval)));
            }
        }
        Poll::Ready(self.granted.min(wanted))
    }

    /// Bytes that have passed.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.granted = self.granted.saturating_sub(bytes);
    }
}

/// Slows a body down, and leaves it as it is.
struct Slowed {
    pace: Arc<Pace>,
    /// The fault that it is, while it lasts.
    _fault: Option<ActiveFault>,
}

impl Stage for Slowed {
    fn data(&mut self, data: Bytes, out: &mut Output) -> Result<(), StageError> {
        out.push(data);
        Ok(())
    }

    fn pace(&self) -> Option<Arc<Pace>> {
        Some(self.pace.clone())
    }
}

/// Limits a request's body, and has its response's limited.
pub(super) fn begin(exchange: &Rc<Exchange>, body: &mut DownstreamBody, limit: &Bandwidth) {
    if let Some(pace) = limit.request.clone().filter(|_| !body.is_end_stream()) {
        HeldBody::of(body, exchange).watch(Box::new(Slowed { pace, _fault: None }));
    }
    if let Some(pace) = limit.response.clone() {
        exchange.on_response.borrow_mut().push(OnResponse::Slow(pace, None));
    }
}

/// Limits a response's body.
pub(super) fn slow(pace: Arc<Pace>, fault: Option<ActiveFault>, payload: &mut Payload<'_>) {
    // The proxy's own answers are short.
    if let Payload::Stream(stages) = payload {
        stages.push(Box::new(Slowed { pace, _fault: fault }));
    }
}
