//! One worker's side of telemetry.
//!
//! Invariant: after the first sight of a label set or a name, counting takes
//! no contended lock and allocates nothing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::accesslog::{AccessLogger, Sink, Subject, Waker, WriterBuffer};
use super::flight::{FlightEntry, FlightRing};
use super::istio::{HttpSeries, IstioSeries, SeriesSink, TcpSeries};
use super::peer::{PeerCache, PeerMetadata};
use super::record::{HttpRecord, TcpEvent, TcpRecord};
use super::stats::{
    ClusterStats, DnsCacheStats, Http2Stats, HttpStats, ListenerStats, TcpStats, VerdictStats,
};

/// Stat blocks by name, with the writer's own quick table beside.
#[derive(Debug)]
pub(crate) struct Blocks<T>(Mutex<Vec<(Arc<str>, Arc<T>)>>);

impl<T> Default for Blocks<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Default> Blocks<T> {
    /// The block of this name, made at first sight.
    pub(crate) fn entry(&self, name: &str) -> Arc<T> {
        let mut blocks = lock(&self.0);
        if let Some((_, block)) = blocks.iter().find(|(have, _)| **have == *name) {
            return block.clone();
        }
        let block = Arc::new(T::default());
        blocks.push((name.into(), block.clone()));
        block
    }

    /// Calls `visit` for each block that is still in use, forgetting others.
    pub(crate) fn each(&self, mut visit: impl FnMut(&Arc<str>, &T)) {
        let mut blocks = lock(&self.0);
        for (name, block) in blocks.iter() {
            visit(name, block);
        }
        // Shown once more before it goes, so that the last counts are seen.
        blocks.retain(|(_, block)| Arc::strong_count(block) > 1);
    }
}

/// What one worker writes and the scrape reads.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) clusters: Blocks<ClusterStats>,
    pub(crate) listeners: Blocks<ListenerStats>,
    pub(crate) http: Blocks<HttpStats>,
    pub(crate) tcp: Blocks<TcpStats>,
    pub(crate) dns_caches: Blocks<DnsCacheStats>,
    pub(crate) verdicts: Blocks<VerdictStats>,
    pub(crate) http2: Arc<Http2Stats>,
    pub(crate) http_series: Mutex<Vec<Arc<HttpSeries>>>,
    pub(crate) tcp_series: Mutex<Vec<Arc<TcpSeries>>>,
    pub(crate) flights: FlightRing,
    pub(crate) overflowed: AtomicU64,
}

impl SeriesSink for Shard {
    fn add_http(&self, series: &Arc<HttpSeries>) {
        lock(&self.http_series).push(series.clone());
    }

    fn add_tcp(&self, series: &Arc<TcpSeries>) {
        lock(&self.tcp_series).push(series.clone());
    }

    fn overflowed(&self) {
        self.overflowed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Telemetry of one worker thread. Not `Sync`; share it within the thread
/// through an `Rc`.
#[derive(Debug)]
pub struct WorkerTelemetry {
    shard: Arc<Shard>,
    local: Arc<PeerMetadata>,
    slow: Duration,
    waker: Waker,
    series: RefCell<IstioSeries>,
    buffers: RefCell<HashMap<usize, (Sink, Arc<WriterBuffer>)>>,
    peers: RefCell<PeerCache>,
    /// Counters have one writer, so the worker must not leave its thread's
    /// hands while in use.
    not_sync: PhantomData<std::cell::Cell<()>>,
}

impl WorkerTelemetry {
    pub(crate) fn new(
        shard: Arc<Shard>,
        local: Arc<PeerMetadata>,
        slow: Duration,
        waker: Waker,
    ) -> Self {
        Self {
            shard,
            local,
            slow,
            waker,
            series: RefCell::default(),
            buffers: RefCell::default(),
            peers: RefCell::default(),
            not_sync: PhantomData,
        }
    }

    /// Counts and logs one finished request.
    pub fn http(&self, record: &HttpRecord<'_>) {
        if let Some(stats) = &record.listener.istio_stats {
            self.series.borrow_mut().http(stats, &self.local, record, &*self.shard);
        }
        let subject = Subject::from(record);
        self.log(&record.listener.access_logs, &subject);
        let failed = record.response_code >= 500
            || record.response_code == 0
            || !record.flags.is_empty()
            || record.timing.total >= self.slow;
        if failed {
            self.shard.flights.push(FlightEntry::http(record));
        }
    }

    /// Counts one moment of a connection and logs its end.
    pub fn tcp(&self, record: &TcpRecord<'_>) {
        if record.listener.istio_stats.is_some() {
            self.series.borrow_mut().tcp(&self.local, record, &*self.shard);
        }
        if record.event == TcpEvent::Closed {
            self.log(&record.listener.access_logs, &Subject::from(record));
            if !record.flags.is_empty() {
                self.shard.flights.push(FlightEntry::tcp(record));
            }
        }
    }

    /// Logs a connection that has not ended, at the moment that the record says.
    pub fn tcp_log(&self, record: &TcpRecord<'_>) {
        self.log(&record.listener.access_logs, &Subject::from(record));
    }

    fn log(&self, loggers: &[AccessLogger], subject: &Subject<'_>) {
        for logger in loggers.iter().filter(|logger| logger.accepts(subject)) {
            let mut buffers = self.buffers.borrow_mut();
            let (_, buffer) = buffers.entry(logger.sink.id()).or_insert_with(|| {
                // The sink is kept too, so that its address stays taken.
                (logger.sink.clone(), logger.sink.buffer())
            });
            self.waker.append(buffer, |out| logger.format.write(subject, out));
        }
    }

    /// Stats of a cluster, for this thread to write. Ask once and keep it.
    pub fn cluster(&self, name: &str) -> Arc<ClusterStats> {
        self.shard.clusters.entry(name)
    }

    /// Stats of a listener by its address, as `0.0.0.0_15006`.
    pub fn listener(&self, address: &str) -> Arc<ListenerStats> {
        self.shard.listeners.entry(address)
    }

    /// Stats of HTTP connection managers with this `stat_prefix`.
    pub fn http_manager(&self, stat_prefix: &str) -> Arc<HttpStats> {
        self.shard.http.entry(stat_prefix)
    }

    /// Stats of TCP proxies with this `stat_prefix`.
    pub fn tcp_proxy(&self, stat_prefix: &str) -> Arc<TcpStats> {
        self.shard.tcp.entry(stat_prefix)
    }

    /// Stats of HTTP/2 with clients.
    pub fn http2(&self) -> &Arc<Http2Stats> {
        &self.shard.http2
    }

    /// Verdicts of an authorization filter, by the prefix of their names.
    pub fn verdicts(&self, prefix: &str) -> Arc<VerdictStats> {
        self.shard.verdicts.entry(prefix)
    }

    /// The peer described by an `x-envoy-peer-metadata` value.
    pub fn peer(&self, header: &[u8]) -> Option<Arc<PeerMetadata>> {
        self.peers.borrow_mut().decode(header)
    }

    /// Our own workload, for labels.
    pub fn local(&self) -> &Arc<PeerMetadata> {
        &self.local
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while a lock is held half-way, so the content is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
