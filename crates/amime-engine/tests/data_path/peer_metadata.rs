//! Who sees which workload's metadata in headers.

use http::{HeaderMap, Response};
use http_body_util::Full;

use crate::harness::{Backend, Proxy, ROUTER, Reply, http_listener, routes, static_cluster};

const METADATA: &str = "x-envoy-peer-metadata";
const ID: &str = "x-envoy-peer-metadata-id";
const PEER: &str = "GET / HTTP/1.1\r\nhost: h\r\n\
                    x-envoy-peer-metadata: cGVlcg==\r\nx-envoy-peer-metadata-id: peer\r\n";

/// What the control plane sends for an inbound listener.
const INBOUND: &str = r#""@type": type.googleapis.com/io.istio.http.peer_metadata.Config
    downstream_discovery: [{istio_headers: {}}, {workload_discovery: {}}]
    downstream_propagation: [{istio_headers: {}}]"#;
const OUTBOUND: &str = r#""@type": type.googleapis.com/io.istio.http.peer_metadata.Config
    upstream_discovery: [{istio_headers: {}}, {workload_discovery: {}}]
    upstream_propagation: [{istio_headers: {}}]"#;
/// The same in the form that Istio's own control plane chooses.
const INBOUND_STRUCT: &str = r#""@type": type.googleapis.com/udpa.type.v1.TypedStruct
    type_url: type.googleapis.com/io.istio.http.peer_metadata.Config
    value:
      downstream_discovery: [{istio_headers: {}}, {workload_discovery: {}}]
      downstream_propagation: [{istio_headers: {}}]"#;

fn hcm(filter: &str) -> String {
    let router: String = ROUTER.lines().map(|line| format!("{}\n", &line[8..])).collect();
    let routes = routes("- match: {prefix: /}\n  route: {cluster: a}");
    format!("{routes}http_filters:\n- name: mx\n  typed_config:\n    {filter}\n{router}")
}

/// What backend and client get when the filter stands between them and the
/// backend answers with metadata of its own.
async fn check(filter: &str, request: &str) -> (HeaderMap, Reply) {
    let backend = Backend::start(|_| {
        let answer = Response::builder().header(METADATA, "YXBw").header(ID, "upstream");
        answer.body(Full::from("ok")).expect("valid headers")
    })
    .await;
    let proxy = Proxy::known_as("own");
    proxy.apply(vec![http_listener(&hcm(filter)), static_cluster("a", backend.address, "")]).await;
    let reply = proxy.request(request).await;
    assert_eq!(reply.status, 200);
    (backend.only().head.headers().clone(), reply)
}

#[tokio::test]
async fn an_application_sees_no_metadata_and_the_peer_sees_its_proxys() {
    for filter in [INBOUND, INBOUND_STRUCT] {
        let (seen, reply) = check(filter, PEER).await;
        assert!(!seen.contains_key(METADATA) && !seen.contains_key(ID), "{seen:?}");
        assert_eq!(reply.header(ID), Some("own"));
        assert!(reply.header(METADATA).is_some_and(|metadata| metadata != "yxbw"));
    }
}

#[tokio::test]
async fn a_client_that_told_nothing_is_told_nothing() {
    let (seen, reply) = check(INBOUND, "GET / HTTP/1.1\r\nhost: h\r\n").await;
    assert!(!seen.contains_key(METADATA) && !seen.contains_key(ID), "{seen:?}");
    assert_ne!(reply.header(ID), Some("own"));
}

#[tokio::test]
async fn outbound_metadata_goes_with_the_request_and_stays_off_the_response() {
    let (seen, reply) = check(OUTBOUND, PEER).await;
    assert_eq!(seen.get(ID).map(|id| id.as_bytes()), Some(&b"own"[..]));
    assert_ne!(seen[METADATA], "cGVlcg==", "an application cannot speak for its proxy");
    assert_eq!((reply.header(METADATA), reply.header(ID)), (None, None));
}
