//! Active health checks: one task an endpoint, on the keeper's thread.
//!
//! Invariant: an endpoint that was never checked takes no traffic; its first
//! good check is enough, later ones need the configured number in a row.

mod probe;

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

async fn check(job: Job, changed: impl Fn()) {
    let Some(check) = &job.cluster.check else { return };
    tokio::time::sleep(check.initial_jitter.mul_f64(fastrand::f64())).await;
    let mut prober = Prober::new(&job, check);
    let mut row = Row::default();
    loop {
        job.stats.health_check_attempt.inc();
        let verdict = tokio::time::timeout(check.timeout, prober.ask()).await;
        let verdict = verdict.unwrap_or_else(|_| {
            prober.forget();
            Verdict::Network { timeout: true }
        });
        let first = !job.endpoint.state.checked();
        let edge = row.record(&job, check, verdict);
        if first || edge {
            job.state.health_changed();
            changed();
        }
        let healthy = !job.endpoint.state.check_failed();
        tokio::time::sleep(check.pause(healthy, edge, job.state.has_traffic())).await;
    }
}

/// Equal results in a row.
#[derive(Default)]
struct Row {
    good: u32,
    bad: u32,
}

impl Row {
    /// Counts a result; true if the endpoint's health is now another.
    fn record(&mut self, job: &Job, check: &HealthCheck, verdict: Verdict) -> bool {
        let (state, stats) = (&job.endpoint.state, &job.stats);
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
        let first = !state.mark_checked();
        let over = !retriable || self.bad >= check.unhealthy_threshold;
        if state.check_failed() || !over {
            return first;
        }
        state.fail_check(verdict == Verdict::Network { timeout: true });
        true
    }

    fn good(&mut self, job: &Job, check: &HealthCheck, degraded: bool) -> bool {
        let state = &job.endpoint.state;
        job.stats.health_check_success.inc();
        self.bad = 0;
        let first = !state.mark_checked();
        let mut changed = state.set_check_degraded(degraded);
        if state.check_failed() {
            self.good = self.good.saturating_add(1);
            if first || self.good >= check.healthy_threshold {
                self.good = 0;
                state.pass_check();
                changed = true;
            }
        }
        if let Some(outlier) = &job.cluster.outlier
            && outlier.uneject_on_check
            && !state.check_failed()
            && state.ejected()
        {
            let ejector = Ejector { outlier, cluster: &job.state, stats: &job.stats, total: 0 };
            ejector.uneject(state);
            changed = true;
        }
        changed
    }
}
