//! Applies what one source of a bootstrap delivers, and keeps account of what
//! the resources in force refer to.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use amime_rules::Faults;
use amime_xds::client::{Handler, Rejection, Subscription, Update};
use amime_xds::{Resource, TypeUrl};
use tokio::sync::Notify;

use super::sources::{AtHand, FileSource, Found, Origin, References, references};
use crate::agent::DiscoveryHandler;

/// What all sources of a bootstrap share.
pub(super) struct Shared {
    pub(super) at_hand: AtHand,
    references: Mutex<References>,
    /// Told when names of files may have changed.
    pub(super) files: Notify,
    /// Told when names that the control plane is asked for may have changed.
    pub(super) ads: Mutex<Option<Arc<Notify>>>,
}

impl Shared {
    pub(super) fn new(at_hand: AtHand) -> Arc<Self> {
        Arc::new(Self {
            at_hand,
            references: Mutex::default(),
            files: Notify::new(),
            ads: Mutex::default(),
        })
    }

    pub(super) fn references(&self) -> MutexGuard<'_, References> {
        self.references.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what `resource` refers to, or says what is wrong with it.
    pub(super) fn read(&self, resource: &Resource) -> Result<Found, String> {
        let mut faults = Faults::default();
        let found = references(resource, &self.at_hand, &mut faults);
        let fatal = faults.into_list().into_iter().filter(|fault| fault.fatal);
        let reasons: Vec<_> = fatal.map(|fault| fault.to_string()).collect();
        if reasons.is_empty() { Ok(found) } else { Err(reasons.join("; ")) }
    }

    fn changed(&self) {
        self.files.notify_one();
        let ads = self.ads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ads) = &*ads {
            ads.notify_one();
        }
    }
}

/// What one source delivers.
#[derive(Clone, Debug)]
pub(super) enum Scope {
    /// The control plane: named resources, and all listeners or clusters.
    Ads { listeners: bool, clusters: bool },
    /// A file with all listeners or all clusters.
    All(TypeUrl),
    /// A file with named resources.
    Named(TypeUrl, FileSource),
}

/// Applies updates of one source.
pub(super) struct SourceHandler {
    pub(super) inner: DiscoveryHandler,
    pub(super) shared: Arc<Shared>,
    pub(super) scope: Scope,
}

impl Handler for SourceHandler {
    fn apply(&mut self, mut update: Update) -> Vec<Rejection> {
        let type_url = update.type_url;
        let mut rejections = Vec::new();
        let mut found = Vec::new();
        update.added.retain(|resource| match self.shared.read(resource) {
            Ok(references) => {
                found.push((resource.name.clone(), references));
                true
            }
            Err(error) => {
                rejections.push(Rejection { name: resource.name.clone(), error });
                false
            }
        });
        let removed = update.removed.clone();
        rejections.extend(self.inner.apply(update));
        let mut references = self.shared.references();
        let mut changed = false;
        for name in removed {
            changed |= references.set((type_url, name), Found::default());
        }
        for (name, one) in found {
            if !rejections.iter().any(|rejection| rejection.name == name) {
                changed |= references.set((type_url, name), one);
            }
        }
        drop(references);
        if changed {
            self.shared.changed();
        }
        rejections
    }

    fn subscriptions(&self) -> Vec<(TypeUrl, Subscription)> {
        let names = |type_url, origin: &Origin| {
            (type_url, Subscription::Names(self.shared.references().names(type_url, origin)))
        };
        match &self.scope {
            Scope::All(type_url) => vec![(*type_url, Subscription::Wildcard)],
            Scope::Named(type_url, file) => vec![names(*type_url, &Origin::File(file.clone()))],
            Scope::Ads { listeners, clusters } => {
                let all = |on: bool, type_url| on.then_some((type_url, Subscription::Wildcard));
                all(*clusters, TypeUrl::Cluster)
                    .into_iter()
                    .chain([names(TypeUrl::Endpoint, &Origin::Ads)])
                    .chain(all(*listeners, TypeUrl::Listener))
                    .chain([TypeUrl::Route, TypeUrl::Secret].map(|one| names(one, &Origin::Ads)))
                    .collect()
            }
        }
    }
}
