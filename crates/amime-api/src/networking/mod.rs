//! Traffic kinds of group `networking.istio.io`, plus the parts they share.

mod destination_rule;
mod envoy_filter;
mod gateway;
mod proxy_config;
mod service_entry;
mod sidecar;
mod virtual_service;

pub use destination_rule::{
    BackendUtilizationLb, ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings,
    ConsistentHashLb, DestinationRule, Distribute, Failover, H2UpgradePolicy, Http2KeepAlive,
    HttpCookie, HttpCookieAttribute, HttpSettings, LoadBalancerSettings,
    LocalityLoadBalancerSetting, MagLev, OutlierDetection, PortTrafficPolicy, ProxyProtocol,
    ProxyProtocolVersion, RetryBudget, RingHash, SimpleLb, Subset, TcpKeepalive, TcpSettings,
    TrafficPolicy, TunnelSettings, WarmupConfiguration, ZoneAwareLoadBalancerSetting,
};
pub use envoy_filter::{
    ApplyTo, ClusterMatch, EnvoyConfigObjectMatch, EnvoyConfigObjectPatch, EnvoyFilter,
    FilterChainMatch, FilterClass, FilterMatch, ListenerMatch, Patch, PatchContext, PatchOperation,
    ProxyMatch, RouteAction, RouteConfigurationMatch, RouteMatch, SubFilterMatch,
    TransportSocketMatch, VirtualHostMatch, WaypointFilterMatch, WaypointMatch, WaypointRouteMatch,
};
pub use gateway::{
    Gateway, Port, Server, ServerTlsMode, ServerTlsSettings, TlsCertificate, TlsProtocol,
};
pub use proxy_config::{ProxyConfig, ProxyImage};
pub use service_entry::{
    ExecHealthCheckConfig, GrpcHealthCheckConfig, HttpHeader, HttpHealthCheckConfig, Location,
    ReadinessProbe, Resolution, ServiceEntry, ServicePort, TcpHealthCheckConfig, WorkloadEntry,
    WorkloadGroup, WorkloadGroupMeta,
};
pub use sidecar::{
    CaptureMode, IstioEgressListener, IstioIngressListener, LabelsSelector, OutboundTrafficMode,
    OutboundTrafficPolicy, Sidecar, SidecarPort,
};
pub use virtual_service::{
    Abort, CorsPolicy, Delay, Delegate, DerivePort, Destination, HeaderOperations, Headers,
    HttpBody, HttpDirectResponse, HttpFaultInjection, HttpMatchRequest, HttpMirrorPolicy,
    HttpRedirect, HttpRetry, HttpRewrite, HttpRoute, HttpRouteDestination, L4MatchAttributes,
    Percent, PortSelector, RegexRewrite, RouteDestination, StringMatch, TcpRoute,
    TlsMatchAttributes, TlsRoute, UnmatchedPreflights, VirtualService,
};
