//! Resources for one proxy out of the snapshot in force.

use std::sync::Arc;

use amime_model::Snapshot;
use amime_translate::Proxy;
use amime_xds::server::{Source, Wanted};
use amime_xds::{Resource, TypeUrl};

/// A proxy's view of a snapshot.
pub(super) struct ProxyView {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) proxy: Arc<Proxy>,
    version: String,
    /// Its namespace is known, not only claimed.
    authenticated: bool,
}

impl ProxyView {
    pub(super) fn new(snapshot: Arc<Snapshot>, proxy: Arc<Proxy>, authenticated: bool) -> Self {
        let version = snapshot.version().to_string();
        Self { snapshot, proxy, version, authenticated }
    }
}

impl Source for ProxyView {
    fn generate(&mut self, type_url: TypeUrl, wanted: Wanted<'_>) -> Vec<Resource> {
        if type_url == TypeUrl::Secret && !self.authenticated {
            // Who may have which secret follows from the namespace.
            tracing::debug!(proxy = %self.proxy.id, "secrets are for authenticated proxies only");
            return Vec::new();
        }
        let names: Option<Vec<String>> = match wanted {
            Wanted::All => None,
            Wanted::Names(names) => Some(names.iter().cloned().collect()),
        };
        amime_translate::generate(&self.snapshot, &self.proxy, type_url, names.as_deref())
    }

    fn version(&self) -> &str {
        &self.version
    }
}
