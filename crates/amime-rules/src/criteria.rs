//! Metadata that endpoints must have: what routes ask of subsets, and what
//! subsets are told apart by.
//!
//! Invariant: criteria are sorted by key, so that two sets of the same
//! entries are equal, and carry hashes made when they were compiled, so that
//! looking one up hashes nothing.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf as wkt;
use wkt::value::Kind;

/// The metadata namespace of load balancing.
pub const NAMESPACE: &str = "envoy.lb";

/// Key under which routes list alternatives of their criteria.
const FALLBACK_LIST: &str = "fallback_list";

/// One key and the value that it must have.
#[derive(Clone, Debug, PartialEq)]
pub struct Criterion {
    pub key: Box<str>,
    pub value: wkt::Value,
    hash: u64,
}

/// Keys and values, sorted by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Criteria(Vec<Criterion>);

/// What a route asks of the endpoints that may take its requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetadataMatch {
    /// All entries, as the route has them.
    pub all: Criteria,
    /// The entries without the list of alternatives.
    pub base: Criteria,
    /// The entries with each of the listed alternatives over them.
    pub alternatives: Option<Vec<Criteria>>,
}

impl Criterion {
    fn new(key: &str, value: wkt::Value) -> Self {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        hash_value(&value, &mut hasher);
        Self { key: key.into(), value, hash: hasher.finish() }
    }
}

/// Feeds `value` to `hasher`; the order of a struct's fields is no part of it.
fn hash_value(value: &wkt::Value, hasher: &mut DefaultHasher) {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => 0_u8.hash(hasher),
        // Both zeros are equal, so they must hash alike.
        Some(Kind::NumberValue(number)) => (*number + 0.0).to_bits().hash(hasher),
        Some(Kind::StringValue(text)) => text.hash(hasher),
        Some(Kind::BoolValue(on)) => on.hash(hasher),
        Some(Kind::ListValue(list)) => {
            list.values.iter().for_each(|value| hash_value(value, hasher));
        }
        Some(Kind::StructValue(fields)) => {
            let hash = |(key, value): (&String, &wkt::Value)| {
                let mut inner = DefaultHasher::new();
                key.hash(&mut inner);
                hash_value(value, &mut inner);
                inner.finish()
            };
            fields.fields.iter().map(hash).fold(0_u64, u64::wrapping_add).hash(hasher);
        }
    }
}

impl Criteria {
    /// Criteria of a struct's fields.
    pub fn of(fields: &wkt::Struct) -> Self {
        Self::from_pairs(fields.fields.iter().map(|(key, value)| (key.as_str(), value.clone())))
    }

    /// Criteria of keys and values in any order.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, wkt::Value)>) -> Self {
        let sorted: BTreeMap<&str, wkt::Value> = pairs.into_iter().collect();
        Self(sorted.into_iter().map(|(key, value)| Criterion::new(key, value)).collect())
    }

    /// These entries, those of `over` taking their places.
    pub fn merged(&self, over: &Self) -> Self {
        let pairs = self.0.iter().chain(&over.0);
        Self::from_pairs(pairs.map(|entry| (&*entry.key, entry.value.clone())))
    }

    pub fn entries(&self) -> &[Criterion] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries whose keys are in `keys`; all for `None`.
    pub fn only<'a>(&'a self, keys: Option<&'a [Box<str>]>) -> impl Iterator<Item = &'a Criterion> {
        let wanted = move |entry: &&Criterion| keys.is_none_or(|keys| keys.contains(&entry.key));
        self.0.iter().filter(wanted)
    }

    /// True if `metadata` has every entry. With `list_as_any` a list of
    /// values is as good as any one of them.
    pub fn met_by(&self, metadata: Option<&wkt::Struct>, list_as_any: bool) -> bool {
        self.0.iter().all(|entry| {
            let have = metadata.and_then(|metadata| metadata.fields.get(&*entry.key));
            have.is_some_and(|have| match &have.kind {
                Some(Kind::ListValue(list)) if list_as_any => list.values.contains(&entry.value),
                _ => *have == entry.value,
            })
        })
    }
}

/// A hash of entries, whatever their order.
pub fn hash_of<'a>(entries: impl Iterator<Item = &'a Criterion>) -> u64 {
    entries.fold(0, |sum, entry| sum.wrapping_add(entry.hash))
}

impl MetadataMatch {
    /// The criteria of `own` over those of `parent`.
    pub fn over(parent: Option<&Self>, own: &wkt::Struct) -> Self {
        let own = Criteria::of(own);
        let all = parent.map_or_else(|| own.clone(), |parent| parent.all.merged(&own));
        Self::of(all)
    }

    /// The criteria that `metadata` holds for load balancing, over those of
    /// `parent`; `None` if neither has any.
    pub fn compile(metadata: Option<&core::Metadata>, parent: Option<&Self>) -> Option<Self> {
        let own = metadata.and_then(|metadata| metadata.filter_metadata.get(NAMESPACE));
        let all = match (own, parent) {
            (None, None) => return None,
            (None, Some(parent)) => return Some(parent.clone()),
            (Some(own), None) => Criteria::of(own),
            (Some(own), Some(parent)) => parent.all.merged(&Criteria::of(own)),
        };
        Some(Self::of(all))
    }

    fn of(all: Criteria) -> Self {
        let others = all.0.iter().filter(|entry| &*entry.key != FALLBACK_LIST);
        let base = Criteria(others.cloned().collect());
        let list = all.0.iter().find(|entry| &*entry.key == FALLBACK_LIST);
        let alternatives = list.and_then(|entry| match &entry.value.kind {
            Some(Kind::ListValue(list)) => Some(&list.values),
            _ => None,
        });
        let alternatives = alternatives.map(|list| {
            let structs = list.iter().filter_map(|value| match &value.kind {
                Some(Kind::StructValue(fields)) => Some(fields),
                _ => None,
            });
            structs.map(|fields| base.merged(&Criteria::of(fields))).collect()
        });
        Self { all, base, alternatives }
    }
}
