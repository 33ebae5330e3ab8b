//! When changes become snapshots, under a paused clock.

use std::sync::Arc;
use std::time::Duration;

use amime_api::decode;
use amime_model::Change;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::changes::Missed;
use super::{Debounce, Discovery, is_of};
use crate::metrics::Metrics;
use crate::source::Event;

/// Discovery under a paused clock, fed by hand.
struct Running {
    discovery: Discovery,
    events: mpsc::Sender<Event>,
}

impl Running {
    fn start() -> Self {
        let discovery = Discovery::new(Metrics::new().xds.clone());
        let (events, queue) = mpsc::channel(64);
        let run = discovery.clone();
        tokio::spawn(async move {
            run.run(queue, Arc::default(), Debounce::default(), CancellationToken::new()).await;
        });
        Self { discovery, events }
    }

    async fn synced() -> Self {
        let running = Self::start();
        running.service("reviews", "10.96.0.13").await;
        running.pod("reviews-v1", "10.244.0.21").await;
        running.event(Event::Synced).await;
        running.discovery.synced().await;
        running
    }

    async fn event(&self, event: Event) {
        self.events.send(event).await.expect("discovery runs");
    }

    async fn apply(&self, yaml: String) {
        let decoded = decode::decode("test.yaml", &yaml);
        assert!(decoded.errors.is_empty(), "{:?}", decoded.errors);
        for resource in decoded.resources {
            self.event(Event::Change(Change::Set(Arc::new(resource)))).await;
        }
    }

    async fn service(&self, name: &str, ip: &str) {
        self.apply(format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{clusterIP: {ip}, selector: {{app: reviews}}, ports: [{{name: http, port: 9080}}]}}\n"
        ))
        .await;
    }

    async fn pod(&self, name: &str, ip: &str) {
        self.apply(format!(
            "apiVersion: v1\nkind: Pod\n\
             metadata: {{name: {name}, namespace: default, labels: {{app: reviews}}}}\n\
             spec: {{containers: [{{name: reviews, image: reviews}}], serviceAccountName: reviews}}\n\
             status: {{podIP: {ip}, phase: Running, conditions: [{{type: Ready, status: \"True\"}}]}}\n"
        ))
        .await;
    }

    fn version(&self) -> Option<u64> {
        self.discovery.snapshot().map(|s| s.version())
    }

    /// Time until the snapshot after this one.
    async fn next(&self) -> Duration {
        let start = Instant::now();
        let mut published = self.discovery.follow();
        published.borrow_and_update();
        published.changed().await.expect("discovery runs");
        start.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_published_before_all_is_known() {
    let running = Running::start();
    running.service("reviews", "10.96.0.13").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(running.version(), None);
    running.event(Event::Synced).await;
    running.discovery.synced().await;
    assert_eq!(running.version(), Some(1));
    assert_eq!(running.discovery.snapshot().expect("synced").services().all().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn changes_close_together_make_one_snapshot() {
    let running = Running::synced().await;
    for name in ["a", "b", "c"] {
        running.service(name, "10.96.0.14").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // 50 ms of the quiet time have passed after the last change.
    assert_eq!(running.next().await, Duration::from_millis(50));
    assert_eq!(running.version(), Some(2));
    assert_eq!(running.discovery.snapshot().expect("synced").services().all().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn changes_without_end_are_pushed_after_ten_seconds() {
    let running = Running::synced().await;
    let start = Instant::now();
    let mut published = running.discovery.follow();
    published.borrow_and_update();
    while !published.has_changed().expect("discovery runs") {
        running.service("a", "10.96.0.14").await;
        tokio::time::sleep(Duration::from_millis(90)).await;
    }
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(10) && waited < Duration::from_millis(10_200));
}

#[tokio::test(start_paused = true)]
async fn a_lone_endpoint_change_is_published_at_once() {
    let running = Running::synced().await;
    let before = running.discovery.follow().borrow().clone().expect("synced");
    running.pod("reviews-v2", "10.244.0.22").await;
    assert_eq!(running.next().await, Duration::ZERO);
    let after = running.discovery.follow().borrow().clone().expect("synced");
    let Missed::Endpoints(services) = after.since(before.snapshot.version()) else {
        panic!("only endpoints changed");
    };
    assert!(is_of("outbound|9080|v1|reviews.default.svc.cluster.local", &services));
    assert!(is_of("outbound_.9080_.v1_.reviews.default.svc.cluster.local", &services));
    assert!(!is_of("outbound|9080||more-reviews.default.svc.cluster.local", &services));
    assert_eq!(after.since(after.snapshot.version()), Missed::Nothing);
    assert_eq!(after.since(0), Missed::Everything);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_change_does_not_undo_a_newer_endpoint() {
    let running = Running::synced().await;
    // A pod with another identity touches clusters and waits.
    running.service("other", "10.96.0.15").await;
    running.pod("reviews-v1", "10.244.0.99").await;
    tokio::task::yield_now().await;
    running.pod("reviews-v1", "10.244.0.77").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let snapshot = running.discovery.snapshot().expect("synced");
    let services = snapshot.services();
    let all = services.all();
    let service = all.iter().find(|s| s.hostname.as_str().starts_with("reviews.")).expect("there");
    let endpoints = snapshot.endpoints(service).expect("there");
    let text = format!("{endpoints:?}");
    assert!(text.contains("10.244.0.77") && !text.contains("10.244.0.99"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_does_not_go_before_the_one_that_came_earlier_is_there() {
    let running = Running::synced().await;
    // It came beside a service, so it waits.
    running.service("other", "10.96.0.15").await;
    running.pod("reviews-v2", "10.244.0.22").await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let before = running.version();
    let gone = running.discovery.snapshot().expect("synced");
    let gone = gone.resources().find(|(key, _)| key.name == "reviews-v1").expect("there");
    running.event(Event::Change(Change::Delete(gone.0.clone()))).await;
    assert_eq!(running.next().await, Duration::ZERO);
    assert_eq!(running.version(), before.map(|version| version + 1));
    let snapshot = running.discovery.snapshot().expect("synced");
    let services = snapshot.services().all();
    let reviews = services.iter().find(|s| s.hostname.as_str().starts_with("reviews."));
    let text = format!("{:?}", snapshot.endpoints(reviews.expect("there")).expect("there"));
    assert!(text.contains("10.244.0.22") && !text.contains("10.244.0.21"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_revision_is_distributed_once_no_change_before_it_waits() {
    let running = Running::synced().await;
    let taken_in = || tokio::time::sleep(Duration::from_millis(1));
    running.event(Event::Revision(5)).await;
    taken_in().await;
    running.service("late", "10.96.0.14").await;
    running.event(Event::Revision(6)).await;
    taken_in().await;
    // Endpoints go ahead of the service that waits, the revision does not.
    running.pod("reviews-v2", "10.244.0.22").await;
    running.event(Event::Revision(7)).await;
    taken_in().await;
    assert_eq!(running.version(), Some(2));
    assert!(running.discovery.distribution(5).complete);
    assert!(!running.discovery.distribution(6).complete);
    running.next().await;
    let distribution = running.discovery.distribution(7);
    assert!(distribution.complete, "{distribution:?}");
    assert!(!running.discovery.distribution(8).complete);
}
