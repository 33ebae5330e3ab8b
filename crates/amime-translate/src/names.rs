//! Istio's names for clusters, listeners and routes.

use std::fmt;

use amime_core::Hostname;
use amime_model::{Port, Registry, Service};

/// Cluster that drops everything.
pub const BLACK_HOLE_CLUSTER: &str = "BlackHoleCluster";
/// Cluster that dials the address the client dialed.
pub const PASSTHROUGH_CLUSTER: &str = "PassthroughCluster";
/// Cluster that dials the host that an HTTP request names.
pub const DYNAMIC_DNS_CLUSTER: &str = "AllowAnyDynamicDNSCluster";
/// The same for traffic from outside to the workload.
pub const INBOUND_PASSTHROUGH_CLUSTER: &str = "InboundPassthroughCluster";
/// Listener behind the redirection of outbound connections.
pub const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// Listener behind the redirection of inbound connections.
pub const VIRTUAL_INBOUND: &str = "virtualInbound";
/// Virtual host for unknown hosts when they are let through.
pub const ALLOW_ANY: &str = "allow_any";
/// Virtual host for unknown hosts when the proxy resolves them.
pub const ALLOW_ANY_DYNAMIC_DNS: &str = "allow_any_dynamic_dns";
/// Virtual host for unknown hosts when they are refused.
pub const BLOCK_ALL: &str = "block_all";
/// Route configuration of the explicit HTTP proxy port.
pub const HTTP_PROXY_ROUTE: &str = "http_proxy";

/// `outbound|9080|v1|reviews.default.svc.cluster.local`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundName {
    /// Service port.
    pub port: u32,
    /// Subset; empty for the whole service.
    pub subset: String,
    /// Host of the service.
    pub hostname: Hostname,
    /// Written as `outbound_.9080_.v1_.host`, for SNI.
    pub sni: bool,
}

impl OutboundName {
    /// Reads either form.
    pub fn parse(name: &str) -> Option<Self> {
        let (rest, separator, sni) = match name.strip_prefix("outbound|") {
            Some(rest) => (rest, "|", false),
            None => (name.strip_prefix("outbound_.")?, "_.", true),
        };
        let mut parts = rest.splitn(3, separator);
        let port = parts.next()?.parse().ok()?;
        let subset = parts.next()?.to_owned();
        Some(Self { port, subset, hostname: Hostname::new(parts.next()?), sni })
    }
}

impl fmt::Display for OutboundName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.sni { "_." } else { "|" };
        let Self { port, subset, hostname, .. } = self;
        write!(f, "outbound{separator}{port}{separator}{subset}{separator}{hostname}")
    }
}

/// `inbound|9080||`, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InboundName {
    /// Port of the workload.
    pub(crate) port: u32,
}

impl InboundName {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let port = name.strip_prefix("inbound|")?.strip_suffix("||")?;
        Some(Self { port: port.parse().ok()? })
    }
}

/// The cluster by which a proxy knows its own kind: replicas of its workload.
pub const LOCAL_CLUSTER: &str = "local_cluster";

/// Name of the cluster of a service, or of a subset of it.
pub fn outbound_cluster(port: u32, subset: &str, hostname: &Hostname) -> String {
    format!("outbound|{port}|{subset}|{hostname}")
}

/// The same as a server name, for mutual TLS between proxies.
pub fn outbound_sni(port: u32, subset: &str, hostname: &Hostname) -> String {
    format!("outbound_.{port}_.{subset}_.{hostname}")
}

/// Name of the cluster for a port of the workload itself.
pub fn inbound_cluster(port: u32) -> String {
    format!("inbound|{port}||")
}

/// Name of a listener.
pub(crate) fn listener(bind: &str, port: u32) -> String {
    format!("{bind}_{port}")
}

/// The listener for QUIC beside that one.
pub(crate) fn quic_listener(bind: &str, port: u32) -> String {
    format!("udp_{bind}_{port}")
}

/// `host:port`, with brackets around an IPv6 address.
pub(crate) fn domain(host: &str, port: u32) -> String {
    format!("{}:{port}", bracketed(host))
}

/// Brackets around an IPv6 address, as a host header has them.
pub(crate) fn bracketed(host: &str) -> String {
    match host.parse::<std::net::Ipv6Addr>() {
        Ok(_) => format!("[{host}]"),
        Err(_) => host.to_owned(),
    }
}

/// Prefix of statistics; `;` keeps Envoy's tag extraction from cutting names.
pub(crate) fn stat_prefix(name: &str) -> String {
    format!("{name};")
}

/// Name of a cluster's statistics by the mesh's pattern; `None` without one.
pub(crate) fn stat_name(
    pattern: &str,
    service: &Service,
    subset: &str,
    port: &Port,
    target_port: u32,
) -> Option<String> {
    if pattern.is_empty() {
        return None;
    }
    let host = service.hostname.as_str();
    let (short, name) = match service.registry {
        Registry::Kubernetes => {
            (format!("{}.{}", service.name, service.namespace), service.name.clone())
        }
        Registry::External => (host.to_owned(), host.to_owned()),
    };
    let name = pattern
        .replace("%SERVICE%", &short)
        .replace("%SERVICE_NAME%", &name)
        .replace("%SERVICE_FQDN%", host)
        .replace("%SUBSET_NAME%", subset)
        .replace("%TARGET_PORT%", &target_port.to_string())
        .replace("%SERVICE_PORT%", &port.number.to_string())
        .replace("%SERVICE_PORT_NAME%", &port.name);
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_printed() {
        for name in ["outbound|9080|v1|reviews.default.svc.cluster.local", "outbound_.80_._.a.b"] {
            assert_eq!(OutboundName::parse(name).map(|n| n.to_string()), Some(name.to_owned()));
        }
        assert_eq!(OutboundName::parse("inbound|80||"), None);
        assert_eq!(OutboundName::parse("outbound|x||a"), None);
    }

    #[test]
    fn ipv6_hosts_get_brackets() {
        assert_eq!(domain("fd00::1", 80), "[fd00::1]:80");
        assert_eq!(domain("a.b", 80), "a.b:80");
    }
}
