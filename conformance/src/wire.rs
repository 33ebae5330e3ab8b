//! HTTP/1.1 as bytes, for the backend and for the client.
//!
//! Deliberately forgiving and literal: it shows what a proxy sent, in the
//! proxy's own spelling, and never repairs it.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest head that is read.
const MAX_HEAD: usize = 1024 * 1024;
/// Longest body that is kept.
const MAX_BODY: usize = 16 * 1024 * 1024;

/// Start line and fields of a message, bytes as Latin-1.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) start: String,
    pub(crate) fields: Vec<(String, String)>,
}

impl Head {
    /// Splits a head that ends in a blank line.
    fn parse(bytes: &[u8]) -> Self {
        let text: String = bytes.iter().map(|&byte| char::from(byte)).collect();
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let fields = lines.map(|line| match line.split_once(':') {
            Some((name, value)) => (name.to_owned(), value.trim().to_owned()),
            None => (line.to_owned(), String::new()),
        });
        Self { start, fields: fields.collect() }
    }

    /// First value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.as_str())
    }

    /// Whether a field lists a token.
    pub(crate) fn lists(&self, name: &str, token: &str) -> bool {
        self.fields
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name))
            .flat_map(|(_, value)| value.split(','))
            .any(|one| one.trim().eq_ignore_ascii_case(token))
    }

    /// Status of a response, zero when there is none.
    pub(crate) fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default()
    }

    /// How the body after this head ends; `default` without any framing field.
    pub(crate) fn framing(&self, default: Framing) -> Framing {
        if self.lists("transfer-encoding", "chunked") {
            return Framing::Chunked;
        }
        let length = self.field("content-length").and_then(|length| length.parse().ok());
        length.map_or(default, Framing::Length)
    }
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(usize),
    Chunked,
    UntilClose,
}

/// A body as far as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Body {
    pub(crate) bytes: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    pub(crate) complete: bool,
}

/// A stream with what was read too far.
#[derive(Debug)]
pub(crate) struct Reader<S> {
    pub(crate) stream: S,
    pub(crate) buffer: BytesMut,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Reads more bytes; false at the end.
    pub(crate) async fn fill(&mut self) -> io::Result<bool> {
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }

    /// The next head; none when the stream ends before one is whole.
    pub(crate) async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(end) = self.find(b"\r\n\r\n") {
                return Ok(Some(Head::parse(&self.buffer.split_to(end + 4))));
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(io::Error::other("head without end"));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// The body, incomplete when the stream ends or makes no sense.
    pub(crate) async fn body(&mut self, framing: Framing) -> Body {
        let mut body = Body::default();
        let ended = match framing {
            Framing::None => Ok(true),
            Framing::Length(length) => self.take(length, &mut body.bytes).await,
            Framing::Chunked => self.chunks(&mut body).await,
            Framing::UntilClose => self.rest(&mut body.bytes).await,
        };
        body.complete = ended.unwrap_or(false);
        body
    }

    async fn take(&mut self, mut length: usize, into: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            let part = self.buffer.split_to(length.min(self.buffer.len()));
            into.extend_from_slice(&part);
            length -= part.len();
            if length == 0 {
                return Ok(true);
            }
            if into.len() > MAX_BODY || !self.fill().await? {
                return Ok(false);
            }
        }
    }

    async fn rest(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            into.extend_from_slice(&self.buffer.split());
            if into.len() > MAX_BODY {
                return Ok(false);
            }
            if !self.fill().await? {
                return Ok(true);
            }
        }
    }

    async fn chunks(&mut self, body: &mut Body) -> io::Result<bool> {
        loop {
            let Some(line) = self.line().await? else { return Ok(false) };
            let size = line.split(';').next().unwrap_or_default().trim();
            let Ok(size) = usize::from_str_radix(size, 16) else { return Ok(false) };
            if size == 0 {
                return self.trailers(&mut body.trailers).await;
            }
            if !self.take(size, &mut body.bytes).await? || self.line().await?.is_none() {
                return Ok(false);
            }
        }
    }

    async fn trailers(&mut self, into: &mut Vec<(String, String)>) -> io::Result<bool> {
        while let Some(line) = self.line().await? {
            if line.is_empty() {
                return Ok(true);
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            into.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(false)
    }

    async fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.find(b"\r\n") {
                let line = self.buffer.split_to(end + 2);
                return Ok(Some(line[..end].iter().map(|&byte| char::from(byte)).collect()));
            }
            if self.buffer.len() > MAX_HEAD || !self.fill().await? {
                return Ok(None);
            }
        }
    }

    fn find(&self, what: &[u8]) -> Option<usize> {
        self.buffer.windows(what.len()).position(|window| window == what)
    }
}

/// Text of Latin-1 characters as the bytes it stands for.
pub(crate) fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect()
}

/// A body in one line: itself when short and readable, else its length and sum.
pub(crate) fn summary(bytes: &[u8]) -> String {
    let readable = |byte: &u8| matches!(byte, 0x20..=0x7e | b'\n');
    if bytes.len() <= 300 && bytes.iter().all(readable) {
        return String::from_utf8_lossy(bytes).replace('\n', "\\n");
    }
    let sum = bytes.iter().fold(0_u64, |sum, &byte| {
        sum.wrapping_mul(1_099_511_628_211).wrapping_add(u64::from(byte))
    });
    format!("{} bytes, sum {sum:x}", bytes.len())
}
