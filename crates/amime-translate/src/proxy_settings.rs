//! What `ProxyConfig` changes in the headers and addresses that a proxy works
//! with: of the mesh, with what the proxy says over it.

use amime_api::mesh::{
    ConnectionSettings, ForwardClientCertDetails as Forwarding, GatewayTopology, MeshConfig, MetadataExchangeMode,
    ProxyConfig, ProxyHeaders, SetCurrentClientCertDetails as Parts,
};
use envoy_types::pb::envoy::config::core::v3::http1_protocol_options::HeaderKeyFormat;
use envoy_types::pb::envoy::config::core::v3::http1_protocol_options::header_key_format::HeaderFormat;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::ForwardClientCertDetails;
use envoy_types::pb::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;

use crate::connection_settings;
use crate::proto::extension;
use crate::proxy::Proxy;

/// Settings of one proxy.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProxySettings {
    headers: ProxyHeaders,
    topology: GatewayTopology,
    /// Limits of connections, if any are set.
    pub(crate) connections: Option<ConnectionSettings>,
}

/// What a proxy calls itself in answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServerHeader {
    /// By Envoy's or Istio's name.
    Usual,
    /// So.
    Named(String),
    /// Not at all: the header of the upstream stays.
    Untouched,
}

impl ProxySettings {
    pub(crate) fn of(mesh: &MeshConfig, proxy: &Proxy) -> Self {
        let config = proxy_config(mesh, proxy);
        Self {
            headers: config.proxy_headers.unwrap_or_default(),
            topology: config.gateway_topology.unwrap_or_default(),
            connections: config
                .connection_settings
                .map(|settings| connection_settings::with_profile(settings, proxy.kind)),
        }
    }

    pub(crate) fn server(&self) -> ServerHeader {
        match &self.headers.server {
            Some(own) if own.disabled == Some(true) => ServerHeader::Untouched,
            Some(own) if !own.value.is_empty() => ServerHeader::Named(own.value.clone()),
            _ => ServerHeader::Usual,
        }
    }

    /// False if requests get no ID.
    pub(crate) fn request_id(&self) -> bool {
        let own = self.headers.request_id.as_ref();
        own.is_none_or(|own| own.disabled != Some(true))
    }

    /// True if `X-Envoy-Attempt-Count` is set.
    pub(crate) fn attempt_count(&self) -> bool {
        let own = self.headers.attempt_count.as_ref();
        own.is_none_or(|own| own.disabled != Some(true))
    }

    /// True if the other `X-Envoy-…` headers are left out.
    pub(crate) fn suppresses_envoy_headers(&self) -> bool {
        let own = self.headers.envoy_debug_headers.as_ref();
        own.is_some_and(|own| own.disabled == Some(true))
    }

    /// True if hosts outside the mesh see no metadata headers.
    pub(crate) fn exchanges_in_mesh_only(&self) -> bool {
        let own = self.headers.metadata_exchange_headers.as_ref();
        own.is_some_and(|own| own.mode == MetadataExchangeMode::InMesh)
    }

    pub(crate) fn forwarded_host(&self) -> bool {
        let own = self.headers.x_forwarded_host.as_ref();
        own.is_some_and(|own| own.enabled == Some(true))
    }

    pub(crate) fn forwarded_port(&self) -> bool {
        let own = self.headers.x_forwarded_port.as_ref();
        own.is_some_and(|own| own.enabled == Some(true))
    }

    /// How HTTP/1 header names are written, if not in lower case.
    pub(crate) fn header_case(&self) -> Option<HeaderKeyFormat> {
        (self.headers.preserve_http1_header_case == Some(true)).then(|| HeaderKeyFormat {
            header_format: Some(HeaderFormat::StatefulFormatter(extension(
                "preserve_case",
                &PreserveCaseFormatterConfig::default(),
            ))),
        })
    }

    /// What sidecars do with `X-Forwarded-Client-Cert`.
    pub(crate) fn client_certificate(&self) -> ForwardClientCertDetails {
        let usual = ForwardClientCertDetails::AppendForward;
        forwarding(self.headers.forwarded_client_cert).unwrap_or(usual)
    }

    /// Parts of a certificate that sidecars put into that header.
    pub(crate) fn certificate_parts(&self) -> Parts {
        let own = self.headers.set_current_client_cert_details.clone().unwrap_or_default();
        Parts {
            subject: own.subject.or(Some(true)),
            uri: own.uri.or(Some(true)),
            dns: own.dns.or(Some(true)),
            ..own
        }
    }

    /// The same for gateways, which have a setting of their own.
    pub(crate) fn gateway_client_certificate(&self) -> ForwardClientCertDetails {
        let usual = ForwardClientCertDetails::SanitizeSet;
        forwarding(self.topology.forward_client_cert_details).unwrap_or(usual)
    }

    /// Proxies before a gateway whose `X-Forwarded-For` is believed.
    pub(crate) fn trusted_proxies(&self) -> u32 {
        self.topology.num_trusted_proxies
    }

    /// True if connections to a gateway start with the PROXY protocol.
    pub(crate) fn proxy_protocol(&self) -> bool {
        self.topology.proxy_protocol.is_some()
    }
}

fn forwarding(setting: Forwarding) -> Option<ForwardClientCertDetails> {
    Some(match setting {
        Forwarding::Undefined => return None,
        Forwarding::Sanitize => ForwardClientCertDetails::Sanitize,
        Forwarding::ForwardOnly => ForwardClientCertDetails::ForwardOnly,
        Forwarding::AppendForward => ForwardClientCertDetails::AppendForward,
        Forwarding::SanitizeSet => ForwardClientCertDetails::SanitizeSet,
        Forwarding::AlwaysForwardOnly => ForwardClientCertDetails::AlwaysForwardOnly,
    })
}

/// The mesh's settings with those that the proxy started with over them.
fn proxy_config(mesh: &MeshConfig, proxy: &Proxy) -> ProxyConfig {
    let own = proxy.metadata.get("PROXY_CONFIG").and_then(serde_json::Value::as_object);
    let Some(own) = own.filter(|own| !own.is_empty()) else { return mesh.default_config.clone() };
    let mut merged = serde_json::to_value(&mesh.default_config).unwrap_or_default();
    if let Some(fields) = merged.as_object_mut() {
        fields.extend(own.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    // A proxy of another version may say what we cannot read.
    serde_json::from_value(merged).unwrap_or_else(|_| mesh.default_config.clone())
}
