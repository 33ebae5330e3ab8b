//! Responses as a client reads them.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, Version};

use crate::body::Body;
use crate::casing::HeaderCase;
use crate::codec::{BodyLength, Decode, Event, Lines, Options};
use crate::error::ParseError;
use crate::fields::{Encoding, Fields};
use crate::request::{is_blank, version_of};

/// Head of a response.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseHead {
    /// `HTTP/1.1`, or `HTTP/1.0` for everything else.
    pub version: Version,
    /// What came of the request. Below 200, another head follows, except after
    /// a 101.
    pub status: StatusCode,
    /// In the order they came.
    pub headers: HeaderMap,
    /// How names were spelled, if that is kept.
    pub case: Option<HeaderCase>,
    /// What follows.
    pub body: BodyLength,
    /// The server takes another request on the connection.
    pub keep_alive: bool,
}

/// What a response answers, without which its end cannot be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseTo {
    /// A HEAD request: there is no body, whatever the head says.
    pub head: bool,
    /// A CONNECT request: a good response ends HTTP.
    pub connect: bool,
    /// The request asked for an upgrade: a 101 ends HTTP.
    pub upgrade: bool,
}

impl ResponseTo {
    /// What the response to a request of `method` is like.
    pub fn new(method: &Method, upgrade: bool) -> Self {
        Self { head: *method == Method::HEAD, connect: *method == Method::CONNECT, upgrade }
    }
}

/// Decoder of a connection's responses, one request at a time.
#[derive(Debug)]
pub struct ResponseDecoder {
    options: Options,
    lines: Lines,
    to: ResponseTo,
    state: State,
}

#[derive(Debug)]
enum State {
    /// No request awaits a response.
    Idle,
    /// Waiting for a head; true once part of it has come.
    Head(bool),
    Body(Body),
    Raw,
}

impl ResponseDecoder {
    /// A decoder at the begin of a connection.
    pub fn new(options: Options) -> Self {
        let (lines, to) = (Lines::default(), ResponseTo::default());
        Self { options, lines, to, state: State::Idle }
    }

    /// A request has been sent: its response is next.
    pub fn expect(&mut self, to: ResponseTo) {
        self.to = to;
        self.state = State::Head(false);
    }

    /// The next event in `buf`, from which it is cut off; `None` if more bytes
    /// are needed or no response is expected. An error is final.
    pub fn decode(
        &mut self,
        buf: &mut BytesMut,
    ) -> Result<Option<Event<ResponseHead>>, ParseError> {
        Decode::decode(self, buf)
    }

    fn head(&mut self, buf: &mut BytesMut) -> Result<Option<ResponseHead>, ParseError> {
        match buf.first() {
            None => return Ok(None),
            Some(b'H') => self.state = State::Head(true),
            Some(_) => return Err(ParseError::Version),
        }
        if !self.lines.scan(buf, self.options.max_head_bytes)? {
            return Ok(None);
        }
        let section = self.lines.take(buf);
        let head = self.complete(&section)?;
        self.lines.clear();
        self.state = match Body::new(head.body) {
            Some(body) => State::Body(body),
            None if head.body == BodyLength::Raw => State::Raw,
            None if head.interim() => State::Head(false),
            None => State::Idle,
        };
        Ok(Some(head))
    }

    fn complete(&self, section: &Bytes) -> Result<ResponseHead, ParseError> {
        let (version, status) = status_line(&section[..self.lines.end(1)])?;
        let mut fields = Fields::parse(section, &self.lines, 1, &self.options)?;
        if status.as_u16() < 200 || status == StatusCode::NO_CONTENT {
            if fields.encoding() != Encoding::None {
                return Err(ParseError::TransferEncoding);
            }
            // A length of nothing does no harm; any other would be taken for
            // the next response.
            if fields.length.is_some_and(|length| length > 0) {
                return Err(ParseError::BodyNotAllowed);
            }
            fields.headers.remove(http::header::CONTENT_LENGTH);
        }
        let chunked = fields.chunked(&self.options)?;
        let mut keep_alive = !fields.close && (version == Version::HTTP_11 || fields.keep_alive);
        let body = match fields.length {
            _ if self.raw(status) => BodyLength::Raw,
            _ if self.to.head || is_bodiless(status) => BodyLength::Empty,
            _ if chunked => BodyLength::Chunked,
            Some(0) => BodyLength::Empty,
            Some(length) => BodyLength::Known(length),
            None => BodyLength::UntilClose,
        };
        // A 101 that nobody asked for leaves both sides with other ideas.
        let odd = status == StatusCode::SWITCHING_PROTOCOLS;
        keep_alive &= !odd && !matches!(body, BodyLength::UntilClose | BodyLength::Raw);
        let Fields { headers, case, .. } = fields;
        Ok(ResponseHead { version, status, headers, case, body, keep_alive })
    }

    fn raw(&self, status: StatusCode) -> bool {
        (self.to.upgrade && status == StatusCode::SWITCHING_PROTOCOLS)
            || (self.to.connect && status.is_success())
    }
}

impl Decode for ResponseDecoder {
    type Head = ResponseHead;

    fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Event<ResponseHead>>, ParseError> {
        match &mut self.state {
            State::Idle | State::Raw => Ok(None),
            State::Head(_) => Ok(self.head(buf)?.map(Event::Head)),
            State::Body(body) => {
                let event = body.decode(buf, &self.options)?;
                if event == Some(Event::End) {
                    self.state = State::Idle;
                }
                Ok(event)
            }
        }
    }

    fn take_end(&mut self) -> bool {
        let ended = matches!(&self.state, State::Body(body) if body.complete());
        if ended {
            self.state = State::Idle;
        }
        ended
    }

    fn finish(&mut self) -> Result<Option<Event<ResponseHead>>, ParseError> {
        match self.state {
            State::Idle | State::Raw | State::Head(false) => Ok(None),
            State::Body(Body::UntilClose) => {
                self.state = State::Idle;
                Ok(Some(Event::End))
            }
            State::Head(true) | State::Body(_) => Err(ParseError::Truncated),
        }
    }
}

impl ResponseHead {
    /// True if the response proper is still to come.
    pub fn interim(&self) -> bool {
        self.status.is_informational() && self.status != StatusCode::SWITCHING_PROTOCOLS
    }
}

/// True if a response of `status` never has a body.
pub(crate) fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational() || matches!(status.as_u16(), 204 | 304)
}

/// Parses a status line with its line end; the reason is not looked at.
fn status_line(line: &[u8]) -> Result<(Version, StatusCode), ParseError> {
    let mut parts = line.split(is_blank).filter(|part| !part.is_empty());
    let version = version_of(parts.next().unwrap_or_default())?;
    let status = StatusCode::from_bytes(parts.next().unwrap_or_default());
    Ok((version, status.map_err(|_| ParseError::Status)?))
}
