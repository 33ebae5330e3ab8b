//! Bytes both ways between two streams, with half-close.
//!
//! Each direction reads only when all it read before has been written, so a
//! slow receiver stops its sender; memory is one buffer a direction.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// What was copied and how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Bytes from downstream to upstream.
    pub(crate) up: u64,
    /// Bytes from upstream to downstream.
    pub(crate) down: u64,
    pub(crate) end: CopyEnd,
    /// Downstream closed before upstream did.
    pub(crate) by_client: bool,
}

/// Why copying stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CopyEnd {
    /// Both sides closed.
    #[default]
    Closed,
    DownstreamFailed,
    UpstreamFailed,
    Idle,
    /// It lived as long as it may.
    Expired,
}

const BUFFER: usize = 16 * 1024;

/// Bytes copied so far, for those who look on.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) up: Cell<u64>,
    pub(crate) down: Cell<u64>,
}

/// Copies until both sides have closed, one fails, or nothing moves for `idle`.
pub(crate) async fn copy_both<D, U>(downstream: D, upstream: U, idle: Option<Duration>) -> Copied
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    copy_watched(downstream, upstream, idle, &Progress::default()).await
}

/// As [`copy_both`], telling how far it has come.
pub(crate) async fn copy_watched<D, U>(
    downstream: D,
    upstream: U,
    idle: Option<Duration>,
    progress: &Progress,
) -> Copied
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut copy = CopyBoth {
        downstream,
        upstream,
        up: Direction::default(),
        down: Direction::default(),
        by_client: false,
    };
    let mut timer = idle.map(|idle| Box::pin(tokio::time::sleep(idle)));
    let end = std::future::poll_fn(|cx| {
        let before = copy.moved();
        let polled = copy.poll(cx);
        progress.up.set(copy.up.written);
        progress.down.set(copy.down.written);
        if let Poll::Ready(end) = polled {
            return Poll::Ready(end);
        }
        match (&mut timer, idle) {
            (Some(timer), Some(idle)) => poll_idle(timer, idle, copy.moved() != before, cx),
            _ => Poll::Pending,
        }
    })
    .await;
    let (up, down) = (copy.up.written, copy.down.written);
    Copied { up, down, end, by_client: copy.by_client }
}

fn poll_idle(
    timer: &mut Pin<Box<Sleep>>,
    idle: Duration,
    moved: bool,
    cx: &mut Context<'_>,
) -> Poll<CopyEnd> {
    if moved {
        timer.as_mut().reset(Instant::now() + idle);
    }
    ready!(timer.as_mut().poll(cx));
    Poll::Ready(CopyEnd::Idle)
}

struct CopyBoth<D, U> {
    downstream: D,
    upstream: U,
    up: Direction,
    down: Direction,
    by_client: bool,
}

impl<D, U> CopyBoth<D, U>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    fn moved(&self) -> u64 {
        self.up.read + self.down.read + self.up.written + self.down.written
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CopyEnd> {
        let up = self.up.poll(cx, &mut self.downstream, &mut self.upstream);
        if let Poll::Ready(Err(failed)) = up {
            return Poll::Ready(match failed {
                Failed::Reader => CopyEnd::DownstreamFailed,
                Failed::Writer => CopyEnd::UpstreamFailed,
            });
        }
        let down = self.down.poll(cx, &mut self.upstream, &mut self.downstream);
        if let Poll::Ready(Err(failed)) = down {
            return Poll::Ready(match failed {
                Failed::Reader => CopyEnd::UpstreamFailed,
                Failed::Writer => CopyEnd::DownstreamFailed,
            });
        }
        self.by_client |= up.is_ready() && down.is_pending();
        if up.is_ready() && down.is_ready() { Poll::Ready(CopyEnd::Closed) } else { Poll::Pending }
    }
}

/// One direction of a copy.
#[derive(Default)]
struct Direction {
    /// Allocated with the first byte: idle connections hold none.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    read: u64,
    written: u64,
    read_done: bool,
    unflushed: bool,
    done: bool,
}

enum Failed {
    Reader,
    Writer,
}

impl Direction {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        loop {
            if self.start == self.end && !self.read_done {
                match self.fill(cx, reader) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Failed::Reader)),
                    Poll::Pending => {
                        if self.unflushed {
                            ready!(Pin::new(&mut *writer).poll_flush(cx))
                                .map_err(|_| Failed::Writer)?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                }
            }
            while self.start < self.end {
                let chunk = &self.buffer[self.start..self.end];
                let written = ready!(Pin::new(&mut *writer).poll_write(cx, chunk));
                match written {
                    Ok(0) | Err(_) => return Poll::Ready(Err(Failed::Writer)),
                    Ok(count) => {
                        self.start += count;
                        self.written += count as u64;
                        self.unflushed = true;
                    }
                }
            }
            if self.read_done {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(|_| Failed::Writer)?;
                self.done = true;
                self.buffer = Vec::new();
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn fill<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
    ) -> Poll<io::Result<()>> {
        if self.buffer.is_empty() {
            self.buffer.resize(BUFFER, 0);
        }
        let mut buf = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(reader).poll_read(cx, &mut buf))?;
        self.start = 0;
        self.end = buf.filled().len();
        self.read += self.end as u64;
        self.read_done = self.end == 0;
        Poll::Ready(Ok(()))
    }
}
