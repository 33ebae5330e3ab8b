//! State machine of one state-of-the-world ADS client: requests out, responses
//! in.
//!
//! A response carries whole resources without names or versions of their own:
//! names are read from the messages, and content decides what is new. Of
//! clusters, listeners and name tables it carries all there are, so one that
//! is missing is gone; of the other types a missing one stays as it was.
//!
//! Invariant: a resource that did not change is not applied again, however
//! often the server repeats it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::verdict::refusal;
use super::{Handler, Rejection, StreamState, Subscription, Update, WILDCARD};
use crate::canonical::canonical;
use crate::{Resource, TypeUrl};

/// What is held of one type, and where the current stream stands with it.
#[derive(Debug, Default)]
struct Held {
    /// Hash of each resource in force; none for one that was only refused.
    contents: BTreeMap<String, Option<u64>>,
    /// Version of the last response that was accepted whole, on any stream.
    version: String,
    /// Nonce of the last response on this stream.
    nonce: String,
    asked: Option<Subscription>,
}

/// Client side of `StreamAggregatedResources`, across reconnects.
#[derive(Debug)]
pub struct SotwClient {
    node: Node,
    types: BTreeMap<TypeUrl, Held>,
    node_sent: bool,
}

/// What a response holds.
#[derive(Default)]
struct Opened {
    resources: Vec<Resource>,
    rejections: Vec<Rejection>,
    /// Names in the response, usable or not.
    seen: BTreeSet<String>,
    /// Something in it has no name, so what is missing cannot be known.
    incomplete: bool,
}

/// The name of any resource but a name table: they all have it in one place.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

impl SotwClient {
    /// Holds nothing yet.
    pub fn new(node: Node) -> Self {
        Self { node, types: BTreeMap::new(), node_sent: false }
    }

    /// Claims a resource that was applied before the first connection, such as
    /// one from the last good configuration on disk.
    pub fn preload(&mut self, resource: &Resource) {
        let held = self.types.entry(resource.type_url).or_default();
        held.contents.insert(resource.name.clone(), Some(hash(&resource.body)));
    }

    /// Names of the resources of a type that are in force.
    pub fn held(&self, type_url: TypeUrl) -> impl Iterator<Item = &str> {
        let held = self.types.get(&type_url).into_iter().flat_map(|held| &held.contents);
        held.filter(|(_, hash)| hash.is_some()).map(|(name, _)| name.as_str())
    }

    fn resubscribe(&mut self, type_url: TypeUrl, wanted: Subscription) -> Option<DiscoveryRequest> {
        let held = self.types.entry(type_url).or_default();
        if let Subscription::Names(names) = &wanted {
            held.contents.retain(|name, _| names.contains(name));
        }
        let nothing = Subscription::Names(BTreeSet::new());
        if held.asked.as_ref().unwrap_or(&nothing) == &wanted {
            return None;
        }
        held.asked = Some(wanted);
        Some(held.request(type_url))
    }

    // The node is needed once a stream and is the largest part of a request.
    fn with_node(&mut self, mut request: DiscoveryRequest) -> DiscoveryRequest {
        if !std::mem::replace(&mut self.node_sent, true) {
            request.node = Some(self.node.clone());
        }
        request
    }
}

impl StreamState for SotwClient {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn on_connect(&mut self, handler: &dyn Handler) -> Vec<DiscoveryRequest> {
        self.node_sent = false;
        for held in self.types.values_mut() {
            held.asked = None;
            // A nonce of another stream would make the request look like an
            // answer; the version stays, as it says what is in force.
            held.nonce.clear();
        }
        self.refresh(handler)
    }

    fn refresh(&mut self, handler: &dyn Handler) -> Vec<DiscoveryRequest> {
        let wanted = handler.subscriptions();
        let dropped = self.types.keys().filter(|t| !wanted.iter().any(|(w, _)| w == *t));
        let nothing = |t: &TypeUrl| (*t, Subscription::Names(BTreeSet::new()));
        let all: Vec<_> = dropped.map(nothing).chain(wanted.iter().cloned()).collect();
        let mut requests = Vec::new();
        for (type_url, subscription) in all {
            requests.extend(self.resubscribe(type_url, subscription));
        }
        requests.into_iter().map(|r| self.with_node(r)).collect()
    }

    fn on_response(
        &mut self,
        response: DiscoveryResponse,
        handler: &mut dyn Handler,
    ) -> Vec<DiscoveryRequest> {
        let Some(type_url) = TypeUrl::parse(&response.type_url) else { return Vec::new() };
        let Some(held) = self.types.get_mut(&type_url) else { return Vec::new() };
        let Some(asked) = &held.asked else { return Vec::new() };
        held.nonce = response.nonce;
        let mut opened = open(type_url, asked, &response.version_info, response.resources);
        let removed = held.missing(type_url, &opened);
        opened.resources.retain(|one| !held.holds(one));
        let hashes: Vec<_> =
            opened.resources.iter().map(|one| (one.name.clone(), hash(&one.body))).collect();
        let update = Update { type_url, added: opened.resources, removed: removed.clone() };
        let mut rejections = opened.rejections;
        rejections.extend(handler.apply(update));
        held.record(hashes, &removed, &rejections);
        if rejections.is_empty() {
            held.version = response.version_info;
        }
        let mut verdict = held.request(type_url);
        verdict.error_detail = refusal(&rejections);
        let mut requests = vec![self.with_node(verdict)];
        requests.extend(self.refresh(handler));
        requests
    }
}

impl Held {
    /// A request for what is asked now; with the last nonce it is the verdict
    /// on that response too.
    fn request(&self, type_url: TypeUrl) -> DiscoveryRequest {
        let resource_names = match &self.asked {
            // Older servers know only the empty list as the wildcard.
            Some(Subscription::Wildcard) if type_url.is_wildcard_by_default() => Vec::new(),
            Some(Subscription::Wildcard) => vec![WILDCARD.to_owned()],
            Some(Subscription::Names(names)) => names.iter().cloned().collect(),
            None => Vec::new(),
        };
        DiscoveryRequest {
            version_info: self.version.clone(),
            response_nonce: self.nonce.clone(),
            type_url: type_url.as_str().to_owned(),
            resource_names,
            ..Default::default()
        }
    }

    fn holds(&self, resource: &Resource) -> bool {
        self.contents.get(&resource.name) == Some(&Some(hash(&resource.body)))
    }

    /// Names known so far that a full set no longer has.
    fn missing(&self, type_url: TypeUrl, opened: &Opened) -> Vec<String> {
        if !type_url.is_full_set() || opened.incomplete {
            return Vec::new();
        }
        self.contents.keys().filter(|name| !opened.seen.contains(*name)).cloned().collect()
    }

    fn record(&mut self, hashes: Vec<(String, u64)>, removed: &[String], rejections: &[Rejection]) {
        for name in removed {
            self.contents.remove(name);
        }
        for (name, hash) in hashes {
            if rejections.iter().any(|r| r.name == name) {
                self.contents.entry(name).or_insert(None);
            } else {
                self.contents.insert(name, Some(hash));
            }
        }
    }
}

/// Takes a response apart; what cannot be a resource is refused right here.
fn open(type_url: TypeUrl, asked: &Subscription, version: &str, resources: Vec<Any>) -> Opened {
    let mut opened = Opened::default();
    for (index, any) in resources.into_iter().enumerate() {
        let (name, body) = match open_resource(type_url, any) {
            Ok(opened) => opened,
            Err((name, error)) => {
                opened.incomplete |= name.is_none();
                let name = name.unwrap_or_else(|| format!("resources[{index}]"));
                opened.seen.insert(name.clone());
                opened.rejections.push(Rejection { name, error });
                continue;
            }
        };
        let wanted = match asked {
            Subscription::Wildcard => true,
            Subscription::Names(names) => names.contains(&name),
        };
        if !wanted {
            continue;
        }
        if !opened.seen.insert(name.clone()) {
            opened.resources.retain(|one| one.name != name);
            let error = "sent twice in one response".to_owned();
            opened.rejections.push(Rejection { name, error });
        } else if let Some(body) = body {
            let version = version.into();
            opened.resources.push(Resource { type_url, name, version, body });
        }
    }
    opened
}

/// Name and body of a resource; no body for a heartbeat. The error has the
/// name as well, if there is one.
fn open_resource(
    type_url: TypeUrl,
    any: Any,
) -> Result<(String, Option<Bytes>), (Option<String>, String)> {
    let mut outer = None;
    let mut body = Some(any);
    if body.as_ref().is_some_and(|any| any.type_url == discovery::Resource::type_url()) {
        let wrapped = body.take().unwrap_or_default();
        let wrapper = discovery::Resource::decode(wrapped.value.as_slice())
            .map_err(|error| (None, format!("does not decode: {error}")))?;
        outer = Some(wrapper.name);
        body = wrapper.resource;
    }
    let Some(body) = body else {
        return outer.map(|name| (name, None)).ok_or((None, "has no content".to_owned()));
    };
    if body.type_url != type_url.as_str() {
        return Err((outer, format!("is a {}, not a {}", body.type_url, type_url.as_str())));
    }
    let name = match outer {
        Some(name) if !name.is_empty() => name,
        // There is one table, and it has no name.
        _ if type_url == TypeUrl::NameTable => String::new(),
        _ => {
            let named = Named::decode(body.value.as_slice())
                .map_err(|error| (None, format!("does not decode: {error}")))?;
            named.name
        }
    };
    let full_name = type_url.as_str().rsplit('/').next().unwrap_or_default();
    Ok((name, Some(canonical(full_name, body.value).into())))
}

fn hash(body: &[u8]) -> u64 {
    xxhash_rust::xxh64::xxh64(body, 0)
}
