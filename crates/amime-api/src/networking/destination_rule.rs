//! `DestinationRule`: subsets of a service and the policy for connections to it.
//!
//! Spec: <https://istio.io/latest/docs/reference/config/networking/destination-rule/>

use std::collections::BTreeMap;

use amime_core::Duration;

use super::virtual_service::PortSelector;
use crate::meta::{StringMap, WorkloadSelector};

messages! {
    /// Policy for traffic to one host.
    pub struct DestinationRule {
        /// Host in the registry; a short name belongs to the rule's own namespace.
        pub host: String,
        /// Policy for all subsets and ports.
        pub traffic_policy: Option<TrafficPolicy>,
        /// Named parts of the service.
        pub subsets: Vec<Subset>,
        /// Namespaces that see the rule: `.`, `*` or names.
        pub export_to: Vec<String>,
        /// Client workloads the rule is for; none means all that see it.
        pub workload_selector: Option<WorkloadSelector>,
    }

    /// Load balancing, pools, ejection and TLS.
    pub struct TrafficPolicy {
        /// Choice of endpoint.
        pub load_balancer: Option<LoadBalancerSettings>,
        /// Limits of connections and requests.
        pub connection_pool: Option<ConnectionPoolSettings>,
        /// Ejection of failing endpoints.
        pub outlier_detection: Option<OutlierDetection>,
        /// TLS towards the service.
        pub tls: Option<ClientTlsSettings>,
        /// Policies that replace this one on single ports.
        pub port_level_settings: Vec<PortTrafficPolicy>,
        /// Tunnel TCP through an HTTP proxy.
        pub tunnel: Option<TunnelSettings>,
        /// PROXY protocol towards the service.
        pub proxy_protocol: Option<ProxyProtocol>,
        /// Limit of retries in flight.
        pub retry_budget: Option<RetryBudget>,
    }

    /// Policy of one port; what it omits is default, not inherited.
    pub struct PortTrafficPolicy {
        /// The port.
        pub port: Option<PortSelector>,
        /// Choice of endpoint.
        pub load_balancer: Option<LoadBalancerSettings>,
        /// Limits of connections and requests.
        pub connection_pool: Option<ConnectionPoolSettings>,
        /// Ejection of failing endpoints.
        pub outlier_detection: Option<OutlierDetection>,
        /// TLS towards the service.
        pub tls: Option<ClientTlsSettings>,
    }

    /// Endpoints of a service that carry certain labels.
    pub struct Subset {
        /// Name that routes use.
        pub name: String,
        /// Labels of the endpoints.
        pub labels: StringMap,
        /// Policy that overrides the rule's, field by field.
        pub traffic_policy: Option<TrafficPolicy>,
    }

    /// Choice of endpoint.
    pub struct LoadBalancerSettings {
        /// One of the plain algorithms.
        pub simple: Option<SimpleLb>,
        /// Affinity by hash.
        pub consistent_hash: Option<ConsistentHashLb>,
        /// Weights by reported load.
        pub backend_utilization: Option<BackendUtilizationLb>,
        /// Preference by locality, in place of the mesh's.
        pub locality_lb_setting: Option<LocalityLoadBalancerSetting>,
        /// Preference by zone size.
        pub zone_aware_lb_setting: Option<ZoneAwareLoadBalancerSetting>,
        /// Old form of `warmup`.
        pub warmup_duration_secs: Option<Duration>,
        /// Slow start of new endpoints.
        pub warmup: Option<WarmupConfiguration>,
    }

    /// Affinity by hash; one key, one algorithm.
    pub struct ConsistentHashLb {
        /// Hash this header.
        pub http_header_name: Option<String>,
        /// Hash this cookie.
        pub http_cookie: Option<HttpCookie>,
        /// Hash the client address.
        pub use_source_ip: Option<bool>,
        /// Hash this query parameter.
        pub http_query_parameter_name: Option<String>,
        /// Ring hash.
        pub ring_hash: Option<RingHash>,
        /// Maglev.
        pub maglev: Option<MagLev>,
        /// Old form of the ring's size.
        pub minimum_ring_size: Option<u64>,
    }

    /// Cookie to hash.
    pub struct HttpCookie {
        /// Name.
        pub name: String,
        /// Path to set.
        pub path: String,
        /// Life time; the cookie is generated if given, zero means a session cookie.
        pub ttl: Option<Duration>,
        /// Further attributes to set.
        pub attributes: Vec<HttpCookieAttribute>,
    }

    /// Attribute of a generated cookie.
    pub struct HttpCookieAttribute {
        /// Name.
        pub name: String,
        /// Value, if any.
        pub value: String,
    }

    /// Ring hash settings.
    pub struct RingHash {
        /// Virtual nodes; 1024 by default.
        pub minimum_ring_size: Option<u64>,
    }

    /// Maglev settings.
    pub struct MagLev {
        /// Table size, a prime; 65537 by default.
        pub table_size: Option<u64>,
    }

    /// Weights from load reports.
    pub struct BackendUtilizationLb {
        /// Penalty for errors, in percent.
        pub error_utilization_penalty_percent: Option<u32>,
        /// Metrics that count as utilization.
        pub metric_names_for_computing_utilization: Vec<String>,
        /// How often weights change.
        pub weight_update_period: Option<Duration>,
        /// How long an endpoint must report before it counts.
        pub weight_stabilization_period: Option<Duration>,
        /// How long a report counts.
        pub weight_expiration_period: Option<Duration>,
    }

    /// Slow start.
    pub struct WarmupConfiguration {
        /// How long.
        pub duration: Option<Duration>,
        /// Smallest share, 10 by default.
        pub minimum_percent: Option<f64>,
        /// Exponent of the curve, 1 by default.
        pub aggression: Option<f64>,
    }

    /// Preference by locality; one of the first three.
    pub struct LocalityLoadBalancerSetting {
        /// Explicit shares.
        pub distribute: Vec<Distribute>,
        /// Explicit fail-over regions.
        pub failover: Vec<Failover>,
        /// Labels that order fail-over.
        pub failover_priority: Vec<String>,
        /// Off if false.
        pub enabled: Option<bool>,
    }

    /// Shares of traffic from one locality.
    pub struct Distribute {
        /// Origin `region/zone/subzone`, `*` allowed.
        pub from: String,
        /// Shares by destination locality, 100 in total.
        pub to: BTreeMap<String, u32>,
    }

    /// Fail-over from region to region.
    pub struct Failover {
        /// Origin region.
        pub from: String,
        /// Region that takes over.
        pub to: String,
    }

    /// Preference by zone size.
    pub struct ZoneAwareLoadBalancerSetting {
        /// Off if false.
        pub enabled: Option<bool>,
        /// Explicit fail-over regions.
        pub failover: Vec<Failover>,
        /// Labels that order fail-over.
        pub failover_priority: Vec<String>,
        /// Fewer endpoints switch it off; 6 by default.
        pub min_cluster_size: Option<u64>,
    }

    /// Limits per destination.
    pub struct ConnectionPoolSettings {
        /// For all connections.
        pub tcp: Option<TcpSettings>,
        /// For HTTP.
        pub http: Option<HttpSettings>,
    }

    /// Connection limits.
    pub struct TcpSettings {
        /// Most connections; 2³²−1 by default.
        pub max_connections: i32,
        /// Limit of connecting; 10 s by default.
        pub connect_timeout: Option<Duration>,
        /// TCP keep-alive.
        pub tcp_keepalive: Option<TcpKeepalive>,
        /// Longest life of a connection.
        pub max_connection_duration: Option<Duration>,
        /// Longest silence of a connection; one hour by default.
        pub idle_timeout: Option<Duration>,
    }

    /// TCP keep-alive; what is not given is the operating system's.
    pub struct TcpKeepalive {
        /// Unanswered probes before the connection is dead.
        pub probes: u32,
        /// Silence before the first probe.
        pub time: Option<Duration>,
        /// Time between probes.
        pub interval: Option<Duration>,
    }

    /// HTTP limits.
    pub struct HttpSettings {
        /// Most requests waiting for a connection; 2³²−1 by default.
        pub http1_max_pending_requests: i32,
        /// Most requests in flight; 2³²−1 by default.
        pub http2_max_requests: i32,
        /// Most requests on a connection; zero means no limit.
        pub max_requests_per_connection: i32,
        /// Most retries in flight; 2³²−1 by default.
        pub max_retries: i32,
        /// Longest silence of a connection; one hour by default.
        pub idle_timeout: Option<Duration>,
        /// Whether HTTP/1.1 becomes HTTP/2.
        pub h2_upgrade_policy: H2UpgradePolicy,
        /// Speak to the service as the client did.
        pub use_client_protocol: bool,
        /// Most streams on an HTTP/2 connection; 2³¹−1 by default.
        pub max_concurrent_streams: i32,
        /// HTTP/2 PING.
        pub http2_keep_alive: Option<Http2KeepAlive>,
    }

    /// HTTP/2 PING settings.
    pub struct Http2KeepAlive {
        /// Time between PINGs.
        pub interval: Option<Duration>,
        /// Time to wait for the answer.
        pub timeout: Option<Duration>,
    }

    /// Ejection of failing endpoints.
    pub struct OutlierDetection {
        /// Old form of `consecutive_gateway_errors`.
        pub consecutive_errors: i32,
        /// Count local failures (connect, reset) apart.
        pub split_external_local_origin_errors: bool,
        /// Local failures in a row before ejection; 5 by default.
        pub consecutive_local_origin_failures: Option<u32>,
        /// 502, 503, 504 in a row before ejection; zero switches off.
        pub consecutive_gateway_errors: Option<u32>,
        /// 5xx in a row before ejection; 5 by default, zero switches off.
        pub consecutive_5xx_errors: Option<u32>,
        /// Time between sweeps; 10 s by default.
        pub interval: Option<Duration>,
        /// Shortest ejection; 30 s by default.
        pub base_ejection_time: Option<Duration>,
        /// Most endpoints ejected, in percent; 10 by default.
        pub max_ejection_percent: i32,
        /// Below this share of healthy endpoints ejection stops counting; zero by default.
        pub min_health_percent: i32,
        /// Status codes that count as errors.
        pub outlier_detection_http_error_codes: Vec<u32>,
    }

    /// TLS towards a service.
    pub struct ClientTlsSettings {
        /// What kind of TLS.
        pub mode: ClientTlsMode,
        /// File of the client's certificate chain.
        pub client_certificate: String,
        /// File of the client's key.
        pub private_key: String,
        /// File of the roots that sign the server; none means the system's.
        pub ca_certificates: String,
        /// Secret with key, certificate and roots.
        pub credential_name: String,
        /// Names, one of which the server must have.
        pub subject_alt_names: Vec<String>,
        /// Server name to send.
        pub sni: String,
        /// Do not verify the server.
        pub insecure_skip_verify: Option<bool>,
        /// File of a revocation list.
        pub ca_crl: String,
    }

    /// TCP through an HTTP proxy.
    pub struct TunnelSettings {
        /// `CONNECT` (default) or `POST`.
        pub protocol: String,
        /// Host asked of the proxy.
        pub target_host: String,
        /// Port asked of the proxy.
        pub target_port: u32,
    }

    /// PROXY protocol towards a service.
    pub struct ProxyProtocol {
        /// Version.
        pub version: ProxyProtocolVersion,
    }

    /// Limit of retries in flight.
    pub struct RetryBudget {
        /// Share of active requests; 20 by default.
        pub percent: Option<f64>,
        /// Retries that are always allowed; 3 by default.
        pub min_retry_concurrency: u32,
        /// Time over which the share is taken.
        pub budget_interval: Option<Duration>,
    }
}

values! {
    /// Plain load-balancing algorithms.
    pub enum SimpleLb {
        /// Default, that is least request.
        #[default]
        Unspecified,
        /// Old name of least request.
        LeastConn,
        /// A random endpoint.
        Random,
        /// The address the client asked for.
        Passthrough,
        /// In turn.
        RoundRobin,
        /// The less loaded of two random endpoints.
        LeastRequest,
    }

    /// Upgrade of HTTP/1.1 to HTTP/2.
    pub enum H2UpgradePolicy {
        /// The mesh's choice.
        #[default]
        Default,
        /// Never.
        DoNotUpgrade,
        /// Always.
        Upgrade,
    }

    /// Kind of TLS towards a service.
    pub enum ClientTlsMode {
        /// None.
        #[default]
        Disable,
        /// TLS, the client stays anonymous.
        Simple,
        /// TLS with the given client certificate.
        Mutual,
        /// TLS with the workload's own certificate.
        IstioMutual,
    }

    /// Version of the PROXY protocol.
    pub enum ProxyProtocolVersion {
        /// Text.
        #[default]
        #[serde(rename = "V1")]
        V1,
        /// Binary.
        #[serde(rename = "V2")]
        V2,
    }
}
