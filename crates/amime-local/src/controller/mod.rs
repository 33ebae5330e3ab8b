//! From workloads to pods: what kube-controller-manager does in a cluster.
//!
//! Pure: takes all objects, says which pods to create and delete. Running
//! pods is the kubelet's job.
//!
//! Invariant: the plan for a state in which every planned step was taken is
//! empty, so that plans may be made as often as anything changes.

mod rollout;
mod workload;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use amime_api::k8s::PodSpec;
use amime_api::{Object, ObjectKey, Resource};
use serde_json::Value;

use workload::Workload;
pub(crate) use workload::random_suffix;

/// Steps towards the wanted state.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) create: Vec<Object<PodSpec>>,
    pub(crate) delete: Vec<ObjectKey>,
    /// Workloads whose status is out of date.
    pub(crate) statuses: Vec<(ObjectKey, Value)>,
}

/// A pod and what matters about it here.
struct PodView<'a> {
    object: &'a Object<PodSpec>,
    ready: bool,
    phase: String,
    terminating: bool,
}

/// Plans the next steps. `suffix` makes the random end of pod names.
pub(crate) fn plan(objects: &[Arc<Resource>], mut suffix: impl FnMut() -> String) -> Plan {
    let pods: Vec<_> = objects.iter().filter_map(PodView::of).collect();
    let workloads: Vec<_> = objects.iter().filter_map(|object| Workload::of(object)).collect();
    let mut plan = Plan::default();
    for workload in &workloads {
        let own: Vec<_> = pods.iter().filter(|pod| workload.owns(pod.object)).collect();
        rollout::plan(workload, &own, &mut suffix, &mut plan);
    }
    for pod in &pods {
        let orphaned = workload::is_controlled(&pod.object.metadata)
            && !workloads.iter().any(|workload| workload.owns(pod.object));
        if orphaned && !pod.terminating {
            plan.delete.push(key_of(pod.object));
        }
    }
    // A name is free again once the pod that had it has ended.
    plan.create.retain(|new| {
        let same = |pod: &PodView<'_>| {
            pod.object.metadata.name == new.metadata.name
                && pod.object.metadata.namespace == new.metadata.namespace
        };
        !pods.iter().any(same)
    });
    plan
}

/// The pod template of a workload, or the pod itself.
pub(crate) fn pod_spec(resource: &Resource) -> Option<&PodSpec> {
    match resource {
        Resource::Pod(pod) => Some(&pod.spec),
        other => workload::template(other).map(|template| &template.spec),
    }
}

impl<'a> PodView<'a> {
    fn of(resource: &'a Arc<Resource>) -> Option<Self> {
        let Resource::Pod(object) = &**resource else { return None };
        let status: amime_api::k8s::PodStatus = object.status_as();
        Some(Self {
            object,
            ready: status.is_ready(),
            phase: status.phase,
            terminating: object.metadata.deletion_timestamp.is_some(),
        })
    }
}

fn key_of(pod: &Object<PodSpec>) -> ObjectKey {
    ObjectKey {
        kind: amime_api::Kind::Pod,
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
    }
}
