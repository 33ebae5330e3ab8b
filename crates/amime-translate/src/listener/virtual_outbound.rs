//! The listener behind the redirection of outbound connections.

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener,
};

use super::{accept_one_at_a_time, access_log, bare, tcp};
use crate::context::Context;
use crate::filters::ListenerClass;
use crate::names::{BLACK_HOLE_CLUSTER, VIRTUAL_OUTBOUND};
use crate::origin::{mesh_path, origin};
use crate::proto::{bool_value, u32_value};
use crate::proxy::Interception;
use crate::route::egress_cluster;

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
    Some(listener)
}

/// Filters for connections to destinations that nobody has declared.
pub(super) fn unknown_destinations(context: &Context<'_>) -> Vec<Filter> {
    let cluster = match context.scope.allow_any {
        true => egress_cluster(context.scope.egress_proxy.as_ref()),
        false => BLACK_HOLE_CLUSTER.to_owned(),
    };
    tcp::to_cluster(context, ListenerClass::Outbound, &cluster, &cluster)
}
