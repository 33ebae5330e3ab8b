//! Patches of route configurations, their virtual hosts and routes.

use amime_api::networking::{ApplyTo, PatchOperation, RouteAction, RouteMatch, VirtualHostMatch};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};

use super::list::{Anchor, edit};
use super::{Patch, Side};
use crate::context::Context;
use crate::names::InboundName;

const KINDS: [ApplyTo; 3] = [ApplyTo::RouteConfiguration, ApplyTo::VirtualHost, ApplyTo::HttpRoute];

/// Applies the patches of one side to a route configuration.
pub(crate) fn patch_routes(context: &Context<'_>, side: Side, routes: &mut RouteConfiguration) {
    let mut patches = context.patches().on(side, &KINDS);
    patches.retain(|patch| is_for(context, side, &routes.name, patch));
    if patches.is_empty() {
        return;
    }
    for patch in of_kind(&patches, ApplyTo::RouteConfiguration) {
        patch.merge_into(routes);
    }
    let hosts = std::mem::take(&mut routes.virtual_hosts).into_iter();
    routes.virtual_hosts = hosts.filter_map(|host| patch_host(&patches, host)).collect();
    for patch in of_kind(&patches, ApplyTo::VirtualHost) {
        if patch.operation == PatchOperation::Add {
            routes.virtual_hosts.extend(patch.message::<VirtualHost>());
        }
    }
}

fn of_kind<'a, 'p>(patches: &'a [&'p Patch], kind: ApplyTo) -> impl Iterator<Item = &'a &'p Patch> {
    patches.iter().filter(move |patch| patch.kind == kind)
}

/// True if the patch is about this configuration, whatever in it.
fn is_for(context: &Context<'_>, side: Side, name: &str, patch: &Patch) -> bool {
    let Some(wanted) = patch.routes() else { return true };
    if !wanted.name.is_empty() && wanted.name != name {
        return false;
    }
    if side != Side::Gateway {
        let port = InboundName::parse(name).map_or_else(|| name.parse().ok(), |n| Some(n.port));
        return wanted.port_number == 0 || port == Some(wanted.port_number);
    }
    // Plaintext servers share a configuration that is no gateway's in particular.
    let (port_name, gateway) = https_parts(name).unwrap_or_default();
    (wanted.port_name.is_empty() || wanted.port_name == port_name)
        && (wanted.gateway.is_empty() || wanted.gateway == gateway)
        && (wanted.port_number == 0 || serves(context, name, wanted.port_number))
}

/// Port name and gateway in `https.PORT.PORTNAME.GATEWAY.NAMESPACE`.
fn https_parts(name: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = name.strip_prefix("https.")?.split('.').collect();
    let [_, port_name, gateway, namespace] = parts[..] else { return None };
    Some((port_name.to_owned(), format!("{namespace}/{gateway}")))
}

/// True if a server on this port, as its gateway writes it, has the routes.
fn serves(context: &Context<'_>, name: &str, port: u32) -> bool {
    context.gateway().servers_of_route(name).iter().any(|server| server.port_number() == port)
}

/// The host as patched; `None` if it is removed.
fn patch_host(patches: &[&Patch], mut host: VirtualHost) -> Option<VirtualHost> {
    for patch in of_kind(patches, ApplyTo::VirtualHost) {
        if !matches_host(&host, host_match(patch)) {
            continue;
        }
        match patch.operation {
            PatchOperation::Remove => return None,
            PatchOperation::Replace => host = patch.message().unwrap_or(host),
            _ => patch.merge_into(&mut host),
        }
    }
    let of_routes = of_kind(patches, ApplyTo::HttpRoute);
    let own: Vec<_> =
        of_routes.copied().filter(|patch| matches_host(&host, host_match(patch))).collect();
    let routes = std::mem::take(&mut host.routes).into_iter();
    host.routes = routes.filter_map(|route| patch_route(&own, route)).collect();
    for patch in own {
        add_route(patch, &mut host.routes);
    }
    Some(host)
}

fn host_match(patch: &Patch) -> Option<&VirtualHostMatch> {
    patch.routes()?.vhost.as_ref()
}

fn route_match(patch: &Patch) -> Option<&RouteMatch> {
    host_match(patch)?.route.as_ref()
}

fn matches_host(host: &VirtualHost, wanted: Option<&VirtualHostMatch>) -> bool {
    wanted.is_none_or(|wanted| {
        (wanted.name.is_empty() || wanted.name == host.name)
            && (wanted.domain_name.is_empty() || host.domains.contains(&wanted.domain_name))
    })
}

fn matches_route(route: &Route, wanted: Option<&RouteMatch>) -> bool {
    let Some(wanted) = wanted else { return true };
    let action = match &route.action {
        Some(Action::Route(_)) => wanted.action == RouteAction::Route,
        Some(Action::Redirect(_)) => wanted.action == RouteAction::Redirect,
        Some(Action::DirectResponse(_)) => wanted.action == RouteAction::DirectResponse,
        _ => true,
    };
    (wanted.name.is_empty() || wanted.name == route.name)
        && (wanted.action == RouteAction::Any || action)
}

fn patch_route(patches: &[&Patch], mut route: Route) -> Option<Route> {
    for patch in patches {
        if !matches_route(&route, route_match(patch)) {
            continue;
        }
        if patch.operation == PatchOperation::Remove {
            return None;
        }
        patch.merge_into(&mut route);
    }
    Some(route)
}

fn add_route(patch: &Patch, routes: &mut Vec<Route>) {
    let operation = match patch.operation {
        // Removed already, and nothing is replaced.
        PatchOperation::Remove | PatchOperation::Replace => return,
        // It goes to the top, but only if what it names is there.
        PatchOperation::InsertFirst
            if !routes.iter().any(|route| matches_route(route, route_match(patch))) =>
        {
            return;
        }
        own => own,
    };
    let new = || patch.message();
    match route_match(patch) {
        None => edit(routes, operation, &Anchor::None::<fn(&Route) -> bool>, new),
        wanted => {
            let is_it = |route: &Route| matches_route(route, wanted);
            edit(routes, operation, &Anchor::At(is_it), new);
        }
    }
}
