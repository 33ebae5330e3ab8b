//! A resource as received, and what became of it.

use std::time::SystemTime;

use amime_xds::Resource;

use super::Fault;
use super::dump::{RejectedDump, ResourceDump};

/// A resource as received.
pub(super) struct Held {
    pub(super) resource: Option<Resource>,
    pub(super) is_static: bool,
    pub(super) last_updated: SystemTime,
    pub(super) ignored: Vec<Fault>,
    pub(super) rejected: Option<RejectedDump>,
}

impl Held {
    pub(super) fn new(is_static: bool) -> Self {
        Self {
            resource: None,
            is_static,
            last_updated: SystemTime::now(),
            ignored: Vec::new(),
            rejected: None,
        }
    }

    pub(super) fn accept(&mut self, resource: &Resource, ignored: Vec<Fault>) {
        for fault in &ignored {
            tracing::debug!(kind = resource.type_url.short(), name = %resource.name, %fault, "field has no effect");
        }
        self.resource = Some(resource.clone());
        self.last_updated = SystemTime::now();
        self.ignored = ignored;
        self.rejected = None;
    }

    pub(super) fn refuse(&mut self, resource: &Resource, error: &str) {
        tracing::warn!(kind = resource.type_url.short(), name = %resource.name, error, "resource refused");
        self.rejected = Some(RejectedDump {
            version: resource.version.clone(),
            error: error.to_owned(),
            at: SystemTime::now(),
        });
    }

    pub(super) fn dump(&self, name: &str, warming: bool) -> Option<ResourceDump> {
        let resource = self.resource.as_ref();
        let type_url = resource.map(|resource| resource.type_url)?;
        Some(ResourceDump {
            type_url,
            name: name.to_owned(),
            version: resource.map(|resource| resource.version.clone()).unwrap_or_default(),
            body: resource.map(|resource| resource.body.clone()).unwrap_or_default(),
            last_updated: self.last_updated,
            is_static: self.is_static,
            warming,
            ignored_fields: self.ignored.iter().map(ToString::to_string).collect(),
            rejected: self.rejected.clone(),
        })
    }
}
