//! Earliest deadline first: weighted turns, spread evenly, in O(log n).
//!
//! An entry's deadline lies 1/weight after the moment it was last picked, and
//! the nearest deadline is picked; of equal ones, the one that waited longest.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Entries `0..n` in turns by weight.
pub(super) struct Edf {
    now: f64,
    order: u64,
    queue: BinaryHeap<Entry>,
}

struct Entry {
    deadline: f64,
    order: u64,
    index: u32,
}

impl Edf {
    /// A schedule of the entries with weights above zero, as it is after
    /// `picks` picks: workers that start at once must not pick alike.
    pub(super) fn new(weights: &[f64], picks: u32) -> Self {
        let sum: f64 = weights.iter().filter(|weight| **weight > 0.0).sum();
        let mut edf = Self { now: 0.0, order: 0, queue: BinaryHeap::with_capacity(weights.len()) };
        let mut made = 0_u64;
        for (index, weight) in (0_u32..).zip(weights).filter(|(_, weight)| **weight > 0.0) {
            // Whole turns need not be played out.
            let turns = (f64::from(picks) * weight / sum).floor();
            made += turns as u64;
            edf.now = edf.now.max(turns / weight);
            edf.push((turns + 1.0) / weight, index);
        }
        for _ in made..u64::from(picks) {
            edf.pick(|index| weights[index as usize]);
        }
        edf
    }

    fn push(&mut self, deadline: f64, index: u32) {
        self.queue.push(Entry { deadline, order: self.order, index });
        self.order += 1;
    }

    /// The next entry, put back by the weight that it has now.
    pub(super) fn pick(&mut self, weight: impl FnOnce(u32) -> f64) -> Option<u32> {
        // Dropping the changed top sifts it down in place.
        let mut top = self.queue.peek_mut()?;
        let index = top.index;
        self.now = self.now.max(top.deadline);
        top.deadline = self.now + 1.0 / weight(index).max(f64::MIN_POSITIVE);
        top.order = self.order;
        self.order += 1;
        Some(index)
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives its greatest entry, which must be the nearest.
        other.deadline.total_cmp(&self.deadline).then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(weights: &[f64], picks: u32, want: &[u32]) {
        let mut edf = Edf::new(weights, picks);
        let got: Vec<u32> =
            want.iter().filter_map(|_| edf.pick(|index| weights[index as usize])).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn heavy_entries_take_their_turns_in_between() {
        check(&[1.0, 2.0, 4.0], 0, &[2, 1, 2, 2, 0, 1, 2, 2, 1, 2, 2, 0, 1, 2]);
    }

    #[test]
    fn entries_without_weight_are_never_picked() {
        check(&[0.0, 1.0], 0, &[1, 1, 1]);
        assert!(Edf::new(&[0.0], 5).pick(|_| 1.0).is_none());
    }

    #[test]
    fn a_later_start_goes_on_in_the_same_turns() {
        check(&[1.0, 2.0, 4.0], 7, &[2, 1, 2, 2, 0, 1, 2]);
        check(&[1.0, 2.0, 4.0], 8, &[1, 2, 2, 0, 1, 2, 2]);
    }

    #[test]
    fn equal_entries_go_in_order() {
        check(&[5.0, 5.0, 5.0], 0, &[0, 1, 2, 0, 1, 2]);
    }
}
