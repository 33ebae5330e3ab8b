//! Which DestinationRule counts.

use anyhow::ensure;

use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("rules are looked up with the client, then with the service", lookup),
    ("rules for selected workloads come first", selected),
    ("subsets and ports have settings of their own", ports),
];

/// A rule that is seen by what upstream connections speak.
fn lookup(mesh: &Mesh) {
    let rule = |name: &str, namespace: &str, policy: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{host: looked-up.outside.svc.cluster.local, trafficPolicy: {{\
             connectionPool: {{http: {{h2UpgradePolicy: {policy}}}}}}}}}\n---\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: looked-up, namespace: outside}\n\
                   spec: {selector: {app: external}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\n";
    let check = |pod: &str, want: &str| {
        mesh.until(|| {
            let answer = mesh.get(pod, "http://looked-up.outside/").try_send()?;
            ensure!(answer.status == 200 && answer.said("version") == want, "{pod}: {answer:?}");
            Ok(())
        });
    };
    mesh.apply(&(service.to_owned() + &rule("looked-up", "outside", "UPGRADE")));
    check("client", "HTTP/2.0");
    check("stranger", "HTTP/2.0");
    mesh.apply(&rule("looked-up", "default", "DO_NOT_UPGRADE"));
    check("client", "HTTP/1.1");
    check("stranger", "HTTP/2.0");
    mesh.delete("default", &["destinationrule", "looked-up"]);
    check("client", "HTTP/2.0");
    mesh.delete("outside", &["destinationrule", "looked-up"]);
    mesh.apply(&rule("looked-up", "istio-system", "UPGRADE"));
    check("client", "HTTP/2.0");
    mesh.delete("istio-system", &["destinationrule", "looked-up"]);
    check("client", "HTTP/1.1");
}

const SELECTED: &str = r"
apiVersion: v1
kind: Service
metadata: {name: chosen, namespace: outside}
spec: {selector: {app: external}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: chosen-for-all}
spec:
  host: chosen.outside.svc.cluster.local
  trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: chosen-for-client}
spec:
  host: chosen.outside.svc.cluster.local
  workloadSelector: {matchLabels: {app: client}}
  trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}}
---
apiVersion: v1
kind: Pod
metadata: {name: unchosen, labels: {app: unchosen}}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{name: portal, image: portal, args: [unchosen]}]
";

fn selected(mesh: &Mesh) {
    mesh.apply(SELECTED);
    for (pod, want) in [("unchosen", "HTTP/2.0"), ("client", "HTTP/1.1")] {
        mesh.until(|| {
            let answer = mesh.get(pod, "http://chosen.outside/").try_send()?;
            ensure!(answer.status == 200 && answer.said("version") == want, "{pod}: {answer:?}");
            Ok(())
        });
    }
}

const PORTS: &str = r"
apiVersion: v1
kind: Service
metadata: {name: ports, namespace: outside}
spec:
  selector: {app: external}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: http-other, port: 81, targetPort: 8081}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ports}
spec:
  host: ports.outside.svc.cluster.local
  trafficPolicy:
    connectionPool: {http: {h2UpgradePolicy: UPGRADE}}
    portLevelSettings:
    - port: {number: 81}
      connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}
  subsets:
  - name: plain
    labels: {app: external}
    trafficPolicy:
      connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}
      portLevelSettings:
      - port: {number: 81}
        connectionPool: {http: {h2UpgradePolicy: UPGRADE}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ports}
spec:
  hosts: [ports.outside.svc.cluster.local]
  http:
  - match: [{uri: {prefix: /subset}, port: 80}]
    route: [{destination: {host: ports.outside.svc.cluster.local, subset: plain, port: {number: 80}}}]
  - match: [{uri: {prefix: /subset}, port: 81}]
    route: [{destination: {host: ports.outside.svc.cluster.local, subset: plain, port: {number: 81}}}]
  - match: [{port: 81}]
    route: [{destination: {host: ports.outside.svc.cluster.local, port: {number: 81}}}]
  - route: [{destination: {host: ports.outside.svc.cluster.local, port: {number: 80}}}]
";

fn ports(mesh: &Mesh) {
    mesh.apply(PORTS);
    for (url, want) in [
        ("http://ports.outside/", "HTTP/2.0"),
        ("http://ports.outside:81/", "HTTP/1.1"),
        ("http://ports.outside/subset", "HTTP/1.1"),
        ("http://ports.outside:81/subset", "HTTP/2.0"),
    ] {
        mesh.until(|| {
            let answer = mesh.get("client", url).try_send()?;
            ensure!(answer.status == 200 && answer.said("version") == want, "{url}: {answer:?}");
            Ok(())
        });
    }
}
