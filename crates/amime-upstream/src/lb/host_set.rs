//! Endpoints of one priority, sorted by health and locality.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use amime_config::endpoint::{Endpoint, EndpointSet, Health, LocalityGroup};
use amime_config::lb_policy::LbSettings;
use amime_config::lb_subset::SubsetSettings;
use amime_core::unix::Shown;
use amime_telemetry::ClusterStats;

use super::bounded::Shares;
use super::hash_table::{HashTable, Placed};
use super::load::{Availability, Kind};
use super::zone::{Place, Seen, Zones};

/// All endpoints of a cluster at one moment, from which tables are made.
pub(super) struct Members<'a> {
    pub(super) settings: &'a LbSettings,
    pub(super) set: &'a EndpointSet,
    /// The cluster that the proxy is part of, where zones count.
    pub(super) local: Option<Seen>,
    stats: &'a ClusterStats,
    /// By position in the set, as all lists refer to them.
    pub(super) endpoints: Vec<&'a Arc<Endpoint>>,
    health: Vec<Health>,
    /// The locality of each endpoint within its priority.
    locality: Vec<usize>,
    pub(super) priorities: Vec<PriorityMembers>,
    lists: Cell<usize>,
}

/// What one priority consists of.
pub(super) struct PriorityMembers {
    pub(super) hosts: Arc<[u32]>,
    /// Weight and number of endpoints of each locality.
    localities: Vec<(u32, usize)>,
}

/// A list of endpoints, with a number by which workers keep their place in it.
#[derive(Debug)]
pub(super) struct List {
    pub(super) id: usize,
    pub(super) hosts: Arc<[u32]>,
    /// All weigh the same.
    pub(super) even: bool,
}

/// Endpoints of one priority.
#[derive(Debug)]
pub(super) struct HostSet {
    pub(super) all: List,
    healthy: List,
    degraded: List,
    pub(super) localities: Option<Localities>,
    /// Set if zones are heeded, which only the first priority can be.
    pub(super) zones: Option<Zones>,
    pub(super) availability: Availability,
    /// Percent of endpoints that are healthy or degraded.
    pub(super) usable_percent: f64,
    /// Too few are usable for health to be heeded.
    pub(super) panic: bool,
    /// Filled at first use: a cluster that nobody calls costs nothing.
    hashed: OnceLock<Hashed>,
}

/// Endpoints by hash.
#[derive(Debug)]
pub(super) struct Hashed {
    pub(super) table: HashTable,
    /// Set where loads are bounded.
    pub(super) shares: Option<Shares>,
}

/// Endpoints by locality, and how localities take turns.
#[derive(Debug)]
pub(super) struct Localities {
    healthy: Turns,
    degraded: Turns,
    /// Weight and all endpoints.
    parts: Vec<(u32, Vec<u32>)>,
}

/// Localities in turns by weight.
#[derive(Debug)]
pub(super) struct Turns {
    /// Number by which workers keep their turn.
    pub(super) id: usize,
    pub(super) weights: Vec<f64>,
    pub(super) lists: Vec<List>,
}

impl<'a> Members<'a> {
    pub(super) fn new(
        settings: &'a LbSettings,
        set: &'a EndpointSet,
        local: Option<Seen>,
        stats: &'a ClusterStats,
    ) -> Self {
        let mut members = Self {
            settings,
            set,
            local,
            stats,
            endpoints: set.endpoints().collect(),
            health: set.endpoints().map(|endpoint| endpoint.health()).collect(),
            locality: Vec::new(),
            priorities: Vec::with_capacity(set.priorities.len()),
            lists: Cell::new(0),
        };
        for groups in &set.priorities {
            // Groups of one locality are one, and localities go by name.
            let mut names: Vec<_> = groups.iter().map(|group| &group.locality).collect();
            names.sort_unstable();
            names.dedup();
            let mut localities = vec![(0, 0); names.len()];
            let start = members.locality.len();
            for group in groups {
                let at = names.binary_search(&&group.locality).unwrap_or_default();
                localities[at].0 = localities[at].0.max(group.weight);
                localities[at].1 += group.endpoints.len();
                members.locality.extend(group.endpoints.iter().map(|_| at));
            }
            let hosts = (start..members.locality.len()).filter_map(|at| u32::try_from(at).ok());
            members.priorities.push(PriorityMembers { hosts: hosts.collect(), localities });
        }
        members
    }

    fn next_id(&self) -> usize {
        let id = self.lists.get();
        self.lists.set(id + 1);
        id
    }

    /// Numbers given out so far.
    pub(super) fn lists(&self) -> usize {
        self.lists.get()
    }

    /// Localities of the first priority, by name, with those of `hosts` in each.
    pub(super) fn places(&self, hosts: &[u32]) -> BTreeMap<&'a Place, Vec<u32>> {
        let groups = self.set.priorities.first().into_iter().flatten();
        let of = |group: &'a LocalityGroup| group.endpoints.iter().map(|_| &group.locality);
        // Endpoints of the first priority are the first of all.
        let placed: Vec<&Place> = groups.flat_map(of).collect();
        let mut places: BTreeMap<_, _> = placed.iter().map(|place| (*place, Vec::new())).collect();
        for host in hosts {
            places.entry(placed[*host as usize]).or_default().push(*host);
        }
        places
    }

    fn weight(&self, host: u32) -> u64 {
        u64::from(self.settings.weight_of(self.endpoints[host as usize]))
    }

    fn is(&self, host: u32, health: Health) -> bool {
        self.health[host as usize] == health
    }

    /// How many of `hosts` count where shares of health are taken.
    fn counted(&self, hosts: &[u32]) -> usize {
        hosts.iter().filter(|host| !self.is(**host, Health::Excluded)).count()
    }

    fn list(&self, hosts: Arc<[u32]>) -> List {
        let even = hosts.windows(2).all(|pair| self.weight(pair[0]) == self.weight(pair[1]));
        List { id: self.next_id(), hosts, even }
    }

    /// Those of `hosts` that have `health`.
    pub(super) fn only(&self, hosts: &Arc<[u32]>, health: Health) -> List {
        let has = |host: &&u32| self.is(**host, health);
        if hosts.iter().all(|host| has(&host)) {
            // With all well, lists share their endpoints.
            return self.list(hosts.clone());
        }
        self.list(hosts.iter().filter(has).copied().collect())
    }
}

impl HostSet {
    /// The endpoints `hosts` of a priority.
    pub(super) fn new(
        members: &Members<'_>,
        priority: usize,
        hosts: Arc<[u32]>,
        subset: Option<&SubsetSettings>,
    ) -> Self {
        let healthy = members.only(&hosts, Health::Healthy);
        let degraded = members.only(&hosts, Health::Degraded);
        let counted = members.counted(&hosts);
        let usable = healthy.hosts.len() + degraded.hosts.len();
        Self {
            availability: availability(members, &hosts, [&healthy, &degraded]),
            usable_percent: if counted == 0 { 0.0 } else { 100.0 * usable as f64 / counted as f64 },
            panic: false,
            localities: Localities::new(members, priority, &hosts, subset),
            zones: if priority == 0 { Zones::new(members, &hosts, members.stats) } else { None },
            all: members.list(hosts),
            healthy,
            degraded,
            hashed: OnceLock::new(),
        }
    }

    pub(super) fn list(&self, kind: Kind) -> &List {
        match kind {
            Kind::Healthy => &self.healthy,
            Kind::Degraded => &self.degraded,
        }
    }

    /// What consistent hashing needs; `endpoint` knows them by position.
    pub(super) fn hashed<'a>(
        &self,
        settings: &LbSettings,
        endpoint: impl Fn(u32) -> &'a Endpoint,
    ) -> &Hashed {
        self.hashed.get_or_init(|| {
            let placed = self.placed(settings, endpoint);
            let share = |placed: &Placed| (placed.index, placed.weight);
            let bounded = settings.hash_balance_factor.is_some();
            Hashed {
                shares: bounded.then(|| Shares::new(placed.iter().map(share).collect())),
                table: HashTable::build(settings.policy, placed),
            }
        })
    }

    /// The endpoints that the table holds, with their shares.
    fn placed<'a>(
        &self,
        settings: &LbSettings,
        endpoint: impl Fn(u32) -> &'a Endpoint,
    ) -> Vec<Placed> {
        let mut placed = Vec::with_capacity(self.all.hosts.len());
        let mut place = |hosts: &[u32], share: f64| {
            let sum: f64 = hosts.iter().map(|host| f64::from(endpoint(*host).weight)).sum();
            placed.extend(hosts.iter().map(|host| {
                let one = endpoint(*host);
                let key = hash_key(one, settings.hash_by_hostname);
                Placed { index: *host, key, weight: f64::from(one.weight) * share / sum }
            }));
        };
        let Some(localities) = &self.localities else {
            place(if self.panic { &self.all.hosts } else { &self.healthy.hosts }, 1.0);
            return placed;
        };
        let sum: u64 = localities.parts.iter().map(|(weight, _)| u64::from(*weight)).sum();
        for ((weight, all), healthy) in localities.parts.iter().zip(&localities.healthy.lists) {
            if *weight > 0 {
                let hosts = if self.panic { all.as_slice() } else { &healthy.hosts };
                place(hosts, f64::from(*weight) / sum as f64);
            }
        }
        placed
    }
}

/// Shares of healthy and degraded endpoints, by weight if the cluster says so.
fn availability(members: &Members<'_>, hosts: &[u32], usable: [&List; 2]) -> Availability {
    let size = |hosts: &[u32]| -> u64 {
        if members.set.weighted_health {
            hosts.iter().map(|host| members.weight(*host)).sum()
        } else {
            hosts.len() as u64
        }
    };
    let excluded: Vec<u32> =
        hosts.iter().copied().filter(|host| members.is(*host, Health::Excluded)).collect();
    let total = size(hosts) - size(&excluded);
    let factor = u64::from(members.set.overprovisioning);
    let [healthy, degraded] = usable.map(|list| {
        let share = (factor * size(&list.hosts)).checked_div(total).unwrap_or(0);
        u32::try_from(share).unwrap_or(100).min(100)
    });
    Availability { healthy, degraded }
}

/// What consistent hashing knows an endpoint by.
fn hash_key(endpoint: &Endpoint, by_hostname: bool) -> String {
    match endpoint.lb_text("hash_key") {
        Some(key) if !key.is_empty() => key.to_owned(),
        _ if by_hostname => endpoint.hostname.to_string(),
        _ => Shown(endpoint.address).to_string(),
    }
}

impl Localities {
    /// `None` if localities do not take turns.
    fn new(
        members: &Members<'_>,
        priority: usize,
        hosts: &[u32],
        subset: Option<&SubsetSettings>,
    ) -> Option<Self> {
        let aware = subset.is_none_or(|subset| subset.locality_weight_aware);
        if !members.settings.locality_weighted || !aware {
            return None;
        }
        let whole = &members.priorities[priority].localities;
        let mut parts: Vec<(u32, Vec<u32>)> =
            whole.iter().map(|(weight, _)| (*weight, Vec::new())).collect();
        for host in hosts {
            parts[members.locality[*host as usize]].1.push(*host);
        }
        if subset.is_some_and(|subset| subset.scale_locality_weight) {
            for ((weight, hosts), (_, size)) in parts.iter_mut().zip(whole) {
                let scaled = f64::from(*weight) * hosts.len() as f64 / (*size).max(1) as f64;
                *weight = scaled.round() as u32;
            }
        }
        Some(Self {
            healthy: Turns::new(members, &parts, Health::Healthy),
            degraded: Turns::new(members, &parts, Health::Degraded),
            parts,
        })
    }

    pub(super) fn turns(&self, kind: Kind) -> &Turns {
        match kind {
            Kind::Healthy => &self.healthy,
            Kind::Degraded => &self.degraded,
        }
    }
}

impl Turns {
    fn new(members: &Members<'_>, parts: &[(u32, Vec<u32>)], health: Health) -> Self {
        let factor = f64::from(members.set.overprovisioning) / 100.0;
        let mut turns = Self { id: members.next_id(), weights: Vec::new(), lists: Vec::new() };
        for (weight, hosts) in parts {
            let list = members.only(&hosts.as_slice().into(), health);
            // A locality that lost more endpoints than overprovisioning
            // covers takes less.
            let share = list.hosts.len() as f64 / members.counted(hosts).max(1) as f64;
            turns.weights.push(f64::from(*weight) * (factor * share).min(1.0));
            turns.lists.push(list);
        }
        turns
    }
}
