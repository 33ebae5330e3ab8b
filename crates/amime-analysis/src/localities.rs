//! Rules about localities in `distribute`: none may cover another.

use amime_api::networking::Distribute;

use crate::problem::{At, Report};

pub(crate) fn check_distribution(rules: &[Distribute], at: &At, report: &mut Report) {
    let mut origins: Vec<&str> = Vec::new();
    for (at, rule) in at.each("distribute", rules) {
        check_locality(&rule.from, &origins, &at.field("from"), report);
        origins.push(&rule.from);
        let mut targets: Vec<&str> = Vec::new();
        for target in rule.to.keys() {
            check_locality(target, &targets, &at.field("to").key(target), report);
            targets.push(target);
        }
    }
}

fn check_locality(text: &str, earlier: &[&str], at: &At, report: &mut Report) {
    let parts: Vec<&str> = text.split('/').collect();
    let stars = text.matches('*').count();
    if text.is_empty() {
        return;
    }
    if parts.iter().any(|part| part.is_empty()) {
        report.error(at, format!("{text:?} has an empty part"));
    } else if stars > 1 || (stars == 1 && !text.ends_with('*')) {
        report.error(at, format!("{text:?}: \"*\" can stand at the end only"));
    } else if let Some(other) = earlier.iter().find(|other| overlap(other, text)) {
        report.error(at, format!("{text:?} and {other:?} cover the same localities"));
    }
}

/// True if some locality is covered by both; what a text leaves out, it covers.
fn overlap(a: &str, b: &str) -> bool {
    let parts = a.split('/').zip(b.split('/'));
    for (a, b) in parts {
        if a == "*" || b == "*" {
            return true;
        }
        if a != b {
            return false;
        }
    }
    true
}
