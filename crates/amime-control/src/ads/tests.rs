//! Who may open a stream, how long it waits, and what ends one.

use std::sync::Arc;
use std::time::Duration;

use amime_api::decode;
use amime_ca::{CallerIdentity, Credential};
use amime_model::Change;
use amime_xds::TypeUrl;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::AdsService;
use crate::discovery::{Debounce, Discovery, SyncState};
use crate::metrics::Metrics;
use crate::source::Event;

/// Long enough to be told from no time.
const WARM_UP: Duration = Duration::from_millis(500);

/// A server over an empty mesh; callers are `caller`.
struct Server {
    discovery: Discovery,
    shutdown: CancellationToken,
    channel: Channel,
    events: mpsc::Sender<Event>,
}

/// One stream, seen from the client.
struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Server {
    async fn start(caller: Option<&str>) -> Self {
        let caller = caller.map(|namespace| CallerIdentity {
            spiffe_id: format!("spiffe://cluster.local/ns/{namespace}/sa/web")
                .parse()
                .expect("valid"),
            credential: Credential::ClientCertificate,
        });
        let discovery = Discovery::new(Metrics::new().xds.clone());
        let shutdown = CancellationToken::new();
        let (events, queue) = mpsc::channel(8);
        events.send(Event::Synced).await.expect("room for one");
        let run = discovery.clone();
        tokio::spawn(async move {
            run.run(queue, Arc::default(), Debounce::default(), CancellationToken::new()).await;
        });
        let service = AdsService::new(discovery.clone(), shutdown.clone());
        let service = service.with_warm_up(WARM_UP).into_server();
        let service = InterceptedService::new(service, move |mut request: Request<()>| {
            if let Some(caller) = &caller {
                request.extensions_mut().insert(caller.clone());
            }
            Ok(request)
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback is up");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let channel = Channel::from_shared(url).expect("a URL").connect().await.expect("served");
        Self { discovery, shutdown, channel, events }
    }

    async fn apply(&self, yaml: &str) {
        let decoded = decode::decode("test.yaml", yaml);
        assert!(decoded.errors.is_empty(), "{:?}", decoded.errors);
        for resource in decoded.resources {
            let change = Event::Change(Change::Set(Arc::new(resource)));
            self.events.send(change).await.expect("discovery runs");
        }
    }

    async fn open(&self, first: DeltaDiscoveryRequest) -> Stream {
        let (requests, queue) = mpsc::channel(8);
        requests.send(first).await.expect("room for one");
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel.clone());
        let opened = client.delta_aggregated_resources(ReceiverStream::new(queue)).await;
        Stream { requests, responses: opened.expect("streams open").into_inner() }
    }

    /// Waits until `wanted` holds for the connected proxies' names and states.
    async fn status(&self, wanted: impl Fn(&[(String, Option<SyncState>)]) -> bool) {
        let seen = || -> Vec<_> {
            let all = self.discovery.sync_status();
            let state = |types: &std::collections::BTreeMap<TypeUrl, _>| {
                types.get(&TypeUrl::Cluster).map(crate::discovery::TypeSync::state)
            };
            all.iter().map(|sync| (sync.proxy.id.clone(), state(&sync.types))).collect()
        };
        let reached = async {
            while !wanted(&seen()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(30), reached).await;
        assert!(reached.is_ok(), "the status stays {:?}", seen());
    }
}

fn clusters(node_id: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node { id: node_id.to_owned(), ..Default::default() }),
        type_url: TypeUrl::Cluster.as_str().to_owned(),
        ..Default::default()
    }
}

const WEB: &str = "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local";

impl Stream {
    /// Accepts a response; says of which type.
    async fn accept_one(&mut self) -> Option<TypeUrl> {
        let response = self.responses.message().await.expect("no fault").expect("a response");
        let type_url = TypeUrl::parse(&response.type_url);
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..Default::default()
        };
        self.requests.send(ack).await.expect("the server reads");
        type_url
    }

    async fn end(&mut self) -> Status {
        loop {
            match self.responses.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a status"),
                Err(status) => return status,
            }
        }
    }
}

#[track_caller]
fn check_status(status: &Status, code: Code, part: &str) {
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(part), "{status}");
}

#[tokio::test]
async fn a_caller_may_only_speak_for_its_namespace() {
    let server = Server::start(Some("other")).await;
    let status = server.open(clusters(WEB)).await.end().await;
    check_status(&status, Code::PermissionDenied, "may not ask for namespace shop");
    let server = Server::start(Some("shop")).await;
    server.open(clusters(WEB)).await.accept_one().await;
}

#[tokio::test]
async fn a_first_request_must_say_who_asks() {
    let server = Server::start(None).await;
    let anonymous = DeltaDiscoveryRequest { node: None, ..clusters(WEB) };
    let status = server.open(anonymous).await.end().await;
    check_status(&status, Code::InvalidArgument, "no node");
    let status = server.open(clusters("just a name")).await.end().await;
    check_status(&status, Code::InvalidArgument, "just a name");
}

#[tokio::test]
async fn the_status_follows_the_stream() {
    let server = Server::start(None).await;
    let mut stream = server.open(clusters(WEB)).await;
    let web = || "web.shop".to_owned();
    server.status(|all| *all == [(web(), Some(SyncState::Stale))]).await;
    stream.accept_one().await;
    server.status(|all| *all == [(web(), Some(SyncState::Synced))]).await;
    drop(stream);
    server.status(<[_]>::is_empty).await;
}

#[tokio::test]
async fn a_client_that_asks_for_no_endpoints_gets_listeners_all_the_same() {
    let server = Server::start(None).await;
    let web = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
               spec: {clusterIP: 10.96.0.13, ports: [{name: http, port: 80}]}\n";
    server.apply(web).await;
    let mut published = server.discovery.follow();
    let known = published.wait_for(|news| {
        news.as_ref().is_some_and(|news| !news.snapshot.services().all().is_empty())
    });
    assert!(known.await.is_ok());
    let start = std::time::Instant::now();
    let mut stream = server.open(clusters(WEB)).await;
    let listeners =
        DeltaDiscoveryRequest { type_url: TypeUrl::Listener.as_str().to_owned(), ..clusters(WEB) };
    stream.requests.send(listeners).await.expect("the server reads");
    assert_eq!(stream.accept_one().await, Some(TypeUrl::Cluster));
    assert_eq!(stream.accept_one().await, Some(TypeUrl::Listener));
    assert!(start.elapsed() >= WARM_UP, "they were held back first");
}

/// A secret of the ingress gateway's namespace with this certificate.
fn certificate(text: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Secret, metadata: {{name: edge, namespace: istio-system}}, \
          stringData: {{tls.crt: {text}, tls.key: key}}}}"
    )
}

#[tokio::test]
async fn a_renewed_certificate_is_sent_without_being_asked_for() {
    let server = Server::start(Some("istio-system")).await;
    server.apply(&certificate("first")).await;
    let id = "router~10.0.0.9~gateway.istio-system~istio-system.svc.cluster.local";
    let secrets = DeltaDiscoveryRequest {
        type_url: TypeUrl::Secret.as_str().to_owned(),
        resource_names_subscribe: vec!["kubernetes://edge".to_owned()],
        ..clusters(id)
    };
    let mut stream = server.open(secrets).await;
    let mut certificates = Vec::new();
    while certificates != ["first", "second"] {
        let response = stream.responses.message().await.expect("no fault").expect("a response");
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..Default::default()
        };
        stream.requests.send(ack).await.expect("the server reads");
        for resource in response.resources {
            let body = resource.resource.expect("a body").value;
            let secret = Secret::decode(body.as_slice()).expect("a secret");
            let Some(secret::Type::TlsCertificate(own)) = secret.r#type else { panic!("a pair") };
            let chain = own.certificate_chain.and_then(|chain| chain.specifier);
            let Some(Specifier::InlineBytes(bytes)) = chain else { panic!("inline") };
            certificates.push(String::from_utf8(bytes).expect("text"));
            if certificates == ["first"] {
                server.apply(&certificate("second")).await;
            }
        }
    }
}

#[tokio::test]
async fn a_caller_without_identity_gets_no_secret() {
    let server = Server::start(None).await;
    server.apply(&certificate("first")).await;
    let id = "router~10.0.0.9~gateway.istio-system~istio-system.svc.cluster.local";
    let secrets = DeltaDiscoveryRequest {
        type_url: TypeUrl::Secret.as_str().to_owned(),
        resource_names_subscribe: vec!["kubernetes://edge".to_owned()],
        ..clusters(id)
    };
    let mut stream = server.open(secrets).await;
    let response = stream.responses.message().await.expect("no fault").expect("a response");
    assert_eq!(response.resources, []);
    assert_eq!(response.removed_resources, ["kubernetes://edge"]);
}

#[tokio::test]
async fn a_faulty_client_ends_its_own_stream_only() {
    let server = Server::start(None).await;
    let mut good = server.open(clusters(WEB)).await;
    good.accept_one().await;
    let mut bad = server.open(clusters(&WEB.replace("web", "bad"))).await;
    let mut flood = clusters(WEB);
    flood.resource_names_subscribe = vec!["x".repeat(10_000)];
    bad.requests.send(flood).await.expect("the server reads");
    check_status(&bad.end().await, Code::ResourceExhausted, "10000 bytes");
    server.status(|all| all.len() == 1 && all[0].1 == Some(SyncState::Synced)).await;
}

#[tokio::test]
async fn a_shutdown_ends_streams_with_a_reason() {
    let server = Server::start(None).await;
    let mut stream = server.open(clusters(WEB)).await;
    stream.accept_one().await;
    server.shutdown.cancel();
    check_status(&stream.end().await, Code::Unavailable, "shutting down");
    server.status(<[_]>::is_empty).await;
}
