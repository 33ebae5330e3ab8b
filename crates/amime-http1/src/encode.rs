//! Messages as they are written.

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, Method, StatusCode, Version, header};

use crate::casing::Casing;

/// What a head says about the body behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// What its headers say.
    AsIs,
    /// Adds `content-length: 0`.
    Zero,
    /// Adds `transfer-encoding: chunked`.
    Chunked,
}

/// Writes a request's head; `target` is written as it is. A
/// `transfer-encoding` among the headers is left out: that is `framing`'s.
pub fn encode_request(
    (method, target): (&Method, &[u8]),
    headers: &HeaderMap,
    framing: Framing,
    casing: Casing<'_>,
    out: &mut BytesMut,
) {
    out.put_slice(method.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(target);
    out.put_slice(b" HTTP/1.1\r\n");
    encode_headers(headers, framing, casing, out);
}

/// Writes a response's head, framed as [`encode_request`] has it.
pub fn encode_response(
    (version, status): (Version, StatusCode),
    headers: &HeaderMap,
    framing: Framing,
    casing: Casing<'_>,
    out: &mut BytesMut,
) {
    let version: &[u8] = if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " };
    out.put_slice(version);
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(reason(status).as_bytes());
    out.put_slice(b"\r\n");
    encode_headers(headers, framing, casing, out);
}

fn encode_headers(headers: &HeaderMap, framing: Framing, casing: Casing<'_>, out: &mut BytesMut) {
    for (name, value) in headers {
        if name != header::TRANSFER_ENCODING {
            line(name.as_str(), value.as_bytes(), casing, out);
        }
    }
    match framing {
        Framing::AsIs => {}
        Framing::Zero => line("content-length", b"0", casing, out),
        Framing::Chunked => line("transfer-encoding", b"chunked", casing, out),
    }
    out.put_slice(b"\r\n");
}

fn line(name: &str, value: &[u8], casing: Casing<'_>, out: &mut BytesMut) {
    casing.write(name, out);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// Writes what stands before a chunk of `length` bytes; a line end follows
/// the bytes.
pub fn encode_chunk(length: usize, out: &mut BytesMut) {
    let mut digits = [0; 16];
    let mut at = digits.len();
    let mut left = length;
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[left & 15];
        left >>= 4;
        if left == 0 || at == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
    out.put_slice(b"\r\n");
}

/// Writes the end of a chunked body.
pub fn encode_last_chunk(trailers: Option<&HeaderMap>, out: &mut BytesMut) {
    out.put_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        line(name.as_str(), value.as_bytes(), Casing::Lower, out);
    }
    out.put_slice(b"\r\n");
}

/// A status in words, as Envoy writes it.
pub fn reason(status: StatusCode) -> &'static str {
    match status.as_u16() {
        203 => "Non-Authoritative Information",
        599 => "Last Unassigned Server Error Code",
        102 | 103 | 418 | 451 => "Unknown",
        _ => status.canonical_reason().unwrap_or("Unknown"),
    }
}
