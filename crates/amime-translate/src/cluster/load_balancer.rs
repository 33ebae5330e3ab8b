//! Load balancing of clusters.

use amime_api::networking::{
    BackendUtilizationLb, ConsistentHashLb, LoadBalancerSettings, SimpleLb, WarmupConfiguration,
};
use amime_model::Service;
use envoy_types::pb::envoy::config::cluster::v3::load_balancing_policy::Policy;
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, LoadBalancingPolicy};
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    DiscoveryType, LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig,
    RoundRobinLbConfig, SlowStartConfig,
};
use envoy_types::pb::envoy::config::core::v3::RuntimeDouble;
use envoy_types::pb::envoy::extensions::load_balancing_policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin;
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3::SlowStartConfig as TypedSlowStart;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::FloatValue;

use super::Draft;
use super::outbound::discovery_type;
use crate::context::Context;
use crate::locality;
use crate::proto::{duration, extension, u64_value};

/// Ring size when a rule asks for consistent hashing without naming one.
const DEFAULT_RING_SIZE: u64 = 1024;
/// Envoy wants a runtime key for the aggression; this one can never be set.
const UNUSED_RUNTIME_KEY: &str = "(";

/// Applies the settings, or the default of least requests.
pub(super) fn apply(
    context: &Context<'_>,
    draft: &mut Draft,
    settings: Option<&LoadBalancerSettings>,
    service: Option<&Service>,
) {
    let cluster = &mut draft.cluster;
    if cluster.lb_policy == i32::from(LbPolicy::ClusterProvided) {
        return;
    }
    // Endpoints that are not ready are sent along, so that proxies know them;
    // in a panic Envoy would use them.
    let common = cluster.common_lb_config.get_or_insert_default();
    common.healthy_panic_threshold.get_or_insert(Percent { value: 0.0 });
    let detects = cluster.outlier_detection.is_some();
    if let Some(setting) = locality::effective(context, settings, service) {
        setting.apply_to_cluster(cluster.common_lb_config.get_or_insert_default(), detects);
    }
    let original_dst = Some(discovery_type(DiscoveryType::OriginalDst));
    if cluster.cluster_discovery_type == original_dst {
        cluster.lb_policy = LbPolicy::ClusterProvided.into();
        return;
    }
    if let Some(utilization) = settings.and_then(|lb| lb.backend_utilization.as_ref()) {
        cluster.load_balancing_policy = Some(by_utilization(utilization, slow_start(settings)));
        return;
    }
    match settings.and_then(|settings| settings.simple).unwrap_or_default() {
        SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest => {
            cluster.lb_policy = LbPolicy::LeastRequest.into();
            cluster.lb_config = slow_start(settings).map(|slow_start| {
                LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
                    slow_start_config: Some(slow_start),
                    ..Default::default()
                })
            });
        }
        SimpleLb::RoundRobin => {
            cluster.lb_policy = LbPolicy::RoundRobin.into();
            cluster.lb_config = slow_start(settings).map(|slow_start| {
                LbConfig::RoundRobinLbConfig(RoundRobinLbConfig {
                    slow_start_config: Some(slow_start),
                })
            });
        }
        SimpleLb::Random => cluster.lb_policy = LbPolicy::Random.into(),
        SimpleLb::Passthrough => {
            cluster.lb_policy = LbPolicy::ClusterProvided.into();
            cluster.cluster_discovery_type = original_dst;
            cluster.load_assignment = None;
        }
    }
    if let Some(hash) = settings.and_then(|settings| settings.consistent_hash.as_ref()) {
        apply_hash(cluster, hash);
    }
}

/// Endpoints weigh what they report of their load.
fn by_utilization(
    settings: &BackendUtilizationLb,
    slow_start: Option<SlowStartConfig>,
) -> LoadBalancingPolicy {
    let time = |time: Option<amime_core::Duration>| time.map(|time| duration(time.std()));
    let percent = settings.error_utilization_penalty_percent;
    let policy = ClientSideWeightedRoundRobin {
        error_utilization_penalty: percent
            .map(|percent| FloatValue { value: percent as f32 / 100.0 }),
        metric_names_for_computing_utilization: settings
            .metric_names_for_computing_utilization
            .clone(),
        weight_update_period: time(settings.weight_update_period),
        blackout_period: time(settings.weight_stabilization_period),
        weight_expiration_period: time(settings.weight_expiration_period),
        slow_start_config: slow_start.map(|slow| TypedSlowStart {
            slow_start_window: slow.slow_start_window,
            aggression: slow.aggression,
            min_weight_percent: slow.min_weight_percent,
        }),
        ..Default::default()
    };
    let name = "envoy.load_balancing_policies.client_side_weighted_round_robin";
    let typed = extension(name, &policy);
    LoadBalancingPolicy { policies: vec![Policy { typed_extension_config: Some(typed) }] }
}

fn slow_start(settings: Option<&LoadBalancerSettings>) -> Option<SlowStartConfig> {
    let settings = settings?;
    if let Some(WarmupConfiguration { duration: window, minimum_percent, aggression }) =
        &settings.warmup
    {
        return Some(SlowStartConfig {
            slow_start_window: window.map(|d| duration(d.std())),
            aggression: Some(RuntimeDouble {
                default_value: aggression.unwrap_or(1.0),
                runtime_key: UNUSED_RUNTIME_KEY.to_owned(),
            }),
            min_weight_percent: Some(Percent { value: minimum_percent.unwrap_or(10.0) }),
        });
    }
    settings.warmup_duration_secs.map(|window| SlowStartConfig {
        slow_start_window: Some(duration(window.std())),
        ..Default::default()
    })
}

fn apply_hash(cluster: &mut Cluster, hash: &ConsistentHashLb) {
    let ring = |size: Option<u64>| {
        size.filter(|size| *size != 0).map(|size| {
            LbConfig::RingHashLbConfig(RingHashLbConfig {
                minimum_ring_size: u64_value(size),
                ..Default::default()
            })
        })
    };
    if let Some(maglev) = &hash.maglev {
        cluster.lb_policy = LbPolicy::Maglev.into();
        cluster.lb_config = maglev
            .table_size
            .filter(|size| *size != 0)
            .map(|size| LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: u64_value(size) }));
    } else if let Some(settings) = &hash.ring_hash {
        cluster.lb_policy = LbPolicy::RingHash.into();
        cluster.lb_config = ring(settings.minimum_ring_size);
    } else {
        cluster.lb_policy = LbPolicy::RingHash.into();
        cluster.lb_config = ring(hash.minimum_ring_size).or_else(|| ring(Some(DEFAULT_RING_SIZE)));
    }
}
