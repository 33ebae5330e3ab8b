//! Picking an endpoint from a balancer's tables.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use amime_config::endpoint::{Endpoint, Health};
use amime_config::endpoint_state::now_ms;
use amime_config::lb_policy::{LbPolicy, LbSettings, SlowStart};
use amime_telemetry::ClusterStats;

use super::balancer::Balancer;
use super::bounded::InFlight;
use super::edf::Edf;
use super::host_set::{List, Turns};
use super::load::Loads;
use super::zone::Zone;
use super::{LbInput, Tables};
use crate::cluster::Host;

/// Tables with a worker's places in their turns.
pub(super) struct View {
    pub(super) tables: Arc<Tables>,
    /// By list number; made as lists are used.
    turns: RefCell<Vec<Turn>>,
}

/// A worker's place in one list.
enum Turn {
    Unused,
    /// All weigh the same; the next position where they take turns.
    Even(usize),
    Weighted(Box<Edf>),
}

/// Bound of the random start in a schedule.
const PICKS: u32 = 1 << 20;

impl View {
    pub(super) fn new(tables: Arc<Tables>) -> Self {
        let turns = (0..tables.lists).map(|_| Turn::Unused).collect();
        Self { tables, turns: RefCell::new(turns) }
    }
}

/// One pick.
pub(super) struct Pick<'a, P> {
    pub(super) settings: &'a LbSettings,
    pub(super) hosts: &'a [Rc<Host<P>>],
    pub(super) view: &'a View,
    pub(super) stats: &'a ClusterStats,
    pub(super) input: LbInput<'a, P>,
}

impl<P> Pick<'_, P> {
    /// An endpoint of `balancer`. One that a retry is to stay away from is
    /// drawn again, as often as the route allows.
    pub(super) fn of(&self, balancer: &Balancer) -> Option<u32> {
        let limit = self.input.retry.map_or(0, |retry| retry.reselect.limit);
        if self.settings.policy.hashes() {
            return self.by_hash(balancer, limit);
        }
        let mut chosen = self.once(balancer)?;
        for _ in 0..limit {
            if !self.refused(chosen) {
                break;
            }
            chosen = self.once(balancer)?;
        }
        Some(chosen)
    }

    fn by_hash(&self, balancer: &Balancer, limit: u32) -> Option<u32> {
        // Without a hash the choice is random.
        let hash = self.input.hash.unwrap_or_else(|| fastrand::u64(..));
        let set = balancer.sets.get(balancer.loads.choose(hash).0)?;
        if set.panic {
            self.stats.lb_healthy_panic.inc();
        }
        let hashed = set.hashed(self.settings, |host| &self.hosts[host as usize].endpoint);
        let get = |attempt: u32| {
            let host = hashed.table.get(hash, attempt)?;
            let Some(shares) = &hashed.shares else { return Some(host) };
            let load = InFlight {
                overall: u64::try_from(self.stats.upstream_rq_active.value()).unwrap_or(0),
                of: |host: u32| self.hosts[host as usize].active.get(),
                factor: u64::from(self.settings.hash_balance_factor.unwrap_or(100)),
            };
            Some(shares.choose(host, hash, &load))
        };
        let mut chosen = get(0)?;
        for attempt in 1..=limit {
            if !self.refused(chosen) {
                break;
            }
            chosen = get(attempt)?;
        }
        Some(chosen)
    }

    fn refused(&self, host: u32) -> bool {
        let Some(retry) = self.input.retry else { return false };
        let endpoint = &self.hosts[host as usize].endpoint;
        let lb = endpoint.lb.as_deref();
        retry.reselect.previous_hosts
            && retry.tried.iter().any(|tried| tried.endpoint.address == endpoint.address)
            || retry.reselect.canaries && endpoint.is_canary()
            || retry.reselect.omit.iter().any(|omit| !omit.is_empty() && omit.met_by(lb, false))
    }

    fn once(&self, balancer: &Balancer) -> Option<u32> {
        let random = fastrand::u64(..);
        let (priority, kind) = match self.retry_loads(balancer) {
            Some(loads) => loads.choose(random),
            None => balancer.loads.choose(random),
        };
        let set = balancer.sets.get(priority)?;
        if set.panic {
            self.stats.lb_healthy_panic.inc();
            return if self.settings.fail_on_panic { None } else { self.draw(&set.all, random) };
        }
        let locality = set.localities.as_ref().and_then(|all| self.locality(all.turns(kind)));
        if let Some(list) = locality {
            return self.draw(list, random);
        }
        let zone = set.zones.as_ref().map(|zones| zones.pick(self.settings, kind, self.stats));
        match zone.unwrap_or(Zone::Any) {
            Zone::Only(list) => self.draw(list, random),
            Zone::Any => self.draw(set.list(kind), random),
            Zone::None => None,
        }
    }

    /// Loads without the priorities tried, which only retries may ask for.
    fn retry_loads(&self, balancer: &Balancer) -> Option<Loads> {
        let retry = self.input.retry?;
        let frequency = retry.reselect.priorities_after?;
        // Retries are rare enough for these lists.
        let tried: Vec<u32> = retry.tried.iter().map(|host| host.endpoint.priority).collect();
        Loads::after(&balancer.availability(), &tried, frequency)
    }

    fn locality<'t>(&self, turns: &'t Turns) -> Option<&'t List> {
        let mut all = self.view.turns.borrow_mut();
        let turn = &mut all[turns.id];
        if let Turn::Unused = turn {
            *turn = Turn::Weighted(Box::new(Edf::new(&turns.weights, fastrand::u32(..PICKS))));
        }
        let Turn::Weighted(edf) = turn else { return None };
        let index = edf.pick(|index| turns.weights[index as usize])?;
        turns.lists.get(index as usize)
    }

    fn draw(&self, list: &List, random: u64) -> Option<u32> {
        let hosts = &*list.hosts;
        if hosts.len() <= 1 {
            return hosts.first().copied();
        }
        let at_random = |random: u64| hosts[(random % hosts.len() as u64) as usize];
        if self.settings.policy == LbPolicy::Random {
            return Some(at_random(random));
        }
        let mut all = self.view.turns.borrow_mut();
        let turn = &mut all[list.id];
        if let Turn::Unused = turn {
            *turn = self.begin(list);
        }
        match (turn, self.settings.policy) {
            (Turn::Weighted(edf), _) => {
                let index = edf.pick(|index| self.weight(hosts[index as usize]))?;
                Some(hosts[index as usize])
            }
            (_, LbPolicy::LeastRequest { full_scan: true, .. }) => self.least_of_all(hosts),
            (_, LbPolicy::LeastRequest { choices, .. }) => {
                let active = |host: &u32| self.hosts[*host as usize].active.get();
                (0..choices).map(|_| at_random(fastrand::u64(..))).min_by_key(active)
            }
            (Turn::Even(next), _) => {
                let now = *next % hosts.len();
                *next = now + 1;
                Some(hosts[now])
            }
            (Turn::Unused, _) => Some(at_random(random)),
        }
    }

    /// A worker's first place in `list`, somewhere within its turns.
    fn begin(&self, list: &List) -> Turn {
        let start = fastrand::u32(..PICKS);
        if list.even && !list.hosts.iter().any(|host| self.warms_up(*host)) {
            return Turn::Even(start as usize);
        }
        let weights: Vec<f64> = list.hosts.iter().map(|host| self.weight(*host)).collect();
        Turn::Weighted(Box::new(Edf::new(&weights, start)))
    }

    /// The endpoint with the fewest requests; equal ones are equally likely.
    fn least_of_all(&self, hosts: &[u32]) -> Option<u32> {
        let mut best: Option<(u32, u32)> = None;
        let mut equal = 0;
        for host in hosts {
            let active = self.hosts[*host as usize].active.get();
            match best {
                Some((_, least)) if active > least => {}
                Some((_, least)) if active == least => {
                    equal += 1;
                    if fastrand::u32(0..equal) == 0 {
                        best = Some((*host, active));
                    }
                }
                _ => {
                    equal = 1;
                    best = Some((*host, active));
                }
            }
        }
        best.map(|(host, _)| host)
    }

    fn warms_up(&self, host: u32) -> bool {
        let endpoint = &self.hosts[host as usize].endpoint;
        self.settings.slow_start.is_some_and(|slow| slow_start_factor(slow, endpoint) < 1.0)
    }

    /// An endpoint's weight as it is now.
    fn weight(&self, host: u32) -> f64 {
        let host = &self.hosts[host as usize];
        let mut weight = f64::from(self.settings.weight_of(&host.endpoint));
        if let LbPolicy::LeastRequest { bias, .. } = self.settings.policy {
            let active = f64::from(host.active.get()) + 1.0;
            weight /= if bias == 1.0 { active } else { active.powf(bias) };
        }
        match self.settings.slow_start {
            Some(slow) => weight * slow_start_factor(slow, &host.endpoint),
            None => weight,
        }
    }
}

/// The share of its weight that an endpoint has while it warms up.
fn slow_start_factor(slow: SlowStart, endpoint: &Endpoint) -> f64 {
    if endpoint.health() != Health::Healthy {
        return 1.0;
    }
    warmth(slow, now_ms().saturating_sub(endpoint.state.healthy_since_ms()))
}

/// The share after `age` milliseconds.
fn warmth(slow: SlowStart, age: u64) -> f64 {
    let window = u64::try_from(slow.window.as_millis()).unwrap_or(u64::MAX);
    if age >= window {
        return 1.0;
    }
    let time = age.max(1) as f64 / window as f64;
    time.powf(1.0 / slow.aggression).max(slow.min_weight)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_endpoint_warms_up_over_its_window() {
        let slow =
            |aggression| SlowStart { window: Duration::from_secs(60), aggression, min_weight: 0.1 };
        let shares = |aggression| {
            [0, 15_000, 30_000, 60_000].map(|age| (warmth(slow(aggression), age) * 100.0).round())
        };
        assert_eq!(shares(1.0), [10.0, 25.0, 50.0, 100.0]);
        assert_eq!(shares(2.0), [10.0, 50.0, 71.0, 100.0]);
        assert_eq!(shares(0.5), [10.0, 10.0, 25.0, 100.0]);
    }
}
