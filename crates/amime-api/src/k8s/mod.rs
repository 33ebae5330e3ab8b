//! The parts of Kubernetes kinds that a mesh reads.
//!
//! Fields that the mesh has no use for are accepted by decoding and kept in the object's
//! original JSON, but have no place in these types.
//!
//! Spec: <https://kubernetes.io/docs/reference/kubernetes-api/>

mod apps;
mod core;
pub(crate) mod fields;
mod networking;
mod pod;

pub use apps::{
    DaemonSetSpec, DeploymentSpec, JobSpec, PodTemplateSpec, ReplicaSetSpec, StatefulSetSpec,
};
pub use core::{
    ConfigMap, EndpointAddress, EndpointPort, EndpointSubset, Endpoints, IntOrString,
    LoadBalancerIngress, LoadBalancerStatus, NamespaceSpec, NodeSpec, ObjectReference, Secret,
    ServiceAccount, ServicePort, ServiceSpec, ServiceStatus,
};
pub use networking::{
    EndpointSlice, HttpIngressPath, HttpIngressRuleValue, IngressBackend, IngressRule,
    IngressServiceBackend, IngressSpec, IngressTls, ServiceBackendPort, SliceEndpoint,
    SliceEndpointConditions, SliceEndpointPort,
};
pub use pod::{
    Container, ContainerPort, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, EnvFromSource, EnvSource, EnvVar, EnvVarSource,
    ExecAction, FieldSelector, GrpcAction, HttpGetAction, KeySelector, PodCondition, PodIp,
    PodSpec, PodStatus, Probe, ResourceRequirements, TcpSocketAction, Volume, VolumeMount,
};
