//! What a route does with a request: forward, redirect or answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use http::{HeaderName, HeaderValue, StatusCode};
use regex::bytes::Regex;

use super::Compiler;
use super::faults::Faults;
use super::headers::HeaderEdits;
use super::matcher::regex;
use super::names::ClusterId;
use super::retry::RetryPolicy;
use super::route::Layers;
use super::values::{self, Fraction, bool_or};

/// A compiled route action.
#[derive(Debug)]
pub enum Action {
    Forward(Box<Forward>),
    Redirect(Redirect),
    Direct {
        status: StatusCode,
        body: Bytes,
    },
    /// Matches so that filters may act; forwards nowhere.
    NonForwarding,
}

/// Where and how to forward.
#[derive(Debug)]
pub struct Forward {
    pub cluster: ClusterChoice,
    pub cluster_not_found: StatusCode,
    /// `None`: no limit.
    pub timeout: Option<Duration>,
    /// `timeout` in milliseconds, ready-made.
    pub timeout_header: Option<HeaderValue>,
    /// Overrides the connection manager's when set; zero disables.
    pub idle_timeout: Option<Duration>,
    /// Longest life of a stream; overrides the connection manager's.
    pub max_stream_duration: Option<Duration>,
    /// Honour `grpc-timeout` up to this; zero means as given.
    pub grpc_timeout_max: Option<Duration>,
    pub retry: Option<Arc<RetryPolicy>>,
    pub host_rewrite: HostRewrite,
    pub append_forwarded_host: bool,
    pub path_rewrite: PathRewrite,
    pub hash: Vec<HashPolicy>,
    pub mirrors: Vec<Mirror>,
    pub upgrades: Vec<(String, bool)>,
    pub high_priority: bool,
}

/// How the cluster is chosen.
#[derive(Debug)]
pub enum ClusterChoice {
    One(ClusterId),
    Weighted { entries: Vec<WeightedCluster>, total: u64 },
    Header(HeaderName),
}

/// One destination of a weighted route.
#[derive(Debug)]
pub struct WeightedCluster {
    pub cluster: ClusterId,
    pub weight: u64,
    pub host_rewrite: Option<HeaderValue>,
    pub request_edits: HeaderEdits,
    pub response_edits: HeaderEdits,
}

#[derive(Debug)]
pub enum HostRewrite {
    Keep,
    Literal(HeaderValue),
    /// The endpoint's own name.
    Endpoint,
    Header(HeaderName),
    PathRegex(Regex, String),
}

#[derive(Debug)]
pub enum PathRewrite {
    Keep,
    Prefix(String),
    Regex(Regex, String),
}

/// Part of a consistent hash.
#[derive(Debug)]
pub struct HashPolicy {
    pub source: HashSource,
    pub terminal: bool,
}

#[derive(Debug)]
pub enum HashSource {
    Header(HeaderName),
    /// A cookie, made and set when absent and `ttl` is given.
    Cookie {
        name: String,
        ttl: Option<Duration>,
        path: String,
        attributes: String,
    },
    SourceIp,
    Query(String),
}

/// A copy of requests sent elsewhere, its response dropped.
#[derive(Debug)]
pub struct Mirror {
    pub cluster: ClusterId,
    pub fraction: Fraction,
    pub append_shadow: bool,
}

/// A redirect answer.
#[derive(Debug)]
pub struct Redirect {
    pub status: StatusCode,
    pub host: String,
    pub port: u32,
    pub scheme: Option<String>,
    pub https: bool,
    pub path: RedirectPath,
    pub strip_query: bool,
}

#[derive(Debug)]
pub enum RedirectPath {
    Keep,
    Replace(String),
    Prefix(String),
    Regex(Regex, String),
}

/// Envoy's default route timeout.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(15);

impl Action {
    pub(crate) fn compile(
        value: &pb::Route,
        layers: &Layers<'_>,
        compiler: &mut Compiler<'_>,
    ) -> Option<Self> {
        match value.action.as_ref() {
            Some(pb::route::Action::Route(action)) => {
                compiler.faults.enter("route");
                let forward = Forward::compile(action, layers, compiler);
                compiler.faults.leave();
                forward.map(|forward| Self::Forward(Box::new(forward)))
            }
            Some(pb::route::Action::Redirect(value)) => compiler
                .faults
                .within("redirect", |faults| Redirect::compile(value, faults))
                .map(Self::Redirect),
            Some(pb::route::Action::DirectResponse(value)) => {
                compiler.faults.within("direct_response", |faults| direct_response(value, faults))
            }
            Some(pb::route::Action::NonForwardingAction(_)) => Some(Self::NonForwarding),
            Some(pb::route::Action::FilterAction(_)) => {
                compiler.faults.reject("filter_action", "not supported");
                None
            }
            None => {
                compiler.faults.reject("action", "missing");
                None
            }
        }
    }
}

fn direct_response(value: &pb::DirectResponseAction, faults: &mut Faults) -> Option<Action> {
    let status = u16::try_from(value.status).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let Some(status) = status else {
        faults.reject("status", format!("{} is not a status code", value.status));
        return None;
    };
    faults.ignore_if(value.body_format.is_some(), "body_format");
    let body = match value.body.as_ref().map(values::data_source) {
        None => Bytes::new(),
        Some(Ok(body)) => body.into(),
        Some(Err(reason)) => {
            faults.reject("body", reason);
            return None;
        }
    };
    Some(Action::Direct { status, body })
}

/// A pattern and RE2 substitution, `\1` turned into `${1}`.
fn substitution(value: &RegexMatchAndSubstitute, faults: &mut Faults) -> Option<(Regex, String)> {
    let pattern = value.pattern.as_ref().map_or("", |pattern| &pattern.regex);
    let regex = regex(pattern, false, faults)?;
    let mut text = String::new();
    let mut chars = value.substitution.chars();
    while let Some(char) = chars.next() {
        match char {
            '$' => text.push_str("$$"),
            '\\' => match chars.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    text.push_str(&format!("${{{digit}}}"));
                }
                Some('\\') => text.push('\\'),
                _ => {
                    faults.reject("substitution", "stray backslash");
                    return None;
                }
            },
            other => text.push(other),
        }
    }
    Some((regex, text))
}

impl Forward {
    fn compile(
        value: &pb::RouteAction,
        layers: &Layers<'_>,
        compiler: &mut Compiler<'_>,
    ) -> Option<Self> {
        let cluster = ClusterChoice::compile(value, compiler);
        let retry = value.retry_policy.as_ref().or(layers.vhost_pb.retry_policy.as_ref());
        let retry = retry.and_then(|policy| {
            compiler.faults.within("retry_policy", |faults| RetryPolicy::compile(policy, faults))
        });
        let mirrors = Mirror::compile_all(&value.request_mirror_policies, compiler);
        let faults = &mut compiler.faults;
        faults.reject_if(value.path_rewrite_policy.is_some(), "path_rewrite_policy");
        faults.ignore_if(value.internal_redirect_policy.is_some(), "internal_redirect_policy");
        faults.ignore_if(value.hedge_policy.is_some(), "hedge_policy");
        faults.ignore_if(!value.rate_limits.is_empty(), "rate_limits");
        faults.ignore_if(value.metadata_match.is_some(), "metadata_match");
        let stream = value.max_stream_duration.as_ref();
        let duration = |value: Option<&_>| value.map(values::duration);
        let timeout = values::timeout(value.timeout.as_ref(), Some(ROUTE_TIMEOUT));
        Some(Self {
            cluster: cluster?,
            cluster_not_found: match value.cluster_not_found_response_code() {
                pb::route_action::ClusterNotFoundResponseCode::ServiceUnavailable => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
                pb::route_action::ClusterNotFoundResponseCode::NotFound => StatusCode::NOT_FOUND,
                pb::route_action::ClusterNotFoundResponseCode::InternalServerError => {
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            },
            timeout,
            timeout_header: timeout.map(millis_value),
            idle_timeout: duration(value.idle_timeout.as_ref()),
            max_stream_duration: duration(
                stream.and_then(|stream| stream.max_stream_duration.as_ref()),
            ),
            grpc_timeout_max: duration(
                stream
                    .and_then(|stream| stream.grpc_timeout_header_max.as_ref())
                    .or(value.max_grpc_timeout.as_ref()),
            ),
            retry,
            host_rewrite: host_rewrite(value, faults)?,
            append_forwarded_host: value.append_x_forwarded_host,
            path_rewrite: path_rewrite(value, faults)?,
            hash: value.hash_policy.iter().filter_map(|value| hash_policy(value, faults)).collect(),
            mirrors,
            upgrades: value
                .upgrade_configs
                .iter()
                .map(|upgrade| {
                    (
                        upgrade.upgrade_type.to_ascii_lowercase(),
                        bool_or(upgrade.enabled.as_ref(), true),
                    )
                })
                .collect(),
            high_priority: value.priority == 1,
        })
    }
}

/// A duration as a header value in milliseconds.
pub fn millis_value(duration: Duration) -> HeaderValue {
    HeaderValue::from(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

impl ClusterChoice {
    fn compile(value: &pb::RouteAction, compiler: &mut Compiler<'_>) -> Option<Self> {
        use pb::route_action::ClusterSpecifier;
        match value.cluster_specifier.as_ref() {
            Some(ClusterSpecifier::Cluster(name)) => Some(Self::One(compiler.names.cluster(name))),
            Some(ClusterSpecifier::ClusterHeader(name)) => match name.parse() {
                Ok(name) => Some(Self::Header(name)),
                Err(_) => {
                    compiler.faults.reject("cluster_header", format!("`{name}` is not a header"));
                    None
                }
            },
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                Self::weighted(weighted, compiler)
            }
            Some(_) => {
                compiler.faults.reject("cluster_specifier", "plugins are not supported");
                None
            }
            None => {
                compiler.faults.reject("cluster_specifier", "missing");
                None
            }
        }
    }

    fn weighted(value: &pb::WeightedCluster, compiler: &mut Compiler<'_>) -> Option<Self> {
        compiler.faults.enter("weighted_clusters");
        let mut entries = Vec::with_capacity(value.clusters.len());
        for (index, entry) in value.clusters.iter().enumerate() {
            compiler.faults.enter(format!("clusters[{index}]"));
            compiler.faults.reject_if(!entry.cluster_header.is_empty(), "cluster_header");
            entries.push(WeightedCluster::compile(entry, compiler));
            compiler.faults.leave();
        }
        let total = entries.iter().map(|entry| entry.weight).sum();
        if total == 0 {
            compiler.faults.reject("", "the sum of weights is zero");
        }
        compiler.faults.leave();
        (total > 0).then_some(Self::Weighted { entries, total })
    }
}

impl WeightedCluster {
    fn compile(value: &pb::weighted_cluster::ClusterWeight, compiler: &mut Compiler<'_>) -> Self {
        use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier;
        let cluster = compiler.names.cluster(&value.name);
        let faults = &mut compiler.faults;
        faults.ignore_if(!value.typed_per_filter_config.is_empty(), "typed_per_filter_config");
        faults.ignore_if(value.metadata_match.is_some(), "metadata_match");
        let host_rewrite = value.host_rewrite_specifier.as_ref();
        Self {
            cluster,
            weight: u64::from(values::u32_or(value.weight.as_ref(), 0)),
            host_rewrite: host_rewrite.and_then(
                |HostRewriteSpecifier::HostRewriteLiteral(host)| HeaderValue::from_str(host).ok(),
            ),
            request_edits: HeaderEdits::compile(
                &value.request_headers_to_add,
                &value.request_headers_to_remove,
                ["request_headers_to_add", "request_headers_to_remove"],
                faults,
            ),
            response_edits: HeaderEdits::compile(
                &value.response_headers_to_add,
                &value.response_headers_to_remove,
                ["response_headers_to_add", "response_headers_to_remove"],
                faults,
            ),
        }
    }
}

fn host_rewrite(value: &pb::RouteAction, faults: &mut Faults) -> Option<HostRewrite> {
    use pb::route_action::HostRewriteSpecifier as Rewrite;
    let literal = |host: &str, faults: &mut Faults| match HeaderValue::from_str(host) {
        Ok(value) => Some(HostRewrite::Literal(value)),
        Err(_) => {
            faults.reject("host_rewrite_literal", format!("`{host}` is not a host"));
            None
        }
    };
    match value.host_rewrite_specifier.as_ref() {
        None => Some(HostRewrite::Keep),
        Some(Rewrite::HostRewriteLiteral(host) | Rewrite::HostRewrite(host)) => {
            literal(host, faults)
        }
        Some(Rewrite::AutoHostRewrite(on)) => {
            Some(if on.value { HostRewrite::Endpoint } else { HostRewrite::Keep })
        }
        Some(Rewrite::HostRewriteHeader(name)) => match name.parse() {
            Ok(name) => Some(HostRewrite::Header(name)),
            Err(_) => {
                faults.reject("host_rewrite_header", format!("`{name}` is not a header"));
                None
            }
        },
        Some(Rewrite::HostRewritePathRegex(value)) => {
            substitution(value, faults).map(|(regex, text)| HostRewrite::PathRegex(regex, text))
        }
    }
}

fn path_rewrite(value: &pb::RouteAction, faults: &mut Faults) -> Option<PathRewrite> {
    if let Some(value) = value.regex_rewrite.as_ref() {
        let (regex, text) = faults.within("regex_rewrite", |faults| substitution(value, faults))?;
        return Some(PathRewrite::Regex(regex, text));
    }
    faults.reject_if(!value.path_rewrite.is_empty(), "path_rewrite");
    Some(if value.prefix_rewrite.is_empty() {
        PathRewrite::Keep
    } else {
        PathRewrite::Prefix(value.prefix_rewrite.clone())
    })
}

fn hash_policy(value: &pb::route_action::HashPolicy, faults: &mut Faults) -> Option<HashPolicy> {
    use pb::route_action::hash_policy::PolicySpecifier;
    let source = match value.policy_specifier.as_ref() {
        Some(PolicySpecifier::Header(header)) => {
            HashSource::Header(header.header_name.parse().ok()?)
        }
        Some(PolicySpecifier::Cookie(cookie)) => HashSource::Cookie {
            name: cookie.name.clone(),
            ttl: cookie.ttl.as_ref().map(values::duration),
            path: cookie.path.clone(),
            attributes: cookie
                .attributes
                .iter()
                .map(|attribute| match attribute.value.as_str() {
                    "" => format!("; {}", attribute.name),
                    value => format!("; {}={value}", attribute.name),
                })
                .collect(),
        },
        Some(PolicySpecifier::ConnectionProperties(properties)) if properties.source_ip => {
            HashSource::SourceIp
        }
        Some(PolicySpecifier::QueryParameter(query)) => HashSource::Query(query.name.clone()),
        _ => {
            faults.ignore("hash_policy", "not supported");
            return None;
        }
    };
    Some(HashPolicy { source, terminal: value.terminal })
}

impl Mirror {
    fn compile_all(
        list: &[pb::route_action::RequestMirrorPolicy],
        compiler: &mut Compiler<'_>,
    ) -> Vec<Self> {
        let mut mirrors = Vec::new();
        for policy in list {
            if policy.cluster.is_empty() {
                compiler
                    .faults
                    .ignore("request_mirror_policies", "cluster_header is not supported");
                continue;
            }
            mirrors.push(Self {
                cluster: compiler.names.cluster(&policy.cluster),
                fraction: policy
                    .runtime_fraction
                    .as_ref()
                    .map_or(Fraction::ALWAYS, Fraction::from_runtime),
                append_shadow: !policy.disable_shadow_host_suffix_append,
            });
        }
        mirrors
    }
}

impl Redirect {
    fn compile(value: &pb::RedirectAction, faults: &mut Faults) -> Option<Self> {
        use pb::redirect_action::{
            PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
        };
        let status = match value.response_code() {
            RedirectResponseCode::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
            RedirectResponseCode::Found => StatusCode::FOUND,
            RedirectResponseCode::SeeOther => StatusCode::SEE_OTHER,
            RedirectResponseCode::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
            RedirectResponseCode::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
        };
        let path = match value.path_rewrite_specifier.as_ref() {
            None => RedirectPath::Keep,
            Some(PathRewriteSpecifier::PathRedirect(path)) => RedirectPath::Replace(path.clone()),
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
                RedirectPath::Prefix(prefix.clone())
            }
            Some(PathRewriteSpecifier::RegexRewrite(value)) => {
                let (regex, text) = substitution(value, faults)?;
                RedirectPath::Regex(regex, text)
            }
            Some(PathRewriteSpecifier::PathRewrite(_)) => {
                faults.reject("path_rewrite", "not supported");
                return None;
            }
        };
        let (scheme, https) = match value.scheme_rewrite_specifier.as_ref() {
            Some(SchemeRewriteSpecifier::HttpsRedirect(on)) => (None, *on),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => (Some(scheme.clone()), false),
            None => (None, false),
        };
        Some(Self {
            status,
            host: value.host_redirect.clone(),
            port: value.port_redirect,
            scheme,
            https,
            path,
            strip_query: value.strip_query,
        })
    }
}
