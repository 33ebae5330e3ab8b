//! The ports a workload is reached on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use amime_api::networking::{IstioIngressListener, ServerTlsSettings};
use amime_core::Protocol;
use amime_model::{MtlsMode, ServiceTarget};

use super::passthrough_cluster;
use crate::context::Context;
use crate::listener::outbound::is_reserved;
use crate::names::{self, inbound_cluster};
use crate::origin::{OriginKind, config_path, mesh_path, service_path};
use crate::proxy::Interception;

/// One port of the workload.
pub(super) struct InboundPort {
    /// Port on the workload; 0 for all that are not declared.
    pub(super) number: u32,
    pub(super) service_port: u32,
    /// Host of the service; empty if there is none.
    pub(super) host: String,
    pub(super) protocol: Protocol,
    pub(super) cluster: String,
    /// Name of its statistics, if the mesh gives them one.
    pub(super) stat_name: Option<String>,
    /// TLS that a Sidecar declares.
    pub(super) tls: Option<ServerTlsSettings>,
    /// Addresses of the listener, if it has a socket of its own.
    pub(super) binds_at: Vec<String>,
    pub(super) binds: bool,
    /// No service is known on it.
    pub(super) passthrough: bool,
    pub(super) origin: String,
}

impl InboundPort {
    /// `0.0.0.0_8080`
    pub(super) fn chain_name(&self) -> String {
        let bind = self.binds_at.first().map_or("0.0.0.0", String::as_str);
        names::listener(bind, self.number)
    }
}

/// Ports that the Sidecar declares, else those of the services, by number.
pub(super) fn of_workload(context: &Context<'_>) -> Vec<InboundPort> {
    let ingress = context.scope.ingress();
    if !ingress.is_empty() {
        let mut ports: BTreeMap<u32, InboundPort> = BTreeMap::new();
        for listener in ingress {
            if let Some(port) = declared(context, listener) {
                ports.entry(port.number).or_insert(port);
            }
        }
        return ports.into_values().collect();
    }
    if context.proxy.interception() == Interception::None {
        return Vec::new();
    }
    let mut ports: BTreeMap<u32, InboundPort> = BTreeMap::new();
    for target in context.targets() {
        // A datagram port may be served over TCP as well, as DNS is.
        if is_reserved(context, target.target_port, true) {
            continue;
        }
        // The oldest service decides; the others share its chains.
        ports.entry(target.target_port).or_insert_with(|| served(context, target));
    }
    ports.into_values().collect()
}

fn served(context: &Context<'_>, target: &ServiceTarget) -> InboundPort {
    InboundPort {
        number: target.target_port,
        service_port: target.port.number,
        host: target.service.hostname.as_str().to_owned(),
        protocol: target.port.protocol,
        cluster: inbound_cluster(target.target_port),
        stat_name: names::stat_name(
            &context.mesh.inbound_cluster_stat_name,
            &target.service,
            "",
            &target.port,
            target.port.number,
        ),
        tls: None,
        binds_at: context.proxy.wildcards(),
        binds: false,
        passthrough: false,
        origin: service_path(&target.service),
    }
}

fn declared(context: &Context<'_>, listener: &IstioIngressListener) -> Option<InboundPort> {
    let port = listener.port.as_ref()?;
    let binds = context.proxy.binds(listener.capture_mode);
    if binds && port.number < 1024 && context.proxy.is_unprivileged() {
        return None;
    }
    let anywhere = listener.bind.is_empty() || listener.bind == context.wildcard();
    if anywhere && is_reserved(context, port.number, true) {
        return None;
    }
    let binds_at = match listener.bind.as_str() {
        "" => own_addresses(context),
        own => vec![own.to_owned()],
    };
    let protocol = port.protocol.parse().unwrap_or(Protocol::Auto);
    let sidecar = context.scope.sidecar.as_ref();
    // Only where mutual TLS is off does a listener's own TLS end here.
    let tls = listener.tls.clone();
    let tls = tls.filter(|_| context.peer_policy().mode_for(port.number) == MtlsMode::Disable);
    Some(InboundPort {
        number: port.number,
        service_port: port.number,
        host: sidecar
            .map_or_else(String::new, |own| format!("{}.{}", own.name.name, own.name.namespace)),
        protocol: if tls.is_some() { inside_tls(protocol) } else { protocol },
        cluster: inbound_cluster(port.number),
        stat_name: None,
        tls,
        binds_at,
        binds,
        passthrough: false,
        origin: sidecar.map_or_else(String::new, |own| config_path(OriginKind::Sidecar, &own.name)),
    })
}

/// What is left of a protocol where its TLS ends.
fn inside_tls(protocol: Protocol) -> Protocol {
    match protocol {
        Protocol::Https => Protocol::Http,
        Protocol::Tls => Protocol::Tcp,
        other => other,
    }
}

/// The first address that others can reach the workload at, else any.
fn own_addresses(context: &Context<'_>) -> Vec<String> {
    let reachable = |ip: &&String| {
        ip.parse::<IpAddr>().is_ok_and(|ip| !ip.is_loopback() && !ip.is_unspecified())
    };
    let own = context.proxy.ips.iter().find(reachable);
    own.map_or_else(|| context.proxy.wildcards(), |ip| vec![ip.clone()])
}

/// Everything else, and the undeclared ports whose mutual TLS mode differs.
pub(super) fn passthrough(context: &Context<'_>, declared: &[InboundPort]) -> Vec<InboundPort> {
    let known: BTreeSet<u32> = declared.iter().map(|port| port.number).collect();
    let policy = context.peer_policy();
    let own = policy.ports.keys().copied();
    let own = own.filter(|port| !known.contains(port) && !is_reserved(context, *port, true));
    std::iter::once(0)
        .chain(own)
        .map(|number| InboundPort {
            number,
            service_port: 0,
            host: String::new(),
            protocol: Protocol::Auto,
            cluster: passthrough_cluster(),
            stat_name: None,
            tls: None,
            binds_at: context.proxy.wildcards(),
            binds: false,
            passthrough: true,
            origin: mesh_path(&context.mesh.root_namespace),
        })
        .collect()
}
