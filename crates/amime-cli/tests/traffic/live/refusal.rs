//! Objects that cannot be used: what was there stays, and the error says why.

use anyhow::ensure;

use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("a faulty object is refused with its field, and changes nothing", faulty),
    ("a proxy refuses what it cannot do, keeps what it had and takes what comes", refused),
];

const GOOD: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: kept}
spec:
  hosts: [kept.test]
  http:
  - match: [{uri: {regex: /a+}}]
    directResponse: {status: 290}
  - directResponse: {status: 291}
";

fn faulty(mesh: &Mesh) {
    mesh.apply(GOOD);
    let status = || mesh.get("client", "http://app/aa").host("kept.test").try_send();
    let stays = || {
        mesh.until(|| {
            let answer = status()?;
            ensure!(answer.status == 290, "{answer:?}");
            Ok(())
        });
    };
    stays();
    for (good, bad, named) in [
        ("/a+", "'/(a'", "spec.http[0].match[0].uri.regex"),
        ("{status: 291}", "{status: 9}", "spec.http[1].directResponse.status"),
        ("status: 290", "statuz: 290", "statuz"),
        ("hosts: [kept.test]", "hosts: []", "hosts"),
    ] {
        let said = mesh.refused(&GOOD.replace(good, bad));
        assert!(said.contains(named) && said.contains("kept"), "{named} is not in {said}");
        assert!(said.contains(".yaml:"), "no position in {said}");
    }
    // All or nothing: the good one beside a faulty one is not applied either.
    let both = GOOD.replace("290", "292") + "---\n" + &GOOD.replace("name: kept", "name: kept-too");
    mesh.refused(&both.replace("hosts: [kept.test]\n  http:\n  - match: [{uri: {regex: /a+}}]\n    directResponse: {status: 290}", "hosts: [x y]"));
    stays();
}

const UNUSABLE: &str = r"
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: unusable}
spec:
  workloadSelector: {labels: {app: client}}
  configPatches:
  - applyTo: CLUSTER
    match: {context: SIDECAR_OUTBOUND}
    patch:
      operation: ADD
      value:
        name: unusable
        connect_timeout: 1s
        cluster_type:
          name: envoy.clusters.aggregate
          typed_config:
            '@type': type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig
            clusters: [a, b]
";

const AFTER: &str = r"
apiVersion: v1
kind: Service
metadata: {name: after-refusal}
spec: {selector: {app: app}, ports: [{name: http, port: 80, targetPort: 8080}]}
";

fn refused(mesh: &Mesh) {
    let _ = mesh.apply_loosely(UNUSABLE);
    mesh.until(|| {
        let output = mesh.amime(&["proxy-status"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        ensure!(text.contains("unusable") && text.contains("cluster_type"), "{text}");
        Ok(())
    });
    mesh.logged("default", "client", &["unusable", "cluster_type"]);
    mesh.apply(AFTER);
    mesh.until(|| {
        let answer = mesh.get("client", "http://after-refusal/").try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        ensure!(answer.saw("x-forwarded-client-cert").is_some(), "passed through: {answer:?}");
        Ok(())
    });
    mesh.delete("default", &["envoyfilter", "unusable"]);
    mesh.until(|| {
        let output = mesh.amime(&["proxy-status"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!text.contains("unusable"), "{text}");
        Ok(())
    });
}
