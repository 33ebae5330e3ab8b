//! `io.istio.http.peer_metadata`: who is at the other end, for telemetry.

use super::named;

/// How peer metadata is found out and passed on.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Config {
    /// Ways to learn about the client; the first that answers wins.
    #[prost(message, repeated, tag = "1")]
    pub downstream_discovery: Vec<DiscoveryMethod>,
    /// Ways to learn about the upstream; the first that answers wins.
    #[prost(message, repeated, tag = "2")]
    pub upstream_discovery: Vec<DiscoveryMethod>,
    /// What is told to the client, with the response.
    #[prost(message, repeated, tag = "3")]
    pub downstream_propagation: Vec<PropagationMethod>,
    /// What is told to the upstream, with the request.
    #[prost(message, repeated, tag = "4")]
    pub upstream_propagation: Vec<PropagationMethod>,
    /// Share what was found with the upstream connection's filters.
    #[prost(bool, tag = "5")]
    pub shared_with_upstream: bool,
    /// Labels that travel in addition to the standard ones.
    #[prost(string, repeated, tag = "6")]
    pub additional_labels: Vec<String>,
}

named!(Config, "io.istio.http.peer_metadata", "Config");

/// One way to learn about a peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct DiscoveryMethod {
    /// The way.
    #[prost(oneof = "Discovery", tags = "1, 2, 3")]
    pub method_specifier: Option<Discovery>,
}

named!(DiscoveryMethod, "io.istio.http.peer_metadata", "Config.DiscoveryMethod");

/// Ways to learn about a peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Oneof)]
pub enum Discovery {
    /// `baggage` header.
    #[prost(message, tag = "1")]
    Baggage(Baggage),
    /// Workload discovery service.
    #[prost(message, tag = "2")]
    WorkloadDiscovery(WorkloadDiscovery),
    /// `x-envoy-peer-metadata` headers.
    #[prost(message, tag = "3")]
    IstioHeaders(IstioHeaders),
}

/// One way to tell a peer about us.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct PropagationMethod {
    /// The way.
    #[prost(oneof = "Propagation", tags = "1")]
    pub method_specifier: Option<Propagation>,
}

named!(PropagationMethod, "io.istio.http.peer_metadata", "Config.PropagationMethod");

/// Ways to tell a peer about us.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Oneof)]
pub enum Propagation {
    /// `x-envoy-peer-metadata` headers.
    #[prost(message, tag = "1")]
    IstioHeaders(IstioHeaders),
}

/// Read metadata from `baggage`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Baggage {}

named!(Baggage, "io.istio.http.peer_metadata", "Config.Baggage");

/// Look the peer's address up in the workloads that the control plane sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct WorkloadDiscovery {}

named!(WorkloadDiscovery, "io.istio.http.peer_metadata", "Config.WorkloadDiscovery");

/// Exchange metadata in HTTP headers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct IstioHeaders {
    /// Send no metadata to clusters outside the mesh.
    #[prost(bool, tag = "1")]
    pub skip_external_clusters: bool,
}

named!(IstioHeaders, "io.istio.http.peer_metadata", "Config.IstioHeaders");
