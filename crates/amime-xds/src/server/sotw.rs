//! The state-of-the-world variant: clusters and listeners travel as full sets,
//! endpoints, routes and secrets by name.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};

use super::watch::{Diff, Nonces, WILDCARD, Watch, check_names};
use super::{EdsCluster, Push, Reaction, Session, SessionError, TypeStatus, Wanted};
use crate::{Resource, TypeUrl};

#[derive(Debug)]
struct SotwWatch {
    watch: Watch,
    /// What the client was sent; a full set must repeat what did not change.
    sent: BTreeMap<String, Resource>,
    /// The next request is answered even if it looks like a plain ACK: the
    /// client asks again for names it already had after what refers to them
    /// was replaced, and the two look the same.
    answer_next: bool,
}

/// Server side of one `StreamAggregatedResources` stream.
#[derive(Debug)]
pub struct SotwSession {
    watches: BTreeMap<TypeUrl, SotwWatch>,
    nonces: Nonces,
    forced: Option<BTreeSet<String>>,
    sent_clusters: Vec<EdsCluster>,
}

impl SotwSession {
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

    fn respond(
        &mut self,
        type_url: TypeUrl,
        version: &str,
        diff: &Diff,
    ) -> Option<DiscoveryResponse> {
        let stamp = self.nonces.stamp(version);
        let entry = self.watches.get_mut(&type_url)?;
        entry.watch.sent(stamp.clone(), diff);
        for name in &diff.removed {
            entry.sent.remove(name);
        }
        for resource in &diff.changed {
            entry.sent.insert(resource.name.clone(), resource.clone());
        }
        let resources = if type_url.is_full_set() {
            entry.sent.values().map(Resource::to_any).collect()
        } else {
            diff.changed.iter().map(Resource::to_any).collect()
        };
        if !type_url.is_full_set() {
            entry.sent.clear();
        }
        self.follow_up(type_url, &diff.changed);
        Some(DiscoveryResponse {
            version_info: version.to_owned(),
            resources,
            type_url: type_url.as_str().to_owned(),
            nonce: stamp.nonce,
            ..Default::default()
        })
    }

    // What refers to other resources was replaced: the client will ask for
    // those again.
    fn follow_up(&mut self, type_url: TypeUrl, changed: &[Resource]) {
        let dependent = match type_url {
            TypeUrl::Cluster => TypeUrl::Endpoint,
            TypeUrl::Listener => TypeUrl::Route,
            _ => return,
        };
        if changed.is_empty() {
            return;
        }
        if let Some(entry) = self.watches.get_mut(&dependent) {
            entry.answer_next = true;
        }
        if type_url == TypeUrl::Cluster {
            let clusters: Vec<_> = changed.iter().filter_map(EdsCluster::of).collect();
            self.force_endpoints(&clusters);
            self.sent_clusters.extend(clusters);
        }
    }

    // A replaced cluster waits for its endpoints.
    fn force_endpoints(&mut self, clusters: &[EdsCluster]) {
        let Some(entry) = self.watches.get_mut(&TypeUrl::Endpoint) else { return };
        let wanted = clusters.iter().map(|c| &c.endpoints).filter(|name| entry.watch.wants(name));
        let names: BTreeSet<_> = wanted.cloned().collect();
        for name in &names {
            entry.watch.forget(name);
        }
        if !names.is_empty() {
            self.forced.get_or_insert_default().extend(names);
        }
    }
}

/// Takes over the names of a request; says whether it asks for something.
fn resubscribe(watch: &mut Watch, type_url: TypeUrl, names: Vec<String>) -> bool {
    let mut wanted: BTreeSet<String> = names.into_iter().collect();
    let explicit = wanted.remove(WILDCARD);
    // No names means everything until a client has named some.
    let implicit = wanted.is_empty() && watch.names.is_empty() && type_url.is_wildcard_by_default();
    let wildcard = explicit || implicit;
    let mut asks = wildcard && !watch.wildcard;
    if watch.wildcard && !wildcard {
        watch.unsubscribe_wildcard();
    }
    watch.wildcard = wildcard;
    let gone: Vec<_> = watch.names.difference(&wanted).cloned().collect();
    for name in gone {
        watch.unsubscribe(&name);
    }
    let new: Vec<_> = wanted.difference(&watch.names).cloned().collect();
    for name in new {
        asks = true;
        watch.subscribe(name);
    }
    asks
}

impl Session for SotwSession {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn node(request: &Self::Request) -> Option<&Node> {
        request.node.as_ref()
    }

    fn on_request(&mut self, request: Self::Request) -> Result<Reaction, SessionError> {
        let Some(type_url) = TypeUrl::parse(&request.type_url) else {
            return Ok(Reaction::default());
        };
        check_names(type_url, 0, request.resource_names.iter())?;
        let first = !self.watches.contains_key(&type_url);
        let entry = self.watches.entry(type_url).or_insert_with(|| SotwWatch {
            watch: Watch::new(),
            sent: BTreeMap::new(),
            answer_next: false,
        });
        let watch = &mut entry.watch;
        let nonce = &request.response_nonce;
        let mut verdict = None;
        if !first && !nonce.is_empty() {
            let newest = watch.status.sent.as_ref().is_some_and(|s| s.nonce == *nonce);
            if !newest {
                // It answers an older response; the answer to the newest one is
                // under way and carries all names again.
                verdict = Some(super::Verdict::Stale);
                return Ok(Reaction { type_url: Some(type_url), asks: false, verdict });
            }
            if watch.flying_nonce() == Some(nonce.as_str()) {
                verdict = Some(watch.settle(nonce, request.error_detail.as_ref()));
            }
        }
        let refused = request.error_detail.is_some();
        let mut asks = resubscribe(watch, type_url, request.resource_names);
        if first || (nonce.is_empty() && !refused) {
            // A client that starts over holds nothing that we could rely on.
            asks = true;
            watch.must_answer = true;
        }
        if entry.answer_next && !refused {
            entry.answer_next = false;
            asks = true;
            let names: Vec<_> = watch.names.iter().cloned().collect();
            for name in names {
                watch.forget(&name);
            }
        }
        Ok(Reaction { type_url: Some(type_url), asks, verdict })
    }

    fn wanted(&self, type_url: TypeUrl) -> Option<Wanted<'_>> {
        self.watches.get(&type_url).map(|e| e.watch.wanted())
    }

    fn in_flight(&self, type_url: TypeUrl) -> bool {
        self.watches.get(&type_url).is_some_and(|e| e.watch.in_flight())
    }

    fn push(&mut self, push: Push<'_>) -> Option<Self::Response> {
        let entry = self.watches.get_mut(&push.type_url)?;
        if entry.watch.in_flight() {
            return None;
        }
        let diff = entry.watch.diff(push);
        let full = push.type_url.is_full_set();
        let news = !diff.changed.is_empty() || (full && !diff.removed.is_empty());
        let answers = full && entry.watch.must_answer;
        if !news && !answers {
            if !full {
                entry.watch.absent(diff.removed);
            }
            return None;
        }
        self.respond(push.type_url, push.version, &diff)
    }

    fn push_removals(&mut self, type_url: TypeUrl, version: &str) -> Option<Self::Response> {
        let watch = &mut self.watches.get_mut(&type_url)?.watch;
        if watch.in_flight() || watch.leaving.is_empty() {
            return None;
        }
        let removed: Vec<_> = std::mem::take(&mut watch.leaving).into_iter().collect();
        if !type_url.is_full_set() {
            // Named types have no way to say "gone"; the client drops them when
            // it drops what refers to them.
            for name in removed {
                watch.forget(&name);
            }
            return None;
        }
        self.respond(type_url, version, &Diff { changed: Vec::new(), removed })
    }

    fn has_removals(&self, type_url: TypeUrl) -> bool {
        self.watches.get(&type_url).is_some_and(|e| !e.watch.leaving.is_empty())
    }

    fn take_forced(&mut self) -> Option<(TypeUrl, BTreeSet<String>)> {
        self.forced.take().map(|names| (TypeUrl::Endpoint, names))
    }

    fn take_sent_clusters(&mut self) -> Vec<EdsCluster> {
        std::mem::take(&mut self.sent_clusters)
    }

    fn was_told(&self, type_url: TypeUrl, name: &str) -> bool {
        self.watches.get(&type_url).is_some_and(|e| e.watch.was_told(name))
    }

    fn status(&self) -> BTreeMap<TypeUrl, TypeStatus> {
        self.watches.iter().map(|(t, e)| (*t, e.watch.status.clone())).collect()
    }
}
