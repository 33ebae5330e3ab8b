//! Fault injection, CORS and access control.

use std::time::{Duration, Instant};

use crate::harness::{Backend, Proxy, ROUTER, routes};

pub(crate) fn with_filter(routes: &str, filter: &str) -> String {
    let router: String = ROUTER.lines().map(|line| format!("{}\n", &line[8..])).collect();
    format!("{routes}http_filters:\n{filter}\n{router}")
}

const FAULT: &str = "- name: envoy.filters.http.fault
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
        "- name: envoy.filters.http.cors
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

const MUTATION: &str = "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3";

#[tokio::test]
async fn headers_are_edited_in_order_and_on_answers_of_the_proxy_too() {
    let backend = Backend::named("ok").await;
    let hcm = with_filter(
        &routes(&format!(
            r#"- match: {{prefix: /a}}
  route: {{cluster: a}}
  typed_per_filter_config:
    edit:
      "@type": {MUTATION}.HeaderMutationPerRoute
      mutations: {{request_mutations: [{{append: {{header: {{key: x-route, value: "1"}}}}}}]}}
- match: {{prefix: /off}}
  direct_response: {{status: 200}}
  typed_per_filter_config:
    edit: {{"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}}"#
        )),
        &format!(
            r#"- name: edit
  typed_config:
    "@type": {MUTATION}.HeaderMutation
    mutations:
      request_mutations:
      - append: {{header: {{key: x-old, value: "again"}}}}
      - remove: x-old
      - remove_on_match: {{key_matcher: {{prefix: x-secret}}}}
      response_mutations:
      - append: {{header: {{key: x-code, value: "%RESPONSE_CODE%"}}}}"#
        ),
    );
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    let head = "GET /a HTTP/1.1\r\nhost: h\r\nx-old: 1\r\nx-secret-b: 1\r\n";
    assert_eq!(proxy.request(head).await.header("x-code"), Some("200"));
    let seen = backend.only().head;
    assert_eq!(seen.headers()["x-route"], "1");
    assert!(!seen.headers().contains_key("x-old") && !seen.headers().contains_key("x-secret-b"));
    assert_eq!(proxy.get("h", "/none").await.header("x-code"), Some("404"));
    assert_eq!(proxy.get("h", "/off").await.header("x-code"), None);
}

#[tokio::test]
async fn a_filter_that_is_off_acts_where_a_route_has_settings_for_it() {
    let fault = format!("{FAULT}\n  disabled: true");
    let hcm = with_filter(
        &routes(
            r#"- match: {prefix: /on}
  direct_response: {status: 200}
  typed_per_filter_config:
    envoy.filters.http.fault:
      "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
      abort: {http_status: 555, percentage: {numerator: 100}}
- match: {prefix: /}
  direct_response: {status: 200}"#,
        ),
        &fault,
    );
    let proxy = Proxy::http(&hcm, &[]).await;
    assert_eq!(proxy.get("h", "/on").await.status, 555);
    assert_eq!(proxy.get("h", "/").await.status, 200);
}

#[tokio::test]
async fn answers_of_the_proxy_take_the_form_that_is_configured() {
    let replies = r#"local_reply_config:
  mappers:
  - filter: {status_code_filter: {comparison: {op: EQ, value: {default_value: 404, runtime_key: k}}}}
    status_code: 410
    body: {inline_string: gone}
    headers_to_add: [{header: {key: x-was, value: "%RESPONSE_CODE%"}}]
    body_format_override:
      text_format_source: {inline_string: "[%LOCAL_REPLY_BODY%|%RESPONSE_CODE%|%REQ(:path)%]\n"}
      content_type: text/html
  body_format:
    json_format: {b: "%LOCAL_REPLY_BODY%", code: "%RESPONSE_CODE%", d: "%RESPONSE_CODE_DETAILS%"}
"#;
    let backend = Backend::named("as it is").await;
    let hcm = routes(
        r#"- match: {prefix: /direct}
  direct_response: {status: 201, body: {inline_string: 'say "hi"'}}
- match: {prefix: /up}
  route: {cluster: a}"#,
    );
    let proxy = Proxy::http(&format!("{replies}{hcm}"), &[("a", backend.address)]).await;
    let gone = proxy.get("h", "/x").await;
    assert_eq!((gone.status, gone.body.as_str()), (410, "[gone|410|/x]\n"));
    assert_eq!(
        (gone.header("x-was"), gone.header("content-type")),
        (Some("404"), Some("text/html"))
    );
    let direct = proxy.get("h", "/direct").await;
    let json = "{\"b\":\"say \\\"hi\\\"\",\"code\":201,\"d\":\"direct_response\"}\n";
    assert_eq!((direct.status, direct.body.as_str()), (201, json));
    assert_eq!(direct.header("content-type"), Some("application/json"));
    assert_eq!(proxy.get("h", "/up").await.body, "as it is");
}

#[tokio::test]
async fn headers_of_a_request_give_its_fault() {
    let by_header = format!("{FAULT}\n").replace(
        "HTTPFault}",
        "HTTPFault, delay: {header_delay: {}, percentage: {numerator: 100}}, abort: {header_abort: {}, percentage: {numerator: 100}}}",
    );
    let hcm =
        with_filter(&routes("- match: {prefix: /}\n  direct_response: {status: 200}"), &by_header);
    let proxy = Proxy::http(&hcm, &[]).await;
    let ask = async |header: &str| {
        proxy.request(&format!("GET / HTTP/1.1\r\nhost: h\r\n{header}")).await.status
    };
    assert_eq!(ask("").await, 200);
    assert_eq!(ask("x-envoy-fault-abort-request: 431\r\n").await, 431);
    let never = "x-envoy-fault-abort-request: 431\r\nx-envoy-fault-abort-request-percentage: 0\r\n";
    assert_eq!(ask(never).await, 200);
    let begun = Instant::now();
    assert_eq!(ask("x-envoy-fault-delay-request: 60\r\n").await, 200);
    assert!(begun.elapsed() >= Duration::from_millis(60));
}
