//! Rules and matches that an earlier one takes already.

use amime_api::networking::{HttpMatchRequest, StringMatch};
use amime_model::Snapshot;

use super::{Findings, virtual_services};
use crate::problem::{At, Code, Severity};

pub(super) fn check(snapshot: &Snapshot, findings: &mut Findings) {
    for (key, object) in virtual_services(snapshot) {
        let mut taken: Vec<(usize, &HttpMatchRequest)> = Vec::new();
        let mut catch_all: Option<usize> = None;
        for (index, (at, route)) in At::root("spec").each("http", &object.spec.http).enumerate() {
            if let Some(earlier) = catch_all {
                let message = format!("http[{earlier}] matches everything, so nothing comes here");
                let finding = (Severity::Warning, Code::UNREACHABLE_RULE);
                findings.push(key, finding, &at, message);
                continue;
            }
            if route.r#match.is_empty() {
                catch_all = Some(index);
            }
            for (at, item) in at.each("match", &route.r#match) {
                if let Some((earlier, _)) = taken.iter().find(|(_, other)| covers(other, item)) {
                    let whole = route.r#match.len() == 1;
                    let code = if whole { Code::UNREACHABLE_RULE } else { Code::INEFFECTIVE_MATCH };
                    let message = format!("http[{earlier}] takes these requests already");
                    findings.push(key, (Severity::Warning, code), &at, message);
                } else {
                    taken.push((index, item));
                }
            }
            if route.r#match.iter().any(is_catch_all) {
                catch_all = Some(index);
            }
        }
    }
}

/// True if every request that `later` matches is matched by `earlier`; errs on the side of no.
fn covers(earlier: &HttpMatchRequest, later: &HttpMatchRequest) -> bool {
    let same = |m: &HttpMatchRequest| {
        // Names and prefixes are for humans, paths are compared below.
        HttpMatchRequest { name: String::new(), stat_prefix: String::new(), uri: None, ..m.clone() }
    };
    let path = match (&earlier.uri, &later.uri) {
        (None, _) => true,
        (
            Some(StringMatch::Prefix(short)),
            Some(StringMatch::Prefix(long) | StringMatch::Exact(long)),
        ) => long.starts_with(short.as_str()),
        (earlier, later) => earlier == later,
    };
    path && same(earlier) == same(later)
}

/// True if the match has no condition but a path that every path satisfies.
fn is_catch_all(item: &HttpMatchRequest) -> bool {
    let any_path = match &item.uri {
        None => true,
        Some(StringMatch::Prefix(prefix)) => prefix == "/",
        Some(StringMatch::Regex(pattern)) => pattern == ".*" || pattern == "*",
        Some(_) => false,
    };
    let bare = HttpMatchRequest {
        uri: item.uri.clone(),
        name: item.name.clone(),
        stat_prefix: item.stat_prefix.clone(),
        ignore_uri_case: item.ignore_uri_case,
        ..HttpMatchRequest::default()
    };
    any_path && bare == *item
}
