//! One proxied TCP connection.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amime_telemetry::{ResponseFlags, TcpEvent, TcpRecord, UpstreamRecord};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::copy::{Copied, CopyEnd, Progress, copy_watched};
use super::tunnel::Tunnel;
use crate::http::of_address;
use crate::listener::{Connection, DownstreamIo};
use crate::upstream::connect::UpstreamIo;
use crate::upstream::connect::{ConnectError, ConnectionFacts, Target, connect};
use crate::upstream::open::{OpenGuard, count_failure};
use crate::upstream::pool::Acquire;
use crate::upstream::{ClusterRuntime, Host, LbInput, Outcome, Resource};
use crate::worker::Worker;
use amime_config::discovery::Discovery;
use amime_config::host_cache::{self, HostFailure};
use amime_config::listener::FilterChain;
use amime_config::tcp::TcpConfig;
use amime_config::tls::Alpn;
use amime_rules::criteria::MetadataMatch;
use amime_rules::tls_facts::TlsFacts;
use amime_rules::values::jittered;

/// A connected upstream.
pub(crate) struct Dialed {
    io: Io,
    facts: ConnectionFacts,
    /// What configuration names, for the log: an aggregate, where the other one
    /// is a member of it.
    named: Rc<ClusterRuntime>,
    cluster: Rc<ClusterRuntime>,
    host: Rc<Host>,
    /// What the upstream has said already.
    first: Vec<u8>,
    attempts: u32,
    _open: Option<OpenGuard>,
}

/// The upstream's bytes.
enum Io {
    Direct(UpstreamIo),
    Tunnel(Tunnel),
}

/// Why there is no upstream.
struct DialFailure {
    flags: ResponseFlags,
    reason: Option<String>,
    cluster: Option<Rc<ClusterRuntime>>,
    host: Option<Rc<Host>>,
    attempts: u32,
}

/// Proxies `io` until both sides are done.
pub(crate) async fn proxy(
    worker: Rc<Worker>,
    connection: Connection,
    io: DownstreamIo,
    (config, chain): (Arc<TcpConfig>, Arc<FilterChain>),
    dialed: Option<Dialed>,
) {
    let begun = Instant::now();
    let stats = worker.telemetry.tcp_proxy(&config.stat_prefix);
    stats.downstream_cx_total.inc();
    let mut record = started(&connection, &config, &chain);
    if config.log_start {
        worker.telemetry.tcp_log(&record);
    }
    record.event = TcpEvent::Opened;
    let dialed = match dialed {
        Some(dialed) => Ok(dialed),
        None => dial(&worker, &connection, &config).await,
    };
    let dialed = match dialed {
        Ok(dialed) => dialed,
        Err(failure) => {
            if failure.flags.intersects(ResponseFlags::NC) {
                stats.downstream_cx_no_route.inc();
            }
            failed(&worker, &failure, record, begun);
            return;
        }
    };
    let Dialed { io: upstream, facts, named, cluster, host, first, attempts, _open } = dialed;
    record.upstream = reached(&host, &facts, &named);
    record.upstream.attempts = attempts;
    worker.telemetry.tcp(&record);
    if config.log_connected {
        worker.telemetry.tcp_log(&record);
    }
    let progress = Progress::default();
    let copy = join(io, upstream, &first, &config, &progress);
    let copy = while_it_stands(copy, &cluster, &host, &progress);
    let copied = match config.log_interval {
        None => copy.await,
        Some(interval) => {
            let report = |record: &mut TcpRecord<'_>| {
                record.event = TcpEvent::Progress;
                record.duration = begun.elapsed();
                record.bytes_received = progress.up.get();
                record.bytes_sent = progress.down.get();
                worker.telemetry.tcp_log(record);
            };
            reporting(copy, interval, || report(&mut record)).await
        }
    };
    stats.downstream_cx_rx_bytes_total.add(copied.up);
    stats.downstream_cx_tx_bytes_total.add(copied.down);
    cluster.stats.upstream_cx_tx_bytes_total.add(copied.up);
    cluster.stats.upstream_cx_rx_bytes_total.add(copied.down);
    match copied.end {
        CopyEnd::Idle => stats.idle_timeout.inc(),
        CopyEnd::Expired => {
            stats.max_downstream_connection_duration.inc();
            record.flags.insert(ResponseFlags::DT);
        }
        CopyEnd::Closed | CopyEnd::DownstreamFailed | CopyEnd::UpstreamFailed => {}
    }
    record.event = TcpEvent::Closed;
    record.duration = begun.elapsed();
    (record.bytes_received, record.bytes_sent) = (copied.up, copied.down);
    (record.received_delta, record.sent_delta) = (copied.up, copied.down);
    worker.telemetry.tcp(&record);
}

/// What is known of a connection when it comes.
fn started<'a>(
    connection: &'a Connection,
    config: &'a TcpConfig,
    chain: &'a FilterChain,
) -> TcpRecord<'a> {
    let mut record = TcpRecord::new(&config.telemetry, TcpEvent::Started, connection.accepted);
    record.config_origin = chain.origin.as_deref();
    record.downstream = connection.record();
    record
}

/// The upstream side of a connection that stands.
fn reached<'a>(
    host: &'a Host,
    facts: &'a ConnectionFacts,
    cluster: &'a ClusterRuntime,
) -> UpstreamRecord<'a> {
    UpstreamRecord {
        host: Some(host.endpoint.address),
        host_name: Some(&*host.endpoint.hostname).filter(|name| !name.is_empty()),
        local_address: facts.local,
        cluster: Some(&cluster.config().info),
        tls: facts.tls.as_ref().map(TlsFacts::record),
        peer: host.endpoint.peer.as_ref(),
        ..UpstreamRecord::default()
    }
}

/// Logs a connection for which there is no upstream.
fn failed(worker: &Worker, failure: &DialFailure, mut record: TcpRecord<'_>, begun: Instant) {
    record.flags = failure.flags;
    let upstream = UpstreamRecord {
        host: failure.host.as_ref().map(|host| host.endpoint.address),
        cluster: failure.cluster.as_ref().map(|cluster| &cluster.config().info),
        transport_failure: failure.reason.as_deref(),
        attempts: failure.attempts,
        ..UpstreamRecord::default()
    };
    let mut record = TcpRecord { upstream, ..record };
    worker.telemetry.tcp(&record);
    record.event = TcpEvent::Closed;
    record.duration = begun.elapsed();
    worker.telemetry.tcp(&record);
}

/// Waits for `copy`, reporting at intervals.
async fn reporting(
    copy: impl Future<Output = Copied>,
    interval: Duration,
    mut report: impl FnMut(),
) -> Copied {
    let mut copy = std::pin::pin!(copy);
    loop {
        match tokio::time::timeout(interval, &mut copy).await {
            Ok(copied) => return copied,
            Err(_) => report(),
        }
    }
}

/// Waits for `copy`; it ends with its endpoint's health where that is asked for.
async fn while_it_stands(
    copy: impl Future<Output = Copied>,
    cluster: &ClusterRuntime,
    host: &Host,
    progress: &Progress,
) -> Copied {
    if !cluster.config().close_on_failure {
        return copy.await;
    }
    tokio::select! {
        biased;
        () = host.endpoint.state.failed.notified() => Copied {
            up: progress.up.get(),
            down: progress.down.get(),
            end: CopyEnd::UpstreamFailed,
            ..Copied::default()
        },
        copied = copy => copied,
    }
}

async fn join(
    mut io: DownstreamIo,
    upstream: Io,
    first: &[u8],
    config: &TcpConfig,
    progress: &Progress,
) -> Copied {
    if !first.is_empty() && io.write_all(first).await.is_err() {
        return Copied { end: CopyEnd::DownstreamFailed, ..Copied::default() };
    }
    let copy = async {
        match upstream {
            Io::Direct(upstream) => copy_watched(io, upstream, config.idle_timeout, progress).await,
            Io::Tunnel(Tunnel { io: upstream, _held }) => {
                copy_watched(io, upstream, config.idle_timeout, progress).await
            }
        }
    };
    let mut copied = match config.max_duration {
        None => copy.await,
        Some(limit) => timeout_after(config, limit, copy).await.unwrap_or_else(|| Copied {
            up: progress.up.get(),
            down: progress.down.get(),
            end: CopyEnd::Expired,
            ..Copied::default()
        }),
    };
    copied.down += first.len() as u64;
    copied
}

/// What `copy` comes to within `limit`, part of which is drawn.
async fn timeout_after<T>(
    config: &TcpConfig,
    limit: Duration,
    copy: impl Future<Output = T>,
) -> Option<T> {
    let limit = jittered(limit, config.max_duration_jitter);
    tokio::time::timeout(limit, copy).await.ok()
}

async fn dial(
    worker: &Rc<Worker>,
    connection: &Connection,
    config: &TcpConfig,
) -> Result<Dialed, DialFailure> {
    let failure = |flags, cluster: Option<&Rc<ClusterRuntime>>| DialFailure {
        flags,
        reason: None,
        cluster: cluster.cloned(),
        host: None,
        attempts: 0,
    };
    if !resolved(connection, config).await {
        return Err(failure(ResponseFlags::NONE, None));
    }
    let (named, metadata) = destination(worker, connection, config).await;
    let Some(named) = named else { return Err(failure(ResponseFlags::NC, None)) };
    let cluster = worker.snapshot().member(&named);
    let mut last = failure(ResponseFlags::UH, Some(&named));
    for attempt in 0..config.connect_attempts {
        if attempt > 0 {
            back_off(config, attempt).await;
        }
        let Some(host) = choose(connection, &cluster, config, metadata) else {
            cluster.stats.upstream_cx_none_healthy.inc();
            break;
        };
        let opened = reach(worker, (&cluster, &host), connection, config).await;
        match opened {
            Ok((io, facts, open)) => {
                cluster.observe(&host, Outcome::Served);
                let first = Vec::new();
                let attempts = attempt + 1;
                return Ok(Dialed {
                    io,
                    facts,
                    named,
                    cluster,
                    host,
                    first,
                    attempts,
                    _open: open,
                });
            }
            Err(ConnectError::Overflow) => {
                return Err(failure(ResponseFlags::UO, Some(&named)));
            }
            Err(error) => {
                last = refused((&named, &cluster), host, &error, attempt + 1);
            }
        }
    }
    if last.attempts == config.connect_attempts {
        last.flags.insert(ResponseFlags::URX);
        cluster.stats.upstream_cx_connect_attempts_exceeded.inc();
    }
    Err(last)
}

/// Connects to an endpoint, or to what is behind it.
async fn reach(
    worker: &Rc<Worker>,
    (cluster, host): (&Rc<ClusterRuntime>, &Rc<Host>),
    connection: &Connection,
    config: &TcpConfig,
) -> Result<(Io, ConnectionFacts, Option<OpenGuard>), ConnectError> {
    let Some(tunneling) = &config.tunneling else {
        let (io, facts, open) = open(worker, cluster, host, Some(connection.ends())).await?;
        return Ok((Io::Direct(io), facts, Some(open)));
    };
    let acquired = Acquire { cluster, host, priority: 0, mark: worker.mark, fresh: false };
    let (tunnel, local) = Tunnel::open(acquired, connection, tunneling).await?;
    Ok((Io::Tunnel(tunnel), ConnectionFacts { local, tls: None }, None))
}

/// The cluster that a connection goes to, and what it asks of endpoints.
async fn destination<'c>(
    worker: &Rc<Worker>,
    connection: &Connection,
    config: &'c TcpConfig,
) -> (Option<Rc<ClusterRuntime>>, Option<&'c MetadataMatch>) {
    if let Some(name) = connection.sni.as_deref().filter(|_| config.by_server_name) {
        return (worker.snapshot().cluster_by_name(name), None);
    }
    let chosen = config.cluster();
    let cluster = match worker.snapshot().cluster(chosen.id) {
        // Apart, so that connections that need not wait do not carry its state.
        None => Box::pin(worker.warm_cluster(chosen.id)).await,
        known => known,
    };
    (cluster, chosen.metadata_match.as_ref())
}

/// Waits until the server name is resolved where that is asked for; false if
/// there is no room to.
async fn resolved(connection: &Connection, config: &TcpConfig) -> bool {
    let Some(hosts) = &config.server_name_hosts else { return true };
    let Some(name) = connection.sni.as_deref().filter(|name| !name.is_empty()) else { return true };
    let key = host_cache::key(name, hosts.port);
    let found = hosts.cache.find_with_room(&key, hosts.port).await;
    !matches!(found, Err(HostFailure::Overflow | HostFailure::PendingOverflow))
}

/// Waits before another attempt, for a random part of a growing interval.
async fn back_off(config: &TcpConfig, attempt: u32) {
    let Some((base, max)) = config.backoff else { return };
    let grown = base.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(max);
    tokio::time::sleep(grown.mul_f64(fastrand::f64())).await;
}

/// Opens a connection to an endpoint, counted until the guard is dropped;
/// `client` is whom a PROXY header names.
pub(crate) async fn open(
    worker: &Rc<Worker>,
    cluster: &Rc<ClusterRuntime>,
    host: &Rc<Host>,
    client: Option<(SocketAddr, SocketAddr)>,
) -> Result<(UpstreamIo, ConnectionFacts, OpenGuard), ConnectError> {
    if !cluster.take(0, Resource::Connections) {
        cluster.stats.upstream_cx_overflow.inc();
        return Err(ConnectError::Overflow);
    }
    let open =
        OpenGuard::new(Acquire { cluster, host, priority: 0, mark: worker.mark, fresh: false });
    let target = Target {
        address: host.endpoint.address,
        more: &host.endpoint.more,
        hostname: &host.endpoint.hostname,
        transport: &host.endpoint.transport,
        alpn: Alpn::Configured,
        sni: None,
        client,
        mark: worker.mark,
    };
    match connect(cluster.config(), target).await {
        Ok((io, facts)) => {
            if facts.tls.is_some() {
                cluster.stats.ssl_handshake.inc();
            }
            Ok((io, facts, open))
        }
        Err(error) => {
            count_failure(cluster, host, &error);
            Err(error)
        }
    }
}

/// An attempt at an endpoint that failed; logs name the cluster that is `named`.
fn refused(
    (named, cluster): (&Rc<ClusterRuntime>, &ClusterRuntime),
    host: Rc<Host>,
    error: &ConnectError,
    attempts: u32,
) -> DialFailure {
    cluster.observe(
        &host,
        match error {
            ConnectError::Timeout => Outcome::Timeout,
            _ => Outcome::LocalOrigin,
        },
    );
    DialFailure {
        flags: ResponseFlags::UF,
        reason: Some(error.to_string()).filter(|reason| !reason.is_empty()),
        cluster: Some(named.clone()),
        host: Some(host),
        attempts,
    }
}

fn choose(
    connection: &Connection,
    cluster: &Rc<ClusterRuntime>,
    config: &TcpConfig,
    metadata: Option<&MetadataMatch>,
) -> Option<Rc<Host>> {
    if let Discovery::OriginalDst { port, .. } = &cluster.config().discovery {
        let mut address = connection.redirected.then_some(connection.local)?;
        if let Some(port) = port {
            address.set_port(*port);
        }
        return Some(cluster.original_dst(address));
    }
    if let Discovery::Dynamic(cache) = &cluster.config().discovery {
        let name = connection.sni.as_deref().filter(|name| !name.is_empty())?;
        let port = config.server_name_hosts.as_ref().map(|hosts| hosts.port);
        let key = host_cache::key(name, port.unwrap_or_else(|| cluster.default_port()));
        return cluster.named_if_resolved(cache, &key);
    }
    let hash = config.hash_source_ip.then(|| of_address(connection.remote.ip()));
    cluster.choose(LbInput { hash, metadata, retry: None })
}

/// Dials and waits until the upstream speaks first; never resolves if it
/// cannot be reached or waits for its client.
pub(crate) async fn dial_speaking(
    worker: &Rc<Worker>,
    connection: &Connection,
    config: &TcpConfig,
) -> Dialed {
    let Ok(mut dialed) = dial(worker, connection, config).await else {
        return std::future::pending().await;
    };
    let mut first = vec![0; 4096];
    // What is at the other end of a tunnel is not asked to speak first.
    let Io::Direct(io) = &mut dialed.io else { return std::future::pending().await };
    match io.read(&mut first).await {
        Ok(count) if count > 0 => {
            first.truncate(count);
            dialed.first = first;
            dialed
        }
        _ => std::future::pending().await,
    }
}
