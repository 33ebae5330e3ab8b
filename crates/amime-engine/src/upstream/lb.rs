//! Load balancing: which endpoint of a cluster takes a request.
//!
//! Tables for consistent hashing are built once per endpoint set, at first
//! use, so clusters that nobody calls cost nothing.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;

use xxhash_rust::xxh64::xxh64;

use super::cluster::Host;
use amime_config::cluster::LbPolicy;

/// Endpoints of one priority.
pub(crate) struct PriorityGroup {
    pub(crate) hosts: Vec<Rc<Host>>,
    localities: Vec<Locality>,
    weighted: bool,
    cursor: Cell<usize>,
    ring: OnceCell<HashTable>,
}

struct Locality {
    weight: u32,
    hosts: Vec<usize>,
}

enum HashTable {
    /// Sorted points of a ring, each with a host.
    Ring(Vec<(u64, usize)>),
    Maglev(Vec<usize>),
    Empty,
}

/// What a choice may depend on.
#[derive(Clone, Copy, Default)]
pub(crate) struct LbInput<'a> {
    pub(crate) hash: Option<u64>,
    /// Hosts already tried, to be avoided.
    pub(crate) tried: &'a [Rc<Host>],
    /// How often to draw again for a host not yet tried.
    pub(crate) reselect: u32,
}

impl PriorityGroup {
    pub(crate) fn new(groups: Vec<(u32, Vec<Rc<Host>>)>) -> Self {
        let mut hosts = Vec::new();
        let mut localities = Vec::with_capacity(groups.len());
        for (weight, group) in groups {
            let start = hosts.len();
            hosts.extend(group);
            localities.push(Locality { weight, hosts: (start..hosts.len()).collect() });
        }
        let weighted = hosts
            .windows(2)
            .any(|pair: &[Rc<Host>]| pair[0].endpoint.weight != pair[1].endpoint.weight);
        let cursor = Cell::new(if hosts.is_empty() { 0 } else { fastrand::usize(0..hosts.len()) });
        Self { hosts, localities, weighted, cursor, ring: OnceCell::new() }
    }

    /// Healthy endpoints in percent; 0 when there are none.
    pub(crate) fn healthy_percent(&self) -> u32 {
        if self.hosts.is_empty() {
            return 0;
        }
        let healthy = self.hosts.iter().filter(|host| host.healthy()).count();
        u32::try_from(healthy * 100 / self.hosts.len()).unwrap_or(100)
    }

    /// A host by `policy`. `heed_health` is off in panic.
    pub(crate) fn choose(
        &self,
        policy: LbPolicy,
        by_locality: bool,
        heed_health: bool,
        input: LbInput<'_>,
    ) -> Option<Rc<Host>> {
        match self.hosts.len() {
            0 => return None,
            1 => {
                let only = &self.hosts[0];
                return (!heed_health || only.healthy()).then(|| only.clone());
            }
            _ => {}
        }
        let usable = |host: &Rc<Host>| !heed_health || host.healthy();
        let mut chosen = None;
        for round in 0..=input.reselect {
            let hash = input.hash.map(|hash| hash.wrapping_add(u64::from(round)));
            let host = self.draw(policy, by_locality, hash, &usable)?;
            let fresh = !input.tried.iter().any(|tried| Rc::ptr_eq(tried, &host));
            chosen = Some(host);
            if fresh {
                break;
            }
        }
        chosen
    }

    fn draw(
        &self,
        policy: LbPolicy,
        by_locality: bool,
        hash: Option<u64>,
        usable: &impl Fn(&Rc<Host>) -> bool,
    ) -> Option<Rc<Host>> {
        if let (Some(hash), LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. }) = (hash, policy) {
            return self.by_hash(policy, hash, usable);
        }
        let locality = if by_locality { self.locality(usable) } else { None };
        let len = locality.map_or(self.hosts.len(), |locality| locality.hosts.len());
        let at = |index: usize| match locality {
            Some(locality) => &self.hosts[locality.hosts[index]],
            None => &self.hosts[index],
        };
        let drawn = match policy {
            LbPolicy::LeastRequest { choices } => self.least_request(choices, len, &at, usable),
            LbPolicy::RoundRobin if !self.weighted => {
                let next = self.cursor.get().wrapping_add(1);
                self.cursor.set(next);
                Some(at(next % len))
            }
            LbPolicy::RoundRobin => smooth(len, &at, usable),
            _ if !self.weighted => Some(at(fastrand::usize(0..len))),
            _ => random_by_weight(len, &at, usable),
        };
        match drawn {
            Some(host) if usable(host) => Some(host.clone()),
            // The draw met an unusable host: the next usable one takes over.
            _ => {
                let start = fastrand::usize(0..len);
                (0..len).map(|step| at((start + step) % len)).find(|host| usable(host)).cloned()
            }
        }
    }

    fn least_request<'a>(
        &self,
        choices: u32,
        len: usize,
        at: &impl Fn(usize) -> &'a Rc<Host>,
        usable: &impl Fn(&Rc<Host>) -> bool,
    ) -> Option<&'a Rc<Host>> {
        if self.weighted {
            // Weight over load, as Envoy does when weights differ.
            let score = |host: &Rc<Host>| {
                f64::from(host.active.get() + 1) / f64::from(host.endpoint.weight)
            };
            let start = fastrand::usize(0..len);
            let around = (0..len).map(|step| at((start + step) % len));
            return around.filter(|host| usable(host)).min_by(|a, b| score(a).total_cmp(&score(b)));
        }
        let mut best: Option<&Rc<Host>> = None;
        for _ in 0..choices {
            let host = at(fastrand::usize(0..len));
            if usable(host) && best.is_none_or(|best| host.active.get() < best.active.get()) {
                best = Some(host);
            }
        }
        best
    }

    fn locality(&self, usable: &impl Fn(&Rc<Host>) -> bool) -> Option<&Locality> {
        let weight = |locality: &Locality| {
            let healthy = locality.hosts.iter().filter(|host| usable(&self.hosts[**host])).count();
            if locality.hosts.is_empty() {
                0
            } else {
                u64::from(locality.weight) * healthy as u64 * 1000 / locality.hosts.len() as u64
            }
        };
        let total: u64 = self.localities.iter().map(weight).sum();
        if total == 0 {
            return None;
        }
        let mut left = fastrand::u64(0..total);
        self.localities.iter().find(|locality| {
            let weight = weight(locality);
            let found = left < weight;
            left = left.saturating_sub(weight);
            found
        })
    }

    fn by_hash(
        &self,
        policy: LbPolicy,
        hash: u64,
        usable: &impl Fn(&Rc<Host>) -> bool,
    ) -> Option<Rc<Host>> {
        let index = match self.ring.get_or_init(|| HashTable::build(policy, &self.hosts)) {
            HashTable::Ring(points) => {
                let at = points.partition_point(|(point, _)| *point < hash) % points.len();
                // Walk on from the point, so that others keep their hosts.
                let around = points[at..].iter().chain(&points[..at]);
                around.map(|(_, host)| *host).find(|host| usable(&self.hosts[*host]))
            }
            HashTable::Maglev(table) => {
                let at = (hash % table.len() as u64) as usize;
                let around = table[at..].iter().chain(&table[..at]);
                around.copied().find(|host| usable(&self.hosts[*host]))
            }
            HashTable::Empty => None,
        };
        index.map(|index| self.hosts[index].clone())
    }
}

/// Weighted round robin that spreads each host's turns evenly.
fn smooth<'a>(
    len: usize,
    at: &impl Fn(usize) -> &'a Rc<Host>,
    usable: &impl Fn(&Rc<Host>) -> bool,
) -> Option<&'a Rc<Host>> {
    let mut total = 0;
    let mut best: Option<&Rc<Host>> = None;
    for host in (0..len).map(at).filter(|host| usable(host)) {
        let weight = i64::from(host.endpoint.weight);
        total += weight;
        host.turn.set(host.turn.get() + weight);
        if best.is_none_or(|best| host.turn.get() > best.turn.get()) {
            best = Some(host);
        }
    }
    if let Some(best) = best {
        best.turn.set(best.turn.get() - total);
    }
    best
}

fn random_by_weight<'a>(
    len: usize,
    at: &impl Fn(usize) -> &'a Rc<Host>,
    usable: &impl Fn(&Rc<Host>) -> bool,
) -> Option<&'a Rc<Host>> {
    let weight = |host: &Rc<Host>| u64::from(host.endpoint.weight);
    let total: u64 = (0..len).map(at).filter(|host| usable(host)).map(weight).sum();
    if total == 0 {
        return None;
    }
    let mut left = fastrand::u64(0..total);
    (0..len).map(at).filter(|host| usable(host)).find(|host| {
        let weight = weight(host);
        let found = left < weight;
        left = left.saturating_sub(weight);
        found
    })
}

impl HashTable {
    fn build(policy: LbPolicy, hosts: &[Rc<Host>]) -> Self {
        if hosts.is_empty() {
            return Self::Empty;
        }
        match policy {
            LbPolicy::RingHash { min, max } => Self::ring(hosts, min, max),
            LbPolicy::Maglev { size } => Self::maglev(hosts, size as usize),
            _ => Self::Empty,
        }
    }

    /// Envoy's ring: points in proportion to weight, hashed from
    /// `address_index`, at least `min` in all.
    fn ring(hosts: &[Rc<Host>], min: u64, max: u64) -> Self {
        let total: f64 = hosts.iter().map(|host| f64::from(host.endpoint.weight)).sum();
        let lightest = hosts.iter().map(|host| host.endpoint.weight).min().unwrap_or(1);
        let lightest = f64::from(lightest) / total;
        let scale = ((lightest * min as f64).ceil() / lightest).min(max as f64);
        let mut points = Vec::with_capacity(scale.ceil() as usize);
        let (mut current, mut target) = (0.0, 0.0);
        for (index, host) in hosts.iter().enumerate() {
            let key = host.hash_key();
            target += scale * f64::from(host.endpoint.weight) / total;
            let mut number = 0_u64;
            while current < target {
                points.push((xxh64(format!("{key}_{number}").as_bytes(), 0), index));
                number += 1;
                current += 1.0;
            }
        }
        points.sort_unstable();
        if points.is_empty() { Self::Empty } else { Self::Ring(points) }
    }

    /// Envoy's Maglev table: each host takes free slots by its permutation,
    /// in turns by weight.
    fn maglev(hosts: &[Rc<Host>], size: usize) -> Self {
        struct Entry {
            offset: u64,
            skip: u64,
            next: u64,
            weight: f64,
            target: f64,
        }
        let heaviest = hosts.iter().map(|host| host.endpoint.weight).max().unwrap_or(1);
        let mut entries: Vec<Entry> = hosts
            .iter()
            .map(|host| {
                let key = host.hash_key();
                Entry {
                    offset: xxh64(key.as_bytes(), 0) % size as u64,
                    skip: xxh64(key.as_bytes(), 1) % (size as u64).saturating_sub(1).max(1) + 1,
                    next: 0,
                    weight: f64::from(host.endpoint.weight) / f64::from(heaviest),
                    target: 0.0,
                }
            })
            .collect();
        let mut table = vec![usize::MAX; size];
        let mut filled = 0;
        let mut round = 1.0;
        while filled < size {
            for (index, entry) in entries.iter_mut().enumerate() {
                if filled == size {
                    break;
                }
                if round * entry.weight < entry.target {
                    continue;
                }
                entry.target += 1.0;
                let mut slot = ((entry.offset + entry.skip * entry.next) % size as u64) as usize;
                while table[slot] != usize::MAX {
                    entry.next += 1;
                    slot = ((entry.offset + entry.skip * entry.next) % size as u64) as usize;
                }
                table[slot] = index;
                entry.next += 1;
                filled += 1;
            }
            round += 1.0;
        }
        Self::Maglev(table)
    }
}
