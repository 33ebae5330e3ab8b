//! Rules of the security kinds.

use amime_api::security::{
    AuthorizationAction, AuthorizationPolicy, Condition, JwtRule, Operation, PeerAuthentication,
    RequestAuthentication, Rule, Source,
};

use crate::problem::{At, Report};
use crate::{shared, syntax};

/// Attributes of a condition, without those that take a name in brackets.
const ATTRIBUTES: [&str; 12] = [
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.serviceAccount",
    "source.principal",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
];

const NAMED_ATTRIBUTES: [&str; 3] =
    ["request.headers[", "request.auth.claims[", "experimental.envoy.filters."];

pub(crate) fn check_peer(spec: &PeerAuthentication, at: &At, report: &mut Report) {
    shared::policy_scope(spec.selector.as_ref(), &[], at, report);
    if spec.port_level_mtls.is_empty() {
        return;
    }
    let at = at.field("portLevelMtls");
    let selects = spec.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty());
    if !selects {
        report.error(&at, "needs a selector: ports belong to workloads");
    }
    for number in spec.port_level_mtls.keys() {
        report.check(&at.key(&number.to_string()), syntax::port(*number));
    }
}

pub(crate) fn check_request(spec: &RequestAuthentication, at: &At, report: &mut Report) {
    shared::policy_scope(spec.selector.as_ref(), &spec.target_refs, at, report);
    for (at, rule) in at.each("jwtRules", &spec.jwt_rules) {
        check_jwt(rule, &at, report);
    }
}

fn check_jwt(rule: &JwtRule, at: &At, report: &mut Report) {
    if rule.issuer.is_empty() && rule.jwks_uri.is_empty() {
        report.error(&at.field("issuer"), "an issuer is required, unless jwksUri is given");
    }
    if !rule.jwks_uri.is_empty() {
        if !rule.jwks.is_empty() {
            report.error(&at.field("jwks"), "cannot be given together with jwksUri");
        }
        if !rule.jwks_uri.starts_with("http://") && !rule.jwks_uri.starts_with("https://") {
            report.error(&at.field("jwksUri"), format!("{:?} is not an HTTP URL", rule.jwks_uri));
        }
    }
    for (name, list) in [
        ("audiences", &rule.audiences),
        ("fromParams", &rule.from_params),
        ("fromCookies", &rule.from_cookies),
    ] {
        for (at, _) in at.each(name, list).filter(|(_, item)| item.is_empty()) {
            report.error(&at, "must not be empty");
        }
    }
    for (at, header) in at.each("fromHeaders", &rule.from_headers) {
        report.check(&at.field("name"), syntax::header_name(&header.name));
    }
    for (at, copy) in at.each("outputClaimToHeaders", &rule.output_claim_to_headers) {
        report.check(&at.field("header"), syntax::header_name(&copy.header));
        if copy.claim.is_empty() {
            report.error(&at.field("claim"), "a claim is required");
        }
    }
    if let Some(timeout) = rule.timeout {
        report.check(&at.field("timeout"), syntax::duration(timeout));
    }
}

pub(crate) fn check_authorization(spec: &AuthorizationPolicy, at: &At, report: &mut Report) {
    shared::policy_scope(spec.selector.as_ref(), &spec.target_refs, at, report);
    let provider = spec.provider.as_ref().map_or("", |provider| provider.name.as_str());
    if spec.action == AuthorizationAction::Custom {
        if provider.is_empty() {
            report.error(&at.field("provider").field("name"), "action CUSTOM needs a provider");
        }
        if spec.rules.is_empty() {
            report.error(&at.field("rules"), "action CUSTOM needs at least one rule");
        }
    } else if spec.provider.is_some() {
        report.error(&at.field("provider"), "is for action CUSTOM only");
    }
    if spec.action == AuthorizationAction::Deny && spec.rules.is_empty() {
        report.warning(&at.field("rules"), "action DENY without rules never matches");
    }
    for (at, rule) in at.each("rules", &spec.rules) {
        check_rule(rule, &at, report);
    }
}

fn check_rule(rule: &Rule, at: &At, report: &mut Report) {
    for (at, item) in at.each("from", &rule.from) {
        match &item.source {
            Some(source) if *source != Source::default() => {
                check_source(source, &at.field("source"), report);
            }
            _ => report.error(&at.field("source"), "at least one field is required"),
        }
    }
    for (at, item) in at.each("to", &rule.to) {
        match &item.operation {
            Some(operation) if *operation != Operation::default() => {
                check_operation(operation, &at.field("operation"), report);
            }
            _ => report.error(&at.field("operation"), "at least one field is required"),
        }
    }
    for (at, condition) in at.each("when", &rule.when) {
        check_condition(condition, &at, report);
    }
}

fn check_source(source: &Source, at: &At, report: &mut Report) {
    let lists = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ];
    for (name, list) in lists {
        not_empty(list, name, at, report);
    }
    let subnets = [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    for (name, list) in subnets {
        for (at, subnet) in at.each(name, list) {
            report.check(&at, syntax::subnet(subnet));
        }
    }
    let accounts = source.service_accounts.len() + source.not_service_accounts.len();
    let others = source.principals.len()
        + source.not_principals.len()
        + source.namespaces.len()
        + source.not_namespaces.len();
    if accounts > 0 && others > 0 {
        report.error(
            &at.field("serviceAccounts"),
            "cannot be given together with principals or namespaces",
        );
    }
    for (at, account) in at.each("serviceAccounts", &source.service_accounts) {
        if account.contains('*') {
            report.error(&at, "wildcards are not supported");
        }
    }
}

fn check_operation(operation: &Operation, at: &At, report: &mut Report) {
    let lists = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    for (name, list) in lists {
        not_empty(list, name, at, report);
    }
    for (name, list) in [("ports", &operation.ports), ("notPorts", &operation.not_ports)] {
        for (at, text) in at.each(name, list) {
            let number = text.parse::<u32>().map_err(|_| format!("{text:?} is not a port number"));
            report.check(&at, number.and_then(syntax::port));
        }
    }
}

fn not_empty(list: &[String], name: &str, at: &At, report: &mut Report) {
    for (at, _) in at.each(name, list).filter(|(_, item)| item.is_empty()) {
        report.error(&at, "must not be empty");
    }
}

fn check_condition(condition: &Condition, at: &At, report: &mut Report) {
    let key = condition.key.as_str();
    let named = NAMED_ATTRIBUTES.iter().any(|prefix| {
        key.strip_prefix(prefix).is_some_and(|rest| !prefix.ends_with('[') || rest.ends_with(']'))
    });
    if !named && !ATTRIBUTES.contains(&key) {
        report.error(&at.field("key"), format!("unknown attribute {key:?}"));
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        report.error(at, "one of values and notValues is required");
    }
    for (name, list) in [("values", &condition.values), ("notValues", &condition.not_values)] {
        for (at, value) in at.each(name, list) {
            match key {
                "source.ip" | "remote.ip" | "destination.ip" => {
                    report.check(&at, syntax::subnet(value));
                }
                "destination.port" => {
                    let number = value.parse::<u32>();
                    let number = number.map_err(|_| format!("{value:?} is not a port number"));
                    report.check(&at, number.and_then(syntax::port));
                }
                _ => {}
            }
        }
    }
}
