//! A resource as received, and what became of it.

use std::sync::Arc;
use std::time::SystemTime;

use amime_xds::{Resource, TypeUrl};

use crate::dump::{RejectedDump, ResourceDump};
use amime_rules::Fault;

/// A resource as received.
pub(crate) struct Held {
    /// In force.
    active: Option<Accepted>,
    /// Accepted, and waiting for others.
    warming: Option<Accepted>,
    pub(crate) is_static: bool,
    rejected: Option<RejectedDump>,
}

/// One accepted version.
struct Accepted {
    resource: Resource,
    at: SystemTime,
    ignored: Vec<Fault>,
}

impl Held {
    pub(crate) fn new(is_static: bool) -> Self {
        Self { active: None, warming: None, is_static, rejected: None }
    }

    /// Takes a version over; `warming` if it waits beside the one in force.
    pub(crate) fn accept(&mut self, resource: &Resource, ignored: Vec<Fault>, warming: bool) {
        for fault in &ignored {
            tracing::debug!(kind = resource.type_url.short(), name = %resource.name, %fault, "field has no effect");
        }
        let accepted = Accepted { resource: resource.clone(), at: SystemTime::now(), ignored };
        self.warming = Some(accepted);
        if !warming {
            self.promote();
        }
        self.rejected = None;
    }

    /// The version in force.
    pub(crate) fn in_force(&self) -> Option<&Resource> {
        self.active.as_ref().map(|active| &active.resource)
    }

    /// What waited is now in force.
    pub(crate) fn promote(&mut self) {
        if let Some(accepted) = self.warming.take() {
            self.active = Some(accepted);
        }
    }

    pub(crate) fn refuse(&mut self, resource: &Resource, error: &str) {
        tracing::warn!(kind = resource.type_url.short(), name = %resource.name, error, "resource refused");
        self.rejected = Some(RejectedDump {
            version: resource.version.clone(),
            error: error.to_owned(),
            at: SystemTime::now(),
        });
    }

    /// True if `resource` says what the newest accepted version says, whose
    /// version then is the one sent now.
    pub(crate) fn repeats(&mut self, resource: &Resource) -> bool {
        let newest = self.warming.as_mut().or(self.active.as_mut());
        let Some(have) = newest.filter(|have| have.resource.body == resource.body) else {
            return false;
        };
        have.resource.version = resource.version.clone();
        self.rejected = None;
        true
    }

    /// Kind and fields without effect of the newest version.
    pub(crate) fn ignored(&self) -> impl Iterator<Item = (TypeUrl, &Fault)> {
        let newest = self.warming.as_ref().or(self.active.as_ref());
        newest.into_iter().flat_map(|one| {
            let type_url = one.resource.type_url;
            one.ignored.iter().map(move |fault| (type_url, fault))
        })
    }

    /// The version in force and the one that waits.
    pub(crate) fn dump<'a>(&'a self, name: &'a str) -> impl Iterator<Item = ResourceDump> + 'a {
        let both = [(self.active.as_ref(), false), (self.warming.as_ref(), true)];
        let rejected_at = self.active.is_none();
        both.into_iter().filter_map(move |(accepted, warming)| {
            let Accepted { resource, at, ignored } = accepted?;
            Some(ResourceDump {
                type_url: resource.type_url,
                name: name.to_owned(),
                version: Arc::clone(&resource.version),
                body: resource.body.clone(),
                last_updated: *at,
                is_static: self.is_static,
                warming,
                ignored_fields: ignored.iter().map(ToString::to_string).collect(),
                rejected: self.rejected.clone().filter(|_| warming == rejected_at),
            })
        })
    }
}
