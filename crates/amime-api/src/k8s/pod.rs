//! Pods: what runs, and how it is doing.

use std::collections::BTreeMap;

use serde_json::Value;

use super::core::IntOrString;
use crate::meta::StringMap;

messages! {
    /// Spec of a pod.
    pub struct PodSpec {
        /// Containers.
        pub containers: Vec<Container>,
        /// Containers that run to completion first, or stay if their restart policy is `Always`.
        pub init_containers: Vec<Container>,
        /// Service account; `default` if empty.
        pub service_account_name: String,
        /// Old name of `service_account_name`.
        pub service_account: String,
        /// Node.
        pub node_name: String,
        /// Host name.
        pub hostname: String,
        /// Headless service that resolves the host name.
        pub subdomain: String,
        /// Share the node's network.
        pub host_network: bool,
        /// `Always` (or empty), `OnFailure`, `Never`.
        pub restart_policy: String,
        /// Seconds between SIGTERM and SIGKILL; 30 by default.
        pub termination_grace_period_seconds: Option<i64>,
        /// Volumes.
        pub volumes: Vec<Volume>,
        /// Node labels wanted.
        pub node_selector: StringMap,
        /// `ClusterFirst` and so on.
        pub dns_policy: String,
        /// Security settings, carried as they are.
        pub security_context: Option<Value>,
    }

    /// One container.
    pub struct Container {
        /// Name.
        pub name: String,
        /// Image.
        pub image: String,
        /// Entry point; the image's if empty.
        pub command: Vec<String>,
        /// Arguments; the image's if empty.
        pub args: Vec<String>,
        /// Working directory.
        pub working_dir: String,
        /// Declared ports.
        pub ports: Vec<ContainerPort>,
        /// Environment.
        pub env: Vec<EnvVar>,
        /// Environment from whole objects.
        pub env_from: Vec<EnvFromSource>,
        /// `Always` for init containers that stay.
        pub restart_policy: Option<String>,
        /// Alive?
        pub liveness_probe: Option<Probe>,
        /// Ready?
        pub readiness_probe: Option<Probe>,
        /// Started?
        pub startup_probe: Option<Probe>,
        /// Compute resources.
        pub resources: Option<ResourceRequirements>,
        /// Mounts.
        pub volume_mounts: Vec<VolumeMount>,
        /// `Always`, `IfNotPresent`, `Never`.
        pub image_pull_policy: String,
        /// Security settings, carried as they are.
        pub security_context: Option<Value>,
    }

    /// Declared port of a container.
    pub struct ContainerPort {
        /// Name that services may use.
        pub name: String,
        /// Number.
        pub container_port: u16,
        /// `TCP` (or empty), `UDP`, `SCTP`.
        pub protocol: String,
        /// Port on the node.
        pub host_port: Option<u16>,
        /// Address on the node.
        #[serde(rename = "hostIP")]
        pub host_ip: String,
    }

    /// Environment variable.
    pub struct EnvVar {
        /// Name.
        pub name: String,
        /// Value, with `$(NAME)` references.
        pub value: String,
        /// Source of the value instead.
        pub value_from: Option<EnvVarSource>,
    }

    /// Source of an environment value, one of four.
    pub struct EnvVarSource {
        /// Field of the pod.
        pub field_ref: Option<FieldSelector>,
        /// Resource of a container.
        pub resource_field_ref: Option<Value>,
        /// Key of a config map.
        pub config_map_key_ref: Option<KeySelector>,
        /// Key of a secret.
        pub secret_key_ref: Option<KeySelector>,
    }

    /// Field of the pod.
    pub struct FieldSelector {
        /// API version of the path.
        pub api_version: String,
        /// Path, such as `metadata.name`.
        pub field_path: String,
    }

    /// Key of a config map or secret.
    pub struct KeySelector {
        /// Object.
        pub name: String,
        /// Key.
        pub key: String,
        /// May be missing.
        pub optional: Option<bool>,
    }

    /// Environment from a whole object.
    pub struct EnvFromSource {
        /// Prefix of all names.
        pub prefix: String,
        /// Config map.
        pub config_map_ref: Option<EnvSource>,
        /// Secret.
        pub secret_ref: Option<EnvSource>,
    }

    /// Object to take an environment from.
    pub struct EnvSource {
        /// Name.
        pub name: String,
        /// May be missing.
        pub optional: Option<bool>,
    }

    /// Health check, one method of four.
    pub struct Probe {
        /// HTTP GET.
        pub http_get: Option<HttpGetAction>,
        /// Connect.
        pub tcp_socket: Option<TcpSocketAction>,
        /// Run a command.
        pub exec: Option<ExecAction>,
        /// gRPC health service.
        pub grpc: Option<GrpcAction>,
        /// Seconds before the first check.
        pub initial_delay_seconds: Option<i32>,
        /// Seconds to wait for an answer; 1 by default.
        pub timeout_seconds: Option<i32>,
        /// Seconds between checks; 10 by default.
        pub period_seconds: Option<i32>,
        /// Successes in a row before good; 1 by default.
        pub success_threshold: Option<i32>,
        /// Failures in a row before bad; 3 by default.
        pub failure_threshold: Option<i32>,
        /// Seconds between SIGTERM and SIGKILL.
        pub termination_grace_period_seconds: Option<i64>,
    }

    /// HTTP check.
    pub struct HttpGetAction {
        /// Path.
        pub path: String,
        /// Port.
        pub port: Option<IntOrString>,
        /// Host; the pod's address by default.
        pub host: String,
        /// `HTTP` or `HTTPS`.
        pub scheme: String,
        /// Headers to send.
        pub http_headers: Vec<crate::networking::HttpHeader>,
    }

    /// TCP check.
    pub struct TcpSocketAction {
        /// Port.
        pub port: Option<IntOrString>,
        /// Host; the pod's address by default.
        pub host: String,
    }

    /// Command check.
    pub struct ExecAction {
        /// Command and arguments.
        pub command: Vec<String>,
    }

    /// gRPC check.
    pub struct GrpcAction {
        /// Port.
        pub port: u16,
        /// Service name to ask for.
        pub service: Option<String>,
    }

    /// Compute resources of a container; quantities as text or number.
    pub struct ResourceRequirements {
        /// Upper limits.
        pub limits: BTreeMap<String, Value>,
        /// Reservations.
        pub requests: BTreeMap<String, Value>,
    }

    /// Mount of a volume.
    pub struct VolumeMount {
        /// Volume.
        pub name: String,
        /// Path in the container.
        pub mount_path: String,
        /// Path in the volume.
        pub sub_path: String,
        /// Not writable.
        pub read_only: bool,
    }

    /// Volume of a pod; sources are carried as they are.
    pub struct Volume {
        /// Name.
        pub name: String,
        /// Empty directory.
        pub empty_dir: Option<Value>,
        /// Config map.
        pub config_map: Option<Value>,
        /// Secret.
        pub secret: Option<Value>,
        /// Path on the node.
        pub host_path: Option<Value>,
        /// Several sources in one.
        pub projected: Option<Value>,
        /// Fields of the pod as files.
        pub downward_api: Option<Value>,
        /// Claim of a persistent volume.
        pub persistent_volume_claim: Option<Value>,
    }

    /// State of a pod.
    pub struct PodStatus {
        /// `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`.
        pub phase: String,
        /// Conditions; `Ready` decides about endpoints.
        pub conditions: Vec<PodCondition>,
        /// Explanation.
        pub message: String,
        /// Short reason.
        pub reason: String,
        /// Address of the node.
        #[serde(rename = "hostIP")]
        pub host_ip: String,
        /// Address of the pod.
        #[serde(rename = "podIP")]
        pub pod_ip: String,
        /// Addresses of both families.
        #[serde(rename = "podIPs")]
        pub pod_ips: Vec<PodIp>,
        /// RFC 3339 time of the start.
        pub start_time: Option<String>,
        /// Containers.
        pub container_statuses: Vec<ContainerStatus>,
        /// Init containers.
        pub init_container_statuses: Vec<ContainerStatus>,
    }

    /// Address of a pod.
    pub struct PodIp {
        /// The address.
        pub ip: String,
    }

    /// Condition of a pod.
    pub struct PodCondition {
        /// `Ready` and so on.
        pub r#type: String,
        /// `True`, `False`, `Unknown`.
        pub status: String,
        /// Short reason.
        pub reason: String,
        /// Explanation.
        pub message: String,
        /// RFC 3339 time of the last change.
        pub last_transition_time: Option<String>,
    }

    /// State of a container.
    pub struct ContainerStatus {
        /// Name.
        pub name: String,
        /// Image.
        pub image: String,
        /// Ready.
        pub ready: bool,
        /// Started.
        pub started: Option<bool>,
        /// Restarts so far.
        pub restart_count: i32,
        /// What it does now.
        pub state: Option<ContainerState>,
        /// What ended it last.
        pub last_state: Option<ContainerState>,
    }

    /// What a container does, one of three.
    pub struct ContainerState {
        /// Waits to start.
        pub waiting: Option<ContainerStateWaiting>,
        /// Runs.
        pub running: Option<ContainerStateRunning>,
        /// Has ended.
        pub terminated: Option<ContainerStateTerminated>,
    }

    /// Why a container waits.
    pub struct ContainerStateWaiting {
        /// Short reason, such as `CrashLoopBackOff`.
        pub reason: String,
        /// Explanation.
        pub message: String,
    }

    /// Since when a container runs.
    pub struct ContainerStateRunning {
        /// RFC 3339 time.
        pub started_at: Option<String>,
    }

    /// How a container ended.
    pub struct ContainerStateTerminated {
        /// Exit code.
        pub exit_code: i32,
        /// Short reason.
        pub reason: String,
        /// Explanation.
        pub message: String,
        /// RFC 3339 time of the start.
        pub started_at: Option<String>,
        /// RFC 3339 time of the end.
        pub finished_at: Option<String>,
    }
}

impl PodStatus {
    /// True if the pod takes traffic.
    pub fn is_ready(&self) -> bool {
        self.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True")
    }
}
