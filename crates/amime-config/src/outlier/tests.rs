//! Which endpoints are taken out, and for how long.

use std::net::SocketAddr;

use super::*;
use crate::endpoint::HealthStatus;
use crate::tls::UpstreamTransport;

struct Cluster {
    outlier: Outlier,
    state: ClusterState,
    stats: ClusterStats,
    endpoints: Vec<Arc<Endpoint>>,
}

fn some(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn cluster(endpoints: u16, change: impl FnOnce(&mut pb::OutlierDetection)) -> Cluster {
    let mut value = pb::OutlierDetection::default();
    change(&mut value);
    let mut faults = Faults::default();
    let outlier = Outlier::compile(&value, &mut faults);
    assert!(!faults.fatal());
    let endpoint = |port| {
        Arc::new(Endpoint {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            more: Vec::new(),
            checked_as: Default::default(),
            hostname: "".into(),
            weight: 1,
            status: HealthStatus::Healthy,
            priority: 0,
            transport: UpstreamTransport::Raw,
            transport_index: 0,
            peer: None,
            lb: None,
            state: Arc::new(EndpointState::new(1)),
        })
    };
    Cluster {
        outlier,
        state: ClusterState::default(),
        stats: ClusterStats::default(),
        endpoints: (1..=endpoints).map(endpoint).collect(),
    }
}

impl Cluster {
    fn ejector(&self) -> Ejector<'_> {
        let Self { outlier, state, stats, endpoints } = self;
        Ejector { outlier, cluster: state, stats, total: endpoints.len() }
    }

    fn report(&self, endpoint: usize, outcomes: &[Outcome]) {
        let state = &self.endpoints[endpoint].state;
        for outcome in outcomes {
            let found = state.observe(*outcome, &self.outlier, &state.shards[0]);
            found.into_iter().flatten().for_each(|kind| self.ejector().eject(state, kind));
        }
    }

    fn sweep(&self) {
        self.ejector().sweep(&self.endpoints.iter().collect::<Vec<_>>());
    }

    fn out(&self) -> Vec<usize> {
        (0..self.endpoints.len()).filter(|at| self.endpoints[*at].state.ejected()).collect()
    }
}

const BAD: Outcome = Outcome::Status(500);
const GATEWAY: Outcome = Outcome::Status(503);
const GOOD: Outcome = Outcome::Status(200);

#[test]
fn failures_in_a_row_take_an_endpoint_out() {
    let one = cluster(2, |value| value.max_ejection_percent = some(50));
    one.report(0, &[BAD, BAD, BAD, BAD, GOOD, BAD, BAD, BAD, BAD]);
    assert_eq!(one.out(), [0; 0]);
    one.report(0, &[GATEWAY]);
    assert_eq!(one.out(), [0]);
    assert_eq!(one.stats.outlier_detection_ejections_enforced_consecutive_5xx.value(), 1);
    assert_eq!(one.stats.outlier_detection_ejections_active.value(), 1);
    one.report(1, &[BAD; 5]);
    assert_eq!(one.out(), [0], "half of them is the most");
    assert_eq!(one.stats.outlier_detection_ejections_overflow.value(), 1);
}

#[test]
fn by_default_a_tenth_may_go_and_no_exception_is_made_for_the_first() {
    let few = cluster(9, |_| {});
    few.report(0, &[BAD; 5]);
    assert_eq!(few.out(), [0; 0]);
    let many = cluster(10, |_| {});
    many.report(0, &[BAD; 5]);
    assert_eq!(many.out(), [0]);
    let always = cluster(2, |value| {
        value.always_eject_one_host =
            Some(envoy_types::pb::google::protobuf::BoolValue { value: true });
    });
    always.report(1, &[BAD; 5]);
    always.report(0, &[BAD; 5]);
    assert_eq!(always.out(), [1]);
}

#[test]
fn gateway_errors_count_apart_and_are_enforced_only_on_demand() {
    let enforced = |percent| {
        cluster(1, |value| {
            value.max_ejection_percent = some(100);
            value.consecutive_gateway_failure = some(2);
            value.enforcing_consecutive_gateway_failure = some(percent);
        })
    };
    let off = enforced(0);
    off.report(0, &[GATEWAY, GATEWAY]);
    assert_eq!(off.out(), [0; 0]);
    let detected = &off.stats.outlier_detection_ejections_detected_consecutive_gateway_failure;
    assert_eq!(detected.value(), 1);
    let on = enforced(100);
    on.report(0, &[GATEWAY, BAD, GATEWAY]);
    assert_eq!(on.out(), [0; 0], "a 500 is no gateway error");
    on.report(0, &[Outcome::Timeout]);
    assert_eq!(on.out(), [0]);
}

#[test]
fn connection_failures_are_503s_unless_they_are_split_off() {
    let joined = cluster(1, |value| value.max_ejection_percent = some(100));
    joined.report(0, &[Outcome::LocalOrigin; 5]);
    assert_eq!(joined.out(), [0]);
    let split = cluster(1, |value| {
        value.max_ejection_percent = some(100);
        value.split_external_local_origin_errors = true;
        value.consecutive_local_origin_failure = some(2);
    });
    split.report(0, &[Outcome::LocalOrigin, Outcome::Connected, BAD, BAD, Outcome::Timeout]);
    assert_eq!(split.out(), [0; 0]);
    split.report(0, &[Outcome::LocalOrigin]);
    assert_eq!(split.out(), [0]);
    let enforced =
        &split.stats.outlier_detection_ejections_enforced_consecutive_local_origin_failure;
    assert_eq!(enforced.value(), 1);
}

#[test]
fn an_endpoint_comes_back_when_a_sweep_finds_its_time_over() {
    let at_once = cluster(1, |value| {
        value.max_ejection_percent = some(100);
        value.base_ejection_time = Some(Default::default());
    });
    at_once.report(0, &[BAD; 5]);
    assert_eq!(at_once.out(), [0], "only a sweep takes it back");
    at_once.sweep();
    assert_eq!(at_once.out(), [0; 0]);
    assert_eq!(at_once.stats.outlier_detection_ejections_active.value(), 0);
    let later = cluster(1, |value| value.max_ejection_percent = some(100));
    later.report(0, &[BAD; 5]);
    later.sweep();
    assert_eq!(later.out(), [0]);
}

#[test]
fn the_one_that_does_much_worse_than_the_others_goes() {
    let rates = cluster(5, |value| {
        value.max_ejection_percent = some(100);
        value.success_rate_request_volume = some(10);
        value.consecutive_5xx = some(100);
    });
    for endpoint in 0..5 {
        rates.report(endpoint, &[GOOD; 10]);
    }
    rates.report(4, &[BAD; 10]);
    rates.sweep();
    assert_eq!(rates.out(), [4]);
    assert_eq!(rates.endpoints[0].state.shown_rate(false), Some(100.0));
    assert_eq!(rates.stats.outlier_detection_ejections_enforced_success_rate.value(), 1);
    rates.sweep();
    assert_eq!(rates.endpoints[0].state.shown_rate(false), None, "nothing in this interval");
}

#[test]
fn a_share_of_failures_takes_out_when_enforced() {
    let share = cluster(5, |value| {
        value.max_ejection_percent = some(100);
        value.consecutive_5xx = some(1000);
        value.enforcing_success_rate = some(0);
        value.enforcing_failure_percentage = some(100);
        value.failure_percentage_threshold = some(60);
    });
    for endpoint in 0..5 {
        let bad = 10 * (endpoint + 3);
        share.report(endpoint, &vec![BAD; bad]);
        share.report(endpoint, &vec![GOOD; 100 - bad]);
    }
    share.sweep();
    assert_eq!(share.out(), [3, 4]);
    assert_eq!(share.stats.outlier_detection_ejections_enforced_failure_percentage.value(), 2);
}

#[test]
fn a_maximum_below_the_base_time_is_refused() {
    let value =
        pb::OutlierDetection { max_ejection_time: Some(Default::default()), ..Default::default() };
    let mut faults = Faults::default();
    Outlier::compile(&value, &mut faults);
    assert_eq!(
        faults.into_list()[0].to_string(),
        "outlier_detection.max_ejection_time: smaller than base_ejection_time"
    );
}
