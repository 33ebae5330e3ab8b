//! Every sample of bookinfo's traffic management, as upstream ships it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{dump, gateway, list, routes, sidecar, text};
use amime_translate::Dump;
use serde_json::Value;

fn samples() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let shared = std::env::var_os("AMIME_SHARED").map_or(beside, PathBuf::from);
    shared.join("data/istio-samples")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{}: {error}; AMIME_SHARED says where", path.display()))
}

/// Directories of the samples' versions.
fn versions() -> Vec<PathBuf> {
    let root = samples();
    let entries = fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let mut dirs: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path().join("bookinfo"))
        .filter(|dir| dir.is_dir())
        .collect();
    dirs.sort();
    dirs
}

/// The application and its running pods.
fn application(dir: &Path) -> String {
    let mut yaml = read(&dir.join("platform/kube/bookinfo.yaml"));
    let pods = [
        ("productpage", "v1"),
        ("details", "v1"),
        ("ratings", "v1"),
        ("reviews", "v1"),
        ("reviews", "v2"),
        ("reviews", "v3"),
    ];
    for (index, (app, version)) in pods.iter().enumerate() {
        yaml.push_str(&format!(
            "\n---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: {app}-{version}, namespace: default, \
             labels: {{app: {app}, version: {version}, security.istio.io/tlsMode: istio}}}}\n\
             spec: {{serviceAccountName: bookinfo-{app}, containers: [{{name: {app}}}]}}\n\
             status: {{podIP: 10.0.0.{}, phase: Running, \
             conditions: [{{type: Ready, status: 'True'}}]}}\n",
            index + 1
        ));
    }
    yaml
}

#[track_caller]
fn with(dir: &Path, files: &[&str], proxy: &Value) -> Dump {
    let mut yaml = application(dir);
    for file in files {
        yaml.push_str("\n---\n");
        yaml.push_str(&read(&dir.join("networking").join(file)));
    }
    dump(&yaml, proxy)
}

fn reviews(dump: &Dump) -> Value {
    host(dump, "reviews.default.svc.cluster.local:9080")
}

#[track_caller]
fn host(dump: &Dump, name: &str) -> Value {
    let routes = routes(dump, "9080");
    let found = list(&routes, "virtual_hosts").iter().find(|host| text(host, "name") == name);
    found.unwrap_or_else(|| panic!("no virtual host {name}")).clone()
}

fn productpage() -> Value {
    sidecar("10.0.0.1", "productpage")
}

#[test]
fn each_file_alone_translates() {
    for dir in versions() {
        for entry in fs::read_dir(dir.join("networking")).expect("samples") {
            let path = entry.expect("an entry").path();
            let yaml = format!("{}\n---\n{}", application(&dir), read(&path));
            for proxy in [productpage(), gateway()] {
                let dump = dump(&yaml, &proxy);
                assert!(!dump.clusters.is_empty(), "{}", path.display());
            }
        }
    }
}

#[test]
fn subsets_are_clusters_with_their_endpoints() {
    for dir in versions() {
        let dump = with(&dir, &["destination-rule-all.yaml"], &productpage());
        for version in ["v1", "v2", "v3"] {
            let name = format!("outbound|9080|{version}|reviews.default.svc.cluster.local");
            assert!(dump.clusters.iter().any(|cluster| cluster.name == name), "{name}");
            let own = dump.endpoints.iter().find(|e| e.cluster_name == name).expect("endpoints");
            assert_eq!(own.endpoints.iter().map(|e| e.lb_endpoints.len()).sum::<usize>(), 1);
        }
    }
}

#[test]
fn weights_are_kept() {
    for dir in versions() {
        let files = ["destination-rule-all.yaml", "virtual-service-reviews-90-10.yaml"];
        let host = reviews(&with(&dir, &files, &productpage()));
        let clusters = list(&host["routes"][0]["route"]["weighted_clusters"], "clusters");
        let weights: Vec<(&str, u64)> = clusters
            .iter()
            .map(|c| (text(c, "name"), c["weight"].as_u64().expect("a weight")))
            .collect();
        assert_eq!(
            weights,
            [
                ("outbound|9080|v1|reviews.default.svc.cluster.local", 90),
                ("outbound|9080|v2|reviews.default.svc.cluster.local", 10),
            ]
        );
    }
}

#[test]
fn a_user_gets_another_version() {
    for dir in versions() {
        let files = ["destination-rule-all.yaml", "virtual-service-reviews-test-v2.yaml"];
        let host = reviews(&with(&dir, &files, &productpage()));
        let first = &host["routes"][0];
        let header = &first["match"]["headers"][0];
        assert_eq!(text(header, "name"), "end-user");
        assert_eq!(header["string_match"]["exact"], "jason");
        let v2 = "outbound|9080|v2|reviews.default.svc.cluster.local";
        assert_eq!(first["route"]["cluster"], v2);
        assert_eq!(host["routes"].as_array().map(Vec::len), Some(2));
        let origin = &first["metadata"]["filter_metadata"]["istio"];
        let path = "/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews";
        assert_eq!(origin["config"], path);
        assert_eq!(origin["rule"], "http[0]");
    }
}

#[test]
fn faults_are_injected() {
    for dir in versions() {
        let fault = |file: &str| {
            let dump = with(&dir, &["destination-rule-all.yaml", file], &productpage());
            let host = host(&dump, "ratings.default.svc.cluster.local:9080");
            host["routes"][0]["typed_per_filter_config"]["envoy.filters.http.fault"].clone()
        };
        let delay = fault("virtual-service-ratings-test-delay.yaml");
        assert_eq!(delay["delay"]["fixed_delay"], "7s");
        let abort = fault("virtual-service-ratings-test-abort.yaml");
        assert_eq!(abort["abort"]["http_status"], 500);
        let share = &abort["abort"]["percentage"];
        // Old samples say `percent`, newer ones `percentage`.
        let whole = [(100, "HUNDRED"), (1_000_000, "MILLION")];
        let whole = whole.map(|(n, of)| (Some(n), of));
        let denominator = share["denominator"].as_str().unwrap_or("HUNDRED");
        assert!(whole.contains(&(share["numerator"].as_u64(), denominator)), "{share}");
    }
}

#[test]
fn the_gateway_leads_to_the_product_page() {
    for dir in versions() {
        let dump = with(&dir, &["bookinfo-gateway.yaml"], &gateway());
        let [only] = dump.routes.as_slice() else { panic!("one route configuration") };
        let routes = crate::support::json_of(only);
        let host = &routes["virtual_hosts"][0];
        assert_eq!(host["domains"], serde_json::json!(["*"]));
        let target = "outbound|9080||productpage.default.svc.cluster.local";
        assert!(list(host, "routes").iter().all(|route| route["route"]["cluster"] == target));
    }
}
