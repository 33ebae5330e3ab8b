//! What a client asks for, holds and refuses.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::{DeltaClient, Handler, Rejection, SotwClient, StreamState, Subscription, Update};
use crate::TypeUrl::{Cluster, Route, Secret};
use crate::{Resource, TypeUrl};

/// Records updates, refuses names that start with `bad`.
#[derive(Default)]
struct Recorder {
    updates: Vec<String>,
    wanted: Vec<(TypeUrl, Subscription)>,
}

impl Recorder {
    fn wanting(wanted: &[(TypeUrl, Subscription)]) -> Self {
        Self { wanted: wanted.to_vec(), ..Default::default() }
    }
}

impl Handler for Recorder {
    fn apply(&mut self, update: Update) -> Vec<Rejection> {
        let added = update.added.iter().map(|r| format!(" +{}", r.name));
        let removed = update.removed.iter().map(|n| format!(" -{n}"));
        let text: String = added.chain(removed).collect();
        self.updates.push(format!("{}{text}", update.type_url));
        let refused = update.added.into_iter().filter(|r| r.name.starts_with("bad"));
        refused.map(|r| Rejection { name: r.name, error: "is bad".to_owned() }).collect()
    }

    fn subscriptions(&self) -> Vec<(TypeUrl, Subscription)> {
        self.wanted.clone()
    }
}

fn names(names: &[&str]) -> Subscription {
    Subscription::Names(names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>())
}

fn resource(name: &str, type_url: &str) -> discovery::Resource {
    let any = Any { type_url: type_url.to_owned(), value: Vec::new() };
    let (name, version) = (name.to_owned(), "1".to_owned());
    discovery::Resource { name, version, resource: Some(any), ..Default::default() }
}

fn response(nonce: &str, added: &[&str], removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: Cluster.as_str().to_owned(),
        nonce: nonce.to_owned(),
        resources: added.iter().map(|n| resource(n, Cluster.as_str())).collect(),
        removed_resources: removed.iter().map(|n| (*n).to_owned()).collect(),
        ..Default::default()
    }
}

/// A client of clusters on an open stream.
fn open() -> (DeltaClient, Recorder) {
    let handler = Recorder::wanting(&[(Cluster, Subscription::Wildcard)]);
    let mut client = DeltaClient::new(Node { id: "n".into(), ..Default::default() });
    client.on_connect(&handler);
    (client, handler)
}

fn error(request: &DeltaDiscoveryRequest) -> Option<&str> {
    request.error_detail.as_ref().map(|e| e.message.as_str())
}

#[test]
fn the_node_goes_with_the_first_request_only() {
    let wanted = [(Cluster, Subscription::Wildcard), (Route, names(&["80"])), (Secret, names(&[]))];
    let handler = Recorder::wanting(&wanted);
    let mut client = DeltaClient::new(Node { id: "n".into(), ..Default::default() });
    for _ in 0..2 {
        let requests = client.on_connect(&handler);
        let types: Vec<_> = requests.iter().map(|r| r.type_url.as_str()).collect();
        assert_eq!(types, [Cluster.as_str(), Route.as_str()], "nothing is asked of secrets");
        let nodes: Vec<_> = requests.iter().map(|r| r.node.is_some()).collect();
        assert_eq!(nodes, [true, false]);
        assert!(requests[0].resource_names_subscribe.is_empty(), "the wildcard of older servers");
    }
}

#[test]
fn names_come_and_go_as_increments() {
    let mut handler = Recorder::wanting(&[(Route, names(&["a", "b"]))]);
    let mut client = DeltaClient::new(Node::default());
    client.on_connect(&handler);
    handler.wanted = vec![(Route, names(&["b", "c"]))];
    let requests = client.refresh(&handler);
    assert_eq!(requests[0].resource_names_subscribe, ["c"]);
    assert_eq!(requests[0].resource_names_unsubscribe, ["a"]);
    assert!(client.refresh(&handler).is_empty());
    handler.wanted.clear();
    assert_eq!(client.refresh(&handler)[0].resource_names_unsubscribe, ["b", "c"]);
}

#[test]
fn a_refused_resource_is_named_and_not_held() {
    let (mut client, mut handler) = open();
    let requests = client.on_response(response("1", &["bad-one", "good"], &[]), &mut handler);
    assert_eq!(requests[0].response_nonce, "1");
    assert_eq!(error(&requests[0]), Some("bad-one: is bad"));
    assert_eq!(client.held(Cluster).collect::<Vec<_>>(), [("good", "1")]);
}

#[test]
fn what_cannot_be_a_resource_is_refused_here() {
    let (mut client, mut handler) = open();
    let mut strange = response("1", &["twice", "twice", "good"], &[]);
    strange.resources.push(resource("other", Route.as_str()));
    strange.resources.push(discovery::Resource { name: "beat".into(), ..Default::default() });
    let requests = client.on_response(strange, &mut handler);
    assert_eq!(handler.updates, ["CDS +good"]);
    let error = error(&requests[0]).expect("refused");
    assert!(error.contains("twice: sent twice"), "{error}");
    assert!(error.contains("other: is a type.googleapis.com/envoy.config.route"), "{error}");
    assert!(!error.contains("beat"), "a heartbeat has no content: {error}");
}

#[test]
fn a_resource_both_removed_and_added_survives() {
    let (mut client, mut handler) = open();
    client.on_response(response("1", &["a", "b"], &[]), &mut handler);
    client.on_response(response("2", &["a"], &["a", "b"]), &mut handler);
    assert_eq!(handler.updates, ["CDS +a +b", "CDS +a -b"]);
    assert_eq!(client.held(Cluster).collect::<Vec<_>>(), [("a", "1")]);
}

#[test]
fn a_repeated_nonce_and_a_type_never_asked_for_are_ignored() {
    let (mut client, mut handler) = open();
    client.on_response(response("1", &["a"], &[]), &mut handler);
    assert!(client.on_response(response("1", &["b"], &[]), &mut handler).is_empty());
    let mut foreign = response("2", &[], &[]);
    foreign.type_url = Route.as_str().to_owned();
    assert!(client.on_response(foreign.clone(), &mut handler).is_empty());
    foreign.type_url = "type.googleapis.com/no.Such".to_owned();
    assert!(client.on_response(foreign, &mut handler).is_empty());
    assert_eq!(handler.updates, ["CDS +a"]);
}

/// Any resource with a name: they all have it in field 1.
#[derive(Clone, PartialEq, Message)]
struct Thing {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "15000")]
    content: String,
}

/// `name=content` as a resource of state of the world.
fn thing(type_url: TypeUrl, text: &str) -> Any {
    let (name, content) = text.split_once('=').unwrap_or((text, ""));
    let thing = Thing { name: name.to_owned(), content: content.to_owned() };
    Any { type_url: type_url.as_str().to_owned(), value: thing.encode_to_vec() }
}

fn world(type_url: TypeUrl, version: &str, resources: &[&str]) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: version.to_owned(),
        nonce: format!("n{version}"),
        type_url: type_url.as_str().to_owned(),
        resources: resources.iter().map(|text| thing(type_url, text)).collect(),
        ..Default::default()
    }
}

/// A state-of-the-world client on an open stream.
fn open_sotw(wanted: &[(TypeUrl, Subscription)]) -> (SotwClient, Recorder) {
    let handler = Recorder::wanting(wanted);
    let mut client = SotwClient::new(Node { id: "n".into(), ..Default::default() });
    client.on_connect(&handler);
    (client, handler)
}

/// Version, nonce and names of a request.
fn stamp(request: &DiscoveryRequest) -> (&str, &str, Vec<&str>) {
    let names = request.resource_names.iter().map(String::as_str).collect();
    (&request.version_info, &request.response_nonce, names)
}

#[test]
fn a_cluster_missing_from_a_full_set_is_gone_and_an_unchanged_one_rests() {
    let (mut client, mut handler) = open_sotw(&[(Cluster, Subscription::Wildcard)]);
    client.on_response(world(Cluster, "1", &["a=1", "b=1", "c=1"]), &mut handler);
    client.on_response(world(Cluster, "2", &["a=1", "b=2"]), &mut handler);
    client.on_response(world(Cluster, "3", &[]), &mut handler);
    assert_eq!(handler.updates, ["CDS +a +b +c", "CDS +b -c", "CDS -a -b"]);
}

#[test]
fn a_route_missing_from_a_response_stays() {
    let (mut client, mut handler) = open_sotw(&[(Route, names(&["a", "b"]))]);
    client.on_response(world(Route, "1", &["a=1", "b=1"]), &mut handler);
    client.on_response(world(Route, "2", &["b=2", "foreign=1"]), &mut handler);
    client.on_response(world(Route, "3", &[]), &mut handler);
    assert_eq!(handler.updates, ["RDS +a +b", "RDS +b", "RDS"]);
    assert_eq!(client.held(Route).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_refusal_keeps_the_accepted_version_and_the_next_response_is_tried_again() {
    let (mut client, mut handler) = open_sotw(&[(Cluster, Subscription::Wildcard)]);
    let accepted = client.on_response(world(Cluster, "1", &["a=1"]), &mut handler);
    assert_eq!(stamp(&accepted[0]), ("1", "n1", vec![]));
    assert_eq!(accepted[0].error_detail, None);
    let refused = client.on_response(world(Cluster, "2", &["a=1", "bad=1"]), &mut handler);
    assert_eq!(stamp(&refused[0]), ("1", "n2", vec![]));
    let error = refused[0].error_detail.as_ref().expect("refused");
    assert_eq!((error.code, error.message.as_str()), (3, "bad: is bad"));
    let again = client.on_response(world(Cluster, "3", &["a=1", "bad=1"]), &mut handler);
    assert!(again[0].error_detail.is_some());
    client.on_response(world(Cluster, "4", &["a=1"]), &mut handler);
    assert_eq!(handler.updates, ["CDS +a", "CDS +bad", "CDS +bad", "CDS -bad"]);
}

#[test]
fn a_new_stream_claims_the_version_and_no_nonce() {
    let (mut client, mut handler) =
        open_sotw(&[(Cluster, Subscription::Wildcard), (Route, names(&["80"]))]);
    client.on_response(world(Cluster, "7", &["a=1"]), &mut handler);
    let requests = client.on_connect(&handler);
    assert_eq!(stamp(&requests[0]), ("7", "", vec![]));
    assert_eq!(stamp(&requests[1]), ("", "", vec!["80"]));
    let nodes: Vec<_> = requests.iter().map(|r| r.node.is_some()).collect();
    assert_eq!(nodes, [true, false]);
    client.on_response(world(Cluster, "8", &["b=1"]), &mut handler);
    assert_eq!(handler.updates, ["CDS +a", "CDS +b -a"], "held across streams");
}

#[test]
fn names_are_always_sent_whole_with_the_last_nonce() {
    let (mut client, mut handler) = open_sotw(&[(Route, names(&["a"]))]);
    client.on_response(world(Route, "1", &["a=1"]), &mut handler);
    handler.wanted = vec![(Route, names(&["a", "b"]))];
    let requests = client.refresh(&handler);
    assert_eq!(stamp(&requests[0]), ("1", "n1", vec!["a", "b"]));
    assert!(client.refresh(&handler).is_empty());
    handler.wanted.clear();
    assert_eq!(stamp(&client.refresh(&handler)[0]), ("1", "n1", vec![]));
    assert_eq!(client.held(Route).count(), 0, "asked for again, it must come again");
}

#[test]
fn a_response_with_something_nameless_takes_nothing_away() {
    let (mut client, mut handler) = open_sotw(&[(Cluster, Subscription::Wildcard)]);
    client.on_response(world(Cluster, "1", &["a=1", "b=1"]), &mut handler);
    let mut strange = world(Cluster, "2", &["a=2", "twice=1", "twice=2"]);
    strange.resources.push(Any { type_url: Cluster.as_str().to_owned(), value: vec![0xff] });
    strange.resources.push(thing(Route, "r"));
    let requests = client.on_response(strange, &mut handler);
    assert_eq!(handler.updates[1], "CDS +a");
    let error = &requests[0].error_detail.as_ref().expect("refused").message;
    assert!(error.contains("twice: sent twice"), "{error}");
    assert!(error.contains("resources[3]: does not decode"), "{error}");
    assert!(error.contains("resources[4]: is a type.googleapis.com/envoy.config.route"), "{error}");
}

#[test]
fn a_wrapped_resource_is_unwrapped_and_a_heartbeat_keeps_it() {
    let (mut client, mut handler) = open_sotw(&[(Cluster, Subscription::Wildcard)]);
    let wrap = |name: &str, resource: Option<Any>| Any {
        type_url: discovery::Resource::type_url(),
        value: discovery::Resource { name: name.to_owned(), resource, ..Default::default() }
            .encode_to_vec(),
    };
    let mut first = world(Cluster, "1", &["b=1"]);
    first.resources.push(wrap("a", Some(thing(Cluster, "a=1"))));
    client.on_response(first, &mut handler);
    let mut beat = world(Cluster, "2", &[]);
    beat.resources.push(wrap("a", None));
    client.on_response(beat, &mut handler);
    assert_eq!(handler.updates, ["CDS +b +a", "CDS -b"]);
}

#[test]
fn what_was_restored_from_disk_is_not_applied_again_and_goes_when_absent() {
    let mut handler = Recorder::wanting(&[(Cluster, Subscription::Wildcard)]);
    let mut client = SotwClient::new(Node::default());
    for text in ["a=1", "old=1"] {
        let any = thing(Cluster, text);
        let name = text.split('=').next().unwrap_or_default();
        client.preload(&Resource::from_body(Cluster, name, any.value.into()));
    }
    let requests = client.on_connect(&handler);
    assert_eq!(stamp(&requests[0]), ("", "", vec![]), "the server's version is not known");
    client.on_response(world(Cluster, "1", &["a=1"]), &mut handler);
    assert_eq!(handler.updates, ["CDS -old"]);
}
