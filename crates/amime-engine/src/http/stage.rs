//! Filters' changes of bodies: steps that data passes on its way, in either
//! direction.
//!
//! Owns the passing on. What a step does is its filter's; bodies without steps
//! know nothing of all this.
//!
//! Invariant: a body is asked for more only when all that came of the last
//! part has been handed on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::pace::Paced;
use amime_rules::bandwidth::Pace;

/// A change of a body.
pub(crate) trait Stage {
    /// Takes a part; what comes of it goes to `out`.
    fn data(&mut self, data: Bytes, out: &mut Output) -> Result<(), StageError>;

    /// The body has ended. What `out` has no trailers of, has none.
    fn end(&mut self, trailers: Option<HeaderMap>, out: &mut Output) -> Result<(), StageError> {
        out.trailers = trailers;
        Ok(())
    }

    /// How fast the body may pass, if that is limited.
    fn pace(&self) -> Option<Arc<Pace>> {
        None
    }
}

/// Why a body cannot be changed as it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{details}")]
pub(crate) struct StageError {
    /// Envoy's detail.
    pub(crate) details: &'static str,
    /// Text for a client whose request it is.
    pub(crate) body: &'static str,
}

/// What comes of a part of a body.
#[derive(Default)]
pub(crate) struct Output {
    data: VecDeque<Bytes>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Output {
    pub(crate) fn push(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.data.push_back(data);
        }
    }
}

/// The steps of one body, in order, with what has come out of them.
#[derive(Default)]
pub(crate) struct Stages {
    stages: Vec<Box<dyn Stage>>,
    ready: Output,
    /// What the last of them has to wait for.
    paces: Vec<Paced>,
    /// The body has ended.
    ended: bool,
}

impl Stages {
    pub(crate) fn new(stages: Vec<Box<dyn Stage>>) -> Self {
        let mut all = Self::default();
        stages.into_iter().for_each(|stage| all.push(stage));
        all
    }

    /// Adds a step behind the others. Only before the first part.
    pub(crate) fn push(&mut self, stage: Box<dyn Stage>) {
        self.paces.extend(stage.pace().map(Paced::new));
        self.stages.push(stage);
    }

    /// Takes a frame of the body, `None` for its end.
    pub(crate) fn take(&mut self, frame: Option<Frame<Bytes>>) -> Result<(), StageError> {
        let trailers = match frame.map(Frame::into_data) {
            Some(Ok(data)) => return feed(&mut self.stages, data, &mut self.ready),
            Some(Err(frame)) => frame.into_trailers().ok(),
            None => None,
        };
        self.ended = true;
        finish(&mut self.stages, trailers, &mut self.ready)
    }

    /// What is ready to go on, once it may.
    pub(crate) fn poll_pop(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        let Some(first) = self.ready.data.front_mut().filter(|_| !self.paces.is_empty()) else {
            return Poll::Ready(self.pop());
        };
        let mut allowed = first.len();
        for pace in &mut self.paces {
            allowed = ready!(pace.poll(cx, allowed));
        }
        self.paces.iter_mut().for_each(|pace| pace.spend(allowed));
        if allowed == first.len() {
            return Poll::Ready(self.pop());
        }
        Poll::Ready(Some(Frame::data(first.split_to(allowed))))
    }

    /// What is ready to go on.
    pub(crate) fn pop(&mut self) -> Option<Frame<Bytes>> {
        match self.ready.data.pop_front() {
            Some(data) => Some(Frame::data(data)),
            None if self.ended => self.ready.trailers.take().map(Frame::trailers),
            None => None,
        }
    }

    /// Bytes that are ready to go on.
    pub(crate) fn ready_bytes(&self) -> usize {
        self.ready.data.iter().map(Bytes::len).sum()
    }

    /// True once all of the body has gone on.
    pub(crate) fn done(&self) -> bool {
        self.all_came() && self.ready.data.is_empty() && self.ready.trailers.is_none()
    }

    /// True once the body has ended, wherever its parts are.
    pub(crate) fn all_came(&self) -> bool {
        self.ended
    }

    /// The next frame, asking `source` for more as long as there is none.
    pub(crate) fn poll<E>(
        &mut self,
        cx: &mut Context<'_>,
        mut source: impl FnMut(&mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, E>>>,
    ) -> Poll<Option<Result<Frame<Bytes>, StagedError<E>>>> {
        loop {
            if let Some(frame) = ready!(self.poll_pop(cx)) {
                return Poll::Ready(Some(Ok(frame)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let frame = match ready!(source(cx)) {
                Some(Ok(frame)) => Some(frame),
                Some(Err(error)) => return Poll::Ready(Some(Err(StagedError::Source(error)))),
                None => None,
            };
            if let Err(error) = self.take(frame) {
                return Poll::Ready(Some(Err(StagedError::Stage(error))));
            }
        }
    }

    /// All that comes of a body that is there whole.
    pub(crate) fn whole(&mut self, data: Bytes) -> Result<Bytes, StageError> {
        self.take(Some(Frame::data(data)))?;
        self.take(None)?;
        let mut all = Vec::with_capacity(self.ready_bytes());
        self.ready.data.drain(..).for_each(|part| all.extend_from_slice(&part));
        Ok(all.into())
    }
}

/// Why there is no more of a body with steps.
#[derive(Debug)]
pub(crate) enum StagedError<E> {
    Source(E),
    Stage(StageError),
}

fn feed(stages: &mut [Box<dyn Stage>], data: Bytes, out: &mut Output) -> Result<(), StageError> {
    let Some((first, rest)) = stages.split_first_mut() else {
        out.push(data);
        return Ok(());
    };
    let mut between = Output::default();
    first.data(data, &mut between)?;
    between.data.into_iter().try_for_each(|data| feed(rest, data, out))
}

fn finish(
    stages: &mut [Box<dyn Stage>],
    trailers: Option<HeaderMap>,
    out: &mut Output,
) -> Result<(), StageError> {
    let Some((first, rest)) = stages.split_first_mut() else {
        out.trailers = trailers;
        return Ok(());
    };
    let mut between = Output::default();
    first.end(trailers, &mut between)?;
    between.data.into_iter().try_for_each(|data| feed(rest, data, out))?;
    finish(rest, between.trailers, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says each part twice and at the end how often.
    #[derive(Default)]
    struct Twice(usize);

    impl Stage for Twice {
        fn data(&mut self, data: Bytes, out: &mut Output) -> Result<(), StageError> {
            self.0 += 1;
            out.push(data.clone());
            out.push(data);
            Ok(())
        }

        fn end(&mut self, _: Option<HeaderMap>, out: &mut Output) -> Result<(), StageError> {
            out.push(self.0.to_string().into());
            Ok(())
        }
    }

    #[test]
    fn what_one_step_makes_is_the_next_ones_to_change() {
        let stages = || -> Vec<Box<dyn Stage>> {
            vec![Box::new(Twice::default()), Box::new(Twice::default())]
        };
        let whole = Stages::new(stages()).whole("a".into()).expect("never fails");
        // Twice twice, then "1" of the first one twice, then 3 parts seen.
        assert_eq!(whole, "aaaa113");
    }

    #[test]
    fn a_body_is_done_once_its_last_part_has_gone_on() {
        let mut stages = Stages::new(vec![Box::new(Twice::default())]);
        stages.take(Some(Frame::data("a".into()))).expect("never fails");
        stages.take(None).expect("never fails");
        assert!(stages.all_came() && !stages.done());
        while stages.pop().is_some() {}
        assert!(stages.done());
    }
}
