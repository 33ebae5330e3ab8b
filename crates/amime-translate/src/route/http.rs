//! HTTP rules of virtual services as Envoy routes.

use std::collections::BTreeMap;

use amime_api::networking::{
    DerivePort, Destination, HttpBody, HttpDirectResponse, HttpMatchRequest, HttpRedirect,
    HttpRoute, HttpRouteDestination,
};
use amime_core::Protocol;
use amime_model::{RouteSemantics, RoutedService, Service, selects};
use base64::Engine;
use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier, MaxStreamDuration,
};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::{ClusterWeight, cluster_weight};
use envoy_types::pb::envoy::config::route::v3::{
    Decorator, DirectResponseAction, RedirectAction, Route, RouteAction, RouteMatch,
    WeightedCluster,
};
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use envoy_types::pb::google::protobuf::{Any, Duration};

use super::headers::HeaderChanges;
use super::matching::{everything, is_catch_all, route_match};
use super::{policy, retry};
use crate::context::Context;
use crate::filters::{CORS, FAULT};
use crate::names::{OutboundName, outbound_cluster};
use crate::origin::{OriginKind, config_path, origin};
use crate::proto::{any, duration, inline_bytes, inline_string, regex, u32_value};

/// Name of a route that no rule names.
const DEFAULT_ROUTE: &str = "default";
/// Cluster of a destination without a host.
const UNKNOWN_SERVICE: &str = "UnknownService";

/// Finds the service that a destination host means.
pub(crate) type LookUp<'l> = &'l dyn Fn(&str) -> Option<std::sync::Arc<Service>>;

/// Where the routes will stand.
pub(crate) struct RouteTarget<'t> {
    /// Port of the listener.
    pub(crate) port: u32,
    /// Gateway that conditions are compared with.
    pub(crate) gateway: &'t str,
    /// The listener speaks TLS.
    pub(crate) tls: bool,
    pub(crate) look_up: LookUp<'t>,
    /// Clients are told that the port is there for HTTP/3 too.
    pub(crate) http3: bool,
}

/// Routes of a virtual service, in order, up to the first that takes everything.
pub(crate) fn routes(
    context: &Context<'_>,
    rule: &RoutedService,
    target: &RouteTarget<'_>,
) -> Vec<Route> {
    let mut routes = Vec::new();
    for (http, rule_name) in rule.spec().http.iter().zip(&rule.http_rules) {
        let builder = Builder { context, rule, http, rule_name, target };
        if http.r#match.is_empty() {
            routes.extend(builder.route(None));
            break;
        }
        for condition in &http.r#match {
            let Some(route) = builder.route(Some(condition)) else { continue };
            let last = route.r#match.as_ref().is_some_and(is_catch_all);
            routes.push(route);
            if last {
                return routes;
            }
        }
    }
    routes
}

/// The cluster that a destination means.
pub(crate) fn destination_cluster(
    destination: &Destination,
    service: Option<&Service>,
    listener_port: u32,
) -> String {
    if destination.host.is_empty() {
        return UNKNOWN_SERVICE.to_owned();
    }
    let alias = service.and_then(|service| service.alias_of.clone());
    let hostname = alias.unwrap_or_else(|| destination.host.as_str().into());
    let port = match (&destination.port, service) {
        (Some(port), _) => port.number,
        (None, Some(service)) if service.ports.len() == 1 => service.ports[0].number,
        _ => listener_port,
    };
    outbound_cluster(port, &destination.subset, &hostname)
}

/// Takes the matched prefix away; the slash stays where nothing else does.
fn without_prefix(matched: Option<&RouteMatch>) -> RegexMatchAndSubstitute {
    let prefix = match matched.and_then(|matched| matched.path_specifier.as_ref()) {
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => prefix.as_str(),
        _ => "",
    };
    let special = |c: char| !c.is_ascii_alphanumeric() && c.is_ascii() && c != '/' && c != '_';
    let escape = |c: char| if special(c) { format!("\\{c}") } else { c.to_string() };
    let quoted: String = prefix.chars().map(escape).collect();
    RegexMatchAndSubstitute {
        pattern: Some(regex(&format!("^{quoted}(/?)(.*)"))),
        substitution: "/\\2".to_owned(),
    }
}

struct Builder<'b, 'c> {
    context: &'b Context<'c>,
    rule: &'b RoutedService,
    http: &'b HttpRoute,
    rule_name: &'b str,
    target: &'b RouteTarget<'b>,
}

impl Builder<'_, '_> {
    /// The route for one condition; `None` if it is not for this proxy or port.
    fn route(&self, condition: Option<&HttpMatchRequest>) -> Option<Route> {
        if !condition.is_none_or(|condition| self.applies(condition)) {
            return None;
        }
        let changes = HeaderChanges::new(self.http.headers.as_ref());
        let mut route = Route {
            name: self.route_name(condition),
            r#match: Some(route_match(
                condition,
                self.rule.semantics != RouteSemantics::VirtualService,
            )),
            metadata: origin(
                config_path(OriginKind::VirtualService, &self.rule.config.name),
                Some(self.rule_name),
            ),
            stat_prefix: condition.map_or(String::new(), |c| c.stat_prefix.clone()),
            request_headers_to_add: changes.request_add,
            request_headers_to_remove: changes.request_remove,
            response_headers_to_add: changes.response_add,
            response_headers_to_remove: changes.response_remove,
            ..Default::default()
        };
        if let Some(settings) = &self.http.redirect {
            route.action = redirect(settings, self.target).map(Action::Redirect);
        } else if let Some(settings) = &self.http.direct_response {
            route.action = Some(Action::DirectResponse(direct_response(settings)));
        } else {
            let action = self.forward(&mut route, changes.authority);
            route.action = Some(Action::Route(action));
        }
        if self.target.http3 {
            route.response_headers_to_add.push(policy::alt_svc(self.target.port));
        }
        route.decorator = Some(self.decorator(&route));
        route.typed_per_filter_config = self.filter_settings().into_iter().collect();
        Some(route)
    }

    fn route_name(&self, condition: Option<&HttpMatchRequest>) -> String {
        let own = &self.http.name;
        match condition.map(|condition| condition.name.as_str()) {
            None | Some("") => own.clone(),
            Some(name) => format!("{own}.{name}"),
        }
    }

    /// Conditions that are known now: port, gateway, client.
    fn applies(&self, condition: &HttpMatchRequest) -> bool {
        if condition.port != 0 && condition.port != self.target.port {
            return false;
        }
        if !condition.gateways.is_empty() {
            return condition.gateways.iter().any(|gateway| gateway == self.target.gateway);
        }
        let source = condition.source_namespace.as_str();
        selects(&condition.source_labels, &self.context.labels)
            && (source.is_empty() || source == self.context.source_namespace())
    }

    fn filter_settings(&self) -> BTreeMap<String, Any> {
        let mut settings = BTreeMap::new();
        if let Some(fault) = self.http.fault.as_ref().and_then(policy::fault) {
            settings.insert(FAULT.to_owned(), any(&fault));
        }
        if let Some(cors) = &self.http.cors_policy {
            settings.insert(CORS.to_owned(), any(&policy::cors(cors)));
        }
        settings
    }

    fn forward(&self, route: &mut Route, authority: Option<String>) -> RouteAction {
        let mut action = RouteAction::default();
        set_timeout(&mut action, self.http.timeout.map(|timeout| duration(timeout.std())));
        let gateway_api = self.rule.semantics == RouteSemantics::Gateway;
        if gateway_api {
            action.cluster_not_found_response_code =
                ClusterNotFoundResponseCode::InternalServerError.into();
        }
        let mut authority = authority;
        if let Some(rewrite) = &self.http.rewrite {
            action.append_x_forwarded_host = self.context.settings.forwarded_host();
            if let Some(pattern) = &rewrite.uri_regex_rewrite {
                action.regex_rewrite = Some(RegexMatchAndSubstitute {
                    pattern: Some(regex(&pattern.r#match)),
                    substitution: pattern.rewrite.clone(),
                });
            } else if gateway_api && rewrite.uri == "/" {
                action.regex_rewrite = Some(without_prefix(route.r#match.as_ref()));
            } else if !rewrite.uri.is_empty() {
                action.prefix_rewrite.clone_from(&rewrite.uri);
            }
            if !rewrite.authority.is_empty() {
                authority = Some(rewrite.authority.clone());
            }
        }
        action.host_rewrite_specifier = authority.map(HostRewriteSpecifier::HostRewriteLiteral);
        self.add_mirrors(&mut action);
        let hashed = match self.http.route.as_slice() {
            [only] => self.single(only, route, &mut action),
            many => {
                self.weighted(many, &mut action);
                false
            }
        };
        let mesh_default = self.context.mesh.default_http_retry_policy.as_ref();
        action.retry_policy = retry::outbound(self.http.retries.as_ref().or(mesh_default), hashed);
        action
    }

    fn cluster(&self, destination: &Destination) -> String {
        let service = (self.target.look_up)(&destination.host);
        destination_cluster(destination, service.as_deref(), self.target.port)
    }

    fn add_mirrors(&self, action: &mut RouteAction) {
        let single = self.http.mirror.as_ref().zip(policy::mirror_share(self.http));
        let many = self.http.mirrors.iter().filter_map(|mirror| {
            Some((&mirror.destination, policy::share_of(mirror.percentage.as_ref())?))
        });
        let mirrors = single.into_iter().chain(many);
        action.request_mirror_policies = mirrors
            .map(|(destination, share)| policy::mirror(self.cluster(destination), share))
            .collect();
    }

    /// One destination; returns whether requests are hashed to hosts.
    fn single(
        &self,
        only: &HttpRouteDestination,
        route: &mut Route,
        action: &mut RouteAction,
    ) -> bool {
        let cluster = self.cluster(&only.destination);
        action.cluster_specifier = Some(ClusterSpecifier::Cluster(cluster));
        let changes = HeaderChanges::new(only.headers.as_ref());
        route.request_headers_to_add.extend(changes.request_add);
        route.request_headers_to_remove.extend(changes.request_remove);
        route.response_headers_to_add.extend(changes.response_add);
        route.response_headers_to_remove.extend(changes.response_remove);
        if action.host_rewrite_specifier.is_none() {
            action.host_rewrite_specifier =
                changes.authority.map(HostRewriteSpecifier::HostRewriteLiteral);
        }
        self.add_hash(&only.destination, action)
    }

    fn weighted(&self, many: &[HttpRouteDestination], action: &mut RouteAction) {
        let mut clusters = Vec::new();
        for one in many.iter().filter(|one| one.weight > 0) {
            let changes = HeaderChanges::new(one.headers.as_ref());
            clusters.push(ClusterWeight {
                name: self.cluster(&one.destination),
                weight: u32_value(u32::try_from(one.weight).unwrap_or_default()),
                request_headers_to_add: changes.request_add,
                request_headers_to_remove: changes.request_remove,
                response_headers_to_add: changes.response_add,
                response_headers_to_remove: changes.response_remove,
                host_rewrite_specifier: changes
                    .authority
                    .map(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
                ..Default::default()
            });
            self.add_hash(&one.destination, action);
        }
        let weighted = WeightedCluster { clusters, ..Default::default() };
        action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(weighted));
    }

    fn add_hash(&self, destination: &Destination, action: &mut RouteAction) -> bool {
        let port = destination.port.as_ref().map(|port| port.number);
        let hash =
            policy::consistent_hash(self.context, &destination.host, &destination.subset, port);
        let Some(hash) = hash else { return false };
        action.hash_policy.extend(policy::hash_policy(&hash));
        true
    }

    /// What a trace calls the route.
    fn decorator(&self, route: &Route) -> Decorator {
        let path = match route.r#match.as_ref().and_then(|m| m.path_specifier.as_ref()) {
            Some(PathSpecifier::Prefix(prefix)) => format!("{prefix}*"),
            Some(PathSpecifier::Path(path)) => path.clone(),
            Some(PathSpecifier::SafeRegex(pattern)) => pattern.regex.clone(),
            _ => "/*".to_owned(),
        };
        let cluster = match &route.action {
            Some(Action::Route(RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
                ..
            })) => OutboundName::parse(cluster),
            _ => None,
        };
        let operation = match cluster {
            Some(name) => format!("{}:{}{path}", name.hostname, name.port),
            None => format!("{}:{}{path}", self.rule.config.name.name, self.target.port),
        };
        Decorator { operation, propagate: None }
    }
}

#[expect(deprecated, reason = "its replacement limits streams, which have no limit here")]
fn set_timeout(action: &mut RouteAction, timeout: Option<Duration>) {
    let timeout = timeout.unwrap_or_default();
    action.timeout = Some(timeout);
    action.max_grpc_timeout = Some(timeout);
}

/// The action for traffic to one cluster, without limit of time.
pub(crate) fn to_cluster(cluster: String) -> RouteAction {
    let mut action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        ..Default::default()
    };
    set_timeout(&mut action, None);
    action
}

/// The route of a service that no virtual service is about.
pub(crate) fn default_outbound(context: &Context<'_>, cluster: String, operation: String) -> Route {
    let mut action = to_cluster(cluster);
    let mesh_default = context.mesh.default_http_retry_policy.as_ref();
    action.retry_policy = retry::outbound(mesh_default, false);
    default_route(action, operation)
}

/// The route to the workload itself.
pub(crate) fn default_inbound(
    context: &Context<'_>,
    cluster: String,
    operation: String,
    protocol: Protocol,
) -> Route {
    let none = Some(Duration::default());
    let mut action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        timeout: none,
        max_stream_duration: Some(MaxStreamDuration {
            max_stream_duration: none,
            grpc_timeout_header_max: none,
            ..Default::default()
        }),
        ..Default::default()
    };
    // A reset stream of gRPC may have been acted on.
    if !protocol.is_grpc() {
        let mesh_default = context.mesh.default_inbound_http_retry_policy.as_ref();
        action.retry_policy = retry::inbound(mesh_default);
    }
    default_route(action, operation)
}

fn default_route(action: RouteAction, operation: String) -> Route {
    Route {
        name: DEFAULT_ROUTE.to_owned(),
        r#match: Some(everything()),
        decorator: Some(Decorator { operation, propagate: None }),
        action: Some(Action::Route(action)),
        ..Default::default()
    }
}

/// The redirect; `None` for a code that is no redirect.
fn redirect(settings: &HttpRedirect, target: &RouteTarget<'_>) -> Option<RedirectAction> {
    let code = match settings.redirect_code {
        0 | 301 => RedirectResponseCode::MovedPermanently,
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => return None,
    };
    let path = match settings.prefix_rewrite.as_str() {
        "" => PathRewriteSpecifier::PathRedirect(settings.uri.clone()),
        prefix => PathRewriteSpecifier::PrefixRewrite(prefix.to_owned()),
    };
    let scheme = match settings.scheme.as_str() {
        "" if target.tls => "https",
        "" => "http",
        scheme => scheme,
    };
    let port = match (settings.port, settings.derive_port) {
        (Some(port), _) => port,
        (None, Some(DerivePort::FromRequestPort)) => target.port,
        _ => 0,
    };
    // The usual port of a scheme is not written out.
    let usual = [("http", 80), ("https", 443)].contains(&(scheme, port));
    Some(RedirectAction {
        host_redirect: settings.authority.clone(),
        port_redirect: if usual { 0 } else { port },
        response_code: code.into(),
        scheme_rewrite_specifier: (!settings.scheme.is_empty())
            .then(|| SchemeRewriteSpecifier::SchemeRedirect(settings.scheme.clone())),
        path_rewrite_specifier: Some(path),
        ..Default::default()
    })
}

fn direct_response(settings: &HttpDirectResponse) -> DirectResponseAction {
    DirectResponseAction {
        status: settings.status,
        body: settings.body.as_ref().and_then(body),
        ..Default::default()
    }
}

fn body(body: &HttpBody) -> Option<DataSource> {
    match (&body.string, &body.bytes) {
        (Some(text), _) => Some(inline_string(text.as_str())),
        (None, Some(encoded)) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
            Some(inline_bytes(bytes))
        }
        (None, None) => None,
    }
}
