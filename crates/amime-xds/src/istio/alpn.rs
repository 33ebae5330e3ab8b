//! `istio.envoy.config.filter.http.alpn.v2alpha1`: the `istio.alpn` filter,
//! which picks the ALPN list of an upstream handshake by HTTP version.

use super::named;

/// ALPN lists by upstream protocol.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FilterConfig {
    /// One entry a protocol.
    #[prost(message, repeated, tag = "1")]
    pub alpn_override: Vec<AlpnOverride>,
}

named!(FilterConfig, "istio.envoy.config.filter.http.alpn.v2alpha1", "FilterConfig");

/// ALPN list for one upstream protocol.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AlpnOverride {
    /// Protocol that the upstream connection speaks.
    #[prost(enumeration = "Protocol", tag = "1")]
    pub upstream_protocol: i32,
    /// Protocols to offer, most wanted first.
    #[prost(string, repeated, tag = "2")]
    pub alpn_override: Vec<String>,
}

named!(AlpnOverride, "istio.envoy.config.filter.http.alpn.v2alpha1", "FilterConfig.AlpnOverride");

/// HTTP versions as the filter numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Protocol {
    /// HTTP/1.0
    Http10 = 0,
    /// HTTP/1.1
    Http11 = 1,
    /// HTTP/2
    Http2 = 2,
}
