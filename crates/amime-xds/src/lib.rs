//! The ADS protocol: resources, server and client state machines, adapters.
//!
//! Owns what travels between a control plane and a proxy: type URLs, encoded
//! [`Resource`]s with their content versions, both variants of the aggregated
//! discovery service (state of the world and delta), and the messages that
//! Istio adds to Envoy's. What the resources say is the business of
//! `amime-translate` (server side) and `amime-proxy` (client side).
//!
//! The state machines take requests and return responses; they own no socket,
//! clock or task. Sockets come in only with the feature `grpc`; proto3-JSON
//! only with the feature `json`.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>
//!
//! ```
//! use amime_xds::{Resource, TypeUrl};
//! use envoy_types::pb::envoy::config::cluster::v3::Cluster;
//!
//! let cluster = Cluster { name: "outbound|80||a.b".into(), ..Default::default() };
//! let resource = Resource::encode(cluster.name.clone(), &cluster);
//! assert_eq!(resource.type_url, TypeUrl::Cluster);
//! assert_eq!(resource.version, Resource::encode("x", &cluster).version);
//! ```

mod canonical;
pub mod client;
pub mod extensions;
pub mod istio;
#[cfg(feature = "json")]
pub mod json;
mod resource;
pub mod server;
mod type_url;

pub use resource::Resource;
pub use type_url::{PUSH_ORDER, TypeUrl, XdsMessage};
