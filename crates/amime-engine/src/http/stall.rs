//! Responses that their clients do not take.
//!
//! Owns noticing that nothing moves and ending what waits: a codec does not
//! ask a body for more as long as it cannot write, so the body's own limits
//! cannot tell. Those hold while the upstream is waited for.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Notices that nothing has moved for a while.
///
/// Movement costs nothing: it is looked for only when the time is over, so the
/// limit passes at the latest twice.
#[derive(Default)]
pub(super) struct StallTimer(Option<Armed>);

struct Armed {
    sleep: Pin<Box<Sleep>>,
    /// The number of moves when it was armed.
    moves: u64,
}

impl StallTimer {
    /// Ready once `moves` has been the same for `limit`.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, moves: u64, limit: Duration) -> Poll<()> {
        let armed = self
            .0
            .get_or_insert_with(|| Armed { sleep: Box::pin(tokio::time::sleep(limit)), moves });
        loop {
            ready!(armed.sleep.as_mut().poll(cx));
            if armed.moves == moves {
                return Poll::Ready(());
            }
            armed.moves = moves;
            armed.sleep.as_mut().reset(Instant::now() + limit);
        }
    }
}

/// How a response gets on, as its stream's task and its body share it.
#[derive(Default)]
pub(crate) struct Progress {
    /// Parts of the body that were taken.
    moves: Cell<u64>,
    /// It is the client that is waited for.
    offered: Cell<bool>,
    limit: Cell<Option<Duration>>,
    stalled: Cell<bool>,
}

impl Progress {
    /// The body begins, and may wait so long for its client.
    pub(super) fn begin(&self, limit: Option<Duration>) {
        self.limit.set(limit);
    }

    /// A part of the body was taken.
    pub(super) fn moved(&self) {
        self.moves.set(self.moves.get().wrapping_add(1));
        self.offered.set(true);
    }

    /// The body has nothing to offer.
    pub(super) fn empty(&self) {
        self.offered.set(false);
    }

    /// True if the stream was ended because its client took nothing.
    pub(super) fn stalled(&self) -> bool {
        self.stalled.get()
    }
}

/// Runs the streams of a connection on the worker's own thread.
#[derive(Clone, Default)]
pub(super) struct StreamExecutor(Rc<RefCell<Option<Rc<Progress>>>>);

impl StreamExecutor {
    /// The progress of the stream that is run next: a codec calls its service,
    /// then runs what came of it.
    pub(super) fn next(&self) -> Rc<Progress> {
        let progress = Rc::<Progress>::default();
        self.0.replace(Some(progress.clone()));
        progress
    }
}

impl<F: Future + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, future: F) {
        match self.0.take() {
            Some(progress) => {
                tokio::task::spawn_local(run(future, progress));
            }
            // What serves a tunnel, which has limits of its own.
            None => {
                tokio::task::spawn_local(future);
            }
        }
    }
}

/// Runs a stream to its end, or until its client has taken nothing for too
/// long; a stream that is dropped is reset.
async fn run<F: Future>(future: F, progress: Rc<Progress>) {
    let mut future = std::pin::pin!(future);
    let mut timer = StallTimer::default();
    std::future::poll_fn(|cx| {
        if future.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let limit = progress.limit.get().filter(|_| progress.offered.get());
        let Some(limit) = limit else { return Poll::Pending };
        ready!(timer.poll(cx, progress.moves.get(), limit));
        progress.stalled.set(true);
        Poll::Ready(())
    })
    .await;
}
