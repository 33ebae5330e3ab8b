//! Consistent hashing with bounded loads: an endpoint that has more than its
//! share of the requests in flight passes them on.
//!
//! Others are tried in a random order that the hash alone decides, so that the
//! same request overflows to the same endpoints, in Envoy as well as here.

use std::cell::RefCell;

/// The shares that endpoints have in a table.
#[derive(Debug)]
pub(super) struct Shares {
    /// Endpoints and their shares, in the order of the table's making.
    listed: Box<[(u32, f64)]>,
    /// The same by endpoint.
    sorted: Box<[(u32, f64)]>,
}

/// Requests in flight, as the choice of an endpoint sees them.
pub(super) struct InFlight<F> {
    pub(super) overall: u64,
    /// Those of one endpoint.
    pub(super) of: F,
    /// Percent of the average that an endpoint may have.
    pub(super) factor: u64,
}

thread_local! {
    /// Kept from pick to pick: picking allocates nothing.
    static ORDER: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

impl Shares {
    pub(super) fn new(listed: Vec<(u32, f64)>) -> Self {
        let mut sorted = listed.clone();
        sorted.sort_unstable_by_key(|(host, _)| *host);
        Self { listed: listed.into(), sorted: sorted.into() }
    }

    fn of(&self, host: u32) -> f64 {
        let at = self.sorted.binary_search_by_key(&host, |(host, _)| *host);
        at.map_or(0.0, |at| self.sorted[at].1)
    }

    /// `first`, or the first endpoint that has room, or the least loaded.
    pub(super) fn choose<F: Fn(u32) -> u32>(
        &self,
        first: u32,
        hash: u64,
        load: &InFlight<F>,
    ) -> u32 {
        let mut least = load.overload(first, self.of(first));
        if least <= 1.0 {
            return first;
        }
        let mut best = first;
        let count = u32::try_from(self.listed.len()).unwrap_or(u32::MAX);
        // The seed is what the generator takes of the hash.
        let mut random = Mersenne::new(hash as u32);
        ORDER.with_borrow_mut(|order| {
            order.clear();
            order.extend(0..count);
            for at in 0..count {
                let other = at + random.below(count - at);
                order.swap(at as usize, other as usize);
                let (host, share) = self.listed[order[at as usize] as usize];
                if host == first {
                    continue;
                }
                let overload = load.overload(host, share);
                if overload <= 1.0 {
                    return host;
                }
                if overload < least {
                    (best, least) = (host, overload);
                }
            }
            best
        })
    }
}

impl<F: Fn(u32) -> u32> InFlight<F> {
    /// Requests of an endpoint over those that it may have.
    fn overload(&self, host: u32, share: f64) -> f64 {
        let slots = ((self.overall + 1) * self.factor).div_ceil(100);
        let slots = (slots as f64 * share).ceil().max(1.0);
        f64::from((self.of)(host)) / slots
    }
}

/// The 32-bit Mersenne Twister, as far as a shuffle needs it.
struct Mersenne {
    state: [u32; Self::SIZE],
    at: usize,
}

impl Mersenne {
    const SIZE: usize = 624;

    fn new(seed: u32) -> Self {
        let mut state = [seed; Self::SIZE];
        for at in 1..Self::SIZE {
            let before = state[at - 1];
            let mixed = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30));
            state[at] = mixed.wrapping_add(at as u32);
        }
        Self { state, at: 0 }
    }

    fn next(&mut self) -> u32 {
        // Each word is renewed as it is come to, which costs nothing for
        // those that are never used.
        let at = self.at;
        let next = (at + 1) % Self::SIZE;
        let joined = (self.state[at] & 0x8000_0000) | (self.state[next] & 0x7fff_ffff);
        let twisted = (joined >> 1) ^ if joined & 1 == 1 { 0x9908_b0df } else { 0 };
        self.state[at] = self.state[(at + 397) % Self::SIZE] ^ twisted;
        let mut word = self.state[at];
        self.at = next;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// A number below `bound`, all equally likely.
    fn below(&mut self, bound: u32) -> u32 {
        let step = (1_u64 << 32) / u64::from(bound.max(1));
        loop {
            let number = u64::from(self.next()) / step;
            if number < u64::from(bound.max(1)) {
                return number as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_standard_one() {
        let mut random = Mersenne::new(5489);
        assert_eq!(random.next(), 3_499_211_612);
        for _ in 0..9998 {
            random.next();
        }
        assert_eq!(random.next(), 4_123_659_995, "the value that the C++ standard names");
    }

    #[test]
    fn an_endpoint_with_its_share_passes_requests_on() {
        let shares = Shares::new((0..4).map(|host| (host, 0.25)).collect());
        let choose = |active: [u32; 4]| {
            let overall = active.iter().map(|count| u64::from(*count)).sum();
            let load = InFlight { overall, of: |host| active[host as usize], factor: 150 };
            shares.choose(1, 77, &load)
        };
        assert_eq!(choose([0, 0, 0, 0]), 1);
        assert_eq!(choose([2, 2, 2, 2]), 1);
        assert_ne!(choose([0, 4, 0, 0]), 1);
        assert!([0, 3].contains(&choose([0, 40, 40, 0])));
    }
}
