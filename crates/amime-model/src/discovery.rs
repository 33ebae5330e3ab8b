//! Namespaces that the mesh takes notice of (`discoverySelectors`).
//!
//! Invariant: where nothing selects, nothing is left out and nothing is copied.

use std::collections::BTreeSet;

use amime_api::Kind;
use amime_api::mesh::MeshConfig;

use crate::endpoints::{Resources, of_kind};
use crate::service::Labels;

/// The label that every namespace has, as Kubernetes sees to it.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// What is left of `resources` if the mesh selects namespaces: objects of
/// those, and of none.
pub(crate) fn select(resources: &Resources, mesh: &MeshConfig) -> Option<Resources> {
    let selectors = &mesh.discovery_selectors;
    if selectors.is_empty() {
        return None;
    }
    let labels = |name: &str, own: &Labels| {
        let mut labels = own.clone();
        labels.entry(NAME_LABEL.to_owned()).or_insert_with(|| name.to_owned());
        labels
    };
    let namespaces = of_kind(resources, Kind::Namespace).map(|namespace| namespace.metadata());
    let selected: BTreeSet<&str> = namespaces
        .filter(|namespace| {
            let labels = labels(&namespace.name, &namespace.labels);
            selectors.iter().any(|selector| selector.selects(&labels))
        })
        .map(|namespace| namespace.name.as_str())
        .collect();
    let kept = resources
        .iter()
        .filter(|(key, _)| key.namespace.is_empty() || selected.contains(key.namespace.as_str()));
    Some(kept.map(|(key, resource)| (key.clone(), resource.clone())).collect())
}
