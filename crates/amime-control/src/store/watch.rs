//! Changes in order, for watchers that come, lag and come back.
//!
//! Memory is bounded twice: old changes are forgotten, and a watcher that does
//! not read in time is cut off. Either way it starts over with a full list.

use std::collections::VecDeque;
use std::sync::Arc;

use amime_api::Resource;
use tokio::sync::broadcast;

/// Changes kept for watchers that come back.
const KEPT: usize = 4096;
/// Changes that a watcher may be behind.
const MAX_LAG: usize = 4096;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeType {
    /// It is new, or was there when the watch began.
    Added,
    /// It replaces an older version.
    Modified,
    /// It is gone; this is its last version.
    Deleted,
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Change {
    /// Number of the change; of an initial list, that of the list.
    pub revision: u64,
    /// What happened.
    pub change_type: ChangeType,
    /// The object.
    pub resource: Arc<Resource>,
}

/// Where a watch may go on: a revision of one opened store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumePoint {
    /// Which opened store counted.
    pub instance: String,
    /// Last change seen.
    pub revision: u64,
}

/// The changes after the point asked for are not known (any more): list anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the changes since then are no longer known; watch from the present on")]
pub struct Gone;

/// A watch: first [`Watch::initial`], then [`Watch::next`] for ever.
#[derive(Debug)]
pub struct Watch {
    initial: Vec<Change>,
    point: ResumePoint,
    changes: broadcast::Receiver<Change>,
}

impl Watch {
    /// What there was when the watch began, or what was missed.
    pub fn initial(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.initial)
    }

    /// What [`Watch::initial`] leads up to.
    pub fn point(&self) -> &ResumePoint {
        &self.point
    }

    /// The next change; nothing if the watcher fell too far behind or the
    /// store is gone.
    pub async fn next(&mut self) -> Option<Change> {
        self.changes.recv().await.ok()
    }
}

/// The latest changes.
#[derive(Debug)]
pub(crate) struct ChangeLog {
    kept: VecDeque<Change>,
    /// Every change after this revision is in `kept`.
    complete_after: u64,
    live: broadcast::Sender<Change>,
}

impl Default for ChangeLog {
    fn default() -> Self {
        let live = broadcast::Sender::new(MAX_LAG);
        Self { kept: VecDeque::new(), complete_after: 0, live }
    }
}

impl ChangeLog {
    pub(crate) fn start_at(&mut self, revision: u64) {
        self.complete_after = revision;
    }

    pub(crate) fn push(&mut self, change: Change) {
        if self.kept.len() == KEPT
            && let Some(forgotten) = self.kept.pop_front()
        {
            self.complete_after = forgotten.revision;
        }
        self.kept.push_back(change.clone());
        // No receiver is no fault.
        let _ = self.live.send(change);
    }

    pub(crate) fn watch<I: Iterator<Item = Arc<Resource>>>(
        &self,
        since: Option<u64>,
        now: ResumePoint,
        present: impl FnOnce() -> I,
    ) -> Result<Watch, Gone> {
        let revision = now.revision;
        let initial = match since {
            None => present()
                .map(|resource| Change { revision, change_type: ChangeType::Added, resource })
                .collect(),
            Some(since) if since < self.complete_after || since > revision => {
                return Err(Gone);
            }
            Some(since) => {
                self.kept.iter().filter(|change| change.revision > since).cloned().collect()
            }
        };
        Ok(Watch { initial, point: now, changes: self.live.subscribe() })
    }
}
