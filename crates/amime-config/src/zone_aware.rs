//! How far requests stay in the proxy's own zone.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/zone_aware>

use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config as fields;
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3 as typed;
use envoy_types::pb::envoy::r#type::v3::Percent;
use typed::locality_lb_config::zone_aware_lb_config::LocalityBasis;

use super::endpoint::Endpoint;
use amime_rules::values;

/// A compiled `ZoneAwareLbConfig`; it holds without being asked for, where the
/// proxy knows the cluster that it is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneAware {
    /// Percent of requests for which zones are heeded.
    pub enabled: u32,
    /// Healthy endpoints without which zones are not heeded.
    pub min_cluster_size: u64,
    /// Endpoints in the own zone from which on everything stays there.
    pub force_min: Option<u32>,
    /// Localities are compared by weight rather than by number of endpoints.
    pub by_weight: bool,
}

impl Default for ZoneAware {
    fn default() -> Self {
        Self { enabled: 100, min_cluster_size: 6, force_min: None, by_weight: false }
    }
}

impl ZoneAware {
    pub(crate) fn of_fields(value: &fields::ZoneAwareLbConfig) -> Self {
        Self {
            enabled: percent(value.routing_enabled.as_ref()),
            min_cluster_size: value.min_cluster_size.as_ref().map_or(6, |size| size.value),
            ..Self::default()
        }
    }

    #[expect(deprecated, reason = "configurations of today still set it")]
    pub(crate) fn of_typed(value: &typed::locality_lb_config::ZoneAwareLbConfig) -> Self {
        let force = value.force_local_zone.as_ref();
        Self {
            enabled: percent(value.routing_enabled.as_ref()),
            min_cluster_size: value.min_cluster_size.as_ref().map_or(6, |size| size.value),
            force_min: force
                .map(|force| values::u32_or(force.min_size.as_ref(), 1))
                .or(value.force_locality_direct_routing.then_some(1)),
            by_weight: value.locality_basis() == LocalityBasis::HealthyHostsWeight,
        }
    }

    /// Whether zones are heeded for the request at hand.
    pub fn applies(&self) -> bool {
        match self.enabled {
            100 => true,
            percent => fastrand::u32(..100) < percent,
        }
    }

    /// What an endpoint counts where localities are compared.
    pub fn weight(&self, endpoint: &Endpoint) -> u64 {
        if self.by_weight { u64::from(endpoint.weight) } else { 1 }
    }
}

fn percent(value: Option<&Percent>) -> u32 {
    value.map_or(100, |percent| percent.value.clamp(0.0, 100.0).round() as u32)
}
