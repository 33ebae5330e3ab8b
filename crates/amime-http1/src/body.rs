//! Bodies: how many bytes belong to a message.

use bytes::{Buf, BytesMut};
use http::HeaderMap;

use crate::codec::{BodyLength, Event, Lines, Options};
use crate::error::ParseError;
use crate::fields::{self, Fields};

/// A body that is being read.
#[derive(Debug)]
pub(crate) enum Body {
    Length(u64),
    Chunked(Box<Chunks>),
    UntilClose,
}

#[derive(Debug, Default)]
pub(crate) struct Chunks {
    state: State,
    /// Bytes left of the chunk, or its size as far as it is read.
    left: u64,
    /// Bytes of the size line, or after a chunk, that carry nothing.
    idle: usize,
    lines: Lines,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the first digit.
    #[default]
    Start,
    Size,
    /// Between size and line end; true after a carriage return.
    Extension(bool),
    Data,
    /// Between a chunk's bytes and the next line.
    AfterData,
    Trailers,
    Done,
}

/// Most bytes that a chunk's extension, or junk after a chunk, may have.
const MAX_IDLE: usize = 64 * 1024;

impl Body {
    /// Reads a body of `length`; `None` if there is nothing to read.
    pub(crate) fn new(length: BodyLength) -> Option<Self> {
        match length {
            BodyLength::Known(length) => Some(Self::Length(length)),
            BodyLength::Chunked => Some(Self::Chunked(Box::default())),
            BodyLength::UntilClose => Some(Self::UntilClose),
            BodyLength::Empty | BodyLength::Raw => None,
        }
    }

    /// True if no byte is missing.
    pub(crate) fn complete(&self) -> bool {
        matches!(self, Self::Length(0))
    }

    /// The next event; after [`Event::End`] the body is over.
    pub(crate) fn decode<H>(
        &mut self,
        buf: &mut BytesMut,
        options: &Options,
    ) -> Result<Option<Event<H>>, ParseError> {
        match self {
            Self::Length(0) => Ok(Some(Event::End)),
            Self::Length(left) => Ok(data(buf, left)),
            Self::UntilClose => {
                let mut unlimited = u64::MAX;
                Ok(data(buf, &mut unlimited))
            }
            Self::Chunked(chunks) => chunks.decode(buf, options),
        }
    }
}

/// Takes what there is of `left` bytes.
fn data<H>(buf: &mut BytesMut, left: &mut u64) -> Option<Event<H>> {
    if buf.is_empty() {
        return None;
    }
    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
    *left -= count as u64;
    Some(Event::Data(buf.split_to(count).freeze()))
}

impl Chunks {
    fn decode<H>(
        &mut self,
        buf: &mut BytesMut,
        options: &Options,
    ) -> Result<Option<Event<H>>, ParseError> {
        loop {
            match self.state {
                State::Done => return Ok(Some(Event::End)),
                State::Data if self.left == 0 => {
                    self.state = State::AfterData;
                    self.idle = 0;
                }
                State::Data => return Ok(data(buf, &mut self.left)),
                State::Trailers => {
                    return Ok(match self.trailers(buf, options)? {
                        None => None,
                        Some(Some(trailers)) => Some(Event::Trailers(trailers)),
                        Some(None) => Some(Event::End),
                    });
                }
                State::Start | State::Size | State::Extension(_) | State::AfterData => {
                    let Some(byte) = buf.first().copied() else { return Ok(None) };
                    self.step(byte)?;
                    buf.advance(1);
                }
            }
        }
    }

    /// One byte between chunks.
    fn step(&mut self, byte: u8) -> Result<(), ParseError> {
        self.idle += 1;
        if self.idle > MAX_IDLE {
            return Err(ParseError::Chunk);
        }
        self.state = match (self.state, byte) {
            // Whatever stands between a chunk and its line end means nothing;
            // the body is written anew, so nobody else has to guess.
            (State::AfterData, b'\n') => {
                self.left = 0;
                self.idle = 0;
                State::Start
            }
            (State::AfterData, _) => State::AfterData,
            (State::Size, b'\t' | b' ' | b';') => State::Extension(false),
            (State::Size, b'\r') => State::Extension(true),
            (State::Extension(true), b'\n') if self.left == 0 => State::Trailers,
            (State::Extension(true), b'\n') => State::Data,
            // A lone carriage return or line feed: readers differ on whether
            // the line ends there.
            (State::Extension(true), _) | (State::Extension(false), b'\n') => {
                return Err(ParseError::Chunk);
            }
            (State::Extension(false), byte) => State::Extension(byte == b'\r'),
            (_, byte) => {
                let digit = char::from(byte).to_digit(16).ok_or(ParseError::Chunk)?;
                let shifted = self.left.checked_mul(16).ok_or(ParseError::Chunk)?;
                self.left = shifted + u64::from(digit);
                State::Size
            }
        };
        Ok(())
    }

    /// `Some(None)` at the end of a body without trailers.
    fn trailers(
        &mut self,
        buf: &mut BytesMut,
        options: &Options,
    ) -> Result<Option<Option<HeaderMap>>, ParseError> {
        if !self.lines.scan(buf, options.max_head_bytes)? {
            return Ok(None);
        }
        let section = self.lines.take(buf);
        self.state = State::Done;
        if self.lines.count() == 1 {
            return Ok(Some(None));
        }
        if !options.trailers {
            fields::check(&section, &self.lines)?;
            return Ok(Some(None));
        }
        let options = Options { keep_case: false, ..*options };
        Ok(Some(Some(Fields::parse(&section, &self.lines, 0, &options)?.headers)))
    }
}
