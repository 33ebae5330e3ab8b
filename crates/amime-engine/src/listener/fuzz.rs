//! First bytes of connections, right ones with some of them changed: whatever
//! comes is read without a panic, to an end, and says nothing that it did not
//! say before more came.

use amime_config::listener::ProxyProtocolMode;
use proptest::prelude::*;
use proptest::sample::Index;

use super::proxy_protocol::{self, Header};
use super::sniff;

/// Something done to bytes.
#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index),
    Cut(Index),
    Repeat(Index),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = any::<Index>;
    let edit = prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        1 => (at(), Just(0xff)).prop_map(|(at, byte)| Edit::Set(at, byte)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(at, it)| Edit::Insert(at, it)),
        1 => at().prop_map(Edit::Remove),
        1 => at().prop_map(Edit::Cut),
        1 => at().prop_map(Edit::Repeat),
    ];
    prop::collection::vec(edit, 0..6)
}

fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let length = bytes.len();
        if length == 0 {
            break;
        }
        match edit {
            Edit::Set(at, byte) => bytes[at.index(length)] = *byte,
            Edit::Insert(at, more) => {
                let at = at.index(length);
                bytes.splice(at..at, more.iter().copied());
            }
            Edit::Remove(at) => {
                bytes.remove(at.index(length));
            }
            Edit::Cut(at) => bytes.truncate(at.index(length)),
            Edit::Repeat(at) => bytes.extend_from_within(at.index(length)..),
        }
    }
    bytes
}

fn changed(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (prop::sample::select(seeds), edits()).prop_map(|(seed, edits)| edited(seed, &edits))
}

fn proxy_headers() -> Vec<Vec<u8>> {
    let version2 = |command: u8, family: u8, rest: &[u8]| {
        let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[command, family], &length, rest].concat()
    };
    vec![
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222\r\nGET /".to_vec(),
        b"PROXY TCP6 2001:db8::1 2001:db8::2 1111 2222\r\n".to_vec(),
        b"PROXY UNKNOWN ff ff\r\n".to_vec(),
        version2(0x21, 0x11, &[1, 2, 3, 4, 5, 6, 7, 8, 4, 0x57, 8, 0xae]),
        version2(0x21, 0x21, &[7; 36]),
        version2(0x20, 0, &[]),
        // With a TLV behind the addresses.
        version2(0x21, 0x11, &[1, 2, 3, 4, 5, 6, 7, 8, 4, 0x57, 8, 0xae, 4, 0, 1, 0]),
    ]
}

fn hellos() -> Vec<Vec<u8>> {
    let hello = sniff::tests::client_hello;
    vec![
        hello("a.test", &[b"h2", b"http/1.1"]),
        hello("outbound_.80_._.a.ns.svc.cluster.local", &[]),
        // A hello in two records.
        {
            let whole = hello("a.test", &[b"istio"]);
            let (first, second) = whole[5..].split_at(40);
            let record = |part: &[u8]| {
                let length = u16::try_from(part.len()).expect("short").to_be_bytes();
                [&[22, 3, 1], &length[..], part].concat()
            };
            [record(first), record(second)].concat()
        },
    ]
}

fn http_starts() -> Vec<Vec<u8>> {
    [
        &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        b"POST /a?b HTTP/1.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\nOPTIONS * HTTP/1.1\r\n",
    ]
    .map(<[u8]>::to_vec)
    .to_vec()
}

/// What is known after each number of bytes, once more is not needed, is what
/// is known after all of them.
fn settles<T: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    read: impl Fn(&[u8]) -> T,
    undecided: &T,
) -> Result<(), TestCaseError> {
    let whole = read(bytes);
    for length in 0..bytes.len() {
        let part = read(&bytes[..length]);
        if part != *undecided {
            prop_assert_eq!(&part, &whole, "after {} bytes", length);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn fuzz_proxy_protocol(
        bytes in changed(proxy_headers()),
        (v1, v2, optional) in any::<(bool, bool, bool)>(),
    ) {
        let mode = ProxyProtocolMode { v1, v2, optional };
        let read = |bytes: &[u8]| match proxy_protocol::read(bytes, mode) {
            // Where one has to be there, none is as bad as a broken one.
            Header::Absent if !mode.optional => Header::Malformed,
            header => header,
        };
        settles(&bytes, read, &Header::NeedMore)?;
        if let Header::Present { length, .. } = read(&bytes) {
            prop_assert!(length <= bytes.len());
        }
    }

    #[test]
    fn fuzz_tls_inspection(bytes in changed(hellos())) {
        // Cutting may need more where the whole is no hello at all.
        let whole = sniff::tls(&bytes);
        for length in [bytes.len() / 2, bytes.len().saturating_sub(1)] {
            let part = sniff::tls(&bytes[..length]);
            prop_assert!(part == sniff::Tls::NeedMore || part == whole, "{:?} then {:?}", part, whole);
        }
        let long = [&bytes[..], &vec![0; sniff::MAX_BYTES + 1]].concat();
        prop_assert_ne!(sniff::tls(&long), sniff::Tls::NeedMore, "more than may be is enough");
    }

    #[test]
    fn fuzz_http_inspection(bytes in changed(http_starts())) {
        settles(&bytes, sniff::http, &sniff::Http::NeedMore)?;
    }
}
