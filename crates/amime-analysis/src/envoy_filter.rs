//! Rules of envoy filters: matches that fit what they apply to, values that are
//! Envoy's messages.

use amime_api::networking::{
    ApplyTo, EnvoyConfigObjectMatch, EnvoyConfigObjectPatch, EnvoyFilter, FilterChainMatch, Patch,
    PatchOperation,
};
use amime_xds::extensions;
use amime_xds::json::JsonMessage;
use serde_json::Value;

use crate::problem::{At, Report};
use crate::{shared, syntax};

const HTTP_CONNECTION_MANAGER: &str = "envoy.filters.network.http_connection_manager";
/// Lists whose items are filters, in both spellings.
const FILTER_LISTS: [&str; 5] =
    ["filters", "http_filters", "httpFilters", "listener_filters", "listenerFilters"];

pub(crate) fn check(spec: &EnvoyFilter, at: &At, report: &mut Report) {
    shared::labels_selector(spec.workload_selector.as_ref(), at, report);
    if spec.workload_selector.is_some() && !spec.target_refs.is_empty() {
        report.error(&at.field("targetRefs"), "cannot be given together with workloadSelector");
    }
    for (at, patch) in at.each("configPatches", &spec.config_patches) {
        check_patch(patch, &at, report);
    }
}

fn check_patch(patch: &EnvoyConfigObjectPatch, at: &At, report: &mut Report) {
    if patch.apply_to == ApplyTo::Invalid {
        report.error(&at.field("applyTo"), "is required");
    }
    if let Some(matched) = &patch.r#match {
        check_match(patch.apply_to, matched, &at.field("match"), report);
    }
    let Some(change) = &patch.patch else {
        report.error(&at.field("patch"), "is required");
        return;
    };
    let at = at.field("patch");
    check_operation(patch.apply_to, change, &at, report);
    if let (Some(value), Some(message)) = (&change.value, patch.apply_to.message()) {
        let at = at.field("value");
        let readable = check_value(message, value, &at, report);
        if readable && change.operation != PatchOperation::Merge {
            report_foreign(value, patch.apply_to, &at, report);
        }
    }
}

fn check_operation(kind: ApplyTo, change: &Patch, at: &At, report: &mut Report) {
    let operation = change.operation;
    if operation == PatchOperation::Invalid {
        report.error(&at.field("operation"), "is required");
    }
    if operation != PatchOperation::Remove && change.value.is_none() {
        report.error(&at.field("value"), "every operation but REMOVE needs a value");
    }
    let replaceable = matches!(
        kind,
        ApplyTo::NetworkFilter
            | ApplyTo::HttpFilter
            | ApplyTo::ListenerFilter
            | ApplyTo::VirtualHost
    );
    let at = at.field("operation");
    match (operation, kind) {
        (PatchOperation::Replace, _) if !replaceable => {
            report.error(&at, "REPLACE is for filters and virtual hosts only");
        }
        (PatchOperation::Add | PatchOperation::Remove, ApplyTo::RouteConfiguration) => {
            report.warning(&at, "route configurations can only be merged into; has no effect");
        }
        (
            PatchOperation::Merge | PatchOperation::MergeAndReplaceList | PatchOperation::Remove,
            ApplyTo::ExtensionConfig,
        ) => report.warning(&at, "extension configurations can only be added; has no effect"),
        _ => {}
    }
}

fn check_match(kind: ApplyTo, matched: &EnvoyConfigObjectMatch, at: &At, report: &mut Report) {
    let given = [
        ("listener", matched.listener.is_some()),
        ("routeConfiguration", matched.route_configuration.is_some()),
        ("cluster", matched.cluster.is_some()),
    ];
    let wanted = match kind {
        ApplyTo::Listener
        | ApplyTo::FilterChain
        | ApplyTo::NetworkFilter
        | ApplyTo::HttpFilter
        | ApplyTo::ListenerFilter => Some("listener"),
        ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute => {
            Some("routeConfiguration")
        }
        ApplyTo::Cluster => Some("cluster"),
        ApplyTo::ExtensionConfig | ApplyTo::Bootstrap | ApplyTo::Invalid => None,
    };
    for (field, _) in given.iter().filter(|(field, is_given)| *is_given && Some(*field) != wanted) {
        if let Some(wanted) = wanted {
            report.error(&at.field(field), format!("has to be a match of {wanted} here"));
        }
    }
    let version = matched.proxy.as_ref().map_or("", |proxy| proxy.proxy_version.as_str());
    if !version.is_empty() {
        report.check(&at.field("proxy").field("proxyVersion"), syntax::pattern(version));
    }
    let chain = matched.listener.as_ref().and_then(|listener| listener.filter_chain.as_ref());
    if let Some(chain) = chain {
        check_filter_match(kind, chain, &at.field("listener").field("filterChain"), report);
    }
}

fn check_filter_match(kind: ApplyTo, chain: &FilterChainMatch, at: &At, report: &mut Report) {
    let Some(filter) = &chain.filter else { return };
    let at = at.field("filter");
    if matches!(kind, ApplyTo::Listener | ApplyTo::FilterChain) {
        report.warning(&at, "a filter is no condition for what this applies to; has no effect");
    }
    if filter.name.is_empty() {
        report.error(&at.field("name"), "is required");
    }
    let Some(inner) = &filter.sub_filter else { return };
    let at_inner = at.field("subFilter");
    if kind != ApplyTo::HttpFilter {
        report.error(&at_inner, "is for applyTo HTTP_FILTER only");
    } else if filter.name != HTTP_CONNECTION_MANAGER {
        report.error(&at.field("name"), format!("only {HTTP_CONNECTION_MANAGER} has subfilters"));
    }
    if inner.name.is_empty() {
        report.error(&at_inner.field("name"), "is required");
    }
}

/// A value has to be Envoy's message; a field that we do not know may be newer
/// than we are. False if it cannot be read.
fn check_value(message: &str, value: &Value, at: &At, report: &mut Report) -> bool {
    if let Err(error) = JsonMessage::read(message, value) {
        report.error(at, error.to_string());
        return false;
    }
    if let Err(error) = JsonMessage::read_strictly(message, value) {
        report.warning(at, format!("{error}; the field is left out"));
    }
    true
}

/// Says which filters our own proxy does not have.
fn report_foreign(value: &Value, kind: ApplyTo, at: &At, report: &mut Report) {
    let is_filter =
        matches!(kind, ApplyTo::NetworkFilter | ApplyTo::HttpFilter | ApplyTo::ListenerFilter);
    if is_filter {
        report_filter(value, at, report);
    }
    report_filters_in(value, at, report);
}

fn report_filters_in(value: &Value, at: &At, report: &mut Report) {
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                report_filters_in(item, &at.nth(index), report);
            }
        }
        Value::Object(fields) => {
            for (key, field) in fields {
                let at = at.field(key);
                if let (true, Value::Array(items)) = (FILTER_LISTS.contains(&key.as_str()), field) {
                    let items = items.iter().enumerate();
                    items.for_each(|(index, item)| report_filter(item, &at.nth(index), report));
                }
                report_filters_in(field, &at, report);
            }
        }
        _ => {}
    }
}

fn report_filter(filter: &Value, at: &At, report: &mut Report) {
    let config = filter.get("typed_config").or_else(|| filter.get("typedConfig"));
    let Some(config) = config else { return };
    let inner = config.get("type_url").or_else(|| config.get("typeUrl"));
    let Some(type_url) = inner.or_else(|| config.get("@type")).and_then(Value::as_str) else {
        return;
    };
    if !extensions::is_own(type_url) {
        let name = extensions::name_of(type_url);
        let name = name.as_deref().unwrap_or(type_url);
        report.warning(
            at,
            format!("amime's proxy has no {name}: it is left out for such proxies, others get it"),
        );
    }
}
