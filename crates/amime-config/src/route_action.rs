//! What a route does with a request: forward, redirect or answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3 as pb;
use http::{HeaderName, HeaderValue, StatusCode};
use regex::bytes::Regex;

use super::Compiler;
use super::route::Layers;
use super::route_cluster::{ClusterChoice, Mirror};
use amime_rules::Faults;
use amime_rules::criteria::MetadataMatch;
use amime_rules::hash_policy::HashPolicy;
use amime_rules::redirect::{InternalRedirect, Redirect, substitution};
use amime_rules::retry::RetryPolicy;
use amime_rules::values::{self, bool_or};

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
    /// As `grpc_timeout_max`, for the stream's whole life.
    pub grpc_stream_max: Option<Duration>,
    pub retry: Option<Arc<RetryPolicy>>,
    pub host_rewrite: HostRewrite,
    pub append_forwarded_host: bool,
    pub path_rewrite: PathRewrite,
    pub hash: Vec<HashPolicy>,
    /// Which of the cluster's endpoints may be used.
    pub metadata_match: Option<MetadataMatch>,
    pub mirrors: Vec<Mirror>,
    pub upgrades: Vec<RouteUpgrade>,
    pub high_priority: bool,
    pub internal_redirect: Option<InternalRedirect>,
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

/// What a route says of one upgrade type.
#[derive(Debug)]
pub struct RouteUpgrade {
    /// Lower case.
    pub kind: String,
    pub enabled: bool,
    /// Set where CONNECT ends here: its payload goes to the upstream bare.
    pub terminate: Option<Terminate>,
}

/// How tunnels end here.
#[derive(Clone, Copy, Debug)]
pub struct Terminate {
    /// POST requests are tunnels as well.
    pub allow_post: bool,
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

impl Forward {
    fn compile(
        value: &pb::RouteAction,
        layers: &Layers<'_>,
        compiler: &mut Compiler<'_>,
    ) -> Option<Self> {
        let metadata_match = MetadataMatch::compile(value.metadata_match.as_ref(), None);
        let cluster = ClusterChoice::compile(value, metadata_match.as_ref(), compiler);
        let retry = value.retry_policy.as_ref().or(layers.vhost_pb.retry_policy.as_ref());
        let retry = retry.and_then(|policy| {
            compiler.faults.within("retry_policy", |faults| RetryPolicy::compile(policy, faults))
        });
        let mirrors = layers.mirrors(&value.request_mirror_policies);
        let mirrors = Mirror::compile_all(mirrors, compiler);
        let faults = &mut compiler.faults;
        faults.reject_if(value.path_rewrite_policy.is_some(), "path_rewrite_policy");
        let internal_redirect = value.internal_redirect_policy.as_ref().and_then(|policy| {
            let field = "internal_redirect_policy";
            faults.within(field, |faults| InternalRedirect::compile(policy, faults))
        });
        faults.ignore_if(value.hedge_policy.is_some(), "hedge_policy");
        let stream = value.max_stream_duration.as_ref();
        let duration = |value: Option<&_>| value.map(values::duration);
        // The life of the stream takes the place of the timeout.
        let timeout = match stream {
            Some(_) => None,
            None => values::timeout(value.timeout.as_ref(), Some(ROUTE_TIMEOUT)),
        };
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
                value.max_grpc_timeout.as_ref().filter(|_| stream.is_none()),
            ),
            grpc_stream_max: duration(
                stream.and_then(|stream| stream.grpc_timeout_header_max.as_ref()),
            ),
            retry,
            host_rewrite: host_rewrite(value, faults)?,
            append_forwarded_host: value.append_x_forwarded_host,
            path_rewrite: path_rewrite(value, faults)?,
            hash: HashPolicy::compile_all(&value.hash_policy, faults),
            metadata_match,
            mirrors,
            upgrades: value
                .upgrade_configs
                .iter()
                .map(|upgrade| RouteUpgrade::compile(upgrade, faults))
                .collect(),
            high_priority: value.priority == 1,
            internal_redirect,
        })
    }
}

impl RouteUpgrade {
    fn compile(value: &pb::route_action::UpgradeConfig, faults: &mut Faults) -> Self {
        let connect = value.connect_config.as_ref();
        let proxy_protocol = connect.is_some_and(|config| config.proxy_protocol_config.is_some());
        faults.reject_if(proxy_protocol, "upgrade_configs.connect_config.proxy_protocol_config");
        Self {
            kind: value.upgrade_type.to_ascii_lowercase(),
            enabled: bool_or(value.enabled.as_ref(), true),
            terminate: connect.map(|config| Terminate { allow_post: config.allow_post }),
        }
    }
}

/// A duration as a header value in milliseconds.
pub fn millis_value(duration: Duration) -> HeaderValue {
    HeaderValue::from(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
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
