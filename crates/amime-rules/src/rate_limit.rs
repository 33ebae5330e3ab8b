//! Descriptors of requests for rate limits: which there are, and what a
//! request is counted as.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/route/v3/route_components.proto#config-route-v3-ratelimit>

use std::net::IpAddr;

use amime_core::unix::is_stand_in;
use amime_telemetry::DynamicMetadata;
use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::meta_data::Source;
use envoy_types::pb::envoy::config::route::v3::rate_limit::r#override::OverrideSpecifier;
use envoy_types::pb::envoy::config::route::v3::{RateLimit, rate_limit as pb};
use envoy_types::pb::envoy::r#type::metadata::v3::MetadataKey;
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
use envoy_types::pb::envoy::r#type::v3::RateLimitUnit;
use envoy_types::pb::google::protobuf::value::Kind;
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
    /// The limit, if the service is not to say it.
    pub limit: Option<OwnLimit>,
}

/// A limit that comes with the request; the unit is the API's number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnLimit {
    pub requests: u32,
    pub unit: i32,
}

/// What descriptors are made from.
pub struct LimitInput<'a> {
    pub head: &'a RequestHead,
    pub remote: IpAddr,
    pub source_cluster: &'a str,
    pub destination_cluster: &'a str,
    /// What the route's configuration says of it.
    pub route_metadata: Option<&'a DynamicMetadata>,
    pub format: FormatInput<'a>,
}

/// A compiled `RateLimit`: makes one descriptor of a request, or none.
#[derive(Debug)]
pub struct LimitPolicy {
    pub stage: u32,
    actions: Vec<Action>,
    hits: Hits,
    limit: Option<Limit>,
}

/// Where a limit comes from that the service is not to say.
#[derive(Debug)]
enum Limit {
    Fixed(OwnLimit),
    /// A struct at a path of the metadata.
    At(Box<[Box<str>]>),
}

/// How much a request counts.
#[derive(Debug)]
enum Hits {
    Unsaid,
    Fixed(u64),
    /// A number, or there is no descriptor.
    Format(Format),
}

/// The most that a request may count, as in Envoy.
const MAX_HITS: u64 = 1_000_000_000;

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
    Metadata { source: Source, key: String, path: Box<[Box<str>]>, default: String, skip: bool },
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
pub fn policies(list: &[RateLimit], field: &str, faults: &mut Faults) -> Vec<LimitPolicy> {
    let compile = |(index, value)| {
        let field = format!("{field}[{index}]");
        faults.within(field, |faults| LimitPolicy::compile(value, faults))
    };
    list.iter().enumerate().filter_map(compile).collect()
}

impl LimitPolicy {
    fn compile(value: &RateLimit, faults: &mut Faults) -> Option<Self> {
        if value.apply_on_stream_done {
            // It would count the request when it begins and not when it ends.
            faults.ignore("apply_on_stream_done", "not supported; such a limit does nothing");
            return None;
        }
        let action = |(index, value): (usize, &pb::Action)| {
            faults.within(format!("actions[{index}]"), |faults| Action::compile(value, faults))
        };
        let actions: Option<Vec<_>> = value.actions.iter().enumerate().map(action).collect();
        Some(Self {
            stage: u32_or(value.stage.as_ref(), 0),
            actions: actions?,
            hits: Hits::compile(value.hits_addend.as_ref(), faults)?,
            limit: match value.limit.as_ref().and_then(|it| it.override_specifier.as_ref()) {
                Some(limit) => Some(Limit::compile(limit, faults)?),
                None => None,
            },
        })
    }

    /// What the request counts as; `None` if something asked for is missing.
    pub fn descriptor(&self, input: &LimitInput<'_>) -> Option<Descriptor> {
        let mut entries = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            entries.extend(action.entry(input)?);
        }
        let hits = match &self.hits {
            Hits::Unsaid => None,
            Hits::Fixed(number) => Some(*number),
            Hits::Format(format) => {
                let text = format.render(&HeaderMap::new(), &input.format);
                let number = text.to_str().ok()?.trim().parse::<f64>().ok()?;
                let whole = number.trunc() == number && (0.0..=MAX_HITS as f64).contains(&number);
                Some(if whole { number as u64 } else { return None })
            }
        };
        let limit = self.limit.as_ref().and_then(|limit| match limit {
            Limit::Fixed(limit) => Some(*limit),
            Limit::At(path) => OwnLimit::of(path, input.format.metadata?),
        });
        (!entries.is_empty()).then_some(Descriptor { entries, hits, limit })
    }
}

impl Hits {
    fn compile(value: Option<&pb::HitsAddend>, faults: &mut Faults) -> Option<Self> {
        let Some(value) = value else { return Some(Self::Unsaid) };
        if let Some(number) = &value.number {
            return Some(Self::Fixed(number.value));
        }
        if value.format.is_empty() {
            return Some(Self::Unsaid);
        }
        let format = Format::parse(&value.format);
        format.map(Self::Format).map_err(|reason| faults.reject("hits_addend.format", reason)).ok()
    }
}

impl OwnLimit {
    /// The limit at a path of the metadata, if it is one.
    fn of(path: &[Box<str>], metadata: &DynamicMetadata) -> Option<Self> {
        let fields = &metadata.fields(path)?.fields;
        let Kind::NumberValue(requests) = fields.get("requests_per_unit")?.kind.as_ref()? else {
            return None;
        };
        let Kind::StringValue(unit) = fields.get("unit")?.kind.as_ref()? else { return None };
        let unit = RateLimitUnit::from_str_name(unit).filter(|it| *it != RateLimitUnit::Unknown)?;
        let whole = requests.trunc() == *requests && (0.0..=f64::from(u32::MAX)).contains(requests);
        whole.then_some(Self { requests: *requests as u32, unit: unit as i32 })
    }
}

impl Limit {
    fn compile(value: &OverrideSpecifier, faults: &mut Faults) -> Option<Self> {
        Some(match value {
            OverrideSpecifier::RateLimit(limit) => {
                Self::Fixed(OwnLimit { requests: limit.requests_per_unit, unit: limit.unit })
            }
            OverrideSpecifier::DynamicMetadata(value) => {
                Self::At(metadata_path(value.metadata_key.as_ref(), faults)?)
            }
        })
    }
}

fn metadata_path(value: Option<&MetadataKey>, faults: &mut Faults) -> Option<Box<[Box<str>]>> {
    let value = value.cloned().unwrap_or_default();
    let mut path: Vec<Box<str>> = vec![value.key.into()];
    for segment in value.path {
        match segment.segment? {
            Segment::Key(key) => path.push(key.into()),
            Segment::Index(_) => {
                faults.reject("metadata_key.path", "places in lists are not supported");
                return None;
            }
        }
    }
    Some(path.into())
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
            Some(A::DynamicMetadata(value)) => Self::Metadata {
                source: Source::Dynamic,
                key: value.descriptor_key.clone(),
                path: metadata_path(value.metadata_key.as_ref(), faults)?,
                default: value.default_value.clone(),
                skip: false,
            },
            Some(A::Metadata(value)) => Self::metadata(value, faults)?,
            Some(other) => return Self::comparison(other, faults),
            None => return Self::unknown(faults),
        })
    }

    /// An action that depends on whether something matches.
    fn comparison(value: &pb::action::ActionSpecifier, faults: &mut Faults) -> Option<Self> {
        use pb::action::ActionSpecifier as A;
        Some(match value {
            A::HeaderValueMatch(value) => Self::HeaderMatch {
                key: named(&value.descriptor_key, "header_match"),
                value: Value::compile(&value.descriptor_value, &value.default_value, faults)?,
                expect: bool_or(value.expect_match.as_ref(), true),
                headers: header_matchers(&value.headers, "headers", faults),
            },
            A::QueryParameterValueMatch(value) => Self::QueryMatch {
                key: named(&value.descriptor_key, "query_match"),
                value: Value::compile(&value.descriptor_value, &value.default_value, faults)?,
                expect: bool_or(value.expect_match.as_ref(), true),
                query: value
                    .query_parameters
                    .iter()
                    .filter_map(|query| QueryMatcher::compile(query, faults))
                    .collect(),
            },
            A::RemoteAddressMatch(value) => {
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
            _ => return Self::unknown(faults),
        })
    }

    fn metadata(value: &pb::action::MetaData, faults: &mut Faults) -> Option<Self> {
        if !matches!(value.source(), Source::Dynamic | Source::RouteEntry) {
            faults.reject("metadata.source", "only metadata of requests and routes is supported");
            return None;
        }
        Some(Self::Metadata {
            source: value.source(),
            key: value.descriptor_key.clone(),
            path: metadata_path(value.metadata_key.as_ref(), faults)?,
            default: value.default_value.clone(),
            skip: value.skip_if_absent,
        })
    }

    fn unknown(faults: &mut Faults) -> Option<Self> {
        faults.reject("action_specifier", "not supported");
        None
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
            Self::Metadata { source, key, path, default, skip } => {
                let metadata = match source {
                    Source::RouteEntry => input.route_metadata,
                    _ => input.format.metadata,
                };
                let found = metadata.and_then(|metadata| metadata.text(path));
                let found = found.filter(|text| !text.is_empty()).unwrap_or(default);
                let found = Some(found.to_owned()).filter(|text| !text.is_empty());
                optional(key, found, *skip)
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
