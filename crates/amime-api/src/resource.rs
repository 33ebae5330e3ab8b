//! Objects of any kind, as read from a file or the API.
//!
//! Invariant: [`Object::raw`] holds all that was given besides metadata and status, so that
//! printing an object never loses fields that the typed spec has no place for.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::decode::{Failed, NodeDeserializer};
use crate::kind::Kind;
use crate::meta::ObjectMeta;
use crate::{extensions, gateway_api, k8s, networking, security, telemetry};

/// Where an object was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Source {
    /// File name or other origin; empty for objects made by code.
    pub file: Arc<str>,
    /// Line of the object's first key, from 1; 0 if unknown.
    pub line: u32,
}

/// One object with its typed spec.
///
/// For kinds without a `spec` field, such as `ConfigMap`, `spec` holds the top-level fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object<S> {
    /// API version as given, such as `networking.istio.io/v1alpha3`.
    pub api_version: String,
    /// Kind as given.
    pub kind: String,
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Typed content.
    pub spec: S,
    /// Status as given.
    pub status: Option<Value>,
    /// Where it was read.
    pub source: Source,
    /// Top-level fields as given, without `apiVersion`, `kind`, `metadata` and `status`.
    pub raw: Map<String, Value>,
}

impl<S> Object<S> {
    /// Reads the status as a type; default if missing or of another shape.
    pub fn status_as<T: DeserializeOwned + Default>(&self) -> T {
        self.status.as_ref().and_then(|s| T::deserialize(s).ok()).unwrap_or_default()
    }
}

/// Identity of an object in a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for cluster-wide kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

macro_rules! resources {
    ($($variant:ident($spec:ty, $place:ident),)*) => {
        /// An object of any kind the mesh reads.
        // Resources live behind an `Arc`, so a box a variant would only add a hop.
        #[allow(clippy::large_enum_variant)]
        #[derive(Clone, Debug, PartialEq)]
        pub enum Resource {
            $(
                #[doc = concat!("`", stringify!($variant), "`.")]
                $variant(Object<$spec>),
            )*
        }

        impl Resource {
            /// Kind of the object.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$variant(_) => Kind::$variant,)* }
            }

            /// Metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$variant(object) => &object.metadata,)* }
            }

            /// Metadata, to change labels or versions.
            pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Self::$variant(object) => &mut object.metadata,)* }
            }

            /// Where the object was read.
            pub fn source(&self) -> &Source {
                match self { $(Self::$variant(object) => &object.source,)* }
            }

            /// API version as given.
            pub fn api_version(&self) -> &str {
                match self { $(Self::$variant(object) => &object.api_version,)* }
            }

            /// Status as given.
            pub fn status(&self) -> Option<&Value> {
                match self { $(Self::$variant(object) => object.status.as_ref(),)* }
            }

            /// Status, to replace it.
            pub fn status_mut(&mut self) -> &mut Option<Value> {
                match self { $(Self::$variant(object) => &mut object.status,)* }
            }

            /// Top-level fields as given, without `apiVersion`, `kind`, `metadata` and `status`.
            pub fn raw(&self) -> &Map<String, Value> {
                match self { $(Self::$variant(object) => &object.raw,)* }
            }
        }

        $(
            impl From<Object<$spec>> for Resource {
                fn from(object: Object<$spec>) -> Self {
                    Self::$variant(object)
                }
            }

            impl TypedSpec for $spec {
                const KIND: Kind = Kind::$variant;
                const PLACE: SpecPlace = SpecPlace::$place;
            }
        )*

        impl Kind {
            /// Where the kind keeps its content.
            pub fn spec_place(self) -> SpecPlace {
                match self { $(Self::$variant => SpecPlace::$place,)* }
            }
        }

        /// Decodes `spec` as the type of `kind`.
        pub(crate) fn decode_spec(
            kind: Kind,
            spec: NodeDeserializer<'_>,
            parts: &Parts,
        ) -> Result<Resource, Failed> {
            match kind {
                $(Kind::$variant => {
                    <$spec>::deserialize(spec).map(|spec| Resource::$variant(parts.with(spec)))
                })*
            }
        }
    };
}

resources! {
    Namespace(k8s::NamespaceSpec, Field),
    Node(k8s::NodeSpec, Field),
    Service(k8s::ServiceSpec, Field),
    Endpoints(k8s::Endpoints, TopLevel),
    EndpointSlice(k8s::EndpointSlice, TopLevel),
    Pod(k8s::PodSpec, Field),
    Deployment(k8s::DeploymentSpec, Field),
    StatefulSet(k8s::StatefulSetSpec, Field),
    ReplicaSet(k8s::ReplicaSetSpec, Field),
    DaemonSet(k8s::DaemonSetSpec, Field),
    Job(k8s::JobSpec, Field),
    ServiceAccount(k8s::ServiceAccount, TopLevel),
    Secret(k8s::Secret, TopLevel),
    ConfigMap(k8s::ConfigMap, TopLevel),
    Ingress(k8s::IngressSpec, Field),
    VirtualService(networking::VirtualService, Field),
    DestinationRule(networking::DestinationRule, Field),
    Gateway(networking::Gateway, Field),
    ServiceEntry(networking::ServiceEntry, Field),
    WorkloadEntry(networking::WorkloadEntry, Field),
    WorkloadGroup(networking::WorkloadGroup, Field),
    Sidecar(networking::Sidecar, Field),
    ProxyConfig(networking::ProxyConfig, Field),
    EnvoyFilter(networking::EnvoyFilter, Field),
    PeerAuthentication(security::PeerAuthentication, Field),
    RequestAuthentication(security::RequestAuthentication, Field),
    AuthorizationPolicy(security::AuthorizationPolicy, Field),
    Telemetry(telemetry::Telemetry, Field),
    WasmPlugin(extensions::WasmPlugin, Field),
    TrafficExtension(extensions::TrafficExtension, Field),
    HTTPRoute(gateway_api::HttpRouteSpec, Field),
    ReferenceGrant(gateway_api::ReferenceGrantSpec, Field),
}

/// Where a kind keeps its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecPlace {
    /// In the field `spec`.
    Field,
    /// In the object's top-level fields.
    TopLevel,
}

/// A spec type that belongs to one kind.
pub trait TypedSpec: Serialize {
    /// The kind.
    const KIND: Kind;
    /// Where the kind keeps it.
    const PLACE: SpecPlace;
}

/// What an object has besides its spec.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) metadata: ObjectMeta,
    pub(crate) status: Option<Value>,
    pub(crate) source: Source,
    pub(crate) raw: Map<String, Value>,
}

impl Parts {
    fn with<S>(&self, spec: S) -> Object<S> {
        let Self { api_version, kind, metadata, status, source, raw } = self.clone();
        Object { api_version, kind, metadata, spec, status, source, raw }
    }
}

impl<S: TypedSpec> Object<S> {
    /// Makes an object in code, in the newest version of its kind.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, spec: S) -> Self {
        let metadata =
            ObjectMeta { name: name.into(), namespace: namespace.into(), ..Default::default() };
        let json = prune(serde_json::to_value(&spec).unwrap_or_default());
        let raw = match (S::PLACE, json) {
            (SpecPlace::TopLevel, Value::Object(fields)) => fields,
            (_, json) => Map::from_iter([("spec".to_owned(), json)]),
        };
        Self {
            api_version: S::KIND.api_version(),
            kind: S::KIND.name().to_owned(),
            metadata,
            spec,
            status: None,
            source: Source::default(),
            raw,
        }
    }
}

impl Resource {
    /// API group; empty for core kinds.
    pub fn group(&self) -> &str {
        self.api_version().rsplit_once('/').map_or("", |(group, _)| group)
    }

    /// API version without the group.
    pub fn version(&self) -> &str {
        self.api_version().rsplit_once('/').map_or(self.api_version(), |(_, version)| version)
    }

    /// Name of the object.
    pub fn name(&self) -> &str {
        &self.metadata().name
    }

    /// Namespace of the object; empty for cluster-wide kinds.
    pub fn namespace(&self) -> &str {
        &self.metadata().namespace
    }

    /// Identity in a store.
    pub fn key(&self) -> ObjectKey {
        ObjectKey {
            kind: self.kind(),
            namespace: self.namespace().to_owned(),
            name: self.name().to_owned(),
        }
    }

    /// The object as JSON: what was given, with present metadata and status.
    pub fn to_json(&self) -> Value {
        let metadata = prune(serde_json::to_value(self.metadata()).unwrap_or_default());
        let mut fields = Map::new();
        fields.insert("apiVersion".to_owned(), self.api_version().into());
        fields.insert("kind".to_owned(), self.kind().name().into());
        fields.insert("metadata".to_owned(), metadata);
        fields.extend(self.raw().clone());
        if let Some(status) = self.status() {
            fields.insert("status".to_owned(), status.clone());
        }
        Value::Object(fields)
    }

    /// The object as a YAML document.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(&self.to_json()).unwrap_or_default()
    }
}

/// Drops what serialization writes for fields that were never set.
fn prune(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| {
                // An empty label value is a value.
                let keep = STRING_MAPS.contains(&key.as_str());
                let value = if keep { value } else { prune(value) };
                (key, value)
            })
            .filter(|(key, value)| !is_unset(key, value))
            .collect(),
        Value::Array(items) => items.into_iter().map(prune).collect(),
        other => other,
    }
}

fn is_unset(key: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        // An empty message can mean something (`rules: [{}]`); an empty string map never does.
        Value::Object(fields) => fields.is_empty() && STRING_MAPS.contains(&key),
        _ => false,
    }
}

const STRING_MAPS: [&str; 8] = [
    "annotations",
    "labels",
    "matchLabels",
    "selector",
    "nodeSelector",
    "data",
    "binaryData",
    "stringData",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_made_in_code_prints_only_what_was_set() {
        let spec = networking::DestinationRule { host: "reviews".into(), ..Default::default() };
        let resource = Resource::from(Object::new("default", "reviews", spec));
        assert_eq!(
            resource.to_json(),
            serde_json::json!({
                "apiVersion": "networking.istio.io/v1",
                "kind": "DestinationRule",
                "metadata": {"name": "reviews", "namespace": "default"},
                "spec": {"host": "reviews"},
            })
        );
    }

    #[test]
    fn empty_label_values_survive() {
        let mut object = Object::new("", "a", k8s::NamespaceSpec::default());
        object.metadata.labels.insert("marker".into(), String::new());
        let json = Resource::from(object).to_json();
        assert_eq!(json["metadata"], serde_json::json!({"name": "a", "labels": {"marker": ""}}));
    }
}
