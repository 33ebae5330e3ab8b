//! Which configuration object a resource comes from.
//!
//! Spec: Istio's `filter_metadata.istio.config`, beside which we put the rule
//! inside the object.

use std::collections::BTreeMap;

use amime_core::NamespacedName;
use amime_model::{Registry, Service};
use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::Value;

use crate::proto::{metadata, string_value};

/// Metadata namespace that Istio's filters read.
pub(crate) const ISTIO: &str = "istio";
/// Metadata namespace that picks the transport socket of an endpoint.
pub(crate) const TRANSPORT_SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// A kind of object as it stands in a path.
#[derive(Clone, Copy)]
pub(crate) enum OriginKind {
    VirtualService,
    DestinationRule,
    Gateway,
    Sidecar,
}

impl OriginKind {
    fn path(self) -> (&'static str, &'static str) {
        match self {
            Self::VirtualService => ("networking.istio.io", "virtual-service"),
            Self::DestinationRule => ("networking.istio.io", "destination-rule"),
            Self::Gateway => ("networking.istio.io", "gateway"),
            Self::Sidecar => ("networking.istio.io", "sidecar"),
        }
    }
}

/// `/apis/networking.istio.io/v1/namespaces/NS/virtual-service/NAME`
pub(crate) fn config_path(kind: OriginKind, name: &NamespacedName) -> String {
    let (group, kind) = kind.path();
    format!("/apis/{group}/v1/namespaces/{}/{kind}/{}", name.namespace, name.name)
}

/// Path of the object that declares a service.
pub(crate) fn service_path(service: &Service) -> String {
    let NamespacedName { namespace, name } = &service.object;
    match service.registry {
        Registry::Kubernetes => format!("/api/v1/namespaces/{namespace}/service/{name}"),
        Registry::External => {
            format!("/apis/networking.istio.io/v1/namespaces/{namespace}/service-entry/{name}")
        }
    }
}

/// Path of the object with the mesh-wide settings.
pub(crate) fn mesh_path(root_namespace: &str) -> String {
    format!("/api/v1/namespaces/{root_namespace}/config-map/istio")
}

/// Fields of the `istio` metadata.
pub(crate) type IstioFields = BTreeMap<String, Value>;

/// Fields that name an object and the rule in it.
pub(crate) fn fields(path: String, rule: Option<&str>) -> IstioFields {
    let mut fields = IstioFields::from([("config".to_owned(), string_value(path))]);
    if let Some(rule) = rule {
        fields.insert("rule".to_owned(), string_value(rule));
    }
    fields
}

/// Metadata with these fields for Istio.
pub(crate) fn istio_metadata(fields: IstioFields) -> Option<Metadata> {
    metadata(BTreeMap::from([(ISTIO.to_owned(), fields)]))
}

/// Metadata that names an object and the rule in it.
pub(crate) fn origin(path: String, rule: Option<&str>) -> Option<Metadata> {
    istio_metadata(fields(path, rule))
}
