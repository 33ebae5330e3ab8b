//! The status report: pods, containers and what they take of memory.

use std::sync::Arc;

use crate::cluster::{Cluster, MESH_NAMESPACE};
use crate::kubelet::{ContainerHandle, ContainerPhase, Pod};
use crate::sidecar::PROXY_CONTAINER;
use crate::status::{ContainerReport, MeshStatus, PodReport, Role, Totals};

pub(super) fn mesh(cluster: &Cluster) -> MeshStatus {
    let pods: Vec<_> = cluster.pods().iter().map(pod).collect();
    let supervisor_rss_bytes = rss_bytes("self");
    let mut totals = Totals { mesh_rss_bytes: supervisor_rss_bytes, ..Totals::default() };
    for pod in &pods {
        totals.pods += 1;
        totals.ready_pods += u32::from(pod.ready);
        totals.meshed_pods += u32::from(pod.meshed);
        for container in &pod.containers {
            totals.restarts += container.restarts;
            if container.role == Role::Application {
                totals.application_rss_bytes += container.rss_bytes;
            } else {
                totals.mesh_rss_bytes += container.rss_bytes;
            }
            if container.role == Role::Sidecar {
                let largest = &mut totals.largest_sidecar_rss_bytes;
                *largest = container.rss_bytes.max(*largest);
            }
        }
    }
    MeshStatus {
        version: amime_core::build::VERSION.to_owned(),
        url: cluster.url.clone(),
        state_dir: cluster.state.root().display().to_string(),
        uptime_s: cluster.started.elapsed().as_secs(),
        supervisor_rss_bytes,
        pods,
        totals,
    }
}

fn pod(pod: &Arc<Pod>) -> PodReport {
    let containers: Vec<_> = pod.containers.iter().filter(|c| !c.is_init).collect();
    let ready = containers.iter().all(|container| container.view().ready);
    let (state, message) = state_of(&pod.containers);
    PodReport {
        namespace: pod.name.namespace.clone(),
        name: pod.name.name.clone(),
        ip: pod.address.to_string(),
        meshed: pod.meshed,
        ready,
        state,
        message,
        containers: containers.iter().map(|container| container_report(pod, container)).collect(),
    }
}

/// The state of the first container that does not run well.
fn state_of(containers: &[Arc<ContainerHandle>]) -> (String, String) {
    for container in containers {
        let view = container.view();
        match view.phase {
            ContainerPhase::Waiting { reason, message } => return (reason.to_owned(), message),
            ContainerPhase::Terminated { exit, .. } if exit != 0 => {
                let name = container.name();
                return ("Error".to_owned(), format!("container {name} exited with {exit}"));
            }
            ContainerPhase::Running { .. } if !view.ready && !container.is_init => {
                let message = format!("container {} is not ready", container.name());
                return ("Running".to_owned(), message);
            }
            _ => {}
        }
    }
    ("Running".to_owned(), String::new())
}

fn container_report(pod: &Pod, container: &ContainerHandle) -> ContainerReport {
    let view = container.view();
    let (state, rss) = match &view.phase {
        ContainerPhase::Waiting { reason, .. } => ((*reason).to_owned(), 0),
        ContainerPhase::Running { pid, .. } => ("Running".to_owned(), rss_bytes(&pid.to_string())),
        ContainerPhase::Terminated { exit: 0, .. } => ("Completed".to_owned(), 0),
        ContainerPhase::Terminated { .. } => ("Error".to_owned(), 0),
    };
    ContainerReport {
        name: container.name().to_owned(),
        role: role(pod, container),
        state,
        ready: view.ready,
        restarts: view.restarts,
        rss_bytes: rss,
    }
}

fn role(pod: &Pod, container: &ContainerHandle) -> Role {
    let is_proxy = container.name() == PROXY_CONTAINER;
    match () {
        () if is_proxy && pod.meshed => Role::Sidecar,
        () if is_proxy => Role::Gateway,
        () if pod.name.namespace == MESH_NAMESPACE => Role::ControlPlane,
        () => Role::Application,
    }
}

/// Resident bytes of a process; 0 if it is gone.
fn rss_bytes(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
