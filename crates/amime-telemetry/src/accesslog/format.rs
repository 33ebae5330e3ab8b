//! Format strings: text with `%COMMANDS%`, compiled once.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::json::JsonFormat;
use super::operator::Operator;
use crate::{
    DownstreamRecord, HttpRecord, ListenerTelemetry, ResponseFlags, TcpEvent, TcpRecord,
    UpstreamRecord,
};

/// Istio's default text format.
pub(crate) const ISTIO_DEFAULT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% ",
    "%CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" ",
    "%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% ",
    "\"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" ",
    "\"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% ",
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% ",
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
);

/// Envoy's default text format.
pub(crate) const ENVOY_DEFAULT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n"
);

/// Why a format is not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FormatError {
    /// A `%` without its partner.
    #[error("access log format: no closing % for the command at byte {at}")]
    Unterminated {
        /// Where the command starts.
        at: usize,
    },
    /// A command that Envoy does not have, or that is not built in here.
    #[error("access log format: unknown command operator %{operator}%")]
    UnknownOperator {
        /// The command as written.
        operator: String,
    },
    /// A known command with arguments it cannot take.
    #[error("access log format: %{operator}%: {reason}")]
    BadArgument {
        /// The command as written.
        operator: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// A compiled format.
#[derive(Debug)]
pub struct Format {
    body: Body,
}

#[derive(Debug)]
enum Body {
    Text { pieces: Vec<Piece>, omit_empty: bool },
    Json(JsonFormat),
}

/// Literal text or a command.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    Literal(Box<str>),
    Command(Command),
}

/// An operator with its optional `:N` truncation.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) operator: Operator,
    pub(super) max_len: Option<usize>,
}

impl Format {
    /// Compiles a text format.
    pub fn parse(format: &str) -> Result<Self, FormatError> {
        Self::text(format, false)
    }

    /// Compiles a text format; `omit_empty` prints nothing for a missing value.
    pub(crate) fn text(format: &str, omit_empty: bool) -> Result<Self, FormatError> {
        Ok(Self { body: Body::Text { pieces: parse_pieces(format)?, omit_empty } })
    }

    /// Compiles a JSON format: an object whose strings are text formats.
    pub fn parse_json(
        format: &serde_json::Value,
        omit_empty: bool,
        sort: bool,
    ) -> Result<Self, FormatError> {
        Ok(Self { body: Body::Json(JsonFormat::parse(format, omit_empty, sort)?) })
    }

    /// Istio's default text format.
    pub fn istio_default() -> Self {
        Self::parse(ISTIO_DEFAULT).expect("the default format is valid")
    }

    /// Envoy's default text format.
    pub(crate) fn envoy_default() -> Self {
        Self::parse(ENVOY_DEFAULT).expect("the default format is valid")
    }

    /// Appends one formatted request.
    pub fn write_http(&self, record: &HttpRecord<'_>, out: &mut Vec<u8>) {
        self.write(&Subject::from(record), out);
    }

    /// Appends one formatted connection.
    pub fn write_tcp(&self, record: &TcpRecord<'_>, out: &mut Vec<u8>) {
        self.write(&Subject::from(record), out);
    }

    /// Operators whose data does not exist here.
    pub(crate) fn absent(&self) -> Vec<&str> {
        self.commands().into_iter().filter_map(Command::absent).collect()
    }

    /// Whether certificates beyond the client's own are printed.
    pub(crate) fn prints_chain(&self) -> bool {
        self.commands().into_iter().any(|command| match &command.operator {
            Operator::Certificate(field) => field.prints_chain(),
            _ => false,
        })
    }

    fn commands(&self) -> Vec<&Command> {
        match &self.body {
            Body::Text { pieces, .. } => commands(pieces).collect(),
            Body::Json(format) => format.commands(),
        }
    }

    pub(crate) fn write(&self, subject: &Subject<'_>, out: &mut Vec<u8>) {
        match &self.body {
            Body::Text { pieces, omit_empty } => {
                for piece in pieces {
                    match piece {
                        Piece::Literal(text) => out.extend_from_slice(text.as_bytes()),
                        Piece::Command(command) => {
                            if !command.write(subject, out) && !omit_empty {
                                out.push(b'-');
                            }
                        }
                    }
                }
            }
            Body::Json(format) => format.write(subject, out),
        }
    }
}

/// The commands among `pieces`.
pub(super) fn commands(pieces: &[Piece]) -> impl Iterator<Item = &Command> {
    pieces.iter().filter_map(|piece| match piece {
        Piece::Command(command) => Some(command),
        Piece::Literal(_) => None,
    })
}

impl Command {
    fn absent(&self) -> Option<&str> {
        match &self.operator {
            Operator::Absent(name) => Some(name),
            _ => None,
        }
    }

    /// Appends the value; false and nothing appended if there is none.
    pub(super) fn write(&self, subject: &Subject<'_>, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        if !self.operator.write(subject, out) {
            out.truncate(start);
            return false;
        }
        if let Some(max) = self.max_len {
            out.truncate(out.len().min(start.saturating_add(max)));
        }
        true
    }
}

/// Splits a format into literals and commands; `%%` is a literal percent.
pub(super) fn parse_pieces(format: &str) -> Result<Vec<Piece>, FormatError> {
    let mut pieces = vec![];
    let mut literal = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let end = command_end(after)
            .ok_or(FormatError::Unterminated { at: format.len() - rest.len() + at })?;
        if !literal.is_empty() {
            pieces.push(Piece::Literal(std::mem::take(&mut literal).into()));
        }
        pieces.push(Piece::Command(parse_command(&after[..end])?));
        rest = &after[end + 1..];
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal.into()));
    }
    Ok(pieces)
}

/// Where a command ends: at the first `%` outside its parentheses, so that
/// `START_TIME(%Y-%m-%d)` is one command.
fn command_end(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b'%' if depth == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

fn parse_command(text: &str) -> Result<Command, FormatError> {
    let bad = |reason| FormatError::BadArgument { operator: text.to_owned(), reason };
    let (call, max_len) = match (text.rfind(')'), text.rfind(':')) {
        (close, Some(colon)) if close.is_none_or(|close| close < colon) => {
            let max = text[colon + 1..].parse().map_err(|_| bad("the length is not a number"))?;
            (&text[..colon], Some(max))
        }
        _ => (text, None),
    };
    let (name, argument) = match call.split_once('(') {
        None => (call, None),
        Some((name, argument)) => {
            let argument = argument.strip_suffix(')').ok_or(bad("no closing parenthesis"))?;
            (name, Some(argument))
        }
    };
    let operator = Operator::parse(name, argument).map_err(|error| error.into_format(text))?;
    Ok(Command { operator, max_len })
}

/// What is common to the records that a format can print.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) listener: &'a ListenerTelemetry,
    pub(crate) http: Option<&'a HttpRecord<'a>>,
    pub(crate) start: SystemTime,
    pub(crate) duration: Duration,
    pub(crate) flags: ResponseFlags,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) connection_termination_details: Option<&'a str>,
    pub(crate) downstream: &'a DownstreamRecord<'a>,
    pub(crate) upstream: &'a UpstreamRecord<'a>,
    /// The moment that is logged.
    pub(crate) log_type: &'static str,
}

impl<'a> Subject<'a> {
    pub(crate) fn request_headers(&self) -> Option<&'a HeaderMap> {
        self.http.map(|http| http.request_headers)
    }

    /// The endpoint's address, once there is a connection to it.
    pub(crate) fn upstream_remote(&self) -> Option<SocketAddr> {
        self.upstream.local_address.and(self.upstream.host)
    }

    pub(crate) fn upstream_host(&self) -> Option<SocketAddr> {
        self.upstream.host
    }
}

impl<'a> From<&'a HttpRecord<'a>> for Subject<'a> {
    fn from(record: &'a HttpRecord<'a>) -> Self {
        Self {
            listener: record.listener,
            http: Some(record),
            start: record.start,
            duration: record.timing.total,
            flags: record.flags,
            bytes_received: record.bytes_received,
            bytes_sent: record.bytes_sent,
            connection_termination_details: record.connection_termination_details,
            downstream: &record.downstream,
            upstream: &record.upstream,
            log_type: "DownstreamEnd",
        }
    }
}

impl<'a> From<&'a TcpRecord<'a>> for Subject<'a> {
    fn from(record: &'a TcpRecord<'a>) -> Self {
        Self {
            listener: record.listener,
            http: None,
            start: record.start,
            duration: record.duration,
            flags: record.flags,
            bytes_received: record.bytes_received,
            bytes_sent: record.bytes_sent,
            connection_termination_details: record.connection_termination_details,
            downstream: &record.downstream,
            upstream: &record.upstream,
            log_type: match record.event {
                TcpEvent::Started => "TcpConnectionStart",
                TcpEvent::Opened => "TcpUpstreamConnected",
                TcpEvent::Progress => "TcpPeriodic",
                TcpEvent::Closed => "TcpConnectionEnd",
            },
        }
    }
}
