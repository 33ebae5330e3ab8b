//! From the picture of the mesh to Envoy's configuration.
//!
//! Owns every name, default and order that Istio's control plane gives to what
//! it sends: listeners, routes, clusters, endpoints, gateway secrets and the
//! name table, made for one [`Proxy`] out of one [`Snapshot`]. What rules mean
//! apart from any proxy is decided in `amime-model`; sending, in
//! `amime-control`. Pure: no I/O, no clock, and the same input gives the same
//! bytes.
//!
//! ```
//! use std::sync::Arc;
//! use amime_model::Snapshot;
//! use amime_translate::{Proxy, dump};
//!
//! let proxy = r#"{"type": "sidecar", "ips": ["10.0.0.1"], "id": "app.default",
//!     "dns_domain": "default.svc.cluster.local"}"#;
//! let proxy = Proxy::from_json(proxy).expect("a proxy");
//! let dump = dump(&Snapshot::build([], Arc::default(), 1), &proxy);
//! let names: Vec<&str> = dump.listeners.iter().map(|l| l.name.as_str()).collect();
//! assert_eq!(names, ["virtualInbound", "virtualOutbound"]);
//! ```

mod cluster;
mod connection_settings;
mod context;
mod credential;
mod dynamic_dns;
mod endpoint;
mod envoy_filter;
mod filters;
mod gateway;
mod listener;
mod locality;
mod name_table;
pub mod names;
mod network;
pub mod offline;
mod origin;
mod proto;
mod proxy;
mod proxy_settings;
mod route;
mod sds;
mod secret;

use amime_model::Snapshot;
use amime_xds::{Resource, TypeUrl};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;

pub use proxy::{Interception, Proxy, ProxyError, ProxyKind};

use context::Context;

/// Everything that one proxy is told, as messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dump {
    /// LDS, by name.
    pub listeners: Vec<Listener>,
    /// RDS, by name: those that listeners refer to.
    pub routes: Vec<RouteConfiguration>,
    /// CDS, by name.
    pub clusters: Vec<Cluster>,
    /// EDS, by name: those that clusters refer to.
    pub endpoints: Vec<ClusterLoadAssignment>,
    /// SDS, by name: those of gateway credentials.
    pub secrets: Vec<Secret>,
    /// ECDS, by name.
    pub extensions: Vec<TypedExtensionConfig>,
}

/// Resources of one kind for a proxy, by name.
///
/// `names` are those that the proxy subscribes to; `None` stands for all.
/// Names without a resource are missing in the answer, except route
/// configurations, which are empty then: a draining listener may wait for one.
pub fn generate(
    snapshot: &Snapshot,
    proxy: &Proxy,
    type_url: TypeUrl,
    names: Option<&[String]>,
) -> Vec<Resource> {
    let context = Context::new(snapshot, proxy);
    match type_url {
        TypeUrl::Cluster => {
            let clusters = cluster::build(&context, names);
            clusters.iter().map(|c| Resource::encode(c.name.clone(), c)).collect()
        }
        TypeUrl::Endpoint => {
            let all = || endpoint_names(&cluster::build(&context, None));
            let assignments = sorted(names, all).into_iter();
            let made = assignments.map(|name| endpoint::load_assignment(&context, &name));
            made.map(|e| Resource::encode(e.cluster_name.clone(), &e)).collect()
        }
        TypeUrl::Listener => {
            let listeners = listener::build(&context, names);
            listeners.iter().map(|l| Resource::encode(l.name.clone(), l)).collect()
        }
        TypeUrl::Route => {
            let all = || route_names(&context, None);
            let configurations = sorted(names, all).into_iter();
            let made = configurations.map(|name| route::configuration(&context, &name));
            made.map(|r| Resource::encode(r.name.clone(), &r)).collect()
        }
        TypeUrl::Secret => {
            let secrets = secrets(&context, names);
            secrets.iter().map(|s| Resource::encode(s.name.clone(), s)).collect()
        }
        TypeUrl::ExtensionConfig => {
            let configs = envoy_filter::extension_configs(context.patches(), names);
            configs.iter().map(|c| Resource::encode(c.name.clone(), c)).collect()
        }
        TypeUrl::NameTable => {
            vec![Resource::encode(String::new(), &name_table::build(&context))]
        }
    }
}

/// Everything that a proxy is told.
pub fn dump(snapshot: &Snapshot, proxy: &Proxy) -> Dump {
    let context = Context::new(snapshot, proxy);
    let listeners = listener::build(&context, None);
    let clusters = cluster::build(&context, None);
    let routes = route_names(&context, Some(&listeners));
    let mut endpoints = endpoint_names(&clusters);
    if proxy.flag("ENABLE_SELF_DISCOVERY") {
        // The cluster itself is in the proxy's bootstrap.
        endpoints.push(names::LOCAL_CLUSTER.to_owned());
        endpoints.sort();
    }
    Dump {
        routes: routes.iter().map(|name| route::configuration(&context, name)).collect(),
        endpoints: endpoints.iter().map(|name| endpoint::load_assignment(&context, name)).collect(),
        secrets: secrets(&context, None),
        extensions: envoy_filter::extension_configs(context.patches(), None),
        listeners,
        clusters,
    }
}

fn sorted(names: Option<&[String]>, all: impl FnOnce() -> Vec<String>) -> Vec<String> {
    let mut names = names.map_or_else(all, <[String]>::to_vec);
    names.sort();
    names.dedup();
    names
}

/// Route configurations that listeners refer to; a gateway's are known without.
fn route_names(context: &Context<'_>, listeners: Option<&[Listener]>) -> Vec<String> {
    if context.proxy.kind == ProxyKind::Router {
        return context.gateway().route_names().cloned().collect();
    }
    let names = match listeners {
        Some(listeners) => listener::route_names(listeners),
        None => listener::route_names(&listener::build(context, None)),
    };
    names.into_iter().collect()
}

/// Clusters whose endpoints are resources of their own.
fn endpoint_names(clusters: &[Cluster]) -> Vec<String> {
    let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds.into());
    let own = clusters.iter().filter(|cluster| cluster.cluster_discovery_type == Some(eds.clone()));
    own.map(|cluster| cluster.name.clone()).collect()
}

fn secrets(context: &Context<'_>, names: Option<&[String]>) -> Vec<Secret> {
    let names = sorted(names, || credential::names(context).into_iter().collect());
    names.iter().filter_map(|name| secret::build(context, name)).collect()
}
