//! What the decoders have in common: settings, events, the lines of a head.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use crate::error::ParseError;

/// What a decoder accepts and keeps.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Longest head, and longest trailer section, in bytes.
    pub max_head_bytes: usize,
    /// Most header lines.
    pub max_headers: usize,
    /// Trailers are an event; otherwise they are checked and dropped.
    pub trailers: bool,
    /// The spelling of header names is kept.
    pub keep_case: bool,
    /// Methods that nobody has heard of are taken.
    pub custom_methods: bool,
    /// A `content-length` beside `transfer-encoding: chunked` is dropped
    /// instead of refused.
    pub allow_chunked_length: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_head_bytes: 60 * 1024,
            max_headers: 100,
            trailers: false,
            keep_case: false,
            custom_methods: false,
            allow_chunked_length: false,
        }
    }
}

/// How much follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// The head is the whole message; no [`Event::End`] follows.
    Empty,
    /// This many bytes.
    Known(u64),
    /// Chunks, and perhaps trailers.
    Chunked,
    /// Whatever comes until the sender closes: responses only.
    UntilClose,
    /// What follows is no HTTP any more, or may not be: an upgrade or CONNECT.
    Raw,
}

/// What a decoder found.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<H> {
    /// A message's head.
    Head(H),
    /// A part of the body.
    Data(Bytes),
    /// Headers after the body.
    Trailers(HeaderMap),
    /// The message's end.
    End,
}

/// A decoder of one side.
pub(crate) trait Decode {
    type Head;

    /// The next event in `buf`, `None` if that needs more bytes.
    fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Event<Self::Head>>, ParseError>;

    /// True if the body's last byte was in the last event, so that only its
    /// end is missing, which is then not an event any more.
    fn take_end(&mut self) -> bool;

    /// What the stream's end means now; `None` if nothing was begun.
    fn finish(&mut self) -> Result<Option<Event<Self::Head>>, ParseError>;
}

/// Lines of a head that is not complete yet: no byte is looked at twice.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// Where each line ends, its line feed included.
    ends: Vec<u32>,
    scanned: usize,
}

impl Lines {
    /// Looks at what has come. True once an empty line has ended the section.
    pub(crate) fn scan(&mut self, buf: &[u8], limit: usize) -> Result<bool, ParseError> {
        // A head as long as the limit is good, so a part of one is too long
        // only if no line feed can follow within it.
        let within = &buf[..buf.len().min(limit)];
        while let Some(at) = memchr::memchr(b'\n', &within[self.scanned..]) {
            let start = self.end(self.ends.len());
            let end = self.scanned + at + 1;
            // Limits are far below 4 GiB.
            self.ends.push(u32::try_from(end).map_err(|_| ParseError::HeadTooLarge)?);
            self.scanned = end;
            if matches!(&within[start..end], b"\n" | b"\r\n") {
                return Ok(true);
            }
        }
        self.scanned = within.len();
        if buf.len() >= limit { Err(ParseError::HeadTooLarge) } else { Ok(false) }
    }

    /// Number of complete lines.
    pub(crate) fn count(&self) -> usize {
        self.ends.len()
    }

    /// Where the first `count` lines end.
    pub(crate) fn end(&self, count: usize) -> usize {
        match count.checked_sub(1).and_then(|last| self.ends.get(last)) {
            Some(end) => *end as usize,
            None => 0,
        }
    }

    /// Cuts the section off `buf`.
    pub(crate) fn take(&self, buf: &mut BytesMut) -> Bytes {
        buf.split_to(self.end(self.count())).freeze()
    }

    pub(crate) fn clear(&mut self) {
        self.ends.clear();
        self.scanned = 0;
    }
}

/// Drops empty lines in front of a message, as old clients send them after a
/// body.
pub(crate) fn skip_empty_lines(buf: &mut BytesMut) {
    let count = buf.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if count > 0 {
        buf.advance(count);
    }
}
