//! RDS: route configurations of sidecars and gateways.

mod format;
mod gateway;
mod headers;
mod hosts;
mod http;
mod matching;
mod policy;
mod retry;
mod sidecar;

use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};

pub(crate) use hosts::alternatives;
pub(crate) use http::{default_inbound, destination_cluster};
pub(crate) use sidecar::{egress_cluster, operation, unknown_hosts};

use crate::context::Context;
use crate::envoy_filter::{Side, patch_routes};
use crate::origin::{mesh_path, origin};
use crate::proto::{bool_value, u32_value};
use crate::proxy::ProxyKind;

/// Largest body of a fixed answer, the limit that validation allows.
const MAX_DIRECT_RESPONSE_BYTES: u32 = 1024 * 1024;

/// The route configuration of this name.
///
/// A name that we know nothing about gives an empty configuration: its
/// listener may be draining still, and is not to wait for an answer.
pub(crate) fn configuration(context: &Context<'_>, name: &str) -> RouteConfiguration {
    let virtual_hosts = match context.proxy.kind {
        ProxyKind::Sidecar => sidecar::virtual_hosts(context, name),
        ProxyKind::Router => gateway::virtual_hosts(context, name),
    };
    let Some(mut virtual_hosts) = virtual_hosts else {
        return RouteConfiguration {
            name: name.to_owned(),
            validate_clusters: bool_value(false),
            metadata: origin(mesh_path(&context.mesh.root_namespace), None),
            ..Default::default()
        };
    };
    for host in &mut virtual_hosts {
        host.include_request_attempt_count &= context.settings.attempt_count();
    }
    let mut routes = RouteConfiguration {
        ignore_port_in_host_matching: true,
        ..named(context, name, virtual_hosts)
    };
    patch_routes(context, Side::outbound_of(context.proxy), &mut routes);
    routes
}

/// A configuration with these virtual hosts.
pub(crate) fn named(
    context: &Context<'_>,
    name: &str,
    virtual_hosts: Vec<VirtualHost>,
) -> RouteConfiguration {
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts,
        // Clusters may come and go on their own; a route must not fail for it.
        validate_clusters: bool_value(false),
        max_direct_response_body_size_bytes: u32_value(MAX_DIRECT_RESPONSE_BYTES),
        metadata: origin(mesh_path(&context.mesh.root_namespace), None),
        ..Default::default()
    }
}
