//! Addresses for declared hosts that have none, derived from their names.
//!
//! For proxies that answer DNS themselves and ask for such addresses. The
//! result depends on nothing but the names, so that every control plane gives
//! the same ones, and so does upstream's.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::service::{Registry, Resolution, Service, UNSPECIFIED_V4};

/// Addresses there are: 240.240.0.0/16 without the last of each 256.
const SLOTS: u32 = 256 * 254;
/// Largest prime below, for the second hash.
const PRIME: u32 = 65011;
/// Addresses of one value of the third octet.
const ROW: u32 = 255;

/// Gives each host an address; services of one host share it. Whoever comes or
/// goes, the others keep theirs, unless two names want the same: then the
/// older service has it.
pub(crate) fn allocate(services: &mut [Service]) {
    let mut taken: HashSet<u32> = HashSet::new();
    let mut known: HashMap<String, u32> = HashMap::new();
    for service in services {
        if !needs_address(service) {
            continue;
        }
        let key = key(service);
        let slot = match known.get(&key) {
            Some(slot) => *slot,
            None => {
                let Some(slot) = free_slot(&taken, &key) else { continue };
                taken.insert(slot);
                known.insert(key, slot);
                slot
            }
        };
        service.derived = addresses(slot + 1);
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
/// The ends of rows belong to nobody: where upstream moves all later slots on,
/// only the one that hits an end looks for another.
fn free_slot(taken: &HashSet<u32>, key: &str) -> Option<u32> {
    let hash = fnv1a(key);
    let step = PRIME - hash % PRIME;
    let next = |round: u32| hash.wrapping_add(round.wrapping_mul(step)) % (SLOTS - 1);
    let tries = std::iter::once(hash % SLOTS).chain((1..=SLOTS).map(next));
    let free = |slot: &u32| !taken.contains(slot) && !(slot + 1).is_multiple_of(ROW);
    tries.into_iter().find(free)
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
        let mut taken = HashSet::new();
        for want in [
            ["240.240.122.168", "2001:2::f0f0:7aa8"],
            // Who comes second to the same name has to look further.
            ["240.240.91.120", "2001:2::f0f0:5b78"],
        ] {
            let slot = free_slot(&taken, "default/istio.io").expect("a slot");
            taken.insert(slot);
            let got: Vec<String> = addresses(slot + 1).iter().map(IpAddr::to_string).collect();
            assert_eq!(got, want);
        }
    }

    #[test]
    fn no_name_gets_the_end_of_a_row() {
        let names = (0..2000).map(|n| format!("default/host-{n}.test"));
        let at_an_end = |name: &String| (fnv1a(name) % SLOTS + 1).is_multiple_of(ROW);
        let mut found = 0;
        for name in names.filter(at_an_end) {
            let slot = free_slot(&HashSet::new(), &name).expect("a slot");
            let [IpAddr::V4(v4), _] = addresses(slot + 1)[..] else { panic!("two addresses") };
            assert_ne!(v4.octets()[3], 0, "{name}");
            found += 1;
        }
        assert!(found > 0);
    }
}
