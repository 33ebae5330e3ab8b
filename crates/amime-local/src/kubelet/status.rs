//! What the object of a pod says about it.

use std::sync::Arc;
use std::time::SystemTime;

use amime_api::k8s::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, PodCondition, PodIp, PodSpec, PodStatus,
};
use amime_api::{Object, Resource};
use time::format_description::well_known::Rfc3339;

use super::Pod;
use super::container::{self, ContainerHandle, ContainerPhase};
use crate::cluster::Cluster;

/// Writes the pod's status into the store, if the pod is still there and
/// anything changed.
pub(super) fn publish(cluster: &Cluster, pod: &Arc<Pod>) {
    let status = of(pod);
    put(cluster, &pod.object, &pod.uid, &status);
}

/// Says why a pod could not be set up.
pub(super) fn publish_failure(cluster: &Cluster, object: Object<PodSpec>, message: &str) {
    let uid = object.metadata.uid.clone().unwrap_or_default();
    let status = PodStatus {
        phase: "Failed".to_owned(),
        reason: "CreatePodSandboxError".to_owned(),
        message: message.to_owned(),
        ..PodStatus::default()
    };
    put(cluster, &object, &uid, &status);
}

fn put(cluster: &Cluster, object: &Object<PodSpec>, uid: &str, status: &PodStatus) {
    let key = Resource::Pod(object.clone()).key();
    let Ok(stored) = cluster.store.get(&key) else { return };
    let held = stored.metadata();
    if held.uid.as_deref() != Some(uid) {
        return;
    }
    let mut updated = object.clone();
    // Labels may have been changed since the pod started.
    for (label, value) in &held.labels {
        updated.metadata.labels.insert(label.clone(), value.clone());
    }
    updated.status = Some(prune(serde_json::to_value(status).unwrap_or_default()));
    let updated = Resource::Pod(updated);
    if stored.status() == updated.status() && held.labels == updated.metadata().labels {
        return;
    }
    if let Err(error) = cluster.store.put(updated) {
        tracing::warn!(pod = %key, %error, "the status of a pod was not stored");
    }
}

fn of(pod: &Pod) -> PodStatus {
    let (init, main): (Vec<_>, Vec<_>) =
        pod.containers.iter().partition(|container| container.is_init);
    let statuses: Vec<_> = main.iter().map(|container| container_status(container)).collect();
    let ready = !statuses.is_empty() && statuses.iter().all(|status| status.ready);
    let running = |container: &&Arc<ContainerHandle>| {
        !matches!(
            container.view().phase,
            ContainerPhase::Waiting { reason: "ContainerCreating" | "PodInitializing", .. }
        )
    };
    let failed = main.iter().any(|container| {
        matches!(container.view().phase, ContainerPhase::Terminated { exit, .. } if exit != 0)
    });
    let phase = match () {
        () if container::all_done(pod) && failed => "Failed",
        () if container::all_done(pod) => "Succeeded",
        () if main.iter().any(running) => "Running",
        () => "Pending",
    };
    let condition = |kind: &str, holds: bool| PodCondition {
        r#type: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        ..PodCondition::default()
    };
    let initialized = init.iter().all(|container| {
        matches!(container.view().phase, ContainerPhase::Terminated { exit: 0, .. })
    });
    PodStatus {
        phase: phase.to_owned(),
        conditions: vec![
            condition("PodScheduled", true),
            condition("Initialized", initialized),
            condition("ContainersReady", ready),
            condition("Ready", ready),
        ],
        host_ip: crate::address::ROUTER.to_string(),
        pod_ip: pod.address.to_string(),
        pod_ips: vec![PodIp { ip: pod.address.to_string() }],
        start_time: pod.object.metadata.creation_timestamp.clone(),
        container_statuses: statuses,
        init_container_statuses: init.iter().map(|container| container_status(container)).collect(),
        ..PodStatus::default()
    }
}

fn container_status(container: &ContainerHandle) -> ContainerStatus {
    let view = container.view();
    let mut state = ContainerState::default();
    match &view.phase {
        ContainerPhase::Waiting { reason, message } => {
            let reason = (*reason).to_owned();
            state.waiting = Some(ContainerStateWaiting { reason, message: message.clone() });
        }
        ContainerPhase::Running { since, .. } => {
            state.running = Some(ContainerStateRunning { started_at: Some(rfc3339(*since)) });
        }
        ContainerPhase::Terminated { exit, at } => {
            state.terminated = Some(terminated(*exit, *at));
        }
    }
    let last_state = view.last.filter(|_| state.terminated.is_none()).map(|(exit, at)| {
        ContainerState { terminated: Some(terminated(exit, at)), ..ContainerState::default() }
    });
    let completed_init =
        container.is_init && matches!(view.phase, ContainerPhase::Terminated { exit: 0, .. });
    ContainerStatus {
        name: container.name().to_owned(),
        image: container.spec.image.clone(),
        ready: view.ready || completed_init,
        started: Some(matches!(view.phase, ContainerPhase::Running { .. })),
        restart_count: i32::try_from(view.restarts).unwrap_or(i32::MAX),
        state: Some(state),
        last_state,
    }
}

fn terminated(exit: i32, at: SystemTime) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: exit,
        reason: if exit == 0 { "Completed" } else { "Error" }.to_owned(),
        finished_at: Some(rfc3339(at)),
        ..ContainerStateTerminated::default()
    }
}

fn rfc3339(time: SystemTime) -> String {
    time::OffsetDateTime::from(time).truncate_to_second().format(&Rfc3339).unwrap_or_default()
}

/// Leaves out what is not set.
fn prune(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| (key, prune(value)))
            .filter(|(_, value)| match value {
                Value::Null => false,
                Value::String(text) => !text.is_empty(),
                Value::Array(items) => !items.is_empty(),
                _ => true,
            })
            .collect(),
        Value::Array(items) => items.into_iter().map(prune).collect(),
        other => other,
    }
}
