//! Both sessions behind the pusher: order, warming, refusals, nonces, bounds.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::rpc::Status;

use super::{DeltaSession, Pusher, SessionError, SotwSession, Source, Verdict, Wanted};
use crate::TypeUrl::{Cluster, Endpoint, Listener, NameTable, Route};
use crate::{Resource, TypeUrl};

/// Contents by type and name; a cluster of content `eds` or `eds SERVICE` has
/// its endpoints discovered.
#[derive(Default)]
struct Config(BTreeMap<(TypeUrl, &'static str), &'static str>);

impl Config {
    fn new(contents: &[(TypeUrl, &'static str, &'static str)]) -> Self {
        Self(contents.iter().map(|(t, name, content)| ((*t, *name), *content)).collect())
    }
}

impl Source for Config {
    fn generate(&mut self, type_url: TypeUrl, wanted: Wanted<'_>) -> Vec<Resource> {
        let of_type = self.0.iter().filter(|((t, _), _)| *t == type_url);
        let wanted = of_type.filter(|((_, name), _)| match wanted {
            Wanted::All => true,
            Wanted::Names(names) => names.contains(*name),
        });
        wanted.map(|((_, name), content)| resource(type_url, name, content)).collect()
    }

    fn version(&self) -> &str {
        "v"
    }
}

fn resource(type_url: TypeUrl, name: &str, content: &'static str) -> Resource {
    match content.strip_prefix("eds") {
        Some(service) if type_url == Cluster => {
            let eds = cluster::cluster::EdsClusterConfig {
                service_name: service.trim().to_owned(),
                ..Default::default()
            };
            let discovery = cluster::cluster::ClusterDiscoveryType::Type(3);
            let message = cluster::Cluster {
                name: name.to_owned(),
                cluster_discovery_type: Some(discovery),
                eds_cluster_config: Some(eds),
                ..Default::default()
            };
            Resource::encode(name, &message)
        }
        _ => Resource::from_body(type_url, name, Bytes::from_static(content.as_bytes())),
    }
}

fn subscribe(type_url: TypeUrl, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.as_str().to_owned(),
        resource_names_subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
        ..Default::default()
    }
}

fn answer(response: &DeltaDiscoveryResponse, error: Option<&str>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        error_detail: error
            .map(|message| Status { message: message.to_owned(), ..Default::default() }),
        ..Default::default()
    }
}

/// `CDS +a +b -c`: what a response adds and removes.
fn show(response: &DeltaDiscoveryResponse) -> String {
    let type_url = TypeUrl::parse(&response.type_url).expect("a type of ours");
    let added = response.resources.iter().map(|r| format!(" +{}", r.name));
    let removed = response.removed_resources.iter().map(|n| format!(" -{n}"));
    format!("{type_url}{}", added.chain(removed).collect::<String>())
}

/// A delta stream whose client accepts everything.
struct Stream {
    pusher: Pusher<DeltaSession>,
    config: Config,
}

impl Stream {
    fn open(config: Config, requests: &[DeltaDiscoveryRequest]) -> Self {
        let mut stream = Self { pusher: Pusher::new(DeltaSession::new(1)), config };
        for request in requests {
            stream.request(request.clone());
        }
        stream
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Option<Verdict> {
        self.pusher.on_request(request).expect("within bounds").verdict
    }

    fn next(&mut self) -> Option<DeltaDiscoveryResponse> {
        self.pusher.next(&mut self.config).map(|(_, response)| response)
    }

    /// All responses until the server rests, each accepted as it comes.
    fn drain(&mut self) -> Vec<String> {
        let mut shown = Vec::new();
        while let Some(response) = self.next() {
            shown.push(show(&response));
            assert_eq!(self.request(answer(&response, None)), Some(Verdict::Ack));
        }
        shown
    }

    fn change(&mut self, contents: &[(TypeUrl, &'static str, &'static str)]) {
        self.config = Config::new(contents);
        self.pusher.invalidate_all();
    }
}

fn all_types() -> Vec<DeltaDiscoveryRequest> {
    vec![
        subscribe(Cluster, &[]),
        subscribe(Endpoint, &["old", "new"]),
        subscribe(Listener, &[]),
        subscribe(Route, &["80"]),
    ]
}

const BEFORE: [(TypeUrl, &str, &str); 4] = [
    (Cluster, "old", "eds"),
    (Endpoint, "old", "1"),
    (Listener, "l", "1"),
    (Route, "80", "to old"),
];

const AFTER: [(TypeUrl, &str, &str); 4] = [
    (Cluster, "new", "eds"),
    (Endpoint, "new", "1"),
    (Listener, "l", "1"),
    (Route, "80", "to new"),
];

#[test]
fn a_route_moves_before_its_old_cluster_leaves() {
    let mut stream = Stream::open(Config::new(&BEFORE), &all_types());
    assert_eq!(stream.drain(), ["CDS +old", "EDS +old -new", "LDS +l", "RDS +80"]);
    stream.change(&AFTER);
    assert_eq!(stream.drain(), ["CDS +new", "EDS +new", "RDS +80", "CDS -old", "EDS -old"]);
}

#[test]
fn clusters_stay_while_the_new_route_is_unanswered_or_refused() {
    let mut stream = Stream::open(Config::new(&BEFORE), &all_types());
    stream.drain();
    stream.change(&AFTER);
    let mut route = None;
    while let Some(response) = stream.next() {
        if show(&response) == "RDS +80" {
            route = Some(response);
        } else {
            stream.request(answer(&response, None));
        }
    }
    let route = route.expect("the route was sent");
    stream.request(answer(&route, Some("80: no")));
    assert_eq!(stream.drain(), Vec::<String>::new(), "the old route may still be in force");
    stream.config = Config::new(&[AFTER.as_slice(), &[(Route, "80", "better")]].concat());
    stream.pusher.invalidate_all();
    assert_eq!(stream.drain(), ["RDS +80", "CDS -old", "EDS -old"]);
}

#[test]
fn routes_wait_for_clusters_that_are_still_to_be_sent() {
    let mut stream = Stream::open(Config::new(&BEFORE), &all_types());
    let clusters = stream.next().expect("clusters come first");
    while let Some(response) = stream.next() {
        stream.request(answer(&response, None));
    }
    // The first clusters are unanswered, as while Envoy warms them.
    stream.change(&AFTER);
    assert_eq!(stream.drain(), ["EDS +new"]);
    stream.request(answer(&clusters, None));
    assert_eq!(stream.drain(), ["CDS +new", "EDS +new", "RDS +80", "CDS -old", "EDS -old"]);
}

#[test]
fn names_wait_for_the_listeners_and_routes_behind_their_addresses() {
    let names = |content| [(NameTable, "names", content)];
    let mut requests = all_types();
    requests.push(subscribe(NameTable, &[]));
    let mut stream = Stream::open(Config::new(&BEFORE), &requests);
    stream.drain();
    stream.change(&[AFTER.as_slice(), &names("new")].concat());
    let mut route = None;
    while let Some(response) = stream.next() {
        assert_ne!(show(&response), "NDS +names");
        match show(&response).as_str() {
            "RDS +80" => route = Some(response),
            _ => drop(stream.request(answer(&response, None))),
        }
    }
    stream.request(answer(&route.expect("the route was sent"), None));
    assert_eq!(stream.drain(), ["NDS +names", "CDS -old", "EDS -old"]);
    // A refusal is an answer too.
    stream.change(&[AFTER.as_slice(), &[(Route, "80", "other")], &names("other")].concat());
    let route = stream.next().expect("the route is sent");
    assert_eq!(stream.drain(), Vec::<String>::new());
    stream.request(answer(&route, Some("80: no")));
    assert_eq!(stream.drain(), ["NDS +names"]);
}

/// A stream whose client moves from `old` to `new` and has not yet asked for
/// the endpoints of `new`; what it was sent meanwhile.
fn half_moved() -> (Stream, Vec<String>) {
    let mut requests = all_types();
    requests[1] = subscribe(Endpoint, &["old"]);
    let mut stream = Stream::open(Config::new(&BEFORE), &requests);
    assert_eq!(stream.drain(), ["CDS +old", "EDS +old", "LDS +l", "RDS +80"]);
    stream.change(&AFTER);
    let sent = stream.drain();
    (stream, sent)
}

#[test]
fn a_route_waits_for_the_endpoints_of_a_new_cluster() {
    let (mut stream, sent) = half_moved();
    assert_eq!(sent, ["CDS +new"]);
    assert!(stream.pusher.is_holding());
    stream.pusher.invalidate_all();
    assert_eq!(stream.drain(), Vec::<String>::new(), "news do not end the wait");
    stream.request(subscribe(Endpoint, &["new"]));
    assert_eq!(stream.drain(), ["EDS +new", "RDS +80", "CDS -old", "EDS -old"]);
    assert!(!stream.pusher.is_holding());
}

#[test]
fn a_route_waits_no_longer_than_the_caller_does() {
    let (mut stream, _) = half_moved();
    stream.pusher.release_held();
    assert_eq!(stream.drain(), ["RDS +80", "CDS -old", "EDS -old"]);
    assert!(!stream.pusher.is_holding());
}

#[test]
fn a_refused_cluster_is_not_waited_for() {
    let mut stream = half_moved().0;
    stream.pusher.release_held();
    stream.drain();
    let more = [(Cluster, "good", "eds"), (Cluster, "bad", "eds"), (Route, "80", "to both")];
    stream.change(&[AFTER.as_slice(), &more].concat());
    let clusters = stream.next().expect("clusters");
    assert_eq!(show(&clusters), "CDS +bad +good");
    stream.request(answer(&clusters, Some("cluster bad: no")));
    assert_eq!(stream.drain(), Vec::<String>::new(), "the other one is in force");
    stream.change(&[AFTER.as_slice(), &more, &[(Endpoint, "good", "1")]].concat());
    stream.request(subscribe(Endpoint, &["good"]));
    assert_eq!(stream.drain(), ["EDS +good", "RDS +80"]);
}

#[test]
fn a_cluster_that_is_gone_again_is_not_waited_for() {
    let (mut stream, _) = half_moved();
    stream.change(&BEFORE);
    assert_eq!(stream.drain(), ["CDS -new"], "nothing that names it was ever sent");
    assert!(!stream.pusher.is_holding());
}

#[test]
fn endpoints_that_are_not_there_are_not_waited_for() {
    let (mut stream, _) = half_moved();
    stream.config.0.remove(&(Endpoint, "new"));
    stream.request(subscribe(Endpoint, &["new"]));
    assert_eq!(stream.drain(), ["EDS -new", "RDS +80", "CDS -old", "EDS -old"]);
}

#[test]
fn a_cluster_whose_endpoints_have_another_name_now_is_waited_for() {
    let mut stream = Stream::open(Config::new(&BEFORE), &all_types());
    stream.drain();
    let moved = [(Cluster, "old", "eds other"), (Endpoint, "other", "1"), (Route, "80", "2")];
    stream.change(&[BEFORE.as_slice(), &moved].concat());
    assert_eq!(stream.drain(), ["CDS +old"]);
    stream.request(subscribe(Endpoint, &["other"]));
    assert_eq!(stream.drain(), ["EDS +other", "RDS +80"]);
}

#[test]
fn clusters_without_discovery_hold_nothing() {
    let mut stream = half_moved().0;
    stream.pusher.release_held();
    stream.drain();
    let dns = [(Cluster, "dns", "strict"), (Route, "80", "to dns")];
    stream.change(&[AFTER.as_slice(), &dns].concat());
    assert_eq!(stream.drain(), ["CDS +dns", "RDS +80"]);
}

#[test]
fn a_changed_cluster_is_followed_by_its_endpoints() {
    let mut stream = Stream::open(Config::new(&BEFORE), &all_types());
    stream.drain();
    stream.change(&[(Cluster, "old", "eds old"), BEFORE[1], BEFORE[2], BEFORE[3]]);
    assert_eq!(stream.drain(), ["CDS +old", "EDS +old"]);
}

#[test]
fn nothing_is_sent_when_nothing_changed() {
    let mut stream = Stream::open(Config::new(&BEFORE), &all_types());
    stream.drain();
    stream.pusher.invalidate_all();
    assert_eq!(stream.drain(), Vec::<String>::new());
}

#[test]
fn an_empty_wildcard_is_answered_so_that_the_client_can_start() {
    let mut stream = Stream::open(Config::default(), &[subscribe(Cluster, &[])]);
    assert_eq!(stream.drain(), ["CDS"]);
}

#[test]
fn a_reconnect_brings_only_what_the_client_lacks() {
    let config = Config::new(&[(Cluster, "same", "1"), (Cluster, "changed", "2")]);
    let version = |content: &'static str| {
        Resource::from_body(Cluster, "", Bytes::from_static(content.as_bytes())).version.to_string()
    };
    let mut first = subscribe(Cluster, &[]);
    first.initial_resource_versions = [
        ("same".to_owned(), version("1")),
        ("changed".to_owned(), version("1")),
        ("gone".to_owned(), version("1")),
    ]
    .into();
    let mut stream = Stream::open(config, &[first]);
    assert_eq!(stream.drain(), ["CDS +changed", "CDS -gone"]);
}

#[test]
fn asking_again_brings_the_resource_again() {
    let mut stream = Stream::open(Config::new(&BEFORE), &[subscribe(Endpoint, &["old"])]);
    assert_eq!(stream.drain(), ["EDS +old"]);
    stream.request(subscribe(Endpoint, &["old"]));
    assert_eq!(stream.drain(), ["EDS +old"]);
}

#[test]
fn a_refusal_is_kept_for_the_resources_it_names() {
    let config = [(Listener, "0.0.0.0_80", "1"), (Listener, "0.0.0.0_8080", "1")];
    let mut stream = Stream::open(Config::new(&config), &[subscribe(Listener, &[])]);
    let response = stream.next().expect("listeners");
    let refusal = answer(&response, Some("Error adding/updating listener(s) 0.0.0.0_80: bad"));
    assert!(matches!(stream.request(refusal), Some(Verdict::Nack(_))));
    let status = stream.pusher.status().remove(&Listener).expect("subscribed");
    assert_eq!(status.rejected.keys().collect::<Vec<_>>(), ["0.0.0.0_80"]);
    assert!(!status.is_synced());
    assert_eq!(stream.drain(), Vec::<String>::new(), "a refused version is not sent again");
    stream.change(&[(Listener, "0.0.0.0_80", "2"), config[1]]);
    assert_eq!(stream.drain(), ["LDS +0.0.0.0_80"]);
    assert!(stream.pusher.status()[&Listener].is_synced());
}

#[test]
fn a_nonce_settles_once_and_only_on_its_stream() {
    let mut stream = Stream::open(Config::new(&BEFORE), &[subscribe(Cluster, &[])]);
    let response = stream.next().expect("clusters");
    let mut foreign = answer(&response, None);
    foreign.response_nonce = "2-1".to_owned();
    assert_eq!(stream.request(foreign), Some(Verdict::Stale));
    assert_eq!(stream.request(answer(&response, None)), Some(Verdict::Ack));
    assert_eq!(stream.request(answer(&response, None)), Some(Verdict::Stale));
}

#[test]
fn a_client_that_breaks_the_bounds_is_refused() {
    let mut session = Pusher::new(DeltaSession::new(1));
    let long = "x".repeat(5000);
    let error = session.on_request(subscribe(Route, &[&long])).expect_err("too long");
    assert_eq!(error, SessionError::NameTooLong { type_url: Route, bytes: 5000 });
    let mut many = subscribe(Route, &[]);
    many.resource_names_subscribe = (0..200_001).map(|n| n.to_string()).collect();
    let error = session.on_request(many).expect_err("too many");
    assert_eq!(error, SessionError::TooManyNames { type_url: Route });
    let mut unknown = subscribe(Route, &[]);
    unknown.type_url = "type.googleapis.com/some.Thing".to_owned();
    assert_eq!(session.on_request(unknown).expect("ignored").type_url, None);
}

fn sotw(type_url: TypeUrl, names: &[&str], last: Option<&DiscoveryResponse>) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url.as_str().to_owned(),
        resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
        version_info: last.map(|r| r.version_info.clone()).unwrap_or_default(),
        response_nonce: last.map(|r| r.nonce.clone()).unwrap_or_default(),
        ..Default::default()
    }
}

fn bodies(response: &DiscoveryResponse) -> BTreeSet<String> {
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).expect("text");
    response.resources.iter().map(|any| text(&any.value)).collect()
}

#[test]
fn sotw_keeps_a_leaving_cluster_in_the_set_until_routes_have_moved() {
    let mut config = Config::new(&[(Cluster, "old", "old"), (Route, "80", "to old")]);
    let mut pusher = Pusher::new(SotwSession::new(1));
    pusher.on_request(sotw(Cluster, &[], None)).expect("valid");
    pusher.on_request(sotw(Route, &["80"], None)).expect("valid");
    let settle = |config: &mut Config, pusher: &mut Pusher<SotwSession>| {
        let mut sets = Vec::new();
        while let Some((type_url, response)) = pusher.next(config) {
            sets.push((type_url, bodies(&response)));
            let names: &[&str] = if type_url == Route { &["80"] } else { &[] };
            pusher.on_request(sotw(type_url, names, Some(&response))).expect("valid");
        }
        sets
    };
    settle(&mut config, &mut pusher);
    config = Config::new(&[(Cluster, "new", "new"), (Route, "80", "to new")]);
    pusher.invalidate_all();
    let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(
        settle(&mut config, &mut pusher),
        [(Cluster, set(&["new", "old"])), (Route, set(&["to new"])), (Cluster, set(&["new"])),]
    );
}

#[test]
fn sotw_answers_the_endpoints_that_envoy_asks_for_again_after_clusters() {
    let mut config = Config::new(&[(Cluster, "c", "eds"), (Endpoint, "c", "e")]);
    let mut pusher = Pusher::new(SotwSession::new(1));
    pusher.on_request(sotw(Cluster, &[], None)).expect("valid");
    let (_, clusters) = pusher.next(&mut config).expect("clusters");
    pusher.on_request(sotw(Endpoint, &["c"], None)).expect("valid");
    pusher.on_request(sotw(Cluster, &[], Some(&clusters))).expect("valid");
    let (_, endpoints) = pusher.next(&mut config).expect("endpoints");
    pusher.on_request(sotw(Endpoint, &["c"], Some(&endpoints))).expect("valid");
    assert!(pusher.next(&mut config).is_none());

    config = Config::new(&[(Cluster, "c", "eds c"), (Endpoint, "c", "e")]);
    pusher.invalidate_all();
    let (first, _) = pusher.next(&mut config).expect("clusters");
    let (second, again) = pusher.next(&mut config).expect("their endpoints");
    assert_eq!((first, second), (Cluster, Endpoint));
    assert_eq!(bodies(&again), BTreeSet::from(["e".to_owned()]));
    // The request for the warming cluster looks like a plain ACK.
    pusher.on_request(sotw(Endpoint, &["c"], Some(&again))).expect("valid");
    assert!(pusher.next(&mut config).is_some_and(|(t, _)| t == Endpoint));
}

#[test]
fn sotw_ignores_requests_that_answer_an_older_response() {
    let mut config = Config::new(&[(Route, "a", "a"), (Route, "b", "b")]);
    let mut pusher = Pusher::new(SotwSession::new(1));
    pusher.on_request(sotw(Route, &["a"], None)).expect("valid");
    let (_, first) = pusher.next(&mut config).expect("route a");
    pusher.on_request(sotw(Route, &["a", "b"], Some(&first))).expect("valid");
    let (_, second) = pusher.next(&mut config).expect("route b");
    assert_eq!(bodies(&second), BTreeSet::from(["b".to_owned()]));
    let late = pusher.on_request(sotw(Route, &["a"], Some(&first))).expect("valid");
    assert_eq!(late.verdict, Some(Verdict::Stale));
    assert_eq!(pusher.wanted(Route), Some(Wanted::Names(&["a".into(), "b".into()].into())));
}

#[test]
fn sotw_routes_wait_for_the_endpoints_of_a_new_cluster() {
    check_sotw_wait(&[(Endpoint, "c", "e")]);
    check_sotw_wait(&[]);
}

/// The wait ends with the question, also when there is nothing to answer.
#[track_caller]
fn check_sotw_wait(endpoints: &[(TypeUrl, &'static str, &'static str)]) {
    let config = [(Cluster, "c", "eds"), (Route, "80", "to c")];
    let mut config = Config::new(&[config.as_slice(), endpoints].concat());
    let mut pusher = Pusher::new(SotwSession::new(1));
    pusher.on_request(sotw(Cluster, &[], None)).expect("valid");
    pusher.on_request(sotw(Route, &["80"], None)).expect("valid");
    let (first, clusters) = pusher.next(&mut config).expect("clusters");
    assert_eq!(first, Cluster);
    pusher.on_request(sotw(Cluster, &[], Some(&clusters))).expect("valid");
    assert!(pusher.next(&mut config).is_none());
    assert!(pusher.is_holding());
    pusher.on_request(sotw(Endpoint, &["c"], None)).expect("valid");
    let sent = std::iter::from_fn(|| pusher.next(&mut config).map(|(t, _)| t)).collect::<Vec<_>>();
    let answer = (!endpoints.is_empty()).then_some(Endpoint);
    assert_eq!(sent, answer.into_iter().chain([Route]).collect::<Vec<_>>());
    assert!(!pusher.is_holding());
}
