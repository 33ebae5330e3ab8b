//! What the proxy tells about its traffic: metrics, access logs, the flight
//! recorder and peer metadata.
//!
//! Owns the records that the data path fills, the per-worker counters and
//! their merge on scrape. When a record is due is decided in `amime-engine`;
//! where the result is served, in `amime-proxy`.
//!
//! Invariant: workers never wait for a scrape, and nothing a peer sends grows
//! memory without bound.
//!
//! ```
//! use amime_telemetry::{StatsFilter, Telemetry, TelemetryOptions};
//!
//! let telemetry = Telemetry::new(TelemetryOptions::default());
//! let worker = telemetry.worker();
//! worker.cluster("outbound|80||a.b").upstream_cx_total.inc();
//! assert!(telemetry.prometheus(&StatsFilter::default()).contains("a.b"));
//! ```

mod accesslog;
mod expose;
mod flags;
mod flight;
mod istio;
mod metadata;
mod peer;
mod prometheus;
mod record;
mod shared;
mod stats;
mod worker;

#[cfg(test)]
mod tests;

pub use accesslog::{AccessLogError, AccessLogger, Format, FormatError, PeerText};
pub use expose::{StatKind, StatsFilter};
pub use flags::ResponseFlags;
pub use istio::IstioStats;
pub use metadata::DynamicMetadata;
pub use peer::{PEER_METADATA_HEADER, PEER_METADATA_ID_HEADER, PeerCache, PeerMetadata};
pub use record::{
    ClusterInfo, Direction, DownstreamRecord, HttpRecord, HttpTiming, ListenerTelemetry,
    ServiceIdentity, TcpEvent, TcpRecord, TlsRecord, UpstreamRecord,
};
pub use shared::{SharedCounter, SharedGauge};
pub use stats::{
    ClusterStats, Counter, DnsCacheStats, Gauge, Histogram, Http2Stats, HttpStats, ListenerStats,
    ResponseCodes, ServerStats, TcpStats, VerdictStats,
};
pub use worker::WorkerTelemetry;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::accesslog::v3::AccessLog;

use accesslog::WriterPool;
use shared::SharedNumbers;
use worker::{Shard, lock};

/// Settings of [`Telemetry`].
#[derive(Clone, Debug)]
pub struct TelemetryOptions {
    /// Our own workload.
    pub local: PeerMetadata,
    /// Requests that take at least this long go to the flight recorder.
    pub slow_request: Duration,
    /// Whether Envoy's stats carry Istio's tag names (`cluster_name`) rather
    /// than Envoy's (`envoy_cluster_name`).
    pub istio_tags: bool,
}

impl Default for TelemetryOptions {
    fn default() -> Self {
        Self {
            local: PeerMetadata::default(),
            slow_request: Duration::from_secs(5),
            istio_tags: true,
        }
    }
}

/// All telemetry of the process.
#[derive(Debug)]
pub struct Telemetry {
    options: TelemetryOptions,
    local: Arc<PeerMetadata>,
    started: Instant,
    server: Arc<ServerStats>,
    /// Stats that the control thread writes, as cluster membership.
    shared: Arc<Shard>,
    shards: Mutex<Vec<Arc<Shard>>>,
    counters: SharedNumbers<SharedCounter>,
    gauges: SharedNumbers<SharedGauge>,
    writers: WriterPool,
    /// What counters showed when they were last reset, by dotted name.
    taken_off: Mutex<HashMap<String, u64>>,
}

impl Telemetry {
    /// Telemetry of a process that starts now.
    pub fn new(options: TelemetryOptions) -> Arc<Self> {
        let shared = Arc::new(Shard::default());
        Arc::new(Self {
            local: Arc::new(options.local.clone()),
            options,
            started: Instant::now(),
            server: Arc::default(),
            shards: Mutex::new(vec![shared.clone()]),
            shared,
            counters: SharedNumbers::default(),
            gauges: SharedNumbers::default(),
            writers: WriterPool::default(),
            taken_off: Mutex::default(),
        })
    }

    /// The share of one more worker thread.
    pub fn worker(&self) -> WorkerTelemetry {
        let shard = Arc::new(Shard::default());
        lock(&self.shards).push(shard.clone());
        WorkerTelemetry::new(
            shard,
            self.local.clone(),
            self.options.slow_request,
            self.writers.waker(),
        )
    }

    /// Compiles an access log and opens its sink; equal paths share one.
    pub fn access_log(&self, log: &AccessLog) -> Result<AccessLogger, AccessLogError> {
        AccessLogger::compile(log, &self.writers)
    }

    /// A cluster's stats for the control thread to write: membership,
    /// updates. Workers have their own through [`WorkerTelemetry::cluster`].
    pub fn shared_cluster(&self, name: &str) -> Arc<ClusterStats> {
        self.shared.clusters.entry(name)
    }

    /// Stats of a cache of resolved hosts, to be written by one thread at a time.
    pub fn dns_cache(&self, name: &str) -> Arc<DnsCacheStats> {
        self.shared.dns_caches.entry(name)
    }

    /// A counter by Envoy's dotted name, for all workers to add to. The
    /// values of `tags` (label and value) are parts of that name which become
    /// labels.
    pub fn counter(&self, dotted: &str, tags: &[(&str, &str)]) -> SharedCounter {
        self.counters.entry(dotted, tags)
    }

    /// A gauge by Envoy's dotted name, for whoever knows the value to set.
    pub fn gauge(&self, dotted: &str) -> SharedGauge {
        self.gauges.entry(dotted, &[])
    }

    /// Process-wide stats, written by the control thread.
    pub fn server(&self) -> &Arc<ServerStats> {
        &self.server
    }

    /// Our own workload, for labels and for the metadata exchange.
    pub fn local(&self) -> &Arc<PeerMetadata> {
        &self.local
    }

    /// How long the process has run.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Writes all buffered access log lines now.
    pub fn flush(&self) {
        self.writers.flush();
    }

    /// Opens access log files anew, after log rotation.
    pub fn reopen_logs(&self) {
        self.writers.reopen();
    }

    /// The flight recorder's content as JSON, newest first.
    pub fn debug_requests(&self) -> serde_json::Value {
        let shards = lock(&self.shards).clone();
        let mut entries: Vec<_> = shards.iter().flat_map(|shard| shard.flights.entries()).collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.start_ms()));
        serde_json::to_value(entries).unwrap_or_default()
    }

    pub(crate) fn shards(&self) -> Vec<Arc<Shard>> {
        lock(&self.shards).clone()
    }
}
