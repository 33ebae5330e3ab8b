//! Counters that many workers add to, and levels that one sets: those of
//! filters and of overload, which are named by configuration.
//!
//! Owns their names. What is counted for every request has a block of its own
//! per worker instead: an addition here takes the bus.
//!
//! Invariant: a counter is shown as long as something can add to it, and once
//! more.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use super::prometheus::push_label;
use super::worker::lock;

/// A count that only grows. Many writers.
#[derive(Clone, Debug, Default)]
pub struct SharedCounter(Arc<AtomicU64>);

impl SharedCounter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A level that rises and falls. Many writers, of which the last counts.
#[derive(Clone, Debug, Default)]
pub struct SharedGauge(Arc<AtomicI64>);

impl SharedGauge {
    /// Replaces the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// Both names of a counter or gauge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SharedName {
    /// Envoy's dotted name.
    pub(crate) dotted: String,
    /// Prometheus metric name.
    pub(crate) metric: String,
    pub(crate) labels: String,
}

impl SharedName {
    /// `tags` are label and value; the value, a part of `dotted`, is no part
    /// of the metric's name.
    fn new(dotted: &str, tags: &[(&str, &str)]) -> Self {
        let mut stem = format!(".{dotted}.");
        let mut labels = String::new();
        for (label, value) in tags {
            stem = stem.replacen(&format!(".{value}."), ".", 1);
            push_label(&mut labels, label, value);
        }
        let plain = |char: char| if char.is_ascii_alphanumeric() { char } else { '_' };
        let stem: String = stem.trim_matches('.').chars().map(plain).collect();
        Self { dotted: dotted.to_owned(), metric: format!("envoy_{stem}"), labels }
    }
}

/// A handle to a number, which is shown while somebody else has one too.
pub(crate) trait Shared: Clone + Default {
    /// True if this is not the last handle.
    fn in_use(&self) -> bool;
}

impl Shared for SharedCounter {
    fn in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl Shared for SharedGauge {
    fn in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// All shared numbers of one kind of the process, by name.
#[derive(Debug, Default)]
pub(crate) struct SharedNumbers<T>(Mutex<BTreeMap<SharedName, T>>);

impl<T: Shared> SharedNumbers<T> {
    /// The number of this name, made at first sight.
    pub(crate) fn entry(&self, dotted: &str, tags: &[(&str, &str)]) -> T {
        lock(&self.0).entry(SharedName::new(dotted, tags)).or_default().clone()
    }

    /// Calls `visit` for each that is still in use, forgetting others.
    pub(crate) fn each(&self, mut visit: impl FnMut(&SharedName, &T)) {
        lock(&self.0).retain(|name, number| {
            visit(name, number);
            number.in_use()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tags_value_is_no_part_of_the_metric() {
        let tags = [("envoy_local_http_ratelimit_prefix", "two.x")];
        let name = SharedName::new("two.x.http_local_rate_limit.ok", &tags);
        assert_eq!(name.metric, "envoy_http_local_rate_limit_ok");
        assert_eq!(name.labels, r#"envoy_local_http_ratelimit_prefix="two.x""#);
    }

    #[test]
    fn a_counter_is_shown_once_more_after_its_last_user_has_gone() {
        let counters = SharedNumbers::<SharedCounter>::default();
        let counter = counters.entry("a.b", &[]);
        counters.entry("a.b", &[]).add(2);
        counter.inc();
        drop(counter);
        let seen = || {
            let mut seen = vec![];
            counters.each(|name, counter| seen.push((name.dotted.clone(), counter.value())));
            seen
        };
        assert_eq!(seen(), [("a.b".to_owned(), 3)]);
        assert_eq!(seen(), []);
    }
}
