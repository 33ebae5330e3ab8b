//! Envoy's extensions by name and by type, and which of them our own proxy has.
//!
//! A control plane asks here what it may send to a proxy that names its
//! extensions, and what it has to tell the user about the others.

/// Category and name of each extension that the proxy implements, as it names
/// them in its node.
pub const OWN: [(&str, &str); 47] = [
    ("envoy.filters.http", "envoy.filters.http.router"),
    ("envoy.filters.http", "envoy.filters.http.fault"),
    ("envoy.filters.http", "envoy.filters.http.cors"),
    ("envoy.filters.http", "envoy.filters.http.rbac"),
    ("envoy.filters.http", "envoy.filters.http.grpc_stats"),
    ("envoy.filters.http", "envoy.filters.http.local_ratelimit"),
    ("envoy.filters.http", "envoy.filters.http.ratelimit"),
    ("envoy.filters.http", "envoy.filters.http.header_mutation"),
    ("envoy.filters.http", "envoy.filters.http.stateful_session"),
    ("envoy.filters.http", "envoy.filters.http.grpc_web"),
    ("envoy.filters.http", "envoy.filters.http.grpc_http1_bridge"),
    ("envoy.filters.http", "envoy.filters.http.buffer"),
    ("envoy.filters.http", "envoy.filters.http.bandwidth_limit"),
    ("envoy.filters.http", "envoy.filters.http.compressor"),
    ("envoy.filters.http", "envoy.filters.http.decompressor"),
    ("envoy.filters.http", "envoy.filters.http.header_to_metadata"),
    ("envoy.filters.http", "envoy.filters.http.set_metadata"),
    ("envoy.filters.http", "envoy.filters.http.csrf"),
    ("envoy.filters.http", "envoy.filters.http.ip_tagging"),
    ("envoy.filters.http", "envoy.filters.http.health_check"),
    ("envoy.filters.http", "envoy.filters.http.on_demand"),
    ("envoy.filters.http", "envoy.filters.http.dynamic_forward_proxy"),
    ("envoy.filters.http", "istio.alpn"),
    ("envoy.filters.http", "istio.metadata_exchange"),
    ("envoy.filters.http", "istio.stats"),
    ("envoy.filters.network", "envoy.filters.network.http_connection_manager"),
    ("envoy.filters.network", "envoy.filters.network.tcp_proxy"),
    ("envoy.filters.network", "envoy.filters.network.rbac"),
    ("envoy.filters.network", "envoy.filters.network.local_ratelimit"),
    ("envoy.filters.network", "envoy.filters.network.ratelimit"),
    ("envoy.filters.network", "envoy.filters.network.sni_dynamic_forward_proxy"),
    ("envoy.filters.network", "envoy.filters.network.connection_limit"),
    ("envoy.filters.network", "envoy.filters.network.direct_response"),
    ("envoy.filters.network", "envoy.filters.network.echo"),
    ("envoy.filters.network", "envoy.filters.network.sni_cluster"),
    ("envoy.filters.network", "istio.metadata_exchange"),
    ("envoy.filters.network", "istio.stats"),
    ("envoy.filters.listener", "envoy.filters.listener.original_dst"),
    ("envoy.filters.listener", "envoy.filters.listener.tls_inspector"),
    ("envoy.filters.listener", "envoy.filters.listener.http_inspector"),
    ("envoy.clusters", "envoy.clusters.aggregate"),
    ("envoy.clusters", "envoy.clusters.dynamic_forward_proxy"),
    ("envoy.filters.listener", "envoy.filters.listener.proxy_protocol"),
    ("envoy.transport_sockets.upstream", "envoy.transport_sockets.tls"),
    ("envoy.transport_sockets.downstream", "envoy.transport_sockets.tls"),
    ("envoy.access_loggers", "envoy.access_loggers.file"),
    ("envoy.access_loggers", "envoy.access_loggers.stdout"),
];

/// Extensions whose names do not follow from their types.
const IRREGULAR: [(&str, &str); 4] = [
    ("stats.PluginConfig", "istio.stats"),
    ("istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig", "istio.alpn"),
    ("io.istio.http.peer_metadata.Config", "istio.metadata_exchange"),
    ("envoy.tcp.metadataexchange.config.MetadataExchange", "istio.metadata_exchange"),
];

/// The name under which an extension with this type of configuration is known;
/// `None` for a type that is none of Envoy's or Istio's extensions.
///
/// ```
/// use amime_xds::extensions::name_of;
///
/// let url = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua";
/// assert_eq!(name_of(url).as_deref(), Some("envoy.filters.http.lua"));
/// ```
pub fn name_of(type_url: &str) -> Option<String> {
    let full_name = type_url.rsplit('/').next().unwrap_or(type_url);
    if let Some((_, name)) = IRREGULAR.iter().find(|(own, _)| *own == full_name) {
        return Some((*name).to_owned());
    }
    let path = full_name.strip_prefix("envoy.extensions.")?;
    let (path, _message) = path.rsplit_once('.')?;
    let (path, version) = path.rsplit_once('.')?;
    let is_version =
        version.strip_prefix('v').is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()));
    is_version.then(|| format!("envoy.{path}"))
}

/// True if our own proxy has the extension with this type of configuration.
pub fn is_own(type_url: &str) -> bool {
    name_of(type_url).is_some_and(|name| OWN.iter().any(|(_, own)| *own == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_types() {
        assert_eq!(name_of("x/stats.PluginConfig").as_deref(), Some("istio.stats"));
        assert_eq!(
            name_of("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext").as_deref(),
            Some("envoy.transport_sockets.tls")
        );
        assert_eq!(name_of("envoy.extensions.filters.http.lua.Lua"), None);
        assert_eq!(name_of("foreign.Filter"), None);
    }

    #[test]
    fn the_router_is_ours() {
        assert!(is_own("t/envoy.extensions.filters.http.router.v3.Router"));
        assert!(!is_own("t/envoy.extensions.filters.http.wasm.v3.Wasm"));
        assert!(is_own("t/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"));
        assert!(is_own("t/envoy.extensions.filters.network.sni_cluster.v3.SniCluster"));
    }
}
