//! Pressures as they are read, and the actions that follow.

use std::sync::Arc;

use amime_telemetry::{SharedCounter, SharedGauge, Telemetry};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::plan::{Act, Monitor, OverloadPlan, Resource, Trigger};
use super::{Actions, Share};

/// Numbers of the process that operators look at.
struct Numbers {
    pressures: Vec<SharedGauge>,
    failed: Vec<SharedCounter>,
    /// By action, whether it is on and how much.
    actions: Vec<Option<(SharedGauge, SharedGauge)>>,
    shrunk: SharedCounter,
}

impl Numbers {
    fn new(plan: &OverloadPlan, telemetry: &Telemetry) -> Self {
        let gauge = |name: &str, what: &str| telemetry.gauge(&format!("overload.{name}.{what}"));
        let counter =
            |name: &str, what: &str| telemetry.counter(&format!("overload.{name}.{what}"), &[]);
        let monitors = plan.monitors.iter();
        Self {
            pressures: monitors.clone().map(|one| gauge(&one.name, "pressure")).collect(),
            failed: monitors.map(|one| counter(&one.name, "failed_updates")).collect(),
            actions: plan
                .actions
                .iter()
                .map(|one| {
                    one.counted
                        .then(|| (gauge(&one.name, "active"), gauge(&one.name, "scale_percent")))
                })
                .collect(),
            shrunk: counter("envoy.overload_actions.shrink_heap", "shrink_count"),
        }
    }
}

/// Reads the pressures time and again, for as long as somebody listens.
pub(crate) async fn watch_pressures(
    plan: Arc<OverloadPlan>,
    telemetry: Arc<Telemetry>,
    tell: watch::Sender<Actions>,
) {
    if plan.is_idle() {
        return;
    }
    let numbers = Numbers::new(&plan, &telemetry);
    let mut pressures = vec![0.0; plan.monitors.len()];
    let mut tick = tokio::time::interval(plan.refresh);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !tell.is_closed() {
        tick.tick().await;
        for (at, monitor) in plan.monitors.iter().enumerate() {
            // What cannot be read stays as it was.
            match pressure(monitor) {
                Some(read) => pressures[at] = read,
                None => numbers.failed[at].inc(),
            }
            numbers.pressures[at].set(percent(pressures[at]));
        }
        let (actions, shrink) = follow(&plan, &pressures, &numbers);
        tell.send_if_modified(|have| std::mem::replace(have, actions) != actions);
        if shrink {
            amime_net::memory::release_free_heap();
            numbers.shrunk.inc();
        }
    }
}

/// The actions at these pressures, and whether memory is to be given back.
fn follow(plan: &OverloadPlan, pressures: &[f64], numbers: &Numbers) -> (Actions, bool) {
    let (mut actions, mut shrink) = (Actions::default(), false);
    for (action, numbers) in plan.actions.iter().zip(&numbers.actions) {
        let shares = action.triggers.iter().map(|trigger| share(*trigger, pressures));
        let share = shares.fold(0.0, f64::max);
        if let Some((active, scale)) = numbers {
            active.set(i64::from(share >= 1.0));
            scale.set(percent(share));
        }
        let most = |have: &mut Share| have.0 = have.0.max(share);
        match action.act {
            Act::RefuseRequests => most(&mut actions.refuse_requests),
            Act::CloseConnections => most(&mut actions.close_connections),
            Act::RejectConnections => most(&mut actions.reject_connections),
            Act::AcceptNone => actions.accept_none |= share >= 1.0,
            Act::ShrinkHeap => shrink |= share >= 1.0,
        }
    }
    (actions, shrink)
}

pub(super) fn share(trigger: Trigger, pressures: &[f64]) -> f64 {
    let Trigger { monitor, from, full } = trigger;
    let pressure = pressures[monitor];
    if pressure >= full {
        1.0
    } else if pressure <= from {
        0.0
    } else {
        (pressure - from) / (full - from)
    }
}

/// How much of the resource is used, 1 for all of it.
fn pressure(monitor: &Monitor) -> Option<f64> {
    match &monitor.resource {
        Resource::Heap { max } => {
            let used = amime_net::memory::anonymous_bytes().ok()?;
            Some(used as f64 / *max as f64)
        }
        Resource::File(path) => {
            let read: f64 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
            (0.0..=1.0).contains(&read).then_some(read)
        }
    }
}

fn percent(share: f64) -> i64 {
    (share * 100.0) as i64
}
