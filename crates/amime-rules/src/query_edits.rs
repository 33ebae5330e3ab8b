//! Edits of a request's query parameters.
//!
//! Invariant: a parameter that no edit names goes on byte for byte, and what
//! an edit puts in stays one parameter, whatever a client made it of.

use envoy_types::pb::envoy::config::core::v3::{
    KeyValueMutation, key_value_append::KeyValueAppendAction as Action,
};
use envoy_types::pb::google::protobuf::value::Kind;
use http::HeaderMap;
use http::uri::PathAndQuery;

use super::faults::Faults;
use super::format::{Format, FormatInput};

/// Edits applied in order.
#[derive(Debug, Default)]
pub struct QueryEdits(Vec<Edit>);

#[derive(Debug)]
enum Edit {
    Remove(String),
    Put { key: String, value: Format, action: Action },
}

/// A parameter as it came, with its name as it is meant.
struct Parameter<'a> {
    name: Vec<u8>,
    text: std::borrow::Cow<'a, str>,
}

impl QueryEdits {
    pub fn compile(list: &[KeyValueMutation], faults: &mut Faults) -> Self {
        let mut edits = Vec::with_capacity(list.len());
        for (index, value) in list.iter().enumerate() {
            let field = format!("mutations.query_parameter_mutations[{index}]");
            edits.extend(faults.within(field, |faults| Edit::compile(value, faults)));
        }
        Self(edits)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The path with other parameters; `None` if it cannot be one.
    pub fn apply(
        &self,
        path: &PathAndQuery,
        headers: &HeaderMap,
        input: &FormatInput<'_>,
    ) -> Option<PathAndQuery> {
        let query = path.query().unwrap_or_default();
        let parts = query.split('&').filter(|part| !part.is_empty());
        let mut parameters: Vec<Parameter<'_>> = parts.map(Parameter::of).collect();
        for edit in &self.0 {
            edit.apply(&mut parameters, headers, input);
        }
        // Like Envoy, in the order of names; those of one name stay in theirs.
        parameters.sort_by(|a, b| a.name.cmp(&b.name));
        let mut text = path.path().to_owned();
        for (index, parameter) in parameters.iter().enumerate() {
            text.push(if index == 0 { '?' } else { '&' });
            text.push_str(&parameter.text);
            if !parameter.text.contains('=') {
                text.push('=');
            }
        }
        PathAndQuery::from_maybe_shared(text).ok()
    }
}

impl Edit {
    fn compile(value: &KeyValueMutation, faults: &mut Faults) -> Option<Self> {
        let Some(append) = &value.append else {
            if value.remove.is_empty() {
                faults.reject("", "neither `append` nor `remove`");
                return None;
            }
            return Some(Self::Remove(value.remove.clone()));
        };
        faults.reject_if(!value.remove.is_empty(), "remove");
        let record = append.record.as_ref();
        let text = record.and_then(|record| record.value.as_ref()?.kind.as_ref());
        let (Some(record), Some(Kind::StringValue(text))) = (record, text) else {
            faults.reject("append.record", "needs a value that is a string");
            return None;
        };
        let format = Format::parse(text);
        let format = format.map_err(|reason| faults.reject("append.record.value", reason)).ok()?;
        Some(Self::Put { key: record.key.clone(), value: format, action: append.action() })
    }

    fn apply(
        &self,
        parameters: &mut Vec<Parameter<'_>>,
        headers: &HeaderMap,
        input: &FormatInput<'_>,
    ) {
        let (key, value, action) = match self {
            Self::Remove(key) => return parameters.retain(|one| one.name != key.as_bytes()),
            Self::Put { key, value, action } => (key, value, action),
        };
        let there = parameters.iter().any(|one| one.name == key.as_bytes());
        match action {
            Action::AddIfAbsent if there => return,
            Action::OverwriteIfExists if !there => return,
            Action::OverwriteIfExists | Action::OverwriteIfExistsOrAdd => {
                parameters.retain(|one| one.name != key.as_bytes());
            }
            Action::AddIfAbsent | Action::AppendIfExistsOrAdd => {}
        }
        let mut text = String::new();
        escape(key.as_bytes(), &mut text);
        text.push('=');
        escape(value.render(headers, input).as_bytes(), &mut text);
        parameters.push(Parameter { name: key.as_bytes().to_vec(), text: text.into() });
    }
}

impl<'a> Parameter<'a> {
    fn of(text: &'a str) -> Self {
        let name = text.split_once('=').map_or(text, |(name, _)| name);
        Self { name: unescaped(name.as_bytes()), text: text.into() }
    }
}

/// `text` with `%41` and the like turned into what they stand for.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let escaped = match after {
            [high, low, ..] if *first == b'%' => digit(high).zip(digit(low)),
            _ => None,
        };
        let byte = escaped.and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    out
}

/// Appends `text` with all escaped that would end a parameter or a target.
fn escape(text: &[u8], out: &mut String) {
    for byte in text {
        match byte {
            b'&' | b'#' | b'"' | b'<' | b'>' | b'`' | 0..=b' ' | 0x7f.. => {
                out.push_str(&format!("%{byte:02X}"));
            }
            byte => out.push(char::from(*byte)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::{RequestHead, Scheme};
    use amime_xds::json::from_yaml;
    use envoy_types::pb::envoy::extensions::filters::http::header_mutation::v3::Mutations;

    #[track_caller]
    fn check(edits: &str, path: &str, want: &str) {
        let yaml = format!("{{query_parameter_mutations: [{edits}]}}");
        let message: Mutations = from_yaml(&yaml).expect("mutations");
        let mut faults = Faults::default();
        let edits = QueryEdits::compile(&message.query_parameter_mutations, &mut faults);
        assert!(!faults.fatal(), "{:?}", faults.into_list());
        let mut headers = HeaderMap::new();
        headers.insert("x-evil", "a&admin=1 #".parse().expect("a value"));
        let path = PathAndQuery::try_from(path).expect("a path");
        let head = RequestHead {
            method: http::Method::GET,
            path: path.clone(),
            headers,
            version: http::Version::HTTP_11,
            scheme: Scheme::Http,
        };
        let input = FormatInput { request: Some(&head), ..FormatInput::default() };
        let edited = edits.apply(&path, &head.headers, &input);
        assert_eq!(edited.expect("a path").as_str(), want);
    }

    #[test]
    fn what_no_edit_names_stays_as_it_came() {
        check("{remove: a}", "/p?b=%26x%3d1&a=1&%61=2", "/p?b=%26x%3d1");
    }

    #[test]
    fn what_a_client_says_stays_one_parameter() {
        let put = "{append: {record: {key: k, value: '%REQ(x-evil)%'}}}";
        check(put, "/p", "/p?k=a%26admin=1%20%23");
    }

    #[test]
    fn each_action_does_what_it_says() {
        let put = |action: &str| {
            format!("{{append: {{action: {action}, record: {{key: a, value: x}}}}}}")
        };
        check(&put("APPEND_IF_EXISTS_OR_ADD"), "/?a=1", "/?a=1&a=x");
        check(&put("ADD_IF_ABSENT"), "/?a=1", "/?a=1");
        check(&put("ADD_IF_ABSENT"), "/?b", "/?a=x&b=");
        check(&put("OVERWRITE_IF_EXISTS"), "/?a=1&a=2", "/?a=x");
        check(&put("OVERWRITE_IF_EXISTS"), "/?b=1", "/?b=1");
        check(&put("OVERWRITE_IF_EXISTS_OR_ADD"), "/", "/?a=x");
    }
}
