//! The listener behind the redirection of inbound connections, and those that
//! a Sidecar declares beside it.

mod ports;

use amime_core::Protocol;
use amime_model::MtlsMode;
use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener,
};
use envoy_types::pb::envoy::config::route::v3::VirtualHost;

use self::ports::InboundPort;
use super::chain::{MTLS_ALL, MTLS_HTTP, MTLS_TCP, PLAINTEXT_HTTP, RAW_BUFFER, TLS, owned};
use super::hcm::{self, HttpOptions, Routes};
use super::{accept_one_at_a_time, access_log, bare, inspect, tcp, tls};
use crate::context::Context;
use crate::envoy_filter::{Side, patch_routes};
use crate::filters::{ListenerClass, tcp_metadata_exchange};
use crate::names::{BLACK_HOLE_CLUSTER, INBOUND_PASSTHROUGH_CLUSTER, VIRTUAL_INBOUND};
use crate::origin::{mesh_path, origin};
use crate::proto::{bool_value, duration, u32_value};
use crate::proxy::Interception;
use crate::route::{default_inbound, named, operation};

const CLASS: ListenerClass = ListenerClass::Inbound;

/// What a chain takes: transport protocol, ALPN, whether as HTTP, whether TLS
/// ends here.
#[derive(Clone, Copy)]
struct Shape {
    transport: &'static str,
    alpn: &'static [&'static str],
    http: bool,
    terminates: bool,
}

impl Shape {
    const fn new(
        transport: &'static str,
        alpn: &'static [&'static str],
        http: bool,
        terminates: bool,
    ) -> Self {
        Self { transport, alpn, http, terminates }
    }
}

const MUTUAL_HTTP: Shape = Shape::new(TLS, &MTLS_HTTP, true, true);
const DETECTED_HTTP: Shape = Shape::new(RAW_BUFFER, &PLAINTEXT_HTTP, true, false);
const PLAIN_BYTES: Shape = Shape::new(RAW_BUFFER, &[], false, false);
/// TLS of the application's own, which goes through.
const OWN_TLS: Shape = Shape::new(TLS, &[], false, false);
const ANY_TLS_BYTES: Shape = Shape::new(TLS, &[], false, true);

const HTTP_STRICT: [Shape; 1] = [Shape::new(TLS, &[], true, true)];
const HTTP_PERMISSIVE: [Shape; 2] =
    [Shape::new(TLS, &MTLS_ALL, true, true), Shape::new(RAW_BUFFER, &[], true, false)];
const HTTP_PLAIN: [Shape; 1] = [Shape::new(RAW_BUFFER, &[], true, false)];
const TCP_STRICT: [Shape; 1] = [ANY_TLS_BYTES];
const TCP_PERMISSIVE: [Shape; 3] = [Shape::new(TLS, &MTLS_ALL, false, true), OWN_TLS, PLAIN_BYTES];
const TCP_PLAIN: [Shape; 1] = [PLAIN_BYTES];
const AUTO_STRICT: [Shape; 2] = [MUTUAL_HTTP, ANY_TLS_BYTES];
const AUTO_PERMISSIVE: [Shape; 5] =
    [MUTUAL_HTTP, DETECTED_HTTP, Shape::new(TLS, &MTLS_TCP, false, true), PLAIN_BYTES, OWN_TLS];
const AUTO_PLAIN: [Shape; 2] = [DETECTED_HTTP, PLAIN_BYTES];

fn shapes(mode: MtlsMode, protocol: Protocol) -> &'static [Shape] {
    use MtlsMode::{Disable, Permissive, Strict};
    if protocol.is_http() {
        return match mode {
            Strict => &HTTP_STRICT,
            Permissive => &HTTP_PERMISSIVE,
            Disable => &HTTP_PLAIN,
        };
    }
    match (protocol.is_auto(), mode) {
        (true, Strict) => &AUTO_STRICT,
        (true, Permissive) => &AUTO_PERMISSIVE,
        (true, Disable) => &AUTO_PLAIN,
        (false, Strict) => &TCP_STRICT,
        (false, Permissive) => &TCP_PERMISSIVE,
        (false, Disable) => &TCP_PLAIN,
    }
}

/// The inbound listeners of a sidecar.
pub(super) fn listeners(context: &Context<'_>) -> Vec<Listener> {
    let declared = ports::of_workload(context);
    let mut listeners = Vec::new();
    let mut behind = Vec::new();
    for port in &declared {
        let chains = chains(context, port);
        if port.binds {
            listeners.push(own_listener(context, port, chains));
        } else {
            behind.extend(chains);
        }
    }
    listeners.extend(virtual_listener(context, &declared, behind));
    listeners
}

/// Chains of one port.
fn chains(context: &Context<'_>, port: &InboundPort) -> Vec<FilterChain> {
    let mode = context.peer_policy().mode_for(port.number);
    // A Sidecar's own TLS stands in for mutual TLS where that is off.
    let own = port.tls.as_ref().filter(|_| mode == MtlsMode::Disable);
    let mode = if own.is_some() { MtlsMode::Strict } else { mode };
    let shapes = shapes(mode, port.protocol);
    shapes.iter().map(|shape| filter_chain(context, port, *shape, mode)).collect()
}

fn filter_chain(
    context: &Context<'_>,
    port: &InboundPort,
    shape: Shape,
    mode: MtlsMode,
) -> FilterChain {
    let socket = match (&port.tls, shape.terminates) {
        (_, false) => None,
        (Some(own), true) if context.peer_policy().mode_for(port.number) == MtlsMode::Disable => {
            Some(tls::server(context, own, !shape.http))
        }
        (_, true) => tls::mesh_mutual(context, mode, shape.http),
    };
    let name = match port.passthrough {
        true if shape.http => format!("{VIRTUAL_INBOUND}-catchall-http"),
        true => VIRTUAL_INBOUND.to_owned(),
        false => port.chain_name(),
    };
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: u32_value(port.number).filter(|p| p.value != 0),
            transport_protocol: shape.transport.to_owned(),
            application_protocols: owned(shape.alpn),
            ..Default::default()
        }),
        filters: if shape.http { http(context, port) } else { bytes(context, port) },
        transport_socket: socket.as_ref().map(tls::socket),
        metadata: origin(port.origin.clone(), None),
        name,
        ..Default::default()
    }
}

fn http(context: &Context<'_>, port: &InboundPort) -> Vec<Filter> {
    let operation = match port.passthrough {
        true => ":0/*".to_owned(),
        false => operation(&port.host, port.service_port),
    };
    let route = default_inbound(context, port.cluster.clone(), operation, port.protocol);
    let host = VirtualHost {
        name: format!("inbound|http|{}", port.service_port),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..Default::default()
    };
    let mut routes = named(context, &port.cluster, vec![host]);
    routes.metadata = origin(port.origin.clone(), None);
    routes.max_direct_response_body_size_bytes = None;
    patch_routes(context, Side::Inbound, &mut routes);
    let mut options = HttpOptions::new(CLASS, port.protocol, Routes::Inline(Box::new(routes)));
    options.stat_prefix = match port.passthrough {
        true => port.cluster.clone(),
        false => format!("inbound_{}", port.chain_name()),
    };
    let exchange = tcp_metadata_exchange(context.proxy).into_iter();
    exchange.chain([hcm::filter(context, options, VIRTUAL_INBOUND)]).collect()
}

fn bytes(context: &Context<'_>, port: &InboundPort) -> Vec<Filter> {
    let prefix = port.stat_name.as_deref().unwrap_or(&port.cluster);
    let filters = tcp::to_cluster(context, CLASS, &port.cluster, prefix);
    let counts = tcp::mongo(context, port.protocol, prefix);
    tcp_metadata_exchange(context.proxy).into_iter().chain(counts).chain(filters).collect()
}

/// The listener that takes every connection to the workload.
fn virtual_listener(
    context: &Context<'_>,
    declared: &[InboundPort],
    behind: Vec<FilterChain>,
) -> Option<Listener> {
    let interception = context.proxy.interception();
    if interception == Interception::None {
        return None;
    }
    let direction = TrafficDirection::Inbound;
    let number = context.inbound_port();
    let binds = context.proxy.wildcards();
    let mut listener = bare(VIRTUAL_INBOUND.to_owned(), &binds, number, direction);
    if interception == Interception::Tproxy {
        listener.transparent = bool_value(true);
    }
    listener.metadata = origin(mesh_path(&context.mesh.root_namespace), None);
    let mut chains = vec![black_hole(context, number)];
    for port in ports::passthrough(context, declared) {
        chains.extend(self::chains(context, &port));
    }
    chains.extend(behind);
    finish(context, &mut listener, chains, false);
    Some(listener)
}

/// A connection to the port of the listener itself would come back for ever.
fn black_hole(context: &Context<'_>, port: u32) -> FilterChain {
    let exchange = tcp_metadata_exchange(context.proxy).into_iter();
    FilterChain {
        name: format!("{VIRTUAL_INBOUND}-blackhole"),
        filter_chain_match: Some(FilterChainMatch {
            destination_port: u32_value(port),
            ..Default::default()
        }),
        filters: exchange.chain(tcp::to_nowhere(context, CLASS, BLACK_HOLE_CLUSTER)).collect(),
        ..Default::default()
    }
}

/// A listener with a socket of its own.
fn own_listener(context: &Context<'_>, port: &InboundPort, chains: Vec<FilterChain>) -> Listener {
    let direction = TrafficDirection::Inbound;
    let mut listener = bare(port.chain_name(), &port.binds_at, port.number, direction);
    listener.metadata = origin(port.origin.clone(), None);
    finish(context, &mut listener, chains, true);
    listener
}

fn finish(
    context: &Context<'_>,
    listener: &mut Listener,
    chains: Vec<FilterChain>,
    binds_to_port: bool,
) {
    accept_one_at_a_time(listener);
    listener.continue_on_listener_filters_timeout = true;
    let timeout = context.mesh.protocol_detection_timeout;
    listener.listener_filters_timeout = timeout.map(|timeout| duration(timeout.std()));
    listener.access_log = access_log::of_listener(context.mesh);
    listener.listener_filters = inspect::inbound_filters(context.proxy, &chains, binds_to_port);
    listener.filter_chains = chains;
}

/// The cluster for connections to ports that no service is known on.
fn passthrough_cluster() -> String {
    INBOUND_PASSTHROUGH_CLUSTER.to_owned()
}
