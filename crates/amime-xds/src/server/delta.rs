//! The incremental variant: only what changed travels, names come and go.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};

use super::watch::{Diff, Nonces, WILDCARD, Watch, check_names};
use super::{EdsCluster, Push, Reaction, Session, SessionError, TypeStatus, Verdict, Wanted};
use crate::{Resource, TypeUrl};

/// Server side of one `DeltaAggregatedResources` stream.
#[derive(Debug)]
pub struct DeltaSession {
    watches: BTreeMap<TypeUrl, Watch>,
    nonces: Nonces,
    forced: Option<BTreeSet<String>>,
    sent_clusters: Vec<EdsCluster>,
}

impl DeltaSession {
    /// A stream without subscriptions. `stream` tells streams apart, so that a
    /// nonce of one is never taken for a nonce of another.
    pub fn new(stream: u64) -> Self {
        Self {
            watches: BTreeMap::new(),
            nonces: Nonces::new(stream),
            forced: None,
            sent_clusters: Vec::new(),
        }
    }

    fn respond(&mut self, type_url: TypeUrl, version: &str, diff: Diff) -> DeltaDiscoveryResponse {
        let stamp = self.nonces.stamp(version);
        let response = DeltaDiscoveryResponse {
            system_version_info: version.to_owned(),
            resources: diff.changed.iter().map(envelope).collect(),
            type_url: type_url.as_str().to_owned(),
            removed_resources: diff.removed.clone(),
            nonce: stamp.nonce.clone(),
            ..Default::default()
        };
        if let Some(watch) = self.watches.get_mut(&type_url) {
            watch.sent(stamp, &diff);
        }
        if type_url == TypeUrl::Cluster {
            let clusters: Vec<_> = diff.changed.iter().filter_map(EdsCluster::of).collect();
            self.force_endpoints(&clusters);
            self.sent_clusters.extend(clusters);
        }
        response
    }

    // A client that replaces a cluster warms the new one with its endpoints and
    // does not ask for them again when it already watches the name.
    fn force_endpoints(&mut self, clusters: &[EdsCluster]) {
        let Some(watch) = self.watches.get_mut(&TypeUrl::Endpoint) else { return };
        let mut names = BTreeSet::new();
        for cluster in clusters {
            if watch.wants(&cluster.endpoints) {
                watch.forget(&cluster.endpoints);
                names.insert(cluster.endpoints.clone());
            }
        }
        if !names.is_empty() {
            self.forced.get_or_insert_default().extend(names);
        }
    }
}

fn envelope(resource: &Resource) -> discovery::Resource {
    discovery::Resource {
        name: resource.name.clone(),
        version: resource.version.to_string(),
        resource: Some(resource.to_any()),
        ..Default::default()
    }
}

/// Applies the subscription part of a request; says whether it asks for
/// something.
fn resubscribe(
    watch: &mut Watch,
    first: bool,
    type_url: TypeUrl,
    request: DeltaDiscoveryRequest,
) -> bool {
    let mut asks = false;
    // Only the first request of a type can mean "everything" by saying nothing.
    if first && request.resource_names_subscribe.is_empty() && type_url.is_wildcard_by_default() {
        watch.wildcard = true;
        asks = true;
    }
    for name in request.resource_names_subscribe {
        asks = true;
        if name == WILDCARD {
            watch.wildcard = true;
            watch.must_answer = true;
        } else {
            watch.subscribe(name);
        }
    }
    for name in request.resource_names_unsubscribe {
        if name == WILDCARD {
            watch.unsubscribe_wildcard();
        } else {
            watch.unsubscribe(&name);
        }
    }
    if first {
        for (name, version) in request.initial_resource_versions {
            watch.holds(name, &version);
        }
    }
    asks
}

impl Session for DeltaSession {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn node(request: &Self::Request) -> Option<&Node> {
        request.node.as_ref()
    }

    fn on_request(&mut self, request: Self::Request) -> Result<Reaction, SessionError> {
        let Some(type_url) = TypeUrl::parse(&request.type_url) else {
            return Ok(Reaction::default());
        };
        let held = self.watches.get(&type_url).map_or(0, |w| w.names.len());
        check_names(type_url, held, request.resource_names_subscribe.iter())?;
        check_names(type_url, 0, request.initial_resource_versions.keys())?;
        let first = !self.watches.contains_key(&type_url);
        let watch = self.watches.entry(type_url).or_insert_with(Watch::new);
        // A first request that carries a nonce comes from a client that lost a
        // stream half-way; the nonce means nothing here.
        let verdict = (!first && !request.response_nonce.is_empty())
            .then(|| watch.settle(&request.response_nonce, request.error_detail.as_ref()));
        // Changes of subscription are increments: dropping those that came with
        // a stale nonce would lose them for good.
        let asks = resubscribe(watch, first, type_url, request);
        Ok(Reaction { type_url: Some(type_url), asks, verdict })
    }

    fn wanted(&self, type_url: TypeUrl) -> Option<Wanted<'_>> {
        self.watches.get(&type_url).map(Watch::wanted)
    }

    fn in_flight(&self, type_url: TypeUrl) -> bool {
        self.watches.get(&type_url).is_some_and(Watch::in_flight)
    }

    fn push(&mut self, push: Push<'_>) -> Option<Self::Response> {
        let watch = self.watches.get_mut(&push.type_url)?;
        if watch.in_flight() {
            return None;
        }
        let diff = watch.diff(push);
        if diff == Diff::default() && !watch.must_answer {
            return None;
        }
        // Nothing is wanted, so nothing is waited for.
        if diff == Diff::default() && !watch.wildcard {
            return None;
        }
        Some(self.respond(push.type_url, push.version, diff))
    }

    fn push_removals(&mut self, type_url: TypeUrl, version: &str) -> Option<Self::Response> {
        let watch = self.watches.get_mut(&type_url)?;
        if watch.in_flight() || watch.leaving.is_empty() {
            return None;
        }
        let removed = std::mem::take(&mut watch.leaving).into_iter().collect();
        Some(self.respond(type_url, version, Diff { changed: Vec::new(), removed }))
    }

    fn has_removals(&self, type_url: TypeUrl) -> bool {
        self.watches.get(&type_url).is_some_and(|w| !w.leaving.is_empty())
    }

    fn take_forced(&mut self) -> Option<(TypeUrl, BTreeSet<String>)> {
        self.forced.take().map(|names| (TypeUrl::Endpoint, names))
    }

    fn take_sent_clusters(&mut self) -> Vec<EdsCluster> {
        std::mem::take(&mut self.sent_clusters)
    }

    fn was_told(&self, type_url: TypeUrl, name: &str) -> bool {
        self.watches.get(&type_url).is_some_and(|w| w.was_told(name))
    }

    fn status(&self) -> BTreeMap<TypeUrl, TypeStatus> {
        self.watches.iter().map(|(t, w)| (*t, w.status.clone())).collect()
    }
}

impl Reaction {
    /// Whether the request refused something.
    pub fn is_nack(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Nack(_)))
    }
}
