//! Mutual TLS, required: who has no identity is refused, who has one is named.

use std::time::Instant;

use crate::harness::{Mesh, PATIENCE, get};

/// The page once more, without a sidecar, under a host name of its own.
const UNMESHED: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: legacy}
---
apiVersion: v1
kind: Service
metadata: {name: productpage, namespace: legacy}
spec:
  selector: {app: productpage}
  ports: [{name: http, port: 9080}]
---
apiVersion: v1
kind: Pod
metadata: {name: productpage, namespace: legacy, labels: {app: productpage}}
spec:
  containers:
    - name: productpage
      image: docker.io/istio/examples-bookinfo-productpage-v1:1.20.3
      env: [{name: SERVICES_DOMAIN, value: default}]
      ports: [{containerPort: 9080}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: legacy, namespace: default}
spec:
  hosts: [legacy.example]
  gateways: [bookinfo-gateway]
  http:
    - route: [{destination: {host: productpage.legacy.svc.cluster.local, port: {number: 9080}}}]
"#;

#[test]
fn strict_mode_refuses_who_has_no_identity() {
    let mesh = Mesh::start();
    mesh.apply_text(UNMESHED);
    let page = |fits: &dyn Fn(&str) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let page = get(&mesh.address, "legacy.example");
            if fits(&page) {
                return;
            }
            assert!(Instant::now() < deadline, "still {page}");
        }
    };
    page(&|page| page.contains("ISBN") && page.contains("Reviews served by"));

    mesh.under_load(|| mesh.apply(&["mtls-strict.yaml"]));
    page(&|page| {
        page.contains("product details are currently unavailable")
            && page.contains("product reviews are currently unavailable")
    });
    mesh.page();

    let named = |log: &str| {
        log.lines().any(|line| {
            line.contains("spiffe://cluster.local/ns/default/sa/bookinfo-productpage")
                && line.contains("spiffe://cluster.local/ns/default/sa/bookinfo-details")
        })
    };
    mesh.wait_for(&["logs", "details-v1", "-c", "istio-proxy"], named);
}
