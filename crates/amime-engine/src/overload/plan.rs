//! A bootstrap's `overload_manager`, and its other limits of connections.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use amime_rules::Faults;
use envoy_types::pb::envoy::config::bootstrap::v3::{LayeredRuntime, runtime_layer};
use envoy_types::pb::envoy::config::overload::v3::trigger::TriggerOneof;
use envoy_types::pb::envoy::config::overload::v3::{
    OverloadManager, ResourceMonitor, Trigger as TriggerConfig, resource_monitor,
};
use envoy_types::pb::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
use envoy_types::pb::envoy::extensions::resource_monitors::fixed_heap::v3::FixedHeapConfig;
use envoy_types::pb::envoy::extensions::resource_monitors::injected_resource::v3::InjectedResourceConfig;
use envoy_types::pb::google::protobuf::{Any, Struct, value::Kind};
use prost::{Message, Name};

/// What is watched, and what follows.
#[derive(Debug, Default)]
pub struct OverloadPlan {
    pub(super) refresh: Duration,
    pub(super) monitors: Vec<Monitor>,
    pub(super) actions: Vec<Action>,
    /// Connections of clients that all listeners together may have.
    pub(crate) max_connections: Option<u64>,
    caps: HashMap<String, Arc<ListenerCap>>,
}

/// A resource that can be used up.
#[derive(Debug)]
pub(super) struct Monitor {
    pub(super) name: String,
    pub(super) resource: Resource,
}

#[derive(Debug)]
pub(super) enum Resource {
    /// Bytes of memory that are no program's file.
    Heap { max: u64 },
    /// A number in a file, for tests.
    File(PathBuf),
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    RefuseRequests,
    CloseConnections,
    AcceptNone,
    RejectConnections,
    ShrinkHeap,
}

#[derive(Debug)]
pub(super) struct Action {
    pub(super) name: String,
    pub(super) act: Act,
    pub(super) triggers: Vec<Trigger>,
    /// A point of Envoy's at which load is shed has no numbers of an action.
    pub(super) counted: bool,
}

/// When it is done, by the place of the monitor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trigger {
    pub(super) monitor: usize,
    /// Nothing is done up to here.
    pub(super) from: f64,
    /// All is done from here on.
    pub(super) full: f64,
}

/// Connections that one listener may have, of all workers.
#[derive(Debug)]
pub(crate) struct ListenerCap {
    max: u64,
    open: AtomicU64,
}

/// A connection that counts until dropped.
#[derive(Debug)]
pub(crate) struct Counted(Arc<ListenerCap>);

impl ListenerCap {
    /// Counts one more in, unless it is one too many.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Counted> {
        let one_more = |open| (open < self.max).then_some(open + 1);
        let entered = self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        entered.is_ok().then(|| Counted(self.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

const REFRESH: Duration = Duration::from_secs(1);

impl OverloadPlan {
    /// Compiles what a bootstrap says; all that has no effect is reported.
    pub fn compile(
        manager: Option<&OverloadManager>,
        runtime: Option<&LayeredRuntime>,
        faults: &mut Faults,
    ) -> Self {
        let mut plan = Self { refresh: REFRESH, ..Self::default() };
        if let Some(manager) = manager {
            faults.within("overload_manager", |faults| plan.take(manager, faults));
        }
        for (index, layer) in runtime.iter().flat_map(|it| it.layers.iter().enumerate()) {
            let field = format!("layered_runtime.layers[{index}]");
            faults.within(field, |faults| match &layer.layer_specifier {
                Some(runtime_layer::LayerSpecifier::StaticLayer(values)) => {
                    faults.within("static_layer", |faults| plan.take_runtime("", values, faults));
                }
                Some(runtime_layer::LayerSpecifier::AdminLayer(_)) | None => {}
                Some(_) => faults.ignore("layer_specifier", "only static layers are read"),
            });
        }
        plan
    }

    /// The limit of a listener.
    pub(crate) fn cap(&self, listener: &str) -> Option<Arc<ListenerCap>> {
        self.caps.get(listener).cloned()
    }

    /// True if there is nothing to look at.
    pub(super) fn is_idle(&self) -> bool {
        self.actions.is_empty() && self.monitors.is_empty()
    }

    fn take(&mut self, manager: &OverloadManager, faults: &mut Faults) {
        if let Some(every) = &manager.refresh_interval {
            let every = amime_rules::values::duration(every);
            self.refresh = every.max(Duration::from_millis(1));
        }
        faults.ignore_if(manager.buffer_factory_config.is_some(), "buffer_factory_config");
        for (index, monitor) in manager.resource_monitors.iter().enumerate() {
            faults.within(format!("resource_monitors[{index}]"), |faults| {
                self.take_monitor(monitor, faults);
            });
        }
        for (index, action) in manager.actions.iter().enumerate() {
            faults.within(format!("actions[{index}]"), |faults| {
                let act = match action.name.as_str() {
                    "envoy.overload_actions.stop_accepting_requests" => Act::RefuseRequests,
                    "envoy.overload_actions.disable_http_keepalive" => Act::CloseConnections,
                    "envoy.overload_actions.stop_accepting_connections" => Act::AcceptNone,
                    "envoy.overload_actions.reject_incoming_connections" => Act::RejectConnections,
                    "envoy.overload_actions.shrink_heap" => Act::ShrinkHeap,
                    "envoy.overload_actions.reduce_timeouts"
                    | "envoy.overload_actions.reset_high_memory_stream" => {
                        return faults.ignore("name", format!("{} is not supported", action.name));
                    }
                    other => return faults.reject("name", format!("{other:?} is no action")),
                };
                faults.ignore_if(action.typed_config.is_some(), "typed_config");
                self.act(act, (&action.name, true), &action.triggers, faults);
            });
        }
        for (index, point) in manager.loadshed_points.iter().enumerate() {
            faults.within(format!("loadshed_points[{index}]"), |faults| {
                let act = match point.name.as_str() {
                    "envoy.load_shed_points.tcp_listener_accept" => Act::RejectConnections,
                    "envoy.load_shed_points.http_connection_manager_decode_headers" => {
                        Act::RefuseRequests
                    }
                    other => return faults.ignore("name", format!("{other:?} is not supported")),
                };
                self.act(act, (&point.name, false), &point.triggers, faults);
            });
        }
    }

    /// Notes an action of this name, which is `counted` or not.
    fn act(
        &mut self,
        act: Act,
        (name, counted): (&str, bool),
        triggers: &[TriggerConfig],
        faults: &mut Faults,
    ) {
        let triggers = self.triggers(triggers, faults);
        self.actions.push(Action { name: name.to_owned(), act, triggers, counted });
    }

    fn take_monitor(&mut self, monitor: &ResourceMonitor, faults: &mut Faults) {
        let Some(resource_monitor::ConfigType::TypedConfig(any)) = &monitor.config_type else {
            return faults.reject("typed_config", "missing");
        };
        if let Some(config) = read::<DownstreamConnectionsConfig>(any) {
            match u64::try_from(config.max_active_downstream_connections) {
                Ok(max) if max > 0 => self.max_connections = Some(max),
                _ => faults.reject("max_active_downstream_connections", "must be at least 1"),
            }
            return;
        }
        let resource = if let Some(config) = read::<FixedHeapConfig>(any) {
            if config.max_heap_size_bytes == 0 {
                return faults.reject("max_heap_size_bytes", "must be at least 1");
            }
            Resource::Heap { max: config.max_heap_size_bytes }
        } else if let Some(config) = read::<InjectedResourceConfig>(any) {
            Resource::File(config.filename.into())
        } else {
            return faults.reject("typed_config", format!("{} is not supported", any.type_url));
        };
        self.monitors.push(Monitor { name: monitor.name.clone(), resource });
    }

    fn triggers(&self, triggers: &[TriggerConfig], faults: &mut Faults) -> Vec<Trigger> {
        let mut compiled = Vec::new();
        for (index, trigger) in triggers.iter().enumerate() {
            faults.within(format!("triggers[{index}]"), |faults| {
                let named = |one: &Monitor| one.name == trigger.name;
                let Some(monitor) = self.monitors.iter().position(named) else {
                    return faults.reject("name", format!("no monitor is {:?}", trigger.name));
                };
                let (from, full) = match trigger.trigger_oneof {
                    Some(TriggerOneof::Threshold(it)) => (it.value, it.value),
                    Some(TriggerOneof::Scaled(it))
                        if it.scaling_threshold >= it.saturation_threshold =>
                    {
                        return faults.reject("scaled", "saturation must be above scaling");
                    }
                    Some(TriggerOneof::Scaled(it)) => {
                        (it.scaling_threshold, it.saturation_threshold)
                    }
                    None => return faults.reject("threshold", "neither this nor scaled is set"),
                };
                compiled.push(Trigger { monitor, from, full });
            });
        }
        compiled
    }

    /// Keys of a runtime layer, nested or dotted.
    fn take_runtime(&mut self, prefix: &str, values: &Struct, faults: &mut Faults) {
        for (name, value) in &values.fields {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            let number = match &value.kind {
                Some(Kind::StructValue(inner)) => {
                    self.take_runtime(&key, inner, faults);
                    continue;
                }
                Some(Kind::NumberValue(number)) => Some(*number),
                Some(Kind::StringValue(text)) => text.parse().ok(),
                _ => None,
            };
            // Whole numbers beyond what a float holds exactly limit nothing.
            let number = number.filter(|it| *it >= 0.0).map(|it| it as u64);
            let listener = key
                .strip_prefix("envoy.resource_limits.listener.")
                .and_then(|rest| rest.strip_suffix(".connection_limit"));
            match (listener, number) {
                (Some(listener), Some(max)) => {
                    let cap = Arc::new(ListenerCap { max, open: AtomicU64::new(0) });
                    self.caps.insert(listener.to_owned(), cap);
                }
                (None, Some(max)) if key == "overload.global_downstream_max_connections" => {
                    self.max_connections.get_or_insert(max);
                }
                _ => faults.ignore(&key, "not supported"),
            }
        }
    }
}

/// The message, if it is of this type.
fn read<M: Message + Name + Default>(any: &Any) -> Option<M> {
    amime_rules::values::is::<M>(any).then(|| M::decode(any.value.as_slice()).ok())?
}
