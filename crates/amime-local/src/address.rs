//! The address plan, and who has which address.
//!
//! Pods: `10.244.0.0/16`; services: `10.96.0.0/16`, given by the store, of
//! which `10.96.0.10` is the name server; `169.254.1.1`: the router, as every
//! pod sees it. All of it exists only inside of the mesh's namespaces.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The router's end of every pod's link.
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The name server of pods.
pub(crate) const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// Addresses of one network, given out in turn so that one just given back
/// is not soon another's: a peer may still dial it.
#[derive(Debug)]
pub(crate) struct Pool {
    first: u32,
    last: u32,
    next: u32,
    taken: BTreeSet<u32>,
}

impl Pool {
    /// Addresses of pods.
    pub(crate) fn pods() -> Self {
        Self::new(Ipv4Addr::new(10, 244, 0, 2), Ipv4Addr::new(10, 244, 255, 254))
    }

    fn new(first: Ipv4Addr, last: Ipv4Addr) -> Self {
        let (first, last) = (first.into(), last.into());
        Self { first, last, next: first, taken: BTreeSet::new() }
    }

    /// A free address, or none when all are taken.
    pub(crate) fn allocate(&mut self) -> Option<Ipv4Addr> {
        let in_turn = (self.next..=self.last).chain(self.first..self.next);
        let free = in_turn.into_iter().find(|address| !self.taken.contains(address))?;
        self.taken.insert(free);
        self.next = if free == self.last { self.first } else { free + 1 };
        Some(free.into())
    }

    /// Gives an address back.
    pub(crate) fn release(&mut self, address: Ipv4Addr) {
        self.taken.remove(&u32::from(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_given_back_is_the_last_to_be_given_again() {
        let mut pool = Pool::new(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 3));
        let mut next = || pool.allocate().map(|address| address.octets()[3]);
        assert_eq!((next(), next()), (Some(1), Some(2)));
        pool.release(Ipv4Addr::new(10, 0, 0, 1));
        let mut next = || pool.allocate().map(|address| address.octets()[3]);
        assert_eq!((next(), next(), next()), (Some(3), Some(1), None));
    }
}
