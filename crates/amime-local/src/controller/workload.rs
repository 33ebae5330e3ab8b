//! The kinds that own pods, in one shape.

use std::hash::{DefaultHasher, Hash, Hasher};

use amime_api::k8s::{PodSpec, PodTemplateSpec};
use amime_api::meta::{ObjectMeta, OwnerReference};
use amime_api::{Kind, Object, Resource};

/// Label with the hash of the template that a pod was made from.
const HASH_LABEL: &str = "pod-template-hash";
const REVISION_LABEL: &str = "controller-revision-hash";

/// How many pods, and when one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// This many, any names.
    Replicas(u32),
    /// This many, numbered from 0.
    Ordinals(u32),
    /// Until this many have succeeded, so many at a time, unless more than
    /// the limit have failed.
    Completions { wanted: u32, parallel: u32, failures: u32 },
}

/// A Deployment, ReplicaSet, StatefulSet, DaemonSet or Job.
pub(super) struct Workload<'a> {
    pub(super) resource: &'a Resource,
    pub(super) template: &'a PodTemplateSpec,
    pub(super) mode: Mode,
    /// Hash of the template.
    pub(super) hash: String,
}

/// The template of a workload.
pub(super) fn template(resource: &Resource) -> Option<&PodTemplateSpec> {
    Some(match resource {
        Resource::Deployment(object) => &object.spec.template,
        Resource::ReplicaSet(object) => &object.spec.template,
        Resource::StatefulSet(object) => &object.spec.template,
        Resource::DaemonSet(object) => &object.spec.template,
        Resource::Job(object) => &object.spec.template,
        _ => return None,
    })
}

/// True if some workload made the pod.
pub(super) fn is_controlled(meta: &ObjectMeta) -> bool {
    controller(meta).is_some()
}

fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().find(|owner| owner.controller == Some(true))
}

impl<'a> Workload<'a> {
    pub(super) fn of(resource: &'a Resource) -> Option<Self> {
        let template = template(resource)?;
        let count = |replicas: Option<i32>| u32::try_from(replicas.unwrap_or(1)).unwrap_or(0);
        let mode = match resource {
            Resource::Deployment(object) => Mode::Replicas(count(object.spec.replicas)),
            Resource::ReplicaSet(object) => Mode::Replicas(count(object.spec.replicas)),
            Resource::StatefulSet(object) => Mode::Ordinals(count(object.spec.replicas)),
            Resource::Job(object) => Mode::Completions {
                wanted: count(object.spec.completions),
                parallel: count(object.spec.parallelism),
                failures: u32::try_from(object.spec.backoff_limit.unwrap_or(6)).unwrap_or(0),
            },
            // There is one node.
            _ => Mode::Replicas(1),
        };
        Some(Self { resource, template, mode, hash: hash(template) })
    }

    /// The owner that its pods name.
    fn owner(&self) -> OwnerReference {
        let meta = self.resource.metadata();
        let (api_version, kind, name) = match self.resource.kind() {
            // What a Deployment owns in a cluster is a ReplicaSet, one for
            // each template; tools take its name apart.
            Kind::Deployment => {
                (Kind::ReplicaSet.api_version(), Kind::ReplicaSet, self.replica_set())
            }
            kind => (kind.api_version(), kind, meta.name.clone()),
        };
        OwnerReference {
            api_version,
            kind: kind.name().to_owned(),
            name,
            uid: meta.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    fn replica_set(&self) -> String {
        format!("{}-{}", self.resource.name(), self.hash)
    }

    /// True if this workload made the pod, from this or an older template.
    pub(super) fn owns(&self, pod: &Object<PodSpec>) -> bool {
        let meta = self.resource.metadata();
        let uid = meta.uid.clone().unwrap_or_default();
        let owner = controller(&pod.metadata);
        pod.metadata.namespace == meta.namespace && owner.is_some_and(|owner| owner.uid == uid)
    }

    /// True if the pod was made from the present template.
    pub(super) fn is_current(&self, pod: &Object<PodSpec>) -> bool {
        pod.metadata.labels.get(self.hash_label()) == Some(&self.hash)
    }

    fn hash_label(&self) -> &'static str {
        match self.resource.kind() {
            Kind::Deployment | Kind::ReplicaSet => HASH_LABEL,
            _ => REVISION_LABEL,
        }
    }

    /// A new pod with this end of its name.
    pub(super) fn new_pod(&self, suffix: &str) -> Object<PodSpec> {
        let base = match self.resource.kind() {
            Kind::Deployment => self.replica_set(),
            _ => self.resource.name().to_owned(),
        };
        let namespace = self.resource.namespace();
        let mut pod =
            Object::new(namespace, format!("{base}-{suffix}"), self.template.spec.clone());
        pod.metadata.labels = self.template.metadata.labels.clone();
        pod.metadata.labels.insert(self.hash_label().to_owned(), self.hash.clone());
        pod.metadata.annotations = self.template.metadata.annotations.clone();
        pod.metadata.owner_references = vec![self.owner()];
        match self.mode {
            Mode::Ordinals(_) => {
                let name = pod.metadata.name.clone();
                let label = "statefulset.kubernetes.io/pod-name".to_owned();
                pod.metadata.labels.insert(label, name.clone());
                // A pod of a StatefulSet has a name of its own in DNS.
                if let Resource::StatefulSet(object) = self.resource {
                    pod.spec.hostname = name;
                    pod.spec.subdomain = object.spec.service_name.clone();
                }
            }
            Mode::Completions { .. } => {
                let label = "job-name".to_owned();
                pod.metadata.labels.insert(label, self.resource.name().to_owned());
            }
            Mode::Replicas(_) => {}
        }
        // Once more, because the original JSON is made of the spec.
        let Object { metadata, spec, .. } = pod;
        let mut pod = Object::new(namespace, metadata.name.clone(), spec);
        pod.metadata = metadata;
        pod
    }
}

/// Ten characters that follow from the template, without vowels, so that they
/// spell nothing.
fn hash(template: &PodTemplateSpec) -> String {
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(template).unwrap_or_default().hash(&mut hasher);
    spell(hasher.finish(), 10)
}

/// Characters of generated names.
pub(super) fn spell(mut number: u64, length: usize) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut text = String::with_capacity(length);
    for _ in 0..length {
        let base = LETTERS.len() as u64;
        text.push(char::from(LETTERS[(number % base) as usize]));
        number /= base;
    }
    text
}

/// A random end of a pod's name.
pub(crate) fn random_suffix() -> String {
    spell(fastrand::u64(..), 5)
}
