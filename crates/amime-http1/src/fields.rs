//! Header lines, and what they say about framing.
//!
//! Lenient where Envoy is, so that both see the same message: lines may end
//! without a carriage return, and a value may go on in a line that begins with
//! a blank. Names are tokens and touch their colon.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::casing::HeaderCase;
use crate::codec::{Lines, Options};
use crate::error::ParseError;

/// Which bytes a token is made of.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        let ascii = byte as u8;
        table[byte] = ascii.is_ascii_alphanumeric();
        byte += 1;
    }
    let marks = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < marks.len() {
        table[marks[at] as usize] = true;
        at += 1;
    }
    table
};

/// What `transfer-encoding` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Encoding {
    #[default]
    None,
    Chunked,
    Unknown,
}

/// Headers of one section with what framing needs of them.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    pub(crate) headers: HeaderMap,
    pub(crate) case: Option<HeaderCase>,
    pub(crate) length: Option<u64>,
    /// There was a `content-length` that is no number.
    bad_length: bool,
    encoding: Encoding,
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    connection_upgrade: bool,
    upgrade: bool,
    pub(crate) expect_continue: bool,
}

/// Room for what a proxy adds, so that the map need not grow.
const ADDED_HEADERS: usize = 8;

impl Fields {
    /// Parses the lines from number `first` on; the last one is empty.
    pub(crate) fn parse(
        section: &Bytes,
        lines: &Lines,
        first: usize,
        options: &Options,
    ) -> Result<Self, ParseError> {
        let last = lines.count() - 1;
        let expected = last.saturating_sub(first).min(options.max_headers) + ADDED_HEADERS;
        let mut fields = Self { headers: HeaderMap::with_capacity(expected), ..Self::default() };
        if options.keep_case {
            fields.case = Some(HeaderCase::default());
        }
        let mut count = 0;
        each(section, lines, first, |name, value| {
            count += 1;
            if count > options.max_headers {
                return Err(ParseError::TooManyHeaders);
            }
            fields.add(section, name, value)
        })?;
        Ok(fields)
    }

    fn add(&mut self, section: &Bytes, name: &[u8], value: HeaderValue) -> Result<(), ParseError> {
        if let Some(case) = &mut self.case {
            case.keep(section.slice_ref(name));
        }
        let name = HeaderName::from_bytes(name).map_err(|_| ParseError::Header)?;
        if name == header::CONTENT_LENGTH {
            if self.length.is_some() || self.bad_length {
                return Err(ParseError::ContentLength);
            }
            self.length = number(value.as_bytes());
            self.bad_length = self.length.is_none();
        } else if name == header::TRANSFER_ENCODING {
            let chunked = value.as_bytes().eq_ignore_ascii_case(b"chunked");
            self.encoding = match self.encoding {
                Encoding::None if chunked => Encoding::Chunked,
                _ => Encoding::Unknown,
            };
        } else if name == header::CONNECTION {
            self.connection(value.as_bytes());
        } else if name == header::UPGRADE {
            self.upgrade = !value.as_bytes().eq_ignore_ascii_case(b"h2c");
        } else if name == header::EXPECT {
            self.expect_continue = value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        } else if name == "proxy-connection" {
            self.close |= tokens(value.as_bytes()).any(|token| token == b"close");
        }
        self.headers.try_append(name, value).map_err(|_| ParseError::TooManyHeaders)?;
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) {
        for token in tokens(value) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.connection_upgrade = true;
            }
        }
    }

    /// True if the sender wants to leave HTTP.
    pub(crate) fn wants_upgrade(&self) -> bool {
        self.upgrade && self.connection_upgrade
    }

    /// True if chunks follow. Errors on lengths that two readers could
    /// understand differently.
    pub(crate) fn chunked(&mut self, options: &Options) -> Result<bool, ParseError> {
        let has_length = self.length.is_some() || self.bad_length;
        match self.encoding {
            Encoding::None if self.bad_length => Err(ParseError::ContentLength),
            Encoding::None => Ok(false),
            Encoding::Chunked if has_length && options.allow_chunked_length => {
                self.headers.remove(header::CONTENT_LENGTH);
                self.length = None;
                Ok(true)
            }
            _ if has_length => Err(ParseError::LengthAndEncoding),
            Encoding::Chunked => Ok(true),
            Encoding::Unknown => Err(ParseError::TransferEncoding),
        }
    }

    pub(crate) fn encoding(&self) -> Encoding {
        self.encoding
    }
}

/// Checks the lines of a section of which nothing is kept.
pub(crate) fn check(section: &Bytes, lines: &Lines) -> Result<(), ParseError> {
    each(section, lines, 0, |_, _| Ok(()))
}

/// Calls `visit` with each name, as it is spelled, and value.
fn each(
    section: &Bytes,
    lines: &Lines,
    first: usize,
    mut visit: impl FnMut(&[u8], HeaderValue) -> Result<(), ParseError>,
) -> Result<(), ParseError> {
    let last = lines.count() - 1;
    let mut index = first;
    while index < last {
        let start = lines.end(index);
        index += 1;
        // Lines that begin with a blank go on with the value before them.
        while index < last {
            match section[lines.end(index)] {
                b' ' | b'\t' => index += 1,
                byte if byte > b' ' => break,
                _ => return Err(ParseError::Header),
            }
        }
        let line = &section[start..lines.end(index)];
        let colon = memchr::memchr(b':', line).ok_or(ParseError::Header)?;
        let name = &line[..colon];
        if name.is_empty() || !name.iter().all(|byte| TOKEN[usize::from(*byte)]) {
            return Err(ParseError::Header);
        }
        visit(name, value(section, &line[colon + 1..])?)?;
    }
    Ok(())
}

fn value(section: &Bytes, raw: &[u8]) -> Result<HeaderValue, ParseError> {
    let text = trim(raw);
    if text.is_empty() {
        return Ok(HeaderValue::from_static(""));
    }
    HeaderValue::from_maybe_shared(section.slice_ref(text)).or_else(|_| {
        // Line ends within a folded value, and stray carriage returns, are
        // left out.
        let joined: Vec<u8> =
            text.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
        HeaderValue::from_maybe_shared(Bytes::from(joined)).map_err(|_| ParseError::Characters)
    })
}

/// Cuts off blanks and line ends.
fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' ' | b'\t' | b'\r' | b'\n'] = text {
        text = rest;
    }
    text
}

/// A number of digits only, as a length is written.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim)
}
