//! Peer authentication: which mutual TLS mode holds where.

use std::collections::BTreeMap;
use std::sync::Arc;

use amime_api::security::{MutualTls, MutualTlsMode, PeerAuthentication};

use crate::config::{Config, sort_by_age};
use crate::service::{Labels, selects};

/// Mode that a workload port ends up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtlsMode {
    /// Plaintext only.
    Disable,
    /// Both.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

fn mode_of(mtls: Option<&MutualTls>) -> Option<MtlsMode> {
    match mtls?.mode {
        MutualTlsMode::Unset => None,
        MutualTlsMode::Disable => Some(MtlsMode::Disable),
        MutualTlsMode::Permissive => Some(MtlsMode::Permissive),
        MutualTlsMode::Strict => Some(MtlsMode::Strict),
    }
}

/// The effective policy of one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPolicy {
    /// Mode of ports without a setting of their own.
    pub mode: MtlsMode,
    /// Mode by port of the workload.
    pub ports: BTreeMap<u32, MtlsMode>,
}

impl PeerPolicy {
    /// Mode of `port`.
    pub fn mode_for(&self, port: u32) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }
}

/// Peer authentication policies by namespace.
#[derive(Debug, Default)]
pub struct PeerAuthnIndex {
    by_namespace: BTreeMap<String, Vec<Arc<Config<PeerAuthentication>>>>,
    namespace_modes: BTreeMap<String, MtlsMode>,
    mesh_mode: Option<MtlsMode>,
    root_namespace: String,
}

fn is_namespace_wide(policy: &PeerAuthentication) -> bool {
    policy.selector.as_ref().is_none_or(|selector| selector.match_labels.is_empty())
}

impl PeerAuthnIndex {
    pub(crate) fn build(
        mut configs: Vec<Arc<Config<PeerAuthentication>>>,
        root_namespace: &str,
    ) -> Self {
        sort_by_age(&mut configs);
        let mut index = Self { root_namespace: root_namespace.to_owned(), ..Self::default() };
        let mut namespace_wide = BTreeMap::new();
        for config in configs {
            let namespace = config.namespace().to_owned();
            if is_namespace_wide(&config.spec) {
                // One policy a namespace; the oldest stands.
                if namespace_wide.contains_key(&namespace) {
                    continue;
                }
                namespace_wide.insert(namespace.clone(), mode_of(config.spec.mtls.as_ref()));
            }
            index.by_namespace.entry(namespace).or_default().push(config);
        }
        if let Some(mode) = namespace_wide.remove(root_namespace) {
            index.mesh_mode = Some(mode.unwrap_or(MtlsMode::Permissive));
        }
        let inherited = index.mesh_mode.unwrap_or(MtlsMode::Permissive);
        index.namespace_modes =
            namespace_wide.into_iter().map(|(ns, mode)| (ns, mode.unwrap_or(inherited))).collect();
        index
    }

    /// Mode that clients assume for services of a namespace; workload and port
    /// policies are not known to them.
    pub fn namespace_mode(&self, namespace: &str) -> Option<MtlsMode> {
        self.namespace_modes.get(namespace).copied().or(self.mesh_mode)
    }

    /// The effective policy of a workload: the narrowest scope that says
    /// anything, the oldest policy within a scope.
    pub fn for_workload(&self, namespace: &str, labels: &Labels) -> PeerPolicy {
        let root = self.root_namespace.as_str();
        let policies = |ns: &str| self.by_namespace.get(ns).into_iter().flatten();
        let wide = |ns: &str| policies(ns).find(|config| is_namespace_wide(&config.spec));
        let mut mode = wide(root)
            .and_then(|config| mode_of(config.spec.mtls.as_ref()))
            .unwrap_or(MtlsMode::Permissive);
        if namespace != root
            && let Some(own) = wide(namespace).and_then(|c| mode_of(c.spec.mtls.as_ref()))
        {
            mode = own;
        }
        // A selector in the root namespace has no meaning for mutual TLS.
        let selected = policies(namespace).filter(|_| namespace != root).find(|config| {
            let selector = config.spec.selector.as_ref();
            selector.is_some_and(|s| !s.match_labels.is_empty() && selects(&s.match_labels, labels))
        });
        let Some(config) = selected else { return PeerPolicy { mode, ports: BTreeMap::new() } };
        if let Some(own) = mode_of(config.spec.mtls.as_ref()) {
            mode = own;
        }
        let port = |(port, mtls): (&u32, &MutualTls)| (*port, mode_of(Some(mtls)).unwrap_or(mode));
        PeerPolicy { mode, ports: config.spec.port_level_mtls.iter().map(port).collect() }
    }
}
