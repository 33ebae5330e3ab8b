//! Istio objects as the indexes hold them: identity, age and spec.

use std::sync::Arc;

use amime_api::meta::ObjectMeta;
use amime_core::NamespacedName;

/// One configuration object.
#[derive(Clone, Debug, PartialEq)]
pub struct Config<T> {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Creation time as written, an order key; empty sorts first.
    pub created: String,
    /// Labels and annotations.
    pub labels: crate::Labels,
    /// Annotations.
    pub annotations: crate::Labels,
    /// What it says.
    pub spec: T,
}

impl<T> Config<T> {
    /// Takes identity and age from `meta`.
    pub fn new(meta: &ObjectMeta, spec: T) -> Self {
        Self {
            name: NamespacedName::new(meta.namespace.clone(), meta.name.clone()),
            created: meta.creation_timestamp.clone().unwrap_or_default(),
            labels: meta.labels.clone(),
            annotations: meta.annotations.clone(),
            spec,
        }
    }

    /// Namespace it lives in.
    pub fn namespace(&self) -> &str {
        &self.name.namespace
    }

    /// Order in which conflicting objects are considered: the oldest first.
    pub fn age_key(&self) -> (&str, &str, &str) {
        (&self.created, &self.name.name, &self.name.namespace)
    }
}

/// Sorts by age, then name, then namespace.
pub(crate) fn sort_by_age<T>(configs: &mut [Arc<Config<T>>]) {
    configs.sort_by(|a, b| a.age_key().cmp(&b.age_key()));
}
