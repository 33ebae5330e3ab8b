//! A stream of tokio's with what has been read ahead and is to be written.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Room for a read, shared by the connections of a thread.
const READ: usize = 16 * 1024;
/// Room of a connection's own while its peer fills that.
const LARGE_READ: usize = 64 * 1024;
/// A buffer up to this size is kept for the next message.
const KEEP: usize = 4 * 1024;
/// Data up to this size are copied behind the head, which costs less than
/// another slice in the system call.
const COPY: usize = 4 * 1024;
/// Most slices of one write.
const SLICES: usize = 16;

thread_local! {
    /// Where reads land first, so that a connection that waits has no room set
    /// aside and one that reads takes what it needs. Copying a message costs
    /// less than the memory of thousands of connections.
    static READ_ROOM: Cell<Box<[u8]>> = Cell::default();
    /// What the last connection that wrote everything wrote from.
    static WRITE_ROOM: Cell<BytesMut> = Cell::new(BytesMut::new());
}

/// A byte stream.
#[derive(Debug)]
pub(crate) struct Transport<T> {
    pub(crate) io: T,
    /// Bytes read and not decoded.
    pub(crate) read: BytesMut,
    pub(crate) out: Output,
    /// The last read found as much as there was room for.
    bulk: bool,
    /// `read` is larger than what is worth keeping.
    large: bool,
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

    /// Takes room for a message's head.
    pub(crate) fn head(&mut self) -> &mut BytesMut {
        if self.tail.capacity() == 0 {
            self.tail = WRITE_ROOM.take();
        }
        &mut self.tail
    }

    /// Leaves the room of what has been written to the next connection.
    fn give_back(&mut self) {
        if self.tail.capacity() > 0 {
            let mut room = std::mem::take(&mut self.tail);
            room.clear();
            WRITE_ROOM.set(room);
        }
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
        Self { io, read, out: Output::default(), bulk: false, large: false }
    }

    /// Reads once; 0 is the stream's end.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.bulk {
            return self.poll_read_large(cx);
        }
        let mut room = READ_ROOM.take();
        if room.is_empty() {
            room = vec![0; READ].into();
        }
        let mut into = ReadBuf::new(&mut room);
        let done = Pin::new(&mut self.io).poll_read(cx, &mut into);
        let found = into.filled();
        if !found.is_empty() {
            if self.read.is_empty() && (self.large || found.len() > KEEP) {
                // Another buffer, as growing the old one keeps its size.
                self.read = BytesMut::with_capacity(found.len());
                self.large = found.len() > KEEP;
            }
            self.read.extend_from_slice(found);
        }
        let count = found.len();
        READ_ROOM.set(room);
        ready!(done)?;
        self.bulk = count == READ;
        Poll::Ready(Ok(count))
    }

    /// Reads without a copy, for a peer that sends much.
    fn poll_read_large(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.large = true;
        if self.read.capacity() - self.read.len() < READ {
            self.read.reserve(LARGE_READ);
        }
        let room = self.read.capacity() - self.read.len();
        let io = Pin::new(&mut self.io);
        let count = ready!(tokio_util::io::poll_read_buf(io, cx, &mut self.read))?;
        self.bulk = count == room || count >= READ;
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
        self.out.give_back();
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// The stream with what was read ahead.
    pub(crate) fn into_parts(self) -> (T, Bytes) {
        (self.io, self.read.freeze())
    }
}
