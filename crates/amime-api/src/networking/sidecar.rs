//! `Sidecar`: what a workload's proxy accepts and which services it sees.
//!
//! Spec: <https://istio.io/latest/docs/reference/config/networking/sidecar/>

use super::destination_rule::ConnectionPoolSettings;
use super::gateway::ServerTlsSettings;
use super::virtual_service::Destination;
use crate::meta::StringMap;

messages! {
    /// Scope of the selected workloads' proxies.
    pub struct Sidecar {
        /// Workloads; none means the namespace's default.
        pub workload_selector: Option<LabelsSelector>,
        /// Inbound listeners, in place of those derived from services.
        pub ingress: Vec<IstioIngressListener>,
        /// Outbound listeners with their services.
        pub egress: Vec<IstioEgressListener>,
        /// Limits of inbound connections.
        pub inbound_connection_pool: Option<ConnectionPoolSettings>,
        /// Treatment of unknown destinations.
        pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    }

    /// Selector of the networking kinds.
    pub struct LabelsSelector {
        /// Labels that must be equal.
        pub labels: StringMap,
    }

    /// One inbound listener.
    pub struct IstioIngressListener {
        /// Port.
        pub port: Option<SidecarPort>,
        /// Address; all by default.
        pub bind: String,
        /// How connections get here.
        pub capture_mode: CaptureMode,
        /// Where the application listens: `127.0.0.1:PORT`, `0.0.0.0:PORT`, `[::]:PORT`, `unix://`.
        pub default_endpoint: String,
        /// TLS, for ports without mutual TLS.
        pub tls: Option<ServerTlsSettings>,
        /// Limits of this listener.
        pub connection_pool: Option<ConnectionPoolSettings>,
    }

    /// One outbound listener.
    pub struct IstioEgressListener {
        /// Port; none is the catch-all.
        pub port: Option<SidecarPort>,
        /// Address or Unix socket.
        pub bind: String,
        /// How connections get here.
        pub capture_mode: CaptureMode,
        /// Services `namespace/host`; namespace `*`, `.`, `~`, or `~ns` to exclude.
        pub hosts: Vec<String>,
    }

    /// Port of a sidecar listener.
    pub struct SidecarPort {
        /// Number.
        pub number: u32,
        /// Protocol name.
        pub protocol: String,
        /// Name.
        pub name: String,
        /// Old field, ignored by Istio here.
        pub target_port: u32,
    }

    /// Treatment of unknown destinations.
    pub struct OutboundTrafficPolicy {
        /// Allow or not.
        pub mode: OutboundTrafficMode,
        /// Proxy that such traffic goes through.
        pub egress_proxy: Option<Destination>,
    }
}

values! {
    /// How connections reach a listener.
    pub enum CaptureMode {
        /// The mesh's way.
        #[default]
        Default,
        /// By packet rules.
        Iptables,
        /// The application connects itself.
        None,
    }

    /// Whether unknown destinations are allowed.
    pub enum OutboundTrafficMode {
        /// Only services in the registry.
        #[default]
        RegistryOnly,
        /// Everything.
        AllowAny,
    }
}
