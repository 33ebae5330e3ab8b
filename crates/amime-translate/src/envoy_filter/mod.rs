//! Patches that users apply to what is generated (`EnvoyFilter`).
//!
//! Owns which patches hold for a proxy, what they match, and what they do.
//! Validation has refused patches that are not Envoy's messages; those that
//! slip through are skipped here.
//!
//! A filter that the proxy does not have is left out for it, if it names its
//! extensions: it would refuse the whole listener.
//!
//! Spec: <https://istio.io/latest/docs/reference/config/networking/envoy-filter/>

mod cluster;
mod extension;
mod filters;
mod list;
mod listener;
mod prune;
mod route;

use amime_api::networking::{
    ApplyTo, EnvoyConfigObjectMatch, EnvoyConfigObjectPatch, EnvoyFilter, ListenerMatch,
    PatchContext, PatchOperation, RouteConfigurationMatch,
};
use amime_model::Config;
use amime_xds::json::{JsonMessage, Lists};
use prost::{Message, Name};
use regex::Regex;

pub(crate) use cluster::ClusterPatcher;
pub(crate) use extension::extension_configs;
pub(crate) use listener::patch_listeners;
pub(crate) use route::patch_routes;

use crate::context::Context;
use crate::proxy::{Proxy, ProxyKind};

/// Longest pattern of a proxy version, as upstream; a longer one matches none.
const MAX_VERSION_PATTERN: usize = 1024;

/// Part of a proxy that a patch may be restricted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Inbound,
    Outbound,
    Gateway,
}

impl Side {
    /// The side of everything that leaves the proxy.
    pub(crate) fn outbound_of(proxy: &Proxy) -> Self {
        match proxy.kind {
            ProxyKind::Sidecar => Self::Outbound,
            ProxyKind::Router => Self::Gateway,
        }
    }

    fn is(self, context: PatchContext) -> bool {
        match context {
            PatchContext::Any => true,
            PatchContext::SidecarInbound => self == Self::Inbound,
            PatchContext::SidecarOutbound => self == Self::Outbound,
            PatchContext::Gateway => self == Self::Gateway,
            PatchContext::Waypoint => false,
        }
    }

    /// True where an object is added that no context was given for: once a
    /// proxy, not on each side of it.
    fn takes_additions(self, context: PatchContext) -> bool {
        self.is(context) && (context != PatchContext::Any || self != Self::Inbound)
    }
}

/// One patch, its value read.
struct Patch {
    kind: ApplyTo,
    operation: PatchOperation,
    matched: EnvoyConfigObjectMatch,
    value: Option<JsonMessage>,
}

impl Patch {
    /// The patch, if it is for this proxy and can be read.
    fn read(proxy: &Proxy, patch: &EnvoyConfigObjectPatch) -> Option<Self> {
        let matched = patch.r#match.clone().unwrap_or_default();
        if !is_for(proxy, &matched) {
            return None;
        }
        let change = patch.patch.as_ref()?;
        let value = match (&change.value, change.operation) {
            (_, PatchOperation::Remove) => None,
            (None, _) => return None,
            (Some(value), operation) => {
                let merges = operation == PatchOperation::Merge;
                let value = prune::for_proxy(proxy, value, merges)?;
                Some(JsonMessage::read(patch.apply_to.message()?, &value).ok()?)
            }
        };
        let operation = placed(patch.apply_to, change.operation);
        Some(Self { kind: patch.apply_to, operation, matched, value })
    }

    fn listener(&self) -> Option<&ListenerMatch> {
        self.matched.listener.as_ref()
    }

    fn routes(&self) -> Option<&RouteConfigurationMatch> {
        self.matched.route_configuration.as_ref()
    }

    /// The value as a message of its kind.
    fn message<M: Message + Name + Default>(&self) -> Option<M> {
        self.value.as_ref()?.to().ok()
    }

    /// How it treats lists, if it merges.
    fn merges(&self) -> Option<Lists> {
        match self.operation {
            PatchOperation::Merge => Some(Lists::Append),
            PatchOperation::MergeAndReplaceList => Some(Lists::Replace),
            _ => None,
        }
    }

    fn merge_into<M: Message + Name + Default>(&self, target: &mut M) {
        if let (Some(lists), Some(value)) = (self.merges(), &self.value) {
            // Types agree by construction; a value that cannot be merged for
            // any other reason leaves the target as it was.
            drop(value.merge_into(target, lists));
        }
    }
}

/// Only things in an order have places; elsewhere, inserting is adding.
fn placed(kind: ApplyTo, operation: PatchOperation) -> PatchOperation {
    let ordered = matches!(
        kind,
        ApplyTo::HttpFilter | ApplyTo::NetworkFilter | ApplyTo::HttpRoute | ApplyTo::ListenerFilter
    );
    match operation {
        PatchOperation::InsertAfter
        | PatchOperation::InsertBefore
        | PatchOperation::InsertFirst
            if !ordered =>
        {
            PatchOperation::Add
        }
        own => own,
    }
}

fn is_for(proxy: &Proxy, matched: &EnvoyConfigObjectMatch) -> bool {
    let Some(wanted) = &matched.proxy else { return true };
    let pattern = wanted.proxy_version.as_str();
    let version = proxy.text("ISTIO_VERSION");
    let versioned = pattern.is_empty()
        || (pattern.len() <= MAX_VERSION_PATTERN
            && !version.is_empty()
            && Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(version)));
    versioned && wanted.metadata.iter().all(|(key, value)| proxy.text(key) == value)
}

/// The patches of one proxy, in order.
#[derive(Default)]
pub(crate) struct Patches(Vec<Patch>);

impl Patches {
    pub(crate) fn of(context: &Context<'_>) -> Self {
        let index = context.snapshot.envoy_filters();
        let filters = index.for_workload(&context.proxy.namespace, &context.labels);
        let all = filters.into_iter().flat_map(|filter| read_all(context.proxy, filter));
        Self(all.collect())
    }

    /// Patches of these kinds for one side, in order.
    fn on<'p>(&'p self, side: Side, kinds: &'p [ApplyTo]) -> Vec<&'p Patch> {
        let own = |patch: &&Patch| kinds.contains(&patch.kind) && side.is(patch.matched.context);
        self.0.iter().filter(own).collect()
    }
}

fn read_all<'f>(
    proxy: &'f Proxy,
    filter: &'f Config<EnvoyFilter>,
) -> impl Iterator<Item = Patch> + use<'f> {
    filter.spec.config_patches.iter().filter_map(|patch| Patch::read(proxy, patch))
}
