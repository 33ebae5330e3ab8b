//! One document: which kind it is, its metadata and its content.

use std::sync::Arc;

use serde::Deserialize;

use super::de::{self, Fault, Findings};
use super::tree::{Content, Entry, Node, Position};
use super::{DecodeError, Decoded};
use crate::kind::Kind;
use crate::meta::{LabelSelector, ObjectMeta};
use crate::resource::{Parts, Resource, Source, SpecPlace, decode_spec};
use crate::suggest;

/// Kinds that Istio had once, with their replacements.
const GONE: &[(&str, &str, &str)] = &[
    ("authentication.istio.io", "Policy", "PeerAuthentication and RequestAuthentication"),
    ("authentication.istio.io", "MeshPolicy", "PeerAuthentication in the root namespace"),
    ("rbac.istio.io", "ServiceRole", "AuthorizationPolicy"),
    ("rbac.istio.io", "ServiceRoleBinding", "AuthorizationPolicy"),
    ("rbac.istio.io", "ClusterRbacConfig", "AuthorizationPolicy"),
    ("rbac.istio.io", "RbacConfig", "AuthorizationPolicy"),
    ("config.istio.io", "", "Telemetry, AuthorizationPolicy and EnvoyFilter"),
];

/// Fields that every object may have.
const ENVELOPE: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];

/// Decodes the objects of one document into `decoded`.
pub(super) fn decode(file: &Arc<str>, node: &Node, decoded: &mut Decoded) {
    let Content::Mapping(entries) = &node.content else {
        if !matches!(node.content, Content::Null) {
            let message =
                format!("expected an object with apiVersion and kind, found {}", node.content);
            decoded.errors.push(super::error_at(file, node.position, "", message));
        }
        return;
    };
    if node.text("kind").is_some_and(|kind| kind == "List") {
        return decode_list(file, node, decoded);
    }
    let object = Document { file, node, entries };
    let mut faults = Vec::new();
    if let Some(resource) = object.decode(&mut faults) {
        decoded.resources.push(resource);
    }
    // Stable order for the reader: as in the file.
    faults.sort_by_key(|fault| fault.position);
    let name = object.title();
    decoded.errors.extend(faults.into_iter().map(|fault| DecodeError {
        path: fault.path,
        ..super::error_at(file, fault.position, &name, fault.message)
    }));
}

fn decode_list(file: &Arc<str>, node: &Node, decoded: &mut Decoded) {
    match node.entry("items").map(|entry| &entry.value.content) {
        Some(Content::Sequence(items)) => {
            for item in items {
                decode(file, item, decoded);
            }
        }
        None | Some(Content::Null) => {}
        Some(other) => {
            let message = format!("items: expected a list, found {other}");
            decoded.errors.push(super::error_at(file, node.position, "List", message));
        }
    }
}

/// A mapping that should be an object.
struct Document<'a> {
    file: &'a Arc<str>,
    node: &'a Node,
    entries: &'a [Entry],
}

impl Document<'_> {
    fn decode(&self, faults: &mut Vec<Fault>) -> Option<Resource> {
        let api_version = self.required_text("apiVersion", faults);
        let name = self.required_text("kind", faults);
        let (api_version, name) = (api_version?, name?);
        let Some(kind) = Kind::find(api_version, name) else {
            faults.push(self.unknown_kind(api_version, name));
            return None;
        };
        let metadata = self.metadata(faults);
        let content = self.content(kind, faults);
        let parts = Parts {
            api_version: api_version.to_owned(),
            kind: name.to_owned(),
            metadata: metadata.clone().unwrap_or_default(),
            status: self.node.entry("status").map(|entry| entry.value.to_json()),
            source: Source::at(self.file, self.position()),
            raw: self.raw(),
        };
        let findings = Findings::default();
        let root = match kind.spec_place() {
            SpecPlace::Field => "spec",
            SpecPlace::TopLevel => "",
        };
        let resource = de::decode_all(&content, root, &findings, |deserializer| {
            decode_spec(kind, deserializer, &parts)
        });
        faults.extend(findings.into_faults());
        let resource = resource.filter(|_| metadata.is_some() && faults.is_empty())?;
        Some(complete(resource))
    }

    fn required_text(&self, key: &str, faults: &mut Vec<Fault>) -> Option<&str> {
        let (position, message) = match self.node.entry(key) {
            None => (self.position(), "missing; every object has one".to_owned()),
            Some(entry) => match &entry.value.content {
                Content::String(text) if !text.is_empty() => return Some(text),
                other => (entry.value.position, format!("expected a string, found {other}")),
            },
        };
        faults.push(Fault { position, path: key.to_owned(), message });
        None
    }

    fn metadata(&self, faults: &mut Vec<Fault>) -> Option<ObjectMeta> {
        let position = self.position();
        let Some(entry) = self.node.entry("metadata") else {
            let message = "missing; every object has a name".to_owned();
            faults.push(Fault { position, path: "metadata".to_owned(), message });
            return None;
        };
        let findings = Findings::default();
        let metadata = de::decode_all(&entry.value, "metadata", &findings, |deserializer| {
            ObjectMeta::deserialize(deserializer)
        });
        let found = findings.into_faults();
        let named_badly = found.iter().any(|fault| fault.path == "metadata.name");
        faults.extend(found);
        let metadata = metadata?;
        if metadata.name.is_empty() && metadata.generate_name.is_none() && !named_badly {
            let message = "missing; every object has a name".to_owned();
            faults.push(Fault {
                position: entry.key_position,
                path: "metadata.name".to_owned(),
                message,
            });
            return None;
        }
        Some(metadata)
    }

    /// The node that holds the kind's content; reports top-level fields that no object has.
    fn content(&self, kind: Kind, faults: &mut Vec<Fault>) -> Node {
        let empty = || Node { position: self.position(), content: Content::Mapping(Vec::new()) };
        match kind.spec_place() {
            SpecPlace::TopLevel => {
                let own = self.entries.iter().filter(|e| !ENVELOPE.contains(&e.key.as_str()));
                Node {
                    position: self.position(),
                    content: Content::Mapping(own.cloned().collect()),
                }
            }
            SpecPlace::Field => {
                let allowed = ["apiVersion", "kind", "metadata", "spec", "status"];
                for entry in self.entries.iter().filter(|e| !allowed.contains(&e.key.as_str())) {
                    let hint = suggest::hint(&entry.key, allowed);
                    let message =
                        format!("unknown field, expected one of {}{hint}", allowed.join(", "));
                    faults.push(Fault {
                        position: entry.key_position,
                        path: entry.key.clone(),
                        message,
                    });
                }
                match self.node.entry("spec").map(|entry| &entry.value) {
                    Some(node) if !matches!(node.content, Content::Null) => node.clone(),
                    _ => empty(),
                }
            }
        }
    }

    fn raw(&self) -> serde_json::Map<String, serde_json::Value> {
        let own = self.entries.iter().filter(|entry| !ENVELOPE.contains(&entry.key.as_str()));
        own.map(|entry| (entry.key.clone(), entry.value.to_json())).collect()
    }

    fn position(&self) -> Position {
        self.entries.first().map_or(self.node.position, |entry| entry.key_position)
    }

    fn unknown_kind(&self, api_version: &str, name: &str) -> Fault {
        let position = self.node.entry("kind").map_or(self.position(), |e| e.value.position);
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let gone = GONE.iter().find(|(old_group, old_name, _)| {
            *old_group == group && (old_name.is_empty() || *old_name == name)
        });
        let known = Kind::ALL.iter().find(|kind| kind.name() == name);
        let message = match (gone, known) {
            (Some((_, _, now)), _) => format!(
                "unknown kind {name} of {api_version}: it no longer exists, use {now} instead"
            ),
            (None, Some(kind)) => format!(
                "unknown kind {name} of {api_version}; {name} is known as {}",
                kind.api_versions().join(", ")
            ),
            (None, None) => {
                let hint = suggest::hint(name, Kind::ALL.iter().map(|kind| kind.name()));
                format!("unknown kind {name} of {api_version}{hint}")
            }
        };
        Fault { position, path: "kind".to_owned(), message }
    }

    /// Kind and name for messages, from whatever can be read.
    fn title(&self) -> String {
        let kind = self.node.text("kind").unwrap_or_default();
        let metadata = self.node.entry("metadata").map(|entry| &entry.value);
        let text = |key| metadata.and_then(|node| node.text(key)).unwrap_or_default();
        let (name, namespace) = (text("name"), text("namespace"));
        let dot = if namespace.is_empty() { "" } else { "." };
        format!("{kind} {name}{dot}{namespace}").trim().chars().take(200).collect()
    }
}

/// Fills in what old API versions left to defaults.
fn complete(mut resource: Resource) -> Resource {
    let (selector, template) = match &mut resource {
        Resource::Deployment(object) => (&mut object.spec.selector, &object.spec.template),
        Resource::StatefulSet(object) => (&mut object.spec.selector, &object.spec.template),
        Resource::ReplicaSet(object) => (&mut object.spec.selector, &object.spec.template),
        Resource::DaemonSet(object) => (&mut object.spec.selector, &object.spec.template),
        _ => return resource,
    };
    selector.get_or_insert_with(|| LabelSelector {
        match_labels: template.metadata.labels.clone(),
        ..Default::default()
    });
    resource
}
