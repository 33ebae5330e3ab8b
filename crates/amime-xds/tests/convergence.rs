//! Whatever happens on the way, a client ends with exactly the server's set.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use amime_xds::client::{
    DeltaClient, Handler, Rejection, SotwClient, StreamState, Subscription, Update,
};
use amime_xds::server::{DeltaSession, Pusher, Session, SotwSession, Source, Wanted};
use amime_xds::{Resource, TypeUrl};
use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::rpc::Status;
use proptest::prelude::*;

const TYPES: [TypeUrl; 4] =
    [TypeUrl::Cluster, TypeUrl::Endpoint, TypeUrl::Listener, TypeUrl::Route];

/// A client refuses this content.
const POISON: u8 = 9;

#[derive(Clone, Debug)]
enum Step {
    Set { ty: usize, name: u8, content: u8 },
    Remove { ty: usize, name: u8 },
    Subscribe { ty: usize, name: u8 },
    Unsubscribe { ty: usize, name: u8 },
    ToServer,
    ToClient,
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let (ty, name) = (0..TYPES.len(), 0..5u8);
    let named = prop_oneof![Just(1usize), Just(3usize)];
    prop_oneof![
        4 => (ty.clone(), name.clone(), 0..=POISON)
            .prop_map(|(ty, name, content)| Step::Set { ty, name, content }),
        2 => (ty, name.clone()).prop_map(|(ty, name)| Step::Remove { ty, name }),
        2 => (named.clone(), name.clone()).prop_map(|(ty, name)| Step::Subscribe { ty, name }),
        1 => (named, name).prop_map(|(ty, name)| Step::Unsubscribe { ty, name }),
        5 => Just(Step::ToServer),
        5 => Just(Step::ToClient),
        1 => Just(Step::Reconnect),
    ]
}

fn name(n: u8) -> String {
    format!("outbound|{n}||svc.ns")
}

/// A message with its name in field 1, as Envoy's have it, and one byte in a
/// field that none of them has.
fn resource(ty: TypeUrl, name: &str, content: u8) -> Resource {
    let length = u8::try_from(name.len()).expect("a short name");
    let body = [&[0x0a, length], name.as_bytes(), &[0x80, 0x7d, content]].concat();
    Resource::from_body(ty, name, Bytes::from(body))
}

/// The server's configuration: contents by type and name.
#[derive(Debug, Default)]
struct World {
    contents: BTreeMap<(TypeUrl, String), u8>,
    version: String,
}

impl Source for World {
    fn generate(&mut self, type_url: TypeUrl, wanted: Wanted<'_>) -> Vec<Resource> {
        let of_type = self.contents.iter().filter(|((t, _), _)| *t == type_url);
        of_type
            .filter(|((_, name), _)| match wanted {
                Wanted::All => true,
                Wanted::Names(names) => names.contains(name),
            })
            .map(|((_, name), content)| resource(type_url, name, *content))
            .collect()
    }

    fn version(&self) -> &str {
        &self.version
    }
}

/// What a proxy has in force.
#[derive(Debug, Default)]
struct InForce {
    resources: BTreeMap<(TypeUrl, String), Resource>,
    names: BTreeMap<TypeUrl, BTreeSet<String>>,
}

impl InForce {
    fn apply_one(&mut self, resource: Resource) -> Result<(), Rejection> {
        if resource.body.last() == Some(&POISON) {
            let error = "content is poison".to_owned();
            return Err(Rejection { name: resource.name, error });
        }
        self.resources.insert((resource.type_url, resource.name.clone()), resource);
        Ok(())
    }

    fn drop_unwanted(&mut self) {
        let names = &self.names;
        self.resources.retain(|(t, n), _| {
            t.is_wildcard_by_default() || names.get(t).is_some_and(|s| s.contains(n))
        });
    }
}

impl Handler for InForce {
    fn apply(&mut self, update: Update) -> Vec<Rejection> {
        for name in update.removed {
            self.resources.remove(&(update.type_url, name));
        }
        update.added.into_iter().filter_map(|r| self.apply_one(r).err()).collect()
    }

    fn subscriptions(&self) -> Vec<(TypeUrl, Subscription)> {
        TYPES
            .into_iter()
            .map(|t| {
                let names = self.names.get(&t).cloned().unwrap_or_default();
                let named = Subscription::Names(names);
                (t, if t.is_wildcard_by_default() { Subscription::Wildcard } else { named })
            })
            .collect()
    }
}

/// A client of either variant.
trait Client {
    type Session: Session<Request = Self::Request, Response = Self::Response>;
    type Request;
    type Response;

    fn session(stream: u64) -> Self::Session;
    fn connect(&mut self) -> Vec<Self::Request>;
    fn receive(&mut self, response: Self::Response) -> Vec<Self::Request>;
    fn resubscribe(&mut self, ty: TypeUrl) -> Vec<Self::Request>;
    fn in_force(&mut self) -> &mut InForce;
    fn nonce(response: &Self::Response) -> &str;
    fn check_invariants(&self) {}
}

/// Our own client of one variant.
struct Ours<S> {
    state: S,
    in_force: InForce,
}

type Delta = Ours<DeltaClient>;
type OurSotw = Ours<SotwClient>;

impl Default for Delta {
    fn default() -> Self {
        Self { state: DeltaClient::new(Node::default()), in_force: InForce::default() }
    }
}

impl Client for Delta {
    type Session = DeltaSession;
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn session(stream: u64) -> DeltaSession {
        DeltaSession::new(stream)
    }

    fn connect(&mut self) -> Vec<Self::Request> {
        self.start()
    }

    fn receive(&mut self, response: Self::Response) -> Vec<Self::Request> {
        self.answer(response)
    }

    fn resubscribe(&mut self, _ty: TypeUrl) -> Vec<Self::Request> {
        self.refresh()
    }

    fn in_force(&mut self) -> &mut InForce {
        &mut self.in_force
    }

    fn nonce(response: &Self::Response) -> &str {
        &response.nonce
    }

    fn check_invariants(&self) {
        for ty in TYPES {
            let held: BTreeMap<_, _> = self.state.held(ty).collect();
            let in_force: BTreeMap<_, _> = self
                .in_force
                .resources
                .iter()
                .filter(|((t, _), _)| *t == ty)
                .map(|((_, n), r)| (n.as_str(), &*r.version))
                .collect();
            assert_eq!(held, in_force, "{ty}: the versions held are those in force");
        }
    }
}

impl<S: StreamState> Ours<S> {
    fn start(&mut self) -> Vec<S::Request> {
        self.state.on_connect(&self.in_force)
    }

    fn answer(&mut self, response: S::Response) -> Vec<S::Request> {
        let requests = self.state.on_response(response, &mut self.in_force);
        self.in_force.drop_unwanted();
        requests
    }

    fn refresh(&mut self) -> Vec<S::Request> {
        self.in_force.drop_unwanted();
        self.state.refresh(&self.in_force)
    }
}

impl Default for OurSotw {
    fn default() -> Self {
        Self { state: SotwClient::new(Node::default()), in_force: InForce::default() }
    }
}

impl Client for OurSotw {
    type Session = SotwSession;
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn session(stream: u64) -> SotwSession {
        SotwSession::new(stream)
    }

    fn connect(&mut self) -> Vec<DiscoveryRequest> {
        self.start()
    }

    fn receive(&mut self, response: DiscoveryResponse) -> Vec<DiscoveryRequest> {
        self.answer(response)
    }

    fn resubscribe(&mut self, _ty: TypeUrl) -> Vec<DiscoveryRequest> {
        self.refresh()
    }

    fn in_force(&mut self) -> &mut InForce {
        &mut self.in_force
    }

    fn nonce(response: &DiscoveryResponse) -> &str {
        &response.nonce
    }

    fn check_invariants(&self) {
        for ty in TYPES {
            let held: Vec<_> = self.state.held(ty).collect();
            let in_force = self.in_force.resources.keys().filter(|(t, _)| *t == ty);
            let in_force: Vec<_> = in_force.map(|(_, n)| n.as_str()).collect();
            assert_eq!(held, in_force, "{ty}: what is held is in force");
        }
    }
}

/// Behaves as Envoy does on a state-of-the-world stream.
#[derive(Default)]
struct Sotw {
    in_force: InForce,
    last: BTreeMap<TypeUrl, (String, String)>,
}

impl Sotw {
    fn request(&self, ty: TypeUrl, error: Option<Status>) -> DiscoveryRequest {
        let (version, nonce) = self.last.get(&ty).cloned().unwrap_or_default();
        let names = self.in_force.names.get(&ty).into_iter().flatten().cloned();
        DiscoveryRequest {
            type_url: ty.as_str().to_owned(),
            version_info: version,
            response_nonce: nonce,
            resource_names: names.collect(),
            error_detail: error,
            ..Default::default()
        }
    }
}

impl Client for Sotw {
    type Session = SotwSession;
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn session(stream: u64) -> SotwSession {
        SotwSession::new(stream)
    }

    fn connect(&mut self) -> Vec<DiscoveryRequest> {
        self.last.clear();
        TYPES.into_iter().map(|ty| self.request(ty, None)).collect()
    }

    fn receive(&mut self, response: DiscoveryResponse) -> Vec<DiscoveryRequest> {
        let ty = TypeUrl::parse(&response.type_url).expect("server sends known types");
        let mut error = None;
        let mut names = BTreeSet::new();
        for any in response.resources {
            let (content, rest) = any.value.split_last().expect("bodies have content");
            let name = String::from_utf8(rest[2..rest.len() - 2].to_vec()).expect("names are text");
            names.insert(name.clone());
            if let Err(rejection) = self.in_force.apply_one(resource(ty, &name, *content)) {
                error = Some(Status { code: 13, message: rejection.error, details: Vec::new() });
            }
        }
        if ty.is_wildcard_by_default() {
            self.in_force.resources.retain(|(t, n), _| *t != ty || names.contains(n));
        }
        self.in_force.drop_unwanted();
        self.last.insert(ty, (response.version_info, response.nonce));
        vec![self.request(ty, error)]
    }

    fn resubscribe(&mut self, ty: TypeUrl) -> Vec<DiscoveryRequest> {
        vec![self.request(ty, None)]
    }

    fn in_force(&mut self) -> &mut InForce {
        &mut self.in_force
    }

    fn nonce(response: &DiscoveryResponse) -> &str {
        &response.nonce
    }
}

/// Server, client and the two directions of the stream between them.
struct Link<C: Client> {
    world: World,
    server: Pusher<C::Session>,
    client: C,
    to_server: VecDeque<C::Request>,
    to_client: VecDeque<C::Response>,
    streams: u64,
    nonces: BTreeSet<String>,
}

impl<C: Client + Default> Link<C> {
    fn new() -> Self {
        let mut link = Self {
            world: World::default(),
            server: Pusher::new(C::session(0)),
            client: C::default(),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            streams: 0,
            nonces: BTreeSet::new(),
        };
        link.reconnect();
        link
    }

    fn reconnect(&mut self) {
        self.streams += 1;
        self.server = Pusher::new(C::session(self.streams));
        self.to_server.clear();
        self.to_client.clear();
        self.to_server.extend(self.client.connect());
    }

    fn pump(&mut self) {
        while let Some((_, response)) = self.server.next(&mut self.world) {
            assert!(self.nonces.insert(C::nonce(&response).to_owned()), "a nonce is used once");
            self.to_client.push_back(response);
        }
    }

    fn change(&mut self, ty: TypeUrl, name: String, content: Option<u8>) {
        match content {
            Some(content) => self.world.contents.insert((ty, name.clone()), content),
            None => self.world.contents.remove(&(ty, name.clone())),
        };
        self.world.version = format!("{}", self.nonces.len());
        if ty == TypeUrl::Endpoint {
            self.server.invalidate_names(ty, [name]);
        } else {
            self.server.invalidate_all();
        }
        self.pump();
    }

    fn deliver_request(&mut self) {
        if let Some(request) = self.to_server.pop_front() {
            self.server.on_request(request).expect("client keeps the bounds");
            self.pump();
        }
    }

    fn deliver_response(&mut self) {
        if let Some(response) = self.to_client.pop_front() {
            self.to_server.extend(self.client.receive(response));
            self.client.check_invariants();
        }
    }

    fn subscribe(&mut self, ty: TypeUrl, name: String, on: bool) {
        let names = self.client.in_force().names.entry(ty).or_default();
        let changed = if on { names.insert(name) } else { names.remove(&name) };
        if changed {
            self.client.in_force().drop_unwanted();
            self.to_server.extend(self.client.resubscribe(ty));
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Set { ty, name: n, content } => self.change(TYPES[ty], name(n), Some(content)),
            Step::Remove { ty, name: n } => self.change(TYPES[ty], name(n), None),
            Step::Subscribe { ty, name: n } => self.subscribe(TYPES[ty], name(n), true),
            Step::Unsubscribe { ty, name: n } => self.subscribe(TYPES[ty], name(n), false),
            Step::ToServer => self.deliver_request(),
            Step::ToClient => self.deliver_response(),
            Step::Reconnect => self.reconnect(),
        }
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.to_server.is_empty() && self.to_client.is_empty() {
                return;
            }
            self.deliver_request();
            self.deliver_response();
        }
        panic!("the two sides never come to rest");
    }

    /// What is in force must be what the server has, but for refused content;
    /// `forgets` says whether the client learns that a named resource is gone.
    fn check(&mut self, forgets: bool) {
        let routes_refused = self.server.status().iter().any(|(t, s)| {
            matches!(t, TypeUrl::Listener | TypeUrl::Route) && !s.rejected.is_empty()
        });
        let in_force = self.client.in_force();
        for ((ty, name), content) in &self.world.contents {
            let wanted = ty.is_wildcard_by_default()
                || in_force.names.get(ty).is_some_and(|names| names.contains(name));
            if !wanted || *content == POISON {
                continue;
            }
            let got = in_force.resources.get(&(*ty, name.clone())).map(|one| &one.body);
            assert_eq!(got, Some(&resource(*ty, name, *content).body), "{ty} {name}");
        }
        for (ty, name) in in_force.resources.keys() {
            // Taken away only when no older route can name it.
            let kept = matches!(ty, TypeUrl::Cluster | TypeUrl::Endpoint) && routes_refused;
            let learns = forgets || ty.is_wildcard_by_default();
            let there = self.world.contents.contains_key(&(*ty, name.clone()));
            assert!(there || kept || !learns, "{ty} {name} is gone from the server");
        }
    }
}

fn converge<C: Client + Default>(steps: Vec<Step>, forgets: bool) {
    let mut link = Link::<C>::new();
    for step in steps {
        link.step(step);
    }
    link.settle();
    link.check(forgets);
    // A reconnect changes nothing and, with the same set, ends the same.
    link.reconnect();
    link.settle();
    link.check(forgets);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn delta_clients_end_with_the_servers_set(steps in prop::collection::vec(step(), 0..80)) {
        converge::<Delta>(steps, true);
    }

    #[test]
    fn our_sotw_client_ends_with_the_servers_set(steps in prop::collection::vec(step(), 0..80)) {
        converge::<OurSotw>(steps, false);
    }

    #[test]
    fn sotw_clients_end_with_the_servers_set(steps in prop::collection::vec(step(), 0..80)) {
        converge::<Sotw>(steps, false);
    }
}
