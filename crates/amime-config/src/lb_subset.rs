//! Settings of subset load balancing: by which metadata a cluster's endpoints
//! are split, and what happens to requests for a subset that is not there.

use envoy_types::pb::envoy::config::cluster::v3::cluster as fields;
use envoy_types::pb::envoy::extensions::load_balancing_policies::subset::v3 as typed;
use fields::lb_subset_config::lb_subset_selector::LbSubsetSelectorFallbackPolicy as SelectorPolicy;

use amime_rules::criteria::Criteria;

/// A compiled `LbSubsetConfig`.
#[derive(Debug)]
pub struct SubsetSettings {
    pub fallback: Fallback,
    pub default_subset: Criteria,
    pub selectors: Vec<Selector>,
    pub locality_weight_aware: bool,
    pub scale_locality_weight: bool,
    pub panic_mode_any: bool,
    pub list_as_any: bool,
    /// Routes may list alternatives of their criteria.
    pub fallback_list: bool,
    /// Criteria may have keys that no selector has.
    pub allow_redundant_keys: bool,
}

/// What a request without a subset gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    None,
    Any,
    Default,
}

/// Keys that split endpoints into subsets.
#[derive(Debug)]
pub struct Selector {
    /// Sorted.
    pub keys: Vec<Box<str>>,
    pub single_host: bool,
    /// `None`: what the whole cluster says.
    pub fallback: Option<SelectorFallback>,
}

/// What a request gets whose criteria have a selector's keys but no subset.
#[derive(Debug)]
pub enum SelectorFallback {
    To(Fallback),
    /// Another look-up with these keys only.
    Keys(Vec<Box<str>>),
}

/// The fields of a selector, which two messages share.
struct SelectorFields<'a> {
    keys: &'a [String],
    single_host: bool,
    fallback: i32,
    fallback_keys: &'a [String],
}

impl SubsetSettings {
    /// `None` if no subsets are made, which leaves one balancer for all.
    pub(crate) fn of_fields(value: &fields::LbSubsetConfig) -> Option<Self> {
        if value.subset_selectors.is_empty() {
            return None;
        }
        let selectors = value.subset_selectors.iter().map(|selector| SelectorFields {
            keys: &selector.keys,
            single_host: selector.single_host_per_subset,
            fallback: selector.fallback_policy,
            fallback_keys: &selector.fallback_keys_subset,
        });
        Some(Self {
            fallback: fallback(value.fallback_policy),
            default_subset: value.default_subset.as_ref().map(Criteria::of).unwrap_or_default(),
            selectors: selectors.map(Selector::new).collect(),
            locality_weight_aware: value.locality_weight_aware,
            scale_locality_weight: value.scale_locality_weight,
            panic_mode_any: value.panic_mode_any,
            list_as_any: value.list_as_any,
            fallback_list: value.metadata_fallback_policy == 1,
            allow_redundant_keys: false,
        })
    }

    pub(crate) fn of_typed(value: &typed::Subset) -> Self {
        let selectors = value.subset_selectors.iter().map(|selector| SelectorFields {
            keys: &selector.keys,
            single_host: selector.single_host_per_subset,
            fallback: selector.fallback_policy,
            fallback_keys: &selector.fallback_keys_subset,
        });
        Self {
            fallback: fallback(value.fallback_policy),
            default_subset: value.default_subset.as_ref().map(Criteria::of).unwrap_or_default(),
            selectors: selectors.map(Selector::new).collect(),
            locality_weight_aware: value.locality_weight_aware,
            scale_locality_weight: value.scale_locality_weight,
            panic_mode_any: value.panic_mode_any,
            list_as_any: value.list_as_any,
            fallback_list: value.metadata_fallback_policy == 1,
            allow_redundant_keys: value.allow_redundant_keys,
        }
    }
}

/// The numbers mean the same in both messages.
fn fallback(policy: i32) -> Fallback {
    match policy {
        1 => Fallback::Any,
        2 => Fallback::Default,
        _ => Fallback::None,
    }
}

impl Selector {
    fn new(value: SelectorFields<'_>) -> Self {
        let fallback = match SelectorPolicy::try_from(value.fallback) {
            Ok(SelectorPolicy::NoFallback) => Some(SelectorFallback::To(Fallback::None)),
            Ok(SelectorPolicy::AnyEndpoint) => Some(SelectorFallback::To(Fallback::Any)),
            Ok(SelectorPolicy::DefaultSubset) => Some(SelectorFallback::To(Fallback::Default)),
            Ok(SelectorPolicy::KeysSubset) => {
                Some(SelectorFallback::Keys(sorted(value.fallback_keys)))
            }
            Ok(SelectorPolicy::NotDefined) | Err(_) => None,
        };
        Self { keys: sorted(value.keys), single_host: value.single_host, fallback }
    }
}

fn sorted(keys: &[String]) -> Vec<Box<str>> {
    let mut keys: Vec<Box<str>> = keys.iter().map(|key| key.as_str().into()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}
