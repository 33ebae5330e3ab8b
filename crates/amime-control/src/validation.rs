//! Judging single objects before they are let in, worded for people.

use amime_analysis::{Delegates, Severity, validate_with};
use amime_api::Resource;
use amime_api::honoured::unhonoured_mesh;

use crate::mesh::mesh_of;

/// What speaks against an object, with the place it was read at.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Why it must be refused; empty lets it in.
    pub(crate) errors: Vec<String>,
    /// What its author should know.
    pub(crate) warnings: Vec<String>,
}

impl Verdict {
    /// Judges `resource` beside those that `delegates` was made of.
    pub(crate) fn of(resource: &Resource, delegates: &Delegates) -> Self {
        let mut verdict = Self::default();
        for problem in validate_with(resource, delegates) {
            let list = match problem.severity {
                Severity::Error => &mut verdict.errors,
                _ => &mut verdict.warnings,
            };
            let path = if problem.path.is_empty() { "" } else { ": " };
            let (start, message) = (located(resource), &problem.message);
            list.push(format!("{start}{path}{}: {message} [{}]", problem.path, problem.code));
        }
        verdict.judge_mesh_settings(resource);
        verdict
    }

    /// Mesh settings are text inside a ConfigMap, so no schema has seen them.
    fn judge_mesh_settings(&mut self, resource: &Resource) {
        match mesh_of(resource) {
            None => {}
            Some(Err(errors)) => {
                self.errors.extend(errors.iter().map(|e| format!("{}: {e}", located(resource))));
            }
            Some(Ok(mesh)) => {
                let warnings = unhonoured_mesh(&mesh).into_iter();
                self.warnings.extend(warnings.map(|w| format!("{}: {w}", located(resource))));
            }
        }
    }
}

/// `file:line: Kind namespace/name`, as far as known.
pub(crate) fn located(resource: &Resource) -> String {
    let source = resource.source();
    let key = resource.key();
    if source.file.is_empty() {
        key.to_string()
    } else {
        format!("{}:{}: {key}", source.file, source.line)
    }
}
