//! Locality weights and failover priorities, as one proxy sees them.
//!
//! `failoverPriority` by labels and zone-aware balancing are not made yet.

use std::collections::{BTreeMap, BTreeSet};

use amime_api::networking::{
    Distribute, Failover, LoadBalancerSettings, LocalityLoadBalancerSetting,
};
use amime_core::Locality;
use envoy_types::pb::envoy::config::core::v3::Locality as EnvoyLocality;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;

use crate::context::{Context, Direction};
use crate::endpoint::Subset;
use crate::proto::u32_value;

/// The setting that holds: the rule's, else the mesh's; `None` if switched off.
pub(crate) fn effective<'a>(
    context: &'a Context<'_>,
    own: Option<&'a LoadBalancerSettings>,
) -> Option<&'a LocalityLoadBalancerSetting> {
    let own = own.and_then(|lb| lb.locality_lb_setting.as_ref());
    own.or(context.mesh.locality_lb_setting.as_ref())
        .filter(|setting| setting.enabled != Some(false))
}

/// Applies the policy of a cluster to its EDS assignment.
pub(crate) fn prioritise(
    context: &Context<'_>,
    subset: &Subset<'_>,
    assignment: &mut ClusterLoadAssignment,
) {
    let rule = context.destination_rule(&subset.service.hostname, Direction::Outbound);
    let policy = subset.policy(rule.map(|rule| rule.spec()));
    let lb = policy.as_ref().and_then(|policy| policy.load_balancer.as_ref());
    let detects = policy.as_ref().is_some_and(|policy| policy.outlier_detection.is_some());
    if let Some(setting) = effective(context, lb) {
        apply(&context.proxy.locality, setting, detects, assignment);
    }
}

/// Applies a setting; without outlier detection nothing would ever fail over.
pub(crate) fn apply(
    own: &Locality,
    setting: &LocalityLoadBalancerSetting,
    detects_outliers: bool,
    assignment: &mut ClusterLoadAssignment,
) {
    if !setting.distribute.is_empty() {
        distribute(own, &setting.distribute, assignment);
    } else if detects_outliers {
        fail_over(own, &setting.failover, assignment);
    }
}

fn distribute(own: &Locality, rules: &[Distribute], assignment: &mut ClusterLoadAssignment) {
    let Some(rule) = rules.iter().find(|rule| covers(&rule.from, &envoy(own))) else { return };
    let mut left: BTreeSet<usize> = (0..assignment.endpoints.len()).collect();
    for (to, share) in &rule.to {
        let matching: Vec<usize> = left
            .iter()
            .copied()
            .filter(|i| {
                let locality = assignment.endpoints[*i].locality.clone().unwrap_or_default();
                covers(to, &locality)
            })
            .collect();
        let weight = |i: &usize| {
            assignment.endpoints[*i].load_balancing_weight.as_ref().map_or(1, |w| w.value.max(1))
        };
        let weights: Vec<(usize, u64)> =
            matching.iter().map(|i| (*i, u64::from(weight(i)))).collect();
        let total: u64 = weights.iter().map(|(_, weight)| weight).sum();
        for (index, weight) in weights {
            left.remove(&index);
            let scaled = (weight * u64::from(*share)).div_ceil(total.max(1));
            if scaled > 0 {
                let weight = u32::try_from(scaled).unwrap_or(u32::MAX);
                assignment.endpoints[index].load_balancing_weight = u32_value(weight);
            }
        }
    }
    for index in left {
        assignment.endpoints[index].lb_endpoints.clear();
    }
}

fn fail_over(own: &Locality, rules: &[Failover], assignment: &mut ClusterLoadAssignment) {
    let mut by_rank: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (index, group) in assignment.endpoints.iter().enumerate() {
        let locality = group.locality.clone().unwrap_or_default();
        let mut rank = distance(own, &locality);
        if rank == 3
            && let Some(rule) = rules.iter().find(|rule| rule.from == own.region)
            && locality.region != rule.to
        {
            rank = 4;
        }
        by_rank.entry(rank).or_default().push(index);
    }
    // Envoy wants priorities from 0 without a gap.
    for (priority, indexes) in (0_u32..).zip(by_rank.into_values()) {
        for index in indexes {
            assignment.endpoints[index].priority = priority;
        }
    }
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
