//! The thread that does what time asks for: names are looked up, waiting
//! ends, endpoints that were taken out come back.

use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Runtime;
use amime_config::host_cache::HostCache;
use amime_resources::{Answer, DnsJob, Resolvers, look_up, look_up_host};
use amime_upstream::health::Checks;

/// Longest sleep between two looks for something to do.
const LOOK: Duration = Duration::from_secs(1);

/// Starts the thread; it ends with the runtime. Its sockets carry the mark.
/// What else goes by the clock runs there `beside`.
pub(super) fn start(
    runtime: &Arc<Runtime>,
    mark: Option<u32>,
    beside: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let weak = Arc::downgrade(runtime);
    std::thread::Builder::new().name("keeper".to_owned()).spawn(move || {
        let built = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default());
        match built {
            Ok(keeper) => keeper.block_on(async {
                tokio::task::spawn_local(beside);
                keep(weak, mark).await;
            }),
            Err(error) => tracing::error!(%error, "keeper cannot start"),
        }
    })?;
    Ok(())
}

async fn keep(runtime: Weak<Runtime>, mark: Option<u32>) {
    let mut resolvers = Resolvers::new(mark);
    let mut checks = Checks::default();
    let mut files_due = Instant::now();
    loop {
        let Some(strong) = runtime.upgrade() else { return };
        let now = Instant::now();
        let (jobs, checked, due) = {
            let mut state = strong.state();
            if files_due <= now {
                state.look_at_secret_files();
                files_due = now + LOOK;
            }
            state.tick(now);
            state.sweep(now);
            strong.publish_changes(&mut state);
            (state.names_due(now), state.checks(), state.next_due())
        };
        let caches = strong.state().host_caches();
        let due = caches
            .iter()
            .filter_map(|cache| look_up_hosts(cache, &mut resolvers, now))
            .chain(due)
            .min();
        let weak = runtime.clone();
        checks.follow(checked, move || health_changed(&weak));
        for job in jobs {
            let resolver = resolvers.get(&job.dns.servers, job.dns.family);
            let runtime = runtime.clone();
            tokio::task::spawn_local(async move {
                let answer = look_up(resolver, &job.name.0).await;
                tell(&runtime, &job, answer);
            });
        }
        let wake = strong.wake.clone();
        drop(strong);
        let wait = due.map_or(LOOK, |due| due.saturating_duration_since(Instant::now()).min(LOOK));
        let _ = tokio::time::timeout(wait, wake.notified()).await;
    }
}

/// Begins the lookups of a cache that are due; when it next has something to do.
fn look_up_hosts(
    cache: &Arc<HostCache>,
    resolvers: &mut Resolvers,
    now: Instant,
) -> Option<Instant> {
    for host in cache.take_due(now) {
        let dns = &cache.settings.dns;
        let resolver = resolvers.get(&dns.servers, dns.family);
        let cache = Arc::downgrade(cache);
        tokio::task::spawn_local(async move {
            let Some(settings) = cache.upgrade().map(|cache| cache.settings.clone()) else {
                return;
            };
            let looked = look_up_host(resolver, &host.name, &settings).await;
            if let Some(cache) = cache.upgrade() {
                cache.answer(&host, looked, Instant::now());
            }
        });
    }
    cache.next_due()
}

/// A cluster may have waited for a check.
fn health_changed(runtime: &Weak<Runtime>) {
    let Some(runtime) = runtime.upgrade() else { return };
    let mut state = runtime.state();
    state.tick(Instant::now());
    runtime.publish(&mut state);
}

fn tell(runtime: &Weak<Runtime>, job: &DnsJob, answer: Answer) {
    let Some(runtime) = runtime.upgrade() else { return };
    let mut state = runtime.state();
    state.resolved(job, &answer);
    runtime.publish(&mut state);
}
