//! Header changes of routes and destinations.

use std::collections::BTreeMap;

use amime_api::networking::Headers;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};

use super::format::{header_value, is_sendable};

/// Header changes in Envoy's terms.
#[derive(Default)]
pub(crate) struct HeaderChanges {
    pub(crate) request_add: Vec<HeaderValueOption>,
    pub(crate) request_remove: Vec<String>,
    pub(crate) response_add: Vec<HeaderValueOption>,
    pub(crate) response_remove: Vec<String>,
    /// The host that the request is rewritten to.
    pub(crate) authority: Option<String>,
}

impl HeaderChanges {
    pub(crate) fn new(headers: Option<&Headers>) -> Self {
        let Some(headers) = headers else { return Self::default() };
        let request = headers.request.clone().unwrap_or_default();
        let response = headers.response.clone().unwrap_or_default();
        let both = |set: &BTreeMap<String, String>, add: &BTreeMap<String, String>| {
            let mut options = options(set, HeaderAppendAction::OverwriteIfExistsOrAdd);
            options.extend(self::options(add, HeaderAppendAction::AppendIfExistsOrAdd));
            options
        };
        Self {
            request_add: both(&request.set, &request.add),
            request_remove: removable(&request.remove),
            response_add: both(&response.set, &response.add),
            response_remove: removable(&response.remove),
            authority: authority(&request.set).or_else(|| authority(&request.add)),
        }
    }
}

fn options(
    headers: &BTreeMap<String, String>,
    action: HeaderAppendAction,
) -> Vec<HeaderValueOption> {
    let own = headers.iter().filter(|(key, _)| !is_internal(key));
    own.filter_map(|(key, value)| {
        let value = header_value(value)?;
        Some(HeaderValueOption {
            header: Some(HeaderValue { key: key.clone(), value, ..Default::default() }),
            append_action: action.into(),
            ..Default::default()
        })
    })
    .collect()
}

fn removable(keys: &[String]) -> Vec<String> {
    keys.iter().filter(|key| !is_internal(key)).cloned().collect()
}

/// Headers that Envoy refuses to change as headers, or at all.
fn is_internal(key: &str) -> bool {
    key.is_empty() || !is_sendable(key) || key.starts_with(':') || key.eq_ignore_ascii_case("host")
}

fn authority(headers: &BTreeMap<String, String>) -> Option<String> {
    let is_host =
        |key: &str| key.eq_ignore_ascii_case(":authority") || key.eq_ignore_ascii_case("host");
    let mut hosts = headers.iter().filter(|(key, _)| is_host(key));
    hosts
        .next_back()
        .map(|(_, value)| value.clone())
        .filter(|value| !value.is_empty() && is_sendable(value))
}
