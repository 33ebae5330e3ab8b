//! Namespaces, services, endpoints, accounts, secrets and config maps.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::meta::StringMap;

messages! {
    /// Spec of a namespace.
    pub struct NamespaceSpec {
        /// Who must act before removal.
        pub finalizers: Vec<String>,
    }

    /// Spec of a node; what it is good for here stands in its labels.
    pub struct NodeSpec {
        /// No new pods are placed on it.
        pub unschedulable: bool,
    }

    /// Spec of a service.
    pub struct ServiceSpec {
        /// Ports.
        pub ports: Vec<ServicePort>,
        /// Labels of the pods; empty means endpoints are made by hand.
        pub selector: StringMap,
        /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`; empty means the first.
        pub r#type: String,
        /// Virtual address; `None` for a headless service.
        #[serde(rename = "clusterIP")]
        pub cluster_ip: String,
        /// Virtual addresses of both families.
        #[serde(rename = "clusterIPs")]
        pub cluster_ips: Vec<String>,
        /// Further addresses routed to the nodes.
        #[serde(rename = "externalIPs")]
        pub external_ips: Vec<String>,
        /// DNS name of an `ExternalName` service.
        pub external_name: String,
        /// Wanted address of a load balancer.
        #[serde(rename = "loadBalancerIP")]
        pub load_balancer_ip: String,
        /// Resolve addresses of pods that are not ready.
        pub publish_not_ready_addresses: bool,
        /// `None` or `ClientIP`.
        pub session_affinity: String,
        /// `Cluster` or `Local`.
        pub external_traffic_policy: String,
        /// `Cluster` or `Local`.
        pub internal_traffic_policy: String,
        /// `PreferClose`, `PreferSameZone` or `PreferSameNode`.
        pub traffic_distribution: String,
        /// Address families.
        pub ip_families: Vec<String>,
        /// `SingleStack`, `PreferDualStack` or `RequireDualStack`.
        pub ip_family_policy: String,
    }

    /// Port of a service.
    pub struct ServicePort {
        /// Name; may be empty if there is one port.
        pub name: String,
        /// `TCP` (or empty), `UDP`, `SCTP`.
        pub protocol: String,
        /// Application protocol, beats the name.
        pub app_protocol: Option<String>,
        /// Number.
        pub port: u16,
        /// Port of the pods, by number or name; `port` if missing.
        pub target_port: Option<IntOrString>,
        /// Port on the nodes.
        pub node_port: Option<u16>,
    }

    /// Status of a service.
    pub struct ServiceStatus {
        /// Addresses given by a load balancer.
        pub load_balancer: Option<LoadBalancerStatus>,
    }

    /// Addresses given by a load balancer.
    pub struct LoadBalancerStatus {
        /// The addresses.
        pub ingress: Vec<LoadBalancerIngress>,
    }

    /// One address of a load balancer.
    pub struct LoadBalancerIngress {
        /// Address.
        pub ip: String,
        /// Host name.
        pub hostname: String,
    }

    /// Addresses of a service, the old kind.
    pub struct Endpoints {
        /// Groups of addresses and ports.
        pub subsets: Vec<EndpointSubset>,
    }

    /// Addresses that share ports.
    pub struct EndpointSubset {
        /// Ready.
        pub addresses: Vec<EndpointAddress>,
        /// Not ready.
        pub not_ready_addresses: Vec<EndpointAddress>,
        /// Ports.
        pub ports: Vec<EndpointPort>,
    }

    /// Address of an endpoint.
    pub struct EndpointAddress {
        /// Address.
        pub ip: String,
        /// Host name under the service.
        pub hostname: String,
        /// Node.
        pub node_name: Option<String>,
        /// The pod behind it.
        pub target_ref: Option<ObjectReference>,
    }

    /// Port of an endpoint.
    pub struct EndpointPort {
        /// Name of the service port.
        pub name: String,
        /// Number.
        pub port: u16,
        /// `TCP` (or empty), `UDP`, `SCTP`.
        pub protocol: String,
        /// Application protocol.
        pub app_protocol: Option<String>,
    }

    /// Reference to an object.
    pub struct ObjectReference {
        /// API version.
        pub api_version: String,
        /// Kind.
        pub kind: String,
        /// Namespace.
        pub namespace: String,
        /// Name.
        pub name: String,
        /// Unique id.
        pub uid: String,
        /// Version.
        pub resource_version: String,
        /// Part of the object.
        pub field_path: String,
    }

    /// Account that workloads run under.
    pub struct ServiceAccount {
        /// Secrets that pods may mount.
        pub secrets: Vec<ObjectReference>,
        /// Secrets for registries.
        pub image_pull_secrets: Vec<ObjectReference>,
        /// Whether pods get a token.
        pub automount_service_account_token: Option<bool>,
    }

    /// Secret data.
    pub struct Secret {
        /// Base64 by key.
        pub data: StringMap,
        /// Text by key, merged over `data`.
        pub string_data: StringMap,
        /// Type, such as `kubernetes.io/tls`.
        pub r#type: String,
        /// Never changes.
        pub immutable: Option<bool>,
    }

    /// Configuration data.
    pub struct ConfigMap {
        /// Text by key.
        pub data: StringMap,
        /// Base64 by key.
        pub binary_data: StringMap,
        /// Never changes.
        pub immutable: Option<bool>,
    }
}

/// A port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum IntOrString {
    /// Number.
    Int(i64),
    /// Name.
    String(String),
}

impl fmt::Display for IntOrString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => number.fmt(f),
            Self::String(name) => f.write_str(name),
        }
    }
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl serde::de::Visitor<'_> for Either {
            type Value = IntOrString;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a name")
            }

            fn visit_i64<E>(self, number: i64) -> Result<IntOrString, E> {
                Ok(IntOrString::Int(number))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<IntOrString, E> {
                i64::try_from(number).map(IntOrString::Int).map_err(E::custom)
            }

            fn visit_str<E>(self, name: &str) -> Result<IntOrString, E> {
                Ok(IntOrString::String(name.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}
