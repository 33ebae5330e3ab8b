//! Which endpoints a proxy prefers.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use crate::support::{cluster, dump_in_mesh, json_of, list, sidecar, text};

/// Endpoints in two regions, on two networks, and rules for them.
fn service(policy: &str) -> String {
    format!(
        r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web, namespace: default}}
spec:
  hosts: [web.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:
  - {{address: 10.0.0.1, locality: eu/a/1, labels: {{version: v1}}}}
  - {{address: 10.0.0.2, locality: eu/a/2, labels: {{version: v2}}}}
  - {{address: 10.0.0.3, locality: eu/b, labels: {{version: v1}}}}
  - {{address: 10.0.0.4, locality: us/a, labels: {{version: v1}}}}
  - {{address: 10.0.0.5, locality: asia/a, network: far, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web, namespace: default}}
spec: {{host: web.example.com, trafficPolicy: {policy}}}
"
    )
}

/// A client in `eu/a/1`, version v1.
fn client() -> Value {
    let mut proxy = sidecar("10.0.9.1", "client");
    proxy["labels"] =
        json!({"app": "client", "version": "v1", "topology.istio.io/locality": "eu.a.1"});
    proxy
}

#[track_caller]
fn check(policy: &str, mesh: &str, want: Expect) {
    let dump = dump_in_mesh(&service(policy), mesh, &client());
    let mut lines: Vec<String> = Vec::new();
    let assignment = dump.endpoints.iter().find(|e| e.cluster_name.contains("web"));
    for group in list(&json_of(assignment.expect("endpoints")), "endpoints") {
        let priority = group["priority"].as_u64().unwrap_or(0);
        let weight = group["load_balancing_weight"].as_u64().unwrap_or(0);
        for endpoint in list(group, "lb_endpoints") {
            let address = &endpoint["endpoint"]["address"]["socket_address"];
            lines.push(format!("{priority} {} weight {weight}\n", text(address, "address")));
        }
    }
    lines.sort();
    let common = cluster(&dump, "outbound|80||web.example.com")["common_lb_config"].clone();
    want.assert_eq(&format!("{}{common}", lines.concat()));
}

const DETECTS: &str = "outlierDetection: {consecutive5xxErrors: 3}";

#[test]
fn without_failures_seen_there_is_no_order() {
    check(
        "{}",
        "{}",
        expect![[r#"
        0 10.0.0.1 weight 1
        0 10.0.0.2 weight 1
        0 10.0.0.3 weight 1
        0 10.0.0.4 weight 1
        0 10.0.0.5 weight 1
        {"healthy_panic_threshold":{}}"#]],
    );
}

#[test]
fn near_endpoints_come_first_and_a_region_may_be_named() {
    check(
        &format!("{{{DETECTS}}}"),
        "{}",
        expect![[r#"
            0 10.0.0.1 weight 1
            1 10.0.0.2 weight 1
            2 10.0.0.3 weight 1
            3 10.0.0.4 weight 1
            3 10.0.0.5 weight 1
            {"healthy_panic_threshold":{}}"#]],
    );
    let failover = "loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}";
    check(
        &format!("{{{DETECTS}, {failover}}}"),
        "{}",
        expect![[r#"
            0 10.0.0.1 weight 1
            1 10.0.0.2 weight 1
            2 10.0.0.3 weight 1
            3 10.0.0.4 weight 1
            4 10.0.0.5 weight 1
            {"healthy_panic_threshold":{},"locality_weighted_lb_config":{}}"#]],
    );
    check(
        &format!("{{{DETECTS}}}"),
        "localityLbSetting: {enabled: false}",
        expect![[r#"
        0 10.0.0.1 weight 1
        0 10.0.0.2 weight 1
        0 10.0.0.3 weight 1
        0 10.0.0.4 weight 1
        0 10.0.0.5 weight 1
        {"healthy_panic_threshold":{}}"#]],
    );
}

#[test]
fn labels_order_endpoints() {
    let priority = |labels: &str| {
        format!(
            "{{{DETECTS}, loadBalancer: {{localityLbSetting: {{failoverPriority: [{labels}]}}}}}}"
        )
    };
    check(
        &priority("version, topology.kubernetes.io/region"),
        "{}",
        expect![[r#"
            0 10.0.0.1 weight 1
            0 10.0.0.3 weight 1
            1 10.0.0.4 weight 1
            2 10.0.0.2 weight 1
            2 10.0.0.5 weight 1
            {"healthy_panic_threshold":{},"locality_weighted_lb_config":{}}"#]],
    );
    check(
        &priority("'version=v2'"),
        "{}",
        expect![[r#"
        0 10.0.0.2 weight 1
        0 10.0.0.5 weight 1
        1 10.0.0.1 weight 1
        1 10.0.0.3 weight 1
        1 10.0.0.4 weight 1
        {"healthy_panic_threshold":{},"locality_weighted_lb_config":{}}"#]],
    );
    check(
        &priority("topology.istio.io/network, topology.kubernetes.io/region"),
        "{}",
        expect![[r#"
            0 10.0.0.1 weight 1
            0 10.0.0.2 weight 1
            0 10.0.0.3 weight 1
            1 10.0.0.4 weight 1
            2 10.0.0.5 weight 1
            {"healthy_panic_threshold":{},"locality_weighted_lb_config":{}}"#]],
    );
}

#[test]
fn zones_share_the_load_within_a_region() {
    let zones = "zoneAwareLbSetting: {failover: [{from: eu, to: us}], minClusterSize: 4}";
    check(
        &format!("{{loadBalancer: {{{zones}}}}}"),
        "{}",
        expect![[r#"
            0 10.0.0.1 weight 1
            0 10.0.0.2 weight 1
            0 10.0.0.3 weight 1
            1 10.0.0.4 weight 1
            2 10.0.0.5 weight 1
            {"healthy_panic_threshold":{},"zone_aware_lb_config":{"min_cluster_size":"4"}}"#]],
    );
    check(
        "{}",
        "zoneAwareLbSetting: {enabled: false}",
        expect![[r#"
        0 10.0.0.1 weight 1
        0 10.0.0.2 weight 1
        0 10.0.0.3 weight 1
        0 10.0.0.4 weight 1
        0 10.0.0.5 weight 1
        {"healthy_panic_threshold":{},"zone_aware_lb_config":{"routing_enabled":{}}}"#]],
    );
}

#[test]
fn shares_are_split_by_locality() {
    let shares = "{loadBalancer: {localityLbSetting: {distribute: [{from: 'eu/*', to: {'eu/a/*': 80, 'us/*': 20}}]}}}";
    check(
        shares,
        "{}",
        expect![[r#"
            0 10.0.0.1 weight 40
            0 10.0.0.2 weight 40
            0 10.0.0.4 weight 20
            {"healthy_panic_threshold":{},"locality_weighted_lb_config":{}}"#]],
    );
}

const KUBERNETES: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: default, labels: {app: web, topology.istio.io/locality: eu.a}}
spec: {nodeName: one, containers: []}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: same, namespace: default, labels: {app: web, topology.istio.io/locality: eu.a}}
spec: {nodeName: two, containers: []}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: default, labels: {app: web, topology.istio.io/locality: us.a}}
spec: {nodeName: three, containers: []}
status: {podIP: 10.0.0.3}
";

#[test]
fn a_service_may_prefer_near_endpoints() {
    let priorities = |service: &str, namespace: &str| {
        let yaml = format!(
            "{KUBERNETES}---
apiVersion: v1
kind: Namespace
metadata: {{name: default{namespace}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec: {{clusterIP: 10.1.0.1, selector: {{app: web}}, {service}ports: [{{name: http, port: 80}}]}}
"
        );
        let mut client = client();
        client["metadata"]["NODE_NAME"] = json!("two");
        client["labels"]["topology.istio.io/locality"] = json!("eu.a");
        let dump = dump_in_mesh(&yaml, "{}", &client);
        let assignment = json_of(&dump.endpoints[0]);
        let mut seen: Vec<(String, u64)> = Vec::new();
        for group in list(&assignment, "endpoints") {
            for endpoint in list(group, "lb_endpoints") {
                let address = &endpoint["endpoint"]["address"]["socket_address"];
                let priority = group["priority"].as_u64().unwrap_or(0);
                seen.push((text(address, "address").to_owned(), priority));
            }
        }
        seen.sort();
        seen.into_iter().map(|(_, priority)| priority).collect::<Vec<_>>()
    };
    let asked = ", annotations: {networking.istio.io/traffic-distribution: PreferClose}";
    assert_eq!(priorities("", ""), [0, 0, 0]);
    assert_eq!(priorities("trafficDistribution: PreferClose, ", ""), [0, 0, 1]);
    assert_eq!(priorities("trafficDistribution: PreferSameNode, ", ""), [1, 0, 2]);
    assert_eq!(priorities("", asked), [0, 0, 1]);
}

#[test]
fn status_codes_that_eject_endpoints_are_matched_by_the_cluster() {
    let policy =
        "{outlierDetection: {consecutive5xxErrors: 3, outlierDetectionHttpErrorCodes: [429, 503]}}";
    let dump = dump_in_mesh(&service(policy), "{}", &client());
    let own = cluster(&dump, "outbound|80||web.example.com");
    let options = &own["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
    let rules = &options["outlier_detection"]["error_matcher"]["or_match"]["rules"];
    let status = |rule: &Value| {
        rule["http_response_headers_match"]["headers"][0]["string_match"]["exact"].clone()
    };
    let codes: Vec<Value> = rules.as_array().expect("rules").iter().map(status).collect();
    assert_eq!(codes, [json!("429"), json!("503")]);
}

#[test]
fn a_pod_runs_where_its_node_is_unless_it_says_otherwise() {
    let yaml = r"
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: a, topology.istio.io/subzone: '1'}}
spec: {podCIDR: 10.0.0.0/24}
---
apiVersion: v1
kind: Node
metadata: {name: n2, labels: {failure-domain.beta.kubernetes.io/region: us}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: default, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: web}]}
status: {podIP: 10.0.0.1, phase: Running}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: default, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: web}]}
status: {podIP: 10.0.0.2, phase: Running}
---
apiVersion: v1
kind: Pod
metadata: {name: web-3, namespace: default, labels: {app: web, istio-locality: asia.c}}
spec: {nodeName: n1, containers: [{name: web}]}
status: {podIP: 10.0.0.3, phase: Running}
";
    let dump = dump_in_mesh(yaml, "{}", &client());
    let assignment = json_of(dump.endpoints.first().expect("endpoints"));
    let places: Vec<String> = list(&assignment, "endpoints")
        .iter()
        .map(|group| {
            let place = &group["locality"];
            let address = &group["lb_endpoints"][0]["endpoint"]["address"]["socket_address"];
            let place = ["region", "zone", "sub_zone"].map(|part| text(place, part));
            format!("{} {}", text(address, "address"), place.join("/"))
        })
        .collect();
    assert_eq!(places, ["10.0.0.3 asia/c/", "10.0.0.1 eu/a/1", "10.0.0.2 us//"]);
}

const REPLICAS: &str = r"
apiVersion: v1
kind: Service
metadata: {name: app, namespace: default}
spec: {clusterIP: 10.1.0.1, selector: {app: app}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: app, namespace: default}
spec: {host: app, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}, loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}}}
";

fn replica(number: u32, locality: &str, hash: &str, workload: &str) -> String {
    format!(
        r"---
apiVersion: v1
kind: Pod
metadata:
  name: {workload}-{hash}-{number}
  namespace: default
  labels: {{app: app, pod-template-hash: '{hash}', topology.istio.io/locality: {locality}}}
  ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: {workload}-{hash}, controller: true}}]
spec: {{containers: [{{name: app}}]}}
status: {{podIP: 10.0.0.{number}, phase: Running}}
"
    )
}

#[test]
fn a_proxy_knows_its_own_kind_within_its_region() {
    let pods = [
        replica(1, "eu.a", "1", "app"),
        replica(2, "eu.b", "1", "app"),
        replica(3, "us.a", "1", "app"),
        replica(4, "eu.b", "2", "app"),
        replica(5, "eu.a", "1", "other"),
    ];
    let yaml = format!("{REPLICAS}{}", pods.concat());
    let own = |mut proxy: Value| -> Option<Vec<String>> {
        proxy["metadata"]["WORKLOAD_NAME"] = json!("app");
        proxy["labels"]["pod-template-hash"] = json!("1");
        proxy["labels"]["topology.istio.io/locality"] = json!("eu.a");
        let dump = dump_in_mesh(&yaml, "{}", &proxy);
        let assignment = dump.endpoints.iter().find(|e| e.cluster_name == "local_cluster")?;
        let mut lines = Vec::new();
        for group in list(&json_of(assignment), "endpoints") {
            let zone = text(&group["locality"], "zone");
            let priority = group["priority"].as_u64().unwrap_or(0);
            for endpoint in list(group, "lb_endpoints") {
                let address = &endpoint["endpoint"]["address"]["socket_address"];
                lines.push(format!("{priority} {zone} {}", text(address, "address")));
            }
        }
        Some(lines)
    };
    let mut proxy = sidecar("10.0.0.1", "app");
    assert_eq!(own(proxy.clone()), None, "it did not ask");
    proxy["metadata"]["ENABLE_SELF_DISCOVERY"] = json!("true");
    assert_eq!(own(proxy), Some(vec!["0 a 10.0.0.1".to_owned(), "0 b 10.0.0.2".to_owned()]));
    let mut client = sidecar("10.0.9.1", "client");
    client["metadata"]["ENABLE_SELF_DISCOVERY"] = json!("true");
    assert_eq!(own(client), Some(vec![]), "it serves nothing");
}

#[test]
fn endpoints_weigh_what_they_report_if_the_rule_says_so() {
    let policy = "{loadBalancer: {backendUtilization: {errorUtilizationPenaltyPercent: 150, metricNamesForComputingUtilization: [named_metrics.a], weightUpdatePeriod: 2s, weightStabilizationPeriod: 3s, weightExpirationPeriod: 4s}, warmup: {duration: 5s}}}";
    let dump = dump_in_mesh(&service(policy), "{}", &client());
    let own = cluster(&dump, "outbound|80||web.example.com");
    let policies = list(&own["load_balancing_policy"], "policies");
    let typed = &policies[0]["typed_extension_config"];
    let name = "envoy.load_balancing_policies.client_side_weighted_round_robin";
    assert_eq!(text(typed, "name"), name);
    let mut config = typed["typed_config"].clone();
    let slow_start = config["slow_start_config"].take();
    assert_eq!(text(&slow_start, "slow_start_window"), "5s");
    let fields = config.as_object_mut().expect("fields");
    fields.remove("@type");
    fields.remove("slow_start_config");
    let want = json!({
        "error_utilization_penalty": 1.5,
        "metric_names_for_computing_utilization": ["named_metrics.a"],
        "weight_update_period": "2s",
        "blackout_period": "3s",
        "weight_expiration_period": "4s",
    });
    assert_eq!(config, want);
}
