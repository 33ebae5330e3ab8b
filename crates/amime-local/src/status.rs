//! What `amime status` shows, as served by the supervisor.

use serde::{Deserialize, Serialize};

/// Answer of `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshStatus {
    /// Version of the supervisor.
    pub version: String,
    /// Where the host reaches the ingress gateway.
    pub url: String,
    /// The state directory.
    pub state_dir: String,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Resident bytes of the supervisor.
    pub supervisor_rss_bytes: u64,
    /// Pods, sorted by namespace and name.
    pub pods: Vec<PodReport>,
    /// Sums.
    pub totals: Totals,
}

/// Sums over all pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Pods.
    pub pods: u32,
    /// Pods that are ready.
    pub ready_pods: u32,
    /// Pods with a sidecar.
    pub meshed_pods: u32,
    /// Restarts of all containers.
    pub restarts: u32,
    /// Resident bytes of the mesh itself: supervisor, control plane, gateways
    /// and sidecars.
    pub mesh_rss_bytes: u64,
    /// Resident bytes of the largest sidecar.
    pub largest_sidecar_rss_bytes: u64,
    /// Resident bytes of the applications.
    pub application_rss_bytes: u64,
}

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodReport {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Address within the mesh.
    pub ip: String,
    /// Traffic goes through a sidecar.
    pub meshed: bool,
    /// Every container is ready.
    pub ready: bool,
    /// `Running`, `CrashLoopBackOff` and so on, as in `kubectl get pods`.
    pub state: String,
    /// Why it is not ready; empty if it is.
    pub message: String,
    /// Containers.
    pub containers: Vec<ContainerReport>,
}

/// One container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerReport {
    /// Name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// `Running`, `Completed`, `Error` or why it waits.
    pub state: String,
    /// Passed its readiness probe.
    pub ready: bool,
    /// Restarts so far.
    pub restarts: u32,
    /// Resident bytes of its process; 0 if it does not run.
    pub rss_bytes: u64,
}

/// What a container is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// The user's.
    #[default]
    Application,
    /// The proxy beside an application.
    Sidecar,
    /// A gateway's proxy.
    Gateway,
    /// The control plane.
    ControlPlane,
}
