//! The PROXY protocol, versions 1 and 2.
//!
//! Spec: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use amime_config::listener::ProxyProtocolMode;

/// A header that has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    NeedMore,
    /// The bytes are no header.
    Absent,
    Malformed,
    /// A header of `length` bytes; without addresses for health checks.
    Present {
        length: usize,
        addresses: Option<(SocketAddr, SocketAddr)>,
    },
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header of version 1.
const MAX_V1: usize = 107;

/// Reads a header off the start of `bytes`. Where none has to be there, one of
/// a version that is not read is none.
pub(super) fn read(bytes: &[u8], mode: ProxyProtocolMode) -> Header {
    let refused = if mode.optional { Header::Absent } else { Header::Malformed };
    let common = bytes.len().min(SIGNATURE.len());
    if bytes[..common] == SIGNATURE[..common] {
        if !mode.v2 && common > 0 {
            return refused;
        }
        return if common < SIGNATURE.len() { Header::NeedMore } else { version2(bytes) };
    }
    let common = bytes.len().min(6);
    if bytes[..common] != b"PROXY "[..common] {
        return Header::Absent;
    }
    if !mode.v1 {
        return refused;
    }
    match bytes.iter().take(MAX_V1).position(|byte| *byte == b'\n') {
        Some(end) => version1(&bytes[..end], end + 1),
        None if bytes.len() < MAX_V1 => Header::NeedMore,
        None => Header::Malformed,
    }
}

fn version1(line: &[u8], length: usize) -> Header {
    let Some(text) = line.strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok())
    else {
        return Header::Malformed;
    };
    let mut parts = text.split(' ').skip(1);
    let family = parts.next();
    if family == Some("UNKNOWN") {
        return Header::Present { length, addresses: None };
    }
    let mut ip = || parts.next()?.parse::<IpAddr>().ok();
    let (source, destination) = (ip(), ip());
    let mut port = || parts.next()?.parse::<u16>().ok();
    let (source_port, destination_port) = (port(), port());
    match (family, source.zip(source_port), destination.zip(destination_port)) {
        (Some("TCP4" | "TCP6"), Some(source), Some(destination)) => {
            Header::Present { length, addresses: Some((source.into(), destination.into())) }
        }
        _ => Header::Malformed,
    }
}

fn version2(bytes: &[u8]) -> Header {
    let Some(header) = bytes.get(12..16) else { return Header::NeedMore };
    if header[0] >> 4 != 2 {
        return Header::Malformed;
    }
    let length = 16 + usize::from(u16::from_be_bytes([header[2], header[3]]));
    let Some(body) = bytes.get(16..length) else { return Header::NeedMore };
    // A local connection: the balancer checks us itself.
    if header[0] & 0x0f == 0 {
        return Header::Present { length, addresses: None };
    }
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    match (header[1] >> 4, body.len()) {
        (1, 12..) => {
            let ip = |at: usize| Ipv4Addr::new(body[at], body[at + 1], body[at + 2], body[at + 3]);
            let addresses = ((ip(0), port(8)).into(), (ip(4), port(10)).into());
            Header::Present { length, addresses: Some(addresses) }
        }
        (2, 36..) => {
            let ip = |at: usize| {
                let octets: [u8; 16] = body[at..at + 16].try_into().expect("sixteen bytes");
                Ipv6Addr::from(octets)
            };
            let addresses = ((ip(0), port(32)).into(), (ip(16), port(34)).into());
            Header::Present { length, addresses: Some(addresses) }
        }
        (1 | 2, _) => Header::Malformed,
        _ => Header::Present { length, addresses: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: ProxyProtocolMode = ProxyProtocolMode { optional: false, v1: true, v2: true };

    #[test]
    fn both_versions_tell_source_and_destination() {
        let text = b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\nGET";
        let addresses =
            Some(("1.2.3.4:1000".parse().expect("it"), "5.6.7.8:80".parse().expect("it")));
        assert_eq!(read(text, ALL), Header::Present { length: 36, addresses });
        let mut binary = SIGNATURE.to_vec();
        binary.extend([0x21, 0x11, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8, 3, 232, 0, 80]);
        assert_eq!(read(&binary, ALL), Header::Present { length: 28, addresses });
        for length in 0..28 {
            assert_eq!(read(&binary[..length], ALL), Header::NeedMore, "{length} bytes");
        }
    }

    #[test]
    fn what_is_no_header_is_told_from_what_is_a_bad_one() {
        assert_eq!(read(b"GET / HTTP/1.1", ALL), Header::Absent);
        assert_eq!(read(b"PROXY TCP4 nonsense\r\n", ALL), Header::Malformed);
        assert_eq!(
            read(b"PROXY UNKNOWN\r\n", ALL),
            Header::Present { length: 15, addresses: None }
        );
        assert_eq!(read(&[b"PROXY ".as_slice(), &[b'x'; 200]].concat(), ALL), Header::Malformed);
    }

    #[test]
    fn a_version_that_is_not_read_is_no_header_or_refused() {
        let text = b"PROXY UNKNOWN\r\n";
        let mode = ProxyProtocolMode { v1: false, ..ALL };
        assert_eq!(read(text, mode), Header::Malformed);
        assert_eq!(read(text, ProxyProtocolMode { optional: true, ..mode }), Header::Absent);
        let mode = ProxyProtocolMode { v2: false, ..ALL };
        assert_eq!(read(SIGNATURE, mode), Header::Malformed);
        assert_eq!(read(SIGNATURE, ProxyProtocolMode { optional: true, ..mode }), Header::Absent);
        assert_eq!(read(text, mode), read(text, ALL));
    }
}
