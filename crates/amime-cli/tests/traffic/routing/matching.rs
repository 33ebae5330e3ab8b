//! Which route matches.

use anyhow::ensure;

use super::{service, to};
use crate::Test;
use crate::client::Ask;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("paths match exactly, by prefix and by expression", paths),
    ("headers match, and have to be missing", headers),
    ("query, method, scheme and authority match", others),
    ("ports and sources match", sources),
    ("conditions of a match hold together, and the first match wins", order),
    ("routes are delegated", delegates),
];

/// One route for each rule, named by the header `x-rule` that it adds.
fn virtual_service(host: &str, rules: &[(&str, &str)]) -> String {
    let name = host.replace('.', "-");
    let routes: String = rules
        .iter()
        .map(|(rule, conditions)| {
            format!(
                "  - match: [{conditions}]\n    headers: {{request: {{set: {{x-rule: '{rule}'}}}}}}\n    \
                 route: [{{destination: {{host: one, port: {{number: 80}}}}}}]\n"
            )
        })
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\n\
         spec:\n  hosts: [{host}, '*.{host}']\n  http:\n{routes}  - route: [{{destination: {{host: two}}}}]\n"
    )
}

/// The rule that a request met; `-` for none.
#[track_caller]
fn rule(ask: Ask<'_>) -> String {
    let answer = ask.send();
    answer.saw("x-rule").unwrap_or_else(|| {
        assert_eq!(answer.pod().as_deref(), Some("app-v2"), "{answer:?}");
        "-".to_owned()
    })
}

/// Waits for the routes, which a first request of the rule shows.
fn ready(mesh: &Mesh, ask: &Ask<'_>) {
    mesh.until(|| {
        let answer = ask.clone().try_send()?;
        ensure!(answer.status == 200 && answer.saw("x-rule").is_some(), "{answer:?}");
        Ok(())
    });
}

fn paths(mesh: &Mesh) {
    let host = "paths.test";
    mesh.apply(&virtual_service(
        host,
        &[
            ("exact", "{uri: {exact: /exact}}"),
            ("prefix", "{uri: {prefix: /pre}}"),
            ("folder", "{uri: {prefix: /folder/}}"),
            ("regex", "{uri: {regex: '/r[0-9]+(/.*)?'}}"),
            ("any case", "{uri: {exact: /CaSe}, ignoreUriCase: true}"),
            ("any case of prefixes", "{uri: {prefix: /UPPER}, ignoreUriCase: true}"),
        ],
    ));
    ready(mesh, &to(mesh, host, "/exact"));
    for (path, want) in [
        ("/exact?a=b", "exact"),
        ("/exact/", "-"),
        ("/Exact", "-"),
        ("/pre", "prefix"),
        ("/prefix/more", "prefix"),
        ("/folder", "-"),
        ("/folder/x", "folder"),
        ("/r12", "regex"),
        ("/r12/x", "regex"),
        ("/r12x", "-"),
        ("/x/r12", "-"),
        ("/case", "any case"),
        ("/CASE/x", "-"),
        ("/upperX", "any case of prefixes"),
        // Both ends are normalized before they match.
        ("/a/../exact", "exact"),
    ] {
        assert_eq!(rule(to(mesh, host, path)), want, "{path}");
    }
}

fn headers(mesh: &Mesh) {
    let host = "headers.test";
    mesh.apply(&virtual_service(
        host,
        &[
            ("exact", "{headers: {x-exact: {exact: a b}}}"),
            ("prefix", "{headers: {x-prefix: {prefix: go}}}"),
            ("regex", "{headers: {x-regex: {regex: '[a-c]+'}}}"),
            ("present", "{headers: {x-present: {}}}"),
            ("both", "{headers: {x-one: {exact: '1'}, x-two: {exact: '2'}}}"),
            ("cookie", "{headers: {cookie: {regex: '^(.*?;)?(user=jason)(;.*)?$'}}}"),
            ("without value", "{uri: {exact: /w}, withoutHeaders: {x-no: {exact: 'yes'}}}"),
            ("without any", "{uri: {exact: /none}, withoutHeaders: {x-no: {}}}"),
        ],
    ));
    ready(mesh, &to(mesh, host, "/").header("x-exact", "a b"));
    let check = |path: &str, headers: &[(&str, &str)], want: &str| {
        let ask = headers.iter().fold(to(mesh, host, path), |ask, (n, v)| ask.header(n, v));
        assert_eq!(rule(ask), want, "{path} {headers:?}");
    };
    check("/", &[("x-exact", "a bc")], "-");
    check("/", &[("X-EXACT", "a b")], "exact");
    check("/", &[("x-prefix", "gopher")], "prefix");
    check("/", &[("x-prefix", "ago")], "-");
    check("/", &[("x-regex", "abc")], "regex");
    check("/", &[("x-regex", "abcd")], "-");
    check("/", &[("x-present", "")], "present");
    check("/", &[("x-one", "1")], "-");
    check("/", &[("x-one", "1"), ("x-two", "2")], "both");
    check("/", &[("cookie", "a=b; user=jason")], "-");
    check("/", &[("cookie", "a=b;user=jason;c=d")], "cookie");
    check("/w", &[], "without value");
    check("/w", &[("x-no", "no")], "without value");
    check("/w", &[("x-no", "yes")], "-");
    check("/none", &[], "without any");
    check("/none", &[("x-no", "")], "-");
}

fn others(mesh: &Mesh) {
    let host = "others.test";
    mesh.apply(&virtual_service(
        host,
        &[
            ("query", "{queryParams: {q: {exact: '1'}}}"),
            ("query regex", "{queryParams: {r: {regex: 'a+'}}}"),
            ("query prefix", "{queryParams: {p: {prefix: 'go'}}}"),
            ("method", "{uri: {exact: /m}, method: {exact: PUT}}"),
            ("methods", "{uri: {exact: /m}, method: {regex: 'P.*'}}"),
            ("https", "{uri: {exact: /s}, scheme: {exact: https}}"),
            ("http", "{uri: {exact: /s}, scheme: {exact: http}}"),
            ("authority", "{authority: {exact: sub.others.test}}"),
            ("authority prefix", "{authority: {prefix: www.}}"),
            ("authority regex", "{authority: {regex: 'x[0-9]\\..*'}}"),
        ],
    ));
    ready(mesh, &to(mesh, host, "/?q=1"));
    for (path, want) in [
        ("/?a=b&q=1", "query"),
        ("/?q=12", "-"),
        ("/?q", "-"),
        ("/?r=aa", "query regex"),
        ("/?r=ab", "-"),
        ("/?p=gopher", "query prefix"),
        ("/m", "-"),
        ("/s", "http"),
    ] {
        assert_eq!(rule(to(mesh, host, path)), want, "{path}");
    }
    assert_eq!(rule(to(mesh, host, "/m").method("PUT")), "method");
    assert_eq!(rule(to(mesh, host, "/m").method("POST")), "methods");
    assert_eq!(rule(to(mesh, "sub.others.test", "/")), "authority");
    assert_eq!(rule(to(mesh, "www.others.test", "/")), "authority prefix");
    assert_eq!(rule(to(mesh, "x1.others.test", "/")), "authority regex");
    assert_eq!(rule(to(mesh, "OTHERS.test", "/?q=1")), "query");
}

fn sources(mesh: &Mesh) {
    let routes = virtual_service(
        "sources",
        &[
            ("port", "{port: 8081}"),
            ("labels", "{uri: {prefix: /l}, sourceLabels: {app: client}}"),
            ("namespace", "{uri: {prefix: /n}, sourceNamespace: other}"),
            ("gateway", "{uri: {prefix: /g}, gateways: [none]}"),
            ("mesh", "{uri: {prefix: /g}, gateways: [mesh]}"),
        ],
    );
    mesh.apply(&(service("sources") + &routes.replace(", '*.sources'", "")));
    let from = |pod: &str, path: &str| mesh.get(pod, &format!("http://sources.default{path}"));
    ready(mesh, &from("client", "/l"));
    assert_eq!(rule(mesh.get("client", "http://sources:8081/l")), "port");
    ready(mesh, &from("stranger", "/n"));
    assert_eq!(rule(from("client", "/l")), "labels");
    assert_eq!(rule(from("stranger", "/l")), "-");
    assert_eq!(rule(from("client", "/n")), "-");
    assert_eq!(rule(from("stranger", "/n")), "namespace");
    assert_eq!(rule(from("client", "/g")), "mesh");
}

fn order(mesh: &Mesh) {
    let host = "order.test";
    mesh.apply(&virtual_service(
        host,
        &[
            ("both", "{uri: {prefix: /a}, headers: {x-a: {exact: '1'}}}"),
            ("either", "{uri: {exact: /a}}, {headers: {x-b: {exact: '1'}}}"),
            ("late", "{uri: {prefix: /}, method: {exact: GET}}"),
            ("never", "{uri: {exact: /late}}"),
        ],
    ));
    ready(mesh, &to(mesh, host, "/late"));
    assert_eq!(rule(to(mesh, host, "/ab").header("x-a", "1")), "both");
    assert_eq!(rule(to(mesh, host, "/b").header("x-a", "1")), "late");
    assert_eq!(rule(to(mesh, host, "/a")), "either");
    assert_eq!(rule(to(mesh, host, "/c").header("x-b", "1")), "either");
    assert_eq!(rule(to(mesh, host, "/late")), "late");
    assert_eq!(rule(to(mesh, host, "/x").method("POST")), "-");
}

const DELEGATES: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: root}
spec:
  hosts: [root.test]
  http:
  - match: [{uri: {prefix: /leaf}}]
    delegate: {name: leaf, namespace: other}
  - route: [{destination: {host: two}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: leaf, namespace: other}
spec:
  http:
  - match: [{uri: {prefix: /leaf/a}, headers: {x-a: {exact: '1'}}}]
    headers: {request: {set: {x-rule: a}}}
    route: [{destination: {host: one.default.svc.cluster.local, port: {number: 80}}}]
  - match: [{uri: {prefix: /elsewhere}}]
    headers: {request: {set: {x-rule: elsewhere}}}
    route: [{destination: {host: one.default.svc.cluster.local, port: {number: 80}}}]
  - headers: {request: {set: {x-rule: rest}}}
    route: [{destination: {host: far, port: {number: 80}}}]
";

fn delegates(mesh: &Mesh) {
    mesh.apply(DELEGATES);
    ready(mesh, &to(mesh, "root.test", "/leaf/x"));
    let rest = to(mesh, "root.test", "/leaf/a").send();
    assert_eq!((rest.saw("x-rule").as_deref(), rest.pod().as_deref()), (Some("rest"), Some("far")));
    assert_eq!(rule(to(mesh, "root.test", "/leaf/a/b").header("x-a", "1")), "a");
    assert_eq!(rule(to(mesh, "root.test", "/elsewhere")), "-");
}
