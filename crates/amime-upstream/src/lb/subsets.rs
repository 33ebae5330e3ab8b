//! Subsets of a cluster's endpoints, told apart by metadata.

use std::collections::HashMap;

use amime_config::lb_subset::{Fallback, SelectorFallback, SubsetSettings};
use amime_rules::criteria::{Criteria, Criterion, MetadataMatch, hash_of};
use amime_telemetry::ClusterStats;
use envoy_types::pb::google::protobuf as wkt;
use wkt::value::Kind;

use super::balancer::Balancer;
use super::host_set::Members;

/// All subsets of a cluster.
#[derive(Debug)]
pub(super) struct Subsets {
    /// Positions in `list` by the hash of the criteria.
    by_hash: HashMap<u64, Vec<usize>>,
    list: Vec<Subset>,
    any: Option<Balancer>,
    default: Option<Balancer>,
}

#[derive(Debug)]
struct Subset {
    criteria: Criteria,
    target: Target,
}

/// Where a subset's requests go.
#[derive(Debug)]
enum Target {
    Balancer(Balancer),
    /// The one endpoint, whatever its health.
    Host(u32),
}

/// Endpoints of a subset that is being gathered.
struct Gathered {
    criteria: Criteria,
    single: bool,
    hosts: Vec<u32>,
}

/// The criteria of a request, perhaps reduced to some keys.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    criteria: &'a Criteria,
    keys: Option<&'a [Box<str>]>,
}

/// A look-up on behalf of one request.
pub(super) struct LookUp<'a, F> {
    pub(super) settings: &'a SubsetSettings,
    pub(super) subsets: &'a Subsets,
    pub(super) stats: &'a ClusterStats,
    /// Picks an endpoint of a balancer.
    pub(super) pick: F,
}

impl Subsets {
    pub(super) fn new(members: &Members<'_>, settings: &SubsetSettings) -> Self {
        let to = |fallback: &Option<SelectorFallback>, wanted: Fallback| matches!(fallback, Some(SelectorFallback::To(to)) if *to == wanted);
        let uses = |wanted: Fallback| {
            settings.fallback == wanted
                || settings.selectors.iter().any(|selector| to(&selector.fallback, wanted))
        };
        let all = || 0..u32::try_from(members.endpoints.len()).unwrap_or(u32::MAX);
        let of = |hosts: Vec<u32>| Balancer::subset(members, settings, &hosts);
        let is_default = |host: &u32| {
            let lb = members.endpoints[*host as usize].lb.as_deref();
            settings.default_subset.met_by(lb, settings.list_as_any)
        };
        let mut subsets = Self {
            by_hash: HashMap::new(),
            list: Vec::new(),
            any: (uses(Fallback::Any) || settings.panic_mode_any).then(|| of(all().collect())),
            default: uses(Fallback::Default).then(|| of(all().filter(is_default).collect())),
        };
        for Gathered { criteria, single, hosts } in gather(members, settings) {
            let hash = hash_of(criteria.entries().iter());
            let target = if single { Target::Host(hosts[0]) } else { Target::Balancer(of(hosts)) };
            subsets.by_hash.entry(hash).or_default().push(subsets.list.len());
            subsets.list.push(Subset { criteria, target });
        }
        subsets
    }

    fn find(&self, wanted: Wanted<'_>) -> Option<&Target> {
        let candidates = self.by_hash.get(&hash_of(wanted.entries()))?;
        let same = |at: &&usize| wanted.entries().eq(self.list[**at].criteria.entries());
        candidates.iter().find(same).map(|at| &self.list[*at].target)
    }

    fn fallback(&self, fallback: Fallback) -> Option<&Balancer> {
        match fallback {
            Fallback::None => None,
            Fallback::Any => self.any.as_ref(),
            Fallback::Default => self.default.as_ref(),
        }
    }
}

/// Sorts all endpoints into subsets, by every selector.
fn gather(members: &Members<'_>, settings: &SubsetSettings) -> Vec<Gathered> {
    let mut found: Vec<Gathered> = Vec::new();
    let mut by_hash: HashMap<u64, Vec<usize>> = HashMap::new();
    for (host, endpoint) in (0..).zip(&members.endpoints) {
        let Some(metadata) = endpoint.lb.as_deref() else { continue };
        for selector in &settings.selectors {
            for criteria in values_of(metadata, &selector.keys, settings.list_as_any) {
                let same = by_hash.entry(hash_of(criteria.entries().iter())).or_default();
                match same.iter().find(|at| found[**at].criteria == criteria) {
                    Some(at) => found[*at].hosts.push(host),
                    None => {
                        same.push(found.len());
                        let single = selector.single_host;
                        found.push(Gathered { criteria, single, hosts: vec![host] });
                    }
                }
            }
        }
    }
    // Two selectors of the same keys give the same endpoints twice.
    found.iter_mut().for_each(|one| one.hosts.dedup());
    found
}

/// The criteria that an endpoint meets by its values of `keys`: none if it
/// lacks a key, several if lists stand for each of their values.
fn values_of(metadata: &wkt::Struct, keys: &[Box<str>], list_as_any: bool) -> Vec<Criteria> {
    let mut all: Vec<Vec<(&str, wkt::Value)>> = vec![Vec::new()];
    for key in keys {
        let Some(value) = metadata.fields.get(&**key) else { return Vec::new() };
        let values = match &value.kind {
            Some(Kind::ListValue(list)) if list_as_any => list.values.as_slice(),
            _ => std::slice::from_ref(value),
        };
        let mut extended = Vec::with_capacity(all.len() * values.len());
        for have in &all {
            for value in values {
                let mut have = have.clone();
                have.push((&**key, value.clone()));
                extended.push(have);
            }
        }
        all = extended;
    }
    let meets = all.into_iter().filter(|pairs| !pairs.is_empty());
    meets.map(Criteria::from_pairs).collect()
}

impl<'a> Wanted<'a> {
    fn entries(self) -> impl Iterator<Item = &'a Criterion> {
        self.criteria.only(self.keys)
    }

    /// True if these are the keys; both are sorted.
    fn has_keys(self, keys: &[Box<str>]) -> bool {
        self.entries().map(|entry| &entry.key).eq(keys)
    }

    /// True if all of `keys` are among these.
    fn covers(self, keys: &[Box<str>]) -> bool {
        let mut entries = self.entries();
        keys.iter().all(|key| entries.any(|entry| entry.key == *key))
    }
}

impl<F: Fn(&Balancer) -> Option<u32>> LookUp<'_, F> {
    /// The endpoint for a request with these criteria.
    pub(super) fn run<'w>(&'w self, wanted: Option<&'w MetadataMatch>) -> Option<u32> {
        let Some(wanted) = wanted else { return self.fall_back() };
        let once = |criteria| self.once(Wanted { criteria, keys: None });
        match wanted.alternatives.as_deref().filter(|_| self.settings.fallback_list) {
            None => once(&wanted.all),
            Some([]) => once(&wanted.base),
            Some(list) => list.iter().find_map(once),
        }
    }

    fn once<'w>(&'w self, mut wanted: Wanted<'w>) -> Option<u32> {
        let selectors = &self.settings.selectors;
        if self.settings.allow_redundant_keys
            && let Some(first) = selectors.iter().find(|selector| wanted.covers(&selector.keys))
        {
            wanted.keys = Some(&first.keys);
        }
        if let Some(target) = self.subsets.find(wanted) {
            self.stats.lb_subsets_selected.inc();
            return match target {
                Target::Balancer(balancer) => (self.pick)(balancer),
                Target::Host(host) => Some(*host),
            };
        }
        let at = selectors.iter().position(|selector| wanted.has_keys(&selector.keys));
        // As in Envoy, an earlier selector that begins with the same keys
        // hides what this one says of fallbacks.
        let hidden = |at: &usize| {
            let keys = &selectors[*at].keys;
            selectors[..*at].iter().any(|earlier| earlier.keys.starts_with(keys))
        };
        let selector = at.filter(|at| !hidden(at)).map(|at| &selectors[at]);
        match selector.and_then(|selector| Some((selector, selector.fallback.as_ref()?))) {
            None => self.fall_back(),
            Some((_, SelectorFallback::To(to))) => (self.pick)(self.subsets.fallback(*to)?),
            // The keys are fewer than the selector's, so that this ends.
            Some((selector, SelectorFallback::Keys(keys))) if keys.len() < selector.keys.len() => {
                self.once(Wanted { keys: Some(keys), ..wanted })
            }
            Some((_, SelectorFallback::Keys(_))) => None,
        }
    }

    /// What the whole cluster says about requests without a subset.
    fn fall_back(&self) -> Option<u32> {
        let balancer = self.subsets.fallback(self.settings.fallback)?;
        if let Some(host) = (self.pick)(balancer) {
            self.stats.lb_subsets_fallback.inc();
            return Some(host);
        }
        let any = self.subsets.any.as_ref().filter(|_| self.settings.panic_mode_any)?;
        let host = (self.pick)(any)?;
        self.stats.lb_subsets_fallback_panic.inc();
        Some(host)
    }
}
