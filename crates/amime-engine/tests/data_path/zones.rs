//! Shares of zones, with a real Envoy and with us.

use amime_engine::runtime::LocalCluster;

use crate::harness::{Backend, Proxy, cluster, http_listener, http_listener_yaml, routes};
use crate::placement::{BACKENDS, Envoy, placements};

/// Zone of each of six backends, and how many proxies run in each zone; ours
/// runs in `z1`.
struct Scenario<'a> {
    name: &'a str,
    fields: &'a str,
    zones: [&'a str; 6],
    proxies: &'a [(&'a str, usize)],
}

fn locality(zone: &str) -> String {
    format!("{{region: r, zone: {zone}}}")
}

/// The cluster of proxies; nothing is ever sent there.
fn own(proxies: &[(&str, usize)]) -> String {
    let mut yaml = "name: own\nload_assignment:\n  cluster_name: own\n  endpoints:\n".to_owned();
    for (at, (zone, count)) in proxies.iter().enumerate() {
        yaml.push_str(&format!("  - locality: {}\n    lb_endpoints:\n", locality(zone)));
        for number in 0..*count {
            yaml.push_str(&format!("    - endpoint: {{address: {{socket_address: {{address: 127.1.{at}.{number}, port_value: 9}}}}}}\n"));
        }
    }
    yaml
}

async fn check(scenario: Scenario<'_>) {
    let mut yaml = format!(
        "name: c\n{}\nload_assignment:\n  cluster_name: c\n  endpoints:\n",
        scenario.fields
    );
    let mut backends = Vec::new();
    for (name, zone) in BACKENDS.iter().zip(scenario.zones) {
        let backend = Backend::named(name).await;
        let port = backend.address.port();
        yaml.push_str(&format!("  - locality: {}\n    lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]\n", locality(zone)));
        backends.push(backend);
    }
    let own = own(scenario.proxies);
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: c}");
    let shell = format!(
        "node: {{id: tests, cluster: tests, locality: {}}}\ncluster_manager: {{local_cluster_name: own}}\n",
        locality("z1")
    );
    let envoy = Envoy::part_of(&shell, &http_listener_yaml(&hcm), &[&yaml, &own]).await;
    let place = ["r", "z1", ""].map(Into::into);
    let proxy = Proxy::part_of(LocalCluster::new("own", Some(place)));
    proxy.apply(vec![http_listener(&hcm), cluster(&yaml), cluster(&own)]).await;
    let want = placements(envoy.address, 1500).await;
    let got = placements(proxy.address(), 1500).await;
    for backend in BACKENDS {
        let share =
            |list: &[String]| list.iter().filter(|one| *one == backend).count() * 100 / 1500;
        let (want, got) = (share(&want), share(&got));
        assert!(want.abs_diff(got) <= 5, "{}: {backend}: {want} and {got} %", scenario.name);
    }
}

fn typed(name: &str, zone: &str) -> String {
    format!(
        "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: p, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.{name}, locality_lb_config: {{zone_aware_lb_config: {{{zone}}}}}}}}}}}]}}"
    )
}

#[tokio::test]
async fn requests_stay_in_the_zone_as_far_as_with_envoy() {
    let even = ["z1", "z1", "z2", "z2", "z3", "z3"];
    let check = async |name: &str, fields: &str, zones, proxies: &[(&str, usize)]| {
        check(Scenario { name, fields, zones, proxies }).await;
    };
    let three: &[_] = &[("z1", 2), ("z2", 2), ("z3", 2)];
    check("all stay", "", even, three).await;
    check("least request too", "lb_policy: LEAST_REQUEST", even, three).await;
    check("random too", "lb_policy: RANDOM", even, three).await;
    check("some leave", "", ["z1", "z2", "z2", "z2", "z3", "z3"], &[("z1", 3), ("z2", 3)]).await;
    check("nobody is here", "", ["z2", "z2", "z2", "z3", "z4", "z4"], three).await;
    check("one zone of proxies", "", even, &[("z1", 3)]).await;
    check("proxies elsewhere", "", even, &[("z2", 3), ("z3", 1)]).await;
    let size = "common_lb_config: {zone_aware_lb_config: {min_cluster_size: 7}}";
    check("too small", size, even, three).await;
    let half = "common_lb_config: {zone_aware_lb_config: {routing_enabled: {value: 50}}}";
    check("half of them", half, even, three).await;
    let off = "common_lb_config: {zone_aware_lb_config: {routing_enabled: {value: 0}}}";
    check("switched off", off, even, three).await;
}

#[tokio::test]
async fn typed_policies_heed_zones_as_envoy_does() {
    let check = async |name: &str, fields: &str, zones, proxies: &[(&str, usize)]| {
        check(Scenario { name, fields, zones, proxies }).await;
    };
    let few_here = ["z1", "z2", "z2", "z2", "z3", "z3"];
    let many: &[_] = &[("z1", 6), ("z2", 1)];
    let round = |zone: &str| typed("round_robin.v3.RoundRobin", zone);
    check("without force", &round(""), few_here, many).await;
    check("forced", &round("force_local_zone: {}"), few_here, many).await;
    check("forced from two on", &round("force_local_zone: {min_size: 2}"), few_here, many).await;
    check("forced among one kind", &round("force_local_zone: {}"), few_here, &[("z1", 1)]).await;
    let random = typed("random.v3.Random", "force_local_zone: {}");
    check("forced random", &random, few_here, many).await;
    let weight = typed("least_request.v3.LeastRequest", "locality_basis: HEALTHY_HOSTS_WEIGHT");
    check("by weight", &weight, few_here, many).await;
}
