//! Header conditions of access log filters.

use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, header_matcher::HeaderMatchSpecifier,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use http::HeaderName;
use regex::bytes::{Regex, RegexBuilder};

use super::config::AccessLogError;
use super::format::Subject;

/// Largest compiled size of an expression, bytes.
const MAX_REGEX: usize = 1024 * 1024;

/// A compiled condition on one request header.
#[derive(Debug)]
pub(crate) struct HeaderFilter {
    key: Key,
    test: Test,
    inverted: bool,
    /// A header that is not there counts as an empty one.
    missing_is_empty: bool,
}

#[derive(Debug)]
enum Key {
    Method,
    Path,
    Authority,
    Scheme,
    Name(HeaderName),
}

#[derive(Debug)]
enum Test {
    Present(bool),
    Range(std::ops::Range<i64>),
    Text { pattern: Pattern, ignore_case: bool },
}

/// Texts are in lower case if case is ignored.
#[derive(Debug)]
enum Pattern {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Contains(Box<[u8]>),
    Regex(Regex),
}

impl HeaderFilter {
    pub(super) fn compile(matcher: &HeaderMatcher) -> Result<Self, AccessLogError> {
        let key = match matcher.name.to_ascii_lowercase().as_str() {
            ":method" => Key::Method,
            ":path" => Key::Path,
            ":authority" | "host" => Key::Authority,
            ":scheme" => Key::Scheme,
            name => Key::Name(HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
                AccessLogError::Unsupported { what: format!("header_filter of {name:?}") }
            })?),
        };
        Ok(Self {
            key,
            test: test(matcher)?,
            inverted: matcher.invert_match,
            missing_is_empty: matcher.treat_missing_header_as_empty,
        })
    }

    pub(super) fn holds(&self, subject: &Subject<'_>) -> bool {
        let value = self.value(subject);
        if let Test::Present(wanted) = &self.test {
            return (value.is_some() == *wanted) != self.inverted;
        }
        let value = value.or_else(|| self.missing_is_empty.then(Vec::new));
        // Nothing is known of a header that is not there, not even the
        // opposite.
        value.is_some_and(|value| self.test.holds(&value) != self.inverted)
    }

    /// All values of the header, joined as if they stood in one.
    fn value(&self, subject: &Subject<'_>) -> Option<Vec<u8>> {
        let http = subject.http?;
        match &self.key {
            Key::Method => Some(http.method.into()),
            Key::Path => Some(http.path.into()),
            Key::Authority => Some(http.authority.into()),
            Key::Scheme => Some(http.scheme.into()),
            Key::Name(name) => {
                let mut values = http.request_headers.get_all(name).iter();
                let mut joined = values.next()?.as_bytes().to_vec();
                for value in values {
                    joined.push(b',');
                    joined.extend_from_slice(value.as_bytes());
                }
                Some(joined)
            }
        }
    }
}

impl Test {
    fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Present(wanted) => *wanted,
            Self::Range(range) => {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                number.is_some_and(|number| range.contains(&number))
            }
            Self::Text { pattern, ignore_case: true } => pattern.holds(&value.to_ascii_lowercase()),
            Self::Text { pattern, ignore_case: false } => pattern.holds(value),
        }
    }
}

impl Pattern {
    fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => value == &**text,
            Self::Prefix(text) => value.starts_with(text),
            Self::Suffix(text) => value.ends_with(text),
            Self::Contains(text) => value.windows(text.len()).any(|window| window == &**text),
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

#[allow(deprecated, reason = "Envoy still reads the fields that string_match replaced")]
fn test(matcher: &HeaderMatcher) -> Result<Test, AccessLogError> {
    use HeaderMatchSpecifier as By;
    let plain = |pattern| Ok(Test::Text { pattern, ignore_case: false });
    match matcher.header_match_specifier.as_ref() {
        None => Ok(Test::Present(true)),
        Some(By::PresentMatch(wanted)) => Ok(Test::Present(*wanted)),
        Some(By::RangeMatch(range)) => Ok(Test::Range(range.start..range.end)),
        Some(By::ExactMatch(text)) => plain(Pattern::Exact(bytes(text, false))),
        Some(By::PrefixMatch(text)) => plain(Pattern::Prefix(bytes(text, false))),
        Some(By::SuffixMatch(text)) => plain(Pattern::Suffix(bytes(text, false))),
        Some(By::ContainsMatch(text)) => contains(text, false),
        Some(By::SafeRegexMatch(regex)) => plain(Pattern::Regex(expression(&regex.regex)?)),
        Some(By::StringMatch(text)) => string(text),
    }
}

fn string(matcher: &StringMatcher) -> Result<Test, AccessLogError> {
    let ignore_case = matcher.ignore_case;
    let text = |text: &str| bytes(text, ignore_case);
    let pattern = match matcher.match_pattern.as_ref() {
        Some(MatchPattern::Exact(exact)) => Pattern::Exact(text(exact)),
        Some(MatchPattern::Prefix(prefix)) => Pattern::Prefix(text(prefix)),
        Some(MatchPattern::Suffix(suffix)) => Pattern::Suffix(text(suffix)),
        Some(MatchPattern::Contains(part)) => return contains(part, ignore_case),
        Some(MatchPattern::SafeRegex(regex)) => {
            // Envoy's expressions heed case whatever the matcher says.
            let pattern = Pattern::Regex(expression(&regex.regex)?);
            return Ok(Test::Text { pattern, ignore_case: false });
        }
        Some(MatchPattern::Custom(_)) | None => {
            let what = "header_filter without a built-in string match".into();
            return Err(AccessLogError::Unsupported { what });
        }
    };
    Ok(Test::Text { pattern, ignore_case })
}

fn contains(text: &str, ignore_case: bool) -> Result<Test, AccessLogError> {
    if text.is_empty() {
        return Err(AccessLogError::Missing { field: "header_filter.header.contains" });
    }
    Ok(Test::Text { pattern: Pattern::Contains(bytes(text, ignore_case)), ignore_case })
}

fn bytes(text: &str, ignore_case: bool) -> Box<[u8]> {
    if ignore_case { text.to_ascii_lowercase().into_bytes().into() } else { text.as_bytes().into() }
}

/// The whole value must match.
fn expression(text: &str) -> Result<Regex, AccessLogError> {
    let built = RegexBuilder::new(&format!("^(?:{text})$")).size_limit(MAX_REGEX).build();
    built.map_err(|error| AccessLogError::Unsupported { what: format!("expression: {error}") })
}
