//! Rules of `Gateway`.

use amime_api::networking::{Gateway, Port, Server, ServerTlsMode, ServerTlsSettings};
use amime_core::Protocol;

use crate::problem::{At, Report};
use crate::{shared, syntax};

pub(crate) fn check(spec: &Gateway, at: &At, report: &mut Report) {
    if spec.servers.is_empty() {
        report.error(&at.field("servers"), "at least one server is required");
    }
    shared::labels(&spec.selector, &at.field("selector"), report);
    let mut names: Vec<&str> = Vec::new();
    for (at, server) in at.each("servers", &spec.servers) {
        check_server(server, &at, report);
        let name = server.port.as_ref().map_or("", |port| port.name.as_str());
        if !name.is_empty() && names.contains(&name) {
            report.error(
                &at.field("port").field("name"),
                format!("port name {name:?} is given twice"),
            );
        }
        names.push(name);
    }
}

fn check_server(server: &Server, at: &At, report: &mut Report) {
    match &server.port {
        Some(port) => check_port(port, &server.bind, &at.field("port"), report),
        None => report.error(&at.field("port"), "a port is required"),
    }
    if server.hosts.is_empty() {
        report.error(&at.field("hosts"), "at least one host is required");
    }
    for (at, host) in at.each("hosts", &server.hosts) {
        report.check(&at, namespaced_host(host));
    }
    check_bind(server, at, report);
    if !server.default_endpoint.is_empty() {
        report.error(&at.field("defaultEndpoint"), "is not supported");
    }
    let protocol = server.port.as_ref().and_then(|port| port.protocol.parse().ok());
    let terminates_tls = matches!(protocol, Some(Protocol::Https | Protocol::Tls));
    match &server.tls {
        None if terminates_tls => {
            report.error(&at.field("tls"), "ports of protocol HTTPS and TLS need it");
        }
        None => {}
        Some(_) if !terminates_tls && !protocol.is_some_and(Protocol::is_http) => {
            report.error(&at.field("tls"), "is for ports of protocol HTTP, HTTPS and TLS only");
        }
        Some(tls) => check_tls(tls, terminates_tls, &at.field("tls"), report),
    }
}

fn check_bind(server: &Server, at: &At, report: &mut Report) {
    let at = at.field("bind");
    match server.bind.strip_prefix("unix://") {
        Some(path) => {
            report.check(&at, syntax::socket_path(path));
            if server.port.as_ref().is_some_and(|port| port.number != 0) {
                report.error(&at, "a Unix socket needs port number 0");
            }
        }
        None if server.bind.is_empty() => {}
        None => report.check(&at, syntax::ip(&server.bind)),
    }
}

fn check_port(port: &Port, bind: &str, at: &At, report: &mut Report) {
    if port.number != 0 || !bind.starts_with("unix://") {
        report.check(&at.field("number"), syntax::port(port.number));
    }
    if port.name.is_empty() {
        report.error(&at.field("name"), "a name is required");
    }
    report.check(&at.field("protocol"), syntax::protocol(&port.protocol));
    if port.target_port > 0 {
        report.error(&at.field("targetPort"), "has no meaning on gateways");
    }
}

/// `host`, `namespace/host`, `./host` or `*/host`.
fn namespaced_host(text: &str) -> Result<(), String> {
    let (namespace, host) = text.split_once('/').unwrap_or(("*", text));
    if !matches!(namespace, "*" | ".") {
        syntax::dns_label(namespace)?;
    }
    syntax::wildcard_host(host)
}

fn check_tls(tls: &ServerTlsSettings, terminates_tls: bool, at: &At, report: &mut Report) {
    if !terminates_tls {
        let only_redirect =
            ServerTlsSettings { https_redirect: tls.https_redirect, ..Default::default() };
        if *tls != only_redirect {
            report.error(
                at,
                "only httpsRedirect is allowed on ports of other protocols than HTTPS and TLS",
            );
        }
        return;
    }
    if tls.https_redirect {
        report.warning(&at.field("httpsRedirect"), "is for ports of protocol HTTP");
    }
    check_certificates(tls, at, report);
    if tls.min_protocol_version > tls.max_protocol_version
        && tls.max_protocol_version != Default::default()
    {
        report.error(&at.field("minProtocolVersion"), "is newer than maxProtocolVersion");
    }
}

fn check_certificates(tls: &ServerTlsSettings, at: &At, report: &mut Report) {
    let files = [
        ("serverCertificate", &tls.server_certificate),
        ("privateKey", &tls.private_key),
        ("caCertificates", &tls.ca_certificates),
        ("caCrl", &tls.ca_crl),
    ];
    let by_secret = !tls.credential_name.is_empty() || !tls.credential_names.is_empty();
    match tls.mode {
        ServerTlsMode::IstioMutual => {
            for (name, _) in files.iter().filter(|(_, file)| !file.is_empty()) {
                report.error(&at.field(name), "mode ISTIO_MUTUAL brings its own certificates");
            }
            if by_secret || !tls.tls_certificates.is_empty() {
                let name = if by_secret { "credentialName" } else { "tlsCertificates" };
                report.error(&at.field(name), "mode ISTIO_MUTUAL brings its own certificates");
            }
        }
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {
            check_listed(tls, at, report);
            if by_secret || !tls.tls_certificates.is_empty() {
                return check_sources(tls, at, report);
            }
            let needed = if tls.mode == ServerTlsMode::Simple { 2 } else { 3 };
            for (name, _) in files[..needed].iter().filter(|(_, file)| file.is_empty()) {
                report.error(&at.field(name), "the mode needs it, or credentialName");
            }
        }
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {
            if by_secret {
                report.warning(
                    &at.field("credentialName"),
                    "has no effect in modes that pass TLS through",
                );
            }
        }
    }
    if tls.credential_names.len() > 2 {
        report.error(&at.field("credentialNames"), "two at most, of different key types");
    }
}

/// Certificates in a list; the roots for clients stand beside it.
fn check_listed(tls: &ServerTlsSettings, at: &At, report: &mut Report) {
    for (at, certificate) in at.each("tlsCertificates", &tls.tls_certificates) {
        let files = [
            ("serverCertificate", &certificate.server_certificate),
            ("privateKey", &certificate.private_key),
        ];
        for (name, _) in files.iter().filter(|(_, file)| file.is_empty()) {
            report.error(&at.field(name), "a file is required");
        }
    }
    let asks_clients = matches!(tls.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual);
    if asks_clients && !tls.tls_certificates.is_empty() && tls.ca_certificates.is_empty() {
        report.error(&at.field("caCertificates"), "the mode needs it");
    }
}

/// A certificate comes from one place.
fn check_sources(tls: &ServerTlsSettings, at: &At, report: &mut Report) {
    let files = !tls.server_certificate.is_empty() && !tls.private_key.is_empty();
    let sources = [
        (!tls.credential_name.is_empty(), "credentialName"),
        (!tls.credential_names.is_empty(), "credentialNames"),
        (files, "serverCertificate"),
        (!tls.tls_certificates.is_empty(), "tlsCertificates"),
    ];
    let mut given = sources.iter().filter(|(given, _)| *given).map(|(_, name)| *name);
    if let (Some(first), Some(second)) = (given.next(), given.next()) {
        report.error(&at.field(second), format!("cannot be given together with {first}"));
    }
}
