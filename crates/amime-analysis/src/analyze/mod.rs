//! Rules about objects beside each other.

mod conflicts;
mod references;
mod unreachable;

use std::fmt;
use std::sync::Arc;

use amime_api::networking::VirtualService;
use amime_api::{Object, ObjectKey, Resource};
use amime_model::Snapshot;

use crate::problem::{At, Code, Problem, Severity};

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
    let mut findings = Findings::default();
    references::check(snapshot, &mut findings);
    conflicts::check(snapshot, &mut findings);
    unreachable::check(snapshot, &mut findings);
    // Stable, so that problems of one object stay in the order of its fields.
    findings.messages.sort_by(|a, b| a.object.cmp(&b.object));
    findings.messages
}

/// Messages so far.
#[derive(Debug, Default)]
struct Findings {
    messages: Vec<Message>,
}

impl Findings {
    fn push(&mut self, object: &ObjectKey, finding: (Severity, Code), at: &At, message: String) {
        let (severity, code) = finding;
        let problem = Problem { severity, code, path: at.to_string(), message };
        self.messages.push(Message { object: object.clone(), problem });
    }
}

/// All virtual services, ordered by key.
fn virtual_services(
    snapshot: &Snapshot,
) -> impl Iterator<Item = (&ObjectKey, &Object<VirtualService>)> {
    snapshot.resources().filter_map(|(key, resource)| match Arc::as_ref(resource) {
        Resource::VirtualService(object) => Some((key, object)),
        _ => None,
    })
}
