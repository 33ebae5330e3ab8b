//! Host headers by which a service can be addressed.

use amime_model::{Registry, Resolution, Service, UNSPECIFIED_V4};

use crate::context::Context;
use crate::names::{bracketed, domain};

/// Domains of a service's virtual host.
pub(crate) struct Domains {
    /// In order of precedence.
    pub(crate) all: Vec<String>,
    /// Those that are short for the full name.
    pub(crate) short: Vec<String>,
}

/// Domains of a service; with a port also those that carry it.
pub(crate) fn service_domains(
    context: &Context<'_>,
    service: &Service,
    port: Option<u32>,
) -> Domains {
    let mut domains = Domains { all: Vec::new(), short: Vec::new() };
    let aliases = service.aliases.iter().map(|(_, alias)| alias.as_str());
    for host in std::iter::once(service.hostname.as_str()).chain(aliases) {
        add(&mut domains.all, host, port);
        let mut short = Vec::new();
        for alternative in alternatives(host, &context.proxy.dns_domain) {
            add(&mut short, &alternative, port);
        }
        domains.all.extend(short.iter().cloned());
        domains.short.extend(short);
    }
    // Pods of a headless service have names of their own below it.
    if service.resolution == Resolution::Passthrough && service.registry == Registry::Kubernetes {
        let below: Vec<String> = domains.all.iter().map(|name| format!("*.{name}")).collect();
        domains.all.extend(below);
    }
    for address in service.addresses_for(context.view) {
        if !address.is_empty() && address != UNSPECIFIED_V4 {
            add(&mut domains.all, &address, port);
        }
    }
    domains
}

fn add(domains: &mut Vec<String>, host: &str, port: Option<u32>) {
    domains.push(bracketed(host));
    domains.extend(port.map(|port| domain(host, port)));
}

/// Other ways to write a host for a client in `proxy_domain`: with a final dot,
/// and by the client's search domains.
pub(crate) fn alternatives(host: &str, proxy_domain: &str) -> Vec<String> {
    let mut names = Vec::new();
    if host.parse::<std::net::IpAddr>().is_err() {
        names.push(format!("{host}."));
    }
    match proxy_domain.find(".svc.") {
        Some(at) if host.ends_with(&proxy_domain[at..]) => {
            names.extend(kubernetes_names(host, &proxy_domain[..at]));
        }
        // Other names must not be shortened: they could pass for a service's.
        Some(_) => {}
        None => names.extend(search_names(host, proxy_domain)),
    }
    names
}

fn kubernetes_names(host: &str, own_namespace: &str) -> Vec<String> {
    let Some(at) = host.find(".svc.").filter(|at| *at > 0) else { return Vec::new() };
    let short = &host[..at];
    let Some((name, namespace)) = short.split_once('.') else { return Vec::new() };
    let with_svc = format!("{short}.svc");
    if namespace == own_namespace {
        vec![name.to_owned(), with_svc, short.to_owned()]
    } else {
        vec![short.to_owned(), with_svc]
    }
}

/// Names by the parts that host and client domain have in common.
fn search_names(host: &str, proxy_domain: &str) -> Vec<String> {
    let host_parts: Vec<&str> = host.split('.').collect();
    let own = proxy_domain.split('.').rev();
    let shared = host_parts.iter().rev().zip(own).take_while(|(a, b)| **a == *b).count();
    if shared == 0 {
        return Vec::new();
    }
    let (unique, common) = host_parts.split_at(host_parts.len() - shared);
    let mut names = vec![unique.join(".")];
    if unique.len() == 2 {
        names.push(format!("{}.{}", unique.join("."), common[0]));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(host: &str, proxy_domain: &str, want: &[&str]) {
        assert_eq!(alternatives(host, proxy_domain), want);
    }

    #[test]
    fn services_are_short_in_their_own_namespace_only() {
        let host = "a.ns1.svc.cluster.local";
        check(
            host,
            "ns1.svc.cluster.local",
            &["a.ns1.svc.cluster.local.", "a", "a.ns1.svc", "a.ns1"],
        );
        check(host, "ns2.svc.cluster.local", &["a.ns1.svc.cluster.local.", "a.ns1", "a.ns1.svc"]);
    }

    #[test]
    fn foreign_hosts_are_never_shortened() {
        check("example.com", "ns1.svc.cluster.local", &["example.com."]);
        check("10.0.0.1", "ns1.svc.cluster.local", &[]);
        check(
            "foo.local.campus.net",
            "remote.campus.net",
            &["foo.local.campus.net.", "foo.local", "foo.local.campus"],
        );
    }
}
