//! The cluster that a workload's proxy is part of, as Istio's bootstrap names
//! it: by its members the proxy knows how many of its kind run in each zone.
//!
//! Asked for with `ISTIO_META_ENABLE_SELF_DISCOVERY`, as in Istio.

use std::sync::Arc;

use amime_engine::runtime::LocalCluster;
use amime_xds::Resource;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy,
};
use envoy_types::pb::envoy::config::core::v3::{
    AggregatedConfigSource, ApiVersion, ConfigSource, config_source::ConfigSourceSpecifier,
};
use envoy_types::pb::google::protobuf::Duration;
use serde_json::Value;

use super::env::AgentConfig;
use super::node;
use crate::bootstrap::place;

/// The name under which control planes know every proxy's own cluster.
const NAME: &str = "local_cluster";
const KEY: &str = "ENABLE_SELF_DISCOVERY";

/// True if the proxy is to know its own kind.
pub(super) fn wanted(config: &AgentConfig) -> bool {
    match config.metadata.get(KEY) {
        Some(Value::Bool(wanted)) => *wanted,
        Some(Value::String(text)) => matches!(text.as_str(), "true" | "1"),
        _ => false,
    }
}

/// What load balancers are told of it.
pub(super) fn local_cluster(config: &AgentConfig) -> Option<Arc<LocalCluster>> {
    wanted(config).then(|| LocalCluster::new(NAME, place(Some(&node::node(config)))))
}

/// The cluster, with members from the control plane.
pub(super) fn cluster() -> Resource {
    let ads = ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    };
    let cluster = Cluster {
        name: NAME.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads),
            service_name: NAME.to_owned(),
        }),
        connect_timeout: Some(Duration { seconds: 1, nanos: 0 }),
        lb_policy: LbPolicy::LeastRequest.into(),
        ..Cluster::default()
    };
    Resource::encode(NAME, &cluster)
}
