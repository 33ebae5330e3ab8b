//! Picks from clusters given as YAML, without a connection.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use amime_config::cluster::ClusterConfig;
use amime_config::endpoint::{AssignmentSpec, EndpointSet, Resolved, Spread};
use amime_config::endpoint_state::ClusterState;
use amime_config::host_cache::HostCaches;
use amime_config::names::Names;
use amime_config::secrets::{NoSecrets, SecretStore};
use amime_config::{Compiler, Node};
use amime_rules::criteria::Criteria;
use amime_rules::retry::Reselect;
use amime_telemetry::{Telemetry, TelemetryOptions};
use amime_xds::json::from_yaml;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::google::protobuf as wkt;

use super::{RetryInput, SharedLb};
use crate::{ClusterSpec, Outcome, Pool};

/// Nothing is connected here.
impl Pool for () {
    fn take(&self) -> Self {}

    fn clear(&self) {}
}

type ClusterRuntime = crate::ClusterRuntime<()>;
type Host = crate::Host<()>;
type LbInput<'a> = super::LbInput<'a, ()>;

/// A cluster `c`; `@N` in its endpoints stands for the address `10.0.x.y:80`
/// of endpoint N.
struct Fixture {
    telemetry: Arc<Telemetry>,
    cluster: Rc<ClusterRuntime>,
}

fn address(number: usize) -> String {
    format!("10.0.{}.{}", number / 250, number % 250)
}

impl Fixture {
    fn new(fields: &str, endpoints: &str) -> Self {
        let mut text = String::new();
        let mut parts = endpoints.split('@');
        text.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let digits = part.find(|char: char| !char.is_ascii_digit()).unwrap_or(part.len());
            let (number, rest) = part.split_at(digits);
            let address = address(number.parse().expect("a number"));
            text.push_str(&format!(
                "endpoint: {{address: {{socket_address: {{address: {address}, port_value: 80}}}}}}{rest}"
            ));
        }
        let message: Cluster = from_yaml(&format!(
            "name: c\n{fields}\nload_assignment:\n  cluster_name: c\n  endpoints:\n{text}"
        ))
        .expect("cluster YAML");
        let telemetry = Telemetry::new(TelemetryOptions::default());
        let secrets = SecretStore::new(Arc::new(NoSecrets));
        let mut names = Names::default();
        let node = Node::default();
        let mut caches = HostCaches::default();
        let mut compiler = Compiler::new(&mut names, &mut caches, &secrets, &telemetry, &node);
        let config = Arc::new(ClusterConfig::compile(&message, &mut compiler).expect("compiles"));
        let assignment = message.load_assignment.expect("given");
        let assignment = AssignmentSpec::compile(&assignment, &config, &mut compiler.faults);
        assert_eq!(compiler.faults.into_list(), vec![]);
        let endpoints = assignment.resolve(&Resolved::default(), Spread::Each, None, 1);
        let cluster = Self::runtime(&telemetry, config, endpoints);
        Self { telemetry, cluster }
    }

    fn runtime(
        telemetry: &Arc<Telemetry>,
        config: Arc<ClusterConfig>,
        endpoints: EndpointSet,
    ) -> Rc<ClusterRuntime> {
        let spec = Arc::new(ClusterSpec {
            config,
            endpoints: Arc::new(endpoints),
            state: Arc::new(ClusterState::default()),
            lb: SharedLb::default(),
            local: None,
        });
        ClusterRuntime::new(spec, None, &telemetry.worker(), 0)
    }

    /// How often each endpoint is picked, by its number.
    fn picks(&self, count: usize, input: LbInput<'_>) -> BTreeMap<String, usize> {
        let mut picks = BTreeMap::new();
        for _ in 0..count {
            let host = self.cluster.choose(input);
            *picks.entry(name(host.as_deref())).or_default() += 1;
        }
        picks
    }
}

fn name(host: Option<&Host>) -> String {
    host.map_or("none".to_owned(), |host| {
        let std::net::IpAddr::V4(ip) = host.endpoint.address.ip() else { unreachable!("IPv4") };
        let [_, _, high, low] = ip.octets();
        format!("{}", usize::from(high) * 250 + usize::from(low))
    })
}

#[track_caller]
fn check(picks: &BTreeMap<String, usize>, want: &[(&str, usize)], tolerance: usize) {
    let all = want
        .iter()
        .all(|(name, count)| picks.get(*name).copied().unwrap_or(0).abs_diff(*count) <= tolerance);
    let known = picks.keys().all(|name| want.iter().any(|(wanted, _)| wanted == name));
    assert!(all && known, "{picks:?} instead of {want:?}");
}

/// Endpoints `0..count` of one priority.
fn plain(count: usize) -> String {
    let mut text = "  - lb_endpoints:\n".to_owned();
    for number in 0..count {
        text.push_str(&format!("    - {{@{number}}}\n"));
    }
    text
}

const LOCALITIES: &str = "  - locality: {zone: b}
    load_balancing_weight: 3
    lb_endpoints: [{@0}, {@1}]
  - locality: {zone: a}
    load_balancing_weight: 1
    lb_endpoints: [{@2}, {@3}]
  - locality: {zone: c}
    lb_endpoints: [{@4}]
";

#[test]
fn localities_take_turns_by_weight() {
    let weighted = "common_lb_config: {locality_weighted_lb_config: {}}";
    let fixture = Fixture::new(weighted, LOCALITIES);
    let want = [("0", 150), ("1", 150), ("2", 50), ("3", 50)];
    check(&fixture.picks(400, LbInput::default()), &want, 2);
    // Half of a locality makes up for 70 % of it.
    let half = LOCALITIES.replace("{@1}", "{@1, health_status: UNHEALTHY}");
    let fixture = Fixture::new(weighted, &half);
    check(&fixture.picks(310, LbInput::default()), &[("0", 210), ("2", 50), ("3", 50)], 2);
    let fixture = Fixture::new("lb_policy: ROUND_ROBIN", LOCALITIES);
    let want = [("0", 20), ("1", 20), ("2", 20), ("3", 20), ("4", 20)];
    check(&fixture.picks(100, LbInput::default()), &want, 0);
}

#[test]
fn a_change_of_health_is_heeded_by_the_next_pick() {
    let outlier = "outlier_detection: {consecutive_5xx: 1, max_ejection_percent: 100}";
    let fixture = Fixture::new(outlier, &plain(4));
    check(&fixture.picks(8, LbInput::default()), &[("0", 2), ("1", 2), ("2", 2), ("3", 2)], 0);
    fixture.cluster.each_host(|host| {
        if name(Some(host.as_ref())) == "0" {
            fixture.cluster.observe(host, Outcome::Status(503));
        }
    });
    check(&fixture.picks(9, LbInput::default()), &[("1", 3), ("2", 3), ("3", 3)], 0);
}

#[test]
fn ten_thousand_endpoints_are_no_trouble() {
    for policy in ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV"] {
        let fixture = Fixture::new(&format!("lb_policy: {policy}"), &plain(10_000));
        let picks = fixture.picks(20_000, LbInput::default());
        assert!(picks.len() > 5000, "{policy}: {} endpoints", picks.len());
        if policy == "ROUND_ROBIN" {
            assert!(picks.values().all(|count| *count == 2));
        }
    }
}

#[test]
fn workers_share_tables_and_start_apart() {
    let fixture = Fixture::new("lb_policy: MAGLEV", &plain(50));
    let spec = &fixture.cluster.spec;
    let other = ClusterRuntime::new(spec.clone(), None, &fixture.telemetry.worker(), 1);
    let tables = spec.lb.tables(spec, &fixture.cluster.stats);
    assert!(Arc::ptr_eq(&tables, &spec.lb.tables(spec, &other.stats)));
    for hash in 0..100 {
        let input = LbInput {
            hash: Some(u64::wrapping_mul(hash, 0x9e37_79b9_7f4a_7c15)),
            ..LbInput::default()
        };
        let (one, two) = (fixture.cluster.choose(input), other.choose(input));
        assert_eq!(name(one.as_deref()), name(two.as_deref()));
    }
}

#[test]
fn least_request_leaves_busy_endpoints_alone() {
    let idle_first = |fields: &str, endpoints: &str| {
        let fixture = Fixture::new(fields, endpoints);
        fixture.cluster.each_host(|host| {
            host.active.set(if name(Some(host.as_ref())) == "0" { 0 } else { 40 });
        });
        fixture.picks(400, LbInput::default())
    };
    let choices = "lb_policy: LEAST_REQUEST\nleast_request_lb_config: {choice_count: 8}";
    assert!(idle_first(choices, &plain(4))["0"] > 330);
    let scan = "load_balancing_policy: {policies: [{typed_extension_config: {name: l, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest, selection_method: FULL_SCAN}}}]}";
    check(&idle_first(scan, &plain(4)), &[("0", 400)], 0);
    let weighted = plain(4).replace("{@1}", "{@1, load_balancing_weight: 2}");
    let picks = idle_first("lb_policy: LEAST_REQUEST", &weighted);
    // Weights 41, 2, 1 and 1.
    check(&picks, &[("0", 364), ("1", 18), ("2", 9), ("3", 9)], 3);
    let unbiased = "lb_policy: LEAST_REQUEST\nleast_request_lb_config: {active_request_bias: {default_value: 0}}";
    let picks = idle_first(unbiased, &weighted);
    check(&picks, &[("0", 80), ("1", 160), ("2", 80), ("3", 80)], 1);
}

const MARKED: &str = "  - lb_endpoints:
    - {@0, metadata: {filter_metadata: {envoy.lb: {canary: true}}}}
    - {@1, metadata: {filter_metadata: {envoy.lb: {old: 1}}}}
    - {@2}
  - priority: 1
    lb_endpoints: [{@3}]
";

#[test]
fn retries_stay_away_from_what_the_route_says() {
    let fixture = Fixture::new("lb_policy: ROUND_ROBIN", MARKED);
    let mut hosts = Vec::new();
    fixture.cluster.each_host(|host| hosts.push(host.clone()));
    let after = |tried: &[Rc<Host>], reselect: &Reselect| {
        let retry = Some(RetryInput { tried, reselect });
        fixture.picks(300, LbInput { retry, ..LbInput::default() })
    };
    let many = |reselect: Reselect| Reselect { limit: 20, ..reselect };
    let previous = many(Reselect { previous_hosts: true, ..Reselect::default() });
    check(&after(&hosts[2..3], &previous), &[("0", 150), ("1", 150)], 2);
    check(&after(&hosts[..2], &previous), &[("2", 300)], 0);
    let canaries = many(Reselect { canaries: true, ..Reselect::default() });
    check(&after(&hosts[2..3], &canaries), &[("1", 150), ("2", 150)], 2);
    let value = wkt::Value { kind: Some(wkt::value::Kind::NumberValue(1.0)) };
    let old = Criteria::from_pairs([("old", value)]);
    let omit = many(Reselect { omit: vec![old, Criteria::default()], ..Reselect::default() });
    check(&after(&hosts[2..3], &omit), &[("0", 150), ("2", 150)], 2);
    let priorities = Reselect { priorities_after: Some(1), ..Reselect::default() };
    check(&after(&hosts[2..3], &priorities), &[("3", 300)], 0);
    let all = [hosts[0].clone(), hosts[3].clone()];
    check(&after(&all, &priorities), &[("0", 100), ("1", 100), ("2", 100)], 0);
}

#[test]
fn subsets_can_heed_locality_weights() {
    let endpoints = "  - locality: {zone: a}
    load_balancing_weight: 4
    lb_endpoints:
    - {@0, metadata: {filter_metadata: {envoy.lb: {v: 1}}}}
    - {@1, metadata: {filter_metadata: {envoy.lb: {v: 2}}}}
    - {@2, metadata: {filter_metadata: {envoy.lb: {v: 2}}}}
    - {@3, metadata: {filter_metadata: {envoy.lb: {v: 2}}}}
  - locality: {zone: b}
    load_balancing_weight: 4
    lb_endpoints: [{@4, metadata: {filter_metadata: {envoy.lb: {v: 1}}}}]
";
    let value = wkt::Value { kind: Some(wkt::value::Kind::NumberValue(1.0)) };
    let wanted = Criteria::from_pairs([("v", value)]);
    let metadata = amime_rules::criteria::MetadataMatch {
        base: wanted.clone(),
        all: wanted,
        alternatives: None,
    };
    let input = LbInput { metadata: Some(&metadata), ..LbInput::default() };
    let picks = |more: &str| {
        let fields = format!(
            "common_lb_config: {{locality_weighted_lb_config: {{}}}}\nlb_subset_config: {{subset_selectors: [{{keys: [v]}}], {more}}}"
        );
        Fixture::new(&fields, endpoints).picks(200, input)
    };
    check(&picks(""), &[("0", 100), ("4", 100)], 0);
    check(&picks("locality_weight_aware: true"), &[("0", 100), ("4", 100)], 1);
    let scaled = picks("locality_weight_aware: true, scale_locality_weight: true");
    check(&scaled, &[("0", 40), ("4", 160)], 1);
}

#[test]
fn a_session_stays_with_its_endpoint_while_that_is_usable() {
    let endpoints =
        "  - lb_endpoints: [{@0, health_status: DRAINING}, {@1}, {@2, health_status: DEGRADED}]\n";
    let at = |fixture: &Fixture, number: usize| {
        let address = format!("{}:80", address(number)).parse().expect("an address");
        name(fixture.cluster.session(address).as_deref())
    };
    let fixture = Fixture::new("lb_policy: RANDOM", endpoints);
    assert_eq!([0, 1, 2, 3].map(|number| at(&fixture, number)), ["none", "1", "2", "none"]);
    let draining = "common_lb_config: {override_host_status: {statuses: [DRAINING, UNKNOWN]}}";
    let fixture = Fixture::new(draining, endpoints);
    assert_eq!([0, 1, 2].map(|number| at(&fixture, number)), ["0", "1", "none"]);
}

#[test]
fn without_endpoints_there_is_nothing_to_pick() {
    for policy in ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV"] {
        let fixture = Fixture::new(&format!("lb_policy: {policy}"), "  - lb_endpoints: []\n");
        check(&fixture.picks(3, LbInput::default()), &[("none", 3)], 0);
        let bad = "  - lb_endpoints: [{@0, health_status: UNHEALTHY}]\n";
        let off =
            format!("lb_policy: {policy}\ncommon_lb_config: {{healthy_panic_threshold: {{}}}}");
        check(&Fixture::new(&off, bad).picks(3, LbInput::default()), &[("none", 3)], 0);
        let fixture = Fixture::new(&format!("lb_policy: {policy}"), bad);
        check(&fixture.picks(3, LbInput::default()), &[("0", 3)], 0);
    }
}
