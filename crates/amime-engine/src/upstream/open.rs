//! Counting upstream connections: those that are open, those that never came
//! about, and requests that wait for one.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

use super::connect::ConnectError;
use super::pool::{Acquire, Lease};
use super::{ClusterRuntime, Host};
use amime_config::endpoint_state::Resource;
use amime_upstream::tls::Counted;

/// Counts a failed connection.
pub(crate) fn count_failure(cluster: &ClusterRuntime, host: &Host, error: &ConnectError) {
    cluster.stats.upstream_cx_connect_fail.inc();
    if *error == ConnectError::Timeout {
        cluster.stats.upstream_cx_connect_timeout.inc();
    }
    if let ConnectError::Tls(failure) = error {
        match failure.counted {
            Counted::Verify | Counted::NoCertificate => cluster.stats.ssl_fail_verify_error.inc(),
            Counted::San => cluster.stats.ssl_fail_verify_san.inc(),
            Counted::Pin => cluster.stats.ssl_fail_verify_cert_hash.inc(),
            Counted::Protocol => cluster.stats.ssl_connection_error.inc(),
            Counted::Nowhere => {}
        }
    }
    host.counters().cx_connect_fail.inc();
}

/// Counts a request as pending while `work` runs.
pub(super) async fn pending(
    request: Acquire<'_>,
    work: impl Future<Output = Result<Lease, ConnectError>>,
) -> Result<Lease, ConnectError> {
    let Acquire { cluster, priority, .. } = request;
    if !cluster.take(priority, Resource::Pending) {
        cluster.stats.upstream_rq_pending_overflow.inc();
        return Err(ConnectError::Overflow);
    }
    cluster.stats.upstream_rq_pending_total.inc();
    cluster.stats.upstream_rq_pending_active.inc();
    let _given = Give { cluster, priority };
    let lease = work.await;
    if lease.is_err() {
        cluster.stats.upstream_rq_pending_failure_eject.inc();
    }
    lease
}

/// Gives a pending slot back, also when the request is given up.
struct Give<'a> {
    cluster: &'a ClusterRuntime,
    priority: usize,
}

impl Drop for Give<'_> {
    fn drop(&mut self) {
        self.cluster.stats.upstream_rq_pending_active.dec();
        self.cluster.give(self.priority, Resource::Pending);
    }
}

/// Counts a connection as open until dropped.
pub(crate) struct OpenGuard {
    cluster: Rc<ClusterRuntime>,
    host: Rc<Host>,
    priority: usize,
    open: Rc<Cell<u32>>,
    freed: Rc<Notify>,
}

impl OpenGuard {
    pub(crate) fn new(request: Acquire<'_>) -> Self {
        let Acquire { cluster, host, priority, .. } = request;
        let open = host.pool.open.clone();
        open.set(open.get() + 1);
        cluster.stats.upstream_cx_total.inc();
        cluster.spec.state.note_traffic();
        cluster.stats.upstream_cx_active.inc();
        host.counters().cx_total.inc();
        host.counters().cx_active.inc();
        Self {
            cluster: cluster.clone(),
            host: host.clone(),
            priority,
            open,
            freed: host.pool.freed.clone(),
        }
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.open.set(self.open.get().saturating_sub(1));
        self.cluster.give(self.priority, Resource::Connections);
        self.cluster.stats.upstream_cx_active.dec();
        self.cluster.stats.upstream_cx_destroy.inc();
        self.host.counters().cx_active.dec();
        self.freed.notify_one();
    }
}
