//! Addresses for declared hosts that have none, derived from their names.
//!
//! For proxies that answer DNS themselves and ask for such addresses. The
//! result depends on nothing but the names, so that every control plane gives
//! the same ones, and so does upstream's.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::service::{Registry, Resolution, Service, UNSPECIFIED_V4};

/// Addresses there are: 240.240.0.0/16 without the last of each 256.
const SLOTS: u32 = 256 * 254;
/// Largest prime below, for the second hash.
const PRIME: u32 = 65011;
/// Addresses of one value of the third octet.
const ROW: u32 = 255;

/// Gives each host an address; services of one host share it.
pub(crate) fn allocate(services: &mut [Service]) {
    let mut slots: HashMap<u32, usize> = HashMap::new();
    for (index, service) in services.iter().enumerate() {
        if needs_address(service)
            && let Some(slot) = free_slot(&slots, &key(service))
        {
            slots.insert(slot, index);
        }
    }
    let mut taken: Vec<(u32, usize)> = slots.into_iter().collect();
    taken.sort_unstable();
    let mut known: HashMap<String, u32> = HashMap::new();
    // Row ends are skipped, which moves every later slot on.
    let mut skipped = 0;
    for (slot, index) in taken {
        let mut number = slot + 1 + skipped;
        if number.is_multiple_of(ROW) {
            number += 1;
            skipped += 1;
        }
        let number = *known.entry(key(&services[index])).or_insert(number);
        services[index].derived = addresses(number);
    }
}

/// A host without an address, if connections to it can be told by one.
fn needs_address(service: &Service) -> bool {
    service.registry == Registry::External
        && service.address == UNSPECIFIED_V4
        && !service.hostname.is_wildcard()
        && service.resolution != Resolution::Passthrough
}

fn key(service: &Service) -> String {
    format!("{}/{}", service.namespace, service.hostname)
}

/// The slot of a name, found by double hashing; `None` if there are no more.
fn free_slot(slots: &HashMap<u32, usize>, key: &str) -> Option<u32> {
    let hash = fnv1a(key);
    let first = hash % SLOTS;
    if !slots.contains_key(&first) {
        return Some(first);
    }
    let step = PRIME - hash % PRIME;
    let next = |round: u32| hash.wrapping_add(round.wrapping_mul(step)) % (SLOTS - 1);
    (1..=SLOTS).map(next).find(|slot| !slots.contains_key(slot))
}

fn fnv1a(text: &str) -> u32 {
    const OFFSET: u32 = 0x811c_9dc5;
    const FACTOR: u32 = 0x0100_0193;
    text.bytes().fold(OFFSET, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(FACTOR))
}

fn addresses(number: u32) -> Vec<IpAddr> {
    let octet = |value: u32| u8::try_from(value).unwrap_or(u8::MAX);
    let (third, fourth) = (number / ROW, number % ROW);
    let v4 = Ipv4Addr::new(240, 240, octet(third), octet(fourth));
    // Upstream writes both numbers in hexadecimal, one after the other.
    let digits = match third {
        0 => format!("{fourth:x}"),
        _ => format!("{third:x}{fourth:x}"),
    };
    let last = u16::from_str_radix(&digits, 16).unwrap_or(u16::MAX);
    let v6 = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0xf0f0, last);
    vec![IpAddr::V4(v4), IpAddr::V6(v6)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_from_the_name() {
        let mut slots = HashMap::new();
        for want in [
            ["240.240.122.168", "2001:2::f0f0:7aa8"],
            // Who comes second to the same name has to look further.
            ["240.240.91.120", "2001:2::f0f0:5b78"],
        ] {
            let slot = free_slot(&slots, "default/istio.io").expect("a slot");
            slots.insert(slot, 0);
            let got: Vec<String> = addresses(slot + 1).iter().map(IpAddr::to_string).collect();
            assert_eq!(got, want);
        }
    }
}
