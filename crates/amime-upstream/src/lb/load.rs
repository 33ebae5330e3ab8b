//! How much each priority takes, by the health of its endpoints.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority>

/// Usable endpoints of one priority in percent, overprovisioning included,
/// 100 at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Availability {
    pub(super) healthy: u32,
    pub(super) degraded: u32,
}

/// Which of a priority's endpoints take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Healthy,
    Degraded,
}

/// Percentages by priority; 100 in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Loads {
    healthy: Vec<u32>,
    degraded: Vec<u32>,
}

/// Availability of all priorities, 100 at most.
pub(super) fn total(list: &[Availability]) -> u32 {
    list.iter().map(|one| one.healthy + one.degraded).sum::<u32>().min(100)
}

impl Loads {
    /// Loads by availability; `None` if nothing is available.
    pub(super) fn by_availability(list: &[Availability]) -> Option<Self> {
        let total = total(list);
        if total == 0 {
            return None;
        }
        let mut left = 100;
        let mut share = |available: u32| {
            let load = (available * 100 / total).min(left);
            left -= load;
            load
        };
        let healthy = list.iter().map(|one| share(one.healthy)).collect();
        let degraded = list.iter().map(|one| share(one.degraded)).collect();
        let mut loads = Self { healthy, degraded };
        // What rounding left over goes to the first that is available.
        if let Some(first) = list.iter().position(|one| one.healthy > 0) {
            loads.healthy[first] += left;
        } else if let Some(first) = list.iter().position(|one| one.degraded > 0) {
            loads.degraded[first] += left;
        }
        Some(loads)
    }

    /// Loads by number of endpoints, for when health is not heeded anywhere.
    pub(super) fn by_size(sizes: &[usize]) -> Self {
        let total: usize = sizes.iter().sum();
        let Some(first) = sizes.iter().position(|size| *size > 0) else {
            return Self::first(sizes.len());
        };
        let mut healthy: Vec<u32> =
            sizes.iter().map(|size| u32::try_from(100 * size / total).unwrap_or(100)).collect();
        healthy[first] += 100 - healthy.iter().sum::<u32>();
        Self { healthy, degraded: vec![0; sizes.len()] }
    }

    /// Everything to the first of `count` priorities.
    pub(super) fn first(count: usize) -> Self {
        let mut healthy = vec![0; count];
        if let Some(first) = healthy.first_mut() {
            *first = 100;
        }
        Self { healthy, degraded: vec![0; count] }
    }

    /// The priority that a random number or hash falls on.
    pub(super) fn choose(&self, hash: u64) -> (usize, Kind) {
        // Nearly all clusters have one priority that takes everything.
        if self.healthy.first() == Some(&100) {
            return (0, Kind::Healthy);
        }
        let point = u32::try_from(hash % 100).unwrap_or(0) + 1;
        let mut sum = 0;
        for (kind, loads) in [(Kind::Healthy, &self.healthy), (Kind::Degraded, &self.degraded)] {
            for (priority, load) in loads.iter().enumerate() {
                sum += load;
                if point <= sum {
                    return (priority, kind);
                }
            }
        }
        (0, Kind::Healthy)
    }

    /// Loads without the priorities that earlier attempts went to, given in
    /// order; `None`: as for a first attempt. Priorities count as tried after
    /// every `frequency` attempts, and all are taken up again once none is
    /// left.
    pub(super) fn after(list: &[Availability], tried: &[u32], frequency: u32) -> Option<Self> {
        let mut loads = None;
        let mut excluded = vec![false; list.len()];
        let (mut seen, mut from) = (0, 0);
        for end in 1..=tried.len() {
            seen += 1;
            if seen % frequency.max(1) != 0 {
                continue;
            }
            for priority in &tried[from..end] {
                if let Some(slot) = excluded.get_mut(*priority as usize) {
                    *slot = true;
                }
            }
            let left = |(one, out): (&Availability, &bool)| {
                if *out { Availability::default() } else { *one }
            };
            let left: Vec<Availability> = list.iter().zip(&excluded).map(left).collect();
            loads = Self::by_availability(&left);
            if loads.is_none() {
                excluded.fill(false);
                (seen, from) = (0, end);
                loads = Self::by_availability(list);
            }
        }
        loads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(u32, u32)]) -> Vec<Availability> {
        let one = |(healthy, degraded): &(u32, u32)| Availability {
            healthy: *healthy,
            degraded: *degraded,
        };
        pairs.iter().map(one).collect()
    }

    #[track_caller]
    fn check(availability: &[(u32, u32)], healthy: &[u32], degraded: &[u32]) {
        let loads = Loads::by_availability(&list(availability)).expect("something is available");
        assert_eq!((&*loads.healthy, &*loads.degraded), (healthy, degraded));
    }

    #[test]
    fn load_spills_over_when_a_priority_lacks_endpoints() {
        check(&[(100, 0), (100, 0)], &[100, 0], &[0, 0]);
        check(&[(70, 0), (100, 0)], &[70, 30], &[0, 0]);
        check(&[(35, 0), (0, 0), (50, 0)], &[42, 0, 58], &[0, 0, 0]);
    }

    #[test]
    fn degraded_endpoints_take_what_healthy_ones_cannot() {
        check(&[(10, 20), (20, 10), (10, 0)], &[16, 28, 14], &[28, 14, 0]);
        check(&[(0, 100)], &[0], &[100]);
    }

    #[test]
    fn in_panic_everywhere_sizes_decide() {
        assert_eq!(Loads::by_size(&[0, 1, 2]).healthy, [0, 34, 66]);
        assert_eq!(Loads::by_size(&[0, 0]).healthy, [100, 0]);
    }

    #[test]
    fn a_point_falls_on_one_priority() {
        let loads = Loads::by_availability(&list(&[(70, 0), (20, 50)])).expect("available");
        assert_eq!((loads.healthy.clone(), loads.degraded.clone()), (vec![70, 20], vec![0, 10]));
        assert_eq!(loads.choose(69), (0, Kind::Healthy));
        assert_eq!(loads.choose(70), (1, Kind::Healthy));
        assert_eq!(loads.choose(189), (1, Kind::Healthy));
        assert_eq!(loads.choose(190), (1, Kind::Degraded));
    }

    #[test]
    fn retries_leave_priorities_that_were_tried() {
        let both = list(&[(100, 0), (100, 0)]);
        let healthy = |tried: &[u32], frequency| {
            Loads::after(&both, tried, frequency).map(|loads| loads.healthy)
        };
        assert_eq!(healthy(&[], 1), None);
        assert_eq!(healthy(&[0], 1), Some(vec![0, 100]));
        assert_eq!(healthy(&[0], 2), None);
        assert_eq!(healthy(&[0, 0], 2), Some(vec![0, 100]));
        assert_eq!(healthy(&[0, 0, 1], 2), Some(vec![0, 100]));
        assert_eq!(healthy(&[0, 1], 1), Some(vec![100, 0]), "all were tried: from the start");
    }
}
