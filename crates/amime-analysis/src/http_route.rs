//! Rules of one HTTP route of a `VirtualService`.

use std::collections::BTreeMap;

use amime_api::networking::{
    Abort, CorsPolicy, Delay, HeaderOperations, Headers, HttpDirectResponse, HttpFaultInjection,
    HttpMatchRequest, HttpRedirect, HttpRetry, HttpRewrite, HttpRoute, StringMatch,
};
use amime_core::{Duration, grpc};

use crate::problem::{At, Report};
use crate::{shared, syntax};

/// Conditions of `retryOn`; status codes are allowed too.
const RETRY_CONDITIONS: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// Longest body of a direct response; from the second on it is only questionable.
const BODY_LIMITS: (usize, usize) = (1 << 20, 100 << 10);

/// Shares are counted in millionths.
const SMALLEST_SHARE: f64 = 0.0001;

pub(crate) fn check(route: &HttpRoute, is_delegate: bool, at: &At, report: &mut Report) {
    check_action(route, is_delegate, at, report);
    let delegating = is_delegate || route.delegate.is_some();
    for (at, item) in at.each("match", &route.r#match) {
        check_match(item, delegating, &at, report);
    }
    check_destinations(route, at, report);
    check_headers(route.headers.as_ref(), at, report);
    check_host_rewrite(route, at, report);
    if let Some(redirect) = &route.redirect {
        check_redirect(redirect, &at.field("redirect"), report);
    }
    if let Some(response) = &route.direct_response {
        check_direct_response(response, &at.field("directResponse"), report);
    }
    if let Some(rewrite) = &route.rewrite {
        check_rewrite(rewrite, &at.field("rewrite"), report);
    }
    if let Some(timeout) = route.timeout {
        report.check(&at.field("timeout"), syntax::duration(timeout));
    }
    if let Some(retries) = &route.retries {
        check_retries(retries, &at.field("retries"), report);
    }
    if let Some(fault) = &route.fault {
        check_fault(fault, &at.field("fault"), report);
    }
    check_mirrors(route, at, report);
    if let Some(cors) = &route.cors_policy {
        check_cors(cors, &at.field("corsPolicy"), report);
    }
}

/// A route does exactly one thing.
fn check_action(route: &HttpRoute, is_delegate: bool, at: &At, report: &mut Report) {
    let has_routes = !route.route.is_empty();
    if let Some(delegate) = &route.delegate {
        let at = at.field("delegate");
        if is_delegate {
            report.error(&at, "a delegate cannot delegate further");
        }
        if has_routes || route.redirect.is_some() || route.direct_response.is_some() {
            report.error(&at, "cannot be given together with route, redirect or directResponse");
        }
        if delegate.name.is_empty() {
            report.error(&at.field("name"), "a name is required");
        }
        return;
    }
    let actions = [
        (has_routes, "route"),
        (route.redirect.is_some(), "redirect"),
        (route.direct_response.is_some(), "directResponse"),
    ];
    let given: Vec<&str> = actions.iter().filter(|(given, _)| *given).map(|(_, n)| *n).collect();
    match given[..] {
        [] => report.error(at, "one of route, redirect, directResponse and delegate is required"),
        [_] => {}
        [first, second, ..] => {
            report.error(&at.field(second), format!("cannot be given together with {first}"));
        }
    }
    if route.redirect.is_some() || route.direct_response.is_some() {
        let with = given.last().copied().unwrap_or_default();
        if route.rewrite.is_some() {
            report.error(&at.field("rewrite"), format!("cannot be given together with {with}"));
        }
        if route.fault.is_some() {
            report.error(&at.field("fault"), format!("cannot be given together with {with}"));
        }
    }
    check_prefix_rewrite(route, at, report);
}

/// A prefix can be replaced only where every condition matches one.
fn check_prefix_rewrite(route: &HttpRoute, at: &At, report: &mut Report) {
    let by_prefix = |item: &HttpMatchRequest| {
        item.uri.as_ref().is_none_or(|uri| matches!(uri, StringMatch::Prefix(_)))
    };
    let rewrites = route.redirect.as_ref().is_some_and(|r| !r.prefix_rewrite.is_empty());
    if rewrites && !route.r#match.iter().all(by_prefix) {
        let at = at.field("redirect").field("prefixRewrite");
        report.error(&at, "needs matches by prefix, in every condition on uri");
    }
}

fn check_destinations(route: &HttpRoute, at: &At, report: &mut Report) {
    for (at, item) in at.each("route", &route.route) {
        shared::destination(&item.destination, &at.field("destination"), report);
        check_headers(item.headers.as_ref(), &at, report);
    }
    let weights: Vec<i32> = route.route.iter().map(|item| item.weight).collect();
    shared::weights(&weights, &at.field("route"), report);
}

fn check_match(item: &HttpMatchRequest, delegating: bool, at: &At, report: &mut Report) {
    let single = [
        ("uri", &item.uri),
        ("scheme", &item.scheme),
        ("method", &item.method),
        ("authority", &item.authority),
    ];
    for (name, value) in single {
        if let Some(value) = value {
            // The path may start with nothing; other texts are compared with something.
            let anything = name == "uri" && *value == StringMatch::Prefix(String::new());
            if !anything {
                check_string(value, delegating, &at.field(name), report);
            }
            if *value == StringMatch::Present {
                report.error(&at.field(name), "one of exact, prefix and regex is required");
            }
        }
    }
    check_strings(&item.query_params, delegating, &at.field("queryParams"), report);
    for (name, headers) in [("headers", &item.headers), ("withoutHeaders", &item.without_headers)] {
        let compared = headers.iter().filter(|(_, value)| {
            // Not a pattern, but read as "has no value at all".
            name == "headers" || **value != StringMatch::Regex("*".to_owned())
        });
        for (header, value) in compared {
            check_string(value, delegating, &at.field(name).key(header), report);
        }
        for header in headers.keys() {
            report.check(&at.field(name).key(header), syntax::header_condition(header));
        }
    }
    if item.port != 0 {
        report.check(&at.field("port"), syntax::port(item.port));
    }
    shared::labels(&item.source_labels, &at.field("sourceLabels"), report);
    shared::gateways(&item.gateways, at, report);
    if !item.source_namespace.is_empty() {
        report.check(&at.field("sourceNamespace"), syntax::dns_label(&item.source_namespace));
    }
    if item.ignore_uri_case && matches!(item.uri, Some(StringMatch::Regex(_))) {
        report.warning(&at.field("ignoreUriCase"), "has no effect on a regex");
    }
}

fn check_strings(
    values: &BTreeMap<String, StringMatch>,
    delegating: bool,
    at: &At,
    report: &mut Report,
) {
    for (name, value) in values {
        check_string(value, delegating, &at.key(name), report);
    }
}

fn check_string(value: &StringMatch, delegating: bool, at: &At, report: &mut Report) {
    match value {
        StringMatch::Regex(_) if delegating => {
            report.error(&at.field("regex"), "patterns cannot be merged between root and delegate");
        }
        StringMatch::Regex(pattern) if pattern.is_empty() => {
            report.error(&at.field("regex"), "a pattern is required");
        }
        StringMatch::Regex(pattern) => report.check(&at.field("regex"), syntax::pattern(pattern)),
        StringMatch::Prefix(text) if text.is_empty() => {
            report.error(
                &at.field("prefix"),
                "an empty prefix matches everything; leave the match out",
            );
        }
        _ => {}
    }
}

fn check_headers(headers: Option<&Headers>, at: &At, report: &mut Report) {
    let Some(headers) = headers else { return };
    let at = at.field("headers");
    if let Some(request) = &headers.request {
        check_operations(request, true, &at.field("request"), report);
    }
    if let Some(response) = &headers.response {
        check_operations(response, false, &at.field("response"), report);
    }
}

fn check_operations(operations: &HeaderOperations, request: bool, at: &At, report: &mut Report) {
    for (name, pairs) in [("set", &operations.set), ("add", &operations.add)] {
        for (header, value) in pairs {
            let at = at.field(name).key(header);
            if !(request && is_authority(header)) {
                check_settable(header, &at, report);
            }
            report.check(&at, syntax::header_value(value));
        }
    }
    for (at, header) in at.each("remove", &operations.remove) {
        check_settable(header, &at, report);
    }
}

fn check_settable(header: &str, at: &At, report: &mut Report) {
    if header.starts_with(':') || header.eq_ignore_ascii_case("host") {
        report.error(at, format!("header {header:?} cannot be changed this way"));
    } else {
        report.check(at, syntax::header_name(header));
    }
}

fn is_authority(header: &str) -> bool {
    header.eq_ignore_ascii_case("host") || header == ":authority"
}

/// The host can be rewritten in one place only.
fn check_host_rewrite(route: &HttpRoute, at: &At, report: &mut Report) {
    let rewrite = route.rewrite.as_ref().is_some_and(|rewrite| !rewrite.authority.is_empty());
    let request = route.headers.as_ref().and_then(|headers| headers.request.as_ref());
    let names = request.into_iter().flat_map(|r| r.set.keys().chain(r.add.keys()));
    let places = usize::from(rewrite) + names.filter(|name| is_authority(name)).count();
    if places > 1 {
        report.error(at, "the host is rewritten in several places");
    }
}

fn check_redirect(redirect: &HttpRedirect, at: &At, report: &mut Report) {
    let empty = redirect.uri.is_empty()
        && redirect.prefix_rewrite.is_empty()
        && redirect.authority.is_empty()
        && redirect.scheme.is_empty()
        && redirect.port.is_none()
        && redirect.derive_port.is_none();
    if empty {
        report.error(
            at,
            "at least one of uri, prefixRewrite, authority, scheme and port is required",
        );
    }
    if !matches!(redirect.redirect_code, 0 | 301 | 302 | 303 | 307 | 308) {
        let message = format!("{} is none of 301, 302, 303, 307, 308", redirect.redirect_code);
        report.error(&at.field("redirectCode"), message);
    }
    if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
        report
            .error(&at.field("scheme"), format!("{:?} is neither http nor https", redirect.scheme));
    }
    if let Some(port) = redirect.port {
        report.check(&at.field("port"), syntax::port(port));
    }
}

fn check_direct_response(response: &HttpDirectResponse, at: &At, report: &mut Report) {
    check_status(i64::from(response.status), &at.field("status"), report);
    let Some(body) = &response.body else { return };
    let at = at.field("body");
    let length = match (&body.string, &body.bytes) {
        (Some(text), _) => text.len(),
        (None, Some(base64)) => base64.len() / 4 * 3,
        (None, None) => return report.error(&at, "one of string and bytes is required"),
    };
    if length > BODY_LIMITS.0 {
        report.error(&at, format!("a body of {length} bytes is longer than 1 MiB"));
    } else if length > BODY_LIMITS.1 {
        report.warning(&at, format!("a body of {length} bytes goes to every proxy"));
    }
}

fn check_status(status: i64, at: &At, report: &mut Report) {
    if !(200..=599).contains(&status) {
        report.error(at, format!("status {status} is not in 200 to 599"));
    }
}

fn check_rewrite(rewrite: &HttpRewrite, at: &At, report: &mut Report) {
    let regex = rewrite.uri_regex_rewrite.as_ref();
    if rewrite.uri.is_empty() && rewrite.authority.is_empty() && regex.is_none() {
        report.error(at, "at least one of uri, authority and uriRegexRewrite is required");
    }
    let Some(regex) = regex else { return };
    let at = at.field("uriRegexRewrite");
    if !rewrite.uri.is_empty() {
        report.error(&at, "cannot be given together with uri");
    }
    if regex.r#match.is_empty() {
        report.error(&at.field("match"), "a pattern is required");
    } else {
        report.check(&at.field("match"), syntax::pattern(&regex.r#match));
    }
    if regex.rewrite.is_empty() {
        report.error(&at.field("rewrite"), "a replacement is required");
    }
}

fn check_retries(retries: &HttpRetry, at: &At, report: &mut Report) {
    if retries.attempts < 0 {
        report.error(&at.field("attempts"), format!("{} is negative", retries.attempts));
    }
    let tuned = retries.per_try_timeout.is_some()
        || !retries.retry_on.is_empty()
        || retries.retry_remote_localities.is_some();
    if retries.attempts == 0 && tuned {
        report
            .error(&at.field("attempts"), "zero switches retries off, so nothing else may be set");
    }
    for (name, value) in [("perTryTimeout", retries.per_try_timeout), ("backoff", retries.backoff)]
    {
        check_duration(value, &at.field(name), report);
    }
    let conditions = retries.retry_on.split(',').filter(|_| !retries.retry_on.is_empty());
    for condition in conditions {
        let status = condition.parse::<u16>().is_ok_and(|code| (100..600).contains(&code));
        if !status && !RETRY_CONDITIONS.contains(&condition) {
            let message = format!("{condition:?} is neither a retry condition nor a status code");
            report.error(&at.field("retryOn"), message);
        }
    }
}

fn check_duration(value: Option<Duration>, at: &At, report: &mut Report) {
    if let Some(value) = value {
        report.check(at, syntax::duration(value));
    }
}

fn check_fault(fault: &HttpFaultInjection, at: &At, report: &mut Report) {
    if fault.delay.is_none() && fault.abort.is_none() {
        report.error(at, "at least one of delay and abort is required");
    }
    if let Some(delay) = &fault.delay {
        check_delay(delay, &at.field("delay"), report);
    }
    if let Some(abort) = &fault.abort {
        check_abort(abort, &at.field("abort"), report);
    }
}

fn check_delay(delay: &Delay, at: &At, report: &mut Report) {
    check_share(delay.percent, delay.percentage.as_ref().map(|p| p.value), at, report);
    match (delay.fixed_delay, delay.exponential_delay) {
        (_, Some(_)) => report.error(&at.field("exponentialDelay"), "is not supported"),
        (None, None) => report.error(&at.field("fixedDelay"), "a delay is required"),
        (Some(delay), None) => report.check(&at.field("fixedDelay"), syntax::duration(delay)),
    }
}

fn check_abort(abort: &Abort, at: &At, report: &mut Report) {
    if abort.percentage.is_none() && abort.percent.is_none() {
        report.warning(&at.field("percentage"), "without it no request is aborted");
    }
    check_share(abort.percent, abort.percentage.as_ref().map(|p| p.value), at, report);
    if abort.http2_error.is_some() {
        report.error(&at.field("http2Error"), "is not supported");
    }
    match (abort.http_status, &abort.grpc_status) {
        (Some(status), _) => check_status(i64::from(status), &at.field("httpStatus"), report),
        (None, Some(status)) => {
            let known = grpc::STATUS_NAMES.contains(&status.as_str())
                || status.parse::<usize>().is_ok_and(|code| code < grpc::STATUS_NAMES.len());
            if !known {
                report.error(&at.field("grpcStatus"), format!("{status:?} is not a gRPC status"));
            }
        }
        (None, None) if abort.http2_error.is_none() => {
            report.error(at, "one of httpStatus and grpcStatus is required");
        }
        (None, None) => {}
    }
}

fn check_share(percent: Option<i32>, percentage: Option<f64>, at: &At, report: &mut Report) {
    if let Some(percent) = percent {
        report.check(&at.field("percent"), syntax::percent(f64::from(percent)));
        report.deprecated(&at.field("percent"), "percentage");
    }
    if let Some(value) = percentage {
        let at = at.field("percentage").field("value");
        report.check(&at, syntax::percent(value));
        if value > 0.0 && value < SMALLEST_SHARE {
            report.error(&at, format!("{value} is less than {SMALLEST_SHARE}, the smallest share"));
        }
    }
}

fn check_mirrors(route: &HttpRoute, at: &At, report: &mut Report) {
    if let Some(mirror) = &route.mirror {
        shared::destination(mirror, &at.field("mirror"), report);
        if !route.mirrors.is_empty() {
            report.error(&at.field("mirrors"), "cannot be given together with mirror");
        }
    }
    for (at, mirror) in at.each("mirrors", &route.mirrors) {
        shared::destination(&mirror.destination, &at.field("destination"), report);
        if let Some(percentage) = &mirror.percentage {
            report.check(&at.field("percentage").field("value"), syntax::percent(percentage.value));
        }
    }
    if let Some(percent) = route.mirror_percent {
        report.check(&at.field("mirrorPercent"), syntax::percent(f64::from(percent)));
        report.deprecated(&at.field("mirrorPercent"), "mirrorPercentage");
    }
    if let Some(percentage) = &route.mirror_percentage {
        report
            .check(&at.field("mirrorPercentage").field("value"), syntax::percent(percentage.value));
    }
}

fn check_cors(cors: &CorsPolicy, at: &At, report: &mut Report) {
    for (at, origin) in at.each("allowOrigins", &cors.allow_origins) {
        check_string(origin, false, &at, report);
        match origin {
            StringMatch::Exact(text) if !text.is_empty() => {}
            StringMatch::Exact(_) | StringMatch::Present => {
                report.error(&at, "one of exact, prefix and regex is required");
            }
            _ => {}
        }
    }
    if !cors.allow_origin.is_empty() {
        report.deprecated(&at.field("allowOrigin"), "allowOrigins");
    }
    for (at, method) in at.each("allowMethods", &cors.allow_methods) {
        if method != "*" {
            report.check(&at, syntax::method(method));
        }
    }
    let headers = [("allowHeaders", &cors.allow_headers), ("exposeHeaders", &cors.expose_headers)];
    for (name, list) in headers {
        for (at, header) in at.each(name, list) {
            report.check(&at, syntax::header_name(header));
        }
    }
    if let Some(age) = cors.max_age
        && (age.subsec_nanos() != 0 || age == Duration::ZERO)
    {
        report.error(&at.field("maxAge"), format!("{age} is not a number of whole seconds"));
    }
}
