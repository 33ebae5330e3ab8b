//! Metadata and selectors shared by all kinds.

use std::collections::BTreeMap;

use serde_json::Value;

/// Label or annotation map.
pub type StringMap = BTreeMap<String, String>;

messages! {
    /// Metadata of an object, as in Kubernetes.
    pub struct ObjectMeta {
        /// Name, unique per kind and namespace.
        pub name: String,
        /// Prefix of a generated name.
        pub generate_name: Option<String>,
        /// Namespace; empty for cluster-wide kinds and until a default is applied.
        pub namespace: String,
        /// Labels that selectors match.
        pub labels: StringMap,
        /// Free-form annotations.
        pub annotations: StringMap,
        /// Unique id given by the store.
        pub uid: Option<String>,
        /// Version given by the store, changed by each write.
        pub resource_version: Option<String>,
        /// Count of spec changes.
        pub generation: Option<i64>,
        /// RFC 3339 time of creation; the older of two conflicting objects wins.
        pub creation_timestamp: Option<String>,
        /// RFC 3339 time from which the object is going away.
        pub deletion_timestamp: Option<String>,
        /// Seconds between deletion and removal.
        pub deletion_grace_period_seconds: Option<i64>,
        /// Objects that own this one.
        pub owner_references: Vec<OwnerReference>,
        /// Who must act before removal.
        pub finalizers: Vec<String>,
        /// Field ownership, carried but never read.
        pub managed_fields: Vec<Value>,
        /// Long deprecated link, accepted from old exports.
        pub self_link: Option<String>,
        /// Long deprecated cluster, accepted from old exports.
        pub cluster_name: Option<String>,
    }

    /// Reference to an owner in the same namespace.
    pub struct OwnerReference {
        /// API version of the owner.
        pub api_version: String,
        /// Kind of the owner.
        pub kind: String,
        /// Name of the owner.
        pub name: String,
        /// Unique id of the owner.
        pub uid: String,
        /// True for the one owner that manages the object.
        pub controller: Option<bool>,
        /// True if the owner waits for this object's removal.
        pub block_owner_deletion: Option<bool>,
    }

    /// Kubernetes label selector; empty selects everything.
    pub struct LabelSelector {
        /// Labels that must be equal.
        pub match_labels: StringMap,
        /// Further requirements, all of which must hold.
        pub match_expressions: Vec<LabelSelectorRequirement>,
    }

    /// One requirement of a [`LabelSelector`].
    pub struct LabelSelectorRequirement {
        /// Label key.
        pub key: String,
        /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
        pub operator: SelectorOperator,
        /// Values for `In` and `NotIn`.
        pub values: Vec<String>,
    }

    /// Selector of the security and telemetry kinds; empty selects every workload in scope.
    pub struct WorkloadSelector {
        /// Labels that must be equal.
        pub match_labels: StringMap,
    }

    /// Attachment of a policy to an object in its own namespace.
    pub struct PolicyTargetReference {
        /// API group; empty for core kinds.
        pub group: String,
        /// Kind, such as `Gateway` or `Service`.
        pub kind: String,
        /// Name.
        pub name: String,
        /// Not supported by Istio; must be empty.
        pub namespace: String,
    }
}

/// Comparison of a [`LabelSelectorRequirement`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum SelectorOperator {
    /// The value is one of the list.
    #[default]
    In,
    /// The value is none of the list, or the label is missing.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is missing.
    DoesNotExist,
}

/// True if `labels` holds every pair of `wanted`; an empty `wanted` selects everything.
pub fn selects(wanted: &StringMap, labels: &StringMap) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

impl LabelSelector {
    /// True if both the equalities and the requirements hold for `labels`.
    pub fn selects(&self, labels: &StringMap) -> bool {
        selects(&self.match_labels, labels)
            && self.match_expressions.iter().all(|requirement| requirement.holds(labels))
    }
}

impl LabelSelectorRequirement {
    fn holds(&self, labels: &StringMap) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            SelectorOperator::In => value.is_some_and(|v| self.values.contains(v)),
            SelectorOperator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            SelectorOperator::Exists => value.is_some(),
            SelectorOperator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_narrow_the_equalities() {
        let labels = StringMap::from([("app".into(), "a".into()), ("v".into(), "1".into())]);
        let requirement = |key: &str, operator, values: &[&str]| LabelSelectorRequirement {
            key: key.into(),
            operator,
            values: values.iter().map(|&v| v.into()).collect(),
        };
        let selector = |requirement| LabelSelector {
            match_labels: StringMap::from([("app".into(), "a".into())]),
            match_expressions: vec![requirement],
        };
        assert!(selector(requirement("v", SelectorOperator::In, &["1", "2"])).selects(&labels));
        assert!(!selector(requirement("v", SelectorOperator::NotIn, &["1"])).selects(&labels));
        assert!(selector(requirement("x", SelectorOperator::NotIn, &["1"])).selects(&labels));
        assert!(!selector(requirement("x", SelectorOperator::Exists, &[])).selects(&labels));
        assert!(selector(requirement("x", SelectorOperator::DoesNotExist, &[])).selects(&labels));
    }
}
