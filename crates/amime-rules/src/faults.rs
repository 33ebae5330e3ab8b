//! What was wrong with a configuration resource, field by field.
//!
//! Compilers enter and leave fields as they descend, so that every fault
//! names its full path; all faults of a resource are collected, not just the
//! first. A rejecting fault refuses the whole resource, an ignored field only
//! appears in the report.

use std::fmt;

/// One field of a resource that could not be honoured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Dotted path from the resource's root, e.g. `filter_chains[0].filters[1]`.
    pub path: String,
    /// What is wrong with the field.
    pub reason: String,
    /// True if the resource cannot be used because of it.
    pub fatal: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

/// Collects faults while a resource is compiled.
#[derive(Default)]
pub struct Faults {
    path: Vec<String>,
    list: Vec<Fault>,
}

impl Faults {
    /// Runs `inside` with `field` appended to the current path.
    pub fn within<T>(
        &mut self,
        field: impl Into<String>,
        inside: impl FnOnce(&mut Self) -> T,
    ) -> T {
        self.path.push(field.into());
        let value = inside(self);
        self.path.pop();
        value
    }

    /// Enters a field; pair with [`Faults::leave`].
    pub fn enter(&mut self, field: impl Into<String>) {
        self.path.push(field.into());
    }

    /// Leaves the innermost field.
    pub fn leave(&mut self) {
        self.path.pop();
    }

    /// Refuses the resource because of `field`.
    pub fn reject(&mut self, field: &str, reason: impl Into<String>) {
        self.push(field, reason.into(), true);
    }

    /// Records that `field` has no effect here.
    pub fn ignore(&mut self, field: &str, reason: impl Into<String>) {
        self.push(field, reason.into(), false);
    }

    /// Records `field` as ignored when it is set.
    pub fn ignore_if(&mut self, set: bool, field: &str) {
        if set {
            self.push(field, "not supported".to_owned(), false);
        }
    }

    /// Refuses the resource when `field` is set, for fields that change what
    /// a request may do or where it goes.
    pub fn reject_if(&mut self, set: bool, field: &str) {
        if set {
            self.push(field, "not supported".to_owned(), true);
        }
    }

    /// True once something was rejected.
    pub fn fatal(&self) -> bool {
        self.list.iter().any(|fault| fault.fatal)
    }

    /// All faults so far, in the order found.
    pub fn into_list(self) -> Vec<Fault> {
        self.list
    }

    fn push(&mut self, field: &str, reason: String, fatal: bool) {
        let mut path = self.path.join(".");
        if !field.is_empty() {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(field);
        }
        self.list.push(Fault { path, reason, fatal });
    }
}
