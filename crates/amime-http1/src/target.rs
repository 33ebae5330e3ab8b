//! Request targets.

use bytes::Bytes;
use http::Method;

use crate::error::ParseError;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A path with its query, or `*`. Begins with a slash, unless it follows
    /// an absolute target's authority.
    Path(Bytes),
    /// A whole URL.
    Absolute {
        /// The scheme is `https`.
        https: bool,
        /// Host and perhaps port; user names are left out.
        authority: Bytes,
        /// Path and query; a slash if the URL has none.
        path: Bytes,
    },
    /// Host and port of a CONNECT request.
    Authority(Bytes),
}

impl Target {
    /// Parses a target; `raw` has passed [`valid`].
    pub(crate) fn parse(method: &Method, raw: Bytes) -> Result<Self, ParseError> {
        if *method == Method::CONNECT {
            let (_, port) = authority(&raw)?;
            return if port { Ok(Self::Authority(raw)) } else { Err(ParseError::Url) };
        }
        match raw.first() {
            Some(b'/') => return Ok(Self::Path(raw)),
            Some(b'*') if *method == Method::OPTIONS => return Ok(Self::Path(raw)),
            _ => {}
        }
        let colon = memchr::memmem::find(&raw, b"://").ok_or(ParseError::Url)?;
        let https = match &raw[..colon] {
            scheme if scheme.eq_ignore_ascii_case(b"http") => false,
            scheme if scheme.eq_ignore_ascii_case(b"https") => true,
            _ => return Err(ParseError::Scheme),
        };
        let rest = raw.slice(colon + 3..);
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
        let path = match &rest[end..] {
            [] => Bytes::from_static(b"/"),
            _ => rest.slice(end..),
        };
        let whole = rest.slice(..end);
        let (host_start, _) = authority(&whole)?;
        Ok(Self::Absolute { https, authority: whole.slice(host_start..), path })
    }
}

/// Where host and port begin in an authority, and whether there is a port.
fn authority(text: &[u8]) -> Result<(usize, bool), ParseError> {
    let start = text.iter().rposition(|byte| *byte == b'@').map_or(0, |at| at + 1);
    let host_and_port = &text[start..];
    let colon = match host_and_port.first() {
        Some(b'[') => {
            let end = memchr::memchr(b']', host_and_port).ok_or(ParseError::Url)?;
            let inside = &host_and_port[1..end];
            let good = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.' | b'%');
            if inside.is_empty() || !inside.iter().all(good) {
                return Err(ParseError::Url);
            }
            end + 1
        }
        _ => {
            let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
            let end = host_and_port.iter().position(|byte| !good(byte));
            match end {
                Some(0) => return Err(ParseError::Url),
                None if host_and_port.is_empty() => return Err(ParseError::Url),
                end => end.unwrap_or(host_and_port.len()),
            }
        }
    };
    match &host_and_port[colon..] {
        [] => Ok((start, false)),
        [b':', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
            let port = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
            port.map(|_: u16| (start, true)).ok_or(ParseError::Url)
        }
        _ => Err(ParseError::Url),
    }
}

/// True if a target has the form and the characters of one.
pub(crate) fn valid(target: &[u8], connect: bool) -> bool {
    let visible = |byte: &u8| (b'!'..=b'~').contains(byte);
    let rest = match target {
        [] => return false,
        [b'/' | b'*', rest @ ..] => return rest.iter().all(visible),
        _ if connect => target,
        [first, ..] => {
            let suffix = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
            let end = target.iter().position(|byte| !suffix(byte)).unwrap_or(target.len());
            match target[end..].strip_prefix(b"://") {
                Some(rest) if first.is_ascii_alphabetic() => rest,
                _ => return false,
            }
        }
    };
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    let in_host =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=@[]_~".contains(byte);
    host.iter().all(in_host)
        && !host.windows(2).any(|pair| pair == b"@@")
        && path.iter().all(visible)
}
