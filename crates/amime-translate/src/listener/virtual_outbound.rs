//! The listener behind the redirection of outbound connections.

use amime_core::Protocol;
use amime_model::UnknownDestinations;
use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener,
};

use super::chain::{PLAINTEXT_HTTP, owned};
use super::hcm::{self, HttpOptions, Routes};
use super::{accept_one_at_a_time, access_log, bare, tcp};
use crate::context::Context;
use crate::dynamic_dns;
use crate::filters::{ListenerClass, http_inspector};
use crate::names::{ALLOW_ANY_DYNAMIC_DNS, BLACK_HOLE_CLUSTER, VIRTUAL_OUTBOUND};
use crate::origin::{mesh_path, origin};
use crate::proto::{bool_value, u32_value};
use crate::proxy::Interception;
use crate::route::{self, egress_cluster};

/// The listener that hands connections to the one for their destination, and
/// takes those that have none; `None` without redirection.
pub(super) fn listener(context: &Context<'_>) -> Option<Listener> {
    let interception = context.proxy.interception();
    if interception == Interception::None {
        return None;
    }
    let port = context.outbound_port();
    let mut listener =
        bare(VIRTUAL_OUTBOUND.to_owned(), &[context.wildcard()], port, TrafficDirection::Outbound);
    accept_one_at_a_time(&mut listener);
    if interception == Interception::Tproxy {
        listener.transparent = bool_value(true);
    }
    listener.use_original_dst = bool_value(true);
    listener.access_log = access_log::of_listener(context.mesh);
    listener.metadata = origin(mesh_path(&context.mesh.root_namespace), None);
    let class = ListenerClass::Outbound;
    listener.filter_chains = vec![
        FilterChain {
            name: format!("{VIRTUAL_OUTBOUND}-blackhole"),
            // A connection to the port itself would be sent here again.
            filter_chain_match: Some(FilterChainMatch {
                destination_port: u32_value(port),
                ..Default::default()
            }),
            filters: tcp::to_nowhere(context, class, BLACK_HOLE_CLUSTER),
            ..Default::default()
        },
        FilterChain {
            name: format!("{VIRTUAL_OUTBOUND}-catchall-tcp"),
            filters: unknown_destinations(context),
            ..Default::default()
        },
    ];
    if dynamic_dns::is_on(context) {
        listener.listener_filters.push(http_inspector());
        listener.filter_chains.insert(1, unknown_http(context));
    }
    Some(listener)
}

/// The chain for plaintext HTTP to hosts that the proxy is to resolve.
fn unknown_http(context: &Context<'_>) -> FilterChain {
    let hosts = vec![route::unknown_hosts(context)];
    let mut routes = route::named(context, ALLOW_ANY_DYNAMIC_DNS, hosts);
    routes.ignore_port_in_host_matching = true;
    let routes = Routes::Inline(Box::new(routes));
    let mut options = HttpOptions::new(ListenerClass::Outbound, Protocol::Http, routes);
    options.stat_prefix = format!("outbound_{VIRTUAL_OUTBOUND}_{ALLOW_ANY_DYNAMIC_DNS}");
    FilterChain {
        name: format!("{VIRTUAL_OUTBOUND}-catchall-tcp-http"),
        filter_chain_match: Some(FilterChainMatch {
            application_protocols: owned(&PLAINTEXT_HTTP),
            ..Default::default()
        }),
        filters: vec![hcm::filter(context, options, VIRTUAL_OUTBOUND)],
        ..Default::default()
    }
}

/// Filters for connections to destinations that nobody has declared.
pub(super) fn unknown_destinations(context: &Context<'_>) -> Vec<Filter> {
    let cluster = match context.scope.unknown {
        UnknownDestinations::Refuse => BLACK_HOLE_CLUSTER.to_owned(),
        UnknownDestinations::Allow | UnknownDestinations::ByName => {
            egress_cluster(context.scope.egress_proxy.as_ref())
        }
    };
    tcp::to_cluster(context, ListenerClass::Outbound, &cluster, &cluster)
}
