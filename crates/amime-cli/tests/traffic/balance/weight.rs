//! How much of the traffic an endpoint gets: by its zone, its age and what it
//! reports.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("requests stay in the zone of the client", zones),
    ("an endpoint weighs what it reports", reports),
    ("a new endpoint warms up", warm_up),
];

fn entry(mesh: &Mesh, name: &str, endpoints: &[(&str, &str)], policy: &str) -> String {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|(pod, more)| format!("{{address: {}{more}}}", mesh.address("outside", pod)))
        .collect();
    format!(
        r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: [{name}.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}]
  endpoints: [{}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec: {{host: {name}.test, trafficPolicy: {{loadBalancer: {policy}}}}}
",
        endpoints.join(", ")
    )
}

/// How many of so many requests the endpoint `external-1` answers.
fn first(mesh: &Mesh, pod: &str, name: &str, orders: &str, count: usize) -> anyhow::Result<usize> {
    let mut first = 0;
    for _ in 0..count {
        let answer = mesh.get(pod, &format!("http://{name}.test/")).order(orders).try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        first += usize::from(answer.pod().as_deref() == Some("external-1"));
    }
    Ok(first)
}

/// Two replicas in one zone; the portal is that of one of them.
const ZONED: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: zoned}
spec: {selector: {app: zoned}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: zoned}
spec:
  replicas: 2
  selector: {matchLabels: {app: zoned}}
  template:
    metadata:
      labels: {app: zoned, istio-locality: r1.z1}
      annotations: {proxy.istio.io/config: "proxyMetadata: {ISTIO_META_ENABLE_SELF_DISCOVERY: 'true'}"}
    spec:
      terminationGracePeriodSeconds: 2
      containers: [{name: portal, image: portal, args: [zoned, "8080"], ports: [{containerPort: 8080}]}]
"#;

/// Name and address of the pods of the deployment.
fn replicas(mesh: &Mesh) -> Vec<(String, String)> {
    let list = mesh.ok(&["get", "pods", "-o", "json"]);
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let pods = list["items"].as_array().expect("a list").iter();
    let zoned = pods.filter(|pod| pod["metadata"]["labels"]["app"] == "zoned");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    zoned.map(|pod| (text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"]))).collect()
}

fn zones(mesh: &Mesh) {
    let places = [("external-1", ", locality: r1/z1"), ("external-2", ", locality: r1/z2")];
    let policy = "{zoneAwareLbSetting: {minClusterSize: 1}}";
    mesh.apply(&format!("{}{ZONED}", entry(mesh, "zones", &places, policy)));
    let other = mesh.until(|| {
        let answer = mesh.get("zoned", "http://zones.test/").try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        let peer = answer.said("peer");
        let all = replicas(mesh);
        ensure!(all.len() == 2 && all.iter().all(|(_, ip)| !ip.is_empty()), "{all:?}");
        let is_other = |(_, ip): &&(String, String)| !peer.starts_with(&format!("{ip}:"));
        Ok(all.iter().find(is_other).expect("another one").0.clone())
    });
    // Alone in its zone, the proxy sends nothing elsewhere.
    mesh.ok(&["label", "pod", &other, "istio-locality=r1.z2", "--overwrite"]);
    mesh.until(|| {
        let got = first(mesh, "zoned", "zones", "", 20)?;
        ensure!(got == 20, "{got} of 20 to the first");
        Ok(())
    });
    let stats = mesh.stats("zoned", "cluster.outbound|80||zones.test.lb_zone_routing_all");
    assert!(stats.iter().any(|(_, count)| count != "0"), "{stats:?}");
    // Who does not know its own kind knows no zones.
    let got = first(mesh, "client", "zones", "", 40).expect("served");
    assert!((1..40).contains(&got), "{got} of 40 to the first");
}

/// Reports of 100 requests a second at utilizations of 0.2 and 0.8.
const REPORTS: &str = "endpoint-load-metrics-bin=CZqZmZmZmck/MQAAAAAAAFlA^external-1 endpoint-load-metrics-bin=CZqZmZmZmek/MQAAAAAAAFlA^external-2";

fn reports(mesh: &Mesh) {
    let policy =
        "{backendUtilization: {weightUpdatePeriod: 100ms, weightStabilizationPeriod: 100ms}}";
    mesh.apply(&entry(mesh, "reports", &[("external-1", ""), ("external-2", "")], policy));
    mesh.until(|| {
        let got = first(mesh, "client", "reports", REPORTS, 50)?;
        ensure!((38..=42).contains(&got), "{got} of 50 to the first");
        Ok(())
    });
}

fn warm_up(mesh: &Mesh) {
    const WINDOW: Duration = Duration::from_secs(10);
    let policy = "{simple: ROUND_ROBIN, warmup: {duration: 10s, minimumPercent: 5}}";
    mesh.apply(&entry(mesh, "warm", &[("external-1", "")], policy));
    mesh.until(|| first(mesh, "client", "warm", "", 1));
    let begin = Instant::now();
    mesh.until(|| {
        first(mesh, "client", "warm", "", 1)?;
        ensure!(begin.elapsed() >= WINDOW, "it still warms up");
        Ok(())
    });
    let both = [("external-1", ""), ("external-2", "")];
    mesh.apply(&entry(mesh, "warm", &both, policy));
    let added = Instant::now();
    mesh.until(|| {
        let got = first(mesh, "client", "warm", "", 1)?;
        ensure!(got == 0, "nothing reaches the new one yet");
        Ok(())
    });
    // A second of ten is a tenth of the weight, a fifth is a sixth of the share.
    let got = first(mesh, "client", "warm", "", 30).expect("served");
    if added.elapsed() < WINDOW / 4 {
        assert!(got >= 22, "{got} of 30 to the old one");
    }
    mesh.until(|| {
        let got = first(mesh, "client", "warm", "", 40)?;
        ensure!((18..=22).contains(&got), "{got} of 40 to the old one");
        Ok(())
    });
}
