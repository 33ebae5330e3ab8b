//! `VirtualService`: how requests and connections to a host are routed.
//!
//! Spec: <https://istio.io/latest/docs/reference/config/networking/virtual-service/>

use std::collections::BTreeMap;

use amime_core::Duration;
use serde::{Deserialize, Serialize};

use crate::meta::StringMap;

messages! {
    /// Routes for one or more hosts.
    pub struct VirtualService {
        /// Hosts; a short name belongs to the rule's own namespace.
        pub hosts: Vec<String>,
        /// Gateways `[namespace/]name`; `mesh` means all sidecars and is the default.
        pub gateways: Vec<String>,
        /// HTTP routes, the first match wins.
        pub http: Vec<HttpRoute>,
        /// Routes of TLS connections that are passed through, by SNI.
        pub tls: Vec<TlsRoute>,
        /// Routes of other TCP connections.
        pub tcp: Vec<TcpRoute>,
        /// Namespaces that see the rule: `.`, `*` or names.
        pub export_to: Vec<String>,
    }

    /// A service, one of its subsets, one of its ports.
    pub struct Destination {
        /// Host in the registry; a short name belongs to the rule's own namespace.
        pub host: String,
        /// Subset named by a `DestinationRule`; empty for all endpoints.
        pub subset: String,
        /// Port; optional if the service has one only.
        pub port: Option<PortSelector>,
    }

    /// Port of a destination.
    pub struct PortSelector {
        /// Port number, 1 to 65535.
        pub number: u32,
    }

    /// One HTTP routing rule: conditions and what to do.
    pub struct HttpRoute {
        /// Name for logs and metrics.
        pub name: String,
        /// Conditions, any of which suffices; none matches everything.
        pub r#match: Vec<HttpMatchRequest>,
        /// Where to, by weight.
        pub route: Vec<HttpRouteDestination>,
        /// Answer with a redirect instead.
        pub redirect: Option<HttpRedirect>,
        /// Answer with a fixed response instead.
        pub direct_response: Option<HttpDirectResponse>,
        /// Take the rules of another `VirtualService`.
        pub delegate: Option<Delegate>,
        /// Change path or authority before forwarding.
        pub rewrite: Option<HttpRewrite>,
        /// Limit of the whole request; none or zero means no limit.
        pub timeout: Option<Duration>,
        /// Retry policy; none means the mesh default, zero attempts means no retry.
        pub retries: Option<HttpRetry>,
        /// Faults to inject.
        pub fault: Option<HttpFaultInjection>,
        /// Copy requests to this destination too.
        pub mirror: Option<Destination>,
        /// Several mirrors, each with its share.
        pub mirrors: Vec<HttpMirrorPolicy>,
        /// Old integer share for `mirror`.
        pub mirror_percent: Option<u32>,
        /// Share of requests copied to `mirror`; none means all.
        pub mirror_percentage: Option<Percent>,
        /// Cross-origin policy.
        pub cors_policy: Option<CorsPolicy>,
        /// Header changes.
        pub headers: Option<Headers>,
    }

    /// Conditions of an HTTP rule, all of which must hold.
    pub struct HttpMatchRequest {
        /// Name, appended to the route's.
        pub name: String,
        /// Path with query removed.
        pub uri: Option<StringMatch>,
        /// `http` or `https`.
        pub scheme: Option<StringMatch>,
        /// Method.
        pub method: Option<StringMatch>,
        /// Host header.
        pub authority: Option<StringMatch>,
        /// Header values by lower-case name.
        pub headers: BTreeMap<String, StringMatch>,
        /// Port of the host that the client addressed.
        pub port: u32,
        /// Labels of the client workload the rule applies to.
        pub source_labels: StringMap,
        /// Gateways the rule applies to, instead of the top-level list.
        pub gateways: Vec<String>,
        /// Query parameters by name.
        pub query_params: BTreeMap<String, StringMatch>,
        /// Compare `uri` without regard to case (exact and prefix only).
        pub ignore_uri_case: bool,
        /// Header values that must not match.
        pub without_headers: BTreeMap<String, StringMatch>,
        /// Namespace of the client workload the rule applies to.
        pub source_namespace: String,
        /// Prefix of statistics for this match.
        pub stat_prefix: String,
    }

    /// One weighted HTTP destination.
    pub struct HttpRouteDestination {
        /// Where to.
        pub destination: Destination,
        /// Share among the rule's destinations.
        pub weight: i32,
        /// Header changes for this destination.
        pub headers: Option<Headers>,
    }

    /// One weighted connection destination.
    pub struct RouteDestination {
        /// Where to.
        pub destination: Destination,
        /// Share among the rule's destinations.
        pub weight: i32,
    }

    /// Rule for TLS connections.
    pub struct TlsRoute {
        /// Conditions, any of which suffices.
        pub r#match: Vec<TlsMatchAttributes>,
        /// Where to, by weight.
        pub route: Vec<RouteDestination>,
    }

    /// Rule for TCP connections.
    pub struct TcpRoute {
        /// Conditions, any of which suffices; none matches everything.
        pub r#match: Vec<L4MatchAttributes>,
        /// Where to, by weight.
        pub route: Vec<RouteDestination>,
    }

    /// Conditions of a TLS rule, all of which must hold.
    pub struct TlsMatchAttributes {
        /// Server names, within the rule's hosts.
        pub sni_hosts: Vec<String>,
        /// Destination addresses or CIDR ranges.
        pub destination_subnets: Vec<String>,
        /// Port of the host that the client addressed.
        pub port: u32,
        /// Labels of the client workload the rule applies to.
        pub source_labels: StringMap,
        /// Gateways the rule applies to, instead of the top-level list.
        pub gateways: Vec<String>,
        /// Namespace of the client workload the rule applies to.
        pub source_namespace: String,
    }

    /// Conditions of a TCP rule, all of which must hold.
    pub struct L4MatchAttributes {
        /// Destination addresses or CIDR ranges.
        pub destination_subnets: Vec<String>,
        /// Port of the host that the client addressed.
        pub port: u32,
        /// Never implemented by Istio.
        pub source_subnet: String,
        /// Labels of the client workload the rule applies to.
        pub source_labels: StringMap,
        /// Gateways the rule applies to, instead of the top-level list.
        pub gateways: Vec<String>,
        /// Namespace of the client workload the rule applies to.
        pub source_namespace: String,
    }

    /// Redirect answered by the proxy.
    pub struct HttpRedirect {
        /// New path.
        pub uri: String,
        /// New path prefix in place of the matched one.
        pub prefix_rewrite: String,
        /// New host.
        pub authority: String,
        /// New port.
        pub port: Option<u32>,
        /// How to derive the port instead.
        pub derive_port: Option<DerivePort>,
        /// New scheme.
        pub scheme: String,
        /// 301 by default; 302, 303, 307, 308.
        pub redirect_code: u32,
    }

    /// Fixed answer by the proxy.
    pub struct HttpDirectResponse {
        /// Status code.
        pub status: u32,
        /// Body, if any.
        pub body: Option<HttpBody>,
    }

    /// Body of a direct response, one of the two.
    pub struct HttpBody {
        /// Text.
        pub string: Option<String>,
        /// Base64 of bytes.
        pub bytes: Option<String>,
    }

    /// Reference to a `VirtualService` that completes a rule.
    pub struct Delegate {
        /// Name.
        pub name: String,
        /// Namespace; the rule's own by default.
        pub namespace: String,
    }

    /// Changes of path and host before forwarding.
    pub struct HttpRewrite {
        /// Replaces the matched prefix, or the whole path if the match was not by prefix.
        pub uri: String,
        /// Replaces the host.
        pub authority: String,
        /// Replaces by pattern.
        pub uri_regex_rewrite: Option<RegexRewrite>,
    }

    /// Replacement of a path by pattern.
    pub struct RegexRewrite {
        /// RE2 pattern.
        pub r#match: String,
        /// Replacement, with groups as `\1`.
        pub rewrite: String,
    }

    /// Retry policy of a rule.
    pub struct HttpRetry {
        /// Retries after the first try; zero switches retries off.
        pub attempts: i32,
        /// Limit of one try; none means the route's timeout.
        pub per_try_timeout: Option<Duration>,
        /// Comma-separated conditions and status codes.
        pub retry_on: String,
        /// Whether other localities are tried.
        pub retry_remote_localities: Option<bool>,
        /// Whether hosts that failed are avoided.
        pub retry_ignore_previous_hosts: Option<bool>,
        /// Base of the exponential back-off; 25 ms by default.
        pub backoff: Option<Duration>,
    }

    /// Cross-origin resource sharing.
    pub struct CorsPolicy {
        /// Old exact-match form of `allow_origins`.
        pub allow_origin: Vec<String>,
        /// Origins allowed.
        pub allow_origins: Vec<StringMatch>,
        /// Methods allowed.
        pub allow_methods: Vec<String>,
        /// Request headers allowed.
        pub allow_headers: Vec<String>,
        /// Response headers shown to scripts.
        pub expose_headers: Vec<String>,
        /// How long the answer may be cached.
        pub max_age: Option<Duration>,
        /// Whether credentials may be sent.
        pub allow_credentials: Option<bool>,
        /// What happens to preflight requests of other origins.
        pub unmatched_preflights: UnmatchedPreflights,
    }

    /// Faults to inject into requests of a rule.
    pub struct HttpFaultInjection {
        /// Wait before forwarding.
        pub delay: Option<Delay>,
        /// Answer with an error instead of forwarding.
        pub abort: Option<Abort>,
    }

    /// Delay fault.
    pub struct Delay {
        /// Old integer share.
        pub percent: Option<i32>,
        /// How long to wait.
        pub fixed_delay: Option<Duration>,
        /// Never implemented by Istio.
        pub exponential_delay: Option<Duration>,
        /// Share of requests.
        pub percentage: Option<Percent>,
    }

    /// Abort fault.
    pub struct Abort {
        /// Old integer share.
        pub percent: Option<i32>,
        /// Status to answer with.
        pub http_status: Option<i32>,
        /// gRPC status name to answer with.
        pub grpc_status: Option<String>,
        /// Never implemented by Istio.
        pub http2_error: Option<String>,
        /// Share of requests; without it no request is aborted.
        pub percentage: Option<Percent>,
    }

    /// Share in percent, 0 to 100.
    pub struct Percent {
        /// The number.
        pub value: f64,
    }

    /// One mirror with its share.
    pub struct HttpMirrorPolicy {
        /// Where copies go.
        pub destination: Destination,
        /// Share of requests; none means all.
        pub percentage: Option<Percent>,
    }

    /// Header changes in both directions.
    pub struct Headers {
        /// Before forwarding.
        pub request: Option<HeaderOperations>,
        /// Before answering.
        pub response: Option<HeaderOperations>,
    }

    /// Header changes in one direction.
    pub struct HeaderOperations {
        /// Replace or create.
        pub set: StringMap,
        /// Append.
        pub add: StringMap,
        /// Remove.
        pub remove: Vec<String>,
    }
}

values! {
    /// Port of a redirect when it is not given.
    pub enum DerivePort {
        /// 80 or 443 by scheme.
        #[default]
        FromProtocolDefault,
        /// The port that the request came to.
        FromRequestPort,
    }

    /// Treatment of preflight requests whose origin matches nothing.
    pub enum UnmatchedPreflights {
        /// Default, same as forward.
        #[default]
        Unspecified,
        /// Forward to the upstream.
        Forward,
        /// Do not forward.
        Ignore,
    }
}

/// Comparison of one string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "StringMatchFields", from = "StringMatchFields")]
pub enum StringMatch {
    /// Equal.
    Exact(String),
    /// Starts with.
    Prefix(String),
    /// The whole string matches an RE2 pattern.
    Regex(String),
    /// No comparison given: for a header, it must be present.
    #[default]
    Present,
}

messages! {
    /// Wire form of [`StringMatch`]: at most one member.
    pub struct StringMatchFields {
        /// Equal.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub exact: Option<String>,
        /// Starts with.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub prefix: Option<String>,
        /// The whole string matches.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub regex: Option<String>,
    }
}

impl From<StringMatchFields> for StringMatch {
    fn from(fields: StringMatchFields) -> Self {
        match fields {
            StringMatchFields { exact: Some(text), .. } => Self::Exact(text),
            StringMatchFields { prefix: Some(text), .. } => Self::Prefix(text),
            StringMatchFields { regex: Some(text), .. } => Self::Regex(text),
            StringMatchFields { exact: None, prefix: None, regex: None } => Self::Present,
        }
    }
}

impl From<StringMatch> for StringMatchFields {
    fn from(value: StringMatch) -> Self {
        let mut fields = Self::default();
        match value {
            StringMatch::Exact(text) => fields.exact = Some(text),
            StringMatch::Prefix(text) => fields.prefix = Some(text),
            StringMatch::Regex(text) => fields.regex = Some(text),
            StringMatch::Present => {}
        }
        fields
    }
}
