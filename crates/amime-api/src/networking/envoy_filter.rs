//! `EnvoyFilter`: patches of the generated proxy configuration.
//!
//! Spec: <https://istio.io/latest/docs/reference/config/networking/envoy-filter/>

use serde_json::Value;

use super::sidecar::LabelsSelector;
use crate::meta::{PolicyTargetReference, StringMap};

messages! {
    /// Patches for the selected proxies.
    pub struct EnvoyFilter {
        /// Workloads; none means all in the namespace.
        pub workload_selector: Option<LabelsSelector>,
        /// Gateways or services instead of a selector.
        pub target_refs: Vec<PolicyTargetReference>,
        /// Patches in order.
        pub config_patches: Vec<EnvoyConfigObjectPatch>,
        /// Order among filters, low first.
        pub priority: i32,
    }

    /// One patch.
    pub struct EnvoyConfigObjectPatch {
        /// Kind of configuration object.
        pub apply_to: ApplyTo,
        /// Which objects.
        pub r#match: Option<EnvoyConfigObjectMatch>,
        /// What to do.
        pub patch: Option<Patch>,
    }

    /// Which objects a patch is for.
    pub struct EnvoyConfigObjectMatch {
        /// Side of the proxy.
        pub context: PatchContext,
        /// Proxy properties.
        pub proxy: Option<ProxyMatch>,
        /// Listener properties.
        pub listener: Option<ListenerMatch>,
        /// Route configuration properties.
        pub route_configuration: Option<RouteConfigurationMatch>,
        /// Cluster properties.
        pub cluster: Option<ClusterMatch>,
        /// Waypoint properties.
        pub waypoint: Option<WaypointMatch>,
    }

    /// Proxy properties.
    pub struct ProxyMatch {
        /// RE2 pattern of the proxy's version.
        pub proxy_version: String,
        /// Node metadata that must be equal.
        pub metadata: StringMap,
    }

    /// Cluster properties.
    pub struct ClusterMatch {
        /// Service port.
        pub port_number: u32,
        /// Service host.
        pub service: String,
        /// Subset.
        pub subset: String,
        /// Full name.
        pub name: String,
    }

    /// Route configuration properties.
    pub struct RouteConfigurationMatch {
        /// Port.
        pub port_number: u32,
        /// Port name, for gateways.
        pub port_name: String,
        /// Gateway `namespace/name`.
        pub gateway: String,
        /// Virtual host.
        pub vhost: Option<VirtualHostMatch>,
        /// Full name.
        pub name: String,
    }

    /// Virtual host properties.
    pub struct VirtualHostMatch {
        /// Full name.
        pub name: String,
        /// Route.
        pub route: Option<RouteMatch>,
        /// One of its domains.
        pub domain_name: String,
    }

    /// Route properties.
    pub struct RouteMatch {
        /// Name.
        pub name: String,
        /// What it does.
        pub action: RouteAction,
    }

    /// Listener properties.
    pub struct ListenerMatch {
        /// Port.
        pub port_number: u32,
        /// Port name.
        pub port_name: String,
        /// Filter chain.
        pub filter_chain: Option<FilterChainMatch>,
        /// Listener filter.
        pub listener_filter: String,
        /// Full name.
        pub name: String,
    }

    /// Filter chain properties.
    pub struct FilterChainMatch {
        /// Name.
        pub name: String,
        /// Server name.
        pub sni: String,
        /// `raw_buffer` or `tls`.
        pub transport_protocol: String,
        /// Comma-separated ALPN names.
        pub application_protocols: String,
        /// Network filter.
        pub filter: Option<FilterMatch>,
        /// Destination port.
        pub destination_port: u32,
        /// Transport socket.
        pub transport_socket: Option<TransportSocketMatch>,
    }

    /// Transport socket properties.
    pub struct TransportSocketMatch {
        /// Name.
        pub name: String,
    }

    /// Network filter properties.
    pub struct FilterMatch {
        /// Name.
        pub name: String,
        /// HTTP filter inside.
        pub sub_filter: Option<SubFilterMatch>,
    }

    /// HTTP filter properties.
    pub struct SubFilterMatch {
        /// Name.
        pub name: String,
    }

    /// Waypoint properties.
    pub struct WaypointMatch {
        /// Port.
        pub port_number: u32,
        /// Filter.
        pub filter: Option<WaypointFilterMatch>,
        /// Route.
        pub route: Option<WaypointRouteMatch>,
    }

    /// Filter of a waypoint.
    pub struct WaypointFilterMatch {
        /// Name.
        pub name: String,
        /// HTTP filter inside.
        pub sub_filter: Option<SubFilterMatch>,
    }

    /// Route of a waypoint.
    pub struct WaypointRouteMatch {
        /// Name.
        pub name: String,
    }

    /// What to do with a matched object.
    pub struct Patch {
        /// How.
        pub operation: PatchOperation,
        /// Configuration in Envoy's JSON form.
        pub value: Option<Value>,
        /// Place of an added filter.
        pub filter_class: FilterClass,
    }
}

impl ApplyTo {
    /// Full name of Envoy's message for the object; `None` if it is not given.
    pub fn message(self) -> Option<&'static str> {
        const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
        Some(match self {
            Self::Invalid => return None,
            Self::Listener => "envoy.config.listener.v3.Listener",
            Self::FilterChain => "envoy.config.listener.v3.FilterChain",
            Self::NetworkFilter => "envoy.config.listener.v3.Filter",
            Self::ListenerFilter => "envoy.config.listener.v3.ListenerFilter",
            Self::HttpFilter => HCM,
            Self::RouteConfiguration => "envoy.config.route.v3.RouteConfiguration",
            Self::VirtualHost => "envoy.config.route.v3.VirtualHost",
            Self::HttpRoute => "envoy.config.route.v3.Route",
            Self::Cluster => "envoy.config.cluster.v3.Cluster",
            Self::ExtensionConfig => "envoy.config.core.v3.TypedExtensionConfig",
            Self::Bootstrap => "envoy.config.bootstrap.v3.Bootstrap",
        })
    }
}

values! {
    /// Kind of configuration object.
    pub enum ApplyTo {
        /// Not given.
        #[default]
        Invalid,
        /// Listener.
        Listener,
        /// Filter chain.
        FilterChain,
        /// Network filter.
        NetworkFilter,
        /// HTTP filter.
        HttpFilter,
        /// Route configuration.
        RouteConfiguration,
        /// Virtual host.
        VirtualHost,
        /// Route.
        HttpRoute,
        /// Cluster.
        Cluster,
        /// Extension configuration.
        ExtensionConfig,
        /// Bootstrap.
        Bootstrap,
        /// Listener filter.
        ListenerFilter,
    }

    /// Side of the proxy.
    pub enum PatchContext {
        /// All.
        #[default]
        Any,
        /// Inbound of a sidecar.
        SidecarInbound,
        /// Outbound of a sidecar.
        SidecarOutbound,
        /// Gateway.
        Gateway,
        /// Waypoint.
        Waypoint,
    }

    /// How a patch works.
    pub enum PatchOperation {
        /// Not given.
        #[default]
        Invalid,
        /// Merge into the object.
        Merge,
        /// Append an object.
        Add,
        /// Remove the object.
        Remove,
        /// Insert before the matched one.
        InsertBefore,
        /// Insert after the matched one.
        InsertAfter,
        /// Insert as the first.
        InsertFirst,
        /// Replace a filter.
        Replace,
        /// Merge, replacing lists.
        MergeAndReplaceList,
    }

    /// Place of an added filter.
    pub enum FilterClass {
        /// As the operation says.
        #[default]
        Unspecified,
        /// After authentication.
        Authn,
        /// After authorization.
        Authz,
        /// Before statistics.
        Stats,
    }

    /// What a matched route does.
    pub enum RouteAction {
        /// Any.
        #[default]
        Any,
        /// Forwards.
        Route,
        /// Redirects.
        Redirect,
        /// Answers directly.
        DirectResponse,
    }
}
