//! Unix stream sockets among IP addresses.
//!
//! Where data is copied a socket's end is a [`SocketAddr`], which is small and
//! copied everywhere. A Unix socket gets a stand-in for it: a number within
//! `100::/64`, the block of addresses that nobody can have (RFC 6666). Owns the
//! paths behind these numbers; sockets are made elsewhere.
//!
//! Invariant: a path has one stand-in as long as the process lives, so stand-ins
//! compare as paths do. Stand-ins carry a mark that no address has which was
//! read from text, DNS, a packet or a header: a peer cannot name one. Only
//! configuration adds paths, so the table grows with names as configured.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// The high half of `100::/64`.
const DISCARD: u64 = 0x0100 << 48;
/// In the flow information, of which packets have the lower 28 bits only.
const MARK: u32 = 0xa000_0000;

/// Longest path, which the system ends with a zero.
pub const MAX_PATH: usize = 107;

#[derive(Default)]
struct Table {
    numbers: HashMap<Arc<str>, u64>,
    paths: HashMap<u64, Arc<str>>,
}

fn table() -> &'static RwLock<Table> {
    // One for all: addresses are compared and printed where nothing else is
    // at hand but the address.
    static TABLE: OnceLock<RwLock<Table>> = OnceLock::new();
    TABLE.get_or_init(RwLock::default)
}

/// The stand-in of a path. One that begins with `@` is an abstract name.
pub fn stand_in(path: &str) -> SocketAddr {
    let mut table = table().write().unwrap_or_else(PoisonError::into_inner);
    let number = match table.numbers.get(path) {
        Some(number) => *number,
        None => {
            let path: Arc<str> = path.into();
            // Two paths must not meet, however unlikely that is.
            let random = std::hash::RandomState::new();
            let mut number = random.hash_one(&path);
            while table.paths.contains_key(&number) {
                number = number.wrapping_add(1);
            }
            table.numbers.insert(path.clone(), number);
            table.paths.insert(number, path);
            number
        }
    };
    let bits = u128::from(DISCARD) << 64 | u128::from(number);
    SocketAddrV6::new(Ipv6Addr::from_bits(bits), 0, MARK, 0).into()
}

/// The path that `address` stands for, if it is a stand-in.
pub fn path_of(address: SocketAddr) -> Option<Arc<str>> {
    let SocketAddr::V6(address) = address else { return None };
    if address.flowinfo() != MARK {
        return None;
    }
    let number = address.ip().to_bits() as u64;
    let table = table().read().unwrap_or_else(PoisonError::into_inner);
    table.paths.get(&number).cloned()
}

/// True for the host part of stand-ins, which is in no range of addresses.
pub fn is_stand_in(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if (ip.to_bits() >> 64) as u64 == DISCARD)
}

/// The port of an address that has one.
pub fn port_of(address: SocketAddr) -> Option<u16> {
    (!is_stand_in(address.ip())).then_some(address.port())
}

/// An address as operators know it: a path, or host and port.
#[derive(Clone, Copy, Debug)]
pub struct Shown(pub SocketAddr);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match path_of(self.0) {
            Some(path) => f.write_str(&path),
            None => self.0.fmt(f),
        }
    }
}

/// An address without its port: a path, or the host.
#[derive(Clone, Copy, Debug)]
pub struct ShownHost(pub SocketAddr);

impl fmt::Display for ShownHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match path_of(self.0) {
            Some(path) => f.write_str(&path),
            None => self.0.ip().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_stand_in_and_shows_through_it() {
        let address = stand_in("/run/a.sock");
        assert_eq!(address, stand_in("/run/a.sock"));
        assert_ne!(address, stand_in("@a"));
        assert_eq!(path_of(address).as_deref(), Some("/run/a.sock"));
        assert!(is_stand_in(address.ip()));
        assert_eq!(Shown(address).to_string(), "/run/a.sock");
        assert_eq!(ShownHost(address).to_string(), "/run/a.sock");
    }

    #[test]
    fn an_address_from_elsewhere_is_never_a_path() {
        let address = stand_in("/run/b.sock");
        let text: SocketAddr = address.to_string().parse().expect("an address");
        assert_eq!(path_of(text), None);
        assert_eq!(path_of(SocketAddr::new(address.ip(), 0)), None);
        let other: SocketAddr = "10.0.0.1:80".parse().expect("an address");
        assert_eq!(Shown(other).to_string(), "10.0.0.1:80");
        assert_eq!(ShownHost(other).to_string(), "10.0.0.1");
        assert!(!is_stand_in(other.ip()));
    }
}
