//! `apply`: files in, all objects of them stored or none.
//!
//! All faults of all files are reported together. What the server has set
//! (addresses, status) and labels set by `label` survive an apply that does
//! not mention them, as with kubectl.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use amime_analysis::Delegates;
use amime_api::{Kind, ObjectKey, Resource, decode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Edits, Entry, Store, StoreError, require_namespace};
use crate::validation::{Verdict, located};

/// One file of an apply.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFile {
    /// Name for messages.
    pub name: String,
    /// YAML or JSON, any number of documents.
    pub text: String,
}

/// What to apply.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Apply {
    /// Files, in order; a later object replaces an earlier one of its name.
    pub files: Vec<SourceFile>,
    /// Namespace of objects that name none. Default: `default`.
    #[serde(default = "default_namespace")]
    pub namespace: String,
}

fn default_namespace() -> String {
    "default".to_owned()
}

/// What became of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Created,
    /// It has changed.
    Configured,
    /// It was like this before.
    Unchanged,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// `virtualservice.networking.istio.io/reviews`, as kubectl prints it.
    pub object: String,
    /// Namespace; empty for cluster-wide kinds.
    pub namespace: String,
    /// What was done.
    pub action: Action,
}

/// A stored apply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Each object, in the order given.
    pub results: Vec<Outcome>,
    /// What is accepted but not, or not fully, acted on.
    pub warnings: Vec<String>,
}

/// A refused apply; nothing of it was stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Each fault, with `file:line:column` where it has one.
    pub errors: Vec<String>,
    /// As in [`Applied`].
    pub warnings: Vec<String>,
}

impl Store {
    /// Validates everything in `apply`, then stores everything.
    pub fn apply(&self, apply: &Apply) -> Result<Applied, Rejected> {
        let (resources, mut faults) = decode_all(apply);
        let mut state = self.state();
        judge(&resources, &state.entries, &mut faults);
        let mut overlay = Overlay::new(&state.entries);
        // Namespaces first: kubectl users list them anywhere in their files.
        let (namespaces, others): (Vec<_>, Vec<_>) =
            resources.into_iter().partition(|resource| resource.kind() == Kind::Namespace);
        for resource in namespaces.into_iter().chain(others) {
            if let Err(fault) = overlay.apply(resource) {
                faults.errors.push(fault);
            }
        }
        if !faults.errors.is_empty() {
            return Err(faults);
        }
        let Overlay { edits, results, .. } = overlay;
        if !edits.is_empty()
            && let Err(error) = self.commit(&mut state, edits)
        {
            faults.errors.push(chain(&error));
            return Err(faults);
        }
        Ok(Applied { results, warnings: faults.warnings })
    }
}

fn decode_all(apply: &Apply) -> (Vec<Resource>, Rejected) {
    let mut faults = Rejected::default();
    let mut resources = Vec::new();
    for file in &apply.files {
        let decoded = decode::decode(&file.name, &file.text);
        faults.errors.extend(decoded.errors.iter().map(ToString::to_string));
        faults.warnings.extend(decoded.warnings.iter().map(ToString::to_string));
        for mut resource in decoded.resources {
            let namespaced = resource.kind().is_namespaced();
            let meta = resource.metadata_mut();
            if !namespaced {
                meta.namespace.clear();
            } else if meta.namespace.is_empty() {
                meta.namespace.clone_from(&apply.namespace);
            }
            resources.push(resource);
        }
    }
    if resources.is_empty() && faults.errors.is_empty() {
        faults.errors.push("no objects passed to apply".to_owned());
    }
    (resources, faults)
}

/// Adds what speaks against single objects, beside each other and the stored ones.
fn judge(resources: &[Resource], stored: &BTreeMap<ObjectKey, Entry>, faults: &mut Rejected) {
    let beside = stored.values().map(|entry| &*entry.resource);
    let delegates = Delegates::of(resources.iter().chain(beside));
    for resource in resources {
        let verdict = Verdict::of(resource, &delegates);
        faults.errors.extend(verdict.errors);
        faults.warnings.extend(verdict.warnings);
    }
}

/// The store as it would be after the objects seen so far.
struct Overlay<'a> {
    stored: &'a BTreeMap<ObjectKey, Entry>,
    edits: Edits,
    results: Vec<Outcome>,
}

impl<'a> Overlay<'a> {
    fn new(stored: &'a BTreeMap<ObjectKey, Entry>) -> Self {
        Self { stored, edits: Vec::new(), results: Vec::new() }
    }

    fn current(&self, key: &ObjectKey) -> Option<&Entry> {
        let edited = self.edits.iter().rev().find(|(edited, _)| edited == key);
        match edited {
            Some((_, entry)) => entry.as_ref(),
            None => self.stored.get(key),
        }
    }

    fn apply(&mut self, resource: Resource) -> Result<(), String> {
        let key = resource.key();
        let namespace = super::namespace_key(&key.namespace);
        if key.kind.is_namespaced() && self.current(&namespace).is_none() {
            let error = require_namespace(self.stored, &key)
                .err()
                .unwrap_or(StoreError::NoNamespace { namespace: key.namespace.clone() });
            return Err(format!("{}: {error}", located(&resource)));
        }
        let applied_labels: BTreeSet<String> = resource.metadata().labels.keys().cloned().collect();
        let old = self.current(&key);
        let (action, entry) = match old {
            None => (Action::Created, Entry { applied_labels, ..Entry::new(Arc::new(resource)) }),
            Some(old) => {
                let merged = merge(resource, old);
                let action = if same(&merged, &old.resource) {
                    Action::Unchanged
                } else {
                    Action::Configured
                };
                (action, Entry { applied_labels, ..Entry::new(Arc::new(merged)) })
            }
        };
        let kept_labels_differ = old.is_some_and(|old| old.applied_labels != entry.applied_labels);
        if action != Action::Unchanged || kept_labels_differ {
            self.edits.push((key.clone(), Some(entry)));
        }
        let object = match key.kind.group() {
            "" => format!("{}/{}", key.kind.singular(), key.name),
            group => format!("{}.{group}/{}", key.kind.singular(), key.name),
        };
        self.results.push(Outcome { object, namespace: key.namespace, action });
        Ok(())
    }
}

/// `new` with what the server holds of `old` and `new` does not speak of.
fn merge(mut new: Resource, old: &Entry) -> Resource {
    let old_meta = old.resource.metadata().clone();
    let meta = new.metadata_mut();
    for (name, value) in old_meta.labels {
        if !old.applied_labels.contains(&name) {
            meta.labels.entry(name).or_insert(value);
        }
    }
    meta.uid = old_meta.uid;
    meta.resource_version = old_meta.resource_version;
    meta.creation_timestamp = old_meta.creation_timestamp;
    meta.generation = old_meta.generation;
    if new.status().is_none() {
        *new.status_mut() = old.resource.status().cloned();
    }
    if let (Resource::Service(new), Resource::Service(old)) = (&mut new, &*old.resource) {
        let keeps = new.spec.cluster_ip.is_empty()
            && new.spec.r#type != "ExternalName"
            && old.spec.cluster_ip != "None";
        if keeps {
            new.spec.cluster_ip.clone_from(&old.spec.cluster_ip);
            new.spec.cluster_ips.clone_from(&old.spec.cluster_ips);
            for field in ["clusterIP", "clusterIPs"] {
                let value = old.raw.get("spec").and_then(|spec| spec.get(field));
                let spec = new.raw.get_mut("spec").and_then(Value::as_object_mut);
                if let (Some(value), Some(spec)) = (value, spec) {
                    spec.insert(field.to_owned(), value.clone());
                }
            }
        }
    }
    new
}

/// True if nothing differs that a reader of the object could see.
fn same(new: &Resource, old: &Resource) -> bool {
    new.api_version() == old.api_version()
        && new.metadata() == old.metadata()
        && new.raw() == old.raw()
        && new.status() == old.status()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
