//! Whether one more connection is served.
//!
//! Owns the limits that hold before anything is read of a connection; those of
//! filter chains are [`super::accept`]'s.

use super::accept::LiveListener;
use crate::overload::Counted;
use crate::worker::{ActiveConnection, Worker};

/// Counts a connection until dropped.
pub(super) struct Admitted {
    _active: ActiveConnection,
    _of_listener: Option<Counted>,
}

impl LiveListener {
    /// Counts a connection in, unless there are too many: such a one is closed
    /// without a word.
    pub(super) fn admit(&self, worker: &Worker) -> Option<Admitted> {
        let active = worker.connection_opened();
        if worker.limits().max_connections.is_some_and(|max| worker.connections() > max) {
            self.stats.downstream_global_cx_overflow.inc();
            return None;
        }
        if worker.overload().reject_connections.drawn() {
            self.stats.downstream_cx_overload_reject.inc();
            return None;
        }
        let of_listener = match &self.cap {
            None => None,
            Some(cap) => match cap.enter() {
                Some(counted) => Some(counted),
                None => {
                    self.stats.downstream_cx_overflow.inc();
                    return None;
                }
            },
        };
        Some(Admitted { _active: active, _of_listener: of_listener })
    }
}
