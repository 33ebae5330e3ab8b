//! A token bucket that all workers share.
//!
//! It fills evenly, as Envoy's does: the state is one moment, the time at
//! which the bucket would have been empty, so that taking tokens is one
//! exchange of an atomic.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-v3/type/v3/token_bucket.proto>

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::r#type::v3::TokenBucket as PbTokenBucket;

use super::faults::Faults;
use super::values::{self, u32_or};

/// Tokens that come back with time.
#[derive(Debug)]
pub struct TokenBucket {
    max: u32,
    /// Tokens a second.
    rate: f64,
    /// When it would have been empty, in seconds since the process's epoch;
    /// the bits of an `f64`.
    empty_at: AtomicU64,
}

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The time that buckets go by, in seconds.
pub fn now() -> f64 {
    EPOCH.elapsed().as_secs_f64()
}

impl TokenBucket {
    pub fn compile(value: &PbTokenBucket, faults: &mut Faults) -> Option<Self> {
        let interval = value.fill_interval.as_ref().map_or(Duration::ZERO, values::duration);
        if value.max_tokens == 0 {
            faults.reject("max_tokens", "must be more than 0");
            return None;
        }
        if interval < Duration::from_millis(50) {
            faults.reject("fill_interval", "must be at least 50ms");
            return None;
        }
        let fill = u32_or(value.tokens_per_fill.as_ref(), 1);
        if fill == 0 {
            faults.reject("tokens_per_fill", "must be more than 0");
            return None;
        }
        Some(Self::new(value.max_tokens, f64::from(fill) / interval.as_secs_f64()))
    }

    /// A full bucket.
    fn new(max: u32, rate: f64) -> Self {
        // Empty an eternity ago: full whenever the first token is taken.
        Self { max, rate, empty_at: AtomicU64::new(f64::NEG_INFINITY.to_bits()) }
    }

    /// A bucket of `max` tokens, of which it has `now_in`, that fills in a second.
    pub(crate) fn of_a_second(max: u32, now_in: f64) -> Self {
        let rate = f64::from(max);
        let empty_at = now() - now_in.min(rate) / rate;
        Self { max, rate, empty_at: AtomicU64::new(empty_at.to_bits()) }
    }

    /// Takes up to `count` tokens; how many there were.
    pub fn take_some(&self, count: u32, now: f64) -> u32 {
        loop {
            let some = self.remaining(now).min(count);
            if some == 0 || self.take(some, now) {
                return some;
            }
        }
    }

    /// A full bucket with the settings of this one.
    pub fn fresh(&self) -> Self {
        Self::new(self.max, self.rate)
    }

    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Takes `count` tokens if there are as many at the time `now`.
    pub fn take(&self, count: u32, now: f64) -> bool {
        let count = f64::from(count);
        let mut before = self.empty_at.load(Ordering::Relaxed);
        loop {
            let have = self.level(before, now);
            if have < count {
                return false;
            }
            let after = (now - (have - count) / self.rate).to_bits();
            let swapped = self.empty_at.compare_exchange_weak(
                before,
                after,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match swapped {
                Ok(_) => return true,
                Err(changed) => before = changed,
            }
        }
    }

    fn level(&self, empty_at: u64, now: f64) -> f64 {
        // A little more, so that what is due is not lost to rounding.
        ((now - f64::from_bits(empty_at)) * self.rate + 1e-9).clamp(0.0, f64::from(self.max))
    }

    pub fn max(&self) -> u32 {
        self.max
    }

    /// Whole tokens in it.
    pub fn remaining(&self, now: f64) -> u32 {
        // In range: the level is at most `max`.
        self.level(self.empty_at.load(Ordering::Relaxed), now) as u32
    }

    /// Seconds until a token can be taken, rounded up.
    pub fn reset_seconds(&self, now: f64) -> u64 {
        let missing = 1.0 - self.level(self.empty_at.load(Ordering::Relaxed), now);
        if missing <= 0.0 { 0 } else { (missing / self.rate).ceil() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_can_be_taken() {
        let bucket = TokenBucket::of_a_second(100, 5.0);
        let start = now();
        assert!((5..8).contains(&bucket.take_some(50, start)));
        assert_eq!(bucket.take_some(1, start), 0);
        assert_eq!(bucket.take_some(20, start + 10.0), 20);
        assert_eq!(bucket.take_some(1000, start + 10.0), 80);
    }

    #[test]
    fn tokens_come_back_evenly_up_to_the_maximum() {
        let bucket = TokenBucket::new(2, 4.0);
        let start = now();
        assert!(bucket.take(1, start) && bucket.take(1, start) && !bucket.take(1, start));
        assert_eq!((bucket.remaining(start), bucket.reset_seconds(start)), (0, 1));
        assert!(!bucket.take(1, start + 0.2));
        assert!(bucket.take(1, start + 0.25));
        assert_eq!(bucket.remaining(start + 100.0), 2);
        assert_eq!(bucket.reset_seconds(start + 100.0), 0);
        assert!(!bucket.take(3, start + 100.0));
    }
}
