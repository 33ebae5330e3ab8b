//! Rules of an HTTPRoute as rules of a virtual service.

use std::collections::BTreeMap;

use amime_api::Object;
use amime_api::gateway_api::{
    BackendRef, HttpBackendRef, HttpHeader, HttpHeaderFilter, HttpPathModifier,
    HttpRequestMirrorFilter, HttpRequestRedirectFilter, HttpRouteFilter, HttpRouteMatch,
    HttpRouteRetry, HttpRouteRule, HttpRouteSpec, HttpUrlRewriteFilter, HttpValueMatch,
};
use amime_api::meta::StringMap;
use amime_api::networking::{
    DerivePort, Destination, HeaderOperations, Headers, HttpDirectResponse, HttpMatchRequest,
    HttpMirrorPolicy, HttpRedirect, HttpRetry, HttpRewrite, HttpRoute, HttpRouteDestination,
    Percent, PortSelector, RegexRewrite, StringMatch,
};
use amime_core::Duration;

use super::Rule;
use crate::names::service_host;

/// Answer where a rule leads nowhere.
const NO_BACKEND_STATUS: u32 = 500;
/// Status of a redirect that names none.
const REDIRECT_STATUS: u32 = 302;
/// Retries of a policy that names no number.
const RETRY_ATTEMPTS: u32 = 2;
/// What is retried besides the status codes that a policy names.
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";

/// The rules of a route, one for each of their conditions; `None` if one of
/// them asks for something that cannot be had, so that the route as a whole
/// would not do what it says.
pub(super) fn convert(route: &Object<HttpRouteSpec>) -> Option<Vec<Rule>> {
    let mut rules = Vec::new();
    let (namespace, name) = (&route.metadata.namespace, &route.metadata.name);
    for (index, rule) in route.spec.rules.iter().enumerate() {
        let mut converted = action(rule, namespace)?;
        converted.name = match &rule.name {
            Some(name) => name.clone(),
            None => format!("{namespace}.{name}.{index}"),
        };
        let written = format!("HTTPRoute {namespace}/{name} rules[{index}]");
        if rule.matches.is_empty() {
            rules.push((converted, written));
            continue;
        }
        for one in &rule.matches {
            let own = HttpRoute { r#match: vec![condition(one)?], ..converted.clone() };
            rules.push((own, written.clone()));
        }
    }
    Some(rules)
}

fn condition(written: &HttpRouteMatch) -> Option<HttpMatchRequest> {
    let path = written.path.clone().unwrap_or_default();
    let text = path.value.unwrap_or_else(|| "/".to_owned());
    let uri = match path.r#type.as_deref().unwrap_or("PathPrefix") {
        "PathPrefix" if text == "/" => StringMatch::Prefix(text),
        "PathPrefix" => StringMatch::Prefix(text.strip_suffix('/').unwrap_or(&text).to_owned()),
        "Exact" => StringMatch::Exact(text),
        "RegularExpression" => StringMatch::Regex(text),
        _ => return None,
    };
    Some(HttpMatchRequest {
        uri: Some(uri),
        method: written.method.clone().map(StringMatch::Exact),
        headers: values(&written.headers)?,
        query_params: values(&written.query_params)?,
        ..Default::default()
    })
}

fn values(written: &[HttpValueMatch]) -> Option<BTreeMap<String, StringMatch>> {
    let one = |value: &HttpValueMatch| {
        let text = value.value.clone();
        let matched = match value.r#type.as_deref().unwrap_or("Exact") {
            "Exact" => StringMatch::Exact(text),
            "RegularExpression" => StringMatch::Regex(text),
            _ => return None,
        };
        Some((value.name.clone(), matched))
    };
    written.iter().map(one).collect()
}

fn action(rule: &HttpRouteRule, namespace: &str) -> Option<HttpRoute> {
    let mut route = HttpRoute { retries: rule.retry.as_ref().map(retries), ..Default::default() };
    for filter in &rule.filters {
        match filter.r#type.as_str() {
            "RequestRedirect" => route.redirect = filter.request_redirect.as_ref().map(redirect),
            "URLRewrite" => route.rewrite = filter.url_rewrite.as_ref().and_then(rewrite),
            "RequestMirror" => {
                route.mirrors.push(mirror(filter.request_mirror.as_ref()?, namespace)?);
            }
            _ => add_headers(&mut route.headers, filter)?,
        }
    }
    let given = |limit: Option<Duration>| limit.filter(|limit| !limit.is_zero());
    if let Some(timeouts) = &rule.timeouts {
        route.timeout = given(timeouts.request);
        if let Some(limit) = given(timeouts.backend_request) {
            match &mut route.retries {
                Some(retries) => retries.per_try_timeout = Some(limit),
                None => route.timeout = Some(limit),
            }
        }
    }
    route.route = destinations(&rule.backend_refs, namespace)?;
    if route.route.is_empty() && route.redirect.is_none() {
        let status = NO_BACKEND_STATUS;
        route.direct_response = Some(HttpDirectResponse { status, body: None });
    }
    Some(route)
}

fn destinations(backends: &[HttpBackendRef], namespace: &str) -> Option<Vec<HttpRouteDestination>> {
    let used: Vec<&HttpBackendRef> =
        backends.iter().filter(|backend| backend.weight != Some(0)).collect();
    let mut destinations = Vec::new();
    for backend in &used {
        let weight = match used.len() {
            1 => 0,
            _ => i32::try_from(backend.weight.unwrap_or(1)).unwrap_or(i32::MAX),
        };
        let mut headers = None;
        for filter in &backend.filters {
            add_headers(&mut headers, filter)?;
        }
        let destination = destination(&BackendRef::from(*backend), namespace)?;
        destinations.push(HttpRouteDestination { destination, weight, headers });
    }
    Some(destinations)
}

/// The destination; one without a host, which answers with an error, for
/// kinds that nobody here knows.
fn destination(backend: &BackendRef, namespace: &str) -> Option<Destination> {
    let group = backend.group.as_deref().unwrap_or_default();
    let host = match (group, backend.kind.as_deref().unwrap_or("Service")) {
        ("" | "core", "Service") if backend.name.contains('.') => return None,
        ("" | "core", "Service") => {
            service_host(&backend.name, backend.namespace.as_deref().unwrap_or(namespace))
        }
        ("networking.istio.io", "Hostname") if backend.namespace.is_some() => return None,
        ("networking.istio.io", "Hostname") => backend.name.clone(),
        _ => return Some(Destination::default()),
    };
    let port = Some(PortSelector { number: u32::from(backend.port?) });
    Some(Destination { host, port, ..Default::default() })
}

/// Adds a header filter; `None` if it is another one.
fn add_headers(headers: &mut Option<Headers>, filter: &HttpRouteFilter) -> Option<()> {
    match filter.r#type.as_str() {
        "RequestHeaderModifier" => {
            let changes = filter.request_header_modifier.as_ref().map(operations);
            headers.get_or_insert_default().request = changes;
        }
        "ResponseHeaderModifier" => {
            let changes = filter.response_header_modifier.as_ref().map(operations);
            headers.get_or_insert_default().response = changes;
        }
        _ => return None,
    }
    Some(())
}

fn operations(filter: &HttpHeaderFilter) -> HeaderOperations {
    let map = |list: &[HttpHeader]| {
        let mut map = StringMap::new();
        for header in list {
            // Of two with one name the first counts.
            let name = header.name.to_ascii_lowercase();
            map.entry(name).or_insert_with(|| header.value.clone());
        }
        map
    };
    HeaderOperations { set: map(&filter.set), add: map(&filter.add), remove: filter.remove.clone() }
}

fn redirect(filter: &HttpRequestRedirectFilter) -> HttpRedirect {
    let derive = match filter.scheme {
        Some(_) => DerivePort::FromProtocolDefault,
        None => DerivePort::FromRequestPort,
    };
    let path = filter.path.clone().unwrap_or_default();
    HttpRedirect {
        redirect_code: filter.status_code.unwrap_or(REDIRECT_STATUS),
        authority: filter.hostname.clone().unwrap_or_default(),
        scheme: filter.scheme.clone().unwrap_or_default(),
        port: filter.port.map(u32::from),
        derive_port: filter.port.is_none().then_some(derive),
        uri: path.replace_full_path.unwrap_or_default(),
        prefix_rewrite: path.replace_prefix_match.unwrap_or_default(),
    }
}

fn rewrite(filter: &HttpUrlRewriteFilter) -> Option<HttpRewrite> {
    let mut rewrite = HttpRewrite {
        authority: filter.hostname.clone().unwrap_or_default(),
        ..Default::default()
    };
    match filter.path.as_ref() {
        Some(HttpPathModifier { replace_full_path: Some(path), .. }) => {
            rewrite.uri_regex_rewrite =
                Some(RegexRewrite { r#match: "/.*".to_owned(), rewrite: path.clone() });
        }
        Some(HttpPathModifier { replace_prefix_match: Some(prefix), .. }) => {
            // A lone slash takes the prefix away.
            rewrite.uri = match prefix.strip_suffix('/').unwrap_or(prefix) {
                "" => "/".to_owned(),
                prefix => prefix.to_owned(),
            };
        }
        _ => {}
    }
    (rewrite != HttpRewrite::default()).then_some(rewrite)
}

fn mirror(filter: &HttpRequestMirrorFilter, namespace: &str) -> Option<HttpMirrorPolicy> {
    let fraction = filter.fraction.as_ref().map(|fraction| {
        let whole = fraction.denominator.filter(|whole| *whole > 0).unwrap_or(100);
        100.0 * f64::from(fraction.numerator) / f64::from(whole)
    });
    let share = fraction.or(filter.percent.map(f64::from));
    Some(HttpMirrorPolicy {
        destination: destination(&filter.backend_ref, namespace)?,
        percentage: share.map(|value| Percent { value }),
    })
}

fn retries(retry: &HttpRouteRetry) -> HttpRetry {
    let attempts = retry.attempts.unwrap_or(RETRY_ATTEMPTS);
    let codes = retry.codes.iter().map(|code| format!(",{code}"));
    HttpRetry {
        attempts: i32::try_from(attempts).unwrap_or(i32::MAX),
        retry_on: match attempts {
            0 => String::new(),
            _ => std::iter::once(RETRY_ON.to_owned()).chain(codes).collect(),
        },
        backoff: retry.backoff,
        ..Default::default()
    }
}
