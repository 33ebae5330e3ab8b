//! From a query packet to a reply, without I/O.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::table::{Found, LookupTable};

/// Life of an answer, seconds.
const TTL: u32 = 30;
/// Reply size over UDP without EDNS.
const CLASSIC_UDP: u16 = 512;
/// Largest reply over UDP whatever the client offers: it fits the loopback MTU
/// and stays clear of fragmentation elsewhere.
const MAX_UDP: u16 = 4096;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What to do with a packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Reply(Vec<u8>),
    /// The table does not know it: ask upstream.
    Forward,
    /// Not a query at all.
    Drop,
}

/// Decides on one packet. Without a table (before the first sync) every query
/// fails, as an answer "no such name" would be cached by the client.
pub(super) fn decide(packet: &[u8], table: Option<&LookupTable>, transport: Transport) -> Decision {
    let Ok(query) = Message::from_vec(packet) else { return malformed(packet) };
    if query.metadata.message_type != MessageType::Query {
        return Decision::Drop;
    }
    if query.metadata.op_code != OpCode::Query {
        return reply(&query, ResponseCode::NotImp, vec![], transport);
    }
    let [question] = query.queries.as_slice() else {
        return reply(&query, ResponseCode::FormErr, vec![], transport);
    };
    let Some(table) = table else {
        return reply(&query, ResponseCode::ServFail, vec![], transport);
    };
    let asks_address = matches!(question.query_type, RecordType::A | RecordType::AAAA);
    if !asks_address || question.query_class != DNSClass::IN {
        return Decision::Forward;
    }
    let name = question.name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    match table.lookup(&name) {
        Some(found) => reply(&query, ResponseCode::NoError, records(question, &found), transport),
        None => Decision::Forward,
    }
}

/// A failure reply to a packet that was to be forwarded.
pub(super) fn failure(packet: &[u8], code: ResponseCode, transport: Transport) -> Option<Vec<u8>> {
    let query = Message::from_vec(packet).ok()?;
    match reply(&query, code, vec![], transport) {
        Decision::Reply(bytes) => Some(bytes),
        Decision::Forward | Decision::Drop => None,
    }
}

fn malformed(packet: &[u8]) -> Decision {
    // Only a packet with a whole header that claims to be a query gets a
    // reply; anything else could make two servers answer each other for ever.
    let [a, b, flags, _, _, _, _, _, _, _, _, _, ..] = packet else { return Decision::Drop };
    if flags & 0x80 != 0 {
        return Decision::Drop;
    }
    let id = u16::from_be_bytes([*a, *b]);
    let message = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    message.to_vec().map_or(Decision::Drop, Decision::Reply)
}

/// Records of the asked family; none for a name that has only the other one,
/// which makes a NOERROR reply without answers.
fn records(question: &Query, found: &Found<'_>) -> Vec<Record> {
    let mut records = vec![];
    let mut owner = question.name.clone();
    if let Some(canonical) = found.canonical
        && let Ok(mut target) = Name::from_ascii(canonical)
    {
        target.set_fqdn(true);
        let cname = RData::CNAME(CNAME(target.clone()));
        records.push(Record::from_rdata(owner, TTL, cname));
        owner = target;
    }
    let mut push = |data| records.push(Record::from_rdata(owner.clone(), TTL, data));
    match question.query_type {
        RecordType::A => found.addresses.v4.iter().for_each(|ip| push(RData::A(A(*ip)))),
        _ => found.addresses.v6.iter().for_each(|ip| push(RData::AAAA(AAAA(*ip)))),
    }
    let first = usize::from(found.canonical.is_some()).min(records.len());
    // A client takes the first address: spread clients over all of them.
    fastrand::shuffle(&mut records[first..]);
    records
}

fn reply(
    query: &Message,
    code: ResponseCode,
    answers: Vec<Record>,
    transport: Transport,
) -> Decision {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.authoritative = code == ResponseCode::NoError;
    message.metadata.response_code = code;
    message.add_queries(query.queries.iter().cloned());
    message.add_answers(answers);
    if let Some(edns) = &query.edns {
        let mut ours = Edns::new();
        ours.set_max_payload(MAX_UDP);
        ours.set_version(0);
        ours.set_dnssec_ok(edns.flags().dnssec_ok);
        message.set_edns(ours);
    }
    let limit = match (transport, &query.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => CLASSIC_UDP,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(CLASSIC_UDP, MAX_UDP),
    };
    encode(message, usize::from(limit)).map_or(Decision::Drop, Decision::Reply)
}

/// Encodes within `limit`, dropping answers from the end and saying so.
fn encode(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    loop {
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= limit || message.answers.is_empty() {
            return Some(bytes);
        }
        // An address record takes at least 16 bytes, so this many must go.
        let excess = (bytes.len() - limit).div_ceil(28).max(1);
        let keep = message.answers.len().saturating_sub(excess);
        message.answers.truncate(keep);
        message.metadata.truncation = true;
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::bookinfo;
    use super::*;
    use amime_xds::istio::nds::{NameInfo, NameTable};
    use proptest::prelude::*;

    fn query(name: &str, record: RecordType) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        let name = Name::from_ascii(name).expect("name parses");
        message.add_query(Query::query(name, record));
        message.to_vec().expect("encodes")
    }

    fn ask(name: &str, record: RecordType) -> Message {
        match decide(&query(name, record), Some(&bookinfo()), Transport::Udp) {
            Decision::Reply(bytes) => Message::from_vec(&bytes).expect("reply parses"),
            other => panic!("{name}: {other:?}"),
        }
    }

    fn answers(message: &Message) -> Vec<String> {
        message.answers.iter().map(|record| format!("{} {}", record.ttl, record.data)).collect()
    }

    #[test]
    fn a_known_name_is_answered_with_its_addresses() {
        let reply = ask("Reviews.default.svc.cluster.local.", RecordType::A);
        assert_eq!(reply.metadata.id, 7);
        assert_eq!(answers(&reply), ["30 10.96.0.1"]);
        assert_eq!(answers(&ask("ratings.other.", RecordType::AAAA)), ["30 fd00::2"]);
    }

    #[test]
    fn the_other_family_is_an_empty_success() {
        let reply = ask("reviews.", RecordType::AAAA);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(reply.answers.is_empty());
    }

    #[test]
    fn a_search_expansion_is_answered_through_a_cname() {
        let reply = ask("api.example.com.default.svc.cluster.local.", RecordType::A);
        assert_eq!(answers(&reply), ["30 api.example.com.", "30 240.240.0.2"]);
        assert_eq!(reply.answers[1].name.to_ascii(), "api.example.com.");
    }

    #[test]
    fn unknown_names_and_other_types_go_upstream() {
        let forward = |name, record| {
            let table = bookinfo();
            decide(&query(name, record), Some(&table), Transport::Udp) == Decision::Forward
        };
        assert!(forward("example.org.", RecordType::A));
        assert!(forward("reviews.", RecordType::TXT));
    }

    #[test]
    fn before_the_first_sync_everything_fails() {
        let Decision::Reply(bytes) =
            decide(&query("reviews.", RecordType::A), None, Transport::Udp)
        else {
            panic!("no reply")
        };
        let reply = Message::from_vec(&bytes).expect("reply parses");
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    }

    #[test]
    fn a_reply_too_large_for_udp_is_cut_and_marked() {
        let ips = (0..200).map(|i| format!("10.0.{}.{}", i / 100, i % 100)).collect();
        let info = NameInfo { ips, ..NameInfo::default() };
        let names = NameTable { table: [("big.example".to_owned(), info)].into() };
        let table = LookupTable::build(&names, &super::super::table::Scope::default());
        let size = |transport| {
            let packet = query("big.example.", RecordType::A);
            let Decision::Reply(bytes) = decide(&packet, Some(&table), transport) else {
                panic!("no reply")
            };
            let reply = Message::from_vec(&bytes).expect("reply parses");
            (bytes.len(), reply.metadata.truncation, reply.answers.len())
        };
        let (len, truncated, _) = size(Transport::Udp);
        assert!(len <= 512 && truncated);
        let (_, truncated, answers) = size(Transport::Tcp);
        assert_eq!((truncated, answers), (false, 200));
    }

    #[test]
    fn responses_are_never_answered() {
        let mut packet = query("reviews.", RecordType::A);
        packet[2] |= 0x80;
        let table = bookinfo();
        assert_eq!(decide(&packet, Some(&table), Transport::Udp), Decision::Drop);
        assert_eq!(decide(&packet[..14], Some(&table), Transport::Udp), Decision::Drop);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
            let table = bookinfo();
            let _ = decide(&packet, Some(&table), Transport::Udp);
            let _ = failure(&packet, ResponseCode::ServFail, Transport::Tcp);
        }

        #[test]
        fn damaged_queries_never_panic(at in 0usize..40, byte in any::<u8>()) {
            let mut packet = query("reviews.default.svc.cluster.local.", RecordType::A);
            packet[at] = byte;
            let table = bookinfo();
            if let Decision::Reply(bytes) = decide(&packet, Some(&table), Transport::Udp) {
                prop_assert!(bytes.len() <= usize::from(MAX_UDP));
            }
        }
    }
}
