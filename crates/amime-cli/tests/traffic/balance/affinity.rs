//! Requests that belong together go to the same endpoint.

use std::collections::BTreeSet;

use anyhow::ensure;

use crate::Test;
use crate::client::Ask;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] =
    &[("hashes of requests choose the endpoint", hashes), ("cookies make sessions stick", cookies)];

const HASHES: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hashes}
spec:
  hosts: [by-header.test, by-query.test, by-source.test, by-maglev.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: FIRST}, {address: SECOND}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: by-header}
spec:
  host: by-header.test
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: by-query}
spec:
  host: by-query.test
  trafficPolicy: {loadBalancer: {consistentHash: {httpQueryParameterName: user}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: by-source}
spec:
  host: by-source.test
  trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: by-maglev}
spec:
  host: by-maglev.test
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user, maglev: {tableSize: 1009}}}}
";

/// Both servers outside, by address.
fn external(mesh: &Mesh, yaml: &str) -> String {
    let [first, second] = ["external-1", "external-2"].map(|pod| mesh.address("outside", pod));
    yaml.replace("FIRST", &first).replace("SECOND", &second)
}

/// The pods that answer twenty users, each of whom has to stay with one.
fn settled<'m>(ask: impl Fn(usize) -> Ask<'m>) -> anyhow::Result<usize> {
    let mut pods = BTreeSet::new();
    for user in 0..20 {
        let first = ask(user).try_send()?.pod();
        ensure!(first.is_some(), "a proxy answered");
        for _ in 0..3 {
            let pod = ask(user).try_send()?.pod();
            ensure!(pod == first, "user {user} moved from {first:?} to {pod:?}");
        }
        pods.insert(first);
    }
    Ok(pods.len())
}

fn hashes(mesh: &Mesh) {
    mesh.apply(&external(mesh, HASHES));
    let user = |n: usize| format!("user-{n}");
    for host in ["by-header.test", "by-maglev.test"] {
        let ask = |n| mesh.get("client", &format!("http://{host}/")).header("x-user", &user(n));
        assert_eq!(mesh.until(|| settled(ask)), 2, "{host}");
    }
    let ask = |n| mesh.get("client", &format!("http://by-query.test/?user={}", user(n)));
    assert_eq!(mesh.until(|| settled(ask)), 2);
    let ask = |_| mesh.get("client", "http://by-source.test/");
    assert_eq!(mesh.until(|| settled(ask)), 1);
}

const COOKIES: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: cookies}
spec:
  hosts: [cookies.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: FIRST}, {address: SECOND}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cookies}
spec:
  host: cookies.test
  trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: session, path: /, ttl: 60s}}}}
";

fn cookies(mesh: &Mesh) {
    mesh.apply(&external(mesh, COOKIES));
    let ask = || mesh.get("client", "http://cookies.test/");
    let mut pods = BTreeSet::new();
    mesh.until(|| {
        let answer = ask().try_send()?;
        let cookie = answer.header("set-cookie").map(str::to_owned);
        let cookie = cookie.ok_or_else(|| anyhow::anyhow!("no cookie in {answer:?}"))?;
        assert!(cookie.contains("Max-Age=60") && cookie.contains("Path=/"), "{cookie}");
        let pair = cookie.split(';').next().expect("a pair");
        for _ in 0..5 {
            let again = ask().header("cookie", pair).send();
            assert_eq!(again.pod(), answer.pod());
            assert_eq!(again.header("set-cookie"), None);
        }
        pods.extend(answer.pod());
        ensure!(pods.len() == 2, "{pods:?}");
        Ok(())
    });
}
