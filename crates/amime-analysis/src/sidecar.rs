//! Rules of `Sidecar`.

use amime_api::networking::{
    CaptureMode, IstioEgressListener, IstioIngressListener, OutboundTrafficMode,
    OutboundTrafficPolicy, ServerTlsMode, ServerTlsSettings, Sidecar, SidecarPort,
};
use amime_core::Protocol;

use crate::problem::{At, Report};
use crate::{destination_rule, shared, syntax};

pub(crate) fn check(spec: &Sidecar, at: &At, report: &mut Report) {
    shared::labels_selector(spec.workload_selector.as_ref(), at, report);
    if (Sidecar { workload_selector: None, ..spec.clone() }) == Sidecar::default() {
        report.error(at, "at least one of ingress, egress and outboundTrafficPolicy is required");
    }
    let mut ports = Vec::new();
    for (at, listener) in at.each("ingress", &spec.ingress) {
        check_ingress(listener, &at, report);
        let number = listener.port.as_ref().map_or(0, |port| port.number);
        if ports.contains(&number) {
            report.error(&at.field("port"), format!("port {number} is given twice"));
        }
        ports.push(number);
    }
    if let Some(pool) = &spec.inbound_connection_pool {
        destination_rule::check_pool(pool, &at.field("inboundConnectionPool"), report);
    }
    if let Some(policy) = &spec.outbound_traffic_policy {
        check_outbound(policy, &at.field("outboundTrafficPolicy"), report);
    }
    check_egress_ports(&spec.egress, at, report);
    let mut has_catch_all = false;
    for (index, listener) in spec.egress.iter().enumerate() {
        let at = at.field("egress").nth(index);
        check_egress(listener, &at, report);
        if listener.port.is_some() {
            continue;
        }
        if has_catch_all {
            report.error(&at, "only one listener can be without a port");
        } else if index + 1 != spec.egress.len() {
            report.error(&at, "the listener without a port must be the last");
        }
        has_catch_all = true;
    }
}

/// A port is taken once, on each address and for each socket.
fn check_egress_ports(listeners: &[IstioEgressListener], at: &At, report: &mut Report) {
    let mut taken = Vec::new();
    for (at, listener) in at.each("egress", listeners) {
        let Some(port) = &listener.port else { continue };
        let place = (port.number, listener.bind.as_str());
        if taken.contains(&place) {
            report.error(&at.field("port"), format!("port {} is given twice", port.number));
        }
        taken.push(place);
    }
}

fn check_port(port: &SidecarPort, bind: &str, at: &At, report: &mut Report) {
    if port.number != 0 || !bind.starts_with("unix://") {
        report.check(&at.field("number"), syntax::port(port.number));
    }
    if !port.protocol.is_empty() {
        report.check(&at.field("protocol"), syntax::protocol(&port.protocol));
    }
    if !port.name.is_empty() {
        report.check(&at.field("name"), syntax::dns_label(&port.name));
    }
    if port.target_port > 0 {
        report.error(&at.field("targetPort"), "has no meaning on sidecars");
    }
}

fn check_bind(bind: &str, socket_allowed: bool, at: &At, report: &mut Report) {
    let at = at.field("bind");
    match bind.strip_prefix("unix://") {
        Some(path) if socket_allowed => report.check(&at, syntax::socket_path(path)),
        _ if bind.is_empty() => {}
        _ => report.check(&at, syntax::ip(bind)),
    }
}

fn check_ingress(listener: &IstioIngressListener, at: &At, report: &mut Report) {
    match &listener.port {
        Some(port) => check_port(port, "", &at.field("port"), report),
        None => report.error(&at.field("port"), "a port is required"),
    }
    check_bind(&listener.bind, false, at, report);
    if let Some(pool) = &listener.connection_pool {
        destination_rule::check_pool(pool, &at.field("connectionPool"), report);
    }
    if let Some(tls) = &listener.tls {
        check_tls(tls, listener.port.as_ref(), &at.field("tls"), report);
    }
    let endpoint = listener.default_endpoint.as_str();
    if let Some(path) = endpoint.strip_prefix("unix://") {
        return report.check(&at.field("defaultEndpoint"), syntax::socket_path(path));
    }
    if endpoint.is_empty() {
        return;
    }
    let local = ["127.0.0.1:", "0.0.0.0:", "[::1]:", "[::]:"];
    let port = local.iter().find_map(|prefix| endpoint.strip_prefix(prefix));
    let fine = port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if !fine {
        let message = format!(
            "{endpoint:?} is not 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT or unix://PATH"
        );
        report.error(&at.field("defaultEndpoint"), message);
    }
}

/// TLS of an application that speaks it by itself.
fn check_tls(tls: &ServerTlsSettings, port: Option<&SidecarPort>, at: &At, report: &mut Report) {
    let protocol = port.and_then(|port| port.protocol.parse().ok());
    if !matches!(protocol, Some(Protocol::Https | Protocol::Tls)) {
        report.error(at, "is for ports of protocol HTTPS and TLS only");
    }
    if tls.https_redirect {
        report.error(&at.field("httpsRedirect"), "is for gateways only");
    }
    if !tls.credential_name.is_empty() || !tls.credential_names.is_empty() {
        report.error(&at.field("credentialName"), "is for gateways only");
    }
    let passes = [ServerTlsMode::IstioMutual, ServerTlsMode::AutoPassthrough];
    if passes.contains(&tls.mode) {
        report.error(&at.field("mode"), "is for gateways only");
    }
}

fn check_outbound(policy: &OutboundTrafficPolicy, at: &At, report: &mut Report) {
    let Some(proxy) = &policy.egress_proxy else { return };
    let at = at.field("egressProxy");
    if policy.mode != OutboundTrafficMode::AllowAny {
        return report.error(&at, "needs mode ALLOW_ANY");
    }
    report.check(&at.field("host"), syntax::host_name(&proxy.host));
    if proxy.port.is_none() {
        report.error(&at.field("port"), "a port is required");
    }
    if !proxy.host.is_empty() {
        shared::destination(proxy, &at, report);
    }
}

fn check_egress(listener: &IstioEgressListener, at: &At, report: &mut Report) {
    if let Some(port) = &listener.port {
        check_port(port, &listener.bind, &at.field("port"), report);
        if port.number == 0 && listener.capture_mode == CaptureMode::Iptables {
            let at = at.field("captureMode");
            report.error(&at, "connections to a Unix socket cannot be redirected");
        }
    }
    let socket_allowed = listener.port.as_ref().is_some_and(|port| port.number == 0);
    check_bind(&listener.bind, socket_allowed, at, report);
    if listener.hosts.is_empty() {
        report.error(&at.field("hosts"), "at least one host is required");
    }
    for (at, host) in at.each("hosts", &listener.hosts) {
        report.check(&at, egress_host(host));
    }
}

/// `namespace/host`, with `*`, `.`, `~` or `~namespace` as namespace.
fn egress_host(text: &str) -> Result<(), String> {
    let Some((namespace, host)) = text.split_once('/') else {
        return Err(format!("{text:?} is not of the form namespace/host"));
    };
    if !matches!(namespace, "*" | "." | "~") {
        syntax::dns_label(namespace.strip_prefix('~').unwrap_or(namespace))?;
    }
    syntax::wildcard_host(host)
}
