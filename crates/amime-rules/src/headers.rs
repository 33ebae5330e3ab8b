//! Header additions and removals, compiled to a flat list of steps.
//!
//! The additions of route, virtual host and route configuration are merged at
//! configuration time in the order in which Envoy runs them, so that a
//! request walks one list, usually an empty one.

use std::sync::Arc;

use envoy_types::pb::envoy::config::common::mutation_rules::v3::{HeaderMutation, header_mutation};
use envoy_types::pb::envoy::config::core::v3::{
    HeaderValueOption, header_value_option::HeaderAppendAction,
};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::faults::Faults;
use super::format::{Format, FormatInput};
use super::matcher::StringMatcher;

/// One edit of a header map.
#[derive(Clone, Debug)]
enum Step {
    Remove(HeaderName),
    RemoveMatching(Arc<StringMatcher>),
    Put { name: HeaderName, value: Format, action: HeaderAppendAction, keep_empty: bool },
}

/// Edits applied in order.
#[derive(Clone, Debug, Default)]
pub struct HeaderEdits(Vec<Step>);

impl HeaderEdits {
    /// Removals come before additions, as in Envoy.
    pub fn compile(
        add: &[HeaderValueOption],
        remove: &[String],
        fields: [&str; 2],
        faults: &mut Faults,
    ) -> Self {
        let mut steps = Vec::new();
        for name in remove {
            match header_name(name) {
                Some(name) => steps.push(Step::Remove(name)),
                None => faults
                    .reject(fields[1], format!("`{name}` is not a header that can be removed")),
            }
        }
        for (index, option) in add.iter().enumerate() {
            faults.within(format!("{}[{index}]", fields[0]), |faults| {
                steps.extend(put(option, faults));
            });
        }
        Self(steps)
    }

    /// Edits in the order of a list that mixes them.
    pub fn mutations(list: &[HeaderMutation], field: &str, faults: &mut Faults) -> Self {
        let mut steps = Vec::with_capacity(list.len());
        for (index, mutation) in list.iter().enumerate() {
            let compile = |faults: &mut Faults| mutated(mutation, faults);
            steps.extend(faults.within(format!("{field}[{index}]"), compile));
        }
        Self(steps)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends the steps of `next`.
    pub fn then(&mut self, next: &Self) {
        self.0.extend(next.0.iter().cloned());
    }

    /// Runs the steps on `headers`, which `input` need not include.
    pub fn apply(&self, headers: &mut HeaderMap, input: &FormatInput<'_>) {
        for step in &self.0 {
            match step {
                Step::Remove(name) => {
                    headers.remove(name);
                }
                Step::RemoveMatching(matcher) => {
                    let hit = |name: &&HeaderName| matcher.matches(name.as_str().as_bytes());
                    let names: Vec<HeaderName> = headers.keys().filter(hit).cloned().collect();
                    for name in names {
                        headers.remove(name);
                    }
                }
                Step::Put { name, value, action, keep_empty } => {
                    let value = value.render(headers, input);
                    if *keep_empty || !value.is_empty() {
                        put_value(headers, name, value, *action);
                    }
                }
            }
        }
    }
}

fn put_value(
    headers: &mut HeaderMap,
    name: &HeaderName,
    value: HeaderValue,
    action: HeaderAppendAction,
) {
    // Envoy keeps one authority: a second `host` would be a smuggling risk.
    let action = if *name == header::HOST && action == HeaderAppendAction::AppendIfExistsOrAdd {
        HeaderAppendAction::OverwriteIfExistsOrAdd
    } else {
        action
    };
    match action {
        HeaderAppendAction::AppendIfExistsOrAdd => {
            headers.append(name.clone(), value);
        }
        HeaderAppendAction::AddIfAbsent => {
            headers.entry(name.clone()).or_insert(value);
        }
        HeaderAppendAction::OverwriteIfExistsOrAdd => {
            headers.insert(name.clone(), value);
        }
        HeaderAppendAction::OverwriteIfExists => {
            if headers.contains_key(name) {
                headers.insert(name.clone(), value);
            }
        }
    }
}

fn mutated(value: &HeaderMutation, faults: &mut Faults) -> Option<Step> {
    match value.action.as_ref() {
        Some(header_mutation::Action::Append(option)) => put(option, faults),
        Some(header_mutation::Action::Remove(name)) => {
            let found = header_name(name);
            if found.is_none() {
                faults.reject("remove", format!("`{name}` is not a header"));
            }
            found.map(Step::Remove)
        }
        Some(header_mutation::Action::RemoveOnMatch(value)) => {
            let matcher = StringMatcher::compile(value.key_matcher.as_ref()?, faults)?;
            Some(Step::RemoveMatching(Arc::new(matcher)))
        }
        None => {
            faults.reject("action", "missing");
            None
        }
    }
}

fn header_name(name: &str) -> Option<HeaderName> {
    let name = if name.eq_ignore_ascii_case(":authority") { "host" } else { name };
    HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).ok()
}

fn put(option: &HeaderValueOption, faults: &mut Faults) -> Option<Step> {
    let Some(header) = option.header.as_ref() else {
        faults.reject("header", "missing");
        return None;
    };
    let Some(name) = header_name(&header.key) else {
        faults.reject("header.key", format!("`{}` cannot be set", header.key));
        return None;
    };
    let text = if header.value.is_empty() {
        String::from_utf8_lossy(&header.raw_value).into_owned()
    } else {
        header.value.clone()
    };
    let value = match Format::parse(&text) {
        Ok(value) => value,
        Err(reason) => {
            faults.reject("header.value", reason);
            return None;
        }
    };
    // The older `append` wins over the action when it is set.
    let action = match option.append.as_ref() {
        Some(append) if append.value => HeaderAppendAction::AppendIfExistsOrAdd,
        Some(_) => HeaderAppendAction::OverwriteIfExistsOrAdd,
        None => option.append_action(),
    };
    Some(Step::Put { name, value, action, keep_empty: option.keep_empty_value })
}
