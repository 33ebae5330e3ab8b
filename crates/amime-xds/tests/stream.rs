//! The client over real gRPC streams: held versions, dynamic names, reconnects.
#![cfg(feature = "grpc")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amime_xds::client::{
    AdsClient, ClientConfig, Connection, Handler, Rejection, Subscription, Update, Variant,
};
use amime_xds::server::{DeltaSession, Pusher, Session, SotwSession, Source, Wanted};
use amime_xds::{Resource, TypeUrl};
use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

type Contents = BTreeMap<(TypeUrl, String), String>;
type Responses<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// Any resource: they all have their name in field 1.
#[derive(Clone, PartialEq, Message)]
struct Thing {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "15000")]
    content: String,
}

fn resource(type_url: TypeUrl, name: &str, content: &str) -> Resource {
    let thing = Thing { name: name.to_owned(), content: content.to_owned() };
    Resource::from_body(type_url, name, Bytes::from(thing.encode_to_vec()))
}

struct View(Contents);

impl Source for View {
    fn generate(&mut self, type_url: TypeUrl, wanted: Wanted<'_>) -> Vec<Resource> {
        let of_type = self.0.iter().filter(|((t, _), _)| *t == type_url);
        let wanted = of_type.filter(|((_, name), _)| match wanted {
            Wanted::All => true,
            Wanted::Names(names) => names.contains(name),
        });
        wanted.map(|((_, name), content)| resource(type_url, name, content)).collect()
    }

    fn version(&self) -> &str {
        "v"
    }
}

/// A server of both variants over contents that a test changes.
#[derive(Clone)]
struct TestServer {
    contents: watch::Sender<Contents>,
    /// First requests of all streams, as they came.
    first: Arc<Mutex<Vec<DeltaDiscoveryRequest>>>,
    /// Requests of state-of-the-world streams, as they came.
    sotw: Arc<Mutex<Vec<DiscoveryRequest>>>,
    stop: watch::Sender<bool>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for TestServer {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let seen = Arc::clone(&self.sotw);
        let keep = move |request: &DiscoveryRequest| {
            seen.lock().expect("no panic").push(request.clone());
        };
        Ok(Response::new(self.drive(SotwSession::new(1), request.into_inner(), keep)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let first = Arc::clone(&self.first);
        let keep = move |request: &DeltaDiscoveryRequest| {
            if request.response_nonce.is_empty() {
                first.lock().expect("no panic").push(request.clone());
            }
        };
        Ok(Response::new(self.drive(DeltaSession::new(1), request.into_inner(), keep)))
    }
}

impl TestServer {
    fn drive<S>(
        &self,
        session: S,
        mut requests: Streaming<S::Request>,
        keep: impl Fn(&S::Request) + Send + 'static,
    ) -> Responses<S::Response>
    where
        S: Session + 'static,
        S::Request: 'static,
        S::Response: 'static,
    {
        let (responses, queue) = mpsc::channel(1);
        let mut contents = self.contents.subscribe();
        let mut stop = self.stop.subscribe();
        tokio::spawn(async move {
            let mut pusher = Pusher::new(session);
            let mut view = View(contents.borrow_and_update().clone());
            loop {
                while let Some((_, response)) = pusher.next(&mut view) {
                    responses.send(Ok(response)).await.expect("the client reads");
                }
                tokio::select! {
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        keep(&request);
                        pusher.on_request(request).expect("within bounds");
                    }
                    _ = stop.wait_for(|stop| *stop) => return,
                    changed = contents.changed() => {
                        changed.expect("the test holds the sender");
                        view = View(contents.borrow_and_update().clone());
                        pusher.invalidate_all();
                    }
                }
            }
        });
        Box::pin(ReceiverStream::new(queue))
    }
}

impl TestServer {
    fn new() -> Self {
        Self {
            contents: watch::Sender::new(Contents::new()),
            first: Arc::default(),
            sotw: Arc::default(),
            stop: watch::Sender::new(false),
        }
    }

    fn set(&self, type_url: TypeUrl, name: &str, content: &str) {
        self.contents.send_modify(|c| {
            c.insert((type_url, name.to_owned()), content.to_owned());
        });
    }

    fn remove(&self, type_url: TypeUrl, name: &str) {
        self.contents.send_modify(|c| {
            c.remove(&(type_url, name.to_owned()));
        });
    }

    /// Serves until the task is aborted.
    async fn serve(&self, addr: &str) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind(addr).await.expect("loopback is up");
        let addr = listener.local_addr().expect("bound");
        let service = AggregatedDiscoveryServiceServer::new(self.clone());
        let task = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let served = Server::builder().add_service(service).serve_with_incoming(incoming).await;
            served.expect("serving works");
        });
        (addr, task)
    }
}

/// Wants all clusters, and the endpoints of each cluster in force.
#[derive(Default)]
struct Proxy {
    in_force: BTreeMap<(TypeUrl, String), String>,
    seen: Option<watch::Sender<BTreeMap<(TypeUrl, String), String>>>,
}

impl Handler for Proxy {
    fn apply(&mut self, update: Update) -> Vec<Rejection> {
        for name in update.removed {
            self.in_force.remove(&(update.type_url, name));
        }
        let mut rejections = Vec::new();
        for resource in update.added {
            let text = Thing::decode(resource.body).expect("a thing").content;
            if text == "bad" {
                let error = "is bad".to_owned();
                rejections.push(Rejection { name: resource.name, error });
            } else {
                self.in_force.insert((resource.type_url, resource.name), text);
            }
        }
        if let Some(seen) = &self.seen {
            seen.send_replace(self.in_force.clone());
        }
        rejections
    }

    fn subscriptions(&self) -> Vec<(TypeUrl, Subscription)> {
        let clusters = self.in_force.keys().filter(|(t, _)| *t == TypeUrl::Cluster);
        let names: BTreeSet<_> = clusters.map(|(_, name)| name.clone()).collect();
        vec![
            (TypeUrl::Cluster, Subscription::Wildcard),
            (TypeUrl::Endpoint, Subscription::Names(names)),
        ]
    }
}

struct Client {
    seen: watch::Receiver<BTreeMap<(TypeUrl, String), String>>,
    connection: watch::Receiver<Connection>,
}

impl Client {
    fn start(addr: SocketAddr, variant: Variant) -> Self {
        let (sender, seen) = watch::channel(BTreeMap::new());
        let config = ClientConfig {
            backoff_min: Duration::from_millis(5),
            backoff_max: Duration::from_millis(20),
            variant,
            ..ClientConfig::new(Node { id: "test".into(), ..Default::default() })
        };
        let client = AdsClient::new(config);
        let connection = client.connection();
        tokio::spawn(async move {
            let mut proxy = Proxy { seen: Some(sender), ..Default::default() };
            let url = format!("http://{addr}");
            let connect = || async { Ok(Channel::from_shared(url.clone())?.connect().await?) };
            client.run(connect, &mut proxy).await
        });
        Self { seen, connection }
    }

    async fn has(&mut self, type_url: TypeUrl, name: &str, content: &str) {
        let key = (type_url, name.to_owned());
        let arrived = self.seen.wait_for(|all| all.get(&key).is_some_and(|c| c == content));
        tokio::time::timeout(Duration::from_secs(30), arrived)
            .await
            .unwrap_or_else(|_| panic!("{type_url} {name} does not become {content}"))
            .expect("the client runs");
    }

    async fn lacks(&mut self, type_url: TypeUrl, name: &str) {
        let key = (type_url, name.to_owned());
        let gone = self.seen.wait_for(|all| !all.contains_key(&key));
        let gone = tokio::time::timeout(Duration::from_secs(30), gone).await;
        gone.unwrap_or_else(|_| panic!("{type_url} {name} stays")).expect("the client runs");
    }

    async fn is(&mut self, wanted: impl Fn(&Connection) -> bool) {
        let reached = self.connection.wait_for(wanted);
        let reached = tokio::time::timeout(Duration::from_secs(30), reached).await;
        reached.expect("the connection changes").expect("the client runs");
    }
}

#[tokio::test]
async fn names_follow_from_what_is_in_force() {
    for variant in [Variant::Delta, Variant::StateOfTheWorld] {
        let server = TestServer::new();
        server.set(TypeUrl::Cluster, "a", "1");
        server.set(TypeUrl::Endpoint, "a", "here");
        let (addr, _task) = server.serve("127.0.0.1:0").await;
        let mut client = Client::start(addr, variant);
        client.has(TypeUrl::Endpoint, "a", "here").await;
        server.set(TypeUrl::Endpoint, "b", "there");
        server.set(TypeUrl::Cluster, "b", "1");
        client.has(TypeUrl::Endpoint, "b", "there").await;
        server.remove(TypeUrl::Cluster, "b");
        client.lacks(TypeUrl::Cluster, "b").await;
        server.set(TypeUrl::Cluster, "b", "2");
        client.has(TypeUrl::Cluster, "b", "2").await;
        server.set(TypeUrl::Endpoint, "b", "elsewhere");
        client.has(TypeUrl::Endpoint, "b", "elsewhere").await;
        assert_eq!(*client.connection.borrow(), Connection::Connected);
    }
}

#[tokio::test]
async fn a_whole_set_with_a_fault_is_refused_by_name_and_survives_a_reconnect() {
    let server = TestServer::new();
    server.set(TypeUrl::Cluster, "kept", "1");
    server.set(TypeUrl::Cluster, "left", "1");
    let (addr, task) = server.serve("127.0.0.1:0").await;
    let mut client = Client::start(addr, Variant::StateOfTheWorld);
    client.has(TypeUrl::Cluster, "left", "1").await;
    server.set(TypeUrl::Cluster, "kept", "bad");
    server.set(TypeUrl::Cluster, "later", "1");
    client.has(TypeUrl::Cluster, "later", "1").await;

    task.abort();
    let _ = task.await;
    server.stop.send_replace(true);
    client.is(|c| matches!(c, Connection::Lost { .. })).await;
    let errors = server.sotw.lock().expect("no panic").clone();
    let errors: Vec<_> = errors.into_iter().filter_map(|r| r.error_detail).collect();
    assert_eq!(errors[0].message, "kept: is bad");

    // The next server no longer has one of them: absence says so.
    let next = TestServer::new();
    next.set(TypeUrl::Cluster, "kept", "2");
    next.set(TypeUrl::Cluster, "later", "1");
    let (_, _task) = next.serve(&addr.to_string()).await;
    client.has(TypeUrl::Cluster, "kept", "2").await;
    client.lacks(TypeUrl::Cluster, "left").await;
    let first = next.sotw.lock().expect("no panic")[0].clone();
    assert_eq!(first.version_info, "v", "what was accepted before is claimed");
    assert!(first.response_nonce.is_empty() && first.node.is_some());
}

#[tokio::test]
async fn a_reconnect_claims_what_is_held_and_nothing_that_was_refused() {
    let server = TestServer::new();
    server.set(TypeUrl::Cluster, "kept", "1");
    server.set(TypeUrl::Cluster, "refused", "1");
    let (addr, task) = server.serve("127.0.0.1:0").await;
    let mut client = Client::start(addr, Variant::Delta);
    client.has(TypeUrl::Cluster, "refused", "1").await;
    server.set(TypeUrl::Cluster, "refused", "bad");
    server.set(TypeUrl::Cluster, "later", "1");
    client.has(TypeUrl::Cluster, "later", "1").await;

    task.abort();
    let _ = task.await;
    server.stop.send_replace(true);
    let next = TestServer::new();
    client.is(|c| matches!(c, Connection::Lost { .. })).await;
    assert!(client.seen.borrow().contains_key(&(TypeUrl::Cluster, "kept".into())));

    next.set(TypeUrl::Cluster, "kept", "1");
    next.set(TypeUrl::Cluster, "refused", "2");
    let (_, _task) = next.serve(&addr.to_string()).await;
    client.has(TypeUrl::Cluster, "refused", "2").await;
    let first = next.first.lock().expect("no panic").clone();
    let claims = &first[0].initial_resource_versions;
    let version = |name: &str, text: &'static str| {
        Some(resource(TypeUrl::Cluster, name, text).version.to_string())
    };
    assert_eq!(claims.get("kept").cloned(), version("kept", "1"));
    assert_eq!(claims.get("refused").cloned(), version("refused", "1"));
}
