//! Resolving endpoint names, on a thread of its own: the system's resolver
//! blocks.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Runtime;
use super::clusters::DnsJob;
use amime_config::cluster::Family;
use amime_config::endpoint::Resolved;

/// Longest sleep between two looks for new names.
const LOOK: Duration = Duration::from_secs(1);

/// Starts the thread; it ends with the runtime.
pub(super) fn start(runtime: &Arc<Runtime>) -> io::Result<()> {
    let weak = Arc::downgrade(runtime);
    std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
        let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match built {
            Ok(resolver) => resolver.block_on(resolve_for_ever(weak)),
            Err(error) => tracing::error!(%error, "resolver cannot start"),
        }
    })?;
    Ok(())
}

async fn resolve_for_ever(runtime: Weak<Runtime>) {
    loop {
        let Some(strong) = runtime.upgrade() else { return };
        // The other thing that is looked at again and again.
        strong.state().look_at_secret_files();
        let jobs = strong.state().names_due(Instant::now());
        for job in jobs {
            let cluster = job.cluster;
            let found = resolve(job).await;
            let mut state = strong.state();
            state.resolved(cluster, &found);
            strong.publish_changes(&mut state);
        }
        let due = {
            let mut state = strong.state();
            state.tick(Instant::now());
            state.sweep(Instant::now());
            strong.publish_changes(&mut state);
            state.next_due()
        };
        let wake = strong.wake.clone();
        drop(strong);
        let wait = due.map_or(LOOK, |due| due.saturating_duration_since(Instant::now()).min(LOOK));
        let _ = tokio::time::timeout(wait, wake.notified()).await;
    }
}

async fn resolve(job: DnsJob) -> Resolved {
    let mut found = Resolved::new();
    for (name, port) in job.names {
        let wanted = |address: &SocketAddr| match job.family {
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
            Family::Both => true,
        };
        let looked_up = tokio::net::lookup_host((name.as_str(), port)).await;
        match looked_up.map(|addresses| addresses.filter(wanted).collect::<Vec<_>>()) {
            Ok(mut list) => {
                list.dedup();
                found.insert((name, port), list);
            }
            // Not an error here: endpoints stay as they were.
            Err(error) => tracing::debug!(%name, %error, "name not resolved"),
        }
    }
    found
}
