//! Which route of a virtual host a request takes.

use amime_telemetry::DynamicMetadata;
use envoy_types::pb::envoy::config::route::v3 as pb;
use regex::bytes::Regex;

use super::faults::Faults;
use super::matcher::{HeaderMatcher, QueryMatcher, StringMatcher, header_matchers, regex};
use super::metadata_match::MetadataCondition;
use super::values::{Fraction, bool_or};
use crate::head::RequestHead;

/// The path part of a route match. Patterns that ignore case are stored in
/// lower case.
#[derive(Debug)]
pub enum PathMatch {
    Prefix(String, CaseSensitive),
    Exact(String, CaseSensitive),
    /// Prefix that ends at a path segment.
    Segments(String, CaseSensitive),
    Regex(Regex),
    Connect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaseSensitive(bool);

impl CaseSensitive {
    fn same(self, a: &str, b: &str) -> bool {
        if self.0 { a == b } else { a.eq_ignore_ascii_case(b) }
    }

    fn starts(self, text: &str, prefix: &str) -> bool {
        text.as_bytes().get(..prefix.len()).is_some_and(|start| {
            if self.0 {
                start == prefix.as_bytes()
            } else {
                start.eq_ignore_ascii_case(prefix.as_bytes())
            }
        })
    }
}

impl PathMatch {
    /// How much of the path a prefix rewrite replaces; `None` if the whole.
    pub fn matched_len(&self) -> Option<usize> {
        match self {
            Self::Prefix(prefix, _) | Self::Segments(prefix, _) => Some(prefix.len()),
            Self::Exact(..) | Self::Regex(_) | Self::Connect => None,
        }
    }

    fn matches(&self, head: &RequestHead) -> bool {
        let path = head.path.path();
        // A request to connect has no path that others could match.
        if (head.method == http::Method::CONNECT) != matches!(self, Self::Connect) {
            return false;
        }
        match self {
            Self::Prefix(prefix, case) => case.starts(head.path.as_str(), prefix),
            Self::Exact(want, case) => case.same(path, want),
            Self::Segments(prefix, case) => {
                case.starts(path, prefix)
                    && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
            }
            Self::Regex(regex) => regex.is_match(path.as_bytes()),
            Self::Connect => true,
        }
    }
}

/// What routes are matched against.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub head: &'a RequestHead,
    /// The client has shown a certificate that is valid.
    pub certificate: bool,
    /// What filters have noted, where the route is chosen anew.
    pub metadata: Option<&'a DynamicMetadata>,
}

/// A compiled `RouteMatch`.
#[derive(Debug)]
pub struct RouteMatch {
    pub path: PathMatch,
    headers: Vec<HeaderMatcher>,
    query: Vec<QueryMatcher>,
    cookies: Vec<CookieMatch>,
    fraction: Option<Fraction>,
    grpc_only: bool,
    /// Whether the client must have shown a certificate, or must not have.
    certificate: Option<bool>,
    metadata: Vec<MetadataCondition>,
}

#[derive(Debug)]
struct CookieMatch {
    name: String,
    value: StringMatcher,
    invert: bool,
}

impl RouteMatch {
    pub fn compile(value: &pb::RouteMatch, faults: &mut Faults) -> Option<Self> {
        let path = path_match(value, faults);
        faults.reject_if(!value.filter_state.is_empty(), "filter_state");
        let query = |(index, value)| {
            let field = format!("query_parameters[{index}]");
            faults.within(field, |faults| QueryMatcher::compile(value, faults))
        };
        let query = value.query_parameters.iter().enumerate().filter_map(query).collect();
        let metadata = |(index, value)| {
            let field = format!("dynamic_metadata[{index}]");
            faults.within(field, |faults| MetadataCondition::compile(value, faults))
        };
        let metadata = value.dynamic_metadata.iter().enumerate().filter_map(metadata).collect();
        Some(Self {
            path: path?,
            headers: header_matchers(&value.headers, "headers", faults),
            query,
            cookies: value
                .cookies
                .iter()
                .filter_map(|cookie| cookie_match(cookie, faults))
                .collect(),
            fraction: value.runtime_fraction.as_ref().map(Fraction::from_runtime),
            grpc_only: value.grpc.is_some(),
            certificate: value.tls_context.as_ref().and_then(|tls| {
                tls.presented.as_ref().or(tls.validated.as_ref()).map(|wanted| wanted.value)
            }),
            metadata,
        })
    }

    pub fn matches(&self, asked: Asked<'_>) -> bool {
        let head = asked.head;
        // The path first: it tells most routes apart and costs least.
        self.path.matches(head)
            && self.headers.iter().all(|header| header.matches(head))
            && self.query.iter().all(|query| query.matches(head.path.query().unwrap_or_default()))
            && self.cookies.iter().all(|cookie| cookie.matches(head))
            && (!self.grpc_only || head.is_grpc())
            && self.certificate.is_none_or(|wanted| wanted == asked.certificate)
            && self.metadata.iter().all(|condition| condition.holds(asked.metadata))
            && self.fraction.is_none_or(Fraction::draw)
    }
}

fn path_match(value: &pb::RouteMatch, faults: &mut Faults) -> Option<PathMatch> {
    use pb::route_match::PathSpecifier;
    let case = CaseSensitive(bool_or(value.case_sensitive.as_ref(), true));
    match value.path_specifier.as_ref() {
        Some(PathSpecifier::Prefix(prefix)) => Some(PathMatch::Prefix(prefix.clone(), case)),
        Some(PathSpecifier::Path(path)) => Some(PathMatch::Exact(path.clone(), case)),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            Some(PathMatch::Segments(prefix.clone(), case))
        }
        Some(PathSpecifier::SafeRegex(value)) => faults
            .within("safe_regex", |faults| regex(&value.regex, true, faults))
            .map(PathMatch::Regex),
        Some(PathSpecifier::ConnectMatcher(_)) => Some(PathMatch::Connect),
        Some(PathSpecifier::PathMatchPolicy(_)) => {
            faults.reject("path_match_policy", "not supported");
            None
        }
        None => {
            faults.reject("path_specifier", "missing");
            None
        }
    }
}

fn cookie_match(value: &pb::CookieMatcher, faults: &mut Faults) -> Option<CookieMatch> {
    let test = value.string_match.as_ref()?;
    Some(CookieMatch {
        name: value.name.clone(),
        value: StringMatcher::compile(test, faults)?,
        invert: value.invert_match,
    })
}

impl CookieMatch {
    fn matches(&self, head: &RequestHead) -> bool {
        cookie(head, &self.name)
            .is_some_and(|value| self.value.matches(value.as_bytes()) != self.invert)
    }
}

/// The value of one cookie.
pub fn cookie<'a>(head: &'a RequestHead, name: &str) -> Option<&'a str> {
    cookie_of(&head.headers, name)
}

pub fn cookie_of<'a>(headers: &'a http::HeaderMap, name: &str) -> Option<&'a str> {
    headers.get_all(http::header::COOKIE).iter().find_map(|header| {
        header.to_str().ok()?.split(';').find_map(|pair| {
            let (key, value) = pair.trim().split_once('=')?;
            (key == name).then(|| value.trim_matches('"'))
        })
    })
}
