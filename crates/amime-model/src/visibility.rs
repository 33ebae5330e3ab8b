//! How far the mesh lets service entries be seen, whatever they say.

use std::collections::BTreeMap;

use amime_api::mesh::{MeshConfig, ServiceEntryVisibility, ServiceEntryVisibilityRule, Visibility};

use crate::service::{ExportTo, Labels, Registry, Service};

const EVERYWHERE: &str = "*";
const OWN_NAMESPACE: &str = ".";
const NOWHERE: &str = "~";

/// Narrows what service entries export to what the mesh allows for their
/// namespaces, by the labels of those.
pub(crate) fn narrow(services: &mut [Service], mesh: &MeshConfig, labels: &dyn Fn(&str) -> Labels) {
    let allowed = mesh.service_entry_visibility.as_ref();
    let Some(allowed) = allowed.filter(|allowed| allowed.apply_to_sidecars) else { return };
    let mut limits: BTreeMap<String, Visibility> = BTreeMap::new();
    for service in services.iter_mut().filter(|service| service.registry == Registry::External) {
        let limit = limits
            .entry(service.namespace.clone())
            .or_insert_with(|| limit(allowed, &labels(&service.namespace)));
        let written = match service.export_to.is_empty() {
            true => mesh.default_service_export_to.iter().cloned().collect(),
            false => service.export_to.clone(),
        };
        let seen_at_home = written.is_empty()
            || [EVERYWHERE, OWN_NAMESPACE, &service.namespace]
                .iter()
                .any(|at| written.contains(*at));
        let narrowed = match limit {
            Visibility::Unspecified | Visibility::Public => continue,
            Visibility::Namespace if seen_at_home => OWN_NAMESPACE,
            Visibility::Namespace | Visibility::None => NOWHERE,
        };
        service.export_to = ExportTo::from([narrowed.to_owned()]);
    }
}

/// What the first policy says that matches in all its rules.
fn limit(allowed: &ServiceEntryVisibility, labels: &Labels) -> Visibility {
    let matches = |rule: &ServiceEntryVisibilityRule| {
        rule.namespace_selector.as_ref().is_some_and(|selector| selector.selects(labels))
    };
    let policy = allowed.policies.iter().find(|policy| policy.matching_rules.iter().all(matches));
    policy.map_or(allowed.default_visibility, |policy| policy.visibility)
}
