//! Envoy filters: which hold for a workload, and in which order.

use std::collections::BTreeMap;
use std::sync::Arc;

use amime_api::meta::PolicyTargetReference;
use amime_api::networking::EnvoyFilter;

use crate::config::Config;
use crate::service::{Labels, selects};

/// Label of the workloads that a Gateway of the Gateway API stands for.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// All envoy filters, by namespace.
#[derive(Debug, Default)]
pub struct EnvoyFilterIndex {
    by_namespace: BTreeMap<String, Vec<Arc<Config<EnvoyFilter>>>>,
    root_namespace: String,
}

impl EnvoyFilterIndex {
    pub(crate) fn build(configs: Vec<Arc<Config<EnvoyFilter>>>, root_namespace: &str) -> Self {
        let mut index = Self { root_namespace: root_namespace.to_owned(), ..Self::default() };
        for config in configs {
            index.by_namespace.entry(config.namespace().to_owned()).or_default().push(config);
        }
        index
    }

    /// Filters for a workload in the order in which they are applied: by
    /// priority, those of the root namespace first, then by age.
    pub fn for_workload(&self, namespace: &str, labels: &Labels) -> Vec<&Arc<Config<EnvoyFilter>>> {
        let root = self.root_namespace.as_str();
        let own = (namespace != root).then_some(namespace);
        let namespaces = std::iter::once(root).chain(own);
        let all = namespaces.filter_map(|ns| self.by_namespace.get(ns)).flatten();
        let mut filters: Vec<_> = all.filter(|config| is_for(config, namespace, labels)).collect();
        filters.sort_by(|a, b| {
            let key = |c: &Config<EnvoyFilter>| (c.spec.priority, c.namespace() != root);
            key(a).cmp(&key(b)).then_with(|| a.age_key().cmp(&b.age_key()))
        });
        filters
    }
}

fn is_for(config: &Config<EnvoyFilter>, namespace: &str, labels: &Labels) -> bool {
    let spec = &config.spec;
    if spec.target_refs.is_empty() {
        let selector = spec.workload_selector.as_ref();
        return selector.is_none_or(|selector| selects(&selector.labels, labels));
    }
    // Only gateways of the Gateway API have objects that can be referred to.
    let Some(gateway) = labels.get(GATEWAY_NAME) else { return false };
    let is_it =
        |target: &PolicyTargetReference| target.kind == "Gateway" && target.name == *gateway;
    config.namespace() == namespace && spec.target_refs.iter().any(is_it)
}
