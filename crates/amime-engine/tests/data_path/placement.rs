//! The same requests to a real Envoy and to us, and where they went.
//!
//! Both have the same listener, cluster and backends; what is compared is the
//! endpoint of each request, where that is decided by the request alone.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Backend, Proxy, cluster, http_listener, http_listener_yaml, routes};

/// Backends of every scenario.
pub(crate) const BACKENDS: [&str; 6] = ["e0", "e1", "e2", "e3", "e4", "e5"];

/// A real Envoy; killed when dropped.
pub(crate) struct Envoy {
    process: Child,
    pub(crate) address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Envoy {
    pub(crate) async fn start(listener: &str, cluster: &str) -> Self {
        Self::part_of("", listener, &[cluster]).await
    }

    /// With `shell` outside of its static resources.
    pub(crate) async fn part_of(shell: &str, listener: &str, clusters: &[&str]) -> Self {
        let binary = std::env::var_os("AMIME_ENVOY").expect("AMIME_ENVOY names an Envoy binary");
        let dir = tempfile::tempdir().expect("a directory");
        let item = |yaml: &str| -> String {
            let indent = |(number, line): (usize, &str)| match number {
                0 => format!("  - {line}\n"),
                _ => format!("    {line}\n"),
            };
            yaml.lines().enumerate().map(indent).collect()
        };
        let bootstrap = format!(
            "{shell}admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n\
             static_resources:\n  listeners:\n{}  clusters:\n{}",
            item(listener),
            clusters.iter().map(|cluster| item(cluster)).collect::<String>()
        );
        let file = dir.path().join("bootstrap.yaml");
        std::fs::write(&file, &bootstrap).expect("writable");
        let admin = dir.path().join("admin");
        let mut process = Command::new(binary)
            .arg("-c")
            .arg(&file)
            .arg("--admin-address-path")
            .arg(&admin)
            .args(["--concurrency", "1", "--use-dynamic-base-id", "-l", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("Envoy starts");
        let mut listeners = String::new();
        while !listeners.contains("http::127.0.0.1:") {
            if process.try_wait().expect("a child").is_some() {
                panic!("Envoy refuses\n{bootstrap}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            let address = std::fs::read_to_string(&admin).unwrap_or_default();
            let Ok(address) = address.trim().parse::<SocketAddr>() else { continue };
            let ready = "GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
            if exchange(address, ready).await.contains("LIVE") {
                let list = "GET /listeners HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
                listeners = exchange(address, list).await;
            }
        }
        let at = listeners.split("http::").nth(1).and_then(|rest| rest.lines().next());
        let address = at.and_then(|at| at.trim().parse().ok()).expect("the listener's address");
        Self { process, address, _dir: dir }
    }
}

pub(crate) async fn exchange(address: SocketAddr, request: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(address).await else { return String::new() };
    let mut answer = Vec::new();
    if stream.write_all(request.as_bytes()).await.is_ok() {
        let _ = stream.read_to_end(&mut answer).await;
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// What a scenario consists of.
struct Scenario<'a> {
    name: &'a str,
    /// Fields of the cluster.
    cluster: &'a str,
    /// Localities with `lb_endpoints`, `@0` standing for a backend's address.
    endpoints: &'a str,
    /// Fields of the route beside its cluster.
    route: &'a str,
    /// How the turns are compared.
    compare: Compare,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Compare {
    /// Request by request, over more than one endpoint.
    Each,
    /// Request by request, of the first ones.
    First,
    /// Only how many of all go to each, in percent give or take.
    Shares(usize),
}

/// Requests that differ in all that hashes are made of.
fn request(number: usize) -> String {
    let more = match number % 3 {
        0 => String::new(),
        1 => format!("x-list: b{number}\r\nx-list: a{number}\r\n"),
        _ => format!("cookie: other=1; user=\"c{number}\"; user=second\r\n"),
    };
    format!(
        "GET /p{}?a=1&q=v{number}&q=w HTTP/1.1\r\nhost: h{}.example\r\nx-user: user-{number}\r\n{more}\r\n",
        number % 50,
        number % 7,
    )
}

/// Bodies of the answers, or their status where it is not 200. One request
/// after the other: Envoy ends connections on which its own answers pile up.
pub(crate) async fn placements(address: SocketAddr, count: usize) -> Vec<String> {
    let mut stream = TcpStream::connect(address).await.expect("the proxy accepts");
    let mut text = String::new();
    let mut bodies = Vec::with_capacity(count);
    for number in 0..count {
        stream.write_all(request(number).as_bytes()).await.expect("the proxy reads");
        let body = loop {
            if let Some(body) = answer(&text) {
                break body;
            }
            let mut more = [0; 4096];
            let count = stream.read(&mut more).await.expect("the proxy answers");
            assert!(count > 0, "closed after {number} requests");
            text.push_str(std::str::from_utf8(&more[..count]).expect("text"));
        };
        bodies.push(body);
        text.clear();
    }
    bodies
}

/// What a whole answer shows; `None` while it is incomplete.
fn answer(text: &str) -> Option<String> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let head = head.to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|text| text.lines().next());
    let length: usize = length.and_then(|text| text.parse().ok()).unwrap_or(0);
    let status = head.split(' ').nth(1).unwrap_or_default();
    (body.len() >= length).then(|| if status == "200" { body } else { status }.to_owned())
}

async fn check(scenario: Scenario<'_>) {
    let mut backends = Vec::new();
    for name in BACKENDS {
        backends.push(Backend::named(name).await);
    }
    let mut endpoints = scenario.endpoints.to_owned();
    for (index, backend) in backends.iter().enumerate() {
        let address = format!(
            "address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}",
            backend.address.port()
        );
        endpoints = endpoints.replace(&format!("@{index}"), &address);
    }
    let yaml = format!(
        "name: c\nconnect_timeout: 1s\n{}\nload_assignment:\n  cluster_name: c\n{endpoints}",
        scenario.cluster
    );
    let route = format!("- match: {{prefix: /}}\n  route: {{cluster: c, {}}}", scenario.route);
    let hcm = routes(&route);
    let envoy = Envoy::start(&http_listener_yaml(&hcm), &yaml).await;
    let proxy = Proxy::with(vec![http_listener(&hcm), cluster(&yaml)]).await;
    let count = if scenario.compare == Compare::First { 100 } else { 1500 };
    let want = placements(envoy.address, count).await;
    let got = placements(proxy.address(), count).await;
    compare(&scenario, &want, &got);
}

#[track_caller]
fn compare(scenario: &Scenario<'_>, want: &[String], got: &[String]) {
    let name = scenario.name;
    match scenario.compare {
        Compare::Each | Compare::First => {
            let differ = (0..want.len()).find(|at| want[*at] != got[*at]);
            assert_eq!(
                differ.map(|at| (at, &want[at], &got[at])),
                None,
                "{name}: first difference"
            );
            let one = want.iter().all(|place| *place == want[0]);
            assert!(!one || scenario.compare == Compare::First, "{name}: all at {}", want[0]);
        }
        Compare::Shares(tolerance) => {
            for backend in BACKENDS {
                let share = |list: &[String]| {
                    list.iter().filter(|one| *one == backend).count() * 100 / list.len()
                };
                let (want, got) = (share(want), share(got));
                assert!(want.abs_diff(got) <= tolerance, "{name}: {backend}: {want} and {got} %");
            }
        }
    }
}

/// Six endpoints of one priority, known by keys that stay the same.
const KEYED: &str = "  endpoints:
  - lb_endpoints:
    - {endpoint: {@0, hostname: n0}, load_balancing_weight: 1, metadata: {filter_metadata: {envoy.lb: {hash_key: k0, version: a, stage: x}}}}
    - {endpoint: {@1, hostname: n1}, load_balancing_weight: 2, metadata: {filter_metadata: {envoy.lb: {hash_key: k1, version: a, stage: y}}}}
    - {endpoint: {@2, hostname: n2}, load_balancing_weight: 5, metadata: {filter_metadata: {envoy.lb: {hash_key: k2, version: b, stage: x}}}}
    - {endpoint: {@3, hostname: n3}, load_balancing_weight: 1, metadata: {filter_metadata: {envoy.lb: {hash_key: k3, version: [b, c], stage: y}}}}
    - {endpoint: {@4, hostname: n4}, metadata: {filter_metadata: {envoy.lb: {version: b, only: 1}}}}
    - {endpoint: {@5, hostname: n5}, load_balancing_weight: 3}
";

/// The same without weights and metadata: known by address.
const PLAIN: &str = "  endpoints:
  - lb_endpoints:
    - {endpoint: {@0, hostname: n0}}
    - {endpoint: {@1, hostname: n1}}
    - {endpoint: {@2, hostname: n2}}
    - {endpoint: {@3, hostname: n3}}
    - {endpoint: {@4, hostname: n4}}
    - {endpoint: {@5, hostname: n5}}
";

/// Localities of two priorities, some endpoints unhealthy or degraded.
const FAILOVER: &str = "  endpoints:
  - locality: {region: r, zone: z2}
    load_balancing_weight: 3
    lb_endpoints:
    - {metadata: {filter_metadata: {envoy.lb: {hash_key: k0}}}, endpoint: {@0}}
    - {metadata: {filter_metadata: {envoy.lb: {hash_key: k1}}}, endpoint: {@1}, health_status: UNHEALTHY}
  - locality: {region: r, zone: z1}
    load_balancing_weight: 1
    lb_endpoints:
    - {metadata: {filter_metadata: {envoy.lb: {hash_key: k2}}}, endpoint: {@2}, health_status: DRAINING}
    - {metadata: {filter_metadata: {envoy.lb: {hash_key: k3}}}, endpoint: {@3}, health_status: DEGRADED}
  - locality: {region: r, zone: z1}
    load_balancing_weight: 1
    priority: 1
    lb_endpoints:
    - {metadata: {filter_metadata: {envoy.lb: {hash_key: k4}}}, endpoint: {@4}}
    - {metadata: {filter_metadata: {envoy.lb: {hash_key: k5}}}, endpoint: {@5}}
";

const BY_USER: &str = "hash_policy: [{header: {header_name: x-user}}]";

async fn hashed(name: &str, cluster: &str, endpoints: &str) {
    check(Scenario { name, cluster, endpoints, route: BY_USER, compare: Compare::Each }).await;
}

#[tokio::test]
async fn ring_hash_places_as_envoy_does() {
    hashed("default ring", "lb_policy: RING_HASH", KEYED).await;
    hashed("ring by address", "lb_policy: RING_HASH", PLAIN).await;
    let murmur = "lb_policy: RING_HASH\nring_hash_lb_config: {minimum_ring_size: 100, maximum_ring_size: 237, hash_function: MURMUR_HASH_2}";
    hashed("small ring of murmur hashes", murmur, KEYED).await;
    let named = "type: STRICT_DNS\nlb_policy: RING_HASH\ncommon_lb_config: {consistent_hashing_lb_config: {use_hostname_for_hashing: true}}";
    hashed("ring by name", named, PLAIN).await;
}

#[tokio::test]
async fn maglev_places_as_envoy_does() {
    hashed("default table", "lb_policy: MAGLEV", KEYED).await;
    hashed("table by address", "lb_policy: MAGLEV", PLAIN).await;
    let small = "type: STRICT_DNS\nlb_policy: MAGLEV\nmaglev_lb_config: {table_size: 1009}\ncommon_lb_config: {consistent_hashing_lb_config: {use_hostname_for_hashing: true}}";
    hashed("small table by name", small, KEYED).await;
}

#[tokio::test]
async fn hashing_heeds_health_priorities_and_localities() {
    for policy in ["RING_HASH", "MAGLEV"] {
        let by = |more: &str| format!("lb_policy: {policy}\ncommon_lb_config: {{{more}}}");
        hashed("failover", &by(""), FAILOVER).await;
        hashed("localities", &by("locality_weighted_lb_config: {}"), FAILOVER).await;
        hashed("panic", &by("healthy_panic_threshold: {value: 80}"), FAILOVER).await;
        hashed("no panic", &by("healthy_panic_threshold: {value: 0}"), FAILOVER).await;
        let bad = FAILOVER.replace("{@4}", "{@4}, health_status: TIMEOUT");
        let bad = bad.replace("{@5}", "{@5}, health_status: UNHEALTHY");
        hashed("panic everywhere", &by(""), &bad.replace("DEGRADED", "UNHEALTHY")).await;
    }
}

#[tokio::test]
async fn typed_policies_place_as_envoy_does() {
    let policy = |name: &str, fields: &str| {
        format!(
            "load_balancing_policy:\n  policies:\n  - typed_extension_config:\n      name: unknown\n      typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.{name}, {fields}}}"
        )
    };
    let ring =
        policy("ring_hash.v3.RingHash", "hash_function: MURMUR_HASH_2, minimum_ring_size: 50");
    hashed("typed ring", &ring, KEYED).await;
    let ring = policy("ring_hash.v3.RingHash", "locality_weighted_lb_config: {}");
    hashed("typed ring of localities", &ring, FAILOVER).await;
    let own = policy(
        "maglev.v3.Maglev",
        "table_size: 2039, consistent_hashing_lb_config: {use_hostname_for_hashing: true, hash_policy: [{query_parameter: {name: q}}]}",
    );
    hashed("typed table with a hash policy of its own", &own, KEYED).await;
}

#[tokio::test]
async fn requests_hash_as_in_envoy() {
    let policies = [
        "[{header: {header_name: x-list}}]",
        "[{header: {header_name: x-user, regex_rewrite: {pattern: {regex: '^user-(\\d)(\\d*)$'}, substitution: '\\2-\\1'}}}]",
        "[{header: {header_name: ':path'}}]",
        "[{header: {header_name: ':authority'}}, {header: {header_name: 'x-user'}}]",
        "[{cookie: {name: user}}, {query_parameter: {name: q}}]",
        "[{cookie: {name: user}, terminal: true}, {header: {header_name: x-list}, terminal: true}, {header: {header_name: x-user}}]",
        "[{query_parameter: {name: a}}, {query_parameter: {name: q}}, {query_parameter: {name: q}}]",
        "[{connection_properties: {source_ip: true}}, {header: {header_name: x-user}}]",
        "[{connection_properties: {source_ip: false}}, {header: {header_name: x-user}}]",
    ];
    for policy in policies {
        let route = format!("hash_policy: {policy}");
        // Requests without anything to hash go anywhere.
        let list = policy.contains("x-list") && !policy.contains("x-user");
        let route = if list {
            route
                .replace("}]", "}, {header: {header_name: x-user}}]")
                .replace("}}, {header", "}, terminal: true}, {header")
        } else {
            route
        };
        let cluster = "lb_policy: MAGLEV";
        check(Scenario {
            name: policy,
            cluster,
            endpoints: KEYED,
            route: &route,
            compare: Compare::Each,
        })
        .await;
    }
}

#[tokio::test]
async fn weighted_turns_are_those_of_envoy() {
    let check = async |name: &str, cluster: &str, endpoints: &str, compare| {
        check(Scenario { name, cluster, endpoints, route: "timeout: 5s", compare }).await;
    };
    check("weights", "lb_policy: ROUND_ROBIN", KEYED, Compare::Shares(1)).await;
    check("no weights", "lb_policy: ROUND_ROBIN", PLAIN, Compare::Shares(0)).await;
    check("weighted least request", "lb_policy: LEAST_REQUEST", KEYED, Compare::Shares(1)).await;
    check("random ignores weights", "lb_policy: RANDOM", KEYED, Compare::Shares(6)).await;
    check("least request", "lb_policy: LEAST_REQUEST", PLAIN, Compare::Shares(6)).await;
    let localities = "common_lb_config: {locality_weighted_lb_config: {}}";
    check("localities", localities, FAILOVER, Compare::Shares(6)).await;
    check("priorities", "lb_policy: ROUND_ROBIN", FAILOVER, Compare::Shares(6)).await;
    let panic = "common_lb_config: {healthy_panic_threshold: {value: 90}}";
    check("panic", panic, FAILOVER, Compare::Shares(6)).await;
    let fail = "common_lb_config: {healthy_panic_threshold: {value: 90}, zone_aware_lb_config: {fail_traffic_on_panic: true}}";
    check("failing in panic", fail, FAILOVER, Compare::Shares(6)).await;
    let more = FAILOVER.to_owned()
        + "  policy: {overprovisioning_factor: 100, weighted_priority_health: true}\n";
    check("overprovisioning", "lb_policy: ROUND_ROBIN", &more, Compare::Shares(6)).await;
}

#[tokio::test]
async fn subsets_are_those_of_envoy() {
    let subsets = |config: &str| format!("lb_policy: MAGLEV\nlb_subset_config: {{{config}}}");
    let wanted = |metadata: &str| {
        format!("{BY_USER}, metadata_match: {{filter_metadata: {{envoy.lb: {{{metadata}}}}}}}")
    };
    let selectors = "subset_selectors: [{keys: [version]}, {keys: [stage, version], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [version]}, {keys: [only], single_host_per_subset: true}, {keys: [stage], fallback_policy: NO_FALLBACK}]";
    let configs = [
        format!("fallback_policy: ANY_ENDPOINT, {selectors}"),
        format!("fallback_policy: DEFAULT_SUBSET, default_subset: {{stage: x}}, {selectors}"),
        format!("fallback_policy: NO_FALLBACK, list_as_any: true, {selectors}"),
        format!(
            "fallback_policy: DEFAULT_SUBSET, default_subset: {{stage: none}}, panic_mode_any: true, {selectors}"
        ),
        format!(
            "fallback_policy: NO_FALLBACK, metadata_fallback_policy: FALLBACK_LIST, {selectors}"
        ),
    ];
    let routes = [
        "version: b",
        "version: b, stage: x",
        "version: b, stage: none",
        "version: c",
        "only: 1",
        "stage: none",
        "unknown: 1",
        "version: none, fallback_list: [{stage: none}, {version: a}]",
    ];
    for config in &configs {
        for route in routes {
            let name = format!("{config} and {route}");
            let (cluster, route) = (subsets(config), wanted(route));
            let compare = Compare::First;
            check(Scenario {
                name: &name,
                cluster: &cluster,
                endpoints: KEYED,
                route: &route,
                compare,
            })
            .await;
        }
    }
}

/// The same requests to both, each on a connection of its own: status, the
/// headers named in `shown` and the body must agree.
async fn alike(hcm: &str, yaml: &str, shown: &[&str], requests: &[String]) {
    let envoy = Envoy::start(&http_listener_yaml(hcm), yaml).await;
    let proxy = Proxy::with(vec![http_listener(hcm), cluster(yaml)]).await;
    for request in requests {
        let request = format!("{request}connection: close\r\n\r\n");
        let see = |answer: String| {
            let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
            let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let lines = head.lines().filter(|line| {
                shown.iter().any(|name| line.to_ascii_lowercase().starts_with(name))
            });
            (status, lines.map(str::to_owned).collect::<Vec<_>>(), body.to_owned())
        };
        let want = see(exchange(envoy.address, &request).await);
        let got = see(exchange(proxy.address(), &request).await);
        assert_eq!(got, want, "{request}");
    }
}

/// A listener with a stateful session filter of these YAML fields.
fn with_session(fields: &str, session: &str) -> String {
    let name = if session.contains("header.v3") { "header" } else { "cookie" };
    format!(
        "{}http_filters:
- name: envoy.filters.http.stateful_session
  typed_config:
    \"@type\": type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSession
    {fields}
    session_state:
      name: envoy.http.stateful_session.{name}
      typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.http.stateful_session.{session}}}
- name: router
  typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
",
        routes("- match: {prefix: /off}\n  route: {cluster: c}\n  typed_per_filter_config: {envoy.filters.http.stateful_session: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute, disabled: true}}\n- match: {prefix: /}\n  route: {cluster: c}")
    )
}

#[tokio::test]
async fn sessions_are_those_of_envoy() {
    use base64::Engine;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let cookie_of = |address: &str, tail: &[u8]| {
        let length = u8::try_from(address.len()).expect("short");
        encode(&[&[10, length], address.as_bytes(), tail].concat())
    };
    let (only, gone) = (Backend::named("only").await, "127.0.0.1:1");
    let yaml = crate::harness::endpoints_cluster_yaml("c", &[only.address], "");
    let here = only.address.to_string();
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: h\r\n{more}");
    let mut requests = vec![get("/p", ""), get("/q", ""), get("/p/x", ""), get("/px", "")];
    requests.push(get("/off", &format!("x-sess: {}\r\n", encode(gone.as_bytes()))));
    for value in [
        cookie_of(&here, b""),
        cookie_of(gone, b""),
        cookie_of(&here, b"\x10\x01"),
        encode(here.as_bytes()),
        "%%%".to_owned(),
        encode(b"hello"),
        encode(gone.as_bytes()),
    ] {
        requests.push(get("/p", &format!("cookie: a=b; sess=\"{value}\"\r\nx-sess: {value}\r\n")));
    }
    for (fields, session) in [
        (
            "strict: false",
            "cookie.v3.CookieBasedSessionState, cookie: {name: sess, path: /p, attributes: [{name: SameSite, value: Lax}]}",
        ),
        (
            "{strict: true, status_on_strict_destination_not_found: 410}",
            "cookie.v3.CookieBasedSessionState, cookie: {name: sess}",
        ),
        ("strict: false", "header.v3.HeaderBasedSessionState, name: x-sess"),
        ("strict: true", "header.v3.HeaderBasedSessionState, name: x-sess"),
    ] {
        let fields = fields.trim_matches(['{', '}']).replace(", ", "\n    ");
        let hcm = with_session(&fields, session);
        alike(&hcm, &yaml, &["set-cookie", "x-sess"], &requests).await;
    }
}

#[tokio::test]
async fn a_header_can_name_the_endpoint() {
    let mut backends = Vec::new();
    for name in ["e0", "e1", "e2"] {
        backends.push(Backend::named(name).await);
    }
    let addresses: Vec<SocketAddr> = backends.iter().map(|backend| backend.address).collect();
    // Without one that is there, the fallback always gives the same.
    let policy = "load_balancing_policy:
  policies:
  - typed_extension_config:
      name: envoy.load_balancing_policies.override_host
      typed_config:
        \"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost
        override_host_sources: [{header: x-first}, {header: x-second}]
        fallback_policy:
          policies:
          - typed_extension_config:
              name: envoy.load_balancing_policies.maglev
              typed_config: {\"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.maglev.v3.Maglev}";
    let yaml = crate::harness::endpoints_cluster_yaml("c", &addresses, policy);
    let hcm = routes(
        "- match: {prefix: /}\n  route: {cluster: c, hash_policy: [{header: {header_name: host}}]}",
    );
    let get = |more: String| format!("GET / HTTP/1.1\r\nhost: h\r\n{more}");
    let requests = [
        get(String::new()),
        get(format!("x-first: {}\r\n", addresses[0])),
        get(format!("x-first: {}\r\n", addresses[1])),
        get(format!("x-second: {}\r\n", addresses[2])),
        get(format!("x-second: {}\r\nx-first: {}\r\n", addresses[2], addresses[1])),
        get(format!("x-first: 127.0.0.1:1, {}\r\n", addresses[1])),
        get("x-first: 127.0.0.1:1\r\n".to_owned()),
        get(format!("x-first: 127.0.0.1:1\r\nx-second: {}\r\n", addresses[1])),
        get("x-first: nonsense\r\n".to_owned()),
    ];
    alike(&hcm, &yaml, &[], &requests).await;
}

/// Sends the same request again and again while no answer comes, and notes
/// which backend each one reaches.
async fn overflow(
    start: impl AsyncFn(&str, &str) -> (SocketAddr, Box<dyn std::any::Any>),
) -> Vec<usize> {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let mut backends = Vec::new();
    for _ in 0..4 {
        let gate = gate.clone();
        backends.push(
            Backend::start_async(move |_| {
                let gate = gate.clone();
                async move {
                    let _ = gate.acquire().await;
                    http::Response::new("late".into())
                }
            })
            .await,
        );
    }
    let mut yaml = "name: c\nlb_policy: MAGLEV\ncommon_lb_config: {consistent_hashing_lb_config: {hash_balance_factor: 130}}\nload_assignment:\n  cluster_name: c\n  endpoints:\n  - lb_endpoints:\n".to_owned();
    for (index, backend) in backends.iter().enumerate() {
        yaml.push_str(&format!(
            "    - {{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}, load_balancing_weight: {}, metadata: {{filter_metadata: {{envoy.lb: {{hash_key: k{index}}}}}}}}}\n",
            backend.address.port(),
            index + 1,
        ));
    }
    let hcm = routes(&format!("- match: {{prefix: /}}\n  route: {{cluster: c, {BY_USER}}}"));
    let (address, _running) = start(&hcm, &yaml).await;
    let (mut clients, mut reached) = (Vec::new(), Vec::new());
    for number in 0..40 {
        let before: Vec<usize> = backends.iter().map(Backend::count).collect();
        let mut client = TcpStream::connect(address).await.expect("the proxy accepts");
        let user = number % 3;
        let request = format!("GET / HTTP/1.1\r\nhost: h\r\nx-user: u{user}\r\n\r\n");
        client.write_all(request.as_bytes()).await.expect("the proxy reads");
        clients.push(client);
        let at = loop {
            match (0..4).find(|at| backends[*at].count() > before[*at]) {
                Some(at) => break at,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        reached.push(at);
    }
    gate.close();
    reached
}

#[tokio::test]
async fn requests_overflow_to_the_same_endpoints_as_in_envoy() {
    let want = overflow(async |hcm: &str, yaml: &str| {
        let envoy = Envoy::start(&http_listener_yaml(hcm), yaml).await;
        (envoy.address, Box::new(envoy) as Box<dyn std::any::Any>)
    })
    .await;
    let got = overflow(async |hcm: &str, yaml: &str| {
        let proxy = Proxy::of_one_worker();
        proxy.apply(vec![http_listener(hcm), cluster(yaml)]).await;
        (proxy.address(), Box::new(proxy) as Box<dyn std::any::Any>)
    })
    .await;
    assert_eq!(got, want);
}
