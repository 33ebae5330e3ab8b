//! A limit of connections open at once through one filter chain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::network::connection_limit::v3 as pb;

use super::faults::Faults;
use super::values;

/// A compiled `ConnectionLimit`, with the connections of all workers.
#[derive(Debug)]
pub struct ConnectionCap {
    max: u64,
    /// How long one too many is kept open before it is closed, so that its
    /// client does not come back at once.
    pub delay: Option<Duration>,
    open: AtomicU64,
}

/// A connection that counts until dropped.
#[derive(Debug)]
pub struct CountedIn(Arc<ConnectionCap>);

impl ConnectionCap {
    pub fn compile(value: &pb::ConnectionLimit, faults: &mut Faults) -> Option<Arc<Self>> {
        let on = value.runtime_enabled.as_ref().and_then(|flag| flag.default_value.as_ref());
        if on.is_some_and(|on| !on.value) {
            return None;
        }
        let Some(max) = value.max_connections.as_ref().filter(|max| max.value > 0) else {
            faults.reject("max_connections", "must be at least 1");
            return None;
        };
        let delay = values::timeout(value.delay.as_ref(), None);
        Some(Arc::new(Self { max: max.value, delay, open: AtomicU64::new(0) }))
    }

    /// Counts one more in, unless it is one too many.
    pub fn enter(self: &Arc<Self>) -> Option<CountedIn> {
        let one_more = |open| (open < self.max).then_some(open + 1);
        let entered = self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        entered.is_ok().then(|| CountedIn(self.clone()))
    }
}

impl Drop for CountedIn {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
