//! What all answers have in common: completeness, order, stable bytes.

use std::sync::Arc;

use crate::support::sidecar;
use amime_api::decode::decode;
use amime_api::mesh::decode_mesh_config;
use amime_model::{Change, ChangeScope, Snapshot};
use amime_translate::{Proxy, dump, generate};
use amime_xds::istio::nds::NameTable;
use amime_xds::{Resource, TypeUrl};

const YAML: &str = r"
apiVersion: v1
kind: Service
metadata: {name: a, namespace: default}
spec: {clusterIP: 10.1.0.1, selector: {app: a}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: tcp, port: 5432}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: default, labels: {app: db}}
spec: {hostname: db-0, subdomain: db, containers: [{name: db}]}
status: {podIP: 10.0.0.2, phase: Running, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: default}
spec:
  hosts: [out.example.com]
  addresses: [240.0.0.1]
  resolution: STATIC
  ports: [{number: 443, name: tls, protocol: TLS}]
  endpoints: [{address: 192.0.2.1}]
";

fn pod(name: &str, ip: &str, ready: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: default, labels: {{app: a}}}}\n\
         spec: {{serviceAccountName: a, containers: [{{name: a}}]}}\n\
         status: {{podIP: {ip}, phase: Running, conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
    )
}

fn resources(yaml: &str) -> Vec<Arc<amime_api::Resource>> {
    let decoded = decode("test.yaml", yaml);
    assert_eq!(decoded.errors, []);
    decoded.resources.into_iter().map(Arc::new).collect()
}

fn snapshot() -> Snapshot {
    let mut all = resources(YAML);
    all.extend(resources(&pod("a-1", "10.0.0.1", "True")));
    Snapshot::build(all, Arc::default(), 1)
}

fn proxy() -> Proxy {
    Proxy::from_json(&sidecar("10.0.0.1", "a").to_string()).expect("a proxy")
}

const TYPES: [TypeUrl; 5] =
    [TypeUrl::Cluster, TypeUrl::Endpoint, TypeUrl::Listener, TypeUrl::Route, TypeUrl::NameTable];

#[test]
fn the_same_input_gives_the_same_bytes() {
    let proxy = proxy();
    for type_url in TYPES {
        let first = generate(&snapshot(), &proxy, type_url, None);
        assert!(!first.is_empty());
        assert_eq!(first, generate(&snapshot(), &proxy, type_url, None));
        assert!(first.is_sorted_by(|a, b| a.name < b.name), "{type_url:?} by name");
    }
}

#[test]
fn answers_are_what_the_dump_shows() {
    let (snapshot, proxy) = (snapshot(), proxy());
    let dump = dump(&snapshot, &proxy);
    let encoded = |type_url| generate(&snapshot, &proxy, type_url, None);
    let clusters: Vec<Resource> =
        dump.clusters.iter().map(|c| Resource::encode(c.name.clone(), c)).collect();
    assert_eq!(encoded(TypeUrl::Cluster), clusters);
    let listeners: Vec<Resource> =
        dump.listeners.iter().map(|l| Resource::encode(l.name.clone(), l)).collect();
    assert_eq!(encoded(TypeUrl::Listener), listeners);
    let routes: Vec<Resource> =
        dump.routes.iter().map(|r| Resource::encode(r.name.clone(), r)).collect();
    assert_eq!(encoded(TypeUrl::Route), routes);
    let endpoints: Vec<Resource> =
        dump.endpoints.iter().map(|e| Resource::encode(e.cluster_name.clone(), e)).collect();
    assert_eq!(encoded(TypeUrl::Endpoint), endpoints);
}

#[test]
fn only_what_is_asked_for_is_made() {
    let (snapshot, proxy) = (snapshot(), proxy());
    for type_url in [TypeUrl::Cluster, TypeUrl::Endpoint, TypeUrl::Listener, TypeUrl::Route] {
        for one in generate(&snapshot, &proxy, type_url, None) {
            let names = [one.name.clone()];
            assert_eq!(generate(&snapshot, &proxy, type_url, Some(&names)), [one]);
        }
        let unknown = generate(&snapshot, &proxy, type_url, Some(&["no such".to_owned()]));
        let empty = matches!(type_url, TypeUrl::Endpoint | TypeUrl::Route);
        assert_eq!(unknown.len(), usize::from(empty), "{type_url:?}");
    }
}

#[test]
fn names_are_those_of_services_and_pods() {
    let answer = generate(&snapshot(), &proxy(), TypeUrl::NameTable, None);
    let table = answer[0].decode::<NameTable>().expect("a table").table;
    let ips = |host: &str| table.get(host).map(|info| info.ips.join(" "));
    assert_eq!(ips("a.default.svc.cluster.local").as_deref(), Some("10.1.0.1"));
    assert_eq!(ips("db.default.svc.cluster.local").as_deref(), Some("10.0.0.2"));
    assert_eq!(ips("db-0.db.default.svc.cluster.local").as_deref(), Some("10.0.0.2"));
    assert_eq!(ips("out.example.com").as_deref(), Some("240.0.0.1"));
    let a = &table["a.default.svc.cluster.local"];
    assert_eq!((a.shortname.as_str(), a.namespace.as_str()), ("a", "default"));
}

#[test]
fn a_new_pod_changes_endpoints_only() {
    let (before, proxy) = (snapshot(), proxy());
    let pod = resources(&pod("a-2", "10.0.0.9", "True")).remove(0);
    let (after, scope) = before.with(&[Change::Set(pod)]);
    let ChangeScope::Endpoints { services } = scope else { panic!("{scope:?}") };
    let hosts: Vec<&str> = services.iter().map(|key| key.hostname.as_str()).collect();
    assert_eq!(hosts, ["a.default.svc.cluster.local"]);
    for type_url in [TypeUrl::Cluster, TypeUrl::Listener, TypeUrl::Route] {
        let of = |snapshot| generate(snapshot, &proxy, type_url, None);
        assert_eq!(of(&before), of(&after), "{type_url:?}");
    }
    let of = |snapshot| generate(snapshot, &proxy, TypeUrl::Endpoint, None);
    assert_ne!(of(&before), of(&after));
    let (same, _) = after.with(&[]);
    assert_eq!(of(&after), of(&same));
}

#[test]
fn the_pod_of_a_headless_service_changes_listeners_too() {
    let before = snapshot();
    let pod = r"
apiVersion: v1
kind: Pod
metadata: {name: db-1, namespace: default, labels: {app: db}}
spec: {hostname: db-1, subdomain: db, containers: [{name: db}]}
status: {podIP: 10.0.0.3, phase: Running, conditions: [{type: Ready, status: 'True'}]}
";
    let (after, scope) = before.with(&[Change::Set(resources(pod).remove(0))]);
    assert_eq!(scope, ChangeScope::Full);
    let names = generate(&after, &proxy(), TypeUrl::Listener, None);
    assert!(names.iter().any(|listener| listener.name == "10.0.0.3_5432"));
}

#[test]
fn namespaces_that_the_mesh_does_not_select_do_not_count() {
    let text = r"
apiVersion: v1
kind: Namespace
metadata: {name: seen, labels: {team: one}}
---
apiVersion: v1
kind: Namespace
metadata: {name: unseen, labels: {team: two}}
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: seen}
spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: unseen}
spec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: c, namespace: undeclared}
spec: {clusterIP: 10.1.0.3, ports: [{name: http, port: 80}]}
";
    let mesh = |selectors: &str| {
        let text = format!("discoverySelectors: {selectors}");
        Arc::new(decode_mesh_config("mesh", &text).expect("a mesh"))
    };
    let services = |snapshot: &Snapshot| {
        let clusters = generate(snapshot, &proxy(), TypeUrl::Cluster, None);
        let names = clusters.into_iter().filter_map(|cluster| {
            Some(cluster.name.strip_prefix("outbound|80||")?.get(..1)?.to_owned())
        });
        names.collect::<Vec<_>>().join(" ")
    };
    let one = mesh("[{matchLabels: {team: one}}]");
    let snapshot = Snapshot::build(resources(text), one, 1);
    assert_eq!(services(&snapshot), "a");
    assert_eq!(services(&snapshot.with_mesh(mesh("[]"))), "a b c");
    let either = "[{matchLabels: {kubernetes.io/metadata.name: unseen}}, {matchExpressions: [{key: team, operator: In, values: [one]}]}]";
    assert_eq!(services(&snapshot.with_mesh(mesh(either))), "a b");
    // A label is all it takes.
    let namespace =
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: unseen, labels: {team: one}}";
    let (next, scope) = snapshot.with(&[Change::Set(resources(namespace).remove(0))]);
    assert_eq!((services(&next).as_str(), scope), ("a b", ChangeScope::Full));
    // Endpoints of what does not count are none, also when they alone change.
    let slice = r"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: b-1, namespace: unseen, labels: {kubernetes.io/service-name: b}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints: [{addresses: [10.0.0.8], conditions: {ready: true}}]
";
    let (_, scope) = snapshot.with(&[Change::Set(resources(slice).remove(0))]);
    assert_eq!(scope, ChangeScope::Endpoints { services: Default::default() });
}

#[test]
fn a_rule_changes_everything() {
    let rule = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: default}
spec: {hosts: [a], http: [{timeout: 1s, route: [{destination: {host: a}}]}]}
";
    let (_, scope) = snapshot().with(&[Change::Set(resources(rule).remove(0))]);
    assert_eq!(scope, ChangeScope::Full);
}
