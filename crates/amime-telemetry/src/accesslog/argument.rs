//! Operators whose argument says what to print, beyond headers and times.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use super::format::Subject;
use super::grpc::{GrpcForm, grpc_status};
use super::operator::{number, put, put_bytes};
use super::start_time::TimeFormat;

/// A compiled operator with its argument.
#[derive(Clone, Debug)]
pub(super) enum Argument {
    /// `GRPC_STATUS(form)`.
    Grpc(GrpcForm),
    /// `EMIT_TIME(format)`: when the line is written.
    EmitTime(TimeFormat),
    /// `QUERY_PARAM(name)`: its first value, decoded.
    QueryParam(Box<str>),
    /// `QUERY_PARAMS(ORIG|DECODED)`.
    QueryParams { decoded: bool },
    /// `PATH(query:which)`.
    Path { query: bool, original: Which },
    /// `COMMON_DURATION(from:to:precision)`.
    Between { from: Point, to: Point, unit: Unit },
    /// `…_REMOTE_ADDRESS_WITHOUT_PORT(prefix length)`.
    Masked { address: Address, bits: u8 },
    /// `RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)`.
    Details,
    /// `REQUESTED_SERVER_NAME(SNI_FIRST|HOST_FIRST)`.
    ServerName { host_first: bool },
    /// `UNIQUE_ID`: another UUID each time.
    UniqueId,
    /// `DYNAMIC_METADATA(namespace:key:…)`.
    Metadata(Box<[Box<str>]>),
}

/// Which path is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// That of `x-envoy-original-path`.
    Original,
    /// That which goes upstream.
    Current,
    /// The first, or else the second.
    OriginalOrCurrent,
}

/// A moment of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Point {
    Start,
    RequestReceived,
    ResponseStarted,
    End,
}

/// In what a duration is printed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unit {
    Millis,
    Micros,
    Nanos,
}

/// One of the client's addresses.
#[derive(Clone, Copy, Debug)]
pub(super) enum Address {
    Remote,
    DirectRemote,
}

impl Argument {
    /// The operator called `name`; `None` if it is not one of these.
    pub(super) fn parse(name: &str, argument: Option<&str>) -> Option<Result<Self, &'static str>> {
        Some(match (name, argument) {
            ("GRPC_STATUS", Some(form)) => {
                GrpcForm::parse(form).map(Self::Grpc).ok_or("not a form of the status")
            }
            ("EMIT_TIME", format) => {
                let format = format.filter(|f| !f.is_empty()).unwrap_or(TimeFormat::DEFAULT);
                TimeFormat::parse(format).map(Self::EmitTime)
            }
            ("DYNAMIC_METADATA", Some(path)) if !path.is_empty() => {
                Ok(Self::Metadata(path.split(':').map(Box::from).collect()))
            }
            ("UNIQUE_ID", None) => Ok(Self::UniqueId),
            ("RESPONSE_CODE_DETAILS", Some("ALLOW_WHITESPACES")) => Ok(Self::Details),
            ("REQUESTED_SERVER_NAME", Some("SNI_FIRST")) => {
                Ok(Self::ServerName { host_first: false })
            }
            ("REQUESTED_SERVER_NAME", Some("HOST_FIRST")) => {
                Ok(Self::ServerName { host_first: true })
            }
            ("QUERY_PARAM", Some(name)) => Ok(Self::QueryParam(name.into())),
            ("QUERY_PARAMS", None | Some("" | "ORIG")) => Ok(Self::QueryParams { decoded: false }),
            ("QUERY_PARAMS", Some("DECODED")) => Ok(Self::QueryParams { decoded: true }),
            ("QUERY_PARAMS", Some(_)) => Err("neither ORIG nor DECODED"),
            ("PATH", argument) => path(argument.unwrap_or_default()),
            ("COMMON_DURATION", Some(argument)) => between(argument),
            ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Some(bits)) => masked(Address::Remote, bits),
            ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", Some(bits)) => {
                masked(Address::DirectRemote, bits)
            }
            _ => return None,
        })
    }

    /// Whether the moments of a `COMMON_DURATION` are recorded here.
    pub(super) fn knows(moments: &str) -> bool {
        between(moments).is_ok()
    }

    /// Whether a lone command prints as a JSON number.
    pub(super) fn is_numeric(&self) -> bool {
        matches!(self, Self::Between { .. } | Self::Grpc(GrpcForm::Number))
    }

    pub(super) fn write(&self, subject: &Subject<'_>, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Grpc(form) => grpc_status(subject).is_some_and(|status| form.write(status, out)),
            Self::EmitTime(format) => {
                format.write(SystemTime::now(), out);
                true
            }
            Self::QueryParam(name) => query_param(subject, name, out),
            Self::QueryParams { decoded } => match current_path(subject).split_once('?') {
                Some((_, query)) if *decoded => put_bytes(out, &decode(query)),
                Some((_, query)) => put(out, query),
                None => false,
            },
            Self::Path { query, original } => write_path(subject, *query, *original, out),
            Self::Between { from, to, unit } => {
                let both = from.of(subject).zip(to.of(subject));
                let between = both.and_then(|(from, to)| to.checked_sub(from));
                between.is_some_and(|between| unit.write(between, out))
            }
            Self::Masked { address, bits } => {
                address.of(subject).is_some_and(|address| write_masked(address.ip(), *bits, out))
            }
            Self::Details => put(out, subject.http.map_or("", |http| http.response_code_details)),
            Self::ServerName { host_first } => {
                let host = subject.http.map(|http| http.authority).filter(|it| !it.is_empty());
                let sni = subject.downstream.sni;
                let name = if *host_first { host.or(sni) } else { sni.or(host) };
                name.is_some_and(|name| put(out, name))
            }
            Self::UniqueId => unique_id(out),
            Self::Metadata(path) => {
                let metadata = subject.http.and_then(|http| http.metadata);
                metadata.is_some_and(|metadata| metadata.write(path, out))
            }
        }
    }
}

fn path(argument: &str) -> Result<Argument, &'static str> {
    let (query, original) = argument.split_once(':').unwrap_or((argument, ""));
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        _ => return Err("neither WQ nor NQ"),
    };
    let original = match original {
        "" | "ORIG_OR_PATH" => Which::OriginalOrCurrent,
        "ORIG" => Which::Original,
        "PATH" => Which::Current,
        _ => return Err("none of ORIG, PATH and ORIG_OR_PATH"),
    };
    Ok(Argument::Path { query, original })
}

fn between(argument: &str) -> Result<Argument, &'static str> {
    let mut parts = argument.split(':');
    let mut point = || match parts.next() {
        Some("DS_RX_BEG") => Ok(Point::Start),
        Some("DS_RX_END") => Ok(Point::RequestReceived),
        Some("US_RX_BEG") => Ok(Point::ResponseStarted),
        Some("DS_TX_END") => Ok(Point::End),
        _ => Err("a moment that is not recorded"),
    };
    let (from, to) = (point()?, point()?);
    let unit = match parts.next() {
        None | Some("ms") => Unit::Millis,
        Some("us") => Unit::Micros,
        Some("ns") => Unit::Nanos,
        Some(_) => return Err("none of ms, us and ns"),
    };
    Ok(Argument::Between { from, to, unit })
}

fn masked(address: Address, bits: &str) -> Result<Argument, &'static str> {
    let bits = bits.parse().ok().filter(|bits| *bits <= 128);
    bits.map(|bits| Argument::Masked { address, bits }).ok_or("not a prefix length")
}

impl Point {
    fn of(self, subject: &Subject<'_>) -> Option<Duration> {
        let timing = subject.http.map(|http| http.timing);
        match self {
            Self::Start => Some(Duration::ZERO),
            Self::RequestReceived => timing?.request_received,
            Self::ResponseStarted => timing?.response_started,
            Self::End => Some(subject.duration),
        }
    }
}

impl Unit {
    fn write(self, duration: Duration, out: &mut Vec<u8>) -> bool {
        let value = match self {
            Self::Millis => duration.as_millis(),
            Self::Micros => duration.as_micros(),
            Self::Nanos => duration.as_nanos(),
        };
        number(out, u64::try_from(value).unwrap_or(u64::MAX))
    }
}

impl Address {
    fn of(self, subject: &Subject<'_>) -> Option<SocketAddr> {
        match self {
            Self::Remote => subject.downstream.remote_address,
            Self::DirectRemote => subject.downstream.direct_remote_address,
        }
    }
}

fn write_masked(address: IpAddr, bits: u8, out: &mut Vec<u8>) -> bool {
    // A write to a `Vec` cannot fail.
    match address {
        IpAddr::V4(address) => {
            let bits = bits.min(32);
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            let network = std::net::Ipv4Addr::from_bits(address.to_bits() & mask);
            write!(out, "{network}/{bits}").is_ok()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            let network = std::net::Ipv6Addr::from_bits(address.to_bits() & mask);
            write!(out, "{network}/{bits}").is_ok()
        }
    }
}

fn current_path<'a>(subject: &Subject<'a>) -> &'a str {
    subject.http.map_or("", |http| http.path)
}

fn write_path(subject: &Subject<'_>, query: bool, which: Which, out: &mut Vec<u8>) -> bool {
    let headers = subject.request_headers();
    let original = headers.and_then(|headers| headers.get("x-envoy-original-path"));
    let original = original.and_then(|value| value.to_str().ok());
    let path = match which {
        Which::Original => original.unwrap_or_default(),
        Which::Current => current_path(subject),
        Which::OriginalOrCurrent => original.unwrap_or(current_path(subject)),
    };
    let end = if query { path.len() } else { path.find('?').unwrap_or(path.len()) };
    put(out, &path[..end])
}

fn query_param(subject: &Subject<'_>, name: &str, out: &mut Vec<u8>) -> bool {
    let Some((_, query)) = current_path(subject).split_once('?') else { return false };
    let query = query.split('#').next().unwrap_or_default();
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let value = pairs.find(|(have, _)| decode(have) == name.as_bytes());
    value.is_some_and(|(_, value)| put_bytes(out, &decode(value)))
}

/// Percent escapes decoded; those that are none stay.
fn decode(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let hex = |at: usize| after.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (byte, hex(0).zip(hex(1))) {
            (b'%', Some((high, low))) => {
                out.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            _ => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

fn unique_id(out: &mut Vec<u8>) -> bool {
    let random = fastrand::u128(..);
    // The bits that say "random UUID".
    let id = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{id:032x}");
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    put(out, &parts.join("-"))
}
