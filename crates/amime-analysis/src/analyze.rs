//! Rules about objects beside each other.

use std::fmt;

use amime_api::ObjectKey;
use amime_model::Snapshot;

use crate::problem::Problem;

/// A problem with the object it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The object.
    pub object: ObjectKey,
    /// The problem.
    pub problem: Problem,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { severity, code, path, message } = &self.problem;
        write!(f, "{severity} [{code}] ({}) ", self.object)?;
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        f.write_str(message)
    }
}

/// What does not fit together in a snapshot, ordered by object.
pub fn analyze(snapshot: &Snapshot) -> Vec<Message> {
    let _ = snapshot;
    Vec::new()
}
