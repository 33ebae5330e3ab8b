//! Destination rules: merged by host, looked up by client and service.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use amime_api::networking::{DestinationRule, PortTrafficPolicy, TrafficPolicy};
use amime_core::{Hostname, NamespacedName};

use crate::config::Config;
use crate::names::resolve_host;
use crate::service::Service;

/// Rules of one namespace for one host, merged into one.
#[derive(Clone, Debug, PartialEq)]
pub struct MergedRule {
    /// The oldest rule, with what younger ones add.
    pub config: Config<DestinationRule>,
    /// Every rule that went into it.
    pub from: Vec<NamespacedName>,
    export_to: BTreeSet<String>,
}

impl MergedRule {
    /// The merged rule.
    pub fn spec(&self) -> &DestinationRule {
        &self.config.spec
    }
}

/// Rules of one namespace by host.
#[derive(Debug, Default)]
struct HostRules {
    exact: HashMap<Hostname, Vec<MergedRule>>,
    wildcard: HashMap<Hostname, Vec<MergedRule>>,
}

impl HostRules {
    fn most_specific(&self, hostname: &Hostname) -> Option<&Vec<MergedRule>> {
        if !hostname.is_wildcard()
            && let Some(rules) = self.exact.get(hostname)
        {
            return Some(rules);
        }
        let covering = self.wildcard.iter().filter(|(host, _)| hostname.subset_of(host));
        covering.min_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, rules)| rules)
    }

    fn merge(&mut self, config: &Config<DestinationRule>, export_to: &BTreeSet<String>) {
        let host = Hostname::new(config.spec.host.as_str());
        let map = if host.is_wildcard() { &mut self.wildcard } else { &mut self.exact };
        let rules = map.entry(host).or_default();
        let mut separate = true;
        for existing in rules.iter_mut() {
            if export_to == &existing.export_to {
                separate = false;
            } else if existing.export_to.is_empty() || !export_to.is_superset(&existing.export_to) {
                separate = true;
                continue;
            } else {
                // A wider audience: these clients see both, the others only the new one.
                separate = true;
            }
            match (&config.spec.workload_selector, &existing.config.spec.workload_selector) {
                (Some(new), Some(old)) if new.match_labels != old.match_labels => {
                    separate = true;
                    continue;
                }
                (Some(_), Some(_)) | (None, None) => separate = false,
                _ => {}
            }
            existing.absorb(config);
        }
        if separate {
            rules.push(MergedRule {
                config: config.clone(),
                from: vec![config.name.clone()],
                export_to: export_to.clone(),
            });
        }
    }
}

impl MergedRule {
    fn absorb(&mut self, younger: &Config<DestinationRule>) {
        self.from.push(younger.name.clone());
        for subset in &younger.spec.subsets {
            if self.config.spec.subsets.iter().all(|own| own.name != subset.name) {
                self.config.spec.subsets.push(subset.clone());
            }
        }
        if self.config.spec.traffic_policy.is_none() {
            self.config.spec.traffic_policy.clone_from(&younger.spec.traffic_policy);
        }
    }
}

/// All destination rules by the three places where they are looked for.
#[derive(Debug, Default)]
pub struct DestinationRuleIndex {
    local: BTreeMap<String, HostRules>,
    exported: BTreeMap<String, HostRules>,
    root_local: HostRules,
    root_namespace: String,
}

impl DestinationRuleIndex {
    pub(crate) fn build(
        mut configs: Vec<Arc<Config<DestinationRule>>>,
        root_namespace: &str,
        default_export_to: &[String],
    ) -> Self {
        configs.sort_by(|a, b| {
            let key = |c: &Config<DestinationRule>| c.spec.workload_selector.is_none();
            key(a).cmp(&key(b)).then_with(|| a.age_key().cmp(&b.age_key()))
        });
        let default_private = default_export_to.iter().any(|entry| entry == ".");
        let mut index = Self { root_namespace: root_namespace.to_owned(), ..Self::default() };
        for config in &configs {
            let mut config = Config::clone(config);
            config.spec.host = resolve_host(&config.spec.host, config.namespace());
            index.insert(&config, default_private);
        }
        index
    }

    fn insert(&mut self, config: &Config<DestinationRule>, default_private: bool) {
        let namespace = config.namespace();
        let export_to: BTreeSet<String> = match config.spec.workload_selector {
            // A rule for some clients is never anybody else's.
            Some(_) => BTreeSet::from([".".to_owned()]),
            None => config.spec.export_to.iter().cloned().collect(),
        };
        let names_itself = ["*", ".", namespace].iter().any(|entry| export_to.contains(*entry));
        if export_to.is_empty() || names_itself {
            self.local.entry(namespace.to_owned()).or_default().merge(config, &export_to);
        }
        let private = match export_to.len() {
            0 => default_private,
            1 => export_to.contains(".") || export_to.contains(namespace),
            _ => false,
        };
        if !private {
            self.exported.entry(namespace.to_owned()).or_default().merge(config, &export_to);
        } else if namespace == self.root_namespace {
            self.root_local.merge(config, &export_to);
        }
    }

    /// Rules for `service` as clients in `namespace` see them: those of the
    /// client's namespace, else of the service's, else of the root namespace;
    /// the first level that says anything wins.
    pub fn for_service(&self, namespace: &str, service: &Service) -> Vec<&MergedRule> {
        let own = if namespace == self.root_namespace {
            Some(&self.root_local)
        } else {
            self.local.get(namespace)
        };
        if let Some(rules) = own.and_then(|rules| rules.most_specific(&service.hostname)) {
            return rules.iter().collect();
        }
        for owner in [&service.namespace, &self.root_namespace] {
            let rules = self.exported_by(owner, &service.hostname, namespace);
            if !rules.is_empty() {
                return rules;
            }
        }
        Vec::new()
    }

    fn exported_by(&self, owner: &str, hostname: &Hostname, client: &str) -> Vec<&MergedRule> {
        let rules = self.exported.get(owner).and_then(|rules| rules.most_specific(hostname));
        let visible = |rule: &&MergedRule| {
            let to = &rule.export_to;
            to.is_empty() || to.contains("*") || to.contains(client)
        };
        rules.into_iter().flatten().filter(visible).collect()
    }
}

/// The policy for one port, and whether it is the port's own: port settings
/// replace the whole policy, they do not overlay it.
pub fn port_policy(policy: &TrafficPolicy, port: u32) -> (TrafficPolicy, bool) {
    let is_for = |setting: &&PortTrafficPolicy| {
        setting.port.as_ref().is_some_and(|selector| selector.number == port)
    };
    match policy.port_level_settings.iter().find(is_for) {
        Some(setting) => (from_port_setting(setting), true),
        None => (policy.clone(), false),
    }
}

fn from_port_setting(setting: &PortTrafficPolicy) -> TrafficPolicy {
    TrafficPolicy {
        load_balancer: setting.load_balancer.clone(),
        connection_pool: setting.connection_pool.clone(),
        outlier_detection: setting.outlier_detection.clone(),
        tls: setting.tls.clone(),
        ..TrafficPolicy::default()
    }
}

/// The policy of a subset: its fields over those of the whole rule, except that
/// port settings of the subset replace them all.
pub fn subset_policy(
    rule: Option<&TrafficPolicy>,
    subset: Option<&TrafficPolicy>,
    port: u32,
) -> Option<TrafficPolicy> {
    let whole = rule.map(|policy| port_policy(policy, port).0);
    let Some(subset) = subset else { return whole };
    let (own, replaces) = port_policy(subset, port);
    let Some(mut merged) = whole else { return Some(own) };
    merged.port_level_settings.clear();
    if own.connection_pool.is_some() || replaces {
        merged.connection_pool = own.connection_pool;
    }
    if own.outlier_detection.is_some() || replaces {
        merged.outlier_detection = own.outlier_detection;
    }
    if own.load_balancer.is_some() || replaces {
        merged.load_balancer = own.load_balancer;
    }
    if own.tls.is_some() || replaces {
        merged.tls = own.tls;
    }
    merged.tunnel = own.tunnel.or(merged.tunnel);
    merged.proxy_protocol = own.proxy_protocol.or(merged.proxy_protocol);
    merged.retry_budget = own.retry_budget.or(merged.retry_budget);
    Some(merged)
}
