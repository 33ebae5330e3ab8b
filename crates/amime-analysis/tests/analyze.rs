//! What does not fit together.

use std::sync::Arc;

use amime_analysis::analyze;
use amime_api::decode::decode;
use amime_model::Snapshot;
use expect_test::{Expect, expect};

#[track_caller]
fn check(text: &str, want: Expect) {
    let decoded = decode("f", text);
    assert_eq!(decoded.errors, [], "the fixture decodes");
    let resources = decoded.resources.into_iter().map(Arc::new);
    let snapshot = Snapshot::build(resources, Arc::default(), 1);
    let lines: Vec<String> = analyze(&snapshot).iter().map(ToString::to_string).collect();
    want.assert_eq(&lines.join("\n"));
}

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: a}
spec: {ports: [{port: 9080, name: http}], selector: {app: reviews}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: a}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
---
";

#[test]
fn names_that_lead_nowhere_are_found() {
    check(
        &format!(
            "{REVIEWS}
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: vs, namespace: a}}
spec:
  hosts: [reviews]
  gateways: [mesh, gw, b/gw]
  http:
  - route:
    - destination: {{host: reviews, subset: v1}}
    - destination: {{host: reviews, subset: v2}}
    mirror: {{host: reviews.b.svc.cluster.local}}
  tcp:
  - route: [{{destination: {{host: mysql}}}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: gw, namespace: b}}
spec: {{selector: {{istio: none}}, servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ['*']}}]}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: nothing, namespace: a}}
spec: {{host: nothing}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: everything, namespace: a}}
spec: {{host: '*.local'}}
"
        ),
        expect![[r#"
            Error [IST0101] (VirtualService a/vs) spec.gateways[1]: there is no gateway "gw"
            Error [IST0101] (VirtualService a/vs) spec.http[0].route[1].destination.subset: no DestinationRule for "reviews.a.svc.cluster.local" has a subset "v2"; requests get 503
            Error [IST0101] (VirtualService a/vs) spec.http[0].mirror.host: there is no service "reviews.b.svc.cluster.local"
            Error [IST0101] (VirtualService a/vs) spec.tcp[0].route[0].destination.host: there is no service "mysql.a.svc.cluster.local"
            Error [IST0101] (DestinationRule a/nothing) spec.host: there is no service "nothing.a.svc.cluster.local"
            Error [IST0101] (Gateway b/gw) spec.selector: no workload has these labels"#]],
    );
}

#[test]
fn hosts_claimed_twice_in_the_mesh_are_found() {
    let service = |name: &str, extra: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: a}}\n\
             spec: {{hosts: [reviews], http: [{{route: [{{destination: {{host: reviews}}}}]}}]{extra}}}\n---\n"
        )
    };
    let text = format!(
        "{REVIEWS}{}{}{}{}",
        service("one", ""),
        service("two", ", exportTo: ['.']"),
        service("gateway-only", ", gateways: [gw]"),
        service("elsewhere", ", exportTo: [b]"),
    );
    check(
        &text,
        expect![[r#"
        Error [IST0109] (VirtualService a/elsewhere) spec.hosts: also routes "reviews.a.svc.cluster.local" in the mesh, only the oldest takes effect: VirtualService a/one
        Error [IST0101] (VirtualService a/gateway-only) spec.gateways[0]: there is no gateway "gw"
        Error [IST0109] (VirtualService a/one) spec.hosts: also routes "reviews.a.svc.cluster.local" in the mesh, only the oldest takes effect: VirtualService a/elsewhere, VirtualService a/two
        Error [IST0109] (VirtualService a/two) spec.hosts: also routes "reviews.a.svc.cluster.local" in the mesh, only the oldest takes effect: VirtualService a/one"#]],
    );
}

#[test]
fn rules_without_requests_are_found() {
    check(
        &format!(
            "{REVIEWS}
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: vs, namespace: a}}
spec:
  hosts: [reviews]
  http:
  - match: [{{uri: {{prefix: /a}}}}, {{uri: {{exact: /ab}}}}]
    route: [{{destination: {{host: reviews}}}}]
  - match: [{{uri: {{prefix: /abc}}, name: x}}]
    route: [{{destination: {{host: reviews}}}}]
  - match: [{{uri: {{prefix: /a}}, headers: {{x: {{exact: z}}}}}}]
    route: [{{destination: {{host: reviews}}}}]
  - match: [{{uri: {{prefix: /}}}}]
    route: [{{destination: {{host: reviews}}}}]
  - route: [{{destination: {{host: reviews}}}}]
"
        ),
        expect![[r#"
            Warning [IST0131] (VirtualService a/vs) spec.http[0].match[1]: http[0] takes these requests already
            Warning [IST0130] (VirtualService a/vs) spec.http[1].match[0]: http[0] takes these requests already
            Warning [IST0130] (VirtualService a/vs) spec.http[4]: http[3] matches everything, so nothing comes here"#]],
    );
}
