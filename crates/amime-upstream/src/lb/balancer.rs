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

/// Decides which priorities panic, and what each takes.
fn loads(settings: &LbSettings, sets: &mut [HostSet]) -> Loads {
    let availability: Vec<Availability> = sets.iter().map(|set| set.availability).collect();
    let total = total(&availability);
    let threshold = settings.panic_percent;
    if threshold == 0 && total == 0 {
        // Nothing is usable and nothing else may be used.
        return Loads::first(sets.len());
    }
    for set in sets.iter_mut() {
        set.panic = total < 100 && set.usable_percent < f64::from(threshold);
    }
    if sets.iter().all(|set| set.panic) {
        let sizes: Vec<usize> = sets.iter().map(|set| set.all.hosts.len()).collect();
        return Loads::by_size(&sizes);
    }
    Loads::by_availability(&availability).unwrap_or_else(|| Loads::first(sets.len()))
}
