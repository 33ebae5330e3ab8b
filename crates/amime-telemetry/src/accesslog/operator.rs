//! The command operators of Envoy's access log formats.
//!
//! An operator appends its value and says whether there was one; the caller
//! prints `-`, `null` or nothing for a missing value.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use amime_core::unix::{Shown, ShownHost, port_of};
use http::{HeaderMap, HeaderName};

use super::argument::Argument;
use super::certificate::CertificateField;
use super::format::{FormatError, Subject};
use super::grpc::{GrpcForm, grpc_status};
use super::start_time::TimeFormat;

/// A compiled operator.
#[derive(Clone, Debug)]
pub(super) enum Operator {
    /// An operator without arguments.
    Field(&'static Field),
    /// `REQ`, `RESP`, `TRAILER`: a header with an alternative.
    Header { source: HeaderSource, main: HeaderKey, alternative: Option<HeaderKey> },
    /// `START_TIME` with a format.
    StartTime(TimeFormat),
    /// `HOSTNAME`.
    Constant(Box<str>),
    /// An operator whose argument says what to print.
    Argument(Argument),
    /// What a certificate says.
    Certificate(CertificateField),
    /// A known operator whose data this proxy never has: always empty.
    Absent(Box<str>),
}

/// One operator without arguments.
pub(super) struct Field {
    name: &'static str,
    /// Whether JSON prints it as a number.
    numeric: bool,
    write: fn(&Subject<'_>, &mut Vec<u8>) -> bool,
}

impl std::fmt::Debug for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Where a header operator looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderSource {
    Request,
    RequestWithoutQuery,
    Response,
    Trailer,
}

/// A header or pseudo header.
#[derive(Clone, Debug)]
pub(super) enum HeaderKey {
    Method,
    Path,
    Authority,
    Scheme,
    Status,
    Name(HeaderName),
}

/// Why an operator is refused, before the command's text is known.
#[derive(Debug)]
pub(super) enum OperatorError {
    Unknown,
    Argument(&'static str),
}

impl OperatorError {
    pub(super) fn into_format(self, operator: &str) -> FormatError {
        let operator = operator.to_owned();
        match self {
            Self::Unknown => FormatError::UnknownOperator { operator },
            Self::Argument(reason) => FormatError::BadArgument { operator, reason },
        }
    }
}

/// Operators of Envoy 1.40 whose data does not exist here; they print as empty,
/// so that formats which mention them keep working, and are reported.
const ABSENT: [&str; 33] = [
    "CEL",
    "CLUSTER_METADATA",
    "COALESCE",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_DIRECT_LOCAL_PORT",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "DOWNSTREAM_LOCAL_CLOSE_REASON",
    "DOWNSTREAM_TLS_SESSION_ID",
    "EMIT_TIME_LOCAL",
    "FILTER_STATE",
    "METADATA",
    "REQUEST_TX_DURATION",
    "ROUNDTRIP_DURATION",
    "SPAN_ID",
    "START_TIME_LOCAL",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "TRACE_ID",
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_DETECTED_CLOSE_TYPE",
    "UPSTREAM_FILTER_STATE",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_HOSTS_ATTEMPTED",
    "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_HOST_NAMES_ATTEMPTED",
    "UPSTREAM_LOCAL_CLOSE_REASON",
    "UPSTREAM_METADATA",
    "UPSTREAM_TLS_SESSION_ID",
];

/// As [`ABSENT`], for names that differ in their ends only.
const ABSENT_ENDS: [&str; 3] =
    ["DECOMPRESSED_HEADER_BYTES_RECEIVED", "DECOMPRESSED_HEADER_BYTES_SENT", "SERVER_NAME"];

fn is_absent(name: &str) -> bool {
    ABSENT.contains(&name)
        || name.strip_prefix("UPSTREAM_").is_some_and(|end| ABSENT_ENDS.contains(&end))
}

impl Operator {
    pub(super) fn parse(name: &str, argument: Option<&str>) -> Result<Self, OperatorError> {
        if let Some(source) = header_source(name) {
            let argument = argument.ok_or(OperatorError::Argument("needs a header name"))?;
            return header(source, argument);
        }
        match (name, argument) {
            ("START_TIME", format) => {
                let format = format.filter(|f| !f.is_empty()).unwrap_or(TimeFormat::DEFAULT);
                let format = TimeFormat::parse(format).map_err(OperatorError::Argument)?;
                Ok(Self::StartTime(format))
            }
            ("HOSTNAME", None) => Ok(Self::Constant(hostname().into())),
            ("RESPONSE_FLAGS_LONG", None) => Ok(Self::Field(&RESPONSE_FLAGS_LONG)),
            ("ENVIRONMENT", Some(name)) => {
                Ok(Self::Constant(std::env::var(name).unwrap_or_default().into()))
            }
            (name, _) if is_absent(name) => Ok(Self::Absent(name.into())),
            ("COMMON_DURATION", Some(moments)) if !Argument::knows(moments) => {
                Ok(Self::Absent(format!("{name}({moments})").into()))
            }
            (name, argument) => {
                if let Some(parsed) = CertificateField::parse(name, argument) {
                    return parsed.map(Self::Certificate).map_err(OperatorError::Argument);
                }
                if let Some(parsed) = Argument::parse(name, argument) {
                    return parsed.map(Self::Argument).map_err(OperatorError::Argument);
                }
                let field = FIELDS.iter().find(|field| field.name == name);
                let field = field.ok_or(OperatorError::Unknown)?;
                match argument {
                    None => Ok(Self::Field(field)),
                    Some(_) => Err(OperatorError::Argument("takes no argument")),
                }
            }
        }
    }

    /// Whether a lone command prints as a JSON number.
    pub(super) fn is_numeric(&self) -> bool {
        match self {
            Self::Field(field) => field.numeric,
            Self::Argument(argument) => argument.is_numeric(),
            _ => false,
        }
    }

    /// Appends a value of any type as JSON; `None` if it is no such operator.
    pub(super) fn write_json(&self, subject: &Subject<'_>, out: &mut Vec<u8>) -> Option<bool> {
        match self {
            Self::Argument(Argument::Metadata(path)) => {
                let metadata = subject.http.and_then(|http| http.metadata);
                Some(metadata.is_some_and(|metadata| metadata.write_json(path, out)))
            }
            _ => None,
        }
    }

    pub(super) fn write(&self, subject: &Subject<'_>, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Field(field) => (field.write)(subject, out),
            Self::Header { source, main, alternative } => {
                write_header(*source, main, subject, out)
                    || alternative
                        .as_ref()
                        .is_some_and(|key| write_header(*source, key, subject, out))
            }
            Self::StartTime(format) => {
                format.write(subject.start, out);
                true
            }
            Self::Constant(text) => put(out, text),
            Self::Argument(argument) => argument.write(subject, out),
            Self::Certificate(field) => field.write(subject, out),
            Self::Absent(_) => false,
        }
    }
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "-".to_owned() } else { name.to_owned() }
}

fn header_source(name: &str) -> Option<HeaderSource> {
    match name {
        "REQ" => Some(HeaderSource::Request),
        "REQ_WITHOUT_QUERY" => Some(HeaderSource::RequestWithoutQuery),
        "RESP" => Some(HeaderSource::Response),
        "TRAILER" => Some(HeaderSource::Trailer),
        _ => None,
    }
}

fn header(source: HeaderSource, argument: &str) -> Result<Operator, OperatorError> {
    let (main, alternative) = match argument.split_once('?') {
        Some((main, alternative)) => (main, Some(alternative)),
        None => (argument, None),
    };
    if alternative.is_some_and(|rest| rest.contains('?')) {
        return Err(OperatorError::Argument("more than one alternative header"));
    }
    let alternative = alternative.map(header_key).transpose()?;
    Ok(Operator::Header { source, main: header_key(main)?, alternative })
}

fn header_key(name: &str) -> Result<HeaderKey, OperatorError> {
    // Istio writes `PATH` for `:PATH` in its default format.
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => HeaderKey::Method,
        ":path" | "path" => HeaderKey::Path,
        ":authority" | "host" => HeaderKey::Authority,
        ":scheme" => HeaderKey::Scheme,
        ":status" => HeaderKey::Status,
        name => HeaderKey::Name(
            HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| OperatorError::Argument("not a header name"))?,
        ),
    })
}

fn write_header(
    source: HeaderSource,
    key: &HeaderKey,
    subject: &Subject<'_>,
    out: &mut Vec<u8>,
) -> bool {
    let Some(http) = subject.http else { return false };
    let headers: Option<&HeaderMap> = match source {
        HeaderSource::Request | HeaderSource::RequestWithoutQuery => Some(http.request_headers),
        HeaderSource::Response => Some(http.response_headers),
        HeaderSource::Trailer => http.response_trailers,
    };
    let start = out.len();
    let found = match (source, key) {
        (_, HeaderKey::Name(name)) => match headers.and_then(|headers| headers.get(name)) {
            Some(value) => put_bytes(out, value.as_bytes()),
            None => false,
        },
        (HeaderSource::Response, HeaderKey::Status) => response_code(subject, out),
        (HeaderSource::Response | HeaderSource::Trailer, _) => false,
        (_, HeaderKey::Method) => put(out, http.method),
        (_, HeaderKey::Path) => put(out, http.path),
        (_, HeaderKey::Authority) => put(out, http.authority),
        (_, HeaderKey::Scheme) => put(out, http.scheme),
        (_, HeaderKey::Status) => false,
    };
    if found
        && source == HeaderSource::RequestWithoutQuery
        && let Some(at) = out[start..].iter().position(|byte| *byte == b'?')
    {
        out.truncate(start + at);
    }
    found
}

pub(super) fn put(out: &mut Vec<u8>, text: &str) -> bool {
    put_bytes(out, text.as_bytes())
}

pub(super) fn put_bytes(out: &mut Vec<u8>, text: &[u8]) -> bool {
    out.extend_from_slice(text);
    !text.is_empty()
}

fn put_opt(out: &mut Vec<u8>, text: Option<&str>) -> bool {
    text.is_some_and(|text| put(out, text))
}

/// Appends free text with its blanks as `_`, as Envoy does for details.
fn put_words(out: &mut Vec<u8>, text: Option<&str>) -> bool {
    let start = out.len();
    let found = put_opt(out, text);
    out[start..].iter_mut().filter(|b| b.is_ascii_whitespace()).for_each(|b| *b = b'_');
    found
}

pub(super) fn number(out: &mut Vec<u8>, value: u64) -> bool {
    // Digits by hand: a formatter call costs several times as much.
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    put_bytes(out, &digits[at..])
}

fn millis(out: &mut Vec<u8>, value: Option<Duration>) -> bool {
    value.is_some_and(|value| number(out, u64::try_from(value.as_millis()).unwrap_or(u64::MAX)))
}

fn address(out: &mut Vec<u8>, value: Option<SocketAddr>) -> bool {
    // A write to a `Vec` cannot fail.
    value.is_some_and(|value| write!(out, "{}", Shown(value)).is_ok())
}

fn ip(out: &mut Vec<u8>, value: Option<SocketAddr>) -> bool {
    value.is_some_and(|value| write!(out, "{}", ShownHost(value)).is_ok())
}

fn port(out: &mut Vec<u8>, value: Option<SocketAddr>) -> bool {
    value.and_then(port_of).is_some_and(|port| number(out, u64::from(port)))
}

fn response_code(subject: &Subject<'_>, out: &mut Vec<u8>) -> bool {
    number(out, subject.http.map_or(0, |http| u64::from(http.response_code)))
}

fn grpc_name(subject: &Subject<'_>, out: &mut Vec<u8>) -> bool {
    grpc_status(subject).is_some_and(|status| GrpcForm::Camel.write(status, out))
}

const RESPONSE_FLAGS_LONG: Field = Field {
    name: "RESPONSE_FLAGS_LONG",
    numeric: false,
    write: |s, out| {
        s.flags.write_long(out);
        true
    },
};

const fn text(name: &'static str, write: fn(&Subject<'_>, &mut Vec<u8>) -> bool) -> Field {
    Field { name, numeric: false, write }
}

const fn num(name: &'static str, write: fn(&Subject<'_>, &mut Vec<u8>) -> bool) -> Field {
    Field { name, numeric: true, write }
}

/// Every operator without arguments.
static FIELDS: [Field; 67] = [
    text("PROTOCOL", |s, out| put_opt(out, s.http.map(|http| http.protocol))),
    num("RESPONSE_CODE", response_code),
    text("RESPONSE_FLAGS", |s, out| {
        s.flags.write_short(out);
        true
    }),
    text("RESPONSE_CODE_DETAILS", |s, out| put_words(out, s.http.map(|h| h.response_code_details))),
    text("CONNECTION_TERMINATION_DETAILS", |s, out| {
        put_words(out, s.connection_termination_details)
    }),
    text("UPSTREAM_TRANSPORT_FAILURE_REASON", |s, out| {
        put_words(out, s.upstream.transport_failure)
    }),
    text("DOWNSTREAM_TRANSPORT_FAILURE_REASON", |s, out| {
        put_words(out, s.downstream.transport_failure)
    }),
    num("BYTES_RECEIVED", |s, out| number(out, s.bytes_received)),
    num("BYTES_SENT", |s, out| number(out, s.bytes_sent)),
    num("DURATION", |s, out| millis(out, Some(s.duration))),
    num("REQUEST_DURATION", |s, out| {
        millis(out, s.http.and_then(|http| http.timing.request_received))
    }),
    num("RESPONSE_DURATION", |s, out| {
        millis(out, s.http.and_then(|http| http.timing.response_started))
    }),
    num("RESPONSE_TX_DURATION", |s, out| {
        let timing = s.http.map(|http| http.timing);
        millis(out, timing.and_then(|t| t.total.checked_sub(t.response_started?)))
    }),
    num("REQUEST_HEADERS_BYTES", |s, out| {
        number(out, s.http.map_or(0, |h| h.wire_bytes_received.saturating_sub(h.bytes_received)))
    }),
    num("RESPONSE_HEADERS_BYTES", |s, out| {
        number(out, s.http.map_or(0, |h| h.wire_bytes_sent.saturating_sub(h.bytes_sent)))
    }),
    num("DOWNSTREAM_WIRE_BYTES_RECEIVED", |s, out| {
        number(out, s.http.map_or(s.bytes_received, |h| h.wire_bytes_received))
    }),
    num("DOWNSTREAM_WIRE_BYTES_SENT", |s, out| {
        number(out, s.http.map_or(s.bytes_sent, |h| h.wire_bytes_sent))
    }),
    text("UPSTREAM_HOST", |s, out| address(out, s.upstream_host())),
    text("UPSTREAM_HOST_NAME", |s, out| match s.upstream.host_name {
        Some(name) => put(out, name),
        None => address(out, s.upstream_host()),
    }),
    text("UPSTREAM_REMOTE_ADDRESS", |s, out| address(out, s.upstream_remote())),
    text("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", |s, out| ip(out, s.upstream_remote())),
    num("UPSTREAM_REMOTE_PORT", |s, out| port(out, s.upstream_remote())),
    text("UPSTREAM_CLUSTER", |s, out| put_opt(out, s.upstream.cluster.map(|c| &*c.name))),
    text("UPSTREAM_CLUSTER_RAW", |s, out| put_opt(out, s.upstream.cluster.map(|c| &*c.name))),
    text("UPSTREAM_LOCAL_ADDRESS", |s, out| address(out, s.upstream.local_address)),
    text("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", |s, out| ip(out, s.upstream.local_address)),
    num("UPSTREAM_LOCAL_PORT", |s, out| port(out, s.upstream.local_address)),
    text("UPSTREAM_PROTOCOL", |s, out| put_opt(out, s.upstream.protocol)),
    num("UPSTREAM_REQUEST_ATTEMPT_COUNT", |s, out| number(out, u64::from(s.upstream.attempts))),
    text("UPSTREAM_TLS_VERSION", |s, out| put_opt(out, s.upstream.tls.map(|tls| tls.version))),
    text("UPSTREAM_TLS_CIPHER", |s, out| put_opt(out, s.upstream.tls.map(|tls| tls.cipher))),
    text("DOWNSTREAM_LOCAL_ADDRESS", |s, out| address(out, s.downstream.local_address)),
    text("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", |s, out| ip(out, s.downstream.local_address)),
    num("DOWNSTREAM_LOCAL_PORT", |s, out| port(out, s.downstream.local_address)),
    text("DOWNSTREAM_REMOTE_ADDRESS", |s, out| address(out, s.downstream.remote_address)),
    text("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", |s, out| ip(out, s.downstream.remote_address)),
    num("DOWNSTREAM_REMOTE_PORT", |s, out| port(out, s.downstream.remote_address)),
    text("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", |s, out| {
        address(out, s.downstream.direct_remote_address)
    }),
    text("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", |s, out| {
        ip(out, s.downstream.direct_remote_address)
    }),
    num("DOWNSTREAM_DIRECT_REMOTE_PORT", |s, out| port(out, s.downstream.direct_remote_address)),
    text("DOWNSTREAM_TLS_VERSION", |s, out| put_opt(out, s.downstream.tls.map(|t| t.version))),
    text("DOWNSTREAM_TLS_CIPHER", |s, out| put_opt(out, s.downstream.tls.map(|t| t.cipher))),
    text("REQUESTED_SERVER_NAME", |s, out| put_opt(out, s.downstream.sni)),
    text("ROUTE_NAME", |s, out| put_opt(out, s.http.and_then(|http| http.route_name))),
    text("VIRTUAL_CLUSTER_NAME", |s, out| {
        put_opt(out, s.http.and_then(|http| http.virtual_cluster))
    }),
    text("FILTER_CHAIN_NAME", |s, out| put(out, &s.listener.filter_chain)),
    num("CONNECTION_ID", |s, out| number(out, s.downstream.connection_id)),
    text("GRPC_STATUS", grpc_name),
    num("GRPC_STATUS_NUMBER", |s, out| grpc_status(s).is_some_and(|code| number(out, code))),
    text("ACCESS_LOG_TYPE", |s, out| put(out, s.log_type)),
    text("STREAM_ID", |s, out| {
        let id = s.request_headers().and_then(|headers| headers.get("x-request-id"));
        id.is_some_and(|id| put_bytes(out, id.as_bytes()))
    }),
    num("RESPONSE_BODY_BYTES", |s, out| number(out, s.bytes_sent)),
    num("UPSTREAM_CONNECTION_ATTEMPTS", |s, out| number(out, u64::from(s.upstream.attempts))),
    text("LISTENER_NAME", |s, out| put(out, &s.listener.listener)),
    num("DOWNSTREAM_HEADER_BYTES_RECEIVED", |s, out| {
        number(out, s.http.map_or(0, |h| h.wire_bytes_received.saturating_sub(h.bytes_received)))
    }),
    num("DOWNSTREAM_HEADER_BYTES_SENT", |s, out| {
        number(out, s.http.map_or(0, |h| h.wire_bytes_sent.saturating_sub(h.bytes_sent)))
    }),
    num("DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED", |s, out| {
        number(out, s.http.map_or(0, |h| h.wire_bytes_received.saturating_sub(h.bytes_received)))
    }),
    num("DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT", |s, out| {
        number(out, s.http.map_or(0, |h| h.wire_bytes_sent.saturating_sub(h.bytes_sent)))
    }),
    num("UPSTREAM_WIRE_BYTES_SENT", |s, out| {
        let bytes = s.http.map_or(s.bytes_received, |h| h.wire_bytes_received);
        number(out, if s.upstream.host.is_some() { bytes } else { 0 })
    }),
    num("UPSTREAM_WIRE_BYTES_RECEIVED", |s, out| {
        let bytes = s.http.map_or(s.bytes_sent, |h| h.wire_bytes_sent);
        number(out, if s.upstream.host.is_some() { bytes } else { 0 })
    }),
    // Counted for QUIC only, in Envoy too.
    num("BYTES_RETRANSMITTED", |_, out| number(out, 0)),
    num("PACKETS_RETRANSMITTED", |_, out| number(out, 0)),
    text("UPSTREAM_HOST_NAME_WITHOUT_PORT", |s, out| match s.upstream.host_name {
        Some(name) => put(out, name),
        None => ip(out, s.upstream_host()),
    }),
    // There, but empty, in Envoy's access logs too.
    text("CUSTOM_FLAGS", |_, _| true),
    text("LOCAL_REPLY_BODY", |_, _| true),
    text("DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID", |_, _| true),
    num("RESPONSE_TRAILERS_BYTES", |s, out| {
        let trailers = s.http.and_then(|http| http.response_trailers);
        let bytes =
            |(name, value): (&HeaderName, &http::HeaderValue)| name.as_str().len() + value.len();
        number(out, trailers.map_or(0, |all| all.iter().map(bytes).sum::<usize>() as u64))
    }),
];
