//! The client's end of a connection.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, header};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::casing::Casing;
use crate::codec::{BodyLength, Decode, Event, Options};
use crate::connection::{Connection, ReadError, Writing};
use crate::encode::{Framing, encode_request};
use crate::response::{ResponseDecoder, ResponseHead, ResponseTo};

/// What comes after a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// Nothing.
    Nothing,
    /// A body.
    Body,
    /// Another protocol, if the server agrees to it.
    Upgrade,
}

/// The client's end of a connection: one request at a time.
#[derive(Debug)]
pub struct Client<T> {
    connection: Connection<T, ResponseDecoder>,
    trailers: bool,
    writing: Writing,
    /// The request is not written to its end.
    sending: bool,
    /// The response is not read to its end.
    receiving: bool,
    keep_alive: bool,
    /// Why the request could not be written; the response may tell more.
    write_error: Option<io::Error>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Client<T> {
    /// A client over a connected stream.
    pub fn new(io: T, options: Options) -> Self {
        Self {
            connection: Connection::new(io, BytesMut::new(), ResponseDecoder::new(options)),
            trailers: options.trailers,
            writing: Writing::Nothing,
            sending: false,
            receiving: false,
            keep_alive: true,
            write_error: None,
        }
    }

    /// Writes a request's head. Without `content-length` among the headers the
    /// body is framed here.
    pub fn write_head(
        &mut self,
        (method, target): (&Method, &[u8]),
        headers: &HeaderMap,
        follows: Follows,
        casing: Casing<'_>,
    ) {
        let more = follows == Follows::Body;
        let to = ResponseTo::new(method, follows == Follows::Upgrade);
        let framing = if to.upgrade || to.connect || headers.contains_key(header::CONTENT_LENGTH) {
            Framing::AsIs
        } else if more {
            Framing::Chunked
        } else if matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE) {
            Framing::AsIs
        } else {
            Framing::Zero
        };
        self.writing = match framing {
            Framing::Chunked => Writing::Chunked,
            _ if more => Writing::Plain,
            _ => Writing::Nothing,
        };
        self.sending = more;
        self.receiving = true;
        self.keep_alive = true;
        self.connection.decoder.expect(to);
        let out = self.connection.transport.out.head();
        encode_request((method, target), headers, framing, casing, out);
    }

    /// Writes a part of the request's body.
    pub fn write_data(&mut self, data: Bytes) {
        self.writing.data(data, &mut self.connection.transport);
    }

    /// Ends the request.
    pub fn write_end(&mut self, trailers: Option<&HeaderMap>) {
        let trailers = trailers.filter(|_| self.trailers);
        self.writing.end(trailers, &mut self.connection.transport);
        self.sending = false;
    }

    /// Number of bytes that wait to be written.
    pub fn unwritten(&self) -> usize {
        self.connection.transport.out.len()
    }

    /// Writes what waits. A failure shows when the response is read: a server
    /// that refuses a body answers and closes.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.write_error.is_none()
            && let Err(error) = ready!(self.connection.transport.poll_flush(cx))
        {
            self.write_error = Some(error);
            self.keep_alive = false;
        }
        Poll::Ready(())
    }

    /// The next head. After one whose [`ResponseHead::interim`] is true comes
    /// another.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, ReadError>> {
        let Some(Event::Head(head)) = ready!(self.poll_event(cx))? else {
            return Poll::Ready(Err(self.closed()));
        };
        if !head.interim() {
            self.keep_alive &= head.keep_alive;
            self.receiving = head.body != BodyLength::Empty;
        }
        Poll::Ready(Ok(head))
    }

    /// The next part of the response's body. After [`Event::End`] it is over.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event<()>, ReadError>> {
        if !self.receiving {
            return Poll::Ready(Ok(Event::End));
        }
        Poll::Ready(Ok(match ready!(self.poll_event(cx))? {
            Some(Event::Data(data)) => {
                self.receiving = !self.connection.decoder.take_end();
                Event::Data(data)
            }
            Some(Event::Trailers(trailers)) => Event::Trailers(trailers),
            Some(Event::Head(_) | Event::End) | None => {
                self.receiving = false;
                Event::End
            }
        }))
    }

    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Event<ResponseHead>>, ReadError>> {
        let result = ready!(self.connection.poll_event(cx));
        if result.is_err() {
            self.keep_alive = false;
        }
        Poll::Ready(result)
    }

    fn closed(&mut self) -> ReadError {
        self.keep_alive = false;
        self.write_error.take().map_or(ReadError::Closed, ReadError::Io)
    }

    /// True once the response has been read to its end.
    pub fn response_read(&self) -> bool {
        !self.receiving
    }

    /// True if another request can be sent: both messages are complete, the
    /// server agrees, and it sent nothing that was not asked for.
    pub fn reusable(&self) -> bool {
        self.keep_alive
            && !self.sending
            && !self.receiving
            && !self.connection.ended
            && self.connection.transport.read.is_empty()
            && self.unwritten() == 0
    }

    /// Resolves when an idle connection is of no use any more: the server
    /// closed it, or sent something unasked.
    pub fn poll_stale(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.connection.ended || !self.connection.transport.read.is_empty() {
            return Poll::Ready(());
        }
        let count = ready!(self.connection.transport.poll_read(cx));
        self.connection.ended = !matches!(count, Ok(count) if count > 0);
        Poll::Ready(())
    }

    /// The stream and what was read of it, for a protocol after HTTP.
    pub fn into_parts(self) -> (T, Bytes) {
        self.connection.transport.into_parts()
    }
}
