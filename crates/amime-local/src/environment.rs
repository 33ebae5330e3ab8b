//! The environment of a container, as the kubelet puts it together.
//!
//! `value` with `$(NAME)` references, `valueFrom` of fields, config maps and
//! secrets, and `envFrom`. What refers to something that is not there and is
//! not optional keeps the container from starting.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use amime_api::k8s::{Container, EnvVarSource, KeySelector, PodSpec};
use amime_api::{Kind, Object, ObjectKey, Resource};
use amime_control::store::Store;
use base64::Engine;

/// A variable that has no value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum EnvError {
    #[error("{kind} {name:?} not found")]
    NoObject { kind: Kind, name: String },
    #[error("couldn't find key {key} in {kind} {name}")]
    NoKey { kind: Kind, name: String, key: String },
    #[error("fieldPath {0:?} is not supported")]
    Field(String),
    #[error("resourceFieldRef of {0:?} is not supported")]
    Resource(String),
}

/// Objects that values are looked up in.
pub(crate) trait Lookup {
    fn object(&self, kind: Kind, namespace: &str, name: &str) -> Option<std::sync::Arc<Resource>>;
}

impl Lookup for Store {
    fn object(&self, kind: Kind, namespace: &str, name: &str) -> Option<std::sync::Arc<Resource>> {
        let key = ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        self.get(&key).ok()
    }
}

/// The variables that a container's manifest asks for, in order.
pub(crate) fn of_container(
    container: &Container,
    pod: &Object<PodSpec>,
    address: Ipv4Addr,
    objects: &impl Lookup,
) -> Result<Vec<(String, String)>, EnvError> {
    let source = Source { pod, address, objects };
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let mut order = Vec::new();
    let mut set = |name: String, value: String, found: &mut BTreeMap<String, String>| {
        if found.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    for from in &container.env_from {
        let whole = [(Kind::ConfigMap, &from.config_map_ref), (Kind::Secret, &from.secret_ref)];
        for (kind, reference) in whole {
            let Some(reference) = reference else { continue };
            match source.data(kind, &reference.name) {
                Some(data) => {
                    for (key, value) in data {
                        set(format!("{}{key}", from.prefix), value, &mut found);
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NoObject { kind, name: reference.name.clone() }),
            }
        }
    }
    for variable in &container.env {
        let value = match &variable.value_from {
            Some(from) => source.value(&variable.name, from)?,
            None => Some(expand(&variable.value, &found)),
        };
        if let Some(value) = value {
            set(variable.name.clone(), value, &mut found);
        }
    }
    let value = |name: String| found.remove(&name).map(|value| (name, value));
    Ok(order.into_iter().filter_map(value).collect())
}

/// Replaces `$(NAME)` by variables set before; `$$` is one `$`; a reference
/// to something unknown stays as it is.
pub(crate) fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
            continue;
        }
        let reference = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        rest = match reference {
            Some((name, tail)) if known.contains_key(name) => {
                out.push_str(&known[name]);
                tail
            }
            _ => {
                out.push('$');
                after
            }
        };
    }
    out.push_str(rest);
    out
}

struct Source<'a, L> {
    pod: &'a Object<PodSpec>,
    address: Ipv4Addr,
    objects: &'a L,
}

impl<L: Lookup> Source<'_, L> {
    fn value(&self, variable: &str, from: &EnvVarSource) -> Result<Option<String>, EnvError> {
        if let Some(field) = &from.field_ref {
            return self.field(&field.field_path).map(Some);
        }
        if let Some(selector) = &from.config_map_key_ref {
            return self.key(Kind::ConfigMap, selector);
        }
        if let Some(selector) = &from.secret_key_ref {
            return self.key(Kind::Secret, selector);
        }
        Err(EnvError::Resource(variable.to_owned()))
    }

    fn field(&self, path: &str) -> Result<String, EnvError> {
        let meta = &self.pod.metadata;
        let unknown = || EnvError::Field(path.to_owned());
        let in_map = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
        if let Some(label) = in_map("metadata.labels['") {
            return Ok(meta.labels.get(label).cloned().unwrap_or_default());
        }
        if let Some(annotation) = in_map("metadata.annotations['") {
            return Ok(meta.annotations.get(annotation).cloned().unwrap_or_default());
        }
        Ok(match path {
            "metadata.name" => meta.name.clone(),
            "metadata.namespace" => meta.namespace.clone(),
            "metadata.uid" => meta.uid.clone().unwrap_or_default(),
            "spec.nodeName" => NODE.to_owned(),
            "spec.serviceAccountName" => account(&self.pod.spec).to_owned(),
            "status.podIP" | "status.podIPs" => self.address.to_string(),
            "status.hostIP" | "status.hostIPs" => crate::address::ROUTER.to_string(),
            _ => return Err(unknown()),
        })
    }

    fn key(&self, kind: Kind, selector: &KeySelector) -> Result<Option<String>, EnvError> {
        let optional = selector.optional == Some(true);
        let name = selector.name.clone();
        match self.data(kind, &name) {
            None if optional => Ok(None),
            None => Err(EnvError::NoObject { kind, name }),
            Some(mut data) => match data.remove(&selector.key) {
                None if !optional => Err(EnvError::NoKey { kind, name, key: selector.key.clone() }),
                value => Ok(value),
            },
        }
    }

    fn data(&self, kind: Kind, name: &str) -> Option<BTreeMap<String, String>> {
        let object = self.objects.object(kind, &self.pod.metadata.namespace, name)?;
        match &*object {
            Resource::ConfigMap(map) => Some(map.spec.data.clone()),
            Resource::Secret(secret) => {
                let decode = |text: &String| {
                    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
                    String::from_utf8(bytes).ok()
                };
                let data = secret.spec.data.iter();
                let mut data: BTreeMap<_, _> =
                    data.filter_map(|(key, text)| Some((key.clone(), decode(text)?))).collect();
                data.extend(secret.spec.string_data.clone());
                Some(data)
            }
            _ => None,
        }
    }
}

/// Name of the only node.
pub(crate) const NODE: &str = "amime";

/// Service account of a pod.
pub(crate) fn account(spec: &PodSpec) -> &str {
    let named = [&spec.service_account_name, &spec.service_account];
    named.into_iter().find(|name| !name.is_empty()).map_or("default", |name| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Objects(Vec<Resource>);

    impl Lookup for Objects {
        fn object(
            &self,
            kind: Kind,
            namespace: &str,
            name: &str,
        ) -> Option<std::sync::Arc<Resource>> {
            let wanted = ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
            self.0.iter().find(|object| object.key() == wanted).cloned().map(std::sync::Arc::new)
        }
    }

    #[track_caller]
    fn check(env: &str, want: Result<&[(&str, &str)], &str>) {
        let text = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: d, labels: {{a: b}}}}, \
             spec: {{containers: [{{name: c, image: i, {env}}}]}}}}\n---\n\
             {{apiVersion: v1, kind: ConfigMap, metadata: {{name: m, namespace: d}}, data: {{k: v}}}}\n---\n\
             {{apiVersion: v1, kind: Secret, metadata: {{name: s, namespace: d}}, data: {{k: aGk=}}}}"
        );
        let decoded = amime_api::decode::decode("t", &text);
        assert!(decoded.errors.is_empty(), "{:?}", decoded.errors);
        let mut objects = decoded.resources;
        let Resource::Pod(pod) = objects.remove(0) else { panic!("a pod") };
        let address = Ipv4Addr::new(10, 244, 0, 2);
        let got = of_container(&pod.spec.containers[0], &pod, address, &Objects(objects));
        let got = got.map_err(|error| error.to_string());
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
        };
        assert_eq!(got, want.map(pairs).map_err(str::to_owned));
    }

    #[test]
    fn values_refer_to_earlier_ones() {
        check(
            "env: [{name: A, value: x}, {name: B, value: '$(A)-$(Z)-$$(A)'}]",
            Ok(&[("A", "x"), ("B", "x-$(Z)-$(A)")]),
        );
    }

    #[test]
    fn values_come_from_fields_and_objects() {
        check(
            "env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, \
             {name: L, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['a']\"}}}, \
             {name: M, valueFrom: {configMapKeyRef: {name: m, key: k}}}, \
             {name: S, valueFrom: {secretKeyRef: {name: s, key: k}}}, \
             {name: O, valueFrom: {secretKeyRef: {name: none, key: k, optional: true}}}], \
             envFrom: [{prefix: P_, configMapRef: {name: m}}]",
            Ok(&[("P_k", "v"), ("IP", "10.244.0.2"), ("L", "b"), ("M", "v"), ("S", "hi")]),
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        check(
            "env: [{name: M, valueFrom: {configMapKeyRef: {name: m, key: x}}}]",
            Err("couldn't find key x in ConfigMap m"),
        );
        check("envFrom: [{secretRef: {name: none}}]", Err("Secret \"none\" not found"));
    }
}
