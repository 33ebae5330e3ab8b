//! The immutable picture of the mesh and its indexes.
//!
//! Owns what configuration means before it is made for any one proxy: which
//! services there are and who may see them, what stands behind them, which
//! rules apply to whom, and how a change leads from one snapshot to the next.
//! Making xDS of it is the business of `amime-translate`; judging it, of
//! `amime-analysis`. Pure: no I/O, no clock, no runtime.
//!
//! ```
//! use std::sync::Arc;
//! use amime_model::Snapshot;
//!
//! let snapshot = Snapshot::build([], Arc::default(), 1);
//! assert!(snapshot.services().all().is_empty());
//! ```

mod allocation;
mod authn;
mod config;
mod delegate;
mod destination_rule;
mod discovery;
mod endpoints;
mod envoy_filter;
mod http_route;
mod ingress;
mod kube;
pub mod labels;
mod names;
mod network;
mod registry;
mod scope;
mod service;
mod service_entry;
mod snapshot;
mod targets;
mod virtual_service;
mod visibility;
mod workload;

pub use authn::{MtlsMode, PeerAuthnIndex, PeerPolicy};
pub use config::Config;
pub use destination_rule::{DestinationRuleIndex, MergedRule, port_policy, subset_policy};
pub use endpoints::ServiceEndpoints;
pub use envoy_filter::EnvoyFilterIndex;
pub use names::{CLUSTER_DOMAIN, MESH_GATEWAY, resolve_gateway, resolve_host, service_host};
pub use network::Networks;
pub use registry::ServiceIndex;
pub use scope::{EgressListener, SidecarScope, UnknownDestinations};
pub use service::{
    AddressView, Endpoint, ExportTo, Health, Labels, Port, PortEndpoints, Registry, Resolution,
    Service, ServiceKey, ServiceTarget, TLS_MODE_DISABLED, TLS_MODE_ISTIO, TLS_MODE_LABEL,
    TrafficDistribution, UNSPECIFIED_V4, UNSPECIFIED_V6, selects,
};
pub use snapshot::{Change, ChangeScope, Snapshot};
pub use virtual_service::{RouteSemantics, RoutedService, VirtualServiceIndex};
