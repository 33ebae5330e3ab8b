//! Reading a protocol off a client's first bytes.
//!
//! The bytes are the peer's: every length is checked, and nothing is read
//! beyond a bound.

/// What the first bytes say about TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    NeedMore,
    Other,
    Hello { server_name: Option<String>, alpn: Vec<Vec<u8>> },
}

/// What the first bytes say about HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Http {
    NeedMore,
    Other,
    Http10,
    Http11,
    Http2,
}

impl Http {
    /// The name that filter chains match.
    pub(super) fn application(self) -> Option<&'static [u8]> {
        match self {
            Self::NeedMore | Self::Other => None,
            Self::Http10 => Some(b"http/1.0"),
            Self::Http11 => Some(b"http/1.1"),
            Self::Http2 => Some(b"h2c"),
        }
    }
}

/// Most bytes looked at.
pub(super) const MAX_BYTES: usize = 64 * 1024;

const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXT_SERVER_NAME: u16 = 0;
const EXT_ALPN: u16 = 16;

/// Reads a TLS ClientHello, which may span records.
pub(super) fn tls(bytes: &[u8]) -> Tls {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        let Some(header) = rest.get(..5) else {
            return if looks_like_record(rest) { need_more(bytes) } else { Tls::Other };
        };
        if !looks_like_record(header) {
            return Tls::Other;
        }
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        // A record may be no longer, and an empty one is how parsers are held up.
        if length == 0 || length > (1 << 14) + 256 {
            return Tls::Other;
        }
        let body = &rest[5..];
        message.extend_from_slice(&body[..length.min(body.len())]);
        match hello(&message) {
            Parsed::Done(found) => return found,
            Parsed::Incomplete if body.len() < length => return need_more(bytes),
            Parsed::Incomplete => rest = &body[length..],
        }
    }
}

fn need_more(bytes: &[u8]) -> Tls {
    if bytes.len() < MAX_BYTES { Tls::NeedMore } else { Tls::Other }
}

fn looks_like_record(start: &[u8]) -> bool {
    start.first().is_none_or(|byte| *byte == HANDSHAKE_RECORD)
        && start.get(1).is_none_or(|major| *major == 3)
        && start.get(2).is_none_or(|minor| *minor <= 4)
}

enum Parsed {
    Done(Tls),
    Incomplete,
}

fn hello(message: &[u8]) -> Parsed {
    let Some(header) = message.get(..4) else {
        return match message.first() {
            Some(kind) if *kind != CLIENT_HELLO => Parsed::Done(Tls::Other),
            _ => Parsed::Incomplete,
        };
    };
    if header[0] != CLIENT_HELLO {
        return Parsed::Done(Tls::Other);
    }
    let length =
        usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
    if length > MAX_BYTES {
        return Parsed::Done(Tls::Other);
    }
    match message.get(4..4 + length) {
        None => Parsed::Incomplete,
        Some(body) => Parsed::Done(hello_body(body).unwrap_or(Tls::Other)),
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<usize> {
        Some(usize::from(self.take(1)?[0]))
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn prefixed16(&mut self) -> Option<Reader<'a>> {
        let length = usize::from(self.u16()?);
        self.take(length).map(Reader)
    }
}

fn hello_body(body: &[u8]) -> Option<Tls> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    let session = reader.u8()?;
    reader.take(session)?;
    reader.prefixed16()?;
    let compression = reader.u8()?;
    reader.take(compression)?;
    let (mut server_name, mut alpn) = (None, Vec::new());
    let mut extensions = if reader.0.is_empty() { Reader(&[]) } else { reader.prefixed16()? };
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut content = extensions.prefixed16()?;
        match kind {
            EXT_SERVER_NAME => {
                let mut names = content.prefixed16()?;
                if names.u8()? == 0 {
                    let name = names.prefixed16()?;
                    server_name = std::str::from_utf8(name.0).ok().map(str::to_ascii_lowercase);
                }
            }
            EXT_ALPN => {
                let mut list = content.prefixed16()?;
                while !list.0.is_empty() {
                    let length = list.u8()?;
                    alpn.push(list.take(length)?.to_vec());
                }
            }
            _ => {}
        }
    }
    Some(Tls::Hello { server_name, alpn })
}

/// Longest method looked for.
const MAX_METHOD: usize = 32;
/// Longest request line waited for.
const MAX_LINE: usize = 16 * 1024;

/// Tells HTTP and its version by preface or request line.
pub(super) fn http(bytes: &[u8]) -> Http {
    let preface = super::io::HTTP2_PREFACE;
    if bytes.len() >= preface.len() {
        if bytes.starts_with(preface) {
            return Http::Http2;
        }
    } else if preface.starts_with(bytes) {
        return Http::NeedMore;
    }
    let method = bytes.iter().position(|byte| *byte == b' ');
    let name = &bytes[..method.unwrap_or(bytes.len())];
    let token = name.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'-');
    if !token || name.len() > MAX_METHOD || method == Some(0) {
        return Http::Other;
    }
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_LINE { Http::NeedMore } else { Http::Other };
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    if line.ends_with(b" HTTP/1.1") {
        Http::Http11
    } else if line.ends_with(b" HTTP/1.0") {
        Http::Http10
    } else {
        Http::Other
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;

    pub(in crate::listener) fn client_hello(name: &'static str, alpn: &[&[u8]]) -> Vec<u8> {
        let mut config = rustls::ClientConfig::builder_with_provider(amime_identity::provider())
            .with_safe_default_protocol_versions()
            .expect("default versions")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = name.try_into().expect("a name");
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("a vector takes all");
        bytes
    }

    #[test]
    fn a_client_hello_tells_name_and_protocols() {
        let bytes = client_hello("outbound_.9080_._.reviews.svc", &[b"istio", b"h2"]);
        let want = Tls::Hello {
            server_name: Some("outbound_.9080_._.reviews.svc".to_owned()),
            alpn: vec![b"istio".to_vec(), b"h2".to_vec()],
        };
        assert_eq!(tls(&bytes), want);
        for length in 1..bytes.len() {
            assert_eq!(tls(&bytes[..length]), Tls::NeedMore, "{length} bytes");
        }
    }

    #[test]
    fn a_client_hello_may_span_records() {
        let bytes = client_hello("a.example", &[]);
        let (first, second) = bytes[5..].split_at(40);
        let mut split = Vec::new();
        for part in [first, second] {
            split.extend([22, 3, 1]);
            split.extend(u16::try_from(part.len()).expect("short").to_be_bytes());
            split.extend(part);
        }
        assert!(matches!(tls(&split), Tls::Hello { server_name: Some(_), .. }));
    }

    #[test]
    fn broken_bytes_never_panic() {
        let bytes = client_hello("a.example", &[b"h2"]);
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut broken = bytes.clone();
                broken[at] = value;
                let _ = tls(&broken);
                let _ = http(&broken);
            }
        }
    }

    #[test]
    fn http_is_known_by_its_first_line() {
        assert_eq!(http(b"GET / HTTP/1.1\r\n"), Http::Http11);
        assert_eq!(http(b"GET / HTTP/1.0\r\n"), Http::Http10);
        assert_eq!(http(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Http::Http2);
        assert_eq!(http(b"PRI * HTTP"), Http::NeedMore);
        assert_eq!(http(b"GET /"), Http::NeedMore);
        assert_eq!(http(b"220 hello"), Http::Other);
        assert_eq!(http(b"\x16\x03"), Http::Other);
        assert_eq!(http(b"GET / FTP/1.1\r\n"), Http::Other);
    }
}
