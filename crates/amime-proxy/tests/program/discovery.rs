//! Configuration that comes by file and by state-of-the-world ADS.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use crate::running::{Running, ask, wait};
use amime_xds::server::{Pusher, SotwSession, Source, Wanted};
use amime_xds::{Resource, TypeUrl, XdsMessage};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Replaces a file whole, as operators do.
fn put(dir: &Path, name: &str, text: &str) {
    let next = dir.join(format!("{name}.next"));
    std::fs::write(&next, text).expect("written");
    std::fs::rename(&next, dir.join(name)).expect("moved");
}

const ADMIN: &str = "
node: {id: test, cluster: test}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
";

fn cluster(name: &str, eds: &str) -> String {
    format!(
        "{{name: {name}, type: EDS, eds_cluster_config: {{eds_config: {{resource_api_version: V3, \
         {eds}}}}}}}"
    )
}

fn listener(name: &str, rds: &str) -> String {
    format!(
        "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
         filter_chains: [{{filters: [{{name: hcm, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.\
         HttpConnectionManager, stat_prefix: {name}, rds: {{route_config_name: routes, \
         config_source: {{resource_api_version: V3, {rds}}}}}, http_filters: [{{name: r, \
         typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"
    )
}

fn routes(answer: &str) -> String {
    format!(
        "{{name: routes, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: \
         /}}, direct_response: {{status: 200, body: {{inline_string: {answer}}}}}}}]}}]}}"
    )
}

fn endpoints(name: &str, port: u16) -> String {
    format!(
        "{{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}"
    )
}

/// A file's content.
fn response(version: &str, message: &str, resources: &[String]) -> String {
    let typed = |one: &String| {
        one.replacen('{', &format!("{{\"@type\": type.googleapis.com/{message}, "), 1)
    };
    let resources: Vec<_> = resources.iter().map(typed).collect();
    format!("version_info: {version}\nresources: [{}]\n", resources.join(", "))
}

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ENDPOINT: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const ROUTE: &str = "envoy.config.route.v3.RouteConfiguration";

/// Address of a listener of the proxy.
fn address(admin: &str, name: &str) -> Option<String> {
    let listeners = ask(admin, "GET", "/listeners");
    let line = listeners.lines().find_map(|line| line.strip_prefix(&format!("{name}::")))?;
    Some(line.to_owned())
}

fn until_answer(admin: &str, name: &str, want: &str) {
    wait(want, || ask(&address(admin, name)?, "GET", "/").ends_with(want).then_some(()));
}

#[test]
fn files_are_applied_when_they_are_moved_into_place() {
    let dir = tempfile::tempdir().expect("directory");
    let path =
        |name: &str| format!("path_config_source: {{path: {}/{name}}}", dir.path().display());
    let file = |name: &str, message, version, resources: &[String]| {
        put(dir.path(), name, &response(version, message, resources));
    };
    file("eds.yaml", ENDPOINT, "1", &[endpoints("a", 1001), endpoints("b", 1002)]);
    file("cds.yaml", CLUSTER, "1", &[cluster("a", &path("eds.yaml"))]);
    file("rds.yaml", ROUTE, "1", &[routes("first")]);
    file("lds.yaml", LISTENER, "1", &[listener("main", &path("rds.yaml"))]);
    let bootstrap = format!(
        "{ADMIN}dynamic_resources:\n  lds_config: {{resource_api_version: V3, {}}}\n  \
         cds_config: {{resource_api_version: V3, {}}}\n",
        path("lds.yaml"),
        path("cds.yaml")
    );
    let (_running, admin) = Running::start(dir.path(), &bootstrap);
    until_answer(&admin, "main", "first");
    wait("endpoints", || {
        ask(&admin, "GET", "/clusters").contains("a::127.0.0.1:1001").then_some(())
    });

    file("rds.yaml", ROUTE, "2", &[routes("second")]);
    until_answer(&admin, "main", "second");

    // A new cluster finds its endpoints in the file read before; the old one
    // is missing from the full set and so is gone.
    file("cds.yaml", CLUSTER, "2", &[cluster("b", &path("eds.yaml"))]);
    wait("the other cluster", || {
        let clusters = ask(&admin, "GET", "/clusters");
        let there = clusters.contains("b::127.0.0.1:1002");
        (there && !clusters.contains("a::")).then_some(())
    });

    // A file in pieces leaves what it said before; the next one is applied.
    put(dir.path(), "rds.yaml", "resources: [{");
    put(dir.path(), "cds.yaml", "resources: []\nversion_info: '3'\n");
    wait("no cluster", || (!ask(&admin, "GET", "/clusters").contains("b::")).then_some(()));
    until_answer(&admin, "main", "second");
    file("rds.yaml", ROUTE, "4", &[routes("third")]);
    until_answer(&admin, "main", "third");
    let dump = ask(&admin, "GET", "/config_dump?resource=dynamic_route_configs");
    assert!(dump.contains("\"version_info\": \"4\""), "{dump}");
}

type Resources = Vec<Resource>;

/// A state-of-the-world control plane over resources that a test changes.
#[derive(Clone)]
struct Control(Arc<watch::Sender<Resources>>);

struct View(Resources);

impl Source for View {
    fn generate(&mut self, type_url: TypeUrl, wanted: Wanted<'_>) -> Vec<Resource> {
        let of_type = self.0.iter().filter(|one| one.type_url == type_url);
        let wanted = of_type.filter(|one| match wanted {
            Wanted::All => true,
            Wanted::Names(names) => names.contains(&one.name),
        });
        wanted.cloned().collect()
    }

    fn version(&self) -> &str {
        "v"
    }
}

type Responses<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Control {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (responses, queue) = mpsc::channel(8);
        let mut requests = request.into_inner();
        let mut resources = self.0.subscribe();
        tokio::spawn(async move {
            let mut pusher = Pusher::new(SotwSession::new(1));
            loop {
                let mut view = View(resources.borrow_and_update().clone());
                while let Some((_, response)) = pusher.next(&mut view) {
                    if responses.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        pusher.on_request(request).expect("within bounds");
                    }
                    _ = resources.changed() => pusher.invalidate_all(),
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }
}

fn resource<M: XdsMessage>(name: &str, yaml: &str) -> Resource {
    let message: M = amime_xds::json::from_yaml(yaml).expect("a resource");
    Resource::encode(name, &message)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_speaks_state_of_the_world_only_is_understood() {
    let dir = tempfile::tempdir().expect("directory");
    let ads = "ads: {}";
    let set = |answer: &str| {
        vec![
            resource::<envoy_types::pb::envoy::config::cluster::v3::Cluster>(
                "a",
                &cluster("a", ads),
            ),
            resource::<envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment>(
                "a",
                &endpoints("a", 1001),
            ),
            resource::<envoy_types::pb::envoy::config::listener::v3::Listener>(
                "main",
                &listener("main", ads),
            ),
            resource::<envoy_types::pb::envoy::config::route::v3::RouteConfiguration>(
                "routes",
                &routes(answer),
            ),
        ]
    };
    let control = Control(Arc::new(watch::Sender::new(set("first"))));
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let at = port.local_addr().expect("bound").port();
    let service = AggregatedDiscoveryServiceServer::new(control.clone());
    tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_service(service);
        server.serve_with_incoming(TcpListenerStream::new(port)).await
    });
    let bootstrap = format!(
        "{ADMIN}dynamic_resources:\n  lds_config: {{resource_api_version: V3, ads: {{}}}}\n  \
         cds_config: {{resource_api_version: V3, ads: {{}}}}\n  ads_config: {{api_type: GRPC, \
         transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}\n\
         static_resources: {{clusters: [{{name: xds, type: STATIC, load_assignment: {}}}]}}\n",
        endpoints("xds", at)
    );
    let checks = move || {
        let (running, admin) = Running::start(dir.path(), &bootstrap);
        until_answer(&admin, "main", "first");
        let clusters = ask(&admin, "GET", "/clusters");
        assert!(clusters.contains("a::127.0.0.1:1001"), "{clusters}");
        control.0.send_replace(set("second"));
        until_answer(&admin, "main", "second");
        // Endpoints and routes that are missing stay; a listener goes.
        control.0.send_modify(|all| all.retain(|one| one.type_url == TypeUrl::Cluster));
        wait("no listener", || address(&admin, "main").is_none().then_some(()));
        assert!(ask(&admin, "GET", "/clusters").contains("a::127.0.0.1:1001"));
        drop(running);
    };
    tokio::task::spawn_blocking(checks).await.expect("all checks hold");
}
