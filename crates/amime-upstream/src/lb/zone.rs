//! Zone-aware routing: requests stay in the proxy's own zone as far as its
//! endpoints have room for them, so that all zones end up equally loaded.
//!
//! Owns the comparison of a cluster's localities with those of the cluster
//! that the proxy itself is part of; which localities there are is what
//! `Members` found.
//!
//! Invariant: shares are worked out when tables are built; a pick draws one or
//! two random numbers.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/zone_aware>

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use amime_config::endpoint::{EndpointSet, Health};
use amime_config::endpoint_state::ClusterState;
use amime_config::lb_policy::{LbSettings, ZoneAware};
use amime_telemetry::ClusterStats;

use super::host_set::{List, Members};
use super::load::Kind;
use crate::cluster::ClusterSpec;

/// Region, zone and subzone.
pub type Place = [Arc<str>; 3];

/// The cluster that the proxy is part of, as load balancers of others see it.
#[derive(Debug)]
pub struct LocalCluster {
    name: Arc<str>,
    /// Where the proxy runs.
    place: Option<Place>,
    endpoints: Mutex<Option<Arc<EndpointSet>>>,
    /// Its version of health moves also when its members change.
    state: Arc<ClusterState>,
}

impl LocalCluster {
    /// The cluster `name`, of a proxy that runs in `place`.
    pub fn new(name: &str, place: Option<Place>) -> Arc<Self> {
        let (endpoints, state) = (Mutex::default(), Arc::default());
        Arc::new(Self { name: name.into(), place, endpoints, state })
    }

    /// The state of the cluster of this name.
    pub fn state_for(&self, name: &str) -> Option<&Arc<ClusterState>> {
        (*self.name == *name).then_some(&self.state)
    }

    /// Takes over the members of the cluster, if it is this one.
    pub fn follow(&self, cluster: &ClusterSpec) {
        if self.state_for(&cluster.config.name).is_some() {
            *self.held() = Some(cluster.endpoints.clone());
            self.state.health_changed();
        }
    }

    /// Moves whenever its members or their health change.
    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.state.health_version()
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Option<Arc<EndpointSet>>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is of it in each place.
    pub(super) fn seen(&self, settings: &LbSettings) -> Seen {
        let mut seen = Seen { own: self.place.clone(), places: BTreeMap::new(), panics: false };
        let held = self.held().clone();
        let groups = held.iter().filter_map(|set| set.priorities.first()).flatten();
        let (mut counted, mut usable) = (0, 0);
        for group in groups {
            for endpoint in &group.endpoints {
                let place = seen.places.entry(group.locality.clone()).or_default();
                let health = endpoint.health();
                counted += u32::from(health != Health::Excluded);
                usable += u32::from(matches!(health, Health::Healthy | Health::Degraded));
                if health == Health::Healthy {
                    *place += settings.zone.weight(endpoint);
                }
            }
        }
        let share = if counted == 0 { 0.0 } else { 100.0 * f64::from(usable) / f64::from(counted) };
        seen.panics = share < f64::from(settings.panic_percent);
        seen
    }
}

/// The proxy's own cluster at one moment.
#[derive(Debug)]
pub(super) struct Seen {
    own: Option<Place>,
    /// Healthy endpoints, or their weights, by place.
    places: BTreeMap<Place, u64>,
    /// Too few of them are usable for their number to mean anything.
    panics: bool,
}

/// How requests for healthy endpoints of the first priority spread over
/// localities.
#[derive(Debug)]
pub(super) struct Zones {
    route: Route,
    /// By locality, the own one first if it is there.
    healthy: Vec<List>,
    degraded: Vec<List>,
    local_panics: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Route {
    /// All that comes stays in the own locality.
    Direct,
    /// Of 10,000 requests, how many stay; sums of what localities have left
    /// for the others.
    Residual { stay: u64, room: Vec<u64> },
}

/// A share of 10,000.
const WHOLE: u64 = 10_000;

/// Where a request goes.
pub(super) enum Zone<'a> {
    /// To one locality.
    Only(&'a List),
    /// To any.
    Any,
    /// Nowhere.
    None,
}

impl Zones {
    /// `None` if zones play no part; counts why.
    pub(super) fn new(members: &Members<'_>, hosts: &[u32], stats: &ClusterStats) -> Option<Self> {
        let seen = members.local.as_ref()?;
        if members.settings.policy.hashes() {
            return None;
        }
        stats.lb_recalculate_zone_structures.inc();
        let settings = &members.settings.zone;
        // Localities count as long as they have any endpoint at all.
        let mut places: Vec<(&Place, Vec<u32>)> = members.places(hosts).into_iter().collect();
        let own = seen.own.as_ref();
        let has_own = places.iter().position(|(place, _)| own == Some(*place));
        if let Some(at) = has_own {
            places[..=at].rotate_right(1);
        }
        if places.len() < 2 || settings.force_min.is_none() && seen.places.len() < 2 {
            return None;
        }
        if own.is_none_or(|own| !seen.places.contains_key(own)) {
            stats.lb_local_cluster_not_ok.inc();
            return None;
        }
        let only = |health| -> Vec<List> {
            places.iter().map(|(_, hosts)| members.only(&hosts.as_slice().into(), health)).collect()
        };
        let healthy = only(Health::Healthy);
        let count: usize = healthy.iter().map(|list| list.hosts.len()).sum();
        if (count as u64) < settings.min_cluster_size {
            stats.lb_zone_cluster_too_small.inc();
            return None;
        }
        let shares = shares(members, seen, &places, &healthy);
        let near = has_own.map(|_| healthy[0].hosts.len());
        Some(Self {
            route: Route::new(settings, near, &shares),
            degraded: only(Health::Degraded),
            healthy,
            local_panics: seen.panics,
        })
    }

    /// Where the next request goes.
    pub(super) fn pick(&self, settings: &LbSettings, kind: Kind, stats: &ClusterStats) -> Zone<'_> {
        if !settings.zone.applies() {
            return Zone::Any;
        }
        if self.local_panics {
            stats.lb_local_cluster_not_ok.inc();
            return if settings.fail_on_panic { Zone::None } else { Zone::Any };
        }
        let lists = match kind {
            Kind::Healthy => &self.healthy,
            Kind::Degraded => &self.degraded,
        };
        Zone::Only(&lists[self.route.locality(lists.len(), stats)])
    }
}

/// Shares of our own cluster and of this one in each locality.
fn shares(
    members: &Members<'_>,
    seen: &Seen,
    places: &[(&Place, Vec<u32>)],
    healthy: &[List],
) -> Vec<(u64, u64)> {
    let settings = &members.settings.zone;
    let weight = |list: &List| -> u64 {
        list.hosts.iter().map(|host| settings.weight(members.endpoints[*host as usize])).sum()
    };
    let local_total: u64 = seen.places.values().sum();
    let total: u64 = healthy.iter().map(weight).sum();
    let share = |part: u64, total: u64| (WHOLE * part).checked_div(total).unwrap_or(0);
    let of = |((place, _), list): (&(&Place, Vec<u32>), &List)| match list.hosts.is_empty() {
        // Nothing goes there, whoever is there to send it.
        true => (0, 0),
        false => {
            let local = seen.places.get(*place).copied().unwrap_or(0);
            (share(local, local_total), share(weight(list), total))
        }
    };
    places.iter().zip(healthy).map(of).collect()
}

impl Route {
    /// `near` is how many healthy endpoints the own locality has, if this
    /// cluster is there at all; it is the first of `shares` then.
    fn new(settings: &ZoneAware, near: Option<usize>, shares: &[(u64, u64)]) -> Self {
        let mut stay = 0;
        if let Some(near) = near {
            let (local, upstream) = shares[0];
            let forced = settings.force_min.is_some_and(|min| near >= min as usize);
            if upstream > 0 && upstream >= local || forced {
                return Self::Direct;
            }
            stay = (upstream * WHOLE).checked_div(local).unwrap_or(0);
        }
        let mut sum = 0;
        let room = shares.iter().enumerate().map(|(at, (local, upstream))| {
            // The own locality takes what stays, and no more.
            if at > 0 || near.is_none() {
                sum += upstream.saturating_sub(*local);
            }
            sum
        });
        Self::Residual { stay, room: room.collect() }
    }

    fn locality(&self, count: usize, stats: &ClusterStats) -> usize {
        let Self::Residual { stay, room } = self else {
            stats.lb_zone_routing_all_directly.inc();
            return 0;
        };
        if fastrand::u64(..WHOLE) < *stay {
            stats.lb_zone_routing_sampled.inc();
            return 0;
        }
        stats.lb_zone_routing_cross_zone.inc();
        let all = room.last().copied().unwrap_or(0);
        if all == 0 {
            // Only rounding leads here.
            stats.lb_zone_no_capacity_left.inc();
            return fastrand::usize(..count);
        }
        let point = fastrand::u64(..all);
        room.iter().position(|sum| point < *sum).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(force_min: Option<u32>) -> ZoneAware {
        ZoneAware { force_min, ..ZoneAware::default() }
    }

    #[test]
    fn requests_stay_where_endpoints_have_room_for_them() {
        let all_even = [(5000, 5000), (5000, 5000)];
        assert_eq!(Route::new(&settings(None), Some(3), &all_even), Route::Direct);
        let few_here = [(6000, 2000), (2000, 4000), (2000, 4000)];
        let want = Route::Residual { stay: 3333, room: vec![0, 2000, 4000] };
        assert_eq!(Route::new(&settings(None), Some(1), &few_here), want);
        assert_eq!(Route::new(&settings(Some(1)), Some(1), &few_here), Route::Direct);
        assert_eq!(Route::new(&settings(Some(2)), Some(1), &few_here), want);
    }

    #[test]
    fn a_cluster_that_is_elsewhere_only_takes_what_its_localities_have_left() {
        let elsewhere = [(3000, 4000), (0, 6000)];
        let want = Route::Residual { stay: 0, room: vec![1000, 7000] };
        assert_eq!(Route::new(&settings(None), None, &elsewhere), want);
    }
}
