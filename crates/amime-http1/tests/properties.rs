//! What holds for any bytes and any way of cutting them up.

use amime_http1::{
    Casing, Event, Framing, Options, ParseError, RequestDecoder, ResponseDecoder, ResponseTo,
    encode_chunk, encode_last_chunk, encode_request, encode_response,
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use proptest::prelude::*;

const LIMITS: Options = Options {
    max_head_bytes: 2048,
    max_headers: 20,
    trailers: true,
    keep_case: true,
    custom_methods: false,
    allow_chunked_length: false,
};

/// Events of `parts` in order; data that belong together are joined, because
/// how they are cut is the sender's business.
fn events<H>(
    parts: &[&[u8]],
    mut decode: impl FnMut(&mut BytesMut) -> Result<Option<Event<H>>, ParseError>,
) -> (Vec<Event<H>>, Option<ParseError>) {
    let mut buf = BytesMut::new();
    let mut found: Vec<Event<H>> = Vec::new();
    for part in parts {
        buf.extend_from_slice(part);
        loop {
            match (decode(&mut buf), found.last_mut()) {
                (Ok(Some(Event::Data(more))), Some(Event::Data(data))) => {
                    *data = Bytes::from([&data[..], &more[..]].concat());
                }
                (Ok(Some(event)), _) => found.push(event),
                (Ok(None), _) => break,
                (Err(error), _) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fn cut<'a>(bytes: &'a [u8], at: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = at.iter().map(|index| index.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

/// Bytes that look like messages now and then.
fn wire() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "GET / HTTP/1.1\r\n", "POST /a HTTP/1.0\r\n", "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n", "host: h\r\n", "Content-Length: 5\r\n",
            "transfer-encoding: chunked\r\n", "connection: close\r\n", "\r\n", "\n", "\r", " ",
            "5\r\nabcde\r\n", "3;x\r\nabc\r\n", "0\r\n", "0\r\nfoo: bar\r\n\r\n", "a: b\r\n c\r\n",
            "connection: upgrade\r\nupgrade: x\r\n",
        ]).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..12),
    ];
    prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z][A-Za-z0-9!#$%&'*+.^_`|~-]{0,12}".prop_filter("framing is not random", |name| {
        !matches!(
            name.to_ascii_lowercase().as_str(),
            "connection" | "upgrade" | "content-length" | "transfer-encoding" | "expect"
        )
    })
}

fn header_map() -> impl Strategy<Value = HeaderMap> {
    let value = "([!-~][ -~\u{e0}-\u{ff}]{0,20}[!-~])?";
    prop::collection::vec((name(), value), 0..10).prop_map(|pairs| {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a token");
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("visible"));
        }
        headers
    })
}

fn sorted(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let mut pairs: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
        .filter(|(name, _)| name != "transfer-encoding")
        .collect();
    pairs.sort();
    pairs
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_requests(
        bytes in wire(),
        at in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut whole = RequestDecoder::new(LIMITS);
        let mut parts = RequestDecoder::new(LIMITS);
        prop_assert_eq!(
            events(&[&bytes], |buf| whole.decode(buf)),
            events(&cut(&bytes, &at), |buf| parts.decode(buf)),
        );
    }

    #[test]
    fn any_cut_gives_the_same_responses(
        bytes in wire(),
        at in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        head in any::<bool>(),
        upgrade in any::<bool>(),
    ) {
        let to = ResponseTo { head, connect: false, upgrade };
        let mut whole = ResponseDecoder::new(LIMITS);
        whole.expect(to);
        let mut parts = ResponseDecoder::new(LIMITS);
        parts.expect(to);
        prop_assert_eq!(
            events(&[&bytes], |buf| whole.decode(buf)),
            events(&cut(&bytes, &at), |buf| parts.decode(buf)),
        );
    }

    #[test]
    fn requests_are_read_as_they_were_written(
        headers in header_map(),
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..5),
        trailers in header_map(),
    ) {
        let mut buf = BytesMut::new();
        let line = (&Method::PUT, &b"/a?b"[..]);
        encode_request(line, &headers, Framing::Chunked, Casing::Proper, &mut buf);
        for chunk in &chunks {
            encode_chunk(chunk.len(), &mut buf);
            buf.extend_from_slice(chunk);
            buf.extend_from_slice(b"\r\n");
        }
        encode_last_chunk(Some(&trailers), &mut buf);
        let mut decoder = RequestDecoder::new(LIMITS);
        let (found, error) = events(&[&buf], |buf| decoder.decode(buf));
        prop_assert_eq!(error, None);
        let Some(Event::Head(head)) = found.first() else { panic!("a head comes first") };
        prop_assert_eq!(sorted(&head.headers), sorted(&headers));
        let data: Vec<u8> = found.iter().flat_map(|event| match event {
            Event::Data(data) => data.to_vec(),
            _ => Vec::new(),
        }).collect();
        prop_assert_eq!(data, chunks.concat());
        let found_trailers = found.iter().find_map(|event| match event {
            Event::Trailers(trailers) => Some(sorted(trailers)),
            _ => None,
        });
        prop_assert_eq!(found_trailers.unwrap_or_default(), sorted(&trailers));
        prop_assert_eq!(found.last(), Some(&Event::End));
    }

    #[test]
    fn responses_are_read_as_they_were_written(headers in header_map(), status in 200_u16..600) {
        let status = StatusCode::from_u16(status).expect("in range");
        let mut buf = BytesMut::new();
        let line = (Version::HTTP_11, status);
        encode_response(line, &headers, Framing::AsIs, Casing::Lower, &mut buf);
        let mut decoder = ResponseDecoder::new(LIMITS);
        decoder.expect(ResponseTo { head: true, ..ResponseTo::default() });
        let Ok(Some(Event::Head(head))) = decoder.decode(&mut buf) else { panic!("a head") };
        prop_assert_eq!(head.status, status);
        prop_assert_eq!(sorted(&head.headers), sorted(&headers));
        prop_assert!(buf.is_empty());
    }
}
