//! What bootstraps come to.

use amime_rules::Faults;
use amime_xds::json::from_yaml;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;

use super::OverloadPlan;
use super::plan::Trigger;
use super::state::share;

fn compiled(yaml: &str) -> (OverloadPlan, Vec<String>) {
    let bootstrap: Bootstrap = from_yaml(yaml).expect("a bootstrap");
    let mut faults = Faults::default();
    let manager = bootstrap.overload_manager.as_ref();
    let plan = OverloadPlan::compile(manager, bootstrap.layered_runtime.as_ref(), &mut faults);
    let faults = faults.into_list().into_iter();
    (plan, faults.map(|fault| format!("{}{fault}", if fault.fatal { "! " } else { "" })).collect())
}

fn manager(monitor: &str, rest: &str) -> String {
    let kind = "type.googleapis.com/envoy.extensions.resource_monitors";
    format!(
        "overload_manager: {{resource_monitors: [{{name: m, typed_config: {{\"@type\": \
         {kind}.{monitor}}}}}], {rest}}}"
    )
}

#[track_caller]
fn check_faults(yaml: &str, want: &[&str]) {
    assert_eq!(compiled(yaml).1, want);
}

const HEAP: &str = "fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 100";

#[test]
fn what_has_no_effect_is_named_and_what_makes_no_sense_refused() {
    let action = |name: &str, trigger: &str| {
        manager(
            HEAP,
            &format!("actions: [{{name: envoy.overload_actions.{name}, triggers: [{trigger}]}}]"),
        )
    };
    let at = "{name: m, threshold: {value: 0.9}}";
    check_faults(&action("stop_accepting_requests", at), &[]);
    check_faults(
        &action("reduce_timeouts", at),
        &[
            "overload_manager.actions[0].name: envoy.overload_actions.reduce_timeouts is not supported",
        ],
    );
    check_faults(
        &action("do_something", at),
        &[
            "! overload_manager.actions[0].name: \"envoy.overload_actions.do_something\" is no action",
        ],
    );
    check_faults(
        &action("shrink_heap", "{name: other, threshold: {value: 0.9}}"),
        &["! overload_manager.actions[0].triggers[0].name: no monitor is \"other\""],
    );
    check_faults(
        &action(
            "shrink_heap",
            "{name: m, scaled: {scaling_threshold: 0.9, saturation_threshold: 0.9}}",
        ),
        &["! overload_manager.actions[0].triggers[0].scaled: saturation must be above scaling"],
    );
    check_faults(
        &manager("fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 0", ""),
        &["! overload_manager.resource_monitors[0].max_heap_size_bytes: must be at least 1"],
    );
}

#[test]
fn limits_of_connections_come_from_the_runtime_too() {
    let (plan, faults) = compiled(
        "layered_runtime: {layers: [{name: s, static_layer: {overload: \
         {global_downstream_max_connections: 7}, \
         envoy.resource_limits.listener.a.b.connection_limit: 1, other: 3}}]}",
    );
    assert_eq!(faults, ["layered_runtime.layers[0].static_layer.other: not supported"]);
    assert_eq!(plan.max_connections, Some(7));
    let cap = plan.cap("a.b").expect("a limit");
    let one = cap.enter();
    assert!(one.is_some() && cap.enter().is_none());
    drop(one);
    assert!(cap.enter().is_some());
    assert!(plan.cap("b").is_none());
}

#[test]
fn a_trigger_scales_between_its_thresholds() {
    let scaled = Trigger { monitor: 0, from: 0.5, full: 0.75 };
    assert_eq!(
        [0.0, 0.5, 0.625, 0.75, 2.0].map(|pressure| share(scaled, &[pressure])),
        [0.0, 0.0, 0.5, 1.0, 1.0]
    );
    let threshold = Trigger { monitor: 0, from: 0.5, full: 0.5 };
    assert_eq!([0.49, 0.5].map(|pressure| share(threshold, &[pressure])), [0.0, 1.0]);
}
