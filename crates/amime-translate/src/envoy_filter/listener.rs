//! Patches of listeners, filter chains and filters.

use amime_api::networking::{ApplyTo, FilterChainMatch, FilterMatch, PatchOperation};
use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, Listener, ListenerFilter, filter,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter,
};
use prost::Message;

use super::cluster::merge_config;
use super::list::{Anchor, edit};
use super::{Patch, Patches, Side, filters};
use crate::filters::HTTP_CONNECTION_MANAGER;
use crate::names::{VIRTUAL_INBOUND, VIRTUAL_OUTBOUND};
use crate::proto::any;

const KINDS: [ApplyTo; 5] = [
    ApplyTo::Listener,
    ApplyTo::ListenerFilter,
    ApplyTo::FilterChain,
    ApplyTo::NetworkFilter,
    ApplyTo::HttpFilter,
];

/// Applies the patches of one side to its listeners.
pub(crate) fn patch_listeners(patches: &Patches, side: Side, listeners: &mut Vec<Listener>) {
    let patches = patches.on(side, &KINDS);
    if patches.is_empty() {
        return;
    }
    let patcher = Patcher { patches };
    listeners.retain_mut(|listener| patcher.patch(listener));
    let added = patcher.of_kind(ApplyTo::Listener).filter(|patch| {
        patch.operation == PatchOperation::Add && side.takes_additions(patch.matched.context)
    });
    listeners.extend(added.filter_map(|patch| patch.message::<Listener>()));
}

struct Patcher<'p> {
    patches: Vec<&'p Patch>,
}

impl<'p> Patcher<'p> {
    fn of_kind(&self, kind: ApplyTo) -> impl Iterator<Item = &'p Patch> {
        self.patches.iter().copied().filter(move |patch| patch.kind == kind)
    }

    /// False if the listener is removed.
    fn patch(&self, listener: &mut Listener) -> bool {
        for patch in self.of_kind(ApplyTo::Listener) {
            if !matches_listener(listener, patch) {
                continue;
            }
            if patch.operation == PatchOperation::Remove {
                return false;
            }
            patch.merge_into(listener);
        }
        for patch in self.of_kind(ApplyTo::ListenerFilter) {
            if matches_listener(listener, patch) {
                patch_listener_filters(patch, &mut listener.listener_filters);
            }
        }
        self.patch_chains(listener);
        true
    }

    fn patch_chains(&self, listener: &mut Listener) {
        let mut chains = std::mem::take(&mut listener.filter_chains);
        chains.retain_mut(|chain| self.patch_chain(listener, chain));
        let mut default = listener.default_filter_chain.take();
        if let Some(chain) = &mut default
            && !self.patch_chain(listener, chain)
        {
            default = None;
        }
        for patch in self.of_kind(ApplyTo::FilterChain) {
            if patch.operation == PatchOperation::Add && matches_listener(listener, patch) {
                chains.extend(patch.message::<FilterChain>());
            }
        }
        listener.filter_chains = chains;
        listener.default_filter_chain = default;
    }

    /// False if the chain is removed.
    fn patch_chain(&self, listener: &Listener, chain: &mut FilterChain) -> bool {
        for patch in self.of_kind(ApplyTo::FilterChain) {
            if !matches_chain(listener, chain, patch) {
                continue;
            }
            if patch.operation == PatchOperation::Remove {
                return false;
            }
            merge_chain(chain, patch);
        }
        for patch in self.of_kind(ApplyTo::NetworkFilter) {
            if matches_chain(listener, chain, patch) {
                let anchor = filter_match(patch).map(|wanted| wanted.name.as_str());
                edit_named(patch, &mut chain.filters, anchor, |filter: &Filter| &filter.name);
            }
        }
        // Merging comes last, so that filters that were added are there.
        let mut filters = std::mem::take(&mut chain.filters);
        for filter in &mut filters {
            self.patch_filter(listener, chain, filter);
        }
        chain.filters = filters;
        true
    }

    fn patch_filter(&self, listener: &Listener, chain: &FilterChain, filter: &mut Filter) {
        for patch in self.of_kind(ApplyTo::NetworkFilter) {
            if let (true, true, Some(lists), Some(value)) = (
                matches_chain(listener, chain, patch),
                matches_filter(filter, patch),
                patch.merges(),
                patch.message::<Filter>(),
            ) {
                filters::merge(filter, value, lists);
            }
        }
        if filter.name != HTTP_CONNECTION_MANAGER {
            return;
        }
        let own = self
            .of_kind(ApplyTo::HttpFilter)
            .filter(|patch| matches_chain(listener, chain, patch) && matches_filter(filter, patch));
        let own: Vec<&Patch> = own.collect();
        if !own.is_empty() {
            patch_http(&own, filter);
        }
    }
}

/// Applies patches of HTTP filters inside a connection manager.
fn patch_http(patches: &[&Patch], filter: &mut Filter) {
    let Some(filter::ConfigType::TypedConfig(config)) = &mut filter.config_type else { return };
    let Ok(mut manager) = HttpConnectionManager::decode(config.value.as_slice()) else { return };
    let name = |patch: &'_ Patch| {
        let sub = filter_match(patch)?.sub_filter.as_ref()?;
        Some(sub.name.clone())
    };
    for patch in patches {
        let anchor = name(patch);
        edit_named(patch, &mut manager.http_filters, anchor.as_deref(), |f: &HttpFilter| &f.name);
    }
    for own in &mut manager.http_filters {
        for patch in patches {
            let is_it = name(patch).is_none_or(|name| name == own.name);
            if let (true, Some(lists), Some(value)) = (is_it, patch.merges(), patch.message()) {
                filters::merge(own, value, lists);
            }
        }
    }
    *config = any(&manager);
}

fn patch_listener_filters(patch: &Patch, own: &mut Vec<ListenerFilter>) {
    let wanted = patch.listener().map(|wanted| wanted.listener_filter.as_str());
    let wanted = wanted.filter(|name| !name.is_empty());
    edit_named(patch, own, wanted, |filter: &ListenerFilter| &filter.name);
    if let (Some(name), Some(lists)) = (wanted, patch.merges()) {
        for filter in own.iter_mut().filter(|filter| filter.name == name) {
            if let Some(value) = patch.message() {
                filters::merge(filter, value, lists);
            }
        }
    }
}

/// Adds to, takes from or replaces in a list of things with names.
fn edit_named<T: Message + prost::Name + Default>(
    patch: &Patch,
    items: &mut Vec<T>,
    anchor: Option<&str>,
    name: impl Fn(&T) -> &String,
) {
    let new = || patch.message();
    match anchor {
        None => edit(items, patch.operation, &Anchor::None::<fn(&T) -> bool>, new),
        Some(wanted) => {
            let is_it = |item: &T| name(item) == wanted;
            edit(items, patch.operation, &Anchor::At(is_it), new);
        }
    }
}

fn merge_chain(chain: &mut FilterChain, patch: &Patch) {
    let Some(lists) = patch.merges() else { return };
    let socket = patch.message::<FilterChain>().and_then(|value| value.transport_socket);
    let own = chain.transport_socket.as_mut();
    match (own, socket) {
        // A patch with the socket that is there is about nothing else.
        (Some(own), Some(socket)) if own.name == socket.name => merge_config(own, &socket, lists),
        _ => patch.merge_into(chain),
    }
}

/// The listeners that take connections for others; their chains have the ports.
fn is_virtual(listener: &Listener) -> bool {
    [VIRTUAL_INBOUND, VIRTUAL_OUTBOUND].contains(&listener.name.as_str())
}

fn matches_listener(listener: &Listener, patch: &Patch) -> bool {
    let Some(wanted) = patch.listener() else { return true };
    if !wanted.name.is_empty() && wanted.name != listener.name {
        return false;
    }
    (patch.kind != ApplyTo::Listener && is_virtual(listener))
        || wanted.port_number == 0
        || port_of(listener) == Some(wanted.port_number)
}

fn port_of(listener: &Listener) -> Option<u32> {
    let Some(Address::SocketAddress(address)) = &listener.address.as_ref()?.address else {
        return None;
    };
    match address.port_specifier {
        Some(PortSpecifier::PortValue(port)) => Some(port),
        _ => None,
    }
}

fn matches_chain(listener: &Listener, chain: &FilterChain, patch: &Patch) -> bool {
    if !matches_listener(listener, patch) {
        return false;
    }
    let Some(wanted) = patch.listener() else { return true };
    let port = chain.filter_chain_match.as_ref().and_then(|m| m.destination_port.as_ref());
    let port = port.map_or(0, |port| port.value);
    if is_virtual(listener) && wanted.port_number > 0 && port != wanted.port_number {
        return false;
    }
    wanted.filter_chain.as_ref().is_none_or(|wanted| matches_chain_itself(chain, port, wanted))
}

fn matches_chain_itself(chain: &FilterChain, port: u32, wanted: &FilterChainMatch) -> bool {
    let own = chain.filter_chain_match.clone().unwrap_or_default();
    let all_offered = || {
        let mut protocols = wanted.application_protocols.split(',');
        protocols.all(|protocol| own.application_protocols.iter().any(|p| p == protocol))
    };
    let socket = chain.transport_socket.as_ref().map_or("", |socket| socket.name.as_str());
    (wanted.name.is_empty() || wanted.name == chain.name)
        && (wanted.sni.is_empty() || own.server_names.contains(&wanted.sni))
        && (wanted.transport_protocol.is_empty()
            || wanted.transport_protocol == own.transport_protocol)
        && (wanted.application_protocols.is_empty() || all_offered())
        && (wanted.destination_port == 0 || wanted.destination_port == port)
        && wanted.transport_socket.as_ref().is_none_or(|wanted| wanted.name == socket)
}

fn filter_match(patch: &Patch) -> Option<&FilterMatch> {
    patch.listener()?.filter_chain.as_ref()?.filter.as_ref()
}

fn matches_filter(filter: &Filter, patch: &Patch) -> bool {
    filter_match(patch).is_none_or(|wanted| wanted.name == filter.name)
}
