//! Bodies as byte streams, for tunnels that travel inside of messages.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::body::{BodyError, DownstreamBody, UpstreamBody};

/// A byte stream of any kind, both ways.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

/// Bytes under way between a stream and a body.
const CAPACITY: usize = 64 * 1024;

/// The most that one frame of a body takes from its stream.
const FRAME: usize = 16 * 1024;

/// A body that ends when its stream is shut down.
pub(crate) struct Pipe {
    stream: DuplexStream,
    ended: bool,
}

impl Pipe {
    /// A body and the stream to write it to.
    pub(crate) fn new() -> (Self, DuplexStream) {
        let (writer, stream) = tokio::io::duplex(CAPACITY);
        (Self { stream, ended: false }, writer)
    }

    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut bytes = vec![0; FRAME];
        let mut buf = ReadBuf::new(&mut bytes);
        if let Err(error) = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf)) {
            return Poll::Ready(Some(Err(error.into())));
        }
        let count = buf.filled().len();
        if count == 0 {
            self.ended = true;
            return Poll::Ready(None);
        }
        bytes.truncate(count);
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }
}

/// The data of a body as a stream to read; trailers end it.
pub(crate) struct BodyReader {
    body: Either,
    chunk: Bytes,
}

enum Either {
    Downstream(DownstreamBody),
    Upstream(UpstreamBody),
}

impl BodyReader {
    pub(crate) fn downstream(body: DownstreamBody) -> Self {
        Self { body: Either::Downstream(body), chunk: Bytes::new() }
    }

    pub(crate) fn upstream(body: UpstreamBody) -> Self {
        Self { body: Either::Upstream(body), chunk: Bytes::new() }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.body {
            Either::Downstream(body) => {
                body.poll_frame(cx).map(|it| it.map(|it| it.map_err(io::Error::other)))
            }
            Either::Upstream(body) => {
                body.poll_frame(cx).map(|it| it.map(|it| it.map_err(io::Error::other)))
            }
        }
    }
}

impl AsyncRead for BodyReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.chunk.is_empty() {
            match ready!(self.poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(error)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.chunk = data,
                    Err(_) => return Poll::Ready(Ok(())),
                },
            }
        }
        let count = self.chunk.len().min(buf.remaining());
        buf.put_slice(&self.chunk[..count]);
        self.chunk.advance(count);
        Poll::Ready(Ok(()))
    }
}
