//! Requests as a server reads them.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Version};

use crate::body::Body;
use crate::casing::HeaderCase;
use crate::codec::{BodyLength, Decode, Event, Lines, Options, skip_empty_lines};
use crate::error::ParseError;
use crate::fields::{Encoding, Fields};
use crate::target::{self, Target};

/// Head of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestHead {
    /// What is to be done.
    pub method: Method,
    /// To what.
    pub target: Target,
    /// `HTTP/1.1`, or `HTTP/1.0` for everything else, as Envoy has it.
    pub version: Version,
    /// In the order they came.
    pub headers: HeaderMap,
    /// How names were spelled, if that is kept.
    pub case: Option<HeaderCase>,
    /// What follows.
    pub body: BodyLength,
    /// The client does not mind another request on the connection.
    pub keep_alive: bool,
    /// The client wants to leave HTTP. What follows is [`BodyLength::Raw`].
    pub upgrade: bool,
    /// The client waits for a 100 before it sends the body.
    pub expect_continue: bool,
}

/// Decoder of a connection's requests, one after the other.
#[derive(Debug)]
pub struct RequestDecoder {
    options: Options,
    lines: Lines,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Between requests.
    Idle,
    /// Within a head; the request line once it has come.
    Head(Option<Line>),
    Body(Body),
    /// After an upgrade or CONNECT: nothing is decoded any more.
    Raw,
}

#[derive(Clone, Debug)]
struct Line {
    method: Method,
    /// Where the target is.
    target: (usize, usize),
    version: Version,
    /// There is no version, and so there are no headers either.
    bare: bool,
}

impl RequestDecoder {
    /// A decoder at the begin of a connection.
    pub fn new(options: Options) -> Self {
        Self { options, lines: Lines::default(), state: State::Idle }
    }

    /// The next event in `buf`, from which it is cut off; `None` if more bytes
    /// are needed. An error is final.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Event<RequestHead>>, ParseError> {
        Decode::decode(self, buf)
    }

    /// True from a head's first byte to its last.
    pub fn in_head(&self) -> bool {
        matches!(self.state, State::Head(_))
    }

    /// Version of the request whose head is being read, once it is known.
    pub fn version(&self) -> Option<Version> {
        match &self.state {
            State::Head(Some(line)) => Some(line.version),
            _ => None,
        }
    }

    fn head(&mut self, buf: &mut BytesMut) -> Result<Option<RequestHead>, ParseError> {
        if matches!(self.state, State::Idle) {
            skip_empty_lines(buf);
            match buf.first() {
                None => return Ok(None),
                Some(byte) if *byte <= b' ' => return Err(ParseError::Method),
                Some(_) => self.state = State::Head(None),
            }
        }
        // The request line is judged as soon as it is there, so that nobody
        // who speaks another protocol has to be waited for.
        let scanned = self.lines.scan(buf, self.options.max_head_bytes);
        let State::Head(line) = &mut self.state else { return Ok(None) };
        if line.is_none() && self.lines.count() > 0 {
            *line = Some(request_line(&buf[..self.lines.end(1)], &self.options)?);
        }
        let bare = line.as_ref().is_some_and(|line| line.bare);
        if !bare && !scanned? {
            return Ok(None);
        }
        let Some(line) = line.clone() else { return Ok(None) };
        let head = if bare { self.bare(buf, line) } else { self.complete(buf, line) }?;
        self.lines.clear();
        self.state = match Body::new(head.body) {
            Some(body) => State::Body(body),
            None if head.body == BodyLength::Raw => State::Raw,
            None => State::Idle,
        };
        Ok(Some(head))
    }

    /// A request of HTTP/0.9 is its first line.
    fn bare(&self, buf: &mut BytesMut, line: Line) -> Result<RequestHead, ParseError> {
        let section = buf.split_to(self.lines.end(1)).freeze();
        self.assemble(&section, line, Fields::default())
    }

    fn complete(&self, buf: &mut BytesMut, line: Line) -> Result<RequestHead, ParseError> {
        // Not cut off before it is known to be good: the version stays known.
        let section = self.lines.take(buf);
        let fields = Fields::parse(&section, &self.lines, 1, &self.options)?;
        self.assemble(&section, line, fields)
    }

    fn assemble(
        &self,
        section: &Bytes,
        line: Line,
        mut fields: Fields,
    ) -> Result<RequestHead, ParseError> {
        let Line { method, target, version, .. } = line;
        let connect = method == Method::CONNECT;
        if connect && fields.length.is_some_and(|length| length > 0) {
            return Err(ParseError::BodyNotAllowed);
        }
        if connect && fields.encoding() != Encoding::None {
            return Err(ParseError::TransferEncoding);
        }
        let chunked = fields.chunked(&self.options)?;
        let upgrade = fields.wants_upgrade();
        let body = match fields.length {
            _ if upgrade || connect => BodyLength::Raw,
            _ if chunked => BodyLength::Chunked,
            Some(length) if length > 0 => BodyLength::Known(length),
            _ => BodyLength::Empty,
        };
        let target = Target::parse(&method, section.slice(target.0..target.1))?;
        let keep_alive = !fields.close && (version == Version::HTTP_11 || fields.keep_alive);
        Ok(RequestHead {
            method,
            target,
            version,
            headers: fields.headers,
            case: fields.case,
            body,
            keep_alive,
            upgrade,
            expect_continue: fields.expect_continue,
        })
    }
}

impl Decode for RequestDecoder {
    type Head = RequestHead;

    fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Event<RequestHead>>, ParseError> {
        match &mut self.state {
            State::Idle | State::Head(_) => Ok(self.head(buf)?.map(Event::Head)),
            State::Raw => Ok(None),
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

    fn finish(&mut self) -> Result<Option<Event<RequestHead>>, ParseError> {
        match self.state {
            State::Idle | State::Raw => Ok(None),
            State::Head(_) | State::Body(_) => Err(ParseError::Truncated),
        }
    }
}

/// What may stand between the parts of a first line, carriage returns included.
pub(crate) fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// Parses a request line with its line end. Any blanks may separate its parts.
fn request_line(line: &[u8], options: &Options) -> Result<Line, ParseError> {
    let mut at = 0;
    let mut part = || {
        while line.get(at).is_some_and(is_blank) {
            at += 1;
        }
        let start = at;
        while line.get(at).is_some_and(|byte| !is_blank(byte)) {
            at += 1;
        }
        (start, at)
    };
    let (method, target, (version_start, _)) = (part(), part(), part());
    let name = &line[method.0..method.1];
    let method = match method_of(name) {
        Some(method) => method,
        None if options.custom_methods => {
            Method::from_bytes(name).map_err(|_| ParseError::Method)?
        }
        None => return Err(ParseError::Method),
    };
    if !target::valid(&line[target.0..target.1], method == Method::CONNECT) {
        // Envoy looks for zeros before it looks at the target.
        let zero = line[target.0..target.1].contains(&0);
        return Err(if zero { ParseError::Characters } else { ParseError::Target });
    }
    let end = line.iter().rposition(|byte| !is_blank(byte)).map_or(0, |last| last + 1);
    let version = line.get(version_start..end).unwrap_or_default();
    let bare = version.is_empty();
    let version = if bare { Version::HTTP_10 } else { version_of(version)? };
    Ok(Line { method, target, version, bare })
}

/// Any version of one digit each is understood; only 1.1 is treated as such.
pub(crate) fn version_of(text: &[u8]) -> Result<Version, ParseError> {
    match text {
        b"HTTP/1.1" => Ok(Version::HTTP_11),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Ok(Version::HTTP_10)
        }
        _ => Err(ParseError::Version),
    }
}

/// Methods that are passed on, as Envoy knows them.
fn method_of(name: &[u8]) -> Option<Method> {
    const OTHERS: [&[u8]; 27] = [
        b"PATCH",
        b"ACL",
        b"BIND",
        b"CHECKOUT",
        b"COPY",
        b"LINK",
        b"LOCK",
        b"MERGE",
        b"MKACTIVITY",
        b"MKCALENDAR",
        b"MKCOL",
        b"MOVE",
        b"MSEARCH",
        b"NOTIFY",
        b"PROPFIND",
        b"PROPPATCH",
        b"PURGE",
        b"QUERY",
        b"REBIND",
        b"REPORT",
        b"SEARCH",
        b"SOURCE",
        b"SUBSCRIBE",
        b"UNBIND",
        b"UNLINK",
        b"UNLOCK",
        b"UNSUBSCRIBE",
    ];
    Some(match name {
        b"GET" => Method::GET,
        b"POST" => Method::POST,
        b"PUT" => Method::PUT,
        b"DELETE" => Method::DELETE,
        b"HEAD" => Method::HEAD,
        b"OPTIONS" => Method::OPTIONS,
        b"CONNECT" => Method::CONNECT,
        b"TRACE" => Method::TRACE,
        other if OTHERS.contains(&other) => Method::from_bytes(other).ok()?,
        _ => return None,
    })
}
