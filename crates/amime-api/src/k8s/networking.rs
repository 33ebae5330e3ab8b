//! Endpoint slices and ingresses.

use super::core::ObjectReference;
use crate::meta::StringMap;

messages! {
    /// Part of a service's addresses; its label `kubernetes.io/service-name` names the service.
    pub struct EndpointSlice {
        /// `IPv4`, `IPv6` or `FQDN`.
        pub address_type: String,
        /// Addresses.
        pub endpoints: Vec<SliceEndpoint>,
        /// Ports of all of them.
        pub ports: Vec<SliceEndpointPort>,
    }

    /// One endpoint.
    pub struct SliceEndpoint {
        /// Addresses of the same endpoint.
        pub addresses: Vec<String>,
        /// Readiness.
        pub conditions: SliceEndpointConditions,
        /// Host name under the service.
        pub hostname: String,
        /// Node.
        pub node_name: Option<String>,
        /// The pod behind it.
        pub target_ref: Option<ObjectReference>,
        /// Zone.
        pub zone: Option<String>,
        /// Locality labels of API version v1beta1.
        pub topology: StringMap,
        /// Locality labels carried over from v1beta1.
        pub deprecated_topology: StringMap,
    }

    /// Readiness of an endpoint; unknown counts as ready.
    pub struct SliceEndpointConditions {
        /// Takes new connections.
        pub ready: Option<bool>,
        /// Serves, even while it goes away.
        pub serving: Option<bool>,
        /// Is going away.
        pub terminating: Option<bool>,
    }

    /// Port of a slice.
    pub struct SliceEndpointPort {
        /// Name of the service port.
        pub name: String,
        /// Number.
        pub port: Option<u16>,
        /// `TCP` (or empty), `UDP`, `SCTP`.
        pub protocol: String,
        /// Application protocol.
        pub app_protocol: Option<String>,
    }

    /// Spec of an ingress; covers `networking.k8s.io/v1` and the older `v1beta1` backends.
    pub struct IngressSpec {
        /// Class; the controller's by default.
        pub ingress_class_name: Option<String>,
        /// Backend when no rule matches.
        pub default_backend: Option<IngressBackend>,
        /// The same in v1beta1.
        pub backend: Option<IngressBackend>,
        /// Certificates.
        pub tls: Vec<IngressTls>,
        /// Rules.
        pub rules: Vec<IngressRule>,
    }

    /// Certificate of some hosts.
    pub struct IngressTls {
        /// Hosts.
        pub hosts: Vec<String>,
        /// Secret.
        pub secret_name: String,
    }

    /// Rules of one host.
    pub struct IngressRule {
        /// Host; empty means all.
        pub host: String,
        /// Paths.
        pub http: Option<HttpIngressRuleValue>,
    }

    /// Paths of one host.
    pub struct HttpIngressRuleValue {
        /// The paths.
        pub paths: Vec<HttpIngressPath>,
    }

    /// One path.
    pub struct HttpIngressPath {
        /// Path.
        pub path: String,
        /// `Exact`, `Prefix` or `ImplementationSpecific`.
        pub path_type: String,
        /// Where to.
        pub backend: IngressBackend,
    }

    /// Where an ingress sends requests.
    pub struct IngressBackend {
        /// A service.
        pub service: Option<IngressServiceBackend>,
        /// Another object.
        pub resource: Option<serde_json::Value>,
        /// Service name in v1beta1.
        pub service_name: String,
        /// Service port in v1beta1.
        pub service_port: Option<super::core::IntOrString>,
    }

    /// A service as backend.
    pub struct IngressServiceBackend {
        /// Name.
        pub name: String,
        /// Port.
        pub port: ServiceBackendPort,
    }

    /// Port of a backend, by name or number.
    pub struct ServiceBackendPort {
        /// Name.
        pub name: String,
        /// Number.
        pub number: u16,
    }
}
