//! Which route a request takes and what it does.

use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;

use crate::harness::{Backend, Proxy, routes};

#[tokio::test]
async fn the_most_specific_domain_wins() {
    let hcm = r#"route_config:
  name: r
  virtual_hosts:
  - {name: any, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: any}}}]}
  - {name: suffix, domains: ["*.example.com"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: suffix}}}]}
  - {name: longer, domains: ["*.b.example.com"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: longer}}}]}
  - {name: prefix, domains: ["foo.*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: prefix}}}]}
  - {name: exact, domains: ["a.example.com"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: exact}}}]}"#;
    let proxy = Proxy::http(hcm, &[]).await;
    for (host, want) in [
        ("a.example.com", "exact"),
        ("A.EXAMPLE.com", "exact"),
        ("x.example.com", "suffix"),
        ("a.b.example.com", "longer"),
        ("foo.org", "prefix"),
        ("example.com", "any"),
    ] {
        assert_eq!(proxy.get(host, "/").await.body, want, "{host}");
    }
}

#[tokio::test]
async fn the_first_route_that_matches_everything_is_taken() {
    let hcm = routes(
        r#"- match: {path: /exact}
  direct_response: {status: 200, body: {inline_string: exact}}
- match: {path_separated_prefix: /seg}
  direct_response: {status: 200, body: {inline_string: seg}}
- match: {safe_regex: {regex: "/re/\\d+"}}
  direct_response: {status: 200, body: {inline_string: re}}
- match: {prefix: /h, headers: [{name: end-user, string_match: {exact: jason}}]}
  direct_response: {status: 200, body: {inline_string: jason}}
- match: {prefix: /h, headers: [{name: end-user, present_match: true, invert_match: true}]}
  direct_response: {status: 200, body: {inline_string: nobody}}
- match: {prefix: /q, query_parameters: [{name: v, string_match: {prefix: "1"}}]}
  direct_response: {status: 200, body: {inline_string: query}}"#,
    );
    let proxy = Proxy::http(&hcm, &[]).await;
    for (path, want) in [
        ("/exact?x=1", "exact"),
        ("/seg", "seg"),
        ("/seg/a", "seg"),
        ("/re/12", "re"),
        ("/h", "nobody"),
        ("/q?a=b&v=12", "query"),
    ] {
        assert_eq!(proxy.get("h", path).await.body, want, "{path}");
    }
    for path in ["/exact/", "/segment", "/re/12a", "/q?v=2"] {
        assert_eq!(proxy.get("h", path).await.status, 404, "{path}");
    }
    let jason = proxy.request("GET /h HTTP/1.1\r\nhost: h\r\nend-user: jason\r\n").await;
    assert_eq!(jason.body, "jason");
}

#[tokio::test]
async fn paths_and_hosts_are_rewritten_and_the_old_ones_told() {
    let backend = Backend::named("ok").await;
    let hcm = routes(
        r#"- match: {prefix: /old/}
  route: {cluster: a, prefix_rewrite: /new/, host_rewrite_literal: inner}"#,
    );
    let proxy = Proxy::http(&hcm, &[("a", backend.address)]).await;
    assert_eq!(proxy.get("outer", "/old/x?q=1").await.status, 200);
    let seen = backend.only().head;
    assert_eq!(seen.uri(), "/new/x?q=1");
    assert_eq!(seen.headers()["host"], "inner");
    assert_eq!(seen.headers()["x-envoy-original-path"], "/old/x?q=1");
}

#[tokio::test]
async fn redirects_name_the_new_place() {
    let hcm = routes(
        r#"- match: {prefix: /a}
  redirect: {https_redirect: true, prefix_rewrite: /b, response_code: FOUND}"#,
    );
    let proxy = Proxy::http(&hcm, &[]).await;
    let reply = proxy.get("h.example:80", "/a/x?q=1").await;
    assert_eq!(reply.status, 302);
    assert_eq!(reply.header("location"), Some("https://h.example/b/x?q=1"));
}

#[tokio::test]
async fn weights_split_the_traffic() {
    let (a, b) = (Backend::named("a").await, Backend::named("b").await);
    let hcm = routes(
        r#"- match: {prefix: /}
  route: {weighted_clusters: {clusters: [{name: a, weight: 80}, {name: b, weight: 20}]}}"#,
    );
    let proxy = Proxy::http(&hcm, &[("a", a.address), ("b", b.address)]).await;
    for _ in 0..300 {
        assert_eq!(proxy.get("h", "/").await.status, 200);
    }
    // Five standard deviations around 60 of 300.
    assert!((26..=94).contains(&b.count()), "{} of 300", b.count());
    assert_eq!(a.count() + b.count(), 300);
}

#[tokio::test]
async fn header_edits_apply_at_all_levels() {
    let backend = Backend::named("ok").await;
    let hcm = r#"route_config:
  name: r
  request_headers_to_add: [{header: {key: x-level, value: table}}]
  virtual_hosts:
  - name: v
    domains: ["*"]
    request_headers_to_add: [{header: {key: x-level, value: host}}]
    routes:
    - match: {prefix: /}
      route: {cluster: a}
      request_headers_to_add: [{header: {key: x-level, value: "route %REQ(:path)%"}}]
      request_headers_to_remove: [x-secret]
      response_headers_to_add: [{header: {key: x-code, value: "%RESPONSE_CODE%"}}]"#;
    let proxy = Proxy::http(hcm, &[("a", backend.address)]).await;
    let reply = proxy.request("GET /p HTTP/1.1\r\nhost: h\r\nx-secret: 1\r\n").await;
    assert_eq!(reply.header("x-code"), Some("200"));
    let seen = backend.only().head;
    let levels: Vec<_> = seen.headers().get_all("x-level").iter().collect();
    assert_eq!(levels, ["route /p", "host", "table"]);
    assert!(!seen.headers().contains_key("x-secret"));
}

#[tokio::test]
async fn headers_decide_among_destinations_and_name_them() {
    let (a, b) = (Backend::named("a").await, Backend::named("b").await);
    let hcm = routes(
        "- match: {prefix: /number}
  route:
    weighted_clusters:
      header_name: x-number
      clusters: [{name: a, weight: 30}, {name: b, weight: 70}]
- match: {prefix: /name}
  route: {weighted_clusters: {clusters: [{cluster_header: x-name, weight: 1}]}}",
    );
    let proxy = Proxy::http(&hcm, &[("a", a.address), ("b", b.address)]).await;
    let ask = async |path: &str, header: &str| {
        proxy.request(&format!("GET {path} HTTP/1.1\r\nhost: h\r\n{header}\r\n")).await.body
    };
    for _ in 0..5 {
        assert_eq!(ask("/number", "x-number: 129").await, "a");
        assert_eq!(ask("/number", "x-number: 30").await, "b");
    }
    assert_eq!(ask("/name", "x-name: a").await, "a");
    assert_eq!(ask("/name", "x-name: b").await, "b");
}

#[tokio::test]
async fn redirects_of_an_upstream_are_followed_here_where_that_is_asked_for() {
    let from = Backend::start(|_| {
        let mut response = Response::new(Full::from("moved"));
        *response.status_mut() = StatusCode::FOUND;
        let location = HeaderValue::from_static("http://other/new?q=1");
        response.headers_mut().insert("location", location);
        response
    })
    .await;
    let to = Backend::named("arrived").await;
    let hcm = routes(
        "- match: {prefix: /old}
  route: {cluster: from, internal_redirect_policy: {}}
- match: {prefix: /plain}
  route: {cluster: from}
- match: {prefix: /new}
  route: {cluster: to}",
    );
    let proxy = Proxy::http(&hcm, &[("from", from.address), ("to", to.address)]).await;
    let reply = proxy.get("h", "/old?p=1").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "arrived"));
    let seen = to.only().head;
    assert_eq!(
        (seen.uri().to_string().as_str(), &seen.headers()["host"]),
        ("/new?q=1", &HeaderValue::from_static("other"))
    );
    assert_eq!(seen.headers()["x-envoy-original-url"], "http://h/old?p=1");
    assert_eq!(proxy.get("h", "/plain").await.status, 302);
    let with_body =
        "POST /old HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi";
    assert!(proxy.raw(with_body).await.starts_with("HTTP/1.1 302"));
}

#[tokio::test]
async fn copies_go_where_a_level_above_the_route_says() {
    let (a, copy) = (Backend::named("a").await, Backend::named("copy").await);
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: a}").replace(
        "  virtual_hosts:",
        "  request_mirror_policies: [{cluster: copy}]\n  virtual_hosts:",
    );
    let proxy = Proxy::http(&hcm, &[("a", a.address), ("copy", copy.address)]).await;
    assert_eq!(proxy.get("h", "/x").await.body, "a");
    while copy.count() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(copy.only().head.headers()["host"], "h-shadow");
}

#[tokio::test]
async fn a_copy_has_the_body_of_the_request() {
    let (a, copy) = (Backend::named("a").await, Backend::named("copy").await);
    let hcm = routes(
        "- match: {prefix: /}\n  route: {cluster: a, request_mirror_policies: [{cluster: copy}]}",
    );
    let proxy = Proxy::http(&hcm, &[("a", a.address), ("copy", copy.address)]).await;
    let head = "POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi";
    assert!(proxy.raw(head).await.starts_with("HTTP/1.1 200"));
    while copy.count() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(copy.only().body, "hi");
}
