//! What a client asks for, holds and refuses.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use envoy_types::pb::google::protobuf::Any;

use super::{DeltaClient, Handler, Rejection, Subscription, Update};
use crate::TypeUrl;
use crate::TypeUrl::{Cluster, Route, Secret};

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
