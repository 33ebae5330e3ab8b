//! A stream of tokio's with what has been read ahead and is to be written.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

/// Room asked for before a read, and more while reads fill it.
const READ: usize = 8 * 1024;
const LARGE_READ: usize = 64 * 1024;
/// Below this, room left from the last read will do.
const SMALL: usize = 1024;
/// Data up to this size are copied behind the head, which costs less than
/// another slice in the system call.
const COPY: usize = 4 * 1024;
/// Most slices of one write.
const SLICES: usize = 16;

/// A byte stream.
#[derive(Debug)]
pub(crate) struct Transport<T> {
    pub(crate) io: T,
    /// Bytes read and not decoded.
    pub(crate) read: BytesMut,
    pub(crate) out: Output,
    next_read: usize,
}

/// Bytes to be written, in order.
#[derive(Debug, Default)]
pub(crate) struct Output {
    ready: VecDeque<Bytes>,
    /// Written after `ready`; grows.
    pub(crate) tail: BytesMut,
    queued: usize,
}

impl Output {
    /// Number of bytes waiting.
    pub(crate) fn len(&self) -> usize {
        self.queued + self.tail.len()
    }

    pub(crate) fn push(&mut self, data: Bytes) {
        if data.len() <= COPY {
            self.tail.put_slice(&data);
            return;
        }
        if !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.queued += tail.len();
            self.ready.push_back(tail);
        }
        self.queued += data.len();
        self.ready.push_back(data);
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.ready.front_mut() {
            let step = count.min(first.len());
            first.advance(step);
            self.queued -= step;
            count -= step;
            if !first.is_empty() {
                return;
            }
            self.ready.pop_front();
        }
        self.tail.advance(count.min(self.tail.len()));
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Transport<T> {
    pub(crate) fn new(io: T, read: BytesMut) -> Self {
        Self { io, read, out: Output::default(), next_read: READ }
    }

    /// Reads once; 0 is the stream's end.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read.capacity() - self.read.len() < SMALL {
            self.read.reserve(self.next_read);
        }
        let room = self.read.capacity() - self.read.len();
        let io = Pin::new(&mut self.io);
        let count = ready!(tokio_util::io::poll_read_buf(io, cx, &mut self.read))?;
        self.next_read = if count == room { LARGE_READ } else { READ };
        Poll::Ready(Ok(count))
    }

    /// Writes everything.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out.len() > 0 {
            let count = if self.out.ready.is_empty() {
                ready!(Pin::new(&mut self.io).poll_write(cx, &self.out.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let parts = self.out.ready.iter().map(|part| &part[..]);
                let mut used = 0;
                for (slice, part) in slices.iter_mut().zip(parts.chain([&self.out.tail[..]])) {
                    *slice = IoSlice::new(part);
                    used += 1;
                }
                let io = Pin::new(&mut self.io);
                ready!(io.poll_write_vectored(cx, &slices[..used]))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(count);
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// The stream with what was read ahead.
    pub(crate) fn into_parts(self) -> (T, Bytes) {
        (self.io, self.read.freeze())
    }
}
