//! Bodies in codings. Encoders of one coding differ in their bytes, so what
//! is compared is what was meant.

use std::io::{self, Read, Write};

use crate::wire::summary;

/// A body as text, out of its coding if it has one that is known.
pub(crate) fn meant(coding: Option<&str>, bytes: &[u8]) -> String {
    let Some(coding) = coding.filter(|_| !bytes.is_empty()) else { return summary(bytes) };
    match decode(coding, bytes) {
        Some(Ok(plain)) => format!("in {coding}: {}", summary(&plain)),
        Some(Err(_)) => format!("not in {coding}: {}", summary(bytes)),
        None => summary(bytes),
    }
}

fn decode(coding: &str, bytes: &[u8]) -> Option<io::Result<Vec<u8>>> {
    let mut plain = vec![];
    let read = match coding {
        "gzip" => flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain),
        "br" => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut plain),
        "zstd" => return Some(zstd::decode_all(bytes)),
        _ => return None,
    };
    Some(read.map(|_| plain))
}

/// A body in a coding; as it is if that one is not known.
pub(crate) fn encode(coding: &str, bytes: &[u8]) -> Vec<u8> {
    let encoded = match coding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
            encoder.write_all(bytes).and_then(|()| encoder.finish())
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(vec![], 4096, 3, 18);
            encoder.write_all(bytes).map(|()| encoder.into_inner())
        }
        "zstd" => zstd::encode_all(bytes, 3),
        _ => Ok(bytes.to_vec()),
    };
    // Writing to memory does not fail.
    encoded.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_is_what_was_encoded() {
        for coding in ["gzip", "br", "zstd"] {
            let bytes = encode(coding, b"hello");
            assert_eq!(meant(Some(coding), &bytes), format!("in {coding}: hello"));
            assert!(meant(Some(coding), b"hello").starts_with("not in"));
        }
        assert_eq!(meant(None, b"hello"), "hello");
    }
}
