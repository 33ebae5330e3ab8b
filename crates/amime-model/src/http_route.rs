//! HTTPRoutes of the Kubernetes Gateway API that are attached to services, as
//! virtual services.
//!
//! Owns the conversion and the merge of routes with one parent. Who may use
//! the result, and with which services, is the business of `scope` and of the
//! translation, which tell it by [`RouteSemantics::Gateway`].
//!
//! Spec: <https://gateway-api.sigs.k8s.io/geps/gep-1324/>

mod rule;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use amime_api::Object;
use amime_api::gateway_api::HttpRouteSpec;
use amime_api::networking::{HttpMatchRequest, HttpRoute, StringMatch, VirtualService};
use amime_core::NamespacedName;

use crate::config::Config;
use crate::names::{MESH_GATEWAY, service_host};
use crate::virtual_service::{RouteSemantics, RoutedService};

/// A converted rule and where it was written.
type Rule = (HttpRoute, String);

/// Routes that share namespace, port and parent.
struct Merged {
    /// Of the oldest of them.
    config: Config<VirtualService>,
    rules: Vec<Rule>,
}

/// One virtual service for each namespace that routes requests to a service,
/// or to one of its ports.
pub(crate) fn routed<'a>(
    routes: impl Iterator<Item = &'a Object<HttpRouteSpec>>,
) -> Vec<RoutedService> {
    let mut routes: Vec<&Object<HttpRouteSpec>> = routes.collect();
    let age = |route: &&Object<HttpRouteSpec>| {
        let meta = &route.metadata;
        (meta.creation_timestamp.clone(), meta.namespace.clone(), meta.name.clone())
    };
    routes.sort_by_key(age);
    let mut merged: BTreeMap<String, Merged> = BTreeMap::new();
    for route in routes {
        let Some(rules) = rule::convert(route) else { continue };
        let namespace = &route.metadata.namespace;
        for parent in route.spec.parent_refs.iter().filter(|parent| parent.is_service()) {
            let host = service_host(&parent.name, parent.namespace.as_ref().unwrap_or(namespace));
            let name = match parent.port {
                Some(port) => format!("{namespace}~{port}~{host}"),
                None => format!("{namespace}~{host}"),
            };
            let own = merged.entry(name.clone()).or_insert_with(|| Merged {
                config: Config {
                    name: NamespacedName::new(namespace.clone(), name),
                    ..Config::new(&route.metadata, about(host))
                },
                rules: Vec::new(),
            });
            own.rules.extend(rules.iter().map(|rule| on_port(rule.clone(), parent.port)));
        }
    }
    merged.into_values().map(finish).collect()
}

fn about(host: String) -> VirtualService {
    let gateways = vec![MESH_GATEWAY.to_owned()];
    VirtualService { hosts: vec![host], gateways, ..Default::default() }
}

fn on_port((mut route, name): Rule, port: Option<u16>) -> Rule {
    if let Some(port) = port {
        if route.r#match.is_empty() {
            route.r#match.push(HttpMatchRequest::default());
        }
        route.r#match.iter_mut().for_each(|condition| condition.port = u32::from(port));
    }
    (route, name)
}

fn finish(mut merged: Merged) -> RoutedService {
    merged.rules.sort_by_key(|(route, _)| precedence(route));
    let (http, http_rules) = merged.rules.into_iter().unzip();
    merged.config.spec.http = http;
    RoutedService { config: merged.config, http_rules, semantics: RouteSemantics::Gateway }
}

/// Order in which conditions are tried: exact paths, long prefixes, then by
/// how much else they ask for.
fn precedence(route: &HttpRoute) -> impl Ord + use<> {
    let Some(condition) = route.r#match.first() else {
        return (true, Reverse((0, 0)), Reverse((false, 0, 0)));
    };
    let path = match &condition.uri {
        Some(StringMatch::Exact(path)) => (3, path.len()),
        Some(StringMatch::Prefix(path)) => (2, path.len()),
        Some(StringMatch::Regex(path)) => (1, path.len()),
        Some(StringMatch::Present) | None => (0, 0),
    };
    let rest = (condition.method.is_some(), condition.headers.len(), condition.query_params.len());
    (false, Reverse(path), Reverse(rest))
}
