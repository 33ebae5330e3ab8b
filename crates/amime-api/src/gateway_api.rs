//! Kubernetes Gateway API: routes that are attached to services, and grants.
//!
//! Spec: <https://gateway-api.sigs.k8s.io/reference/spec/>

use amime_core::Duration;

/// API group of these kinds.
pub const GROUP: &str = "gateway.networking.k8s.io";

messages! {
    /// Who may refer to objects of this namespace.
    pub struct ReferenceGrantSpec {
        /// From where; any of them.
        pub from: Vec<ReferenceGrantFrom>,
        /// To what; any of them.
        pub to: Vec<ReferenceGrantTo>,
    }

    /// Objects of one kind in another namespace.
    pub struct ReferenceGrantFrom {
        /// API group; empty for core kinds.
        pub group: String,
        /// Kind.
        pub kind: String,
        /// Namespace.
        pub namespace: String,
    }

    /// Objects of one kind in this namespace.
    pub struct ReferenceGrantTo {
        /// API group; empty for core kinds.
        pub group: String,
        /// Kind.
        pub kind: String,
        /// Name; all without one.
        pub name: Option<String>,
    }

    /// How HTTP requests to its parents are routed.
    pub struct HttpRouteSpec {
        /// What the route is attached to.
        pub parent_refs: Vec<ParentReference>,
        /// Hosts it is about; used for gateways only.
        pub hostnames: Vec<String>,
        /// Rules; the most specific match wins, whatever their order.
        pub rules: Vec<HttpRouteRule>,
    }

    /// Something a route is attached to.
    pub struct ParentReference {
        /// API group; that of gateways by default, empty for services.
        pub group: Option<String>,
        /// Kind; `Gateway` by default.
        pub kind: Option<String>,
        /// Namespace; the route's own by default.
        pub namespace: Option<String>,
        /// Name.
        pub name: String,
        /// Listener of a gateway.
        pub section_name: Option<String>,
        /// Port; all by default.
        pub port: Option<u16>,
    }

    /// One rule: conditions, changes, and where to.
    pub struct HttpRouteRule {
        /// Name; made of route and position by default.
        pub name: Option<String>,
        /// Conditions, any of which suffices; none matches everything.
        pub matches: Vec<HttpRouteMatch>,
        /// What is done to matching requests.
        pub filters: Vec<HttpRouteFilter>,
        /// Where to, by weight; none is an error answer.
        pub backend_refs: Vec<HttpBackendRef>,
        /// Limits in time.
        pub timeouts: Option<HttpRouteTimeouts>,
        /// Retries.
        pub retry: Option<HttpRouteRetry>,
        /// Stickiness of sessions.
        pub session_persistence: Option<serde_json::Value>,
    }

    /// Conditions of a rule, all of which must hold.
    pub struct HttpRouteMatch {
        /// Path; the prefix `/` by default.
        pub path: Option<HttpPathMatch>,
        /// Headers.
        pub headers: Vec<HttpValueMatch>,
        /// Query parameters.
        pub query_params: Vec<HttpValueMatch>,
        /// Method.
        pub method: Option<String>,
    }

    /// Comparison of a path.
    pub struct HttpPathMatch {
        /// `PathPrefix` (by default), `Exact` or `RegularExpression`.
        pub r#type: Option<String>,
        /// What it is compared with; `/` by default.
        pub value: Option<String>,
    }

    /// Comparison of a header or query parameter.
    pub struct HttpValueMatch {
        /// `Exact` (by default) or `RegularExpression`.
        pub r#type: Option<String>,
        /// Name.
        pub name: String,
        /// What it is compared with.
        pub value: String,
    }

    /// One change; the field that `type` names holds it.
    pub struct HttpRouteFilter {
        /// Which one.
        pub r#type: String,
        /// Changes of request headers.
        pub request_header_modifier: Option<HttpHeaderFilter>,
        /// Changes of response headers.
        pub response_header_modifier: Option<HttpHeaderFilter>,
        /// Copies of requests.
        pub request_mirror: Option<HttpRequestMirrorFilter>,
        /// A redirect as the answer.
        pub request_redirect: Option<HttpRequestRedirectFilter>,
        /// A change of path or host.
        pub url_rewrite: Option<HttpUrlRewriteFilter>,
        /// Cross-origin policy.
        pub cors: Option<serde_json::Value>,
        /// A filter of somebody else's.
        pub extension_ref: Option<serde_json::Value>,
    }

    /// Header changes.
    pub struct HttpHeaderFilter {
        /// Replace or create.
        pub set: Vec<HttpHeader>,
        /// Append.
        pub add: Vec<HttpHeader>,
        /// Remove.
        pub remove: Vec<String>,
    }

    /// A header with its value.
    pub struct HttpHeader {
        /// Name.
        pub name: String,
        /// Value.
        pub value: String,
    }

    /// Where copies of requests go.
    pub struct HttpRequestMirrorFilter {
        /// The destination.
        pub backend_ref: BackendRef,
        /// Share in percent.
        pub percent: Option<u32>,
        /// Share as a fraction.
        pub fraction: Option<Fraction>,
    }

    /// A fraction; the denominator is 100 by default.
    pub struct Fraction {
        /// Above the line.
        pub numerator: u32,
        /// Below the line.
        pub denominator: Option<u32>,
    }

    /// A redirect.
    pub struct HttpRequestRedirectFilter {
        /// New scheme.
        pub scheme: Option<String>,
        /// New host.
        pub hostname: Option<String>,
        /// New path.
        pub path: Option<HttpPathModifier>,
        /// New port.
        pub port: Option<u16>,
        /// Status; 302 by default.
        pub status_code: Option<u32>,
    }

    /// A change of path or host.
    pub struct HttpUrlRewriteFilter {
        /// New host.
        pub hostname: Option<String>,
        /// New path.
        pub path: Option<HttpPathModifier>,
    }

    /// A new path.
    pub struct HttpPathModifier {
        /// `ReplaceFullPath` or `ReplacePrefixMatch`.
        pub r#type: String,
        /// The whole path.
        pub replace_full_path: Option<String>,
        /// In place of the matched prefix.
        pub replace_prefix_match: Option<String>,
    }

    /// A weighted destination.
    pub struct HttpBackendRef {
        /// API group; empty for services.
        pub group: Option<String>,
        /// `Service` by default; `Hostname` (of `networking.istio.io`) for any host.
        pub kind: Option<String>,
        /// Namespace; the route's own by default.
        pub namespace: Option<String>,
        /// Name.
        pub name: String,
        /// Port of the service.
        pub port: Option<u16>,
        /// Share; 1 by default.
        pub weight: Option<u32>,
        /// Changes for this destination.
        pub filters: Vec<HttpRouteFilter>,
    }

    /// A destination.
    pub struct BackendRef {
        /// API group; empty for services.
        pub group: Option<String>,
        /// `Service` by default.
        pub kind: Option<String>,
        /// Namespace; the route's own by default.
        pub namespace: Option<String>,
        /// Name.
        pub name: String,
        /// Port of the service.
        pub port: Option<u16>,
    }

    /// Limits in time; zero means none.
    pub struct HttpRouteTimeouts {
        /// Of the whole request.
        pub request: Option<Duration>,
        /// Of one try.
        pub backend_request: Option<Duration>,
    }

    /// Retries.
    pub struct HttpRouteRetry {
        /// Status codes that are retried.
        pub codes: Vec<u32>,
        /// Retries after the first try; 2 by default.
        pub attempts: Option<u32>,
        /// Least time between tries.
        pub backoff: Option<Duration>,
    }
}

impl From<&HttpBackendRef> for BackendRef {
    fn from(weighted: &HttpBackendRef) -> Self {
        let HttpBackendRef { group, kind, namespace, name, port, .. } = weighted.clone();
        Self { group, kind, namespace, name, port }
    }
}

impl ParentReference {
    /// True if the parent is a Kubernetes service.
    pub fn is_service(&self) -> bool {
        self.kind.as_deref() == Some("Service")
            && matches!(self.group.as_deref(), Some("" | "core"))
    }
}
