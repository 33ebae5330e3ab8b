//! A balancer over the priorities of a cluster or of one of its subsets: what
//! all workers share of it.

use std::sync::Arc;

use amime_config::lb_policy::LbSettings;
use amime_config::lb_subset::SubsetSettings;

use super::host_set::{HostSet, Members};
use super::load::{Availability, Loads, total};

/// Endpoints by priority, and how much each priority takes.
#[derive(Debug)]
pub(super) struct Balancer {
    pub(super) sets: Vec<HostSet>,
    pub(super) loads: Loads,
}

impl Balancer {
    /// Over all endpoints.
    pub(super) fn whole(members: &Members<'_>) -> Self {
        let set = |priority: usize| {
            HostSet::new(members, priority, members.priorities[priority].hosts.clone(), None)
        };
        Self::new(members, (0..members.priorities.len()).map(set).collect())
    }

    /// Over `hosts`.
    pub(super) fn subset(members: &Members<'_>, settings: &SubsetSettings, hosts: &[u32]) -> Self {
        let set = |priority: usize| {
            let within =
                |host: &&u32| members.endpoints[**host as usize].priority as usize == priority;
            let hosts: Arc<[u32]> = hosts.iter().filter(within).copied().collect();
            HostSet::new(members, priority, hosts, Some(settings))
        };
        Self::new(members, (0..members.priorities.len()).map(set).collect())
    }

    fn new(members: &Members<'_>, mut sets: Vec<HostSet>) -> Self {
        let loads = loads(members.settings, &mut sets);
        Self { sets, loads }
    }

    pub(super) fn availability(&self) -> Vec<Availability> {
        self.sets.iter().map(|set| set.availability).collect()
    }
}

/// What a priority's share depends on.
pub(super) struct Part {
    availability: Availability,
    usable_percent: f64,
    size: usize,
}

impl Part {
    pub(super) fn of(set: &HostSet) -> Self {
        let HostSet { availability, usable_percent, .. } = *set;
        Self { availability, usable_percent, size: set.all.hosts.len() }
    }
}

/// Decides which priorities panic, and what each takes.
fn loads(settings: &LbSettings, sets: &mut [HostSet]) -> Loads {
    let parts: Vec<Part> = sets.iter().map(Part::of).collect();
    let (loads, panics) = share(settings.panic_percent, &parts);
    for (set, panic) in sets.iter_mut().zip(panics) {
        set.panic = panic;
    }
    loads
}

/// What each priority takes, and which of them panic below `threshold` percent
/// of usable endpoints.
pub(super) fn share(threshold: u32, parts: &[Part]) -> (Loads, Vec<bool>) {
    let availability: Vec<Availability> = parts.iter().map(|part| part.availability).collect();
    let total = total(&availability);
    if threshold == 0 && total == 0 {
        // Nothing is usable and nothing else may be used.
        return (Loads::first(parts.len()), vec![false; parts.len()]);
    }
    let panics = |part: &Part| total < 100 && part.usable_percent < f64::from(threshold);
    let panics: Vec<bool> = parts.iter().map(panics).collect();
    let loads = if panics.iter().all(|panic| *panic) {
        let sizes: Vec<usize> = parts.iter().map(|part| part.size).collect();
        Loads::by_size(&sizes)
    } else {
        Loads::by_availability(&availability).unwrap_or_else(|| Loads::first(parts.len()))
    };
    (loads, panics)
}
