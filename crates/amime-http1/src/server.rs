//! The server's end of a connection.
//!
//! One request at a time: its head, its body, the response's head and body,
//! then the next. What a client sends meanwhile waits.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::casing::Casing;
use crate::codec::{BodyLength, Decode, Event, Options};
use crate::connection::{Connection, ReadError, Writing};
use crate::encode::{Framing, encode_response};
use crate::error::ParseError;
use crate::request::{RequestDecoder, RequestHead};
use crate::response::is_bodiless;

/// What a server does beyond decoding.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerOptions {
    /// What is decoded.
    pub decode: Options,
    /// Clients of HTTP/1.0 are answered in their version.
    pub http_10: bool,
}

/// The server's end of a connection.
#[derive(Debug)]
pub struct Server<T> {
    connection: Connection<T, RequestDecoder>,
    options: ServerOptions,
    request: Current,
    writing: Writing,
}

/// What the response depends on.
#[derive(Clone, Copy, Debug)]
struct Current {
    head: bool,
    connect: bool,
    version: Version,
    /// Part of the request has not been read.
    open: bool,
    /// The connection goes on after the response.
    keep_alive: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Server<T> {
    /// Serves `io`, of which `read` has been read already.
    pub fn new(io: T, read: BytesMut, options: ServerOptions) -> Self {
        let request = Current {
            head: false,
            connect: false,
            version: Version::HTTP_11,
            open: false,
            keep_alive: true,
        };
        let decoder = RequestDecoder::new(options.decode);
        let connection = Connection::new(io, read, decoder);
        Self { connection, options, request, writing: Writing::Nothing }
    }

    /// The next request; `None` if the client closed instead.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<RequestHead>, ReadError>> {
        let event = match ready!(self.connection.poll_event(cx)) {
            Ok(event) => event,
            Err(error) => {
                self.refuse(&error);
                return Poll::Ready(Err(error));
            }
        };
        let Some(Event::Head(head)) = event else { return Poll::Ready(Ok(None)) };
        self.request = Current {
            head: head.method == Method::HEAD,
            connect: head.method == Method::CONNECT,
            version: head.version,
            open: head.body != BodyLength::Empty,
            keep_alive: head.keep_alive,
        };
        Poll::Ready(Ok(Some(head)))
    }

    /// Prepares for the answer to what is no request.
    fn refuse(&mut self, error: &ReadError) {
        use ParseError as E;
        // Envoy believes the version of a request only once its headers have
        // been understood.
        let late = matches!(
            error,
            ReadError::Parse(
                E::LengthAndEncoding | E::TransferEncoding | E::BodyNotAllowed | E::Url | E::Scheme
            )
        );
        let version = self.connection.decoder.version().filter(|_| late);
        let version = version.unwrap_or(Version::HTTP_11);
        self.request =
            Current { head: false, connect: false, version, open: true, keep_alive: false };
    }

    /// True once part of the next request's head has come.
    pub fn in_head(&self) -> bool {
        self.connection.decoder.in_head()
    }

    /// The next part of the request's body. After [`Event::End`] it is over.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event<()>, ReadError>> {
        if !self.request.open {
            return Poll::Ready(Ok(Event::End));
        }
        let event = match ready!(self.connection.poll_event(cx)) {
            Ok(event) => event,
            Err(error) => {
                self.request.keep_alive = false;
                return Poll::Ready(Err(error));
            }
        };
        Poll::Ready(Ok(match event {
            Some(Event::Data(data)) => {
                self.request.open = !self.connection.decoder.take_end();
                Event::Data(data)
            }
            Some(Event::Trailers(trailers)) => Event::Trailers(trailers),
            Some(Event::Head(_) | Event::End) | None => {
                self.request.open = false;
                Event::End
            }
        }))
    }

    /// True once all of the request has been read.
    pub fn request_read(&self) -> bool {
        !self.request.open
    }

    /// Resolves when the client closes. To be polled only once the request has
    /// been read; what else the client sends is kept for later.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.connection.poll_gone(cx)
    }

    /// Writes a head that comes before the response's.
    pub fn write_interim(&mut self, status: StatusCode, headers: &HeaderMap) {
        let head = (self.version(), status);
        let out = self.connection.transport.out.head();
        encode_response(head, headers, Framing::AsIs, Casing::Lower, out);
    }

    /// Writes the response's head. `more` says whether a body follows; without
    /// `content-length` among the headers it is framed here, and `connection`
    /// is added as it has to be.
    pub fn write_head(
        &mut self,
        status: StatusCode,
        headers: &mut HeaderMap,
        more: bool,
        casing: Casing<'_>,
    ) {
        // Bytes of another protocol follow.
        let raw = match status {
            StatusCode::SWITCHING_PROTOCOLS => true,
            status => self.request.connect && status.is_success(),
        };
        let has_length = raw || headers.contains_key(header::CONTENT_LENGTH);
        let bodiless = is_bodiless(status);
        let framing = if has_length || bodiless {
            Framing::AsIs
        } else if !more && !self.request.head {
            Framing::Zero
        } else if self.request.version == Version::HTTP_10 {
            // The body ends where the connection does.
            self.request.keep_alive &= !more;
            Framing::AsIs
        } else {
            // Also in answer to HEAD, where nobody knows the length.
            Framing::Chunked
        };
        self.writing = if !more || bodiless || self.request.head {
            Writing::Nothing
        } else if framing == Framing::Chunked {
            Writing::Chunked
        } else {
            Writing::Plain
        };
        if !raw {
            self.connection_header(headers);
        }
        let head = (self.version(), status);
        let out = self.connection.transport.out.head();
        encode_response(head, headers, framing, casing, out);
    }

    fn connection_header(&mut self, headers: &mut HeaderMap) {
        let close = headers.get(header::CONNECTION).is_some_and(|value| value == "close");
        // The rest of the request would be taken for the next one.
        self.request.keep_alive &= !close && !self.request.open;
        if !self.request.keep_alive {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        } else if self.request.version == Version::HTTP_10 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("keep-alive"));
        }
    }

    fn version(&self) -> Version {
        if self.options.http_10 { self.request.version } else { Version::HTTP_11 }
    }

    /// Writes a part of the response's body.
    pub fn write_data(&mut self, data: Bytes) {
        self.writing.data(data, &mut self.connection.transport);
    }

    /// Ends the response. True if another request may follow.
    pub fn write_end(&mut self, trailers: Option<&HeaderMap>) -> bool {
        let trailers = trailers.filter(|_| self.options.decode.trailers);
        self.writing.end(trailers, &mut self.connection.transport);
        self.request.keep_alive
    }

    /// Number of bytes that wait to be written.
    pub fn unwritten(&self) -> usize {
        self.connection.transport.out.len()
    }

    /// Writes what waits.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.transport.poll_flush(cx)
    }

    /// True if the client sent something that nobody has read, so that closing
    /// now would take the response from it.
    pub fn unread(&self) -> bool {
        self.request.open || !self.connection.transport.read.is_empty()
    }

    /// Tells the client that nothing more comes.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection.transport.io).poll_shutdown(cx)
    }

    /// Drops what the client sends until it closes.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Connection { transport, ended, .. } = &mut self.connection;
        while !*ended {
            transport.read.clear();
            *ended = !matches!(ready!(transport.poll_read(cx)), Ok(count) if count > 0);
        }
        Poll::Ready(())
    }

    /// The stream and what was read of it, for a protocol after HTTP.
    pub fn into_parts(self) -> (T, Bytes) {
        self.connection.transport.into_parts()
    }
}
