//! How a cluster's endpoints are chosen: policies and their settings, both
//! from the cluster's own fields and from typed policy extensions.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/load_balancing>

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3::{HealthStatus, RuntimeDouble, TypedExtensionConfig};
use envoy_types::pb::envoy::extensions::load_balancing_policies as typed;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{Any, UInt32Value, UInt64Value};
use http::HeaderName;
use typed::common::v3 as common;

use super::endpoint::Endpoint;
use super::lb_subset::SubsetSettings;
use super::load_reports::LoadReports;
pub use super::zone_aware::ZoneAware;
use amime_rules::Faults;
use amime_rules::hash_policy::HashPolicy;
use amime_rules::values::{self, is, unpack};

/// All that decides which endpoint takes a request.
#[derive(Debug)]
pub struct LbSettings {
    pub policy: LbPolicy,
    pub subset: Option<SubsetSettings>,
    /// Percent of endpoints that must be usable for health to be heeded.
    pub panic_percent: u32,
    /// Fail instead of using unhealthy endpoints when too few are left.
    pub fail_on_panic: bool,
    /// Localities take requests by their weights.
    pub locality_weighted: bool,
    pub slow_start: Option<SlowStart>,
    pub zone: ZoneAware,
    /// Endpoints weigh what they report.
    pub reports: Option<LoadReports>,
    /// Consistent hashing knows endpoints by name rather than by address.
    pub hash_by_hostname: bool,
    /// Percent of the average load that consistent hashing gives an endpoint
    /// at most.
    pub hash_balance_factor: Option<u32>,
    /// Hash policies of the cluster, in place of the route's.
    pub hash: Vec<HashPolicy>,
    /// Headers that name the endpoints to use, best first.
    pub override_headers: Vec<HeaderName>,
    /// Health in which a session's endpoint is still used.
    pub override_status: Vec<HealthStatus>,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LbPolicy {
    RoundRobin,
    LeastRequest {
        choices: u32,
        /// How much requests in flight count against an endpoint's weight.
        bias: f64,
        full_scan: bool,
    },
    Random,
    RingHash {
        min: u64,
        max: u64,
        murmur: bool,
    },
    Maglev {
        size: u64,
    },
}

impl LbPolicy {
    /// True if a request's hash decides.
    pub fn hashes(self) -> bool {
        matches!(self, Self::RingHash { .. } | Self::Maglev { .. })
    }
}

/// How new endpoints are warmed up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    pub window: Duration,
    pub aggression: f64,
    /// Least share of the weight, up to 1.
    pub min_weight: f64,
}

/// Largest ring that the API allows.
const MAX_RING: u64 = 8 << 20;
const MIN_RING: u64 = 1024;
const TABLE_SIZE: u64 = 65_537;
const MAX_TABLE_SIZE: u64 = 5_000_011;

impl LbSettings {
    pub(crate) fn compile(value: &pb::Cluster, faults: &mut Faults) -> Option<Self> {
        let common = value.common_lb_config.as_ref();
        let panic = common.and_then(|lb| lb.healthy_panic_threshold.as_ref());
        let status = common.and_then(|lb| lb.override_host_status.as_ref());
        let mut settings = Self {
            policy: LbPolicy::RoundRobin,
            subset: None,
            panic_percent: panic
                .map_or(50, |percent| percent.value.clamp(0.0, 100.0).round() as u32),
            fail_on_panic: false,
            locality_weighted: false,
            slow_start: None,
            zone: ZoneAware::default(),
            reports: None,
            hash_by_hostname: false,
            hash_balance_factor: None,
            hash: Vec::new(),
            override_headers: Vec::new(),
            override_status: match status {
                None => vec![HealthStatus::Unknown, HealthStatus::Healthy, HealthStatus::Degraded],
                Some(set) => set.statuses().collect(),
            },
        };
        match &value.load_balancing_policy {
            Some(list) => {
                faults.within("load_balancing_policy", |faults| settings.take_list(list, faults))?
            }
            None => settings.take_fields(value, faults)?,
        }
        if settings.reports.is_some() {
            // This policy has no settings of its own for localities.
            settings.take_common_locality(common);
        }
        Some(settings)
    }

    /// What an endpoint weighs now.
    #[inline]
    pub fn weight_of(&self, endpoint: &Endpoint) -> u32 {
        let reported = self.reports.as_ref().and_then(|_| endpoint.state.reported.in_force());
        reported.unwrap_or(endpoint.weight)
    }

    fn take_common_locality(&mut self, common: Option<&pb::cluster::CommonLbConfig>) {
        use pb::cluster::common_lb_config::LocalityConfigSpecifier as Locality;
        match common.and_then(|lb| lb.locality_config_specifier.as_ref()) {
            Some(Locality::LocalityWeightedLbConfig(_)) => self.locality_weighted = true,
            Some(Locality::ZoneAwareLbConfig(zone)) => {
                self.fail_on_panic = zone.fail_traffic_on_panic;
                self.zone = ZoneAware::of_fields(zone);
            }
            None => {}
        }
    }

    /// Reads the fields that predate policy extensions.
    fn take_fields(&mut self, value: &pb::Cluster, faults: &mut Faults) -> Option<()> {
        use pb::cluster::{LbConfig, LbPolicy as Policy};
        let common = value.common_lb_config.as_ref();
        self.take_common_locality(common);
        if let Some(hashing) = common.and_then(|lb| lb.consistent_hashing_lb_config.as_ref()) {
            self.hash_by_hostname = hashing.use_hostname_for_hashing;
            if self.hash_by_hostname && is_static(value) {
                let field =
                    "common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing";
                faults.reject(field, "endpoints of a static cluster have no names");
            }
            faults.enter("common_lb_config.consistent_hashing_lb_config");
            self.hash_balance_factor = factor(hashing.hash_balance_factor.as_ref(), faults);
            faults.leave();
        }
        self.policy = match (value.lb_policy(), &value.lb_config) {
            (Policy::RoundRobin, Some(LbConfig::RoundRobinLbConfig(config))) => {
                self.slow_start = config.slow_start_config.as_ref().and_then(SlowStart::of_fields);
                LbPolicy::RoundRobin
            }
            (Policy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config))) => {
                self.slow_start = config.slow_start_config.as_ref().and_then(SlowStart::of_fields);
                let bias = bias(config.active_request_bias.as_ref(), faults)?;
                least_request(config.choice_count.as_ref(), bias, false)
            }
            (Policy::LeastRequest, _) => least_request(None, 1.0, false),
            (Policy::RingHash, Some(LbConfig::RingHashLbConfig(config))) => ring(
                config.minimum_ring_size.as_ref(),
                config.maximum_ring_size.as_ref(),
                config.hash_function == 1,
                faults,
            )?,
            (Policy::RingHash, _) => ring(None, None, false, faults)?,
            (Policy::Maglev, Some(LbConfig::MaglevLbConfig(config))) => {
                maglev(config.table_size.as_ref(), faults)?
            }
            (Policy::Maglev, _) => maglev(None, faults)?,
            (Policy::Random, _) => LbPolicy::Random,
            (Policy::LoadBalancingPolicyConfig, _) => {
                faults.reject("load_balancing_policy", "missing");
                return None;
            }
            (Policy::RoundRobin | Policy::ClusterProvided, _) => LbPolicy::RoundRobin,
        };
        if let Some(config) = &value.lb_subset_config {
            self.subset = SubsetSettings::of_fields(config);
        }
        Some(())
    }

    /// Takes the first policy of a list that is known here.
    fn take_list(&mut self, list: &pb::LoadBalancingPolicy, faults: &mut Faults) -> Option<()> {
        let mut unknown = Vec::new();
        for (index, policy) in list.policies.iter().enumerate() {
            let Some(TypedExtensionConfig { typed_config: Some(any), name }) =
                &policy.typed_extension_config
            else {
                continue;
            };
            faults.enter(format!("policies[{index}]({name})"));
            let taken = self.take(any, faults);
            faults.leave();
            match taken {
                Taken::Yes => return Some(()),
                Taken::Bad => return None,
                Taken::Unknown => unknown.push(values::type_name(any).to_owned()),
            }
        }
        faults.reject("policies", format!("none is supported: {}", unknown.join(", ")));
        None
    }

    fn take(&mut self, any: &Any, faults: &mut Faults) -> Taken {
        if is::<typed::round_robin::v3::RoundRobin>(any) {
            Taken::from(self.take_round_robin(any, faults))
        } else if is::<typed::least_request::v3::LeastRequest>(any) {
            Taken::from(self.take_least_request(any, faults))
        } else if is::<typed::random::v3::Random>(any) {
            Taken::from(self.take_random(any, faults))
        } else if is::<typed::ring_hash::v3::RingHash>(any) {
            Taken::from(self.take_ring(any, faults))
        } else if is::<typed::maglev::v3::Maglev>(any) {
            Taken::from(self.take_maglev(any, faults))
        } else if is::<typed::subset::v3::Subset>(any) {
            Taken::from(self.take_subset(any, faults))
        } else if is::<typed::wrr_locality::v3::WrrLocality>(any) {
            Taken::from(self.take_wrr_locality(any, faults))
        } else if is::<typed::override_host::v3::OverrideHost>(any) {
            Taken::from(self.take_override_host(any, faults))
        } else if is::<typed::cluster_provided::v3::ClusterProvided>(any) {
            Taken::Yes
        } else if is::<typed::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin>(
            any,
        ) {
            Taken::from(self.take_reported(any, faults))
        } else {
            Taken::Unknown
        }
    }

    fn take_round_robin(&mut self, any: &Any, faults: &mut Faults) -> Option<()> {
        let value: typed::round_robin::v3::RoundRobin = unpack(any, faults)?;
        self.policy = LbPolicy::RoundRobin;
        self.slow_start = value.slow_start_config.as_ref().and_then(SlowStart::of_typed);
        self.take_locality(value.locality_lb_config.as_ref());
        Some(())
    }

    fn take_reported(&mut self, any: &Any, faults: &mut Faults) -> Option<()> {
        use typed::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin;
        let value: ClientSideWeightedRoundRobin = unpack(any, faults)?;
        self.policy = LbPolicy::RoundRobin;
        self.reports = Some(LoadReports::compile(&value, faults));
        self.slow_start = value.slow_start_config.as_ref().and_then(SlowStart::of_typed);
        Some(())
    }

    fn take_least_request(&mut self, any: &Any, faults: &mut Faults) -> Option<()> {
        use typed::least_request::v3::{LeastRequest, least_request::SelectionMethod};
        let value: LeastRequest = unpack(any, faults)?;
        let full_scan = value.selection_method() == SelectionMethod::FullScan
            || values::bool_or(value.enable_full_scan.as_ref(), false);
        let bias = bias(value.active_request_bias.as_ref(), faults)?;
        self.policy = least_request(value.choice_count.as_ref(), bias, full_scan);
        self.slow_start = value.slow_start_config.as_ref().and_then(SlowStart::of_typed);
        self.take_locality(value.locality_lb_config.as_ref());
        Some(())
    }

    fn take_random(&mut self, any: &Any, faults: &mut Faults) -> Option<()> {
        let value: typed::random::v3::Random = unpack(any, faults)?;
        self.policy = LbPolicy::Random;
        self.take_locality(value.locality_lb_config.as_ref());
        Some(())
    }

    fn take_ring(&mut self, any: &Any, faults: &mut Faults) -> Option<()> {
        let value: typed::ring_hash::v3::RingHash = unpack(any, faults)?;
        self.policy = ring(
            value.minimum_ring_size.as_ref(),
            value.maximum_ring_size.as_ref(),
            value.hash_function == 2,
            faults,
        )?;
        self.hash_by_hostname = value.use_hostname_for_hashing;
        self.locality_weighted = value.locality_weighted_lb_config.is_some();
        self.hash_balance_factor = factor(value.hash_balance_factor.as_ref(), faults);
        self.take_hashing(value.consistent_hashing_lb_config.as_ref(), faults);
        Some(())
    }

    fn take_maglev(&mut self, any: &Any, faults: &mut Faults) -> Option<()> {
        let value: typed::maglev::v3::Maglev = unpack(any, faults)?;
        self.policy = maglev(value.table_size.as_ref(), faults)?;
        self.locality_weighted = value.locality_weighted_lb_config.is_some();
        self.take_hashing(value.consistent_hashing_lb_config.as_ref(), faults);
        Some(())
    }

    fn take_subset(&mut self, any: &Any, faults: &mut Faults) -> Option<()> {
        let value: typed::subset::v3::Subset = unpack(any, faults)?;
        let Some(inner) = &value.subset_lb_policy else {
            faults.reject("subset_lb_policy", "missing");
            return None;
        };
        faults.within("subset_lb_policy", |faults| self.take_list(inner, faults))?;
        self.subset = Some(SubsetSettings::of_typed(&value));
        Some(())
    }

    fn take_wrr_locality(&mut self, any: &Any, faults: &mut Faults) -> Option<()> {
        let value: typed::wrr_locality::v3::WrrLocality = unpack(any, faults)?;
        let Some(inner) = &value.endpoint_picking_policy else {
            faults.reject("endpoint_picking_policy", "missing");
            return None;
        };
        faults.within("endpoint_picking_policy", |faults| self.take_list(inner, faults))?;
        self.locality_weighted = true;
        Some(())
    }

    fn take_override_host(&mut self, any: &Any, faults: &mut Faults) -> Option<()> {
        let value: typed::override_host::v3::OverrideHost = unpack(any, faults)?;
        let mut headers = Vec::with_capacity(value.override_host_sources.len());
        for (index, source) in value.override_host_sources.iter().enumerate() {
            faults.enter(format!("override_host_sources[{index}]"));
            match source.header.parse() {
                Ok(name) => headers.push(name),
                Err(_) if source.metadata.is_some() => faults.ignore("metadata", "not supported"),
                Err(_) => faults.reject("header", "not a header name"),
            }
            faults.leave();
        }
        faults.ignore_if(value.selected_host_key.is_some(), "selected_host_key");
        let Some(inner) = &value.fallback_policy else {
            faults.reject("fallback_policy", "missing");
            return None;
        };
        faults.within("fallback_policy", |faults| self.take_list(inner, faults))?;
        self.override_headers = headers;
        Some(())
    }

    fn take_locality(&mut self, value: Option<&common::LocalityLbConfig>) {
        use common::locality_lb_config::LocalityConfigSpecifier as Locality;
        match value.and_then(|value| value.locality_config_specifier.as_ref()) {
            Some(Locality::LocalityWeightedLbConfig(_)) => self.locality_weighted = true,
            Some(Locality::ZoneAwareLbConfig(zone)) => {
                self.fail_on_panic = zone.fail_traffic_on_panic;
                self.zone = ZoneAware::of_typed(zone);
            }
            None => {}
        }
    }

    fn take_hashing(
        &mut self,
        value: Option<&common::ConsistentHashingLbConfig>,
        faults: &mut Faults,
    ) {
        let Some(value) = value else { return };
        faults.enter("consistent_hashing_lb_config");
        self.hash_by_hostname = value.use_hostname_for_hashing;
        self.hash_balance_factor = factor(value.hash_balance_factor.as_ref(), faults);
        self.hash = HashPolicy::compile_all(&value.hash_policy, faults);
        faults.leave();
    }
}

fn is_static(value: &pb::Cluster) -> bool {
    use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
    match value.cluster_discovery_type {
        None => true,
        Some(ClusterDiscoveryType::Type(kind)) => kind == DiscoveryType::Static as i32,
        Some(ClusterDiscoveryType::ClusterType(_)) => false,
    }
}

/// What became of one policy of a list.
enum Taken {
    Yes,
    Bad,
    Unknown,
}

impl From<Option<()>> for Taken {
    fn from(taken: Option<()>) -> Self {
        if taken.is_some() { Self::Yes } else { Self::Bad }
    }
}

fn least_request(choices: Option<&UInt32Value>, bias: f64, full_scan: bool) -> LbPolicy {
    let choices = values::u32_or(choices, 2).clamp(2, 100);
    LbPolicy::LeastRequest { choices, bias, full_scan }
}

/// The default of a runtime value; runtime layers do not change it here.
fn bias(value: Option<&RuntimeDouble>, faults: &mut Faults) -> Option<f64> {
    let bias = value.map_or(1.0, |value| value.default_value);
    if bias.is_nan() || bias < 0.0 {
        faults.reject("active_request_bias", format!("{bias} is negative"));
        return None;
    }
    Some(bias)
}

fn factor(value: Option<&UInt32Value>, faults: &mut Faults) -> Option<u32> {
    let factor = value?.value;
    if factor < 100 {
        faults.reject("hash_balance_factor", format!("{factor} is below 100"));
    }
    Some(factor)
}

fn ring(
    min: Option<&UInt64Value>,
    max: Option<&UInt64Value>,
    murmur: bool,
    faults: &mut Faults,
) -> Option<LbPolicy> {
    let min = min.map_or(MIN_RING, |size| size.value);
    let max = max.map_or(MAX_RING, |size| size.value);
    if min > max || max > MAX_RING {
        faults.reject(
            "minimum_ring_size",
            format!("{min} to {max} is no range within 0 to {MAX_RING}"),
        );
        return None;
    }
    Some(LbPolicy::RingHash { min, max, murmur })
}

fn maglev(size: Option<&UInt64Value>, faults: &mut Faults) -> Option<LbPolicy> {
    let size = size.map_or(TABLE_SIZE, |size| size.value);
    if size > MAX_TABLE_SIZE || !prime(size) {
        faults.reject("table_size", format!("{size} is no prime up to {MAX_TABLE_SIZE}"));
        return None;
    }
    Some(LbPolicy::Maglev { size })
}

fn prime(number: u64) -> bool {
    let odd = || (3..).step_by(2).take_while(|divisor| divisor * divisor <= number);
    let divided = || odd().any(|divisor| number.is_multiple_of(divisor));
    number == 2 || number > 2 && !number.is_multiple_of(2) && !divided()
}

impl SlowStart {
    fn of_fields(value: &pb::cluster::SlowStartConfig) -> Option<Self> {
        Self::new(
            values::timeout(value.slow_start_window.as_ref(), None)?,
            value.aggression.as_ref(),
            value.min_weight_percent.as_ref(),
        )
    }

    fn of_typed(value: &common::SlowStartConfig) -> Option<Self> {
        Self::new(
            values::timeout(value.slow_start_window.as_ref(), None)?,
            value.aggression.as_ref(),
            value.min_weight_percent.as_ref(),
        )
    }

    fn new(
        window: Duration,
        aggression: Option<&RuntimeDouble>,
        least: Option<&Percent>,
    ) -> Option<Self> {
        let aggression = aggression.map_or(1.0, |value| value.default_value);
        Some(Self {
            window,
            // Envoy falls back to a straight line for values without meaning.
            aggression: if aggression > 0.0 { aggression } else { 1.0 },
            min_weight: least.map_or(10.0, |percent| percent.value.clamp(0.0, 100.0)) / 100.0,
        })
    }
}
