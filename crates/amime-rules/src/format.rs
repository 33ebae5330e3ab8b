//! Command operators in header values: `%REQ(:path)%`, `%RESPONSE_CODE%` …
//!
//! Access logs have a richer set of their own, rendered when a request has
//! ended; these are rendered while it is in flight.

use std::borrow::Cow;
use std::net::SocketAddr;

use amime_core::unix::{Shown, ShownHost, port_of};
use amime_identity::{CertificateDetails, NameKind};
use amime_telemetry::{DynamicMetadata, PeerText, ResponseFlags};
use http::{HeaderMap, HeaderValue};

use super::matcher::HeaderSource;
use crate::head::RequestHead;
use crate::tls_facts::TlsFacts;

/// What operators can refer to.
#[derive(Clone, Copy, Default)]
pub struct FormatInput<'a> {
    /// The request; while its own headers are edited, its other parts.
    pub request: Option<&'a RequestHead>,
    /// True while a response is edited: its headers are not the request's.
    pub editing_response: bool,
    pub response_code: u16,
    pub downstream_remote: Option<SocketAddr>,
    pub downstream_local: Option<SocketAddr>,
    pub upstream_host: Option<SocketAddr>,
    pub sni: Option<&'a str>,
    pub protocol: &'a str,
    pub tls: Option<&'a TlsFacts>,
    pub route_name: &'a str,
    pub cluster: &'a str,
    pub details: &'a str,
    pub flags: ResponseFlags,
    /// Body of the proxy's own answer.
    pub local_reply: &'a str,
    /// What filters found out.
    pub metadata: Option<&'a DynamicMetadata>,
}

impl<'a> FormatInput<'a> {
    /// What the certificate that the client was shown says of itself.
    fn local(&self) -> Option<&'a CertificateDetails> {
        Some(self.tls?.local.as_ref()?.details())
    }
}

#[derive(Clone, Debug)]
pub enum Piece {
    Text(String),
    Request {
        main: HeaderSource,
        alternative: Option<HeaderSource>,
        limit: usize,
    },
    Response {
        name: HeaderSource,
        limit: usize,
    },
    ResponseCode,
    ResponseFlags,
    ResponseCodeDetails,
    LocalReplyBody,
    RemoteAddress,
    RemoteAddressWithoutPort,
    LocalAddress,
    LocalAddressWithoutPort,
    LocalPort,
    UpstreamHost,
    Sni,
    Protocol,
    TlsVersion,
    TlsCipher,
    /// Text of the client's certificate.
    Peer(PeerText),
    /// Names of the certificate that the client was shown.
    Local(NameKind),
    LocalSubject,
    RouteName,
    Cluster,
    Hostname,
    StartTime,
    /// A namespace, and keys.
    Metadata {
        path: Box<[Box<str>]>,
        limit: usize,
    },
}

/// A header value, ready-made when it has no operators.
#[derive(Clone, Debug)]
pub enum Format {
    Fixed(HeaderValue),
    Pieces(Vec<Piece>),
}

impl Format {
    pub fn parse(text: &str) -> Result<Self, String> {
        let pieces = pieces(text)?;
        match pieces.as_slice() {
            [] => Ok(Self::Fixed(HeaderValue::from_static(""))),
            [Piece::Text(text)] => HeaderValue::from_str(text)
                .map(Self::Fixed)
                .map_err(|_| format!("`{text}` is not a header value")),
            _ => Ok(Self::Pieces(pieces)),
        }
    }

    /// The value now; `headers` is the map under edit.
    pub fn render(&self, headers: &HeaderMap, input: &FormatInput<'_>) -> HeaderValue {
        match self {
            Self::Fixed(value) => value.clone(),
            Self::Pieces(pieces) => {
                let mut out = Vec::new();
                for piece in pieces {
                    piece.write(&mut out, headers, input);
                }
                // Bytes from a peer were valid in a header, joined they still are.
                HeaderValue::from_bytes(&out).unwrap_or_else(|_| HeaderValue::from_static(""))
            }
        }
    }
}

/// Text of any kind with operators.
#[derive(Clone, Debug)]
pub struct TextFormat(Vec<Piece>);

impl TextFormat {
    pub fn parse(text: &str) -> Result<Self, String> {
        pieces(text).map(Self)
    }

    pub fn render(&self, headers: &HeaderMap, input: &FormatInput<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        self.0.iter().for_each(|piece| piece.write(&mut out, headers, input));
        out
    }

    /// True if the text is one operator.
    pub(crate) fn is_operator(&self) -> bool {
        !matches!(self.0.as_slice(), [Piece::Text(_)]) && self.0.len() == 1
    }

    /// True for an operator that always has a value, if an empty one.
    pub(crate) fn may_be_empty(&self) -> bool {
        matches!(self.0.as_slice(), [Piece::LocalReplyBody])
    }

    /// True for an operator that stands for a number.
    pub(crate) fn is_number(&self) -> bool {
        matches!(self.0.as_slice(), [Piece::ResponseCode])
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('%') {
        plain.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            plain.push('%');
            rest = after;
            continue;
        }
        let end = operator_end(rest).ok_or_else(|| format!("unterminated operator in `{text}`"))?;
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(operator(&rest[..end])?);
        rest = &rest[end + 1..];
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

/// Index of the closing percent sign; those within parentheses do not count.
fn operator_end(text: &str) -> Option<usize> {
    let mut depth = 0_u32;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b'%' if depth == 0 => return Some(index),
            _ => {}
        }
    }
    None
}

fn operator(text: &str) -> Result<Piece, String> {
    let unknown = || format!("operator `%{text}%` is not supported");
    let (name, argument, limit) = split_operator(text).ok_or_else(unknown)?;
    let source = |name: &str| HeaderSource::parse(name).ok_or_else(unknown);
    Ok(match (name, argument) {
        ("REQ", Some(argument)) => {
            let (main, alternative) = match argument.split_once('?') {
                Some((main, other)) => (source(main)?, Some(source(other)?)),
                None => (source(argument)?, None),
            };
            Piece::Request { main, alternative, limit }
        }
        ("RESP", Some(argument)) => Piece::Response { name: source(argument)?, limit },
        ("RESPONSE_CODE", None) => Piece::ResponseCode,
        ("RESPONSE_FLAGS", None) => Piece::ResponseFlags,
        ("RESPONSE_CODE_DETAILS", None) => Piece::ResponseCodeDetails,
        ("LOCAL_REPLY_BODY", None) => Piece::LocalReplyBody,
        ("DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS", None) => {
            Piece::RemoteAddress
        }
        (
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT"
            | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT"
            | "CLIENT_IP",
            None,
        ) => Piece::RemoteAddressWithoutPort,
        ("DOWNSTREAM_LOCAL_ADDRESS", None) => Piece::LocalAddress,
        ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", None) => Piece::LocalAddressWithoutPort,
        ("DOWNSTREAM_LOCAL_PORT", None) => Piece::LocalPort,
        ("UPSTREAM_REMOTE_ADDRESS" | "UPSTREAM_HOST", None) => Piece::UpstreamHost,
        ("REQUESTED_SERVER_NAME", None) => Piece::Sni,
        ("PROTOCOL", None) => Piece::Protocol,
        ("DOWNSTREAM_TLS_VERSION", None) => Piece::TlsVersion,
        ("DOWNSTREAM_TLS_CIPHER", None) => Piece::TlsCipher,
        ("ROUTE_NAME", None) => Piece::RouteName,
        ("UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW", None) => Piece::Cluster,
        ("HOSTNAME", None) => Piece::Hostname,
        ("START_TIME", None) => Piece::StartTime,
        ("DYNAMIC_METADATA", Some(path)) if !path.is_empty() => {
            Piece::Metadata { path: path.split(':').map(Box::from).collect(), limit }
        }
        (name, None) => certificate(name).ok_or_else(unknown)?,
        _ => return Err(unknown()),
    })
}

/// Operators that print certificates. The client's chain beyond its own
/// certificate is not kept for headers, which change with the routes.
fn certificate(name: &str) -> Option<Piece> {
    if let Some(end) = name.strip_prefix("DOWNSTREAM_PEER_") {
        return PeerText::named(end).filter(|text| !text.of_chain()).map(Piece::Peer);
    }
    match name.strip_prefix("DOWNSTREAM_LOCAL_")? {
        "SUBJECT" => Some(Piece::LocalSubject),
        "URI_SAN" => Some(Piece::Local(NameKind::Uri)),
        "DNS_SAN" => Some(Piece::Local(NameKind::Dns)),
        "IP_SAN" => Some(Piece::Local(NameKind::Ip)),
        "EMAIL_SAN" => Some(Piece::Local(NameKind::Email)),
        _ => None,
    }
}

/// Splits `NAME(argument):limit`.
fn split_operator(text: &str) -> Option<(&str, Option<&str>, usize)> {
    let Some(open) = text.find('(') else { return Some((text, None, usize::MAX)) };
    let close = text.rfind(')')?;
    let limit = match text[close + 1..].strip_prefix(':') {
        Some(limit) => limit.parse().ok()?,
        None if close + 1 == text.len() => usize::MAX,
        None => return None,
    };
    Some((&text[..open], Some(text.get(open + 1..close)?), limit))
}

impl Piece {
    fn write(&self, out: &mut Vec<u8>, headers: &HeaderMap, input: &FormatInput<'_>) {
        match self {
            Self::Text(text) => out.extend_from_slice(text.as_bytes()),
            Self::Request { main, alternative, limit } => {
                let value = request_value(main, headers, input)
                    .or_else(|| request_value(alternative.as_ref()?, headers, input));
                put_limited(out, value, *limit);
            }
            Self::Response { name: HeaderSource::Header(name), limit } => {
                let value = headers.get(name).map(|value| Cow::Borrowed(value.as_bytes()));
                put_limited(out, value, *limit);
            }
            Self::Response { .. } => {}
            Self::ResponseCode => out.extend_from_slice(input.response_code.to_string().as_bytes()),
            Self::ResponseFlags => input.flags.write_short(out),
            Self::ResponseCodeDetails => put(out, Some(input.details)),
            Self::LocalReplyBody => put(out, Some(input.local_reply)),
            Self::RemoteAddress => put(out, input.downstream_remote.map(Shown)),
            Self::RemoteAddressWithoutPort => put(out, input.downstream_remote.map(ShownHost)),
            Self::LocalAddress => put(out, input.downstream_local.map(Shown)),
            Self::LocalAddressWithoutPort => put(out, input.downstream_local.map(ShownHost)),
            Self::LocalPort => put(out, input.downstream_local.and_then(port_of)),
            Self::UpstreamHost => put(out, input.upstream_host.map(Shown)),
            Self::Sni => put(out, input.sni),
            Self::Protocol => put(out, Some(input.protocol)),
            Self::TlsVersion => put(out, input.tls.map(|tls| tls.version)),
            Self::TlsCipher => put(out, input.tls.map(|tls| tls.cipher)),
            Self::Peer(text) => {
                put(out, input.tls.and_then(|tls| tls.peer.as_ref()).map(|peer| text.of(peer)));
            }
            Self::Local(kind) => put(out, input.local().map(|local| local.joined_names(*kind))),
            Self::LocalSubject => put(out, input.local().map(|local| &local.subject)),
            Self::RouteName => put(out, Some(input.route_name)),
            Self::Cluster => put(out, Some(input.cluster)),
            Self::Hostname => {
                static NAME: std::sync::OnceLock<String> = std::sync::OnceLock::new();
                let read =
                    || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
                out.extend_from_slice(NAME.get_or_init(read).trim().as_bytes());
            }
            Self::Metadata { path, limit } => {
                let start = out.len();
                if let Some(metadata) = input.metadata {
                    metadata.write(path, out);
                }
                out.truncate(out.len().min(start.saturating_add(*limit)));
            }
            Self::StartTime => {
                let now = time::OffsetDateTime::now_utc();
                put(out, now.format(&time::format_description::well_known::Rfc3339).ok());
            }
        }
    }
}

fn request_value<'a>(
    source: &HeaderSource,
    headers: &'a HeaderMap,
    input: &FormatInput<'a>,
) -> Option<Cow<'a, [u8]>> {
    if let Some(value) = input.request.and_then(|request| source.value(request)) {
        return Some(value);
    }
    let name = match source {
        _ if input.editing_response => return None,
        HeaderSource::Header(name) => name,
        HeaderSource::Authority => &http::header::HOST,
        _ => return None,
    };
    headers.get(name).map(|value| Cow::Borrowed(value.as_bytes()))
}

fn put(out: &mut Vec<u8>, value: Option<impl std::fmt::Display>) {
    if let Some(value) = value {
        out.extend_from_slice(value.to_string().as_bytes());
    }
}

fn put_limited(out: &mut Vec<u8>, value: Option<Cow<'_, [u8]>>, limit: usize) {
    if let Some(value) = value {
        out.extend_from_slice(&value[..value.len().min(limit)]);
    }
}
