//! LDS: listeners of sidecars and gateways.

mod access_log;
mod chain;
mod gateway;
mod hcm;
mod inbound;
mod inspect;
mod outbound;
mod tcp;
mod tcp_rules;
mod tls;
mod virtual_outbound;

use std::collections::BTreeSet;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{AdditionalAddress, FilterChain, Listener};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use crate::context::Context;
use crate::envoy_filter::{Side, patch_listeners};
use crate::proto::{address, duration, u32_value};
use crate::proxy::ProxyKind;
use chain::{ChainBody, ChainOptions};

/// Time for a TLS handshake; a client that takes longer only holds memory.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// All listeners of the proxy, or those with these names.
pub(crate) fn build(context: &Context<'_>, names: Option<&[String]>) -> Vec<Listener> {
    let mut listeners = match context.proxy.kind {
        ProxyKind::Sidecar => {
            let mut listeners = outbound::listeners(context);
            listeners.extend(virtual_outbound::listener(context));
            patch_listeners(context.patches(), Side::Outbound, &mut listeners);
            let mut inbound = inbound::listeners(context);
            patch_listeners(context.patches(), Side::Inbound, &mut inbound);
            listeners.extend(inbound);
            listeners
        }
        ProxyKind::Router => {
            let mut listeners = gateway::listeners(context);
            patch_listeners(context.patches(), Side::Gateway, &mut listeners);
            listeners
        }
    };
    if let Some(names) = names {
        let names: BTreeSet<&String> = names.iter().collect();
        listeners.retain(|listener| names.contains(&listener.name));
    }
    listeners.sort_by(|a, b| a.name.cmp(&b.name));
    listeners
}

/// Names of the route configurations that listeners refer to, sorted.
pub(crate) fn route_names(listeners: &[Listener]) -> BTreeSet<String> {
    let chains =
        listeners.iter().flat_map(|l| l.filter_chains.iter().chain(&l.default_filter_chain));
    chains.flat_map(|chain| &chain.filters).filter_map(rds_name).collect()
}

fn rds_name(filter: &envoy_types::pb::envoy::config::listener::v3::Filter) -> Option<String> {
    use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
    let Some(ConfigType::TypedConfig(Any { type_url, value })) = &filter.config_type else {
        return None;
    };
    if *type_url != HttpConnectionManager::type_url() {
        return None;
    }
    let manager = HttpConnectionManager::decode(value.as_slice()).ok()?;
    match manager.route_specifier? {
        RouteSpecifier::Rds(rds) => Some(rds.route_config_name),
        _ => None,
    }
}

/// A listener on these addresses, the first being the primary one.
fn bare(name: String, binds: &[String], port: u32, direction: TrafficDirection) -> Listener {
    let extra = binds
        .iter()
        .skip(1)
        .map(|bind| AdditionalAddress { address: Some(address(bind, port)), ..Default::default() });
    Listener {
        name,
        address: binds.first().map(|bind| address(bind, port)),
        additional_addresses: extra.collect(),
        traffic_direction: direction.into(),
        ..Default::default()
    }
}

/// One connection an event loop turn, so that workers share them evenly.
fn accept_one_at_a_time(listener: &mut Listener) {
    listener.max_connections_to_accept_per_socket_event = u32_value(1);
}

/// The chain in listener `name`, its match left out.
fn filter_chain(context: &Context<'_>, options: ChainOptions, name: &str) -> FilterChain {
    let quic = matches!(&options.body, ChainBody::Http(http) if http.http3);
    let socket = if quic { tls::quic_socket } else { tls::socket };
    let filters = match options.body {
        ChainBody::Network(filters) => filters,
        ChainBody::Http(http) => vec![hcm::filter(context, *http, name)],
    };
    FilterChain {
        filters,
        metadata: options.metadata,
        transport_socket: options.tls.as_deref().map(socket),
        transport_socket_connect_timeout: Some(duration(HANDSHAKE_TIMEOUT)),
        ..Default::default()
    }
}
