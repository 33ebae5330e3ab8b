//! `envoy.tcp.metadataexchange.config`: peer metadata ahead of a TCP stream.

use super::named;

/// Configuration of the `istio.metadata_exchange` network filter.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MetadataExchange {
    /// ALPN protocol that both ends must have agreed on.
    #[prost(string, tag = "1")]
    pub protocol: String,
    /// Fall back to workload discovery when the peer sends nothing.
    #[prost(bool, tag = "2")]
    pub enable_discovery: bool,
    /// Labels that travel in addition to the standard ones.
    #[prost(string, repeated, tag = "3")]
    pub additional_labels: Vec<String>,
}

named!(MetadataExchange, "envoy.tcp.metadataexchange.config", "MetadataExchange");
