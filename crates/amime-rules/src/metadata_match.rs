//! Conditions on dynamic metadata: which value, and what it has to be.
//!
//! What is not there is no value, which no condition but an inverted one, or
//! one that asks for absence, holds for.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-v3/type/matcher/v3/metadata.proto>

use amime_telemetry::DynamicMetadata;
use envoy_types::pb::envoy::r#type::matcher::v3 as pb;
use envoy_types::pb::google::protobuf::value::Kind;
use pb::metadata_matcher::path_segment::Segment;

use super::faults::Faults;
use super::matcher::StringMatcher;

/// A compiled `MetadataMatcher`.
#[derive(Debug)]
pub struct MetadataCondition {
    /// Namespace and keys.
    path: Box<[Box<str>]>,
    test: ValueTest,
    invert: bool,
}

/// A compiled `ValueMatcher`.
#[derive(Debug)]
enum ValueTest {
    Null,
    Number(f64),
    /// From the first up to the second.
    Range(f64, f64),
    Text(StringMatcher),
    Bool(bool),
    Present(bool),
    /// A list that has such a value.
    Among(Box<ValueTest>),
    Any(Vec<ValueTest>),
}

impl MetadataCondition {
    pub fn compile(value: &pb::MetadataMatcher, faults: &mut Faults) -> Option<Self> {
        if value.path.is_empty() {
            faults.reject("path", "missing");
            return None;
        }
        let mut path: Vec<Box<str>> = vec![value.filter.as_str().into()];
        for segment in &value.path {
            let Some(Segment::Key(key)) = &segment.segment else {
                faults.reject("path", "a segment has no key");
                return None;
            };
            path.push(key.as_str().into());
        }
        let test = value.value.as_ref();
        let test = faults.within("value", |faults| ValueTest::compile(test, faults))?;
        Some(Self { path: path.into(), test, invert: value.invert })
    }

    pub fn holds(&self, metadata: Option<&DynamicMetadata>) -> bool {
        let value = metadata.and_then(|metadata| metadata.kind(&self.path));
        self.test.holds(value) != self.invert
    }
}

impl ValueTest {
    fn compile(value: Option<&pb::ValueMatcher>, faults: &mut Faults) -> Option<Self> {
        use pb::double_matcher::MatchPattern as Number;
        use pb::value_matcher::MatchPattern as Pattern;
        let Some(pattern) = value.and_then(|value| value.match_pattern.as_ref()) else {
            faults.reject("match_pattern", "missing");
            return None;
        };
        Some(match pattern {
            Pattern::NullMatch(_) => Self::Null,
            Pattern::DoubleMatch(number) => match number.match_pattern.as_ref() {
                Some(Number::Range(range)) => Self::Range(range.start, range.end),
                Some(Number::Exact(number)) => Self::Number(*number),
                None => {
                    faults.reject("double_match", "neither a number nor a range");
                    return None;
                }
            },
            Pattern::StringMatch(text) => Self::Text(StringMatcher::compile(text, faults)?),
            Pattern::BoolMatch(wanted) => Self::Bool(*wanted),
            Pattern::PresentMatch(wanted) => Self::Present(*wanted),
            Pattern::ListMatch(list) => {
                let pb::list_matcher::MatchPattern::OneOf(one) = list.match_pattern.as_ref()?;
                Self::Among(Box::new(Self::compile(Some(one), faults)?))
            }
            Pattern::OrMatch(any) => {
                let tests = any.value_matchers.iter().map(|one| Self::compile(Some(one), faults));
                Self::Any(tests.collect::<Option<_>>()?)
            }
        })
    }

    fn holds(&self, value: Option<&Kind>) -> bool {
        match (self, value) {
            (Self::Present(wanted), value) => value.is_some() == *wanted,
            (Self::Any(tests), value) => tests.iter().any(|test| test.holds(value)),
            (Self::Null, Some(Kind::NullValue(_))) => true,
            (Self::Number(wanted), Some(Kind::NumberValue(number))) => number == wanted,
            (Self::Range(start, end), Some(Kind::NumberValue(number))) => {
                (*start..*end).contains(number)
            }
            (Self::Text(text), Some(Kind::StringValue(value))) => text.matches(value.as_bytes()),
            (Self::Bool(wanted), Some(Kind::BoolValue(value))) => value == wanted,
            (Self::Among(test), Some(Kind::ListValue(list))) => {
                list.values.iter().any(|value| test.holds(value.kind.as_ref()))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(matcher: &str, want: bool) {
        let matcher: pb::MetadataMatcher = amime_xds::json::from_yaml(matcher).expect("a matcher");
        let mut faults = Faults::default();
        let condition = MetadataCondition::compile(&matcher, &mut faults).expect("compiles");
        let fields = "{text: abc, deep: {number: 2.5, yes: true}, list: [a, 1], nothing: null}";
        let fields = amime_xds::json::from_yaml(fields).expect("a struct");
        let mut metadata = DynamicMetadata::default();
        metadata.put("ns", &fields);
        assert_eq!(condition.holds(Some(&metadata)), want, "{matcher:?}");
    }

    #[test]
    fn values_are_found_at_their_path() {
        check("{filter: ns, path: [{key: text}], value: {string_match: {prefix: ab}}}", true);
        check("{filter: other, path: [{key: text}], value: {string_match: {prefix: ab}}}", false);
        let deep = "filter: ns, path: [{key: deep}, {key: number}]";
        check(&format!("{{{deep}, value: {{double_match: {{exact: 2.5}}}}}}"), true);
        check(
            &format!("{{{deep}, value: {{double_match: {{range: {{start: 2, end: 2.5}}}}}}}}"),
            false,
        );
        check("{filter: ns, path: [{key: deep}, {key: yes}], value: {bool_match: true}}", true);
        check("{filter: ns, path: [{key: nothing}], value: {null_match: {}}}", true);
    }

    #[test]
    fn what_is_absent_holds_only_where_absence_is_asked_for() {
        let absent = "filter: ns, path: [{key: text}, {key: none}]";
        check(&format!("{{{absent}, value: {{string_match: {{exact: ''}}}}}}"), false);
        check(&format!("{{{absent}, value: {{present_match: false}}}}"), true);
        check(&format!("{{{absent}, value: {{string_match: {{exact: x}}}}, invert: true}}"), true);
        check(&format!("{{{absent}, value: {{null_match: {{}}}}}}"), false);
    }

    #[test]
    fn lists_and_alternatives_hold_by_one_of_theirs() {
        let list = "filter: ns, path: [{key: list}]";
        check(
            &format!(
                "{{{list}, value: {{list_match: {{one_of: {{string_match: {{exact: a}}}}}}}}}}"
            ),
            true,
        );
        check(
            &format!("{{{list}, value: {{list_match: {{one_of: {{bool_match: true}}}}}}}}"),
            false,
        );
        let either =
            "{or_match: {value_matchers: [{bool_match: true}, {string_match: {exact: abc}}]}}";
        check(&format!("{{filter: ns, path: [{{key: text}}], value: {either}}}"), true);
    }
}
