//! Settings of proxies, as in `defaultConfig` and the annotation `proxy.istio.io/config`.

use std::collections::BTreeMap;

use amime_core::Duration;

use super::connection_settings::ConnectionSettings;
use crate::meta::StringMap;
use crate::networking::{ClientTlsSettings, ReadinessProbe, TcpKeepalive};

/// Settings of a proxy, fixed when it starts.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    /// Directory for generated configuration.
    pub config_path: String,
    /// Path of the proxy binary.
    pub binary_path: String,
    /// Name of the service the proxy is for; old.
    pub service_cluster: Option<String>,
    /// Where the name comes from.
    pub tracing_service_name: String,
    /// Time to finish connections of a replaced configuration; 45 s.
    pub drain_duration: Option<Duration>,
    /// Old time between parent and child of a hot restart.
    pub parent_shutdown_duration: Option<Duration>,
    /// Control plane; `istiod.istio-system.svc:15012`.
    pub discovery_address: String,
    /// Old poll interval.
    pub discovery_refresh_delay: Option<Duration>,
    /// Old tracer address.
    pub zipkin_address: String,
    /// Old statistics address.
    pub statsd_udp_address: String,
    /// Admin port; 15000.
    pub proxy_admin_port: i32,
    /// Old availability zone.
    pub availability_zone: String,
    /// Old choice of control plane authentication.
    pub control_plane_auth_policy: super::AuthPolicy,
    /// Bootstrap template.
    pub custom_config_file: String,
    /// Longest statistics name.
    pub stat_name_length: i32,
    /// Worker threads; zero means one per core.
    pub concurrency: Option<i32>,
    /// Bootstrap template.
    pub proxy_bootstrap_template_path: String,
    /// How connections are captured.
    pub interception_mode: InterceptionMode,
    /// Traces.
    pub tracing: Option<TracingSettings>,
    /// Access log service.
    pub envoy_access_log_service: Option<RemoteService>,
    /// Metrics service.
    pub envoy_metrics_service: Option<RemoteService>,
    /// Further metadata and environment.
    pub proxy_metadata: StringMap,
    /// Runtime values.
    pub runtime_values: StringMap,
    /// Status port; 15020.
    pub status_port: i32,
    /// Labels to keep in metrics.
    pub extra_stat_tags: Vec<String>,
    /// Topology in front of gateways.
    pub gateway_topology: Option<GatewayTopology>,
    /// Time to finish connections on termination; 5 s.
    pub termination_drain_duration: Option<Duration>,
    /// Mesh of the proxy.
    pub mesh_id: String,
    /// Readiness of the application.
    pub readiness_probe: Option<ReadinessProbe>,
    /// Which statistics are kept.
    pub proxy_stats_matcher: Option<ProxyStatsMatcher>,
    /// Start the application after the proxy is ready.
    pub hold_application_until_proxy_starts: Option<bool>,
    /// Further roots.
    pub ca_certificates_pem: Vec<String>,
    /// Image of the proxy.
    pub image: Option<ProxyImage>,
    /// Hardware for private keys.
    pub private_key_provider: Option<PrivateKeyProvider>,
    /// Headers that the proxy adds.
    pub proxy_headers: Option<ProxyHeaders>,
    /// Time between writes of log files.
    pub file_flush_interval: Option<Duration>,
    /// Bytes between writes of log files.
    pub file_flush_min_size_kb: Option<u32>,
    /// Compress statistics.
    pub stats_compression: Option<bool>,
    /// Limits of connections.
    pub connection_settings: Option<ConnectionSettings>,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            config_path: "./etc/istio/proxy".to_owned(),
            binary_path: String::new(),
            service_cluster: None,
            tracing_service_name: String::new(),
            drain_duration: Some(Duration::from_secs(45)),
            parent_shutdown_duration: None,
            discovery_address: "istiod.istio-system.svc:15012".to_owned(),
            discovery_refresh_delay: None,
            zipkin_address: String::new(),
            statsd_udp_address: String::new(),
            proxy_admin_port: 15000,
            availability_zone: String::new(),
            control_plane_auth_policy: super::AuthPolicy::MutualTls,
            custom_config_file: String::new(),
            stat_name_length: 189,
            concurrency: None,
            proxy_bootstrap_template_path: String::new(),
            interception_mode: InterceptionMode::Redirect,
            tracing: None,
            envoy_access_log_service: None,
            envoy_metrics_service: None,
            proxy_metadata: StringMap::new(),
            runtime_values: StringMap::new(),
            status_port: 15020,
            extra_stat_tags: Vec::new(),
            gateway_topology: None,
            termination_drain_duration: Some(Duration::from_secs(5)),
            mesh_id: String::new(),
            readiness_probe: None,
            proxy_stats_matcher: None,
            hold_application_until_proxy_starts: None,
            ca_certificates_pem: Vec::new(),
            image: None,
            private_key_provider: None,
            proxy_headers: None,
            file_flush_interval: None,
            file_flush_min_size_kb: None,
            stats_compression: None,
            connection_settings: None,
        }
    }
}

messages! {
    /// Traces of a proxy: one tracer.
    pub struct TracingSettings {
        /// Zipkin.
        pub zipkin: Option<ServerAddress>,
        /// Lightstep.
        pub lightstep: Option<ServerAddress>,
        /// Datadog.
        pub datadog: Option<Datadog>,
        /// Stackdriver.
        pub stackdriver: Option<StackdriverTracer>,
        /// OpenCensus.
        pub open_census_agent: Option<OpenCensusAgent>,
        /// Further tags.
        pub custom_tags: BTreeMap<String, TracingCustomTag>,
        /// Longest path in a tag; 256.
        pub max_path_tag_length: u32,
        /// Share of requests, 0 to 100.
        pub sampling: f64,
        /// TLS towards the tracer.
        pub tls_settings: Option<ClientTlsSettings>,
        /// Add Istio's own tags.
        pub enable_istio_tags: Option<bool>,
    }

    /// Address of a tracer.
    pub struct ServerAddress {
        /// `host:port`.
        pub address: String,
        /// Token.
        pub access_token: String,
    }

    /// Datadog tracer.
    pub struct Datadog {
        /// `host:port`.
        pub address: String,
    }

    /// Stackdriver tracer.
    pub struct StackdriverTracer {
        /// Print spans too.
        pub debug: bool,
        /// Most attributes of a span.
        pub max_number_of_attributes: Option<i64>,
        /// Most annotations of a span.
        pub max_number_of_annotations: Option<i64>,
        /// Most events of a span.
        pub max_number_of_message_events: Option<i64>,
    }

    /// OpenCensus tracer.
    pub struct OpenCensusAgent {
        /// `host:port`.
        pub address: String,
        /// Context formats.
        pub context: Vec<String>,
    }

    /// Value of a tag, one source of three.
    pub struct TracingCustomTag {
        /// Fixed text.
        pub literal: Option<crate::telemetry::LiteralTag>,
        /// Environment variable of the proxy.
        pub environment: Option<crate::telemetry::NamedTag>,
        /// Request header.
        pub header: Option<crate::telemetry::NamedTag>,
    }

    /// A service of the proxy.
    pub struct RemoteService {
        /// `host:port`.
        pub address: String,
        /// TLS towards it.
        pub tls_settings: Option<ClientTlsSettings>,
        /// TCP keep-alive.
        pub tcp_keepalive: Option<TcpKeepalive>,
    }

    /// Topology in front of a proxy.
    pub struct GatewayTopology {
        /// Trusted proxies that add to `X-Forwarded-For`.
        pub num_trusted_proxies: u32,
        /// Treatment of `X-Forwarded-Client-Cert`.
        pub forward_client_cert_details: ForwardClientCertDetails,
        /// Expect the PROXY protocol.
        pub proxy_protocol: Option<serde_json::Value>,
    }


    /// Which statistics are kept.
    pub struct ProxyStatsMatcher {
        /// Names that start so.
        pub inclusion_prefixes: Vec<String>,
        /// Names that end so.
        pub inclusion_suffixes: Vec<String>,
        /// Names that match.
        pub inclusion_regexps: Vec<String>,
    }

    /// Image of the proxy.
    pub struct ProxyImage {
        /// `default`, `debug` or `distroless`.
        pub image_type: String,
    }

    /// Hardware for private keys, one of two.
    pub struct PrivateKeyProvider {
        /// CryptoMB.
        pub cryptomb: Option<PrivateKeyProviderDetails>,
        /// QuickAssist.
        pub qat: Option<PrivateKeyProviderDetails>,
    }

    /// Settings of such hardware.
    pub struct PrivateKeyProviderDetails {
        /// How long to collect work.
        pub poll_delay: Option<Duration>,
        /// Work in software if it is missing.
        pub fallback: Option<bool>,
    }

    /// Headers that the proxy adds.
    pub struct ProxyHeaders {
        /// `X-Forwarded-Client-Cert`.
        pub forwarded_client_cert: ForwardClientCertDetails,
        /// Parts of that header.
        pub set_current_client_cert_details: Option<SetCurrentClientCertDetails>,
        /// `X-Request-Id`.
        pub request_id: Option<ProxyHeaderSwitch>,
        /// `Server`.
        pub server: Option<ProxyHeaderValue>,
        /// `X-Envoy-Attempt-Count`.
        pub attempt_count: Option<ProxyHeaderSwitch>,
        /// `X-Envoy-*`.
        pub envoy_debug_headers: Option<ProxyHeaderSwitch>,
        /// `X-Envoy-Peer-Metadata*`.
        pub metadata_exchange_headers: Option<MetadataExchangeHeaders>,
        /// Keep the case of HTTP/1.1 headers.
        pub preserve_http1_header_case: Option<bool>,
        /// `X-Forwarded-Host`.
        pub x_forwarded_host: Option<ProxyHeaderSwitch>,
        /// `X-Forwarded-Port`.
        pub x_forwarded_port: Option<ProxyHeaderSwitch>,
    }

    /// Switch of one header.
    pub struct ProxyHeaderSwitch {
        /// Leave it out.
        pub disabled: Option<bool>,
        /// Put it in where it is off by default.
        pub enabled: Option<bool>,
    }

    /// Value of one header.
    pub struct ProxyHeaderValue {
        /// Leave it out.
        pub disabled: Option<bool>,
        /// The value.
        pub value: String,
    }

    /// Exchange of metadata by headers.
    pub struct MetadataExchangeHeaders {
        /// With whom.
        pub mode: MetadataExchangeMode,
    }

    /// Parts of `X-Forwarded-Client-Cert`.
    pub struct SetCurrentClientCertDetails {
        /// Subject.
        pub subject: Option<bool>,
        /// Certificate.
        pub cert: Option<bool>,
        /// Chain.
        pub chain: Option<bool>,
        /// DNS names.
        pub dns: Option<bool>,
        /// URIs.
        pub uri: Option<bool>,
    }
}

values! {
    /// How connections are captured.
    pub enum InterceptionMode {
        /// By redirection.
        #[default]
        Redirect,
        /// Transparently.
        Tproxy,
        /// Not.
        None,
    }

    /// Treatment of `X-Forwarded-Client-Cert`.
    pub enum ForwardClientCertDetails {
        /// Default of the proxy's role.
        #[default]
        Undefined,
        /// Remove.
        Sanitize,
        /// Keep if the connection is mutual TLS.
        ForwardOnly,
        /// Append if the connection is mutual TLS.
        AppendForward,
        /// Set if the connection is mutual TLS.
        SanitizeSet,
        /// Always keep.
        AlwaysForwardOnly,
    }

    /// With whom metadata is exchanged.
    pub enum MetadataExchangeMode {
        /// Everyone.
        #[default]
        Undefined,
        /// Workloads of the mesh.
        InMesh,
    }
}
