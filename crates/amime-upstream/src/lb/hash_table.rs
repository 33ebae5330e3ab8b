//! Tables of consistent hashing: Ketama's ring and Maglev's table.
//!
//! Both are filled exactly as Envoy fills them, so that a request goes to the
//! same endpoint whichever of the two proxies it passes.

use xxhash_rust::xxh64::xxh64;

use amime_config::lb_policy::LbPolicy;

/// Endpoints by hash.
#[derive(Debug)]
pub(super) enum HashTable {
    Empty,
    /// Points in ascending order, each with an endpoint.
    Ring(Box<[(u64, u32)]>),
    Maglev(Box<[u32]>),
}

/// An endpoint to be placed.
pub(super) struct Placed {
    pub(super) index: u32,
    /// What the endpoint is known by.
    pub(super) key: String,
    /// Share of the whole.
    pub(super) weight: f64,
}

/// An endpoint while a Maglev table is filled.
struct Filling {
    index: u32,
    offset: u64,
    skip: u64,
    next: u64,
    weight: f64,
    target: f64,
}

impl HashTable {
    pub(super) fn build(policy: LbPolicy, hosts: Vec<Placed>) -> Self {
        if hosts.is_empty() {
            return Self::Empty;
        }
        match policy {
            LbPolicy::RingHash { min, max, murmur } => ring(&hosts, (min, max), murmur),
            LbPolicy::Maglev { size } => maglev(hosts, size),
            LbPolicy::RoundRobin | LbPolicy::LeastRequest { .. } | LbPolicy::Random => Self::Empty,
        }
    }

    /// The endpoint for `hash`; later attempts look elsewhere.
    pub(super) fn get(&self, hash: u64, attempt: u32) -> Option<u32> {
        match self {
            Self::Empty => None,
            Self::Ring(points) => {
                // Beyond the last point the ring begins anew.
                let at = points.partition_point(|(point, _)| *point < hash) % points.len();
                Some(points[(at + attempt as usize) % points.len()].1)
            }
            Self::Maglev(table) => {
                let hash = match attempt {
                    0 => hash,
                    attempt => hash ^ 0_u64.wrapping_sub(u64::from(attempt)),
                };
                Some(table[(hash % table.len() as u64) as usize])
            }
        }
    }
}

/// Points in proportion to weight, so many that the lightest endpoint has a
/// whole number of them, at least `min` and at most `max` in all.
fn ring(hosts: &[Placed], (min, max): (u64, u64), murmur: bool) -> HashTable {
    let lightest = hosts.iter().map(|host| host.weight).fold(1.0, f64::min);
    let scale = ((lightest * min as f64).ceil() / lightest).min(max as f64);
    let mut points = Vec::with_capacity(scale.ceil() as usize);
    let (mut current, mut target) = (0.0, 0.0);
    for host in hosts {
        let mut text = format!("{}_", host.key);
        let prefix = text.len();
        target += scale * host.weight;
        let mut number = 0_u64;
        while current < target {
            text.truncate(prefix);
            text.push_str(&number.to_string());
            let hash = if murmur { murmur2(text.as_bytes()) } else { xxh64(text.as_bytes(), 0) };
            points.push((hash, host.index));
            number += 1;
            current += 1.0;
        }
    }
    if points.is_empty() {
        return HashTable::Empty;
    }
    points.sort_unstable_by_key(|(hash, _)| *hash);
    HashTable::Ring(points.into())
}

/// Each endpoint takes free slots in an order of its own, in turns by weight.
fn maglev(mut hosts: Vec<Placed>, size: u64) -> HashTable {
    hosts.sort_by(|a, b| a.key.cmp(&b.key));
    let heaviest = hosts.iter().map(|host| host.weight).fold(0.0, f64::max);
    let fill = |host: &Placed| Filling {
        index: host.index,
        offset: xxh64(host.key.as_bytes(), 0) % size,
        skip: xxh64(host.key.as_bytes(), 1) % (size - 1) + 1,
        next: 0,
        weight: host.weight,
        target: 0.0,
    };
    let mut entries: Vec<Filling> = hosts.iter().map(fill).collect();
    let mut table = vec![u32::MAX; size as usize];
    let mut filled = 0;
    let mut round = 1.0;
    while filled < table.len() {
        for entry in &mut entries {
            if filled == table.len() {
                break;
            }
            if round * entry.weight < entry.target {
                continue;
            }
            entry.target += heaviest;
            // The size is prime, so the steps come to every slot.
            let slot = loop {
                let slot = ((entry.offset + entry.skip * entry.next) % size) as usize;
                entry.next += 1;
                if table[slot] == u32::MAX {
                    break slot;
                }
            };
            table[slot] = entry.index;
            filled += 1;
        }
        round += 1.0;
    }
    HashTable::Maglev(table.into())
}

/// The 64-bit MurmurHash2 of GNU's `std::hash<string>`.
fn murmur2(bytes: &[u8]) -> u64 {
    const MUL: u64 = 0xc6a4_a793_5bd1_e995;
    const SEED: u64 = 0xc70f_6907;
    let mix = |value: u64| value ^ (value >> 47);
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(MUL);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash ^= mix(u64::from_le_bytes(*word).wrapping_mul(MUL)).wrapping_mul(MUL);
        hash = hash.wrapping_mul(MUL);
    }
    if !rest.is_empty() {
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(MUL);
    }
    mix(mix(hash).wrapping_mul(MUL))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(weights: &[f64]) -> Vec<Placed> {
        let sum: f64 = weights.iter().sum();
        let place = |(index, weight): (u32, &f64)| Placed {
            index,
            key: format!("10.0.0.{index}:80"),
            weight: weight / sum,
        };
        (0..).zip(weights).map(place).collect()
    }

    fn shares(table: &HashTable, hosts: usize) -> Vec<usize> {
        let mut shares = vec![0; hosts];
        match table {
            HashTable::Empty => {}
            HashTable::Ring(points) => points.iter().for_each(|(_, at)| shares[*at as usize] += 1),
            HashTable::Maglev(table) => table.iter().for_each(|at| shares[*at as usize] += 1),
        }
        shares
    }

    #[test]
    fn murmur_is_that_of_the_gnu_library() {
        assert_eq!(murmur2(b""), 6_142_509_188_972_423_790);
        assert_eq!(murmur2(b"foo"), 9_631_199_822_919_835_226);
        assert_eq!(murmur2(b"abcdefghijklmnopqrstuvwxyz"), 9_979_622_261_905_367_491);
    }

    #[test]
    fn weights_decide_shares() {
        let policy = LbPolicy::Maglev { size: 65_537 };
        let table = HashTable::build(policy, hosts(&[1.0, 2.0, 1.0]));
        assert_eq!(shares(&table, 3), [16_385, 32_768, 16_384]);
        let policy = LbPolicy::RingHash { min: 100, max: 1000, murmur: false };
        let table = HashTable::build(policy, hosts(&[1.0, 2.0, 1.0]));
        assert_eq!(shares(&table, 3), [25, 50, 25]);
    }

    #[test]
    fn a_small_ring_still_serves() {
        let policy = LbPolicy::RingHash { min: 1, max: 2, murmur: true };
        let table = HashTable::build(policy, hosts(&[1.0, 1.0, 1.0]));
        assert_eq!(shares(&table, 3).iter().sum::<usize>(), 2);
        assert!(table.get(u64::MAX, 0).is_some() && table.get(0, 7).is_some());
        assert!(HashTable::build(policy, Vec::new()).get(1, 0).is_none());
    }

    #[test]
    fn a_lost_endpoint_moves_few_keys_of_others() {
        let policy = LbPolicy::Maglev { size: 65_537 };
        let whole = HashTable::build(policy, hosts(&[1.0; 10]));
        let rest = HashTable::build(policy, hosts(&[1.0; 9]));
        let moved = (0..10_000_u64)
            .map(|key| xxh64(&key.to_le_bytes(), 0))
            .filter(|hash| whole.get(*hash, 0) != Some(9))
            .filter(|hash| whole.get(*hash, 0) != rest.get(*hash, 0))
            .count();
        assert!(moved < 1500, "{moved} of 9000 keys moved without need");
    }
}
