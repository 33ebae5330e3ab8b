//! The life of a filter chain, which its connections share.

use std::any::Any;
use std::cell::{Cell, OnceCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::worker::Worker;
use amime_config::listener::{FilterChain, Terminal};

/// Whether the filter chain of a connection is still in force.
#[derive(Default)]
pub(crate) struct ChainLife {
    ended: Cell<Option<Instant>>,
    /// What its connections count in: a block that nobody holds is forgotten
    /// once it was shown, and its counts with it.
    stats: OnceCell<Vec<Arc<dyn Any>>>,
}

/// How long connections of a filter chain that was replaced may stay idle
/// before they are closed; Envoy's drain time.
const DRAIN: Duration = Duration::from_secs(600);

impl ChainLife {
    /// True once the chain is gone: connections are asked to come back, none
    /// is cut.
    pub(crate) fn retired(&self) -> bool {
        self.ended.get().is_some()
    }

    /// When connections are no longer waited for.
    pub(crate) fn drained_at(&self) -> Option<Instant> {
        self.ended.get().map(|since| since + DRAIN)
    }

    /// Asks the connections to leave.
    pub(super) fn end(&self) {
        self.ended.set(Some(Instant::now()));
    }

    /// Holds the stats of a chain that has its first connection.
    pub(super) fn hold_stats(&self, worker: &Worker, chain: &FilterChain) {
        self.stats.get_or_init(|| {
            let mut blocks: Vec<Arc<dyn Any>> = Vec::new();
            for rbac in &chain.rbac {
                for rules in rbac.rules.iter().chain(&rbac.shadow) {
                    blocks.push(worker.telemetry.verdicts(&rules.prefix));
                }
            }
            match &chain.terminal {
                Terminal::Http(it) => blocks.push(worker.telemetry.http_manager(&it.stat_prefix)),
                Terminal::Tcp(it) => blocks.push(worker.telemetry.tcp_proxy(&it.stat_prefix)),
                Terminal::Echo | Terminal::Say(_) | Terminal::Close => {}
            }
            blocks
        });
    }
}
