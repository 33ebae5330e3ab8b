//! How many pods a workload has and should have.
//!
//! A changed template brings new pods first; an old one goes when a new one
//! is ready to take its place, so that the number of ready pods never drops.

use amime_api::Kind;
use serde_json::json;

use super::workload::{Mode, Workload};
use super::{Plan, PodView, key_of};

/// Adds the steps for one workload and its pods.
pub(super) fn plan(
    workload: &Workload<'_>,
    pods: &[&PodView<'_>],
    suffix: &mut impl FnMut() -> String,
    plan: &mut Plan,
) {
    let live: Vec<_> = pods.iter().copied().filter(|pod| !pod.terminating).collect();
    match workload.mode {
        Mode::Replicas(wanted) => replicas(workload, wanted as usize, &live, suffix, plan),
        Mode::Ordinals(wanted) => ordinals(workload, wanted as usize, &live, plan),
        Mode::Completions { wanted, parallel, failures } => {
            let limits = (wanted as usize, parallel as usize, failures as usize);
            completions(workload, limits, &live, suffix, plan);
        }
    }
    status(workload, &live, plan);
}

fn replicas(
    workload: &Workload<'_>,
    wanted: usize,
    live: &[&PodView<'_>],
    suffix: &mut impl FnMut() -> String,
    plan: &mut Plan,
) {
    let (current, old): (Vec<_>, Vec<_>) =
        live.iter().copied().partition(|pod| workload.is_current(pod.object));
    for _ in current.len()..wanted {
        plan.create.push(workload.new_pod(&suffix()));
    }
    let ready = current.iter().filter(|pod| pod.ready).count();
    remove(current, wanted, plan);
    remove(old, wanted.saturating_sub(ready), plan);
}

/// Deletes all but `keep` pods: those that are not ready first, then the
/// youngest.
fn remove(mut pods: Vec<&PodView<'_>>, keep: usize, plan: &mut Plan) {
    pods.sort_by_key(|pod| {
        let age = pod.object.metadata.creation_timestamp.clone();
        (!pod.ready, age, pod.object.metadata.name.clone())
    });
    plan.delete.extend(pods.iter().skip(keep).map(|pod| key_of(pod.object)));
}

fn ordinals(workload: &Workload<'_>, wanted: usize, live: &[&PodView<'_>], plan: &mut Plan) {
    let names: Vec<_> = (0..wanted).map(|n| format!("{}-{n}", workload.resource.name())).collect();
    let outdated = |pod: &&&PodView<'_>| !workload.is_current(pod.object);
    for pod in live.iter().filter(|pod| !names.contains(&pod.object.metadata.name)) {
        plan.delete.push(key_of(pod.object));
    }
    // Replaced one at a time, the last first, because the name must be free
    // before the next one can have it.
    let all_ready = live.len() >= wanted && live.iter().all(|pod| pod.ready);
    let mut candidates: Vec<_> = live.iter().filter(outdated).collect();
    candidates.sort_by_key(|pod| std::cmp::Reverse(pod.object.metadata.name.clone()));
    if all_ready && let Some(pod) = candidates.first() {
        plan.delete.push(key_of(pod.object));
    }
    for (n, name) in names.iter().enumerate() {
        if !live.iter().any(|pod| pod.object.metadata.name == *name) {
            plan.create.push(workload.new_pod(&n.to_string()));
        }
    }
}

fn completions(
    workload: &Workload<'_>,
    (wanted, parallel, failures): (usize, usize, usize),
    live: &[&PodView<'_>],
    suffix: &mut impl FnMut() -> String,
    plan: &mut Plan,
) {
    let count = |phase: &str| live.iter().filter(|pod| pod.phase == phase).count();
    let (succeeded, failed) = (count("Succeeded"), count("Failed"));
    let active = live.len() - succeeded - failed;
    if failed > failures {
        return;
    }
    let missing = wanted.saturating_sub(succeeded).min(parallel).saturating_sub(active);
    for _ in 0..missing {
        plan.create.push(workload.new_pod(&suffix()));
    }
}

fn status(workload: &Workload<'_>, live: &[&PodView<'_>], plan: &mut Plan) {
    let count = |test: &dyn Fn(&PodView<'_>) -> bool| live.iter().filter(|pod| test(pod)).count();
    let ready = count(&|pod| pod.ready);
    let current = count(&|pod| workload.is_current(pod.object));
    let status = match workload.resource.kind() {
        Kind::Job => json!({
            "active": count(&|pod| !matches!(pod.phase.as_str(), "Succeeded" | "Failed")),
            "succeeded": count(&|pod| pod.phase == "Succeeded"),
            "failed": count(&|pod| pod.phase == "Failed"),
        }),
        Kind::DaemonSet => json!({
            "desiredNumberScheduled": 1,
            "currentNumberScheduled": live.len(),
            "updatedNumberScheduled": current,
            "numberReady": ready,
            "numberAvailable": ready,
        }),
        _ => json!({
            "replicas": live.len(),
            "updatedReplicas": current,
            "readyReplicas": ready,
            "availableReplicas": ready,
        }),
    };
    if workload.resource.status() != Some(&status) {
        plan.statuses.push((workload.resource.key(), status));
    }
}
