//! Connections that leave HTTP after a 101: bytes pass both ways.

use std::io;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::attempt::Attempt;
use super::exchange::{End, ExchangeGuard};
use crate::tcp::copy::{Copied, copy_both};

/// Both ends of an upgraded connection, not yet joined.
pub(super) struct Tunnel {
    downstream: OnUpgrade,
    upstream: OnUpgrade,
    /// Keeps the request counted while the tunnel lives.
    attempt: Attempt,
}

impl Tunnel {
    pub(super) fn new(downstream: OnUpgrade, upstream: OnUpgrade, attempt: Attempt) -> Self {
        Self { downstream, upstream, attempt }
    }

    /// Joins the two ends once the codecs have let go of them.
    pub(super) fn run(self, mut guard: ExchangeGuard) {
        tokio::task::spawn_local(async move {
            let stats = guard.exchange().connection.stats.clone();
            stats.downstream_cx_upgrades_total.inc();
            stats.downstream_cx_upgrades_active.inc();
            let copied = self.join().await;
            stats.downstream_cx_upgrades_active.dec();
            if let Ok(copied) = copied {
                let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
                guard.exchange().count_received(bytes(copied.up));
                guard.exchange().count_sent(bytes(copied.down));
            }
            guard.finish(End::Complete);
        });
    }

    async fn join(self) -> io::Result<Copied> {
        let (downstream, upstream): (Upgraded, Upgraded) =
            tokio::try_join!(self.downstream, self.upstream).map_err(io::Error::other)?;
        let copied = copy_both(TokioIo::new(downstream), TokioIo::new(upstream), None).await;
        drop(self.attempt);
        Ok(copied)
    }
}
