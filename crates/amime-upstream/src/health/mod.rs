//! Active health checks: one task an endpoint, on the keeper's thread.
//!
//! Invariant: an endpoint that was never checked takes no traffic; the first
//! good result of each check is enough, later ones need the configured number
//! in a row. One check that fails takes the endpoint out, whatever others say.

mod probe;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use amime_telemetry::ClusterStats;
use tokio::task::JoinHandle;

use amime_config::cluster::ClusterConfig;
use amime_config::endpoint::Endpoint;
use amime_config::endpoint_state::{ClusterState, EndpointState};
use amime_config::health_check::HealthCheck;
use amime_config::names::ClusterId;
use amime_config::outlier::Ejector;
use probe::{Prober, Verdict};

/// An endpoint to be checked.
#[derive(Clone)]
pub struct Job {
    /// Settings of the check and of the connection.
    pub cluster: Arc<ClusterConfig>,
    /// Whom to ask.
    pub endpoint: Arc<Endpoint>,
    /// Told when health has changed.
    pub state: Arc<ClusterState>,
    /// Counts checks.
    pub stats: Arc<ClusterStats>,
    /// `SO_MARK` of its sockets.
    pub mark: Option<u32>,
}

struct Running {
    cluster: Arc<ClusterConfig>,
    endpoint: Arc<Endpoint>,
    task: JoinHandle<()>,
}

/// The checks under way.
#[derive(Default)]
pub struct Checks(HashMap<(ClusterId, *const EndpointState), Running>);

impl Checks {
    /// Starts checks of new endpoints and ends those of gone ones. `changed`
    /// is called when health has changed.
    pub fn follow(&mut self, jobs: Vec<Job>, changed: impl Fn() + Clone + 'static) {
        let mut before = std::mem::take(&mut self.0);
        for job in jobs {
            let key = (job.cluster.id, Arc::as_ptr(&job.endpoint.state));
            let same = before.remove(&key).and_then(|running| {
                let same = Arc::ptr_eq(&running.cluster, &job.cluster)
                    && running.endpoint.address == job.endpoint.address
                    && running.endpoint.checked_as == job.endpoint.checked_as;
                if !same {
                    running.task.abort();
                }
                same.then_some(running)
            });
            let running = same.unwrap_or_else(|| Running {
                cluster: job.cluster.clone(),
                endpoint: job.endpoint.clone(),
                task: tokio::task::spawn_local(check(job, changed.clone())),
            });
            self.0.insert(key, running);
        }
        for running in before.into_values() {
            running.task.abort();
        }
    }
}

async fn check(job: Job, changed: impl Fn() + Clone + 'static) {
    let joint = Joint::new(&job);
    let checks = job.cluster.checks.iter().zip(0..);
    let each = checks.map(|(check, bit)| one(&job, check, Row::new(&joint, bit), &changed));
    // They pause apart from each other, and none ever ends.
    futures_util::future::join_all(each).await;
}

async fn one(job: &Job, check: &HealthCheck, mut row: Row<'_>, changed: &impl Fn()) {
    tokio::time::sleep(check.initial_jitter.mul_f64(fastrand::f64())).await;
    let mut prober = Prober::new(job, check);
    loop {
        job.stats.health_check_attempt.inc();
        let verdict = tokio::time::timeout(check.timeout, prober.ask()).await;
        let verdict = verdict.unwrap_or_else(|_| {
            prober.forget();
            Verdict::Network { timeout: true }
        });
        let Recorded { edge, told } = row.record(job, check, verdict);
        if told {
            job.state.health_changed();
            changed();
        }
        tokio::time::sleep(check.pause(!row.fails(), edge, job.state.has_traffic())).await;
    }
}

/// What the checks of one endpoint have found, as bits.
struct Joint {
    all: u64,
    failing: Cell<u64>,
    /// Those without a result.
    waiting: Cell<u64>,
    /// Those to which the endpoint calls itself degraded.
    degraded: Cell<u64>,
}

impl Joint {
    fn new(job: &Job) -> Self {
        let all = (0..job.cluster.checks.len()).fold(0, |all, bit| all | 1 << bit);
        let state = &job.endpoint.state;
        let all_if = |condition: bool| Cell::new(if condition { all } else { 0 });
        Self {
            all,
            failing: all_if(state.check_failed()),
            waiting: all_if(!state.checked()),
            degraded: all_if(state.check_degraded()),
        }
    }

    /// Takes notice of an endpoint that has asked meanwhile to be left out: all
    /// checks have to pass anew.
    fn heed(&self, state: &EndpointState) {
        if self.failing.get() == 0 && state.check_failed() {
            self.failing.set(self.all);
        }
    }
}

/// Sets or clears a bit; true if it was otherwise.
fn put(bits: &Cell<u64>, bit: u64, set: bool) -> bool {
    let before = bits.get();
    bits.set(if set { before | bit } else { before & !bit });
    before != bits.get()
}

/// Equal results of one check in a row.
struct Row<'j> {
    joint: &'j Joint,
    bit: u64,
    good: u32,
    bad: u32,
}

/// What came of a result.
#[derive(Clone, Copy, Debug, Default)]
struct Recorded {
    /// The check passes where it failed, or the other way.
    edge: bool,
    /// The endpoint's health may be another.
    told: bool,
}

impl<'j> Row<'j> {
    fn new(joint: &'j Joint, number: u32) -> Self {
        Self { joint, bit: 1 << number, good: 0, bad: 0 }
    }

    fn fails(&self) -> bool {
        self.joint.failing.get() & self.bit != 0
    }

    /// Counts a result.
    fn record(&mut self, job: &Job, check: &HealthCheck, verdict: Verdict) -> Recorded {
        let (state, stats) = (&job.endpoint.state, &job.stats);
        self.joint.heed(state);
        let retriable = match verdict {
            Verdict::Good { degraded } => return self.good(job, check, degraded),
            Verdict::Network { .. } => {
                stats.health_check_network_failure.inc();
                true
            }
            Verdict::Bad { retriable } => retriable,
        };
        stats.health_check_failure.inc();
        self.good = 0;
        self.bad = self.bad.saturating_add(1);
        let first = put(&self.joint.waiting, self.bit, false);
        // One bad check is enough to know.
        let first = !state.mark_checked() || first;
        let over = !retriable || self.bad >= check.unhealthy_threshold;
        if !over || !put(&self.joint.failing, self.bit, true) {
            return Recorded { edge: false, told: first };
        }
        state.fail_check(verdict == Verdict::Network { timeout: true });
        Recorded { edge: true, told: true }
    }

    fn good(&mut self, job: &Job, check: &HealthCheck, degraded: bool) -> Recorded {
        let (state, joint) = (&job.endpoint.state, self.joint);
        job.stats.health_check_success.inc();
        self.bad = 0;
        let first = put(&joint.waiting, self.bit, false);
        let mut recorded = Recorded { edge: false, told: first };
        if put(&joint.degraded, self.bit, degraded) {
            recorded.told |= state.set_check_degraded(joint.degraded.get() != 0);
        }
        if self.fails() {
            self.good = self.good.saturating_add(1);
            if first || self.good >= check.healthy_threshold {
                self.good = 0;
                put(&joint.failing, self.bit, false);
                recorded = Recorded { edge: true, told: true };
            }
        }
        if joint.waiting.get() == 0 {
            state.mark_checked();
        }
        if joint.failing.get() == 0 && state.check_failed() {
            state.pass_check();
        }
        if let Some(outlier) = &job.cluster.outlier
            && outlier.uneject_on_check
            && !state.check_failed()
            && state.ejected()
        {
            let ejector = Ejector { outlier, cluster: &job.state, stats: &job.stats, total: 0 };
            ejector.uneject(state);
            recorded.told = true;
        }
        recorded
    }
}
