//! What discovery hands out goes to the runtime and to the DNS proxy.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use amime_engine::runtime::Runtime;
use amime_telemetry::Telemetry;
use amime_xds::client::{Handler, Rejection, Subscription, Update};
use amime_xds::istio::nds::NameTable;
use amime_xds::{Resource, TypeUrl};
use tokio::sync::Notify;

use super::ready::Readiness;
use crate::dns::DnsProxy;

/// Applies updates of one discovery stream; copies apply to the same proxy.
#[derive(Clone)]
pub(crate) struct DiscoveryHandler {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) ready: Arc<Readiness>,
    pub(crate) dns: Option<Arc<DnsProxy>>,
    /// The name table in force, to be kept with the last good configuration.
    pub(crate) names: Arc<Mutex<Option<Resource>>>,
    /// Told after each accepted change.
    pub(crate) changed: Arc<Notify>,
}

impl DiscoveryHandler {
    fn apply_names(&self, update: &Update) -> Vec<Rejection> {
        let Some(resource) = update.added.last() else { return vec![] };
        match resource.decode::<NameTable>() {
            Ok(table) => {
                if let Some(dns) = &self.dns {
                    dns.set_table(&table);
                }
                let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
                *names = Some(resource.clone());
                self.ready.names_received();
                vec![]
            }
            Err(error) => {
                vec![Rejection { name: resource.name.clone(), error: error.to_string() }]
            }
        }
    }

    /// Counts an update that never arrived whole.
    pub(crate) fn count_failure(&self, type_url: TypeUrl) {
        let server = self.telemetry.server();
        match type_url {
            TypeUrl::Cluster => server.cluster_manager_cds_update_failure.inc(),
            TypeUrl::Listener => server.listener_manager_lds_update_failure.inc(),
            _ => {}
        }
    }

    fn count(&self, update: &Update, rejections: &[Rejection]) {
        let server = self.telemetry.server();
        match (update.type_url, rejections.is_empty()) {
            (TypeUrl::Cluster, true) => server.cluster_manager_cds_update_success.inc(),
            (TypeUrl::Cluster, false) => server.cluster_manager_cds_update_rejected.inc(),
            (TypeUrl::Listener, true) => server.listener_manager_lds_update_success.inc(),
            (TypeUrl::Listener, false) => server.listener_manager_lds_update_rejected.inc(),
            _ => {}
        }
    }
}

impl Handler for DiscoveryHandler {
    fn apply(&mut self, update: Update) -> Vec<Rejection> {
        let rejections = match update.type_url {
            TypeUrl::NameTable => self.apply_names(&update),
            _ => self.runtime.apply(&update),
        };
        // Received counts even when all of it was refused: what was in force
        // before still is.
        match update.type_url {
            TypeUrl::Cluster => self.ready.clusters_received(),
            TypeUrl::Listener => self.ready.listeners_received(),
            _ => {}
        }
        self.count(&update, &rejections);
        for Rejection { name, error } in &rejections {
            tracing::warn!(kind = %update.type_url, %name, %error, "resource refused");
        }
        let (added, removed) = (update.added.len(), update.removed.len());
        tracing::debug!(kind = %update.type_url, added, removed, "update applied");
        self.changed.notify_one();
        rejections
    }

    fn subscriptions(&self) -> Vec<(TypeUrl, Subscription)> {
        let names = |type_url| {
            let names: BTreeSet<_> = self.runtime.required_names(type_url).into_iter().collect();
            (type_url, Subscription::Names(names))
        };
        let mut wanted = vec![
            (TypeUrl::Cluster, Subscription::Wildcard),
            names(TypeUrl::Endpoint),
            names(TypeUrl::ExtensionConfig),
            (TypeUrl::Listener, Subscription::Wildcard),
            names(TypeUrl::Route),
            names(TypeUrl::Secret),
        ];
        if self.dns.is_some() {
            wanted.push((TypeUrl::NameTable, Subscription::Wildcard));
        }
        wanted
    }
}
