//! String, header and query matchers of the Envoy API.

use std::borrow::Cow;

use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use http::HeaderName;
use regex::bytes::{Regex, RegexBuilder};

use super::faults::Faults;
use crate::head::RequestHead;

/// Compiles an RE2 expression.
///
/// RE2's classes such as `\d` are ASCII, so Unicode mode is only a fallback
/// for expressions that name Unicode classes. `whole` anchors at both ends.
pub fn regex(pattern: &str, whole: bool, faults: &mut Faults) -> Option<Regex> {
    let text = if whole { format!("^(?:{pattern})$") } else { pattern.to_owned() };
    let build = |unicode| RegexBuilder::new(&text).unicode(unicode).build();
    match build(false).or_else(|_| build(true)) {
        Ok(regex) => Some(regex),
        Err(error) => {
            faults.reject("regex", format!("invalid expression `{pattern}`: {error}"));
            None
        }
    }
}

/// A compiled `StringMatcher`; `ignore_case` patterns are stored in lower case.
#[derive(Debug)]
pub enum StringMatcher {
    Exact(Box<[u8]>, bool),
    Prefix(Box<[u8]>, bool),
    Suffix(Box<[u8]>, bool),
    Contains(Box<[u8]>, bool),
    Regex(Regex),
}

impl StringMatcher {
    pub fn compile(value: &matcher::StringMatcher, faults: &mut Faults) -> Option<Self> {
        use matcher::string_matcher::MatchPattern;
        let fold = value.ignore_case;
        let text = |text: &str| -> Box<[u8]> {
            if fold { text.to_ascii_lowercase().into_bytes() } else { text.as_bytes().to_vec() }
                .into()
        };
        Some(match value.match_pattern.as_ref() {
            Some(MatchPattern::Exact(value)) => Self::Exact(text(value), fold),
            Some(MatchPattern::Prefix(value)) => Self::Prefix(text(value), fold),
            Some(MatchPattern::Suffix(value)) => Self::Suffix(text(value), fold),
            Some(MatchPattern::Contains(value)) => Self::Contains(text(value), fold),
            Some(MatchPattern::SafeRegex(value)) => Self::Regex(regex(&value.regex, true, faults)?),
            Some(MatchPattern::Custom(_)) | None => {
                faults.reject("string_match", "pattern not supported");
                return None;
            }
        })
    }

    pub fn matches(&self, value: &[u8]) -> bool {
        let same = |a: &[u8], b: &[u8], fold: bool| {
            if fold { a.eq_ignore_ascii_case(b) } else { a == b }
        };
        match self {
            Self::Exact(want, fold) => same(value, want, *fold),
            Self::Prefix(want, fold) => {
                value.len() >= want.len() && same(&value[..want.len()], want, *fold)
            }
            Self::Suffix(want, fold) => {
                value.len() >= want.len() && same(&value[value.len() - want.len()..], want, *fold)
            }
            Self::Contains(want, fold) => {
                want.is_empty() || value.windows(want.len()).any(|part| same(part, want, *fold))
            }
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

/// A header or one of the pseudo headers that matchers and formats may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderSource {
    Method,
    Path,
    Authority,
    Scheme,
    Header(HeaderName),
}

impl HeaderSource {
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            other => Self::Header(HeaderName::from_bytes(other.as_bytes()).ok()?),
        })
    }

    /// The value in `head`; several headers of one name are joined by commas.
    pub fn value<'a>(&self, head: &'a RequestHead) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Method => Some(Cow::Borrowed(head.method.as_str().as_bytes())),
            Self::Path if head.method == http::Method::CONNECT => None,
            Self::Path => Some(Cow::Borrowed(head.path.as_str().as_bytes())),
            Self::Authority => head.authority_value().map(|value| Cow::Borrowed(value.as_bytes())),
            Self::Scheme => Some(Cow::Borrowed(head.scheme.as_str().as_bytes())),
            Self::Header(name) => joined(&head.headers, name),
        }
    }
}

/// All values of `name`, joined by commas when there are several.
pub fn joined<'a>(headers: &'a http::HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let Some(second) = values.next() else {
        return Some(Cow::Borrowed(first.as_bytes()));
    };
    let mut all = first.as_bytes().to_vec();
    for value in std::iter::once(second).chain(values) {
        all.push(b',');
        all.extend_from_slice(value.as_bytes());
    }
    Some(Cow::Owned(all))
}

#[derive(Debug)]
enum HeaderTest {
    Present(bool),
    Range(i64, i64),
    Text(StringMatcher),
}

/// A compiled `HeaderMatcher`.
#[derive(Debug)]
pub struct HeaderMatcher {
    source: HeaderSource,
    value: ValueMatcher,
}

/// What a `HeaderMatcher` says of the value.
#[derive(Debug)]
pub struct ValueMatcher {
    test: HeaderTest,
    invert: bool,
    missing_is_empty: bool,
}

impl HeaderMatcher {
    pub fn compile(value: &route::HeaderMatcher, faults: &mut Faults) -> Option<Self> {
        let Some(source) = HeaderSource::parse(&value.name) else {
            faults.reject("name", format!("`{}` is not a header name", value.name));
            return None;
        };
        Some(Self { source, value: ValueMatcher::compile(value, faults)? })
    }

    pub fn matches(&self, head: &RequestHead) -> bool {
        match &self.source {
            HeaderSource::Header(name) => self.matches_any(&head.headers, name),
            source => self.value.matches(source.value(head).as_deref()),
        }
    }

    /// As `matches`, for response headers.
    pub fn matches_headers(&self, headers: &http::HeaderMap) -> bool {
        match &self.source {
            HeaderSource::Header(name) => self.matches_any(headers, name),
            _ => false,
        }
    }

    /// Of several headers of one name, one that passes is enough.
    fn matches_any(&self, headers: &http::HeaderMap, name: &HeaderName) -> bool {
        let mut values = headers.get_all(name).iter();
        let Some(first) = values.next() else { return self.value.matches(None) };
        let hit = |value: &http::HeaderValue| self.value.test(value.as_bytes());
        (hit(first) || values.any(hit)) != self.value.invert
    }
}

impl ValueMatcher {
    pub fn compile(value: &route::HeaderMatcher, faults: &mut Faults) -> Option<Self> {
        use route::header_matcher::HeaderMatchSpecifier as Test;
        let bytes = |text: &str| -> Box<[u8]> { text.as_bytes().into() };
        let test = match value.header_match_specifier.as_ref() {
            None => HeaderTest::Present(true),
            Some(Test::PresentMatch(present)) => HeaderTest::Present(*present),
            Some(Test::RangeMatch(range)) => HeaderTest::Range(range.start, range.end),
            Some(Test::ExactMatch(text)) => {
                HeaderTest::Text(StringMatcher::Exact(bytes(text), false))
            }
            Some(Test::PrefixMatch(text)) => {
                HeaderTest::Text(StringMatcher::Prefix(bytes(text), false))
            }
            Some(Test::SuffixMatch(text)) => {
                HeaderTest::Text(StringMatcher::Suffix(bytes(text), false))
            }
            Some(Test::ContainsMatch(text)) => {
                HeaderTest::Text(StringMatcher::Contains(bytes(text), false))
            }
            Some(Test::SafeRegexMatch(value)) => {
                HeaderTest::Text(StringMatcher::Regex(regex(&value.regex, true, faults)?))
            }
            Some(Test::StringMatch(value)) => {
                HeaderTest::Text(StringMatcher::compile(value, faults)?)
            }
        };
        Some(Self {
            test,
            invert: value.invert_match,
            missing_is_empty: value.treat_missing_header_as_empty,
        })
    }

    /// True if the value, or there being none, is as wanted.
    pub fn matches(&self, value: Option<&[u8]>) -> bool {
        match (value, &self.test) {
            (Some(value), _) => self.test(value) != self.invert,
            (None, HeaderTest::Present(present)) => {
                (self.missing_is_empty == *present) != self.invert
            }
            (None, _) if self.missing_is_empty => self.test(b"") != self.invert,
            // An absent header matches nothing, inverted or not.
            (None, _) => false,
        }
    }

    fn test(&self, value: &[u8]) -> bool {
        match &self.test {
            HeaderTest::Present(present) => *present,
            HeaderTest::Range(start, end) => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .is_some_and(|number| (*start..*end).contains(&number)),
            HeaderTest::Text(text) => text.matches(value),
        }
    }
}

/// Compiles a list of header matchers under `field`.
pub fn header_matchers(
    list: &[route::HeaderMatcher],
    field: &str,
    faults: &mut Faults,
) -> Vec<HeaderMatcher> {
    let compile = |(index, value)| {
        faults.within(format!("{field}[{index}]"), |faults| HeaderMatcher::compile(value, faults))
    };
    list.iter().enumerate().filter_map(compile).collect()
}

/// A compiled `QueryParameterMatcher`.
#[derive(Debug)]
pub struct QueryMatcher {
    name: String,
    test: Option<StringMatcher>,
    present: bool,
}

impl QueryMatcher {
    pub fn compile(value: &route::QueryParameterMatcher, faults: &mut Faults) -> Option<Self> {
        use route::query_parameter_matcher::QueryParameterMatchSpecifier as Test;
        let (test, present) = match value.query_parameter_match_specifier.as_ref() {
            Some(Test::StringMatch(text)) => (Some(StringMatcher::compile(text, faults)?), true),
            Some(Test::PresentMatch(present)) => (None, *present),
            None => (None, true),
        };
        Some(Self { name: value.name.clone(), test, present })
    }

    pub fn matches(&self, query: &str) -> bool {
        let value = query_value(query, &self.name);
        match (&self.test, value) {
            (None, value) => value.is_some() == self.present,
            (Some(test), Some(value)) => test.matches(value.as_bytes()),
            (Some(_), None) => false,
        }
    }
}

/// The first value of `name` in a query string, undecoded.
pub fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}
