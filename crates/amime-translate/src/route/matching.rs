//! Conditions of HTTP rules as Envoy's route matches.

use std::collections::BTreeMap;

use amime_api::networking::{HttpMatchRequest, StringMatch};
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, QueryParameterMatcher, RouteMatch};
use envoy_types::pb::envoy::r#type::matcher::v3::list_matcher::MatchPattern as ListPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::metadata_matcher::PathSegment;
use envoy_types::pb::envoy::r#type::matcher::v3::metadata_matcher::path_segment::Segment;
use envoy_types::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern as ValuePattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    ListMatcher, MetadataMatcher, OrMatcher, StringMatcher, ValueMatcher,
};

use crate::proto::{bool_value, exact, prefix, regex, safe_regex};

/// Metadata namespace of the JWT filter.
const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";
const CLAIM_PREFIX: &str = "@request.auth.claims";

/// The match that takes everything.
pub(crate) fn everything() -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() }
}

/// The match for one condition; without one, everything.
///
/// `by_segment` says that prefixes take whole path segments only.
pub(crate) fn route_match(condition: Option<&HttpMatchRequest>, by_segment: bool) -> RouteMatch {
    let mut out = everything();
    let Some(condition) = condition else { return out };
    add_headers(&mut out, &condition.headers, false);
    add_headers(&mut out, &condition.without_headers, true);
    out.headers.sort_by(|a, b| a.name.cmp(&b.name));
    match &condition.uri {
        Some(StringMatch::Exact(path)) => {
            out.path_specifier = Some(PathSpecifier::Path(path.clone()));
        }
        Some(StringMatch::Prefix(path)) if by_segment && path != "/" => {
            let path = path.strip_suffix('/').unwrap_or(path).to_owned();
            out.path_specifier = Some(PathSpecifier::PathSeparatedPrefix(path));
        }
        Some(StringMatch::Prefix(path)) => {
            out.path_specifier = Some(PathSpecifier::Prefix(path.clone()));
        }
        Some(StringMatch::Regex(pattern)) => {
            out.path_specifier = Some(PathSpecifier::SafeRegex(regex(pattern)));
        }
        Some(StringMatch::Present) | None => {}
    }
    out.case_sensitive = bool_value(!condition.ignore_uri_case);
    for (name, text) in [
        (":method", &condition.method),
        (":authority", &condition.authority),
        (":scheme", &condition.scheme),
    ] {
        out.headers.extend(text.as_ref().map(|text| header_matcher(name, text)));
    }
    for (name, text) in &condition.query_params {
        out.query_parameters.push(query_matcher(name, text));
    }
    out
}

fn add_headers(out: &mut RouteMatch, headers: &BTreeMap<String, StringMatch>, invert: bool) {
    for (name, text) in headers {
        if let Some(mut claim) = claim_matcher(name, text) {
            claim.invert = invert;
            out.dynamic_metadata.push(claim);
            continue;
        }
        let mut matcher = header_matcher(name, text);
        if invert {
            matcher.invert_match = true;
            // "Not this value" holds for a header that is not there.
            matcher.treat_missing_header_as_empty = !is_presence(text);
        }
        out.headers.push(matcher);
    }
}

/// `*` is no pattern, but is used for "has any value".
fn is_presence(text: &StringMatch) -> bool {
    match text {
        StringMatch::Present => true,
        StringMatch::Regex(pattern) => pattern == "*",
        StringMatch::Exact(_) | StringMatch::Prefix(_) => false,
    }
}

/// The comparison; `None` if only presence matters.
pub(crate) fn string_matcher(text: &StringMatch) -> Option<StringMatcher> {
    match text {
        StringMatch::Exact(text) => Some(exact(text)),
        StringMatch::Prefix(text) => Some(prefix(text)),
        StringMatch::Regex(pattern) => Some(safe_regex(pattern)),
        StringMatch::Present => None,
    }
}

fn header_matcher(name: &str, text: &StringMatch) -> HeaderMatcher {
    let specifier = match string_matcher(text).filter(|_| !is_presence(text)) {
        Some(matcher) => HeaderMatchSpecifier::StringMatch(matcher),
        None => HeaderMatchSpecifier::PresentMatch(true),
    };
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..Default::default()
    }
}

fn query_matcher(name: &str, text: &StringMatch) -> QueryParameterMatcher {
    let specifier = match string_matcher(text).filter(|_| !is_presence(text)) {
        Some(matcher) => QueryParameterMatchSpecifier::StringMatch(matcher),
        None => QueryParameterMatchSpecifier::PresentMatch(true),
    };
    QueryParameterMatcher {
        name: name.to_owned(),
        query_parameter_match_specifier: Some(specifier),
    }
}

/// A condition on a token's claim, written as if it were a header.
fn claim_matcher(name: &str, text: &StringMatch) -> Option<MetadataMatcher> {
    let claims = claim_path(name)?;
    let value = |pattern| ValueMatcher { match_pattern: Some(pattern) };
    let text = string_matcher(text)?;
    // A claim is a text, or a list that has to contain it.
    let single = value(ValuePattern::StringMatch(text.clone()));
    let one_of = value(ValuePattern::ListMatch(Box::new(ListMatcher {
        match_pattern: Some(ListPattern::OneOf(Box::new(value(ValuePattern::StringMatch(text))))),
    })));
    let segment = |key: &str| PathSegment { segment: Some(Segment::Key(key.to_owned())) };
    let mut path = vec![segment("payload")];
    path.extend(claims.iter().map(|claim| segment(claim)));
    Some(MetadataMatcher {
        filter: JWT_FILTER.to_owned(),
        path,
        value: Some(value(ValuePattern::OrMatch(OrMatcher {
            value_matchers: vec![one_of, single],
        }))),
        ..Default::default()
    })
}

/// `a`, `b` of `@request.auth.claims.a.b` or `@request.auth.claims[a][b]`.
fn claim_path(name: &str) -> Option<Vec<&str>> {
    let rest = name.strip_prefix(CLAIM_PREFIX)?;
    if let Some(dotted) = rest.strip_prefix('.') {
        let claims: Vec<&str> = dotted.split('.').collect();
        return claims.iter().all(|claim| !claim.is_empty()).then_some(claims);
    }
    let inner = rest.strip_prefix('[')?.strip_suffix(']')?;
    let claims: Vec<&str> = inner.split("][").collect();
    claims.iter().all(|claim| !claim.is_empty()).then_some(claims)
}

/// True if no request escapes the match.
pub(crate) fn is_catch_all(matched: &RouteMatch) -> bool {
    let path = match &matched.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => prefix == "/",
        Some(PathSpecifier::SafeRegex(pattern)) => pattern.regex == ".*",
        _ => false,
    };
    path && matched.headers.is_empty()
        && matched.query_parameters.is_empty()
        && matched.dynamic_metadata.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_written_in_two_ways() {
        assert_eq!(claim_path("@request.auth.claims.a.b"), Some(vec!["a", "b"]));
        assert_eq!(claim_path("@request.auth.claims[a][b.c]"), Some(vec!["a", "b.c"]));
        assert_eq!(claim_path("@request.auth.claims"), None);
        assert_eq!(claim_path("x-header"), None);
    }

    #[test]
    fn conditions_make_a_match_partial() {
        assert!(is_catch_all(&route_match(None, false)));
        assert!(is_catch_all(&route_match(Some(&HttpMatchRequest::default()), false)));
        let header = HttpMatchRequest {
            headers: [("x".to_owned(), StringMatch::Present)].into(),
            ..Default::default()
        };
        assert!(!is_catch_all(&route_match(Some(&header), false)));
    }

    #[test]
    fn absent_headers_satisfy_a_negated_value() {
        let condition = HttpMatchRequest {
            without_headers: [
                ("a".to_owned(), StringMatch::Exact("x".into())),
                ("b".to_owned(), StringMatch::Present),
            ]
            .into(),
            ..Default::default()
        };
        let headers = route_match(Some(&condition), false).headers;
        assert!(headers.iter().all(|header| header.invert_match));
        let missing: Vec<bool> = headers.iter().map(|h| h.treat_missing_header_as_empty).collect();
        assert_eq!(missing, [true, false]);
    }
}
