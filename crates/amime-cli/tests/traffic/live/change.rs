//! Objects come and go; no request fails and no connection ends.

use anyhow::ensure;

use crate::Test;
use crate::client::exchange;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] =
    &[("configuration changes without a failed request or a closed connection", changes)];

const ALWAYS: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: live}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 7007, name: http, protocol: HTTP}
    hosts: [live.test]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: live}
spec:
  hosts: [live.test, live-target]
  gateways: [mesh, live]
  http:
  - match: [{uri: {prefix: /}}]
    route: [{destination: {host: live-target, port: {number: 80}}}]
---
apiVersion: v1
kind: Service
metadata: {name: live-target}
spec:
  selector: {live: target}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9000}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: live-v1}
spec:
  replicas: 1
  selector: {matchLabels: {live: target, version: v1}}
  template:
    metadata: {labels: {live: target, version: v1}}
    spec:
      terminationGracePeriodSeconds: 2
      containers: [{name: portal, image: portal, args: [live-v1, '8080,9000'], ports: [{containerPort: 8080}, {containerPort: 9000}]}]
";

/// A second version, and routes that send everything there.
const SECOND: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: live-v2}
spec:
  replicas: 1
  selector: {matchLabels: {live: target, version: v2}}
  template:
    metadata: {labels: {live: target, version: v2}}
    spec:
      terminationGracePeriodSeconds: 2
      containers: [{name: portal, image: portal, args: [live-v2, '8080,9000'], ports: [{containerPort: 8080}, {containerPort: 9000}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: live}
spec:
  host: live-target
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}, trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: live}
spec:
  hosts: [live.test, live-target]
  gateways: [mesh, live]
  http: [{route: [{destination: {host: live-target, subset: SUBSET, port: {number: 80}}}]}]
";

/// More that comes and goes beside it: listeners, clusters, endpoints.
const BESIDE: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: live-beside}
spec:
  hosts: [live-beside.test]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 7123, name: http-other, protocol: HTTP}]
  endpoints: [{address: external.outside.svc.cluster.local, ports: {http: 80, http-other: 8081}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: live-beside}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 7007, name: http, protocol: HTTP}
    hosts: [live-beside.test]
  - port: {number: 7008, name: http-beside, protocol: HTTP}
    hosts: [live-beside.test]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: live-beside}
spec:
  hosts: [live-beside.test]
  gateways: [live-beside]
  http: [{route: [{destination: {host: live-beside.test, port: {number: 80}}}]}]
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: live-beside}
spec:
  workloadSelector: {labels: {live: target}}
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_INBOUND
      listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.header_mutation
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
          mutations: {request_mutations: [{append: {header: {key: x-beside, value: 'yes'}}}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: live-beside}
spec: {selector: {matchLabels: {live: target}}, mtls: {mode: STRICT}}
";

fn changes(mesh: &Mesh) {
    mesh.apply(ALWAYS);
    let inside = mesh.get("client", "http://live-target/");
    let outside = mesh.get("visitor", "http://edge.istio-system:7007/").host("live.test");
    for ask in [&inside, &outside] {
        mesh.until(|| {
            let answer = ask.clone().try_send()?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        });
    }
    let mut tcp = mesh.until(|| {
        mesh.run(async {
            let (mut stream, _) = mesh.dial("client", "live-target:9000").await?;
            let heard = exchange(&mut stream, b"ping", "live-v1 ping".len()).await?;
            ensure!(heard == "live-v1 ping", "{heard}");
            Ok(stream)
        })
    });
    let mut goes_on = || {
        let heard = mesh.run(exchange(&mut tcp, b"ping", "live-v1 ping".len()));
        assert_eq!(heard.expect("the connection stays"), "live-v1 ping");
    };
    let ready = |deployment: &str, count: usize| {
        mesh.until(|| {
            let pods = mesh.ok(&["get", "pods"]);
            let ready = pods.lines().filter(|l| l.starts_with(deployment) && l.contains("2/2"));
            ensure!(ready.count() == count, "{pods}");
            Ok(())
        });
    };
    let pod = |want: &str| {
        for ask in [&inside, &outside] {
            mesh.until(|| {
                let answer = ask.clone().try_send()?;
                ensure!(answer.pod().as_deref() == Some(want), "{answer:?}");
                Ok(())
            });
        }
    };
    mesh.under_load(&[inside.clone(), outside.clone()], || {
        mesh.apply(&SECOND.replace("SUBSET", "v1"));
        pod("live-v1");
        ready("live-v2", 1);
        mesh.apply(&SECOND.replace("SUBSET", "v2"));
        pod("live-v2");
        mesh.apply(BESIDE);
        mesh.until(|| {
            for port in [7007, 7008] {
                let url = format!("http://edge.istio-system:{port}/");
                let answer = mesh.get("visitor", &url).host("live-beside.test").try_send()?;
                ensure!(answer.status == 200, "{answer:?}");
            }
            let answer = inside.clone().try_send()?;
            ensure!(answer.saw("x-beside").as_deref() == Some("yes"), "{answer:?}");
            Ok(())
        });
        goes_on();
        for (kind, name) in [
            ("gateway", "live-beside"),
            ("virtualservice", "live-beside"),
            ("serviceentry", "live-beside"),
            ("envoyfilter", "live-beside"),
            ("peerauthentication", "live-beside"),
        ] {
            mesh.delete("default", &[kind, name]);
        }
        mesh.until(|| {
            let answer = inside.clone().try_send()?;
            ensure!(answer.saw("x-beside").is_none(), "{answer:?}");
            Ok(())
        });
        mesh.ok(&["scale", "deployment/live-v2", "--replicas", "3"]);
        ready("live-v2", 3);
        mesh.ok(&["scale", "deployment/live-v2", "--replicas", "1"]);
        mesh.until(|| {
            let pods = mesh.ok(&["get", "pods"]);
            ensure!(pods.lines().filter(|l| l.starts_with("live-v2")).count() == 1, "{pods}");
            Ok(())
        });
        mesh.apply(ALWAYS);
        mesh.delete("default", &["destinationrule", "live"]);
        pod("live-v1");
    });
    goes_on();
}
