//! Fault injection, CORS and access control.

use std::time::{Duration, Instant};

use crate::harness::{Backend, Proxy, ROUTER, routes};

fn with_filter(routes: &str, filter: &str) -> String {
    let router: String = ROUTER.lines().map(|line| format!("{}\n", &line[8..])).collect();
    format!("{routes}http_filters:\n{filter}\n{router}")
}

const FAULT: &str = "- name: fault
  typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}";

#[tokio::test]
async fn a_routes_fault_aborts_and_delays() {
    let backend = Backend::named("ok").await;
    let hcm = with_filter(
        &routes(
            r#"- match: {prefix: /abort}
  route: {cluster: a}
  typed_per_filter_config:
    envoy.filters.http.fault:
      "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
      abort: {http_status: 555, percentage: {numerator: 100}}
- match: {prefix: /delay}
  route: {cluster: a}
  typed_per_filter_config:
    envoy.filters.http.fault:
      "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
      delay: {fixed_delay: 0.1s, percentage: {numerator: 100}}"#,
        ),
        FAULT,
    );
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    let aborted = proxy.get("h", "/abort").await;
    assert_eq!((aborted.status, aborted.body.as_str()), (555, "fault filter abort"));
    assert_eq!(backend.count(), 0);
    let begun = Instant::now();
    assert_eq!(proxy.get("h", "/delay").await.status, 200);
    assert!(begun.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn grpc_requests_get_grpc_errors() {
    let hcm = routes("- match: {prefix: /a}\n  route: {cluster: none}");
    let proxy = Proxy::http(&hcm, &[]).await;
    let head = "POST /a HTTP/1.1\r\nhost: h\r\ncontent-type: application/grpc\r\n";
    let reply = proxy.request(head).await;
    assert_eq!((reply.status, reply.header("grpc-status")), (200, Some("14")));
}

#[tokio::test]
async fn access_control_denies_by_policy() {
    let hcm = with_filter(
        &routes("- match: {prefix: /}\n  direct_response: {status: 200}"),
        r#"- name: rbac
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    rules:
      action: DENY
      policies:
        p:
          permissions: [{url_path: {path: {prefix: /admin}}}]
          principals: [{header: {name: x-role, string_match: {exact: guest}}}]"#,
    );
    let proxy = Proxy::http(&hcm, &[]).await;
    let denied = proxy.request("GET /admin HTTP/1.1\r\nhost: h\r\nx-role: guest\r\n").await;
    assert_eq!((denied.status, denied.body.as_str()), (403, "RBAC: access denied"));
    assert_eq!(proxy.get("h", "/admin").await.status, 200);
}

#[tokio::test]
async fn preflights_are_answered_for_allowed_origins() {
    let backend = Backend::named("ok").await;
    let hcm = with_filter(
        &routes(
            r#"- match: {prefix: /}
  route: {cluster: a}
  typed_per_filter_config:
    envoy.filters.http.cors:
      "@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy
      allow_origin_string_match: [{exact: "http://ok"}]
      allow_methods: GET"#,
        ),
        "- name: cors
  typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}",
    );
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    let preflight = "OPTIONS / HTTP/1.1\r\nhost: h\r\norigin: http://ok\r\naccess-control-request-method: GET\r\n";
    let reply = proxy.request(preflight).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("access-control-allow-methods"), Some("get"));
    assert_eq!(backend.count(), 0);
    let reply = proxy.request("GET / HTTP/1.1\r\nhost: h\r\norigin: http://ok\r\n").await;
    assert_eq!(reply.header("access-control-allow-origin"), Some("http://ok"));
}
