//! Listeners of gateways.

mod opaque;

use std::collections::BTreeMap;

use amime_core::Protocol;
use envoy_types::pb::envoy::config::core::v3::{
    TrafficDirection, UdpSocketConfig, address, socket_address,
};
use envoy_types::pb::envoy::config::listener::v3::{
    FilterChain, Listener, QuicProtocolOptions, UdpListenerConfig,
};

use super::chain::{ChainBody, ChainOptions};
use super::hcm::{HttpOptions, Routes};
use super::{accept_one_at_a_time, access_log, bare, filter_chain, tls};
use crate::context::Context;
use crate::filters::{ListenerClass, proxy_protocol, tls_inspector};
use crate::gateway::{GatewayServer, MergedServers, ServerPort};
use crate::names;
use crate::origin::{OriginKind, config_path, origin};
use crate::proto::u32_value;

/// A listener in the making.
struct Draft {
    port: u32,
    binds: Vec<String>,
    chains: Vec<ChainOptions>,
    /// Server that is named as the origin.
    first: GatewayServer,
    /// It is one for QUIC.
    quic: bool,
}

/// Listeners for all servers that the workload runs.
pub(super) fn listeners(context: &Context<'_>) -> Vec<Listener> {
    let gateway = context.gateway();
    let mut drafts: BTreeMap<String, Draft> = BTreeMap::new();
    let mut passed = BTreeMap::new();
    for place in &gateway.ports {
        let Some(merged) = gateway.servers(place) else { continue };
        let Some(first) = merged.servers.first() else { continue };
        if place.number < 1024 && context.proxy.is_unprivileged() {
            continue;
        }
        let binds = match place.bind.as_str() {
            "" => context.proxy.wildcards(),
            own => vec![own.to_owned()],
        };
        let name = names::listener(&binds[0], place.number);
        let names = passed.entry(place.number).or_insert_with(BTreeMap::new);
        let chains = chains(context, place, merged, names);
        let new = |binds: Vec<String>, quic| Draft {
            port: place.number,
            binds,
            chains: Vec::new(),
            first: first.clone(),
            quic,
        };
        let mirrored = gateway.quic_servers(place);
        if !mirrored.is_empty() {
            let name = names::quic_listener(&binds[0], place.number);
            let chains = mirrored.iter().map(|server| quic(context, server));
            let draft = drafts.entry(name).or_insert_with(|| new(binds.clone(), true));
            draft.chains.extend(chains);
        }
        drafts.entry(name).or_insert_with(|| new(binds, false)).chains.extend(chains);
    }
    let finished = drafts.into_iter().filter(|(_, draft)| !draft.chains.is_empty());
    finished.map(|(name, draft)| finish(context, name, draft)).collect()
}

/// Chains of the servers at one place; `passed` are the server names that
/// already go through on the port.
fn chains(
    context: &Context<'_>,
    place: &ServerPort,
    merged: &MergedServers,
    passed: &mut BTreeMap<String, String>,
) -> Vec<ChainOptions> {
    let protocol: Protocol = place.protocol.parse().unwrap_or(Protocol::Auto);
    let mut chains = Vec::new();
    if protocol.is_http() {
        chains.extend(merged.servers.first().map(|server| plaintext(server, &merged.route)));
        return chains;
    }
    for server in &merged.servers {
        if server.terminates_https() {
            chains.push(https(context, server));
        } else {
            chains.extend(opaque::chains(context, server, passed));
        }
    }
    chains
}

/// One chain for all plaintext HTTP on a port.
fn plaintext(server: &GatewayServer, route: &str) -> ChainOptions {
    let routes = Routes::Named(route.to_owned());
    let options = HttpOptions::new(ListenerClass::Gateway, server.protocol(), routes);
    let mut chain = ChainOptions::new(ChainBody::Http(Box::new(options)));
    chain.metadata = origin_of(server);
    chain
}

/// The chain of a server whose TLS ends here.
fn https(context: &Context<'_>, server: &GatewayServer) -> ChainOptions {
    let routes = Routes::Named(server.route.clone());
    let mut options = HttpOptions::new(ListenerClass::Gateway, server.protocol(), routes);
    options.stat_prefix.clone_from(&server.spec.name);
    let mut chain = ChainOptions::new(ChainBody::Http(Box::new(options)));
    chain.sni_hosts = server.sni_hosts();
    let settings = server.spec.tls.as_ref();
    chain.tls = settings.map(|own| Box::new(tls::server(context, own, false)));
    chain.metadata = origin_of(server);
    chain
}

/// The same chain for HTTP/3.
fn quic(context: &Context<'_>, server: &GatewayServer) -> ChainOptions {
    let mut chain = https(context, server);
    if let ChainBody::Http(options) = &mut chain.body {
        options.http3 = true;
    }
    if let Some(tls) = &mut chain.tls {
        tls::make_quic(tls);
    }
    chain
}

fn origin_of(server: &GatewayServer) -> Option<envoy_types::pb::envoy::config::core::v3::Metadata> {
    origin(config_path(OriginKind::Gateway, &server.name), Some(&server.rule()))
}

fn finish(context: &Context<'_>, name: String, draft: Draft) -> Listener {
    let direction = TrafficDirection::Outbound;
    let mut listener = bare(name.clone(), &draft.binds, draft.port, direction);
    accept_one_at_a_time(&mut listener);
    listener.access_log = access_log::of_listener(context.mesh);
    listener.metadata = origin_of(&draft.first);
    let limits = context.settings.connections.as_ref();
    let buffered = limits.and_then(|limits| limits.listener_per_connection_buffer_limit_bytes);
    listener.per_connection_buffer_limit_bytes = buffered.and_then(u32_value);
    let tcp = !draft.quic;
    if draft.quic {
        take_datagrams(&mut listener);
    }
    let needs_tls = tcp && draft.chains.iter().any(ChainOptions::needs_tls_inspector);
    let mut kept: Vec<ChainOptions> = Vec::new();
    for chain in draft.chains {
        // Envoy refuses a listener with the same match twice; the first counts.
        if !kept.iter().any(|own| own.conflicts_with(&chain)) {
            kept.push(chain);
        }
    }
    for chain in kept {
        let filter_chain_match = chain.to_match();
        let chain = filter_chain(context, chain, &name);
        listener.filter_chains.push(FilterChain { filter_chain_match, ..chain });
    }
    if tcp && context.settings.proxy_protocol() {
        // What comes before the connection's own bytes has to go first.
        listener.listener_filters.push(proxy_protocol());
    }
    if needs_tls {
        listener.listener_filters.push(tls_inspector());
    }
    listener
}

/// Makes a listener one for QUIC.
fn take_datagrams(listener: &mut Listener) {
    listener.udp_listener_config = Some(UdpListenerConfig {
        quic_options: Some(QuicProtocolOptions::default()),
        downstream_socket_config: Some(UdpSocketConfig::default()),
        ..Default::default()
    });
    let more = listener.additional_addresses.iter_mut().map(|more| &mut more.address);
    for address in std::iter::once(&mut listener.address).chain(more) {
        if let Some(address::Address::SocketAddress(socket)) =
            address.as_mut().and_then(|address| address.address.as_mut())
        {
            socket.protocol = socket_address::Protocol::Udp.into();
        }
    }
}
