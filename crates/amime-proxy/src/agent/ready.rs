//! Whether this proxy may take traffic, and if not, why.

use std::sync::atomic::{AtomicBool, Ordering};

/// What readiness waits for.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    clusters: AtomicBool,
    listeners: AtomicBool,
    names: AtomicBool,
    draining: AtomicBool,
    failed: AtomicBool,
}

/// State that readiness asks others for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Others {
    /// Listeners are warm and workers live.
    pub(crate) runtime_ready: bool,
    /// There is a certificate, or none is needed.
    pub(crate) certificate: bool,
    /// A name table is needed.
    pub(crate) needs_names: bool,
}

impl Readiness {
    /// Clusters have been received.
    pub(crate) fn clusters_received(&self) {
        self.clusters.store(true, Ordering::Release);
    }

    /// Listeners have been received.
    pub(crate) fn listeners_received(&self) {
        self.listeners.store(true, Ordering::Release);
    }

    /// A name table is in force.
    pub(crate) fn names_received(&self) {
        self.names.store(true, Ordering::Release);
    }

    /// Clusters and listeners have been received.
    pub(crate) fn is_configured(&self) -> bool {
        self.clusters.load(Ordering::Acquire) && self.listeners.load(Ordering::Acquire)
    }

    /// The process is about to end.
    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// `/healthcheck/fail` and `/healthcheck/ok`.
    pub(crate) fn set_failed(&self, failed: bool) {
        self.failed.store(failed, Ordering::Release);
    }

    /// `Ok`, or what is missing.
    pub(crate) fn check(&self, others: Others) -> Result<(), &'static str> {
        let unmet = [
            (self.is_draining(), "draining"),
            (self.failed.load(Ordering::Acquire), "health check set to fail"),
            (!self.clusters.load(Ordering::Acquire), "cds updates: not received"),
            (!self.listeners.load(Ordering::Acquire), "lds updates: not received"),
            (!others.runtime_ready, "listeners are warming"),
            (!others.certificate, "no workload certificate yet"),
            (others.needs_names && !self.names.load(Ordering::Acquire), "name table not received"),
        ];
        unmet.into_iter().find(|(unmet, _)| *unmet).map_or(Ok(()), |(_, reason)| Err(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_waited_for() {
        let ready = Readiness::default();
        let others = Others { runtime_ready: true, certificate: true, needs_names: true };
        assert_eq!(ready.check(others), Err("cds updates: not received"));
        ready.clusters_received();
        ready.listeners_received();
        assert_eq!(ready.check(others), Err("name table not received"));
        ready.names_received();
        assert_eq!(ready.check(others), Ok(()));
        let no_cert = Others { certificate: false, ..others };
        assert!(ready.check(no_cert).is_err());
        ready.set_draining();
        assert_eq!(ready.check(others), Err("draining"));
    }
}
