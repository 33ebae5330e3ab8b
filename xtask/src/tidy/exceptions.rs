//! Places where a size rule is broken on purpose, each with its reason.
//!
//! Invariant: an entry that no longer breaks its rule is itself a problem.

use super::Problem;

/// Rule that an entry lifts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Non-test lines of a file.
    FileLines,
    /// Lines of a function.
    FunctionLines,
}

struct Exception {
    rule: Rule,
    file: &'static str,
    /// Function, or empty for a file.
    name: &'static str,
    /// Why the place is better as it is.
    reason: &'static str,
}

/// The table; keep it short.
const TABLE: &[Exception] = &[];

/// The table with a mark for each entry that was needed.
pub(crate) struct Exceptions {
    used: Vec<bool>,
}

impl Exceptions {
    pub(crate) fn new() -> Self {
        Self { used: vec![false; TABLE.len()] }
    }

    /// Whether the place may break the rule.
    pub(crate) fn lifts(&mut self, rule: Rule, file: &str, name: &str) -> bool {
        let found = TABLE
            .iter()
            .position(|entry| entry.rule == rule && entry.file == file && entry.name == name);
        if let Some(index) = found {
            self.used[index] = true;
        }
        found.is_some()
    }

    /// Entries that nothing needed.
    pub(crate) fn unused(&self) -> Vec<Problem> {
        TABLE
            .iter()
            .zip(&self.used)
            .filter(|(_, used)| !**used)
            .map(|(entry, _)| {
                let Exception { rule, file, name, reason } = entry;
                let message = format!("exception {rule:?} {name} ({reason}) is not needed");
                Problem::new(file, 0, message)
            })
            .collect()
    }
}
