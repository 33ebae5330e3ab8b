//! Wire format of nftables batches: messages, attributes and expressions.
//!
//! Owns bytes only. Numbers are those of `linux/netfilter/nf_tables.h`;
//! attribute values are big-endian, register contents are as they stand in a
//! packet (big-endian) except for meta values and random numbers, which are
//! in host order.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{Action, BaseChain, ChainType, Family, Hook, L4, Match, Rule};
use crate::netlink::{REQUEST_ACK, align};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NESTED: u16 = 0x8000;

const FLAG_REQUEST: u16 = 0x1;
const FLAG_CREATE: u16 = 0x400;
const FLAG_APPEND: u16 = 0x800;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_SET_ELEMENTS: u16 = 12;

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;

const VERDICT_REGISTER: u32 = 0;
/// First 16-byte register: the same storage as words `WORD_1..WORD_1 + 4`.
const REGISTER: u32 = 1;
const WORD_1: u32 = 8;

const CMP_EQUAL: u32 = 0;
const CMP_NOT_EQUAL: u32 = 1;
const META_MARK: u32 = 3;
const META_INPUT_NAME: u32 = 6;
const META_OUTPUT_NAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;

const SET_ANONYMOUS: u32 = 1;
const SET_CONSTANT: u32 = 2;
const SET_MAP: u32 = 8;

/// Data types as the `nft` program numbers them; the kernel only stores them,
/// but `nft list` needs them to print.
const TYPE_INTEGER: u32 = 4;
const TYPE_IP_ADDRESS: u32 = 7;
const TYPE_PORT: u32 = 13;

/// Add or remove a table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TableChange {
    Add,
    Delete,
}

impl TableChange {
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Delete => "delete",
        }
    }
}

/// The messages of one batch under construction.
pub(super) struct Messages {
    bytes: Vec<u8>,
    sequence: u32,
    sets: u32,
    /// Where the flags of the newest message stand.
    last_flags_at: usize,
}

impl Messages {
    pub(super) fn new() -> Self {
        let mut messages = Self { bytes: Vec::new(), sequence: 0, sets: 0, last_flags_at: 0 };
        messages.message(BATCH_BEGIN, 0, [0, 0, 0, SUBSYSTEM as u8], |_| ());
        messages
    }

    pub(super) fn table(&mut self, family: Family, table: &str, change: TableChange) {
        let (kind, flags) = match change {
            TableChange::Add => (NEW_TABLE, FLAG_CREATE),
            TableChange::Delete => (DELETE_TABLE, 0),
        };
        self.change(kind, flags, family, |out| out.string(1, table));
    }

    pub(super) fn chain(&mut self, family: Family, table: &str, chain: BaseChain<'_>) {
        let hook = match chain.hook {
            Hook::Prerouting => 0,
            Hook::Input => 1,
            Hook::Forward => 2,
            Hook::Output => 3,
            Hook::Postrouting => 4,
        };
        let kind = match chain.kind {
            ChainType::Filter => "filter",
            ChainType::Nat => "nat",
        };
        self.change(NEW_CHAIN, FLAG_CREATE, family, |out| {
            out.string(1, table);
            out.string(3, chain.name);
            out.nested(4, |out| {
                out.be32(1, hook);
                out.be32(2, chain.priority as u32);
            });
            out.be32(5, 1);
            out.string(7, kind);
        });
    }

    /// Adds the rule and the anonymous sets it looks up; returns the number
    /// of messages.
    pub(super) fn rule(&mut self, family: Family, table: &str, chain: &str, rule: &Rule) -> usize {
        let before = self.sequence;
        let mut expressions =
            Expressions { family, nfproto_known: false, list: Attributes::default() };
        for condition in &rule.when {
            let set = self.condition_set(family, table, condition);
            expressions.condition(condition, set);
        }
        if rule.counter {
            expressions.add("counter", |out| {
                out.be64(1, 0);
                out.be64(2, 0);
            });
        }
        let map = match &rule.action {
            Action::Dnat(targets) if targets.len() > 1 => {
                Some(self.dnat_map(family, table, targets))
            }
            _ => None,
        };
        expressions.action(&rule.action, map);
        self.change(NEW_RULE, FLAG_CREATE | FLAG_APPEND, family, |out| {
            out.string(1, table);
            out.string(2, chain);
            out.raw(4 | NESTED, &expressions.list.0);
            out.raw(7, &comment(&rule.purpose));
        });
        (self.sequence - before) as usize
    }

    /// Ends the batch; returns its bytes and the sequence number whose
    /// acknowledgement means that all of it was accepted.
    pub(super) fn finish(mut self) -> (Vec<u8>, u32) {
        // One acknowledgement is enough: refusals are reported for every
        // message, and a batch is committed as a whole.
        let acknowledged = self.sequence;
        let flags = &mut self.bytes[self.last_flags_at..self.last_flags_at + 2];
        let wanted = u16::from_ne_bytes([flags[0], flags[1]]) | REQUEST_ACK;
        flags.copy_from_slice(&wanted.to_ne_bytes());
        self.message(BATCH_END, 0, [0, 0, 0, SUBSYSTEM as u8], |_| ());
        (self.bytes, acknowledged)
    }

    fn condition_set(&mut self, family: Family, table: &str, condition: &Match) -> Option<u32> {
        match condition {
            Match::DestinationPort(_, ports) if ports.len() != 1 => {
                let keys = ports.iter().map(|port| port.to_be_bytes().to_vec()).collect();
                Some(self.set(
                    family,
                    table,
                    Set { key_type: TYPE_PORT, key_len: 2, keys, map: None },
                ))
            }
            Match::SourceAndDestination(pairs) => {
                let keys =
                    pairs.iter().map(|(from, to)| [from.octets(), to.octets()].concat()).collect();
                let key_type = TYPE_IP_ADDRESS << 6 | TYPE_IP_ADDRESS;
                Some(self.set(family, table, Set { key_type, key_len: 8, keys, map: None }))
            }
            _ => None,
        }
    }

    fn dnat_map(&mut self, family: Family, table: &str, targets: &[SocketAddrV4]) -> u32 {
        let keys = (0..targets.len() as u32).map(|n| n.to_ne_bytes().to_vec()).collect();
        let values = targets.iter().map(|target| endpoint(*target).to_vec()).collect();
        let map = Some((TYPE_IP_ADDRESS << 6 | TYPE_PORT, 8, values));
        self.set(family, table, Set { key_type: TYPE_INTEGER, key_len: 4, keys, map })
    }

    fn set(&mut self, family: Family, table: &str, set: Set) -> u32 {
        self.sets += 1;
        let id = self.sets;
        let name = set_name(set.map.is_some());
        let flags = SET_ANONYMOUS | SET_CONSTANT | if set.map.is_some() { SET_MAP } else { 0 };
        self.change(NEW_SET, FLAG_CREATE, family, |out| {
            out.string(1, table);
            out.string(2, name);
            out.be32(3, flags);
            out.be32(4, set.key_type);
            out.be32(5, set.key_len);
            if let Some((data_type, data_len, _)) = &set.map {
                out.be32(6, *data_type);
                out.be32(7, *data_len);
            }
            out.nested(9, |out| out.be32(1, set.keys.len() as u32));
            out.be32(10, id);
            if set.key_type == TYPE_INTEGER {
                // Tells `nft list` that the keys are in host byte order.
                out.raw(13, &[0, 4, 1, 0, 0, 0]);
            }
        });
        self.change(NEW_SET_ELEMENTS, FLAG_CREATE, family, |out| {
            out.string(1, table);
            out.string(2, name);
            out.be32(4, id);
            out.nested(3, |out| {
                for (n, key) in set.keys.iter().enumerate() {
                    out.nested(1, |out| {
                        out.nested(1, |out| out.raw(1, key));
                        if let Some((_, _, values)) = &set.map {
                            out.nested(2, |out| out.raw(1, &values[n]));
                        }
                    });
                }
            });
        });
        id
    }

    fn change(
        &mut self,
        kind: u16,
        flags: u16,
        family: Family,
        body: impl FnOnce(&mut Attributes),
    ) {
        let nfproto = match family {
            Family::Ip => NFPROTO_IPV4,
            Family::Inet => NFPROTO_INET,
        };
        self.message(SUBSYSTEM << 8 | kind, flags, [nfproto, 0, 0, 0], body);
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        header: [u8; 4],
        body: impl FnOnce(&mut Attributes),
    ) {
        self.sequence += 1;
        let mut attributes = Attributes::default();
        body(&mut attributes);
        let len = 16 + header.len() + attributes.0.len();
        self.last_flags_at = self.bytes.len() + 6;
        self.bytes.extend((len as u32).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | FLAG_REQUEST).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(header);
        self.bytes.extend(attributes.0);
    }
}

/// An anonymous set, or a map when it has values.
struct Set {
    key_type: u32,
    key_len: u32,
    keys: Vec<Vec<u8>>,
    /// Data type, data length in bytes, and one value a key.
    map: Option<(u32, u32, Vec<Vec<u8>>)>,
}

fn set_name(is_map: bool) -> &'static str {
    if is_map { "__map%d" } else { "__set%d" }
}

/// Address and port as two register words.
fn endpoint(target: SocketAddrV4) -> [u8; 8] {
    let [a, b, c, d] = target.ip().octets();
    let [high, low] = target.port().to_be_bytes();
    [a, b, c, d, high, low, 0, 0]
}

/// The comment in the layout that `nft list` reads: type, length, text, NUL.
fn comment(text: &str) -> Vec<u8> {
    const LONGEST: usize = 120;
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = vec![0, end as u8 + 1];
    bytes.extend(&text.as_bytes()[..end]);
    bytes.push(0);
    bytes
}

/// The expression list of one rule.
struct Expressions {
    family: Family,
    /// The rule already made sure that the packet is IPv4.
    nfproto_known: bool,
    list: Attributes,
}

impl Expressions {
    fn add(&mut self, name: &str, data: impl FnOnce(&mut Attributes)) {
        self.list.nested(1, |out| {
            out.string(1, name);
            out.nested(2, data);
        });
    }

    fn condition(&mut self, condition: &Match, set: Option<u32>) {
        match condition {
            Match::Mark(mark) => self.meta_equals(META_MARK, &mark.to_ne_bytes()),
            Match::Protocol(protocol) => self.protocol(*protocol),
            Match::DestinationPort(protocol, ports) => {
                self.protocol(*protocol);
                self.payload(REGISTER, BASE_TRANSPORT, 2, 2);
                match (set, ports.as_slice()) {
                    (None, [port]) => self.compare(CMP_EQUAL, &port.to_be_bytes()),
                    _ => self.lookup(set.unwrap_or_default(), false),
                }
            }
            Match::SourcePort(protocol, port) => {
                self.protocol(*protocol);
                self.payload(REGISTER, BASE_TRANSPORT, 0, 2);
                self.compare(CMP_EQUAL, &port.to_be_bytes());
            }
            Match::Source(network, prefix_len) => {
                self.network(12, *network, *prefix_len, CMP_EQUAL);
            }
            Match::Destination(network, prefix_len) => {
                self.network(16, *network, *prefix_len, CMP_EQUAL);
            }
            Match::NotDestination(network, prefix_len) => {
                self.network(16, *network, *prefix_len, CMP_NOT_EQUAL);
            }
            Match::SourceAndDestination(_) => {
                self.ipv4_only();
                // Two neighbouring words, which the lookup reads as one key.
                self.payload(WORD_1, BASE_NETWORK, 12, 4);
                self.payload(WORD_1 + 1, BASE_NETWORK, 16, 4);
                self.lookup(set.unwrap_or_default(), false);
            }
            Match::OutputInterface(name) => self.meta_equals(META_OUTPUT_NAME, &interface(name)),
            Match::InputInterface(name) => self.meta_equals(META_INPUT_NAME, &interface(name)),
        }
    }

    fn action(&mut self, action: &Action, map: Option<u32>) {
        match action {
            Action::Drop => self.verdict(0),
            Action::Accept => self.verdict(1),
            Action::Return => self.verdict(-5),
            Action::Reset => self.add("reject", |out| {
                out.be32(1, 1);
                out.raw(2, &[0]);
            }),
            Action::Untrack => self.add("notrack", |_| ()),
            Action::Redirect(port) => {
                self.immediate(REGISTER, &port.to_be_bytes());
                self.add("redir", |out| out.be32(1, REGISTER));
            }
            Action::Masquerade => self.add("masq", |_| ()),
            Action::Dnat(targets) => self.dnat(targets, map),
        }
    }

    fn dnat(&mut self, targets: &[SocketAddrV4], map: Option<u32>) {
        match (map, targets) {
            (None, [target]) => {
                self.immediate(WORD_1, &target.ip().octets());
                self.immediate(WORD_1 + 1, &target.port().to_be_bytes());
            }
            (None, _) => return self.verdict(0),
            (Some(map), targets) => {
                self.add("numgen", |out| {
                    out.be32(1, REGISTER);
                    out.be32(2, targets.len() as u32);
                    out.be32(3, 1);
                    out.be32(4, 0);
                });
                self.lookup(map, true);
            }
        }
        self.add("nat", |out| {
            out.be32(1, 1);
            out.be32(2, u32::from(NFPROTO_IPV4));
            out.be32(3, WORD_1);
            out.be32(5, WORD_1 + 1);
        });
    }

    fn protocol(&mut self, protocol: L4) {
        let number = match protocol {
            L4::Tcp => 6,
            L4::Udp => 17,
        };
        self.meta_equals(META_L4PROTO, &[number]);
    }

    fn network(&mut self, offset: u32, network: Ipv4Addr, prefix_len: u8, operator: u32) {
        self.ipv4_only();
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0);
        let network = u32::from(network) & mask;
        self.payload(REGISTER, BASE_NETWORK, offset, 4);
        if mask != u32::MAX {
            self.add("bitwise", |out| {
                out.be32(1, REGISTER);
                out.be32(2, REGISTER);
                out.be32(3, 4);
                out.nested(4, |out| out.raw(1, &mask.to_be_bytes()));
                out.nested(5, |out| out.raw(1, &[0; 4]));
            });
        }
        self.compare(operator, &network.to_be_bytes());
    }

    /// In a table of both families, address offsets hold for IPv4 only.
    fn ipv4_only(&mut self) {
        if self.family == Family::Inet && !self.nfproto_known {
            self.meta_equals(META_NFPROTO, &[NFPROTO_IPV4]);
            self.nfproto_known = true;
        }
    }

    fn meta_equals(&mut self, key: u32, value: &[u8]) {
        self.add("meta", |out| {
            out.be32(2, key);
            out.be32(1, REGISTER);
        });
        self.compare(CMP_EQUAL, value);
    }

    fn payload(&mut self, register: u32, base: u32, offset: u32, len: u32) {
        self.add("payload", |out| {
            out.be32(1, register);
            out.be32(2, base);
            out.be32(3, offset);
            out.be32(4, len);
        });
    }

    fn compare(&mut self, operator: u32, value: &[u8]) {
        self.add("cmp", |out| {
            out.be32(1, REGISTER);
            out.be32(2, operator);
            out.nested(3, |out| out.raw(1, value));
        });
    }

    /// Looks the register up in a set; a map puts its value back there.
    fn lookup(&mut self, set: u32, is_map: bool) {
        self.add("lookup", |out| {
            out.string(1, set_name(is_map));
            out.be32(2, REGISTER);
            if is_map {
                out.be32(3, REGISTER);
            }
            out.be32(4, set);
        });
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.add("immediate", |out| {
            out.be32(1, register);
            out.nested(2, |out| out.raw(1, value));
        });
    }

    fn verdict(&mut self, code: i32) {
        self.add("immediate", |out| {
            out.be32(1, VERDICT_REGISTER);
            out.nested(2, |out| out.nested(2, |out| out.be32(1, code as u32)));
        });
    }
}

/// An interface name as the kernel compares it: 16 bytes, NUL-padded.
fn interface(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    let len = name.len().min(15);
    padded[..len].copy_from_slice(&name.as_bytes()[..len]);
    padded
}

/// A list of netlink attributes.
#[derive(Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    fn raw(&mut self, kind: u16, value: &[u8]) {
        self.0.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(align(self.0.len()), 0);
    }

    fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        body(&mut inner);
        self.raw(kind | NESTED, &inner.0);
    }

    fn string(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.raw(kind, &bytes);
    }

    fn be32(&mut self, kind: u16, value: u32) {
        self.raw(kind, &value.to_be_bytes());
    }

    fn be64(&mut self, kind: u16, value: u64) {
        self.raw(kind, &value.to_be_bytes());
    }
}
