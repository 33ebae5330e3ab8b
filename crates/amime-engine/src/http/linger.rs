//! Closing so that the client can still read what it was sent.
//!
//! Owns the end of a connection of HTTP/2: our half is closed first, and what
//! the client sends until it closes its own is read and dropped, since closing
//! a socket that holds unread bytes resets the connection. HTTP/1, which knows
//! whether anything may come, is [`super::h1`]'s.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// A stream that lingers when it is shut down.
pub(super) struct Lingering<T> {
    io: T,
    /// `None`: the client is not waited for.
    wait: Option<Duration>,
    /// Set once the end has begun.
    until: Option<Pin<Box<Sleep>>>,
    /// Our half is closed.
    closed: bool,
}

impl<T> Lingering<T> {
    pub(super) fn new(io: T, wait: Option<Duration>) -> Self {
        Self { io, wait, until: None, closed: false }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Lingering<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(wait) = self.wait else { return Pin::new(&mut self.io).poll_shutdown(cx) };
        let Self { io, until, closed, .. } = &mut *self;
        let until = until.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
        if !*closed {
            match Pin::new(&mut *io).poll_shutdown(cx) {
                Poll::Ready(shut) => {
                    shut?;
                    *closed = true;
                    // The client's time begins when it can know.
                    until.as_mut().reset(Instant::now() + wait);
                }
                // Not even TLS's last word can be written to a client that
                // reads nothing.
                Poll::Pending => return until.as_mut().poll(cx).map(Ok),
            }
        }
        loop {
            if until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut dropped = [0; 2048];
            let mut dropped = ReadBuf::new(&mut dropped);
            let read = ready!(Pin::new(&mut *io).poll_read(cx, &mut dropped));
            if read.is_err() || dropped.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
