//! Rules of `VirtualService`; those of its HTTP routes are in [`crate::http_route`].

use amime_api::networking::{
    HttpRoute, L4MatchAttributes, TcpRoute, TlsMatchAttributes, TlsRoute, VirtualService,
};
use amime_core::Hostname;

use crate::problem::{At, Report};
use crate::{http_route, shared, syntax};

pub(crate) fn check(spec: &VirtualService, is_delegate: bool, at: &At, report: &mut Report) {
    check_hosts(spec, is_delegate, at, report);
    shared::gateways(&spec.gateways, at, report);
    shared::rule_export_to(&spec.export_to, at, report);
    if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        report.error(at, "at least one of http, tls and tcp is required");
    }
    let in_mesh = spec.gateways.iter().all(|gateway| gateway == "mesh");
    for (at, route) in at.each("http", &spec.http) {
        http_route::check(route, is_delegate, &at, report);
        if in_mesh && !is_delegate {
            check_claims(route, &at, report);
        }
    }
    for (at, route) in at.each("tls", &spec.tls) {
        check_tls(route, spec, &at, report);
    }
    for (at, route) in at.each("tcp", &spec.tcp) {
        check_tcp(route, &at, report);
    }
}

/// Only gateways know the tokens of requests when they choose a route.
fn check_claims(route: &HttpRoute, at: &At, report: &mut Report) {
    for (at, item) in at.each("match", &route.r#match) {
        for (name, headers) in
            [("headers", &item.headers), ("withoutHeaders", &item.without_headers)]
        {
            for header in headers.keys().filter(|header| syntax::is_claim(header)) {
                report.error(&at.field(name).key(header), "claims are matched by gateways only");
            }
        }
    }
}

fn check_hosts(spec: &VirtualService, is_delegate: bool, at: &At, report: &mut Report) {
    if spec.hosts.is_empty() {
        return check_without_hosts(spec, is_delegate, at, report);
    }
    let in_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|name| name == "mesh");
    let mut earlier: Vec<Hostname> = Vec::new();
    for (at, host) in at.each("hosts", &spec.hosts) {
        if let Err(message) = syntax::wildcard_host(host) {
            report.error(&at, message);
            continue;
        }
        if host == "*" && in_mesh {
            report.error(
                &at,
                "\"*\" needs a gateway: sidecars (gateway \"mesh\") cannot take over every host",
            );
        }
        let host = Hostname::new(host);
        if let Some(same) = earlier.iter().find(|other| other.matches(&host)) {
            report.error(&at, format!("covers the same names as {:?}", same.as_str()));
        }
        earlier.push(host);
    }
}

fn check_without_hosts(spec: &VirtualService, is_delegate: bool, at: &At, report: &mut Report) {
    if !is_delegate {
        report.error(
            &at.field("hosts"),
            "at least one host is required, unless another VirtualService delegates to this one, \
             and none does",
        );
        return;
    }
    if !spec.gateways.is_empty() {
        report.error(&at.field("gateways"), "a delegate has the gateways of its root");
    }
    if !spec.tls.is_empty() {
        report.error(&at.field("tls"), "a delegate can have HTTP routes only");
    }
    if !spec.tcp.is_empty() {
        report.error(&at.field("tcp"), "a delegate can have HTTP routes only");
    }
}

fn check_tls(route: &TlsRoute, spec: &VirtualService, at: &At, report: &mut Report) {
    if route.r#match.is_empty() {
        report.error(&at.field("match"), "at least one match is required");
    }
    for (at, item) in at.each("match", &route.r#match) {
        check_tls_match(item, &spec.hosts, &at, report);
    }
    check_routes(&route.route, at, report);
}

fn check_tls_match(item: &TlsMatchAttributes, hosts: &[String], at: &At, report: &mut Report) {
    if item.sni_hosts.is_empty() {
        report.error(&at.field("sniHosts"), "at least one server name is required");
    }
    for (at, name) in at.each("sniHosts", &item.sni_hosts) {
        if let Err(message) = syntax::wildcard_host(name) {
            report.error(&at, message);
            continue;
        }
        let name = Hostname::new(name);
        if !hosts.iter().any(|host| name.subset_of(&Hostname::new(host))) {
            report.error(&at, format!("{:?} is not among the hosts of the rule", name.as_str()));
        }
    }
    check_source(&item.destination_subnets, item.port, &item.source_namespace, at, report);
    shared::labels(&item.source_labels, &at.field("sourceLabels"), report);
    shared::gateways(&item.gateways, at, report);
}

fn check_tcp(route: &TcpRoute, at: &At, report: &mut Report) {
    for (at, item) in at.each("match", &route.r#match) {
        check_tcp_match(item, &at, report);
    }
    check_routes(&route.route, at, report);
}

fn check_tcp_match(item: &L4MatchAttributes, at: &At, report: &mut Report) {
    check_source(&item.destination_subnets, item.port, &item.source_namespace, at, report);
    if !item.source_subnet.is_empty() {
        report.check(&at.field("sourceSubnet"), syntax::subnet(&item.source_subnet));
    }
    shared::labels(&item.source_labels, &at.field("sourceLabels"), report);
    shared::gateways(&item.gateways, at, report);
}

fn check_source(subnets: &[String], port: u32, namespace: &str, at: &At, report: &mut Report) {
    for (at, subnet) in at.each("destinationSubnets", subnets) {
        report.check(&at, syntax::subnet(subnet));
    }
    if port != 0 {
        report.check(&at.field("port"), syntax::port(port));
    }
    if !namespace.is_empty() {
        report.check(&at.field("sourceNamespace"), syntax::dns_label(namespace));
    }
}

fn check_routes(routes: &[amime_api::networking::RouteDestination], at: &At, report: &mut Report) {
    if routes.is_empty() {
        report.error(&at.field("route"), "at least one destination is required");
    }
    for (at, route) in at.each("route", routes) {
        shared::destination(&route.destination, &at.field("destination"), report);
    }
    let weights: Vec<i32> = routes.iter().map(|route| route.weight).collect();
    shared::weights(&weights, &at.field("route"), report);
}
