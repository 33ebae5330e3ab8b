//! State machine of one delta ADS client: requests out, responses in.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};

use super::verdict::refusal;
use super::{Handler, Rejection, StreamState, Subscription, Update, WILDCARD};
use crate::{Resource, TypeUrl};

/// What is held of one type, and what was asked on the current stream.
#[derive(Debug, Default)]
struct Held {
    versions: BTreeMap<String, String>,
    asked: Option<Subscription>,
    last_nonce: Option<String>,
}

/// Client side of `DeltaAggregatedResources`, across reconnects.
#[derive(Debug)]
pub struct DeltaClient {
    node: Node,
    types: BTreeMap<TypeUrl, Held>,
    node_sent: bool,
}

impl DeltaClient {
    /// Holds nothing yet.
    pub fn new(node: Node) -> Self {
        Self { node, types: BTreeMap::new(), node_sent: false }
    }

    /// Claims a resource that was applied before the first connection, such as
    /// one from the last good configuration on disk.
    pub fn preload(&mut self, resource: &Resource) {
        let held = self.types.entry(resource.type_url).or_default();
        held.versions.insert(resource.name.clone(), resource.version.to_string());
    }

    /// Version held of each resource of a type.
    pub fn held(&self, type_url: TypeUrl) -> impl Iterator<Item = (&str, &str)> {
        let held = self.types.get(&type_url).into_iter().flat_map(|h| &h.versions);
        held.map(|(name, version)| (name.as_str(), version.as_str()))
    }

    fn resubscribe(
        &mut self,
        type_url: TypeUrl,
        wanted: Subscription,
    ) -> Option<DeltaDiscoveryRequest> {
        let held = self.types.entry(type_url).or_default();
        if let Subscription::Names(names) = &wanted {
            held.versions.retain(|name, _| names.contains(name));
        }
        let first = held.asked.is_none();
        if first && wanted == Subscription::Names(BTreeSet::new()) {
            return None;
        }
        let none = Subscription::Names(BTreeSet::new());
        let before = held.asked.as_ref().unwrap_or(&none);
        if !first && *before == wanted {
            return None;
        }
        let (subscribe, unsubscribe) = changes(type_url, first, before, &wanted);
        let mut initial_resource_versions = HashMap::new();
        if first {
            initial_resource_versions.extend(held.versions.clone());
        }
        held.asked = Some(wanted);
        Some(DeltaDiscoveryRequest {
            type_url: type_url.as_str().to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions,
            ..Default::default()
        })
    }

    // The node is needed once a stream and is the largest part of a request.
    fn with_node(&mut self, mut request: DeltaDiscoveryRequest) -> DeltaDiscoveryRequest {
        if !std::mem::replace(&mut self.node_sent, true) {
            request.node = Some(self.node.clone());
        }
        request
    }
}

impl StreamState for DeltaClient {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn on_connect(&mut self, handler: &dyn Handler) -> Vec<DeltaDiscoveryRequest> {
        self.node_sent = false;
        for held in self.types.values_mut() {
            held.asked = None;
            held.last_nonce = None;
        }
        self.refresh(handler)
    }

    fn refresh(&mut self, handler: &dyn Handler) -> Vec<DeltaDiscoveryRequest> {
        let wanted = handler.subscriptions();
        let mut requests = Vec::new();
        let dropped: Vec<_> = self.types.keys().copied().collect();
        for type_url in dropped {
            if !wanted.iter().any(|(t, _)| *t == type_url) {
                let nothing = Subscription::Names(BTreeSet::new());
                requests.extend(self.resubscribe(type_url, nothing));
            }
        }
        for (type_url, subscription) in wanted {
            requests.extend(self.resubscribe(type_url, subscription));
        }
        requests.into_iter().map(|r| self.with_node(r)).collect()
    }

    fn on_response(
        &mut self,
        response: DeltaDiscoveryResponse,
        handler: &mut dyn Handler,
    ) -> Vec<DeltaDiscoveryRequest> {
        let Some(type_url) = TypeUrl::parse(&response.type_url) else { return Vec::new() };
        let Some(held) = self.types.get_mut(&type_url) else { return Vec::new() };
        // Never asked for, or a repetition.
        if held.asked.is_none() || held.last_nonce.as_ref() == Some(&response.nonce) {
            return Vec::new();
        }
        held.last_nonce = Some(response.nonce.clone());
        let nonce = response.nonce.clone();
        let (update, mut rejections) = open(type_url, response, held.asked.as_ref());
        let added: Vec<_> =
            update.added.iter().map(|r| (r.name.clone(), r.version.to_string())).collect();
        let removed = update.removed.clone();
        rejections.extend(handler.apply(update));
        held.record(added, removed, &rejections);
        let verdict = DeltaDiscoveryRequest {
            type_url: type_url.as_str().to_owned(),
            response_nonce: nonce,
            error_detail: refusal(&rejections),
            ..Default::default()
        };
        let mut requests = vec![self.with_node(verdict)];
        requests.extend(self.refresh(handler));
        requests
    }
}

impl Held {
    fn record(
        &mut self,
        added: Vec<(String, String)>,
        removed: Vec<String>,
        rejections: &[Rejection],
    ) {
        // Removals first: a replaced resource is in both lists and survives.
        for name in removed {
            self.versions.remove(&name);
        }
        for (name, version) in added {
            if !rejections.iter().any(|r| r.name == name) {
                self.versions.insert(name, version);
            }
        }
    }
}

/// Names to subscribe and to unsubscribe to get from `before` to `wanted`.
fn changes(
    type_url: TypeUrl,
    first: bool,
    before: &Subscription,
    wanted: &Subscription,
) -> (Vec<String>, Vec<String>) {
    let star = || vec![WILDCARD.to_owned()];
    match (before, wanted) {
        // Older servers know only the empty first request as the wildcard.
        (_, Subscription::Wildcard) if first && type_url.is_wildcard_by_default() => {
            (Vec::new(), Vec::new())
        }
        (Subscription::Wildcard, Subscription::Wildcard) => (Vec::new(), Vec::new()),
        (Subscription::Names(old), Subscription::Wildcard) => {
            (star(), old.iter().cloned().collect())
        }
        (Subscription::Wildcard, Subscription::Names(new)) => {
            (new.iter().cloned().collect(), star())
        }
        (Subscription::Names(old), Subscription::Names(new)) => {
            (new.difference(old).cloned().collect(), old.difference(new).cloned().collect())
        }
    }
}

/// Takes a response apart; what cannot be a resource is refused right here.
fn open(
    type_url: TypeUrl,
    response: DeltaDiscoveryResponse,
    asked: Option<&Subscription>,
) -> (Update, Vec<Rejection>) {
    let wanted = |name: &str| match asked {
        Some(Subscription::Wildcard) => true,
        Some(Subscription::Names(names)) => names.contains(name),
        None => false,
    };
    let mut added: Vec<Resource> = Vec::with_capacity(response.resources.len());
    let mut rejections: Vec<Rejection> = Vec::new();
    let mut seen = BTreeSet::new();
    for resource in response.resources {
        // Unsubscribed while it was under way.
        if !wanted(&resource.name) {
            continue;
        }
        let name = resource.name.clone();
        let opened = if seen.insert(name.clone()) {
            open_resource(type_url, resource)
        } else {
            added.retain(|r| r.name != name);
            Err("sent twice in one response".to_owned())
        };
        match opened {
            Ok(Some(resource)) => added.push(resource),
            Ok(None) => {}
            Err(error) => rejections.push(Rejection { name, error }),
        }
    }
    let mut removed = response.removed_resources;
    removed.retain(|name| !seen.contains(name));
    (Update { type_url, added, removed }, rejections)
}

/// `None` for a heartbeat, which carries a name and no content.
fn open_resource(
    type_url: TypeUrl,
    resource: discovery::Resource,
) -> Result<Option<Resource>, String> {
    let Some(any) = resource.resource else { return Ok(None) };
    if any.type_url != type_url.as_str() {
        return Err(format!("is a {}, not a {}", any.type_url, type_url.as_str()));
    }
    Ok(Some(Resource {
        type_url,
        name: resource.name,
        version: resource.version.into(),
        body: any.value.into(),
    }))
}
