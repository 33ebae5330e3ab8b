//! Limits of connections and requests, and how connections are used.

use anyhow::ensure;

use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("more requests than the pool allows are refused", overflow),
    ("connections end after their share of requests, or idle", ends),
    ("idle connections are kept alive", keepalive),
    ("requests are limited by rate", rate),
    ("a service limits the rate of requests", rate_by_service),
];

const OVERFLOW: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: pool}
spec:
  hosts: [pool.test]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: external.outside.svc.cluster.local, ports: {http: 80}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: pool}
spec:
  host: pool.test
  trafficPolicy:
    connectionPool:
      tcp: {maxConnections: 1, connectTimeout: 2s, tcpKeepalive: {time: 60s, interval: 10s, probes: 3}}
      http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 10}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: pool}
spec:
  hosts: [pool.test]
  http: [{retries: {attempts: 0}, route: [{destination: {host: pool.test}}]}]
";

fn overflow(mesh: &Mesh) {
    mesh.apply(OVERFLOW);
    mesh.until(|| {
        let asks = (0..8).map(|_| {
            let ask = mesh.get("client", "http://pool.test/pool").order("delay=400");
            ask.exchange()
        });
        let answers = mesh.run(futures_util::future::join_all(asks));
        let mut statuses = Vec::new();
        for answer in answers {
            let answer = answer?;
            if answer.status == 503 {
                ensure!(answer.header("x-envoy-overloaded") == Some("true"), "{answer:?}");
            }
            statuses.push(answer.status);
        }
        statuses.sort_unstable();
        // One at work, one waits for it.
        ensure!(statuses == [200, 200, 503, 503, 503, 503, 503, 503], "{statuses:?}");
        Ok(())
    });
    mesh.logged(
        "default",
        "client",
        &["/pool", " 503 UO upstream_reset_before_response_started{overflow}"],
    );
}

const ENDS: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ends}
spec:
  hosts: [share.ends.test, idle.ends.test, stays.ends.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: FIRST}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: share}
spec:
  host: share.ends.test
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: idle}
spec:
  host: idle.ends.test
  trafficPolicy: {connectionPool: {http: {idleTimeout: 200ms}}}
";

fn ends(mesh: &Mesh) {
    mesh.apply(&ENDS.replace("FIRST", &mesh.address("outside", "external-1")));
    let connections = |host: &str, requests: usize| {
        let mut peers = std::collections::BTreeSet::new();
        for _ in 0..requests {
            let answer = mesh.get("client", &format!("http://{host}/")).try_send()?;
            ensure!(answer.status == 200, "{answer:?}");
            peers.insert(answer.said("peer"));
        }
        Ok(peers.len())
    };
    mesh.until(|| {
        let used = connections("share.ends.test", 10)?;
        ensure!(used == 10, "{used} connections");
        Ok(())
    });
    // A connection for each worker of the proxy at most.
    mesh.until(|| {
        let used = connections("stays.ends.test", 40)?;
        assert!(used < 20, "{used} connections for 40 requests");
        Ok(())
    });
    mesh.until(|| {
        let before = connections("idle.ends.test", 1)?;
        // Its server takes longer than the others may be idle.
        let slow = mesh.get("client", "http://stays.ends.test/").order("delay=1000").try_send()?;
        ensure!(before == 1 && slow.status == 200, "{slow:?}");
        let stats = mesh.stats("client", "cluster.outbound|80||idle.ends.test");
        let idle = stats.iter().find(|(name, _)| name.ends_with("upstream_cx_idle_timeout"));
        ensure!(idle.is_some_and(|(_, value)| value != "0"), "{stats:?}");
        Ok(())
    });
}

const RATE: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: limited, labels: {app: limited}}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{name: portal, image: portal, args: [limited, '8080'], ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: limited}
spec: {selector: {app: limited}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: limited}
spec:
  workloadSelector: {labels: {app: limited}}
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_INBOUND
      listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.local_ratelimit
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
          stat_prefix: limited
          token_bucket: {max_tokens: 5, tokens_per_fill: 5, fill_interval: 3600s}
          filter_enabled: {default_value: {numerator: 100, denominator: HUNDRED}}
          filter_enforced: {default_value: {numerator: 100, denominator: HUNDRED}}
          response_headers_to_add:
          - {append_action: OVERWRITE_IF_EXISTS_OR_ADD, header: {key: x-limited, value: 'yes'}}
";

fn rate(mesh: &Mesh) {
    mesh.apply(RATE);
    let ask = || mesh.get("client", "http://limited/limited");
    // The filter may come after the first requests.
    let refused = mesh.until(|| {
        let answer = ask().try_send()?;
        ensure!(answer.status == 429, "{answer:?}");
        Ok(answer)
    });
    assert_eq!(refused.header("x-limited"), Some("yes"));
    assert_eq!(refused.body, "local_rate_limited");
    mesh.logged("default", "limited", &["/limited", " 429 RL "]);
    assert_eq!(ask().send().status, 429);
}

const RATE_BY_SERVICE: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: asking, labels: {app: asking}}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{name: portal, image: portal, args: [asking, '8080'], ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: asking}
spec: {selector: {app: asking}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: asking}
spec:
  workloadSelector: {labels: {app: asking}}
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_INBOUND
      listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.ratelimit
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
          domain: tests
          failure_mode_deny: true
          timeout: 5s
          rate_limit_service:
            transport_api_version: V3
            grpc_service:
              envoy_grpc: {cluster_name: 'outbound|7070||external.outside.svc.cluster.local'}
  - applyTo: VIRTUAL_HOST
    match: {context: SIDECAR_INBOUND}
    patch:
      operation: MERGE
      value:
        rate_limits:
        - actions: [{request_headers: {header_name: x-user, descriptor_key: user}}]
";

fn rate_by_service(mesh: &Mesh) {
    mesh.apply(RATE_BY_SERVICE);
    // Until its sidecar knows the service, the client reaches it without one,
    // and then for a moment not at all.
    mesh.until(|| {
        let answer = mesh.get("client", "http://asking/").try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        ensure!(answer.saw("x-forwarded-client-cert").is_some(), "{answer:?}");
        Ok(())
    });
    let ask = |user: &str| mesh.get("client", "http://asking/asking").header("x-user", user);
    let refused = mesh.until(|| {
        let answer = ask("greedy").try_send()?;
        ensure!(answer.status == 429, "{answer:?}");
        Ok(answer)
    });
    assert_eq!(refused.header("x-envoy-ratelimited"), Some("true"));
    for request in [ask("modest"), mesh.get("client", "http://asking/")] {
        let answer = request.send();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    mesh.logged("default", "asking", &["/asking", " 429 RL "]);
}

const KEEPALIVE: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: alive}
spec:
  hosts: [alive.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8081}]
  endpoints: [{address: ADDRESS}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: alive}
spec:
  host: alive.test
  trafficPolicy: {connectionPool: {tcp: {tcpKeepalive: {time: 7000s, interval: 75s, probes: 3}}}}
";

fn keepalive(mesh: &Mesh) {
    let address = mesh.address("outside", "external-1");
    mesh.apply(&KEEPALIVE.replace("ADDRESS", &address));
    let peer: std::net::Ipv4Addr = address.parse().expect("IPv4");
    // As the kernel shows it: bytes of the address the other way round.
    let peer = format!("{:08X}:{:04X}", u32::from(peer).swap_bytes(), 8081);
    mesh.until(|| {
        let answer = mesh.get("client", "http://alive.test/").try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        let sockets = mesh.ok(&["exec", "client", "--", "cat", "/proc/net/tcp"]);
        let waits = sockets.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (timer, when) = fields.get(5)?.split_once(':')?;
            // Established, and its timer is that of probes.
            let probed =
                fields.get(2) == Some(&&*peer) && fields.get(3) == Some(&"01") && timer == "02";
            probed.then(|| u64::from_str_radix(when, 16).unwrap_or(0))
        });
        // Hundredths of seconds; two hours are the kernel's own default.
        let waits: Vec<u64> = waits.collect();
        ensure!(waits.iter().any(|wait| (600_000..=700_000).contains(wait)), "{waits:?} of {peer}");
        Ok(())
    });
}
