//! Which endpoints are near: locality weights, failover priorities and
//! zone-aware balancing, as one proxy sees them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use amime_api::networking::{
    Distribute, Failover, LoadBalancerSettings, LocalityLoadBalancerSetting,
    ZoneAwareLoadBalancerSetting,
};
use amime_core::Locality;
use amime_model::{Endpoint, Service, TrafficDistribution, labels};
use envoy_types::pb::envoy::config::cluster::v3::cluster::CommonLbConfig;
use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::{
    LocalityConfigSpecifier, LocalityWeightedLbConfig, ZoneAwareLbConfig,
};
use envoy_types::pb::envoy::config::core::v3::Locality as EnvoyLocality;
use envoy_types::pb::envoy::config::endpoint::v3::LocalityLbEndpoints;
use envoy_types::pb::envoy::r#type::v3::Percent;

use crate::context::Context;
use crate::proto::{u32_value, u64_value};

/// Priorities by locality: same subzone, zone, region, region to fail over to,
/// any other.
const RANKS: u32 = 5;
/// Priorities of zone-aware balancing: own region, region to fail over to, others.
const REGION_RANKS: u32 = 3;

/// Endpoints of one locality, and what the proxy is told of them.
pub(crate) struct LocalityGroup {
    /// In the order of the endpoints in `envoy`.
    pub(crate) members: Vec<Arc<Endpoint>>,
    pub(crate) envoy: LocalityLbEndpoints,
}

/// The setting that holds for a cluster.
pub(crate) enum Effective<'a> {
    Locality {
        setting: Cow<'a, LocalityLoadBalancerSetting>,
        /// It fails over whether or not failures are detected.
        forced: bool,
    },
    ZoneAware(&'a ZoneAwareLoadBalancerSetting),
}

/// The setting of the rule, else the service's wish, else that of the mesh;
/// `None` if switched off.
pub(crate) fn effective<'a>(
    context: &'a Context<'_>,
    own: Option<&'a LoadBalancerSettings>,
    service: Option<&Service>,
) -> Option<Effective<'a>> {
    let unforced = |setting: &'a LocalityLoadBalancerSetting| {
        let setting = Cow::Borrowed(setting);
        (setting.enabled != Some(false)).then_some(Effective::Locality { setting, forced: false })
    };
    if let Some(setting) = own.and_then(|lb| lb.zone_aware_lb_setting.as_ref()) {
        return Some(Effective::ZoneAware(setting));
    }
    if let Some(setting) = own.and_then(|lb| lb.locality_lb_setting.as_ref()) {
        return unforced(setting);
    }
    if let Some(labels) = service.and_then(|service| preferred(service.traffic_distribution)) {
        let failover_priority = labels.iter().map(|label| (*label).to_owned()).collect();
        let setting = LocalityLoadBalancerSetting { failover_priority, ..Default::default() };
        return Some(Effective::Locality { setting: Cow::Owned(setting), forced: true });
    }
    if let Some(setting) = &context.mesh.zone_aware_lb_setting {
        return Some(Effective::ZoneAware(setting));
    }
    unforced(context.mesh.locality_lb_setting.as_ref()?)
}

/// Labels that order endpoints for a service that prefers near ones.
fn preferred(distribution: TrafficDistribution) -> Option<&'static [&'static str]> {
    const ORDER: [&str; 5] =
        [labels::NETWORK, labels::REGION, labels::ZONE, labels::SUBZONE, labels::NODE];
    match distribution {
        TrafficDistribution::Any => None,
        TrafficDistribution::SameZone => Some(&ORDER[..3]),
        TrafficDistribution::SameNode => Some(&ORDER),
    }
}

impl Effective<'_> {
    /// What the cluster itself says about localities.
    pub(crate) fn apply_to_cluster(&self, common: &mut CommonLbConfig, detects_outliers: bool) {
        let specifier = match self {
            Self::ZoneAware(setting) => {
                let off = setting.enabled == Some(false);
                LocalityConfigSpecifier::ZoneAwareLbConfig(ZoneAwareLbConfig {
                    routing_enabled: off.then_some(Percent { value: 0.0 }),
                    min_cluster_size: setting.min_cluster_size.and_then(u64_value),
                    ..Default::default()
                })
            }
            Self::Locality { setting, forced } => {
                let fails_over = *forced || detects_outliers;
                let explicit =
                    !setting.failover.is_empty() || !setting.failover_priority.is_empty();
                // Otherwise weights would only disturb the load balancer.
                if !(fails_over && explicit || !setting.distribute.is_empty()) {
                    return;
                }
                LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {})
            }
        };
        common.locality_config_specifier = Some(specifier);
    }

    /// Weights and priorities; without outlier detection nothing would ever
    /// fail over.
    pub(crate) fn apply(
        &self,
        context: &Context<'_>,
        groups: Vec<LocalityGroup>,
        detects_outliers: bool,
    ) -> Vec<LocalityLbEndpoints> {
        let own = &context.locality;
        match self {
            Self::ZoneAware(setting) if setting.enabled == Some(false) => plain(groups),
            Self::ZoneAware(setting) => {
                let mut endpoints = split(context, groups, &setting.failover_priority);
                let rank = |other: &EnvoyLocality| region_rank(own, other, &setting.failover);
                rank_by_locality(&mut endpoints, REGION_RANKS, rank);
                endpoints
            }
            Self::Locality { setting, .. } if !setting.distribute.is_empty() => {
                let mut endpoints = plain(groups);
                distribute(own, &setting.distribute, &mut endpoints);
                endpoints
            }
            Self::Locality { setting, forced } if *forced || detects_outliers => {
                let mut endpoints = split(context, groups, &setting.failover_priority);
                if setting.failover_priority.is_empty() || !setting.failover.is_empty() {
                    let rank = |other: &EnvoyLocality| rank(own, other, &setting.failover);
                    rank_by_locality(&mut endpoints, RANKS, rank);
                }
                endpoints
            }
            Self::Locality { .. } => plain(groups),
        }
    }
}

/// The groups as they are.
pub(crate) fn plain(groups: Vec<LocalityGroup>) -> Vec<LocalityLbEndpoints> {
    groups.into_iter().map(|group| group.envoy).collect()
}

fn distribute(own: &Locality, rules: &[Distribute], endpoints: &mut [LocalityLbEndpoints]) {
    let Some(rule) = rules.iter().find(|rule| covers(&rule.from, &envoy(own))) else { return };
    let mut left: BTreeSet<usize> = (0..endpoints.len()).collect();
    for (to, share) in &rule.to {
        let covered = |i: &usize| {
            let locality = endpoints[*i].locality.clone().unwrap_or_default();
            covers(to, &locality)
        };
        let matching: Vec<usize> = left.iter().copied().filter(covered).collect();
        let weight =
            |i: &usize| endpoints[*i].load_balancing_weight.as_ref().map_or(1, |w| w.value.max(1));
        let weights: Vec<(usize, u64)> =
            matching.iter().map(|i| (*i, u64::from(weight(i)))).collect();
        let total: u64 = weights.iter().map(|(_, weight)| weight).sum();
        for (index, weight) in weights {
            left.remove(&index);
            let scaled = (weight * u64::from(*share)).div_ceil(total.max(1));
            if scaled > 0 {
                let weight = u32::try_from(scaled).unwrap_or(u32::MAX);
                endpoints[index].load_balancing_weight = u32_value(weight);
            }
        }
    }
    for index in left {
        endpoints[index].lb_endpoints.clear();
    }
}

/// Splits each group by how many of the labels, from the first on, its members
/// share with the proxy; a label may name the value itself (`label=value`).
fn split(
    context: &Context<'_>,
    groups: Vec<LocalityGroup>,
    priorities: &[String],
) -> Vec<LocalityLbEndpoints> {
    if priorities.is_empty() {
        return plain(groups);
    }
    let wanted: Vec<(&str, &str)> = priorities
        .iter()
        .map(|text| match text.split_once('=') {
            Some((label, value)) => (label, value),
            None => (text.as_str(), context.labels.get(text).map_or("", String::as_str)),
        })
        .collect();
    let mut endpoints = Vec::new();
    for LocalityGroup { members, mut envoy } in groups {
        let mut by_priority: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        let own = std::mem::take(&mut envoy.lb_endpoints);
        for (member, endpoint) in members.iter().zip(own) {
            by_priority.entry(mismatch(&wanted, member)).or_default().push(endpoint);
        }
        endpoints.extend(by_priority.into_iter().map(|(priority, own)| {
            let weight = |e: &envoy_types::pb::envoy::config::endpoint::v3::LbEndpoint| {
                e.load_balancing_weight.as_ref().map_or(0, |w| w.value)
            };
            let total = own.iter().fold(0_u32, |sum, e| sum.saturating_add(weight(e)));
            LocalityLbEndpoints {
                priority,
                load_balancing_weight: u32_value(total),
                lb_endpoints: own,
                ..envoy.clone()
            }
        }));
    }
    compact(&mut endpoints);
    endpoints
}

/// 0 if all labels are equal, else the more the earlier the first difference.
fn mismatch(wanted: &[(&str, &str)], endpoint: &Endpoint) -> u32 {
    let count = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
    let differs = |(label, value): &(&str, &str)| {
        endpoint.labels.get(*label).map_or("", String::as_str) != *value
    };
    // Another network is further than anything else, but has an order too.
    let other_network =
        wanted.first().is_some_and(|first| first.0 == labels::NETWORK && differs(first));
    let skipped = usize::from(other_network);
    let first = wanted.iter().skip(skipped).position(differs);
    let rank = first.map_or(0, |at| count - u32::try_from(at + skipped).unwrap_or(count));
    if other_network { rank + count } else { rank }
}

/// Ranks by locality within the priorities that there are.
fn rank_by_locality(
    endpoints: &mut [LocalityLbEndpoints],
    ranks: u32,
    rank: impl Fn(&EnvoyLocality) -> u32,
) {
    for group in endpoints.iter_mut() {
        let locality = group.locality.clone().unwrap_or_default();
        group.priority = group.priority * ranks + rank(&locality);
    }
    compact(endpoints);
}

/// Envoy wants priorities from 0 without a gap.
fn compact(endpoints: &mut [LocalityLbEndpoints]) {
    let used: BTreeSet<u32> = endpoints.iter().map(|group| group.priority).collect();
    let places: BTreeMap<u32, u32> = used.into_iter().zip(0..).collect();
    for group in endpoints {
        group.priority = places[&group.priority];
    }
}

fn rank(own: &Locality, other: &EnvoyLocality, rules: &[Failover]) -> u32 {
    let rank = distance(own, other);
    match rules.iter().find(|rule| rule.from == own.region) {
        Some(rule) if rank == 3 && other.region != rule.to => 4,
        _ => rank,
    }
}

fn region_rank(own: &Locality, other: &EnvoyLocality, rules: &[Failover]) -> u32 {
    if other.region == own.region {
        return 0;
    }
    let rule = rules.iter().find(|rule| rule.from == own.region);
    if rule.is_some_and(|rule| rule.to == other.region) { 1 } else { 2 }
}

fn distance(own: &Locality, other: &EnvoyLocality) -> u32 {
    if own.region != other.region {
        3
    } else if own.zone != other.zone {
        2
    } else if own.subzone != other.sub_zone {
        1
    } else {
        0
    }
}

fn envoy(locality: &Locality) -> EnvoyLocality {
    crate::endpoint::envoy_locality(locality)
}

/// True if `rule`, `region[/zone[/subzone]]` with `*` for "any", covers the locality.
fn covers(rule: &str, locality: &EnvoyLocality) -> bool {
    let rule = Locality::parse(rule);
    let open = |part: &str, own: &str| part.is_empty() || part == "*" || part == own;
    (rule.region == "*" || rule.region == locality.region)
        && open(&rule.zone, &locality.zone)
        && open(&rule.subzone, &locality.sub_zone)
}
