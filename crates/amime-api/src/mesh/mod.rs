//! Mesh-wide settings: `MeshConfig`, the proxies' default configuration, and `MeshNetworks`.
//!
//! These are not objects of the API but documents in the ConfigMap `istio` (keys `mesh` and
//! `meshNetworks`) or in a file of their own.
//!
//! Spec: <https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/>

mod config;
mod connection_settings;
mod networks;
mod providers;
mod proxy;

pub use config::{
    AccessLogEncoding, AuthPolicy, Certificate, CertificateAuthority, CertificateData,
    ConfigSource, DefaultProviders, H2Upgrade, InboundTrafficMode, InboundTrafficPolicy,
    IngressControllerMode, LabelSelectors, MeshConfig, MeshOutboundTrafficMode,
    MeshOutboundTrafficPolicy, MeshTlsConfig, PathNormalization, PathNormalizationMode,
    ServiceEntryVisibility, ServiceEntryVisibilityPolicy, ServiceEntryVisibilityRule, ServiceScope,
    ServiceScopeConfig, ServiceSettings, ServiceSettingsSettings, TlsConfigProtocol, Visibility,
};
pub use connection_settings::{
    ConnectionProfile, ConnectionSettings, EscapedSlashesAction, UnderscoresAction,
};
pub use networks::{IstioNetworkGateway, MeshNetworks, Network, NetworkEndpoints};
pub use providers::{
    DatadogProvider, EnvoyFileAccessLogProvider, EnvoyHttpGrpcV3LogProvider,
    EnvoyOpenTelemetryLogProvider, EnvoyTcpGrpcV3LogProvider, ExtAuthzGrpcProvider,
    ExtAuthzHttpProvider, ExtAuthzRequestBody, ExtensionProvider, FileLogFormat, GrpcService,
    HttpService, HttpServiceHeader, LightstepProvider, OpenCensusProvider, OpenTelemetryLogFormat,
    OpenTelemetryProvider, PrometheusProvider, ResourceDetectors, SdsProvider, SkyWalkingProvider,
    StackdriverLogging, StackdriverProvider, ZipkinProvider,
};
pub use proxy::{
    Datadog, ForwardClientCertDetails, GatewayTopology, InterceptionMode, MetadataExchangeHeaders,
    MetadataExchangeMode, OpenCensusAgent, PrivateKeyProvider, PrivateKeyProviderDetails,
    ProxyConfig, ProxyHeaderSwitch, ProxyHeaderValue, ProxyHeaders, ProxyImage, ProxyStatsMatcher,
    RemoteService, ServerAddress, SetCurrentClientCertDetails, StackdriverTracer, TracingCustomTag,
    TracingSettings,
};

use crate::decode::{DecodeError, decode_message};

/// Reads a mesh configuration; what it leaves out has Istio's defaults.
pub fn decode_mesh_config(file: &str, text: &str) -> Result<MeshConfig, Vec<DecodeError>> {
    decode_message(file, "MeshConfig", text)
}

/// Reads mesh networks.
pub fn decode_mesh_networks(file: &str, text: &str) -> Result<MeshNetworks, Vec<DecodeError>> {
    decode_message(file, "MeshNetworks", text)
}

/// Reads settings of one proxy, as in the annotation `proxy.istio.io/config`:
/// the fields that are given, for each goes over the mesh's own.
pub fn decode_proxy_config(
    file: &str,
    text: &str,
) -> Result<serde_json::Map<String, serde_json::Value>, Vec<DecodeError>> {
    let settings: ProxyConfig = decode_message(file, "ProxyConfig", text)?;
    let given: serde_json::Map<String, serde_json::Value> =
        decode_message(file, "ProxyConfig", text)?;
    let mut settings = serde_json::to_value(settings).unwrap_or_default();
    let checked = |(name, value)| {
        let read = settings.get_mut(&name).map(serde_json::Value::take);
        (name, read.unwrap_or(value))
    };
    Ok(given.into_iter().map(checked).collect())
}
