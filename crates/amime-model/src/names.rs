//! Short names in configuration and what they stand for.

use std::net::IpAddr;

/// Domain of Kubernetes services.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// Gateway name that stands for all sidecars.
pub const MESH_GATEWAY: &str = "mesh";

/// Host name of a Kubernetes service.
pub fn service_host(name: &str, namespace: &str) -> String {
    format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}")
}

/// The full name of a host in a rule of `namespace`.
///
/// A name without a dot belongs to the rule's own namespace, not to the one of
/// the service it is about.
pub fn resolve_host(host: &str, namespace: &str) -> String {
    let is_full =
        host.is_empty() || host == "*" || host.contains('.') || host.parse::<IpAddr>().is_ok();
    if is_full { host.to_owned() } else { service_host(host, namespace) }
}

/// `namespace/name` of a gateway named in a rule of `namespace`.
pub fn resolve_gateway(name: &str, namespace: &str) -> String {
    if name == MESH_GATEWAY {
        return name.to_owned();
    }
    if let Some((ns, gateway)) = name.split_once('/') {
        let ns = if ns == "." { namespace } else { ns };
        return format!("{ns}/{gateway}");
    }
    // Old rules name gateways as if they were services: gateway.ns.svc.cluster.local.
    match name.split_once('.') {
        Some((gateway, rest)) => {
            let ns = rest.split('.').next().unwrap_or(rest);
            format!("{ns}/{gateway}")
        }
        None => format!("{namespace}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_hosts_belong_to_the_rule() {
        assert_eq!(resolve_host("reviews", "prod"), "reviews.prod.svc.cluster.local");
        for full in ["*", "a.b", "10.0.0.1", "fd00::1", ""] {
            assert_eq!(resolve_host(full, "prod"), full);
        }
    }

    #[test]
    fn gateways_are_named_in_four_ways() {
        assert_eq!(resolve_gateway("gw", "prod"), "prod/gw");
        assert_eq!(resolve_gateway("./gw", "prod"), "prod/gw");
        assert_eq!(resolve_gateway("edge/gw", "prod"), "edge/gw");
        assert_eq!(resolve_gateway("gw.edge.svc.cluster.local", "prod"), "edge/gw");
        assert_eq!(resolve_gateway("mesh", "prod"), "mesh");
    }
}
