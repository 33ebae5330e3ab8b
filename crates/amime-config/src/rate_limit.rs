//! Descriptors of requests for rate limits: which there are, and what a
//! request is counted as.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/route/v3/route_components.proto#config-route-v3-ratelimit>

use std::net::IpAddr;

use amime_core::unix::is_stand_in;
use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::route::v3::{RateLimit, rate_limit as pb};
use http::HeaderMap;
use ipnet::IpNet;

use super::faults::Faults;
use super::format::{Format, FormatInput};
use super::matcher::{HeaderMatcher, HeaderSource, QueryMatcher, header_matchers, query_value};
use super::values::{self, bool_or, u32_or};
use crate::head::RequestHead;

/// One thing that a request is counted as: keys with their values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub entries: Vec<(String, String)>,
    /// How much the request counts, if that is not one.
    pub hits: Option<u64>,
}

/// What descriptors are made from.
pub struct LimitInput<'a> {
    pub head: &'a RequestHead,
    pub remote: IpAddr,
    pub source_cluster: &'a str,
    pub destination_cluster: &'a str,
    pub format: FormatInput<'a>,
}

/// A compiled `RateLimit`: makes one descriptor of a request, or none.
#[derive(Debug)]
pub struct LimitPolicy {
    pub stage: u32,
    actions: Vec<Action>,
    hits: Option<u64>,
}

/// The policies of a route and of its virtual host.
#[derive(Clone, Debug, Default)]
pub struct RouteLimits {
    pub route: std::sync::Arc<Vec<LimitPolicy>>,
    pub vhost: std::sync::Arc<Vec<LimitPolicy>>,
    pub include_vhost: bool,
}

/// Whether policies of the virtual host count beside the route's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VhostLimits {
    /// Only where the route has none.
    #[default]
    Fallback,
    Include,
    Ignore,
}

#[derive(Debug)]
enum Action {
    SourceCluster,
    DestinationCluster,
    Header { name: HeaderSource, key: String, skip: bool },
    Query { name: String, key: String, skip: bool },
    RemoteAddress,
    Masked { v4: u8, v6: u8 },
    Generic { key: String, value: Value },
    HeaderMatch { key: String, value: Value, expect: bool, headers: Vec<HeaderMatcher> },
    QueryMatch { key: String, value: Value, expect: bool, query: Vec<QueryMatcher> },
    RemoteMatch { key: String, value: Value, invert: bool, nets: Vec<IpNet> },
}

/// A value with operators, and what takes its place when it is empty.
#[derive(Debug)]
struct Value {
    format: Format,
    default: String,
}

impl Value {
    fn compile(text: &str, default: &str, faults: &mut Faults) -> Option<Self> {
        let format = Format::parse(text);
        let format = format.map_err(|reason| faults.reject("descriptor_value", reason)).ok()?;
        Some(Self { format, default: default.to_owned() })
    }

    fn render(&self, input: &LimitInput<'_>) -> Option<String> {
        let value = self.format.render(&HeaderMap::new(), &input.format);
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        let value = if value.is_empty() { self.default.clone() } else { value };
        Some(value).filter(|value| !value.is_empty())
    }
}

/// Compiles the policies in `field`.
pub(crate) fn policies(list: &[RateLimit], field: &str, faults: &mut Faults) -> Vec<LimitPolicy> {
    let compile = |(index, value)| {
        let field = format!("{field}[{index}]");
        faults.within(field, |faults| LimitPolicy::compile(value, faults))
    };
    list.iter().enumerate().filter_map(compile).collect()
}

impl LimitPolicy {
    fn compile(value: &RateLimit, faults: &mut Faults) -> Option<Self> {
        faults.ignore_if(value.limit.is_some(), "limit");
        faults.ignore_if(value.apply_on_stream_done, "apply_on_stream_done");
        let hits = value.hits_addend.as_ref();
        let computed = hits.is_some_and(|hits| !hits.format.is_empty());
        faults.ignore_if(computed, "hits_addend.format");
        let action = |(index, value): (usize, &pb::Action)| {
            faults.within(format!("actions[{index}]"), |faults| Action::compile(value, faults))
        };
        let actions: Option<Vec<_>> = value.actions.iter().enumerate().map(action).collect();
        Some(Self {
            stage: u32_or(value.stage.as_ref(), 0),
            actions: actions?,
            hits: hits.and_then(|hits| hits.number.as_ref()).map(|number| number.value),
        })
    }

    /// What the request counts as; `None` if something asked for is missing.
    pub fn descriptor(&self, input: &LimitInput<'_>) -> Option<Descriptor> {
        let mut entries = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            entries.extend(action.entry(input)?);
        }
        (!entries.is_empty()).then_some(Descriptor { entries, hits: self.hits })
    }
}

fn named(key: &str, default: &str) -> String {
    if key.is_empty() { default.to_owned() } else { key.to_owned() }
}

impl Action {
    fn compile(value: &pb::Action, faults: &mut Faults) -> Option<Self> {
        use pb::action::ActionSpecifier as A;
        Some(match value.action_specifier.as_ref() {
            Some(A::SourceCluster(_)) => Self::SourceCluster,
            Some(A::DestinationCluster(_)) => Self::DestinationCluster,
            Some(A::RequestHeaders(value)) => {
                let Some(name) = HeaderSource::parse(&value.header_name) else {
                    let reason = format!("`{}` is not a header", value.header_name);
                    faults.reject("request_headers.header_name", reason);
                    return None;
                };
                let key = value.descriptor_key.clone();
                Self::Header { name, key, skip: value.skip_if_absent }
            }
            Some(A::QueryParameters(value)) => Self::Query {
                name: value.query_parameter_name.clone(),
                key: value.descriptor_key.clone(),
                skip: value.skip_if_absent,
            },
            Some(A::RemoteAddress(_)) => Self::RemoteAddress,
            Some(A::MaskedRemoteAddress(value)) => Self::Masked {
                v4: bits(value.v4_prefix_mask_len.as_ref(), 32),
                v6: bits(value.v6_prefix_mask_len.as_ref(), 128),
            },
            Some(A::GenericKey(value)) => Self::Generic {
                key: named(&value.descriptor_key, "generic_key"),
                value: Value::compile(&value.descriptor_value, &value.default_value, faults)?,
            },
            Some(A::HeaderValueMatch(value)) => Self::HeaderMatch {
                key: named(&value.descriptor_key, "header_match"),
                value: Value::compile(&value.descriptor_value, &value.default_value, faults)?,
                expect: bool_or(value.expect_match.as_ref(), true),
                headers: header_matchers(&value.headers, "headers", faults),
            },
            Some(A::QueryParameterValueMatch(value)) => Self::QueryMatch {
                key: named(&value.descriptor_key, "query_match"),
                value: Value::compile(&value.descriptor_value, &value.default_value, faults)?,
                expect: bool_or(value.expect_match.as_ref(), true),
                query: value
                    .query_parameters
                    .iter()
                    .filter_map(|query| QueryMatcher::compile(query, faults))
                    .collect(),
            },
            Some(A::RemoteAddressMatch(value)) => {
                let matcher = value.address_matcher.clone().unwrap_or_default();
                let nets = matcher.ranges.iter().filter_map(|net| {
                    let net = CidrRange {
                        address_prefix: net.address_prefix.clone(),
                        prefix_len: net.prefix_len,
                    };
                    values::cidr(&net, faults)
                });
                Self::RemoteMatch {
                    nets: nets.collect(),
                    key: named(&value.descriptor_key, "remote_address_match"),
                    value: Value::compile(&value.descriptor_value, &value.default_value, faults)?,
                    invert: matcher.invert_match,
                }
            }
            Some(A::DynamicMetadata(_) | A::Metadata(_)) => {
                faults.reject("metadata", "no filter here writes metadata");
                return None;
            }
            Some(A::Extension(_)) | None => {
                faults.reject("action_specifier", "not supported");
                return None;
            }
        })
    }

    /// The entry; `None` if there can be no descriptor, `Some(None)` if the
    /// descriptor does without.
    fn entry(&self, input: &LimitInput<'_>) -> Option<Option<(String, String)>> {
        let constant = |key: &str, value: &str| Some(Some((key.to_owned(), value.to_owned())));
        let optional = |key: &str, value: Option<String>, skip: bool| match value {
            Some(value) => Some(Some((key.to_owned(), value))),
            None if skip => Some(None),
            None => None,
        };
        let valued = |key: &str, value: &Value, hit: bool| {
            if !hit {
                return None;
            }
            Some(Some((key.to_owned(), value.render(input)?)))
        };
        match self {
            Self::SourceCluster => constant("source_cluster", input.source_cluster),
            Self::DestinationCluster => constant("destination_cluster", input.destination_cluster),
            Self::Header { name, key, skip } => {
                let value = name.value(input.head);
                optional(key, value.map(|value| String::from_utf8_lossy(&value).into()), *skip)
            }
            Self::Query { name, key, skip } => {
                let query = input.head.path.query().unwrap_or_default();
                optional(key, query_value(query, name).map(str::to_owned), *skip)
            }
            Self::RemoteAddress if is_stand_in(input.remote) => None,
            Self::RemoteAddress => constant("remote_address", &input.remote.to_string()),
            Self::Masked { .. } if is_stand_in(input.remote) => None,
            Self::Masked { v4, v6 } => {
                let bits = if input.remote.is_ipv4() { *v4 } else { *v6 };
                let net = IpNet::new(input.remote, bits).ok()?.trunc();
                constant("masked_remote_address", &net.to_string())
            }
            Self::Generic { key, value } => valued(key, value, true),
            Self::HeaderMatch { key, value, expect, headers } => {
                let hit = headers.iter().all(|header| header.matches(input.head));
                valued(key, value, hit == *expect)
            }
            Self::QueryMatch { key, value, expect, query } => {
                let text = input.head.path.query().unwrap_or_default();
                let hit = query.iter().all(|query| query.matches(text));
                valued(key, value, hit == *expect)
            }
            Self::RemoteMatch { key, value, invert, nets } => {
                let hit = nets.iter().any(|net| values::within(net, input.remote));
                valued(key, value, hit != *invert)
            }
        }
    }
}

fn bits(value: Option<&envoy_types::pb::google::protobuf::UInt32Value>, max: u8) -> u8 {
    u8::try_from(u32_or(value, max.into())).unwrap_or(max).min(max)
}

impl RouteLimits {
    /// Descriptors of a request by the policies of one stage; `own` are those
    /// of the filter, which take the place of the route's.
    pub fn descriptors(
        &self,
        own: &[LimitPolicy],
        (stage, vhost): (u32, VhostLimits),
        input: &LimitInput<'_>,
    ) -> Vec<Descriptor> {
        let make = |policies: &[LimitPolicy], out: &mut Vec<Descriptor>| {
            let staged = policies.iter().filter(|policy| policy.stage == stage);
            out.extend(staged.filter_map(|policy| policy.descriptor(input)));
        };
        let mut all = Vec::new();
        if !own.is_empty() {
            all.extend(own.iter().filter_map(|policy| policy.descriptor(input)));
            return all;
        }
        make(&self.route, &mut all);
        let include = match vhost {
            _ if self.include_vhost => true,
            VhostLimits::Include => true,
            VhostLimits::Ignore => false,
            VhostLimits::Fallback => self.route.is_empty(),
        };
        if include {
            make(&self.vhost, &mut all);
        }
        all
    }
}
