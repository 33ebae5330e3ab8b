//! Route configurations received.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amime_config::names::RouteConfigId;
use amime_config::route::RouteTable;

/// How long a table outlives its listener: connections that the listener
/// accepted may still send requests.
const LINGER: Duration = Duration::from_secs(600);

struct Entry {
    id: RouteConfigId,
    table: Arc<RouteTable>,
    unused_since: Option<Instant>,
}

/// Route tables by name.
#[derive(Default)]
pub(crate) struct Routes(HashMap<String, Entry>);

impl Routes {
    pub(crate) fn set(&mut self, name: &str, id: RouteConfigId, table: Arc<RouteTable>) {
        self.0.insert(name.to_owned(), Entry { id, table, unused_since: None });
    }

    /// True if there is such a table and it is kept up to date.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|entry| entry.unused_since.is_none())
    }

    /// Finds tables that no listener names any more, which the control plane
    /// is no longer asked for: calls `left` for each and drops those that
    /// have been so for long. One that is named again counts only once it has
    /// come anew. True if one went.
    pub(crate) fn sweep(
        &mut self,
        now: Instant,
        used: impl Fn(&str) -> bool,
        mut left: impl FnMut(&str),
    ) -> bool {
        let before = self.0.len();
        self.0.retain(|name, entry| {
            if used(name) {
                return true;
            }
            let since = *entry.unused_since.get_or_insert_with(|| {
                left(name);
                now
            });
            now < since + LINGER
        });
        self.0.len() != before
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (RouteConfigId, &Arc<RouteTable>)> {
        self.0.values().map(|entry| (entry.id, &entry.table))
    }
}
