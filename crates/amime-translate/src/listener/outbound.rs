//! Outbound listeners of sidecars: one for all HTTP on a port, one for each
//! address of other services.

use std::collections::BTreeMap;
use std::sync::Arc;

use amime_core::Protocol;
use amime_model::{
    EgressListener, Labels, Port, Registry, Resolution, Service, UNSPECIFIED_V4, UNSPECIFIED_V6,
};
use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener};

use super::chain::{ChainBody, ChainOptions};
use super::hcm::{HttpOptions, Routes};
use super::tcp_rules::{self, TcpTarget};
use super::virtual_outbound::unknown_destinations;
use super::{accept_one_at_a_time, bare, filter_chain};
use crate::context::Context;
use crate::dynamic_dns;
use crate::filters::{ListenerClass, http_inspector, tls_inspector};
use crate::names::{self, HTTP_PROXY_ROUTE};
use crate::origin::{mesh_path, origin, service_path};
use crate::proto::{bool_value, duration, zero_duration};

/// A listener in the making.
struct Entry {
    port: u32,
    bind: Bind,
    /// Taken by an egress listener with a port of its own.
    locked: bool,
    chains: Vec<ChainOptions>,
    /// [`Protocol::Auto`] once HTTP and other bytes meet on it.
    protocol: Protocol,
    origin: String,
}

/// Where a listener is bound.
#[derive(Clone, Default)]
struct Bind {
    /// The first one is the primary one; empty if the service decides.
    addresses: Vec<String>,
    /// A real socket, not only a match of the original destination.
    to_port: bool,
}

impl Bind {
    fn primary(&self) -> &str {
        self.addresses.first().map_or("", String::as_str)
    }
}

/// One port of a service that needs a listener.
struct Want<'w> {
    service: &'w Arc<Service>,
    port: &'w Port,
    bind: Bind,
    cidrs: Vec<String>,
}

/// Outbound listeners, except the one behind the redirection.
pub(super) fn listeners(context: &Context<'_>) -> Vec<Listener> {
    let mut builder = Builder { context, entries: BTreeMap::new() };
    for egress in &context.scope.egress {
        builder.add_egress(egress);
    }
    let entries = builder.entries.into_values();
    let mut listeners: Vec<Listener> = entries.map(|entry| finish(context, entry, true)).collect();
    listeners.extend(http_proxy(context));
    listeners
}

struct Builder<'b, 'c> {
    context: &'b Context<'c>,
    entries: BTreeMap<(String, u32), Entry>,
}

impl Builder<'_, '_> {
    fn add_egress(&mut self, egress: &EgressListener) {
        let bind = self.bind_of(egress);
        if let (Some(number), Some(protocol)) = (egress.port(), egress.protocol()) {
            let port = Port { name: String::new(), number, protocol, udp: false };
            if self.can_bind(&bind, &port) {
                for service in &egress.services {
                    let want = Want { service, port: &port, bind: bind.clone(), cidrs: Vec::new() };
                    self.add(want, egress);
                }
            }
            return;
        }
        // What explicit listeners have taken is not widened by this one.
        self.entries.values_mut().for_each(|entry| entry.locked = true);
        for service in &egress.services {
            for port in &service.ports {
                if self.can_bind(&bind, port) {
                    self.add_port(service, port, &bind, egress);
                }
            }
        }
    }

    fn bind_of(&self, egress: &EgressListener) -> Bind {
        let proxy = self.context.proxy;
        let own = egress.bind();
        let capture = egress.listener.as_ref().map(|listener| listener.capture_mode);
        let to_port = proxy.binds(capture.unwrap_or_default()) || own.starts_with("unix://");
        let addresses = match own {
            "" if to_port => proxy.loopbacks(),
            "" => Vec::new(),
            own => vec![own.to_owned()],
        };
        Bind { addresses, to_port }
    }

    /// False for ports that the proxy cannot have, or has for itself.
    fn can_bind(&self, bind: &Bind, port: &Port) -> bool {
        let proxy = self.context.proxy;
        if bind.to_port && port.number != 0 && port.number < 1024 && proxy.is_unprivileged() {
            return false;
        }
        let anywhere = match bind.primary() {
            "" => port.protocol.is_http(),
            primary => primary == self.context.wildcard(),
        };
        !(anywhere && is_reserved(self.context, port.number, true))
    }

    /// A port of a service, without an address from an egress listener.
    fn add_port(
        &mut self,
        service: &Arc<Service>,
        port: &Port,
        bind: &Bind,
        egress: &EgressListener,
    ) {
        let want = |bind: Bind| Want { service, port, bind, cidrs: Vec::new() };
        let by_endpoint = bind.primary().is_empty()
            && service.resolution == Resolution::Passthrough
            && service.address_for(self.context.view) == UNSPECIFIED_V4
            && (port.protocol.is_tcp() || port.protocol.is_auto());
        if !by_endpoint {
            return self.add(want(bind.clone()), egress);
        }
        let endpoints = self.context.snapshot.endpoints_on(service, port.number, &Labels::new());
        let open = service.registry == Registry::External && service.selector.is_none();
        if endpoints.is_empty() && open {
            // Nothing will ever be known about it: any address will do.
            return self.add(want(bind.clone()), egress);
        }
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.is_ip()) {
            if self.context.proxy.ips.first() != Some(&endpoint.address) {
                let addresses = vec![endpoint.address.clone()];
                self.add(want(Bind { addresses, ..bind.clone() }), egress);
            }
        }
    }

    fn add(&mut self, mut want: Want<'_>, egress: &EgressListener) {
        let protocol = want.port.protocol;
        if want.service.resolution == Resolution::Alias || protocol == Protocol::Udp {
            return;
        }
        if want.bind.primary().is_empty() {
            self.choose_address(&mut want);
        }
        let key = (want.bind.primary().to_owned(), want.port.number);
        let existing = self.entries.get(&key);
        if existing.is_some_and(|entry| entry.locked) {
            return;
        }
        let current = existing.map(|entry| entry.protocol);
        let Some((chains, stored)) = self.chains(&want, current, egress) else { return };
        let guarded = [Protocol::Mongo, Protocol::Mysql];
        if let Some(current) = current
            && current != protocol
            && (guarded.contains(&current) || guarded.contains(&protocol))
        {
            // Its server speaks first; an inspector would make both wait.
            return;
        }
        match self.entries.get_mut(&key) {
            Some(entry) if !(protocol.is_auto() && entry.protocol.is_http()) => {
                if entry.protocol.is_tcp() != protocol.is_tcp() {
                    entry.protocol = Protocol::Auto;
                }
                merge(&mut entry.chains, chains);
            }
            _ => {
                let origin = service_path(want.service);
                let entry = Entry {
                    port: want.port.number,
                    bind: want.bind,
                    locked: false,
                    chains,
                    protocol: stored,
                    origin,
                };
                self.entries.insert(key, entry);
            }
        }
    }

    /// HTTP goes to the wildcard address, everything else to the service's own.
    fn choose_address(&self, want: &mut Want<'_>) {
        let wildcards = self.context.proxy.wildcards();
        if want.port.protocol.is_http() {
            want.bind.addresses = wildcards;
            return;
        }
        let view = self.context.view;
        let mut address = want.service.address_for(view);
        let mut extra = want.service.addresses_for(view);
        extra.drain(..extra.len().min(1));
        if want.service.registry == Registry::External && address == UNSPECIFIED_V4 && view.v6 {
            if view.v4 {
                extra.push(UNSPECIFIED_V6.to_owned());
            } else {
                UNSPECIFIED_V6.clone_into(&mut address);
            }
        }
        let ranged = address.contains('/');
        let own: Vec<String> = std::iter::once(address).chain(extra).collect();
        if ranged {
            want.bind.addresses = wildcards;
            want.cidrs = own;
        } else {
            want.bind.addresses = own;
        }
    }

    /// Chains for a port beside what `current` says is there, and the protocol
    /// of a new listener; `None` if nothing is to be added.
    fn chains(
        &self,
        want: &Want<'_>,
        current: Option<Protocol>,
        egress: &EgressListener,
    ) -> Option<(Vec<ChainOptions>, Protocol)> {
        let protocol = want.port.protocol;
        if protocol == Protocol::HttpProxy {
            return match current {
                Some(current) if !current.is_tcp() => None,
                _ => Some((vec![self.http(want, egress)], protocol)),
            };
        }
        if protocol.is_http() {
            // One listener serves all HTTP on the port.
            if current.is_some_and(|current| !current.is_tcp()) {
                return None;
            }
            let http = self.http(want, egress);
            if want.bind.primary() != self.context.wildcard() {
                return Some((vec![http], protocol));
            }
            // Other bytes on the port are let through, so HTTP is detected.
            return Some((vec![http.for_plaintext_http()], Protocol::Auto));
        }
        let mut chains = tcp_rules::chains(
            self.context,
            &TcpTarget {
                service: want.service,
                port: want.port,
                bind: want.bind.primary(),
                cidrs: &want.cidrs,
                rules: &egress.virtual_services,
            },
        );
        // A second detected service adds its addresses; HTTP is there already.
        if protocol.is_auto() && current != Some(Protocol::Auto) {
            chains.push(self.http(want, egress).for_plaintext_http());
        }
        Some((chains, protocol))
    }

    fn http(&self, want: &Want<'_>, egress: &EgressListener) -> ChainOptions {
        let number = want.port.number;
        let own = want.bind.primary();
        let name = if number == 0 {
            own.to_owned()
        } else if want.port.protocol.is_auto() && own != self.context.wildcard() {
            format!("{}:{number}", want.service.hostname)
        } else {
            number.to_string()
        };
        let mut options =
            HttpOptions::new(ListenerClass::Outbound, want.port.protocol, Routes::Named(name));
        options.resolvers = dynamic_dns::filters_of(self.context, egress, number);
        ChainOptions::new(ChainBody::Http(Box::new(options)))
    }
}

/// True for ports that the proxy itself listens on.
pub(super) fn is_reserved(context: &Context<'_>, port: u32, with_virtual: bool) -> bool {
    let own = ["ENVOY_STATUS_PORT", "ENVOY_PROMETHEUS_PORT"];
    own.iter().any(|key| context.proxy.number(key) == Some(port))
        || (with_virtual && [context.outbound_port(), context.inbound_port()].contains(&port))
}

/// Adds chains whose match is not taken.
fn merge(chains: &mut Vec<ChainOptions>, incoming: Vec<ChainOptions>) {
    for chain in incoming {
        if !chains.iter().any(|existing| existing.conflicts_with(&chain)) {
            chains.push(chain);
        }
    }
}

fn finish(context: &Context<'_>, entry: Entry, falls_through: bool) -> Listener {
    let name = names::listener(entry.bind.primary(), entry.port);
    let direction = TrafficDirection::Outbound;
    let mut listener = bare(name.clone(), &entry.bind.addresses, entry.port, direction);
    listener.continue_on_listener_filters_timeout = true;
    listener.metadata = origin(entry.origin, None);
    if entry.bind.to_port {
        accept_one_at_a_time(&mut listener);
    } else {
        listener.bind_to_port = bool_value(false);
    }
    if entry.chains.iter().any(ChainOptions::needs_tls_inspector) {
        listener.listener_filters.push(tls_inspector());
    }
    let detects_http = entry.chains.iter().any(|chain| !chain.application_protocols.is_empty());
    let timeout = context.mesh.protocol_detection_timeout.map(|timeout| duration(timeout.std()));
    listener.listener_filters_timeout = if detects_http { timeout } else { zero_duration() };
    if detects_http {
        listener.listener_filters.push(http_inspector());
    }
    for options in entry.chains {
        let matched = options.to_match();
        let chain = filter_chain(context, options, &name);
        match matched {
            None => listener.default_filter_chain = Some(chain),
            matched => {
                listener.filter_chains.push(FilterChain { filter_chain_match: matched, ..chain })
            }
        }
    }
    match listener.default_filter_chain.take() {
        Some(only) if listener.filter_chains.is_empty() => listener.filter_chains.push(only),
        Some(default) => listener.default_filter_chain = Some(default),
        None if falls_through => {
            listener.default_filter_chain = Some(FilterChain {
                filter_chain_match: Some(FilterChainMatch::default()),
                name: "PassthroughFilterChain".to_owned(),
                filters: unknown_destinations(context),
                ..Default::default()
            });
        }
        None => {}
    }
    listener
}

/// The listener for clients that know they talk to a proxy, if there is one.
fn http_proxy(context: &Context<'_>) -> Option<Listener> {
    let own = context.proxy.number("HTTP_PROXY_PORT");
    let port = own.or(u32::try_from(context.mesh.proxy_http_port).ok()).filter(|p| *p != 0)?;
    let routes = Routes::Named(HTTP_PROXY_ROUTE.to_owned());
    let options = HttpOptions {
        explicit_proxy: true,
        ..HttpOptions::new(ListenerClass::Outbound, Protocol::HttpProxy, routes)
    };
    let entry = Entry {
        port,
        bind: Bind { addresses: context.proxy.loopbacks(), to_port: true },
        locked: false,
        chains: vec![ChainOptions::new(ChainBody::Http(Box::new(options)))],
        protocol: Protocol::HttpProxy,
        origin: mesh_path(&context.mesh.root_namespace),
    };
    Some(finish(context, entry, false))
}
