//! A decoder over a stream, and the writing of bodies.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::codec::{Decode, Event};
use crate::encode::{encode_chunk, encode_last_chunk};
use crate::error::ParseError;
use crate::transport::Transport;

/// Why nothing more can be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// What the peer sent is no message.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The peer closed where a message was to begin.
    #[error("closed by the peer")]
    Closed,
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Most bytes read ahead of what is being served.
const MAX_AHEAD: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Connection<T, D> {
    pub(crate) transport: Transport<T>,
    pub(crate) decoder: D,
    /// The peer will send nothing more.
    pub(crate) ended: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin, D: Decode> Connection<T, D> {
    pub(crate) fn new(io: T, read: BytesMut, decoder: D) -> Self {
        Self { transport: Transport::new(io, read), decoder, ended: false }
    }

    /// The next event; `None` if the stream ended between messages.
    pub(crate) fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Event<D::Head>>, ReadError>> {
        loop {
            let read = &mut self.transport.read;
            if let Some(event) = self.decoder.decode(read)? {
                return Poll::Ready(Ok(Some(event)));
            }
            if self.ended {
                return Poll::Ready(Ok(self.decoder.finish()?));
            }
            self.ended = ready!(self.transport.poll_read(cx))? == 0;
        }
    }

    /// Resolves when the peer closes; what it sends before that is kept, up to
    /// a limit.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.ended {
            if self.transport.read.len() >= MAX_AHEAD {
                // Whoever takes the bytes polls again.
                return Poll::Pending;
            }
            self.ended = !matches!(ready!(self.transport.poll_read(cx)), Ok(count) if count > 0);
        }
        Poll::Ready(())
    }
}

/// How the body of a message that is being written is marked off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writing {
    /// Nothing is written: the message has no body.
    Nothing,
    /// As it is: its length is known, or its end is the connection's.
    Plain,
    Chunked,
}

impl Writing {
    pub(crate) fn data<T: AsyncRead + AsyncWrite + Unpin>(
        self,
        data: Bytes,
        transport: &mut Transport<T>,
    ) {
        match self {
            Self::Nothing => {}
            _ if data.is_empty() => {}
            Self::Plain => transport.out.push(data),
            Self::Chunked => {
                encode_chunk(data.len(), &mut transport.out.tail);
                transport.out.push(data);
                transport.out.tail.extend_from_slice(b"\r\n");
            }
        }
    }

    pub(crate) fn end<T: AsyncRead + AsyncWrite + Unpin>(
        self,
        trailers: Option<&HeaderMap>,
        transport: &mut Transport<T>,
    ) {
        if self == Self::Chunked {
            encode_last_chunk(trailers, &mut transport.out.tail);
        }
    }
}
