//! What of a request goes into its hash.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::route_action as pb;
use regex::bytes::Regex;

use super::faults::Faults;
use super::matcher::HeaderSource;
use super::redirect::substitution;
use super::values;

/// Part of a consistent hash.
#[derive(Debug)]
pub struct HashPolicy {
    pub source: HashSource,
    /// Nothing more is looked at once there is a hash.
    pub terminal: bool,
}

#[derive(Debug)]
pub enum HashSource {
    /// All values of a header, each rewritten first if asked for.
    Header(HeaderSource, Option<(Regex, String)>),
    /// A cookie, made and set when absent and `ttl` is given.
    Cookie {
        name: String,
        ttl: Option<Duration>,
        /// The part of `Set-Cookie` after the value.
        attributes: String,
    },
    SourceIp,
    Query(String),
}

impl HashPolicy {
    pub fn compile_all(list: &[pb::HashPolicy], faults: &mut Faults) -> Vec<Self> {
        let compile = |(index, value)| {
            faults.within(format!("hash_policy[{index}]"), |faults| Self::compile(value, faults))
        };
        list.iter().enumerate().filter_map(compile).collect()
    }

    fn compile(value: &pb::HashPolicy, faults: &mut Faults) -> Option<Self> {
        use pb::hash_policy::PolicySpecifier;
        let source = match value.policy_specifier.as_ref() {
            Some(PolicySpecifier::Header(header)) => {
                let Some(name) = HeaderSource::parse(&header.header_name) else {
                    faults.reject(
                        "header.header_name",
                        format!("`{}` is not a header name", header.header_name),
                    );
                    return None;
                };
                let rewrite = match &header.regex_rewrite {
                    Some(value) => Some(
                        faults
                            .within("header.regex_rewrite", |faults| substitution(value, faults))?,
                    ),
                    None => None,
                };
                HashSource::Header(name, rewrite)
            }
            Some(PolicySpecifier::Cookie(cookie)) => HashSource::Cookie {
                name: cookie.name.clone(),
                ttl: cookie.ttl.as_ref().map(values::duration),
                attributes: cookie_attributes(cookie),
            },
            // Without `source_ip` the policy says nothing, in Envoy too.
            Some(PolicySpecifier::ConnectionProperties(properties)) => {
                return properties
                    .source_ip
                    .then_some(Self { source: HashSource::SourceIp, terminal: value.terminal });
            }
            Some(PolicySpecifier::QueryParameter(query)) => HashSource::Query(query.name.clone()),
            Some(PolicySpecifier::FilterState(_)) => {
                faults.ignore("filter_state", "not supported");
                return None;
            }
            None => {
                faults.reject("policy_specifier", "missing");
                return None;
            }
        };
        Some(Self { source, terminal: value.terminal })
    }
}

/// What follows the value in `Set-Cookie`.
fn cookie_attributes(cookie: &pb::hash_policy::Cookie) -> String {
    let ttl = cookie.ttl.as_ref().map_or(0, |ttl| ttl.seconds.max(0));
    let attributes = cookie.attributes.iter();
    let pairs = attributes.map(|attribute| (&*attribute.name, &*attribute.value));
    set_cookie_tail(ttl.unsigned_abs(), &cookie.path, pairs)
}

/// What follows the value of a cookie that the proxy sets.
pub(crate) fn set_cookie_tail<'a>(
    ttl_seconds: u64,
    path: &str,
    attributes: impl Iterator<Item = (&'a str, &'a str)>,
) -> String {
    let mut text = String::new();
    if ttl_seconds > 0 {
        text.push_str(&format!("; Max-Age={ttl_seconds}"));
    }
    if !path.is_empty() {
        text.push_str(&format!("; Path={path}"));
    }
    for (name, value) in attributes {
        text.push_str("; ");
        text.push_str(name);
        if !value.is_empty() {
            text.push('=');
            text.push_str(value);
        }
    }
    text.push_str("; HttpOnly");
    text
}
