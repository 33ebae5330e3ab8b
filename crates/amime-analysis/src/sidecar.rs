//! Rules of `Sidecar`.

use amime_api::networking::{IstioEgressListener, IstioIngressListener, Sidecar, SidecarPort};

use crate::problem::{At, Report};
use crate::{shared, syntax};

pub(crate) fn check(spec: &Sidecar, at: &At, report: &mut Report) {
    shared::labels_selector(spec.workload_selector.as_ref(), at, report);
    if *spec == Sidecar::default() {
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

fn check_port(port: &SidecarPort, bind: &str, at: &At, report: &mut Report) {
    if port.number != 0 || !bind.starts_with("unix://") {
        report.check(&at.field("number"), syntax::port(port.number));
    }
    report.check(&at.field("protocol"), syntax::protocol(&port.protocol));
}

fn check_bind(bind: &str, at: &At, report: &mut Report) {
    if !bind.is_empty() && !bind.starts_with("unix://") {
        report.check(&at.field("bind"), syntax::ip(bind));
    }
}

fn check_ingress(listener: &IstioIngressListener, at: &At, report: &mut Report) {
    match &listener.port {
        Some(port) => check_port(port, "", &at.field("port"), report),
        None => report.error(&at.field("port"), "a port is required"),
    }
    check_bind(&listener.bind, at, report);
    let endpoint = listener.default_endpoint.as_str();
    if endpoint.is_empty() || endpoint.starts_with("unix://") {
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

fn check_egress(listener: &IstioEgressListener, at: &At, report: &mut Report) {
    if let Some(port) = &listener.port {
        check_port(port, &listener.bind, &at.field("port"), report);
    }
    check_bind(&listener.bind, at, report);
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
