//! `MeshConfig` itself; its [`Default`] carries Istio's defaults.

use amime_core::Duration;

use super::providers::ExtensionProvider;
use super::proxy::ProxyConfig;
use crate::meta::LabelSelector;
use crate::networking::{
    ClientTlsSettings, HttpRetry, LocalityLoadBalancerSetting, TcpKeepalive, TrafficPolicy,
    ZoneAwareLoadBalancerSetting,
};

/// Selectors, any of which suffices.
pub type LabelSelectors = Vec<LabelSelector>;

/// Settings of the whole mesh.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// Port that captured outbound connections go to; 15001.
    pub proxy_listen_port: i32,
    /// Port that captured inbound connections go to; 15006.
    pub proxy_inbound_listen_port: i32,
    /// Port of the explicit HTTP proxy; zero for none.
    pub proxy_http_port: i32,
    /// Limit of connecting; 10 s.
    pub connect_timeout: Option<Duration>,
    /// Limit of protocol detection; zero waits for ever.
    pub protocol_detection_timeout: Option<Duration>,
    /// TCP keep-alive towards services.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Class of ingresses that are served.
    pub ingress_class: String,
    /// Service of the ingress gateway.
    pub ingress_service: String,
    /// Which ingresses are served.
    pub ingress_controller_mode: IngressControllerMode,
    /// Label `istio` of the ingress gateway's workloads.
    pub ingress_selector: String,
    /// Old switch of mutual TLS between control plane and proxies.
    pub auth_policy: AuthPolicy,
    /// Old poll interval.
    pub rds_refresh_delay: Option<Duration>,
    /// Make spans.
    pub enable_tracing: bool,
    /// Access log file; empty for none.
    pub access_log_file: String,
    /// Access log format; empty for the default.
    pub access_log_format: String,
    /// Text or JSON.
    pub access_log_encoding: AccessLogEncoding,
    /// Send access logs to the address in the default configuration.
    pub enable_envoy_access_log_service: bool,
    /// Do not log at listener level.
    pub disable_envoy_listener_log: bool,
    /// Settings of proxies.
    pub default_config: ProxyConfig,
    /// Treatment of unknown destinations.
    pub outbound_traffic_policy: MeshOutboundTrafficPolicy,
    /// Where inbound connections go.
    pub inbound_traffic_policy: InboundTrafficPolicy,
    /// Other sources of configuration.
    pub config_sources: Vec<ConfigSource>,
    /// Use mutual TLS wherever both sides can; on.
    pub enable_auto_mtls: Option<bool>,
    /// Trust domain of identities; `cluster.local`.
    pub trust_domain: String,
    /// Further trust domains that count as our own.
    pub trust_domain_aliases: Vec<String>,
    /// Further roots.
    pub ca_certificates: Vec<CertificateData>,
    /// Default visibility of services.
    pub default_service_export_to: Vec<String>,
    /// Default visibility of `VirtualService` objects.
    pub default_virtual_service_export_to: Vec<String>,
    /// Default visibility of `DestinationRule` objects.
    pub default_destination_rule_export_to: Vec<String>,
    /// Namespace of mesh-wide objects; `istio-system`.
    pub root_namespace: String,
    /// Preference by locality.
    pub locality_lb_setting: Option<LocalityLoadBalancerSetting>,
    /// Preference by zone size.
    pub zone_aware_lb_setting: Option<ZoneAwareLoadBalancerSetting>,
    /// Base of all traffic policies.
    pub default_traffic_policy: Option<TrafficPolicy>,
    /// How often DNS is asked again; 60 s.
    pub dns_refresh_rate: Option<Duration>,
    /// Whether HTTP/1.1 becomes HTTP/2.
    pub h2_upgrade_policy: H2Upgrade,
    /// Name pattern of inbound cluster statistics.
    pub inbound_cluster_stat_name: String,
    /// Name pattern of outbound cluster statistics.
    pub outbound_cluster_stat_name: String,
    /// Old list of certificates.
    pub certificates: Vec<Certificate>,
    /// Which services stay in their cluster.
    pub service_settings: Vec<ServiceSettings>,
    /// Merge the application's metrics into the proxy's; on.
    pub enable_prometheus_merge: Option<bool>,
    /// Old switch of certificate checks.
    pub verify_certificate_at_client: Option<bool>,
    /// External certificate authority.
    pub ca: Option<CertificateAuthority>,
    /// Named services that extend the mesh.
    pub extension_providers: Vec<ExtensionProvider>,
    /// Providers used when no object names one.
    pub default_providers: Option<DefaultProviders>,
    /// Namespaces that the control plane watches; none means all.
    pub discovery_selectors: LabelSelectors,
    /// Normalization of paths.
    pub path_normalization: PathNormalization,
    /// Retry policy of routes that give none.
    pub default_http_retry_policy: Option<HttpRetry>,
    /// Retry policy of inbound routes.
    pub default_inbound_http_retry_policy: Option<HttpRetry>,
    /// TLS between workloads.
    #[serde(rename = "meshMTLS")]
    pub mesh_mtls: Option<MeshTlsConfig>,
    /// TLS elsewhere.
    pub tls_defaults: Option<MeshTlsConfig>,
    /// Scope of services by label, for ambient mode.
    pub service_scope_configs: Vec<ServiceScopeConfig>,
    /// Longest silence of a tunnel.
    pub hbone_idle_timeout: Option<Duration>,
    /// Who may see service entries.
    pub service_entry_visibility: Option<ServiceEntryVisibility>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        let everyone = || vec!["*".to_owned()];
        Self {
            proxy_listen_port: 15001,
            proxy_inbound_listen_port: 15006,
            proxy_http_port: 0,
            connect_timeout: Some(Duration::from_secs(10)),
            protocol_detection_timeout: Some(Duration::ZERO),
            tcp_keepalive: None,
            ingress_class: "istio".to_owned(),
            ingress_service: "istio-ingressgateway".to_owned(),
            ingress_controller_mode: IngressControllerMode::Strict,
            ingress_selector: "ingressgateway".to_owned(),
            auth_policy: AuthPolicy::None,
            rds_refresh_delay: None,
            enable_tracing: true,
            access_log_file: String::new(),
            access_log_format: String::new(),
            access_log_encoding: AccessLogEncoding::Text,
            enable_envoy_access_log_service: false,
            disable_envoy_listener_log: false,
            default_config: ProxyConfig::default(),
            outbound_traffic_policy: MeshOutboundTrafficPolicy {
                mode: MeshOutboundTrafficMode::AllowAny,
                tls: None,
            },
            inbound_traffic_policy: InboundTrafficPolicy::default(),
            config_sources: Vec::new(),
            enable_auto_mtls: Some(true),
            trust_domain: "cluster.local".to_owned(),
            trust_domain_aliases: Vec::new(),
            ca_certificates: Vec::new(),
            default_service_export_to: everyone(),
            default_virtual_service_export_to: everyone(),
            default_destination_rule_export_to: everyone(),
            root_namespace: "istio-system".to_owned(),
            locality_lb_setting: Some(LocalityLoadBalancerSetting {
                enabled: Some(true),
                ..Default::default()
            }),
            zone_aware_lb_setting: None,
            default_traffic_policy: None,
            dns_refresh_rate: Some(Duration::from_secs(60)),
            h2_upgrade_policy: H2Upgrade::DoNotUpgrade,
            inbound_cluster_stat_name: String::new(),
            outbound_cluster_stat_name: String::new(),
            certificates: Vec::new(),
            service_settings: Vec::new(),
            enable_prometheus_merge: Some(true),
            verify_certificate_at_client: None,
            ca: None,
            extension_providers: Vec::new(),
            default_providers: None,
            discovery_selectors: Vec::new(),
            path_normalization: PathNormalization::default(),
            default_http_retry_policy: None,
            default_inbound_http_retry_policy: None,
            mesh_mtls: None,
            tls_defaults: None,
            service_scope_configs: Vec::new(),
            hbone_idle_timeout: None,
            service_entry_visibility: None,
        }
    }
}

messages! {
    /// Where else configuration comes from.
    pub struct ConfigSource {
        /// Address.
        pub address: String,
        /// TLS towards it.
        pub tls_settings: Option<ClientTlsSettings>,
        /// Which resources it may give.
        pub subscribed_resources: Vec<String>,
    }

    /// Treatment of unknown destinations.
    pub struct MeshOutboundTrafficPolicy {
        /// Allow or not; only the registry if the policy names no mode.
        pub mode: MeshOutboundTrafficMode,
        /// TLS towards unknown destinations.
        pub tls: Option<ClientTlsSettings>,
    }

    /// Where inbound connections go.
    pub struct InboundTrafficPolicy {
        /// To the pod's address or to localhost.
        pub mode: InboundTrafficMode,
    }

    /// A further root.
    pub struct CertificateData {
        /// PEM text.
        pub pem: Option<String>,
        /// SPIFFE bundle endpoint.
        pub spiffe_bundle_url: Option<String>,
        /// Signers it is for.
        pub cert_signers: Vec<String>,
        /// Trust domains it is for.
        pub trust_domains: Vec<String>,
    }

    /// Old form of a certificate to create.
    pub struct Certificate {
        /// Secret to write.
        pub secret_name: String,
        /// Names in it.
        pub dns_names: Vec<String>,
    }

    /// Which services stay in their cluster.
    pub struct ServiceSettings {
        /// The settings.
        pub settings: Option<ServiceSettingsSettings>,
        /// Services they are for.
        pub hosts: Vec<String>,
    }

    /// Settings of some services.
    pub struct ServiceSettingsSettings {
        /// Stay in their cluster.
        pub cluster_local: bool,
    }

    /// External certificate authority.
    pub struct CertificateAuthority {
        /// Address.
        pub address: String,
        /// TLS towards it.
        pub tls_settings: Option<ClientTlsSettings>,
        /// Limit of a request; 10 s.
        pub request_timeout: Option<Duration>,
        /// The control plane asks, not the proxies; yes.
        pub istiod_side: Option<bool>,
    }

    /// Providers used when no object names one.
    pub struct DefaultProviders {
        /// For traces.
        pub tracing: Vec<String>,
        /// For metrics.
        pub metrics: Vec<String>,
        /// For access logs.
        pub access_logging: Vec<String>,
    }

    /// Normalization of paths.
    pub struct PathNormalization {
        /// How much.
        pub normalization: PathNormalizationMode,
    }

    /// TLS versions, curves and ciphers.
    pub struct MeshTlsConfig {
        /// Oldest version.
        pub min_protocol_version: TlsConfigProtocol,
        /// Curves.
        pub ecdh_curves: Vec<String>,
        /// Cipher suites.
        pub cipher_suites: Vec<String>,
    }

    /// Scope of services by label.
    pub struct ServiceScopeConfig {
        /// Namespaces.
        pub namespace_selector: Option<LabelSelector>,
        /// Services.
        pub services_selector: Option<LabelSelector>,
        /// Scope.
        pub scope: ServiceScope,
    }

    /// Who may see service entries, whatever they say themselves.
    pub struct ServiceEntryVisibility {
        /// Of entries that no policy is about.
        pub default_visibility: Visibility,
        /// The first one that matches decides.
        pub policies: Vec<ServiceEntryVisibilityPolicy>,
        /// True if it holds for sidecars and gateways too, not only in ambient mode.
        pub apply_to_sidecars: bool,
    }

    /// Who may see some service entries.
    pub struct ServiceEntryVisibilityPolicy {
        /// How far they are seen.
        pub visibility: Visibility,
        /// All of these have to match.
        pub matching_rules: Vec<ServiceEntryVisibilityRule>,
    }

    /// Which service entries a policy is about; nothing if nothing is said.
    pub struct ServiceEntryVisibilityRule {
        /// By the labels of their namespace.
        pub namespace_selector: Option<LabelSelector>,
    }

}

values! {
    /// Which ingresses are served.
    pub enum IngressControllerMode {
        /// As strict.
        #[default]
        Unspecified,
        /// None.
        Off,
        /// Those without a class too.
        Default,
        /// Those of the class.
        Strict,
    }

    /// Old switch of mutual TLS.
    pub enum AuthPolicy {
        /// Off.
        #[default]
        None,
        /// On.
        MutualTls,
    }

    /// Encoding of access logs.
    pub enum AccessLogEncoding {
        /// Text.
        #[default]
        Text,
        /// JSON.
        Json,
    }

    /// Whether unknown destinations are allowed.
    pub enum MeshOutboundTrafficMode {
        /// Only services in the registry: the value of a policy that is given
        /// without a mode.
        #[default]
        RegistryOnly,
        /// Everything: the value while no policy is given.
        AllowAny,
        /// Everything, resolved by name in the proxy.
        AllowAnyDynamicDns,
    }

    /// Where inbound connections go.
    pub enum InboundTrafficMode {
        /// To the address they came for.
        #[default]
        Passthrough,
        /// To localhost.
        Localhost,
    }

    /// Whether HTTP/1.1 becomes HTTP/2.
    pub enum H2Upgrade {
        /// No.
        #[default]
        DoNotUpgrade,
        /// Yes.
        Upgrade,
    }

    /// How much paths are normalized.
    pub enum PathNormalizationMode {
        /// As base.
        #[default]
        Default,
        /// Not.
        None,
        /// RFC 3986.
        Base,
        /// And double slashes.
        MergeSlashes,
        /// And encoded slashes.
        DecodeAndMergeSlashes,
    }

    /// TLS versions.
    pub enum TlsConfigProtocol {
        /// The default, 1.2.
        #[default]
        TlsAuto,
        /// 1.2.
        #[serde(rename = "TLSV1_2")]
        Tlsv12,
        /// 1.3.
        #[serde(rename = "TLSV1_3")]
        Tlsv13,
    }

    /// Reach of a service.
    pub enum ServiceScope {
        /// One cluster.
        #[default]
        Local,
        /// The mesh.
        Global,
    }

    /// How far a service is seen.
    pub enum Visibility {
        /// As public.
        #[default]
        Unspecified,
        /// As far as it says itself.
        Public,
        /// In its own namespace at most.
        Namespace,
        /// Nowhere.
        None,
    }
}
