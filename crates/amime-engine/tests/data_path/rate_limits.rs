//! Rate limits: buckets of our own, and a service that decides.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::config::core::v3::HeaderValue as PbHeader;
use envoy_types::pb::envoy::service::ratelimit::v3::{
    RateLimitRequest, RateLimitResponse,
    rate_limit_response::{Code, DescriptorStatus, RateLimit, rate_limit::Unit},
};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpListener;

use crate::filters::with_filter;
use crate::harness::{Backend, Proxy, http_listener, listener, raw, routes, static_cluster};

const LOCAL: &str =
    "\"@type\": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
stat_prefix: l
filter_enabled: {default_value: {numerator: 100}}
filter_enforced: {default_value: {numerator: 100}}
";

fn indented(text: &str, by: usize) -> String {
    text.lines().map(|line| format!("{:by$}{line}\n", "")).collect()
}

/// A filter `limit` with these fields.
fn local(fields: &str) -> String {
    format!("- name: limit\n  typed_config:\n{}", indented(&format!("{LOCAL}{fields}"), 4))
}

const DIRECT: &str =
    "- match: {prefix: /}\n  direct_response: {status: 200, body: {inline_string: ok}}";

#[tokio::test]
async fn a_bucket_is_shared_by_all_connections_and_told_of() {
    let limit = local(
        "token_bucket: {max_tokens: 2, tokens_per_fill: 1, fill_interval: 1000s}
enable_x_ratelimit_headers: DRAFT_VERSION_03
enable_retry_after_header: true
response_headers_to_add: [{header: {key: x-limited, value: 'yes'}}]",
    );
    let proxy = Proxy::http(&with_filter(&routes(DIRECT), &limit), &[]).await;
    let first = proxy.get("h", "/").await;
    assert_eq!((first.status, first.header("x-ratelimit-limit")), (200, Some("2")));
    assert_eq!(first.header("x-ratelimit-remaining"), Some("1"));
    assert_eq!(proxy.get("h", "/").await.status, 200);
    let refused = proxy.get("h", "/").await;
    assert_eq!((refused.status, refused.body.as_str()), (429, "local_rate_limited"));
    assert_eq!(
        (refused.header("x-limited"), refused.header("x-ratelimit-remaining")),
        (Some("yes"), Some("0"))
    );
    assert!(refused.header("retry-after").is_some());
    let grpc = "POST / HTTP/1.1\r\nhost: h\r\ncontent-type: application/grpc\r\n";
    let grpc = proxy.request(grpc).await;
    assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("14")));
    assert_eq!(grpc.header("grpc-message"), Some("local_rate_limited"));
}

#[tokio::test]
async fn routes_have_buckets_of_their_own_and_descriptors_choose_among_them() {
    let backend = Backend::named("ok").await;
    let settings = indented(
        &format!(
            "{LOCAL}token_bucket: {{max_tokens: 4, tokens_per_fill: 1, fill_interval: 1000s}}
descriptors:
- entries: [{{key: user, value: bob}}]
  token_bucket: {{max_tokens: 1, tokens_per_fill: 1, fill_interval: 1000s}}
- entries: [{{key: group}}]
  token_bucket: {{max_tokens: 1, tokens_per_fill: 1, fill_interval: 1000s}}"
        ),
        6,
    );
    let hcm = with_filter(
        &routes(&format!(
            "- match: {{prefix: /}}
  route:
    cluster: a
    rate_limits:
    - actions: [{{request_headers: {{header_name: x-user, descriptor_key: user}}}}]
    - actions: [{{request_headers: {{header_name: x-group, descriptor_key: group}}}}]
  typed_per_filter_config:
    limit:
{settings}"
        )),
        &local(""),
    );
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    let ask = async |header: &str| {
        proxy.request(&format!("GET / HTTP/1.1\r\nhost: h\r\n{header}")).await.status
    };
    assert_eq!((ask("x-user: bob\r\n").await, ask("x-user: bob\r\n").await), (200, 429));
    assert_eq!((ask("x-group: a\r\n").await, ask("x-group: a\r\n").await), (200, 429));
    // Another value has another bucket; all that pass take from the default one.
    assert_eq!((ask("x-group: b\r\n").await, ask("x-user: ann\r\n").await), (200, 200));
    assert_eq!(ask("").await, 429);
}

#[tokio::test]
async fn a_limit_that_is_not_enforced_marks_requests() {
    let backend = Backend::named("ok").await;
    let limit = local(
        "token_bucket: {max_tokens: 1, tokens_per_fill: 1, fill_interval: 1000s}
request_headers_to_add_when_not_enforced: [{header: {key: x-over, value: '1'}}]",
    )
    .replace(
        "filter_enforced: {default_value: {numerator: 100}}",
        "filter_enforced: {default_value: {numerator: 0}}",
    );
    let hcm = with_filter(&routes("- match: {prefix: /}\n  route: {cluster: a}"), &limit);
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    assert_eq!((proxy.get("h", "/").await.status, proxy.get("h", "/").await.status), (200, 200));
    let seen = backend.seen.lock().expect("not poisoned");
    let marked: Vec<_> = seen.iter().map(|it| it.head.headers().contains_key("x-over")).collect();
    assert_eq!(marked, [false, true]);
}

#[tokio::test]
async fn each_connection_may_have_a_bucket_of_its_own() {
    let limit = local(
        "token_bucket: {max_tokens: 1, tokens_per_fill: 1, fill_interval: 1000s}
local_rate_limit_per_downstream_connection: true",
    );
    let proxy = Proxy::http(&with_filter(&routes(DIRECT), &limit), &[]).await;
    assert_eq!((proxy.get("h", "/").await.status, proxy.get("h", "/").await.status), (200, 200));
    let two =
        "GET / HTTP/1.1\r\nhost: h\r\n\r\nGET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let answers = proxy.raw(two).await;
    assert!(answers.contains(" 200 OK") && answers.contains(" 429 "), "{answers}");
}

/// A listener of TCP for cluster `t` behind a network filter.
fn tcp_behind(filter: &str) -> amime_xds::Resource {
    listener(&format!(
        "name: http
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
filter_chains:
- filters:
{filter}
  - name: tcp
    typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: t}}"
    ))
}

const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn connections_over_the_limit_are_closed() {
    let backend = Backend::named("ok").await;
    let limit = "  - name: limit
    typed_config:
      \"@type\": type.googleapis.com/envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit
      stat_prefix: l
      token_bucket: {max_tokens: 1, tokens_per_fill: 1, fill_interval: 1000s}";
    let proxy =
        Proxy::with(vec![tcp_behind(limit), static_cluster("t", backend.address, "")]).await;
    assert!(proxy.raw(GET).await.starts_with("HTTP/1.1 200"));
    assert_eq!(proxy.raw(GET).await, "");
}

/// A rate limit service that refuses what has a value `bad`, and what it was
/// asked.
async fn service() -> (SocketAddr, Arc<Mutex<Vec<RateLimitRequest>>>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = socket.local_addr().expect("an address");
    let asked: Arc<Mutex<Vec<RateLimitRequest>>> = Arc::default();
    let log = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let log = log.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let log = log.clone();
                async move { Ok::<_, Infallible>(decide(request, &log).await) }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, asked)
}

async fn decide(
    request: Request<Incoming>,
    log: &Mutex<Vec<RateLimitRequest>>,
) -> Response<impl hyper::body::Body<Data = Bytes, Error = Infallible> + use<>> {
    assert_eq!(
        request.uri().path(),
        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
    );
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let asked = RateLimitRequest::decode(&body[5..]).expect("a request");
    let mut entries = asked.descriptors.iter().flat_map(|descriptor| &descriptor.entries);
    let code = if entries.any(|entry| entry.value == "bad") { Code::OverLimit } else { Code::Ok };
    log.lock().expect("not poisoned").push(asked);
    let header = |key: &str| PbHeader { key: key.into(), value: "1".into(), ..PbHeader::default() };
    let answer = RateLimitResponse {
        overall_code: code.into(),
        statuses: vec![DescriptorStatus {
            code: code.into(),
            current_limit: Some(RateLimit {
                name: "n".into(),
                requests_per_unit: 5,
                unit: Unit::Minute.into(),
            }),
            limit_remaining: 3,
            ..DescriptorStatus::default()
        }],
        response_headers_to_add: vec![header("x-from-service")],
        request_headers_to_add: vec![header("x-checked")],
        ..RateLimitResponse::default()
    };
    let message = answer.encode_to_vec();
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).expect("short"));
    framed.extend_from_slice(&message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Response::new(Full::new(framed.freeze()).with_trailers(async { Some(Ok(trailers)) }))
}

const HTTP2: &str = "typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {}}";

/// A proxy whose route has these limits, asking the service at `address`.
async fn asking(address: SocketAddr, backend: &Backend, fields: &str) -> Proxy {
    let filter = format!(
        "- name: envoy.filters.http.ratelimit
  typed_config:
    \"@type\": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
    domain: d
    timeout: 10s
    {fields}
    rate_limit_service: {{transport_api_version: V3, grpc_service: {{envoy_grpc: {{cluster_name: limits}}}}}}"
    );
    let hcm = with_filter(
        &routes(
            "- match: {prefix: /}
  route:
    cluster: a
    rate_limits:
    - actions:
      - {source_cluster: {}}
      - {destination_cluster: {}}
      - {remote_address: {}}
      - {masked_remote_address: {v4_prefix_mask_len: 8}}
      - {generic_key: {descriptor_value: g}}
      - {request_headers: {header_name: x-user, descriptor_key: user}}
      - {request_headers: {header_name: x-none, descriptor_key: none, skip_if_absent: true}}
      - {query_parameters: {query_parameter_name: q, descriptor_key: q, skip_if_absent: true}}
      - {header_value_match: {descriptor_value: m, expect_match: false, headers: [{name: x-none}]}}
    - stage: 1
      actions: [{generic_key: {descriptor_value: another stage}}]",
        ),
        &filter,
    );
    let resources = vec![
        http_listener(&hcm),
        static_cluster("a", backend.address, ""),
        static_cluster("limits", address, HTTP2),
    ];
    Proxy::with(resources).await
}

#[tokio::test]
async fn a_service_decides_by_what_a_request_is_counted_as() {
    let (address, asked) = service().await;
    let backend = Backend::named("ok").await;
    let proxy = asking(address, &backend, "enable_x_ratelimit_headers: DRAFT_VERSION_03").await;
    let good = proxy.request("GET /?q=7 HTTP/1.1\r\nhost: h\r\nx-user: ann\r\n").await;
    assert_eq!((good.status, good.header("x-from-service")), (200, Some("1")));
    assert_eq!(good.header("x-ratelimit-limit"), Some("5, 5;w=60;name=\"n\""));
    assert_eq!(backend.only().head.headers()["x-checked"], "1");
    let request = asked.lock().expect("not poisoned").remove(0);
    let text: Vec<String> = request.descriptors[0]
        .entries
        .iter()
        .map(|entry| format!("{}={}", entry.key, entry.value))
        .collect();
    assert_eq!(
        text.join(" "),
        "source_cluster=tests destination_cluster=a remote_address=127.0.0.1 \
         masked_remote_address=127.0.0.0/8 generic_key=g user=ann q=7 header_match=m"
    );
    assert_eq!((request.domain.as_str(), request.descriptors.len()), ("d", 1));
    let bad = proxy.request("GET / HTTP/1.1\r\nhost: h\r\nx-user: bad\r\n").await;
    assert_eq!((bad.status, bad.header("x-envoy-ratelimited")), (429, Some("true")));
    // Nothing to count by: the service is not asked.
    let count = asked.lock().expect("not poisoned").len();
    assert_eq!(proxy.get("h", "/").await.status, 200);
    assert_eq!(asked.lock().expect("not poisoned").len(), count);
}

#[tokio::test]
async fn a_service_is_told_limits_and_numbers_that_the_request_brings() {
    let (address, asked) = service().await;
    let backend = Backend::named("ok").await;
    let filters = r#"- name: metadata
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config
    request_rules:
    - {header: x-plan, on_header_present: {metadata_namespace: n, key: plan, type: STRING}}
- name: more
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config
    metadata:
    - {metadata_namespace: limits, value: {own: {requests_per_unit: 7, unit: HOUR}, odd: {requests_per_unit: 7}}}
- name: envoy.filters.http.ratelimit
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
    domain: d
    timeout: 10s
    rate_limit_service: {transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: limits}}}"#;
    let limits = r#"- match: {prefix: /}
  route:
    cluster: a
    rate_limits:
    - actions: [{metadata: {descriptor_key: plan, metadata_key: {key: n, path: [{key: plan}]}, default_value: none}}]
      limit: {dynamic_metadata: {metadata_key: {key: limits, path: [{key: own}]}}}
      hits_addend: {format: "%REQ(x-hits)%"}
    - actions:
      - {generic_key: {descriptor_value: g}}
      - {metadata: {descriptor_key: plan, metadata_key: {key: n, path: [{key: plan}]}, skip_if_absent: true}}
      limit: {dynamic_metadata: {metadata_key: {key: limits, path: [{key: odd}]}}}
    - actions: [{dynamic_metadata: {descriptor_key: plan, metadata_key: {key: n, path: [{key: plan}]}}}]"#;
    let proxy = Proxy::with(vec![
        http_listener(&with_filter(&routes(limits), filters)),
        static_cluster("a", backend.address, ""),
        static_cluster("limits", address, HTTP2),
    ])
    .await;
    let gold = "GET / HTTP/1.1\r\nhost: h\r\nx-plan: gold\r\nx-hits: 3\r\n";
    assert_eq!(proxy.request(gold).await.status, 200);
    // Without a number the first is none, and without metadata the third.
    assert_eq!(proxy.get("h", "/").await.status, 200);
    let asked = asked.lock().expect("not poisoned");
    let told = |index: usize| -> Vec<String> {
        let descriptors = asked[index].descriptors.iter();
        let text = descriptors.map(|one| {
            let entries = one.entries.iter().map(|entry| format!("{}={}", entry.key, entry.value));
            let hits = one.hits_addend.map(|hits| hits.value);
            let limit = one.limit.as_ref().map(|limit| (limit.requests_per_unit, limit.unit));
            format!("{} {hits:?} {limit:?}", entries.collect::<Vec<_>>().join(" "))
        });
        text.collect()
    };
    assert_eq!(
        told(0),
        [
            "plan=gold Some(3) Some((7, 3))",
            "generic_key=g plan=gold None None",
            "plan=gold None None",
        ]
    );
    assert_eq!(told(1), ["generic_key=g None None"]);
}

#[tokio::test]
async fn a_service_that_fails_refuses_only_where_it_is_told_to() {
    let unused = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("it");
    let backend = Backend::named("ok").await;
    let head = "GET / HTTP/1.1\r\nhost: h\r\nx-user: ann\r\n";
    let open = asking(unused, &backend, "failure_mode_deny: false").await;
    assert_eq!(open.request(head).await.status, 200);
    let closed = asking(unused, &backend, "failure_mode_deny: true").await;
    assert_eq!(closed.request(head).await.status, 500);
    // The percentage counts, where there is one.
    for (percent, status) in [(0, 200), (100, 500)] {
        let fields = format!(
            "failure_mode_deny: {}\n    failure_mode_deny_percent: {{default_value: {{numerator: {percent}}}}}",
            percent == 0
        );
        assert_eq!(asking(unused, &backend, &fields).await.request(head).await.status, status);
    }
}

#[tokio::test]
async fn a_service_decides_about_connections() {
    let (address, _) = service().await;
    let backend = Backend::named("ok").await;
    for (value, served) in [("good", true), ("bad", false)] {
        let limit = format!(
            "  - name: limit
    typed_config:
      \"@type\": type.googleapis.com/envoy.extensions.filters.network.ratelimit.v3.RateLimit
      stat_prefix: l
      domain: d
      timeout: 10s
      descriptors: [{{entries: [{{key: k, value: {value}}}]}}]
      rate_limit_service: {{transport_api_version: V3, grpc_service: {{envoy_grpc: {{cluster_name: limits}}}}}}"
        );
        let clusters =
            [static_cluster("t", backend.address, ""), static_cluster("limits", address, HTTP2)];
        let proxy = Proxy::with([vec![tcp_behind(&limit)], clusters.into()].concat()).await;
        assert_eq!(!raw(proxy.address(), GET).await.is_empty(), served, "{value}");
    }
}
