//! Checks that several kinds share.

use amime_api::meta::{PolicyTargetReference, StringMap, WorkloadSelector};
use amime_api::networking::{Destination, LabelsSelector};

use crate::problem::{At, Report};
use crate::syntax;

/// Visibility list.
pub(crate) fn export_to(list: &[String], at: &At, report: &mut Report) {
    let at = at.field("exportTo");
    for (index, item) in list.iter().enumerate() {
        let at = at.nth(index);
        if !matches!(item.as_str(), "." | "*" | "~") {
            report.check(&at, syntax::dns_label(item));
        }
        if list[..index].contains(item) {
            report.error(&at, format!("{item:?} is given twice"));
        }
    }
    for alone in ["*", "~"] {
        if list.len() > 1 && list.iter().any(|item| item == alone) {
            report.error(&at, format!("{alone:?} cannot be given together with others"));
        }
    }
}

/// Visibility list of a rule, which has to be seen somewhere.
pub(crate) fn rule_export_to(list: &[String], at: &At, report: &mut Report) {
    export_to(list, at, report);
    for (at, _) in at.each("exportTo", list).filter(|(_, item)| *item == "~") {
        report.error(&at, "\"~\" is for services only");
    }
}

/// Labels to select by.
pub(crate) fn labels(labels: &StringMap, at: &At, report: &mut Report) {
    for (key, value) in labels {
        let check = syntax::label_key(key).and_then(|()| match value.contains('*') {
            true => Err(format!("{value:?}: wildcards are not supported")),
            false => syntax::label_value(value),
        });
        report.check(&at.key(key), check);
    }
}

/// Selector of the networking kinds.
pub(crate) fn labels_selector(selector: Option<&LabelsSelector>, at: &At, report: &mut Report) {
    if let Some(selector) = selector {
        labels(&selector.labels, &at.field("workloadSelector").field("labels"), report);
    }
}

/// Selector of the policy kinds, and its exclusion with target references.
pub(crate) fn policy_scope(
    selector: Option<&WorkloadSelector>,
    target_refs: &[PolicyTargetReference],
    at: &At,
    report: &mut Report,
) {
    if let Some(selector) = selector {
        labels(&selector.match_labels, &at.field("selector").field("matchLabels"), report);
        if !target_refs.is_empty() {
            report.error(&at.field("targetRefs"), "cannot be given together with selector");
        }
    }
    for (at, reference) in at.each("targetRefs", target_refs) {
        if reference.name.is_empty() {
            report.error(&at.field("name"), "a name is required");
        }
        if reference.kind.is_empty() {
            report.error(&at.field("kind"), "a kind is required");
        }
        if !reference.namespace.is_empty() {
            report.error(&at.field("namespace"), "other namespaces cannot be referenced");
        }
    }
}

/// Where a route goes.
pub(crate) fn destination(destination: &Destination, at: &At, report: &mut Report) {
    match destination.host.as_str() {
        "*" => report.error(&at.field("host"), "a destination cannot be \"*\""),
        host => report.check(&at.field("host"), syntax::wildcard_host(host)),
    }
    if !destination.subset.is_empty() {
        report.check(&at.field("subset"), syntax::dns_label(&destination.subset));
    }
    if let Some(port) = &destination.port {
        report.check(&at.field("port").field("number"), syntax::port(port.number));
    }
}

/// Shares among destinations: none negative, not all zero.
pub(crate) fn weights(weights: &[i32], at: &At, report: &mut Report) {
    for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight < 0) {
        report.error(&at.nth(index).field("weight"), format!("{weight} is negative"));
    }
    let total: i64 = weights.iter().map(|&weight| i64::from(weight)).sum();
    if weights.len() > 1 && total == 0 {
        report.error(at, "all weights are zero, so no destination would get a request");
    }
    if total > i64::from(u32::MAX) {
        report.error(at, format!("weights add up to {total}, more than {}", u32::MAX));
    }
}

/// Gateway references; `mesh` stands for all sidecars.
pub(crate) fn gateways(names: &[String], at: &At, report: &mut Report) {
    for (at, name) in at.each("gateways", names) {
        report.check(&at, syntax::object_reference(name));
    }
}
