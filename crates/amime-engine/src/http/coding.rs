//! Codings of bodies, part by part.
//!
//! Each part of a body is flushed, so that what is sent is seen at once.
//!
//! Invariant: what comes out of a part is bounded, whatever a peer packs into
//! it.

use std::io::{self, Write};

use amime_rules::compression::{Coding, Decompressor};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::stage::{Output, Stage, StageError};

/// How many times its size a part may become, as in Envoy.
const MAX_RATIO: usize = 100;

/// What a part may become however small it is.
const MIN_ROOM: usize = 64 * 1024;

/// The largest window that a zstd peer may ask for, as a power of two:
/// RFC 8878 asks for no more.
const ZSTD_WINDOW_LOG: u32 = 23;

/// Bytes that a coding keeps between reading and writing.
const BUFFER: usize = 4096;

/// A sink that can be full.
#[derive(Default)]
pub(super) struct Room {
    bytes: Vec<u8>,
    left: usize,
}

impl Room {
    fn boundless() -> Self {
        Self { bytes: Vec::new(), left: usize::MAX }
    }
}

impl Write for Room {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(data.len()).ok_or(io::ErrorKind::StorageFull)?;
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compresses a body.
pub(super) enum Encoder {
    Gzip(flate2::write::GzEncoder<Room>),
    Brotli(Box<brotli::CompressorWriter<Room>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Room>>),
}

impl Encoder {
    pub(super) fn new(coding: Coding) -> io::Result<Self> {
        let room = Room::boundless();
        Ok(match coding {
            Coding::Gzip { level } => {
                let level = flate2::Compression::new(level);
                Self::Gzip(flate2::write::GzEncoder::new(room, level))
            }
            Coding::Brotli { quality, window_bits } => {
                let writer = brotli::CompressorWriter::new(room, BUFFER, quality, window_bits);
                Self::Brotli(Box::new(writer))
            }
            Coding::Zstd { level, checksum } => {
                let mut encoder = zstd::stream::write::Encoder::new(room, level)?;
                encoder.include_checksum(checksum)?;
                Self::Zstd(Box::new(encoder))
            }
        })
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Gzip(encoder) => encoder,
            Self::Brotli(encoder) => encoder,
            Self::Zstd(encoder) => encoder,
        }
    }

    fn room(&mut self) -> &mut Room {
        match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.try_finish(),
            // It ends itself when its sink is taken.
            Self::Brotli(encoder) => {
                let ended = std::mem::replace(
                    &mut **encoder,
                    brotli::CompressorWriter::new(Room::boundless(), BUFFER, 0, 10),
                );
                let room = ended.into_inner();
                self.room().bytes = room.bytes;
                Ok(())
            }
            Self::Zstd(encoder) => encoder.do_finish(),
        }
    }
}

fn cannot(_: io::Error) -> StageError {
    StageError { details: "compression_failed", body: "" }
}

impl Stage for Encoder {
    fn data(&mut self, data: Bytes, out: &mut Output) -> Result<(), StageError> {
        self.writer().write_all(&data).map_err(cannot)?;
        self.writer().flush().map_err(cannot)?;
        out.push(std::mem::take(&mut self.room().bytes).into());
        Ok(())
    }

    fn end(&mut self, trailers: Option<HeaderMap>, out: &mut Output) -> Result<(), StageError> {
        self.finish().map_err(cannot)?;
        out.push(std::mem::take(&mut self.room().bytes).into());
        out.trailers = trailers;
        Ok(())
    }
}

/// Decompresses a body, and tells its sizes after it.
pub(super) struct Decoder {
    writer: DecoderWriter,
    sizes: [HeaderName; 2],
    read: u64,
    made: u64,
}

enum DecoderWriter {
    Gzip(Box<flate2::write::MultiGzDecoder<Room>>),
    Brotli(Box<brotli::DecompressorWriter<Room>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, Room>>),
}

impl Decoder {
    pub(super) fn new(filter: &Decompressor) -> io::Result<Self> {
        let writer = DecoderWriter::new(filter.coding)?;
        Ok(Self { writer, sizes: filter.sizes.clone(), read: 0, made: 0 })
    }
}

impl DecoderWriter {
    fn new(coding: Coding) -> io::Result<Self> {
        let room = Room::default();
        Ok(match coding {
            Coding::Gzip { .. } => Self::Gzip(Box::new(flate2::write::MultiGzDecoder::new(room))),
            Coding::Brotli { .. } => {
                Self::Brotli(Box::new(brotli::DecompressorWriter::new(room, BUFFER)))
            }
            Coding::Zstd { .. } => {
                let mut decoder = zstd::stream::write::Decoder::new(room)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Gzip(decoder) => decoder,
            Self::Brotli(decoder) => decoder,
            Self::Zstd(decoder) => decoder,
        }
    }

    fn room(&mut self) -> &mut Room {
        match self {
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Brotli(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
        }
    }
}

impl Stage for Decoder {
    fn data(&mut self, data: Bytes, out: &mut Output) -> Result<(), StageError> {
        let cannot = |_| StageError { details: "decompression_failed", body: "Bad Request" };
        let writer = &mut self.writer;
        writer.room().left = data.len().saturating_mul(MAX_RATIO).max(MIN_ROOM);
        writer.writer().write_all(&data).map_err(cannot)?;
        writer.writer().flush().map_err(cannot)?;
        let made = std::mem::take(&mut writer.room().bytes);
        self.read += data.len() as u64;
        self.made += made.len() as u64;
        out.push(made.into());
        Ok(())
    }

    fn end(&mut self, trailers: Option<HeaderMap>, out: &mut Output) -> Result<(), StageError> {
        let mut trailers = trailers.unwrap_or_default();
        let [read, made] = &self.sizes;
        trailers.insert(read, HeaderValue::from(self.read));
        trailers.insert(made, HeaderValue::from(self.made));
        out.trailers = Some(trailers);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::stage::Stages;
    use super::*;
    use http_body::Frame;

    const CODINGS: [Coding; 3] = [
        Coding::Gzip { level: 6 },
        Coding::Brotli { quality: 3, window_bits: 18 },
        Coding::Zstd { level: 3, checksum: true },
    ];

    fn encoder(coding: Coding) -> Stages {
        Stages::new(vec![Box::new(Encoder::new(coding).expect("made"))])
    }

    fn decoder(coding: Coding) -> Stages {
        let filter = Decompressor {
            coding,
            request: None,
            response: None,
            advertise: false,
            sizes: ["x-read", "x-made"].map(HeaderName::from_static),
        };
        Stages::new(vec![Box::new(Decoder::new(&filter).expect("made"))])
    }

    #[test]
    fn every_part_is_seen_as_soon_as_it_is_sent() {
        for coding in CODINGS {
            let (mut encoder, mut decoder) = (encoder(coding), decoder(coding));
            for part in ["one", "two", "three"] {
                encoder.take(Some(Frame::data(part.into()))).expect("encodes");
                let mut seen = vec![];
                while let Some(frame) = encoder.pop() {
                    decoder.take(Some(frame)).expect("decodes");
                }
                while let Some(frame) = decoder.pop() {
                    seen.extend_from_slice(frame.data_ref().expect("data"));
                }
                assert_eq!(seen, part.as_bytes(), "{coding:?}");
            }
        }
    }

    #[test]
    fn a_whole_body_comes_out_as_it_went_in() {
        for coding in CODINGS {
            let text = Bytes::from("abc".repeat(10_000));
            let packed = encoder(coding).whole(text.clone()).expect("encodes");
            assert!(packed.len() < text.len() / 10, "{coding:?}");
            assert_eq!(decoder(coding).whole(packed).expect("decodes"), text, "{coding:?}");
        }
    }

    #[test]
    fn a_bomb_does_not_fill_the_memory() {
        for coding in CODINGS {
            let packed = encoder(coding).whole(vec![0; 64 << 20].into()).expect("encodes");
            let part = packed.slice(..packed.len().min(8 * 1024));
            let mut decoder = decoder(coding);
            let _ = decoder.take(Some(Frame::data(part.clone())));
            let most = (part.len() * MAX_RATIO).max(MIN_ROOM);
            assert!(decoder.ready_bytes() <= most, "{coding:?}");
        }
    }

    #[test]
    fn what_is_in_no_coding_is_refused() {
        for coding in CODINGS {
            let whole = decoder(coding).whole("this is plain text, and not short".into());
            assert_eq!(whole.expect_err("plain").details, "decompression_failed", "{coding:?}");
        }
    }
}
