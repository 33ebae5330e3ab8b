//! Who sees what: `exportTo`, namespaces and short names.

use std::time::UNIX_EPOCH;

use anyhow::ensure;

use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("routes and services are seen where they are exported to", exported),
    ("short names are those of the route's namespace", short_names),
    ("of two routes for a host the older one counts", precedence),
];

const EXPORTED: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: private}
spec:
  hosts: [private.test]
  exportTo: ['.']
  http: [{directResponse: {status: 290}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: for-other}
spec:
  hosts: [for-other.test]
  exportTo: [other]
  http: [{directResponse: {status: 291}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: public}
spec:
  hosts: [public.test]
  exportTo: ['*']
  http: [{directResponse: {status: 292}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: private-entry}
spec:
  hosts: [private-entry.test]
  addresses: [240.3.3.3]
  exportTo: ['.']
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: external.outside.svc.cluster.local, ports: {http: 80}}]
---
apiVersion: v1
kind: Service
metadata: {name: private-service, annotations: {networking.istio.io/exportTo: .}}
spec:
  selector: {app: app}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

fn exported(mesh: &Mesh) {
    mesh.apply(EXPORTED);
    let status = |pod: &str, host: &str| {
        let answer = mesh.get(pod, "http://app.default/").host(host).try_send();
        answer.map(|answer| answer.status)
    };
    for (pod, host, want) in [
        ("client", "private.test", 290),
        ("client", "public.test", 292),
        ("stranger", "public.test", 292),
        ("stranger", "for-other.test", 291),
        // Nobody knows the host: the client gets where it wanted to.
        ("stranger", "private.test", 200),
        ("client", "for-other.test", 200),
    ] {
        mesh.until(|| {
            let got = status(pod, host)?;
            ensure!(got == want, "{pod} gets {got} of {host}");
            Ok(())
        });
    }
    // Names come after the routes.
    mesh.until(|| mesh.resolve("client", "private-entry.test"));
    mesh.resolve("stranger", "private-entry.test").expect_err("seen in its namespace only");
    let clusters = |pod: &str, namespace: &str| {
        let args = ["-n", namespace, "proxy-config", "cluster", pod, "--fqdn", "private-service"];
        mesh.ok(&args).lines().skip(1).count()
    };
    assert_eq!((clusters("client", "default"), clusters("stranger", "other")), (1, 0));
}

const SHORT: &str = r"
apiVersion: v1
kind: Service
metadata: {name: twin, namespace: default}
spec: {selector: {app: app, version: v1}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: twin, namespace: other}
spec: {selector: {app: far}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: twin, namespace: default}
spec:
  hosts: [short-default.test]
  http: [{route: [{destination: {host: twin}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: twin, namespace: other}
spec:
  hosts: [short-other.test]
  http: [{route: [{destination: {host: twin}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: twin-itself, namespace: other}
spec:
  hosts: [twin]
  http: [{headers: {request: {set: {x-rule: other}}}, route: [{destination: {host: twin}}]}]
";

fn short_names(mesh: &Mesh) {
    mesh.apply(SHORT);
    for (host, want, rule) in [
        ("short-default.test", "app-v1", None),
        ("short-other.test", "far", None),
        ("twin.other", "far", Some("other")),
        ("twin.other.svc.cluster.local", "far", Some("other")),
        ("twin", "app-v1", None),
        ("twin.default.svc", "app-v1", None),
    ] {
        mesh.until(|| {
            let answer = mesh.get("client", "http://app/").host(host).try_send()?;
            ensure!(answer.pod().as_deref() == Some(want), "{host}: {answer:?}");
            ensure!(answer.saw("x-rule").as_deref() == rule, "{host}: {answer:?}");
            Ok(())
        });
    }
}

fn precedence(mesh: &Mesh) {
    let route = |name: &str, namespace: &str, status: u16| {
        mesh.apply(&format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{hosts: [precedence.test], http: [{{directResponse: {{status: {status}}}}}]}}\n"
        ));
    };
    let gets = |want: u16| {
        mesh.until(|| {
            let answer = mesh.get("client", "http://app/").host("precedence.test").try_send()?;
            ensure!(answer.status == want, "{answer:?}");
            Ok(())
        });
    };
    // Ages are told in seconds.
    let second = || UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    let before = second();
    route("precedence-b", "other", 290);
    gets(290);
    mesh.until(|| {
        ensure!(second() > before + 1, "still the same second");
        Ok(())
    });
    route("precedence-a", "default", 291);
    // A route that comes later, so that the one before has arrived.
    mesh.apply(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {name: precedence-mark}\n\
         spec: {hosts: [precedence-mark.test], http: [{directResponse: {status: 292}}]}\n",
    );
    mesh.until(|| {
        let answer = mesh.get("client", "http://app/").host("precedence-mark.test").try_send()?;
        ensure!(answer.status == 292, "{answer:?}");
        Ok(())
    });
    gets(290);
    mesh.delete("other", &["virtualservice", "precedence-b"]);
    gets(291);
}
