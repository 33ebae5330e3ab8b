//! Which answers passive checks take for errors, where a cluster says so
//! itself.
//!
//! Owns the predicate over an answer's head; rules about anything else never
//! hold, as in Envoy.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/upstreams/http/v3/http_protocol_options.proto>

use envoy_types::pb::envoy::config::common::matcher::v3 as pb;
use envoy_types::pb::envoy::config::route::v3 as route;
use http::{HeaderMap, StatusCode};

use amime_rules::Faults;
use amime_rules::matcher::{HeaderMatcher, ValueMatcher};

/// A compiled `MatchPredicate` over answers.
#[derive(Debug)]
pub struct ErrorMatcher(Predicate);

#[derive(Debug)]
enum Predicate {
    Constant(bool),
    Any(Vec<Predicate>),
    All(Vec<Predicate>),
    Not(Box<Predicate>),
    /// All of them have to hold.
    Head(Vec<Field>),
}

#[derive(Debug)]
enum Field {
    Status(ValueMatcher),
    Header(HeaderMatcher),
}

/// How deep predicates may be nested, so that none exhausts the stack.
const MAX_DEPTH: usize = 32;

impl ErrorMatcher {
    pub(crate) fn compile(value: Option<&pb::MatchPredicate>, faults: &mut Faults) -> Option<Self> {
        faults.within("outlier_detection.error_matcher", |faults| {
            Predicate::compile(value, 0, faults).map(Self)
        })
    }

    /// The status that passive checks are told in place of `status`: what is
    /// no error is good, whatever its status, and an error below 500 is 500.
    pub fn judged(&self, answer: &http::response::Parts, status: u16) -> u16 {
        match self.0.holds(answer.status, &answer.headers) {
            true if (500..600).contains(&status) => status,
            true => 500,
            false => 200,
        }
    }
}

impl Predicate {
    fn compile(
        value: Option<&pb::MatchPredicate>,
        depth: usize,
        faults: &mut Faults,
    ) -> Option<Self> {
        use pb::match_predicate::Rule;
        if depth > MAX_DEPTH {
            faults.reject("rule", format!("nested more than {MAX_DEPTH} deep"));
            return None;
        }
        let list = |set: &pb::match_predicate::MatchSet, field: &str, faults: &mut Faults| {
            let rules = set.rules.iter().enumerate().map(|(index, rule)| {
                faults.within(format!("{field}.rules[{index}]"), |faults| {
                    Self::compile(Some(rule), depth + 1, faults)
                })
            });
            // All are read, so that all faults are told.
            rules.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>()
        };
        Some(match value.and_then(|value| value.rule.as_ref()) {
            None => {
                faults.reject("rule", "missing");
                return None;
            }
            Some(Rule::OrMatch(set)) => Self::Any(list(set, "or_match", faults)?),
            Some(Rule::AndMatch(set)) => Self::All(list(set, "and_match", faults)?),
            Some(Rule::NotMatch(inner)) => {
                let inner = faults
                    .within("not_match", |faults| Self::compile(Some(inner), depth + 1, faults));
                Self::Not(Box::new(inner?))
            }
            Some(Rule::AnyMatch(_)) => Self::Constant(true),
            Some(Rule::HttpResponseHeadersMatch(value)) => faults
                .within("http_response_headers_match", |faults| {
                    Self::head(&value.headers, faults)
                })?,
            // As in Envoy, passive checks are told before anybody could know.
            Some(_) => Self::Constant(false),
        })
    }

    fn head(headers: &[route::HeaderMatcher], faults: &mut Faults) -> Option<Self> {
        let fields = headers.iter().enumerate().map(|(index, value)| {
            faults.within(format!("headers[{index}]"), |faults| match value.name.as_str() {
                ":status" => ValueMatcher::compile(value, faults).map(Field::Status),
                _ => HeaderMatcher::compile(value, faults).map(Field::Header),
            })
        });
        fields.collect::<Vec<_>>().into_iter().collect::<Option<_>>().map(Self::Head)
    }

    fn holds(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        match self {
            Self::Constant(holds) => *holds,
            Self::Any(rules) => rules.iter().any(|rule| rule.holds(status, headers)),
            Self::All(rules) => rules.iter().all(|rule| rule.holds(status, headers)),
            Self::Not(rule) => !rule.holds(status, headers),
            Self::Head(fields) => fields.iter().all(|field| match field {
                Field::Status(value) => value.matches(Some(status.as_str().as_bytes())),
                Field::Header(header) => header.matches_headers(headers),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What passive checks are told of answers with these statuses.
    #[track_caller]
    fn told(yaml: &str, statuses: &[u16]) -> Vec<u16> {
        let message: pb::MatchPredicate = amime_xds::json::from_yaml(yaml).expect("a predicate");
        let mut faults = Faults::default();
        let matcher = ErrorMatcher::compile(Some(&message), &mut faults);
        let matcher = matcher.expect("a matcher");
        let answer = |status: u16| {
            let answer = http::Response::builder().status(status).header("x-bad", "yes").body(());
            matcher.judged(&answer.expect("an answer").into_parts().0, status)
        };
        statuses.iter().map(|status| answer(*status)).collect()
    }

    const STATUS_429: &str = "{http_response_headers_match: {headers: [{name: ':status', string_match: {exact: '429'}}]}}";

    #[test]
    fn only_what_matches_is_an_error() {
        assert_eq!(told(STATUS_429, &[200, 429, 503]), [200, 500, 200]);
        let both = format!(
            "{{or_match: {{rules: [{STATUS_429}, {{http_response_headers_match: {{headers: [{{name: ':status', range_match: {{start: 503, end: 505}}}}]}}}}]}}}}"
        );
        assert_eq!(told(&both, &[429, 500, 503, 504]), [500, 200, 503, 504]);
    }

    #[test]
    fn rules_combine() {
        let header = "{http_response_headers_match: {headers: [{name: x-bad, string_match: {exact: 'yes'}}]}}";
        let not = format!("{{not_match: {STATUS_429}}}");
        assert_eq!(
            told(&format!("{{and_match: {{rules: [{header}, {not}]}}}}"), &[200, 429]),
            [500, 200]
        );
        assert_eq!(told("{any_match: true}", &[200, 502]), [500, 502]);
    }

    #[test]
    fn what_no_head_can_tell_never_holds() {
        let body = "{http_response_generic_body_match: {patterns: [{string_match: bad}]}}";
        assert_eq!(told(body, &[200, 503]), [200, 200]);
        assert_eq!(told(&format!("{{not_match: {body}}}"), &[200, 503]), [500, 503]);
    }
}
