//! A client's HTTP/2 connection as its codec reads and writes it.
//!
//! Owns the end of connections whose clients send too much that costs them
//! nothing ([`super::frames`]), stop in the middle of a head, or do not take
//! what they asked for; and telling streams when no more can be written now,
//! so that what a client does not read waits upstream.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use amime_rules::h2::FrameLimits;
use amime_telemetry::Http2Stats;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::{Flood, Frames};
use super::stall::StallTimer;

/// What a connection and its streams tell each other.
#[derive(Default)]
pub(crate) struct Fate {
    flood: Cell<Option<Flood>>,
    gone: Cell<bool>,
    stalled: Cell<bool>,
    jammed: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Fate {
    /// Ends the connection at its next move.
    pub(super) fn end(&self, why: Flood) {
        self.flood.set(Some(why));
    }

    /// Why the connection was ended by us.
    pub(super) fn flood(&self) -> Option<Flood> {
        self.flood.get()
    }

    /// True once the client has closed it or it broke.
    pub(super) fn gone(&self) -> bool {
        self.gone.get()
    }

    /// True once the client has read nothing for too long.
    pub(super) fn stalled(&self) -> bool {
        self.stalled.get()
    }

    /// Ready unless what was written before still waits for the client.
    pub(super) fn poll_free(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.jammed.get() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn jam(&self) {
        self.jammed.set(true);
    }

    fn free(&self) {
        if self.jammed.replace(false) {
            self.waiting.take().into_iter().for_each(Waker::wake);
        }
    }
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a head that it has begun.
    pub(super) head: Option<Duration>,
    /// To read anything of what waits.
    pub(super) write: Option<Duration>,
}

/// A stream that is watched.
pub(super) struct Watched<T> {
    io: T,
    frames: Frames,
    fate: Rc<Fate>,
    stats: Arc<Http2Stats>,
    patience: Patience,
    head: StallTimer,
    write: StallTimer,
    moves: u64,
    /// Turns of other tasks that are left to a connection that is ended.
    turns: u8,
}

/// Turns of other tasks in which a codec hands out the requests that it read
/// and these are begun.
const TURNS: u8 = 3;

impl<T> Watched<T> {
    pub(super) fn new(
        io: T,
        limits: FrameLimits,
        (fate, stats): (Rc<Fate>, Arc<Http2Stats>),
        patience: Patience,
    ) -> Self {
        let frames = Frames::new(limits);
        let (head, write) = Default::default();
        Self { io, frames, fate, stats, patience, head, write, moves: 0, turns: TURNS }
    }

    fn count_read(&mut self, bytes: &[u8]) {
        if let Err(flood) = self.frames.read(bytes) {
            flood.count(&self.stats);
            self.fate.end(flood);
        }
        self.stats.rx_reset.add(self.frames.take_resets());
    }

    /// Ends the connection once the requests that came before know of it.
    fn poll_flood(&mut self, cx: &Context<'_>, flood: Flood) -> Poll<io::Result<()>> {
        match self.turns.checked_sub(1) {
            Some(turns) => {
                self.turns = turns;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => Poll::Ready(Err(io::Error::other(flood))),
        }
    }

    /// What becomes of a write that the client's side has not taken.
    fn blocked<R>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        self.fate.jam();
        let Some(limit) = self.patience.write else { return Poll::Pending };
        if self.write.poll(cx, self.moves, limit).is_pending() {
            return Poll::Pending;
        }
        self.stats.tx_flush_timeout.inc();
        self.fate.stalled.set(true);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn wrote(&mut self) {
        self.moves = self.moves.wrapping_add(1);
        self.fate.free();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(flood) = this.fate.flood() {
            return this.poll_flood(cx, flood);
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buffer) {
            Poll::Pending => {
                let limit = this.patience.head.filter(|_| this.frames.in_block());
                let Some(limit) = limit else { return Poll::Pending };
                // One head has so long, however many pieces it comes in.
                match this.head.poll(cx, 0, limit) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                }
            }
            Poll::Ready(Err(error)) => {
                this.fate.gone.set(true);
                Poll::Ready(Err(error))
            }
            Poll::Ready(Ok(())) => {
                let read = &buffer.filled()[before..];
                this.fate.gone.set(read.is_empty());
                this.count_read(read);
                if !this.frames.in_block() {
                    this.head = StallTimer::default();
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        match Pin::new(&mut this.io).poll_write(cx, data) {
            Poll::Pending => this.blocked(cx),
            Poll::Ready(written) => {
                this.wrote();
                if let Ok(count) = &written {
                    this.frames.written(&data[..*count]);
                }
                Poll::Ready(written)
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        match Pin::new(&mut this.io).poll_write_vectored(cx, parts) {
            Poll::Pending => this.blocked(cx),
            Poll::Ready(written) => {
                this.wrote();
                let mut left = written.as_ref().map_or(0, |count| *count);
                for part in parts {
                    let count = part.len().min(left);
                    this.frames.written(&part[..count]);
                    left -= count;
                }
                Poll::Ready(written)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match Pin::new(&mut this.io).poll_flush(cx) {
            // TLS may hold what a write has taken.
            Poll::Pending => this.blocked(cx),
            Poll::Ready(flushed) => {
                this.fate.free();
                Poll::Ready(flushed)
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
