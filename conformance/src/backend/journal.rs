//! What backends saw, by the case that sent it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Marks the id of a request, wherever in its head it stands.
const MARK: &str = "case-";
/// Hexadecimal digits after the mark.
const DIGITS: usize = 8;

/// A new id; equally long for all, so that lengths can be compared.
pub(crate) fn id(number: u32) -> String {
    format!("{MARK}{number:08x}")
}

/// The id within a text.
pub(crate) fn find_id(text: &str) -> Option<&str> {
    let start = text.find(MARK)?;
    text.get(start..start + MARK.len() + DIGITS)
}

/// Requests that reached any backend.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    seen: Mutex<HashMap<String, Vec<Vec<String>>>>,
    changed: Notify,
}

impl Journal {
    /// Keeps a request; returns how many of this id came before it.
    pub(crate) fn add(&self, id: &str, lines: Vec<String>) -> usize {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let requests = seen.entry(id.to_owned()).or_default();
        requests.push(lines);
        let before = requests.len() - 1;
        drop(seen);
        self.changed.notify_waiters();
        before
    }

    /// Requests of an id, once there are `count` of them or `patience` is over.
    pub(crate) async fn take(
        &self,
        id: &str,
        count: usize,
        patience: Duration,
    ) -> Vec<Vec<String>> {
        let enough = async {
            loop {
                let changed = self.changed.notified();
                if self.count(id) >= count {
                    return;
                }
                changed.await;
            }
        };
        // Fewer than expected is a result like any other.
        let _ = tokio::time::timeout(patience, enough).await;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.remove(id).unwrap_or_default()
    }

    fn count(&self, id: &str) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(id).map_or(0, Vec::len)
    }
}
