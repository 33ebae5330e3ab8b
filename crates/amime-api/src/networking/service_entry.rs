//! `ServiceEntry`, `WorkloadEntry` and `WorkloadGroup`: what the platform's registry lacks.
//!
//! Spec: <https://istio.io/latest/docs/reference/config/networking/service-entry/>

use std::collections::BTreeMap;

use super::sidecar::LabelsSelector;
use crate::meta::StringMap;

messages! {
    /// A service that the platform does not know.
    pub struct ServiceEntry {
        /// Host names; a wildcard is allowed for some resolutions.
        pub hosts: Vec<String>,
        /// Virtual addresses or CIDR ranges.
        pub addresses: Vec<String>,
        /// Ports.
        pub ports: Vec<ServicePort>,
        /// Inside the mesh or out of it.
        pub location: Location,
        /// How endpoints are found.
        pub resolution: Resolution,
        /// Endpoints.
        pub endpoints: Vec<WorkloadEntry>,
        /// Pods and `WorkloadEntry` objects that are the endpoints instead.
        pub workload_selector: Option<LabelsSelector>,
        /// Namespaces that see the service: `.`, `*` or names.
        pub export_to: Vec<String>,
        /// Names, one of which the server's certificate must have.
        pub subject_alt_names: Vec<String>,
    }

    /// Port of a service.
    pub struct ServicePort {
        /// Number, 1 to 65535.
        pub number: u32,
        /// Protocol name.
        pub protocol: String,
        /// Name, unique in the service.
        pub name: String,
        /// Port of the endpoints, if different.
        pub target_port: u32,
    }

    /// One endpoint outside the platform.
    pub struct WorkloadEntry {
        /// IP address, DNS name or `unix://` path; may be empty if `network` is given.
        pub address: String,
        /// Port by name of service port.
        pub ports: BTreeMap<String, u32>,
        /// Labels.
        pub labels: StringMap,
        /// Network the address is in.
        pub network: String,
        /// Locality `region/zone/subzone`.
        pub locality: String,
        /// Share of traffic.
        pub weight: u32,
        /// Service account of the workload.
        pub service_account: String,
    }

    /// Template for workloads that register themselves.
    pub struct WorkloadGroup {
        /// Labels and annotations of the entries.
        pub metadata: Option<WorkloadGroupMeta>,
        /// Entry to start from.
        pub template: Option<WorkloadEntry>,
        /// Readiness of the workload.
        pub probe: Option<ReadinessProbe>,
    }

    /// Metadata of registered entries.
    pub struct WorkloadGroupMeta {
        /// Labels.
        pub labels: StringMap,
        /// Annotations.
        pub annotations: StringMap,
    }

    /// Readiness check, one method of four.
    pub struct ReadinessProbe {
        /// Seconds before the first check.
        pub initial_delay_seconds: i32,
        /// Seconds to wait for an answer; 1 by default.
        pub timeout_seconds: i32,
        /// Seconds between checks; 10 by default.
        pub period_seconds: i32,
        /// Successes in a row before ready; 1 by default.
        pub success_threshold: i32,
        /// Failures in a row before unready; 3 by default.
        pub failure_threshold: i32,
        /// HTTP GET.
        pub http_get: Option<HttpHealthCheckConfig>,
        /// Connect.
        pub tcp_socket: Option<TcpHealthCheckConfig>,
        /// Run a command.
        pub exec: Option<ExecHealthCheckConfig>,
        /// gRPC health service.
        pub grpc: Option<GrpcHealthCheckConfig>,
    }

    /// HTTP check.
    pub struct HttpHealthCheckConfig {
        /// Path.
        pub path: String,
        /// Port.
        pub port: u32,
        /// Host; the workload's address by default.
        pub host: String,
        /// `HTTP` or `HTTPS`.
        pub scheme: String,
        /// Headers to send.
        pub http_headers: Vec<HttpHeader>,
    }

    /// Header of a check.
    pub struct HttpHeader {
        /// Name.
        pub name: String,
        /// Value.
        pub value: String,
    }

    /// TCP check.
    pub struct TcpHealthCheckConfig {
        /// Host; localhost by default.
        pub host: String,
        /// Port.
        pub port: u32,
    }

    /// Command check.
    pub struct ExecHealthCheckConfig {
        /// Command and arguments.
        pub command: Vec<String>,
    }

    /// gRPC check.
    pub struct GrpcHealthCheckConfig {
        /// Port.
        pub port: u32,
        /// Service name to ask for.
        pub service: String,
    }
}

values! {
    /// Side of the mesh's border.
    pub enum Location {
        /// Outside: no mutual TLS.
        #[default]
        MeshExternal,
        /// Inside.
        MeshInternal,
    }

    /// How endpoints are found.
    pub enum Resolution {
        /// The address the client asked for.
        #[default]
        None,
        /// The listed endpoints.
        Static,
        /// DNS, all addresses.
        Dns,
        /// DNS, the first address of each answer.
        DnsRoundRobin,
        /// DNS of the name each request asks for.
        DynamicDns,
    }
}
