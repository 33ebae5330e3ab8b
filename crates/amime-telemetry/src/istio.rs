//! Istio's standard metrics: series keyed by interned label sets.
//!
//! A worker finds its series by the raw bytes that make the labels; labels are
//! rendered once, at first sight. Series are read by the scrape while the
//! worker goes on counting.

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use super::record::{Direction, DownstreamRecord, HttpRecord, TcpEvent, TcpRecord, UpstreamRecord};
use super::stats::{Counter, Histogram};
use super::{PeerMetadata, ResponseFlags, ServiceIdentity};

/// Series one worker keeps at most; later label sets are counted as unknown.
const MAX_SERIES: usize = 4096;

/// Settings of the `istio.stats` filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IstioStats {
    /// Whether an unknown destination is `unknown` rather than the `Host` asked for.
    pub disable_host_header_fallback: bool,
}

/// Series of one HTTP label set.
#[derive(Debug)]
pub(crate) struct HttpSeries {
    pub(crate) labels: Box<str>,
    pub(crate) requests: Counter,
    pub(crate) duration_ms: Histogram,
    pub(crate) request_bytes: Histogram,
    pub(crate) response_bytes: Histogram,
}

/// Series of one TCP label set.
#[derive(Debug)]
pub(crate) struct TcpSeries {
    pub(crate) labels: Box<str>,
    pub(crate) opened: Counter,
    pub(crate) closed: Counter,
    pub(crate) sent: Counter,
    pub(crate) received: Counter,
}

/// One worker's series.
#[derive(Debug)]
pub(crate) struct IstioSeries {
    http: HashMap<Box<[u8]>, Arc<HttpSeries>, XxBuild>,
    tcp: HashMap<Box<[u8]>, Arc<TcpSeries>, XxBuild>,
    key: Vec<u8>,
}

/// What a new series is registered with.
pub(crate) trait SeriesSink {
    fn add_http(&self, series: &Arc<HttpSeries>);
    fn add_tcp(&self, series: &Arc<TcpSeries>);
    fn overflowed(&self);
}

impl Default for IstioSeries {
    fn default() -> Self {
        let seed = XxBuild(fastrand::u64(..));
        Self {
            http: HashMap::with_hasher(seed),
            tcp: HashMap::with_hasher(seed),
            key: Vec::with_capacity(512),
        }
    }
}

impl IstioSeries {
    /// Counts one finished request.
    pub(crate) fn http(
        &mut self,
        stats: &IstioStats,
        local: &PeerMetadata,
        record: &HttpRecord<'_>,
        sink: &impl SeriesSink,
    ) {
        let mut labels = Labels::new(
            record.listener.direction,
            local,
            &record.downstream,
            &record.upstream,
            record.flags,
        );
        labels.protocol = if record.grpc { "grpc" } else { "http" };
        labels.response_code = Some(record.response_code);
        labels.grpc_status = if record.grpc { grpc_status(record) } else { "" };
        if !stats.disable_host_header_fallback {
            labels.fall_back_to_host(record.authority);
        }
        labels.name_by_route(record.route_name);
        self.key.clear();
        labels.key(&mut self.key);
        let series = if let Some(series) = self.http.get(self.key.as_slice()) {
            series
        } else {
            let full = self.http.len() >= MAX_SERIES;
            if full {
                sink.overflowed();
                labels.forget_peer_input();
                self.key.clear();
                labels.key(&mut self.key);
            }
            self.http.entry(self.key.as_slice().into()).or_insert_with(|| {
                let series = Arc::new(HttpSeries {
                    labels: labels.render().into(),
                    requests: Counter::default(),
                    duration_ms: Histogram::default(),
                    request_bytes: Histogram::default(),
                    response_bytes: Histogram::default(),
                });
                sink.add_http(&series);
                series
            })
        };
        series.requests.inc();
        let duration = record.timing.total.as_millis();
        series.duration_ms.record(u64::try_from(duration).unwrap_or(u64::MAX));
        series.request_bytes.record(record.wire_bytes_received);
        series.response_bytes.record(record.wire_bytes_sent);
    }

    /// Counts one moment of a connection.
    pub(crate) fn tcp(
        &mut self,
        local: &PeerMetadata,
        record: &TcpRecord<'_>,
        sink: &impl SeriesSink,
    ) {
        let mut labels = Labels::new(
            record.listener.direction,
            local,
            &record.downstream,
            &record.upstream,
            record.flags,
        );
        self.key.clear();
        labels.key(&mut self.key);
        let series = if let Some(series) = self.tcp.get(self.key.as_slice()) {
            series
        } else {
            if self.tcp.len() >= MAX_SERIES {
                sink.overflowed();
                labels.forget_peer_input();
                self.key.clear();
                labels.key(&mut self.key);
            }
            self.tcp.entry(self.key.as_slice().into()).or_insert_with(|| {
                let series = Arc::new(TcpSeries {
                    labels: labels.render().into(),
                    opened: Counter::default(),
                    closed: Counter::default(),
                    sent: Counter::default(),
                    received: Counter::default(),
                });
                sink.add_tcp(&series);
                series
            })
        };
        match record.event {
            TcpEvent::Opened => series.opened.inc(),
            TcpEvent::Closed => series.closed.inc(),
            TcpEvent::Started | TcpEvent::Progress => {}
        }
        // "Sent" is what the responding side sent, in both reporters' view.
        series.sent.add(record.sent_delta);
        series.received.add(record.received_delta);
    }
}

/// The parts that make one label set.
#[derive(Clone, Debug)]
struct Labels<'a> {
    direction: Direction,
    local: &'a PeerMetadata,
    peer: Option<&'a PeerMetadata>,
    source_principal: &'a str,
    destination_principal: &'a str,
    service_host: &'a str,
    service_name: &'a str,
    service_namespace: &'a str,
    protocol: &'static str,
    response_code: Option<u16>,
    grpc_status: &'a str,
    flags: ResponseFlags,
    security: &'static str,
}

/// Clusters that stand for no service and give it their name instead.
const NAMED_CLUSTERS: [&str; 6] = [
    "BlackHoleCluster",
    "PassthroughCluster",
    "InboundPassthroughCluster",
    "InboundPassthroughClusterIpv4",
    "InboundPassthroughClusterIpv6",
    "InboundBlackHoleCluster",
];

impl<'a> Labels<'a> {
    fn new(
        direction: Direction,
        local: &'a PeerMetadata,
        downstream: &DownstreamRecord<'a>,
        upstream: &UpstreamRecord<'a>,
        flags: ResponseFlags,
    ) -> Self {
        let inbound = direction == Direction::Inbound;
        let (tls, peer) =
            if inbound { (downstream.tls, downstream.peer) } else { (upstream.tls, upstream.peer) };
        let theirs = tls.and_then(|tls| tls.peer_uri_san).unwrap_or_default();
        let ours = tls.and_then(|tls| tls.local_uri_san).unwrap_or_default();
        let (source_principal, destination_principal) =
            if inbound { (theirs, ours) } else { (ours, theirs) };
        let cluster = upstream.cluster.map_or("", |cluster| &*cluster.name);
        let mut labels = Self {
            direction,
            local,
            peer: peer.map(|peer| &**peer),
            source_principal,
            destination_principal,
            service_host: "",
            service_name: "",
            service_namespace: "",
            protocol: "tcp",
            response_code: None,
            grpc_status: "",
            flags,
            security: match tls {
                _ if !inbound => "unknown",
                Some(tls) if tls.mutual => "mutual_tls",
                _ => "none",
            },
        };
        let service = upstream.cluster.and_then(|cluster| cluster.service.as_ref());
        if NAMED_CLUSTERS.contains(&cluster) {
            labels.service_name = if cluster.starts_with("InboundPassthroughCluster") {
                "InboundPassthroughCluster"
            } else {
                cluster
            };
        } else if let Some(ServiceIdentity { host, name, namespace }) = service {
            labels.service_host = host;
            labels.service_name = name;
            labels.service_namespace = namespace;
        }
        labels
    }

    fn inbound(&self) -> bool {
        self.direction == Direction::Inbound
    }

    /// Takes the destination from the host asked for if the cluster named none.
    fn fall_back_to_host(&mut self, authority: &'a str) {
        if !self.service_host.is_empty() {
            return;
        }
        self.service_host = authority;
        if self.service_name.is_empty() {
            let namespace = if self.inbound() {
                self.local.namespace.as_str()
            } else {
                self.peer.map_or("", |peer| peer.namespace.as_str())
            };
            self.service_name = service_name(authority, namespace);
        }
    }

    /// Requests that never reached a cluster are told by their catch-all route.
    fn name_by_route(&mut self, route: Option<&str>) {
        match route {
            Some("block_all") => self.service_name = "BlackHoleCluster",
            Some("allow_any") => self.service_name = "PassthroughCluster",
            _ => {}
        }
    }

    /// Drops what a peer can choose freely, so that no more than a bounded
    /// number of label sets is left.
    fn forget_peer_input(&mut self) {
        self.peer = None;
        self.service_host = "";
        self.service_name = "";
        self.source_principal = "";
        self.destination_principal = "";
        self.grpc_status = "";
    }

    fn key(&self, key: &mut Vec<u8>) {
        let mut text = |text: &str| {
            key.extend_from_slice(text.as_bytes());
            // Not part of UTF-8, so no two label sets share a key.
            key.push(0xff);
        };
        text(self.source_principal);
        text(self.destination_principal);
        text(self.service_host);
        text(self.service_name);
        text(self.service_namespace);
        text(self.grpc_status);
        text(self.protocol);
        text(self.security);
        if let Some(peer) = self.peer {
            text(&peer.workload);
            text(&peer.namespace);
            text(&peer.canonical_service);
            text(&peer.canonical_revision);
            text(&peer.app);
            text(&peer.version);
            text(&peer.cluster);
        }
        key.push(self.direction as u8);
        key.extend_from_slice(&self.response_code.unwrap_or(u16::MAX).to_le_bytes());
        key.extend_from_slice(&self.flags.bits().to_le_bytes());
    }

    fn render(&self) -> String {
        let unknown = PeerMetadata::default();
        let peer = self.peer.unwrap_or(&unknown);
        let (source, destination) =
            if self.inbound() { (peer, self.local) } else { (self.local, peer) };
        let namespace = if self.service_namespace.is_empty() {
            &destination.namespace
        } else {
            self.service_namespace
        };
        let mut out = String::with_capacity(768);
        let mut label = |name: &str, value: &str| {
            let value = if value.is_empty() { "unknown" } else { value };
            super::prometheus::push_label(&mut out, name, value);
        };
        label("reporter", if self.inbound() { "destination" } else { "source" });
        label("source_workload", &source.workload);
        label("source_canonical_service", &source.canonical_service);
        label("source_canonical_revision", revision(source));
        label("source_workload_namespace", &source.namespace);
        label("source_principal", self.source_principal);
        label("source_app", &source.app);
        label("source_version", &source.version);
        label("source_cluster", &source.cluster);
        label("destination_workload", &destination.workload);
        label("destination_workload_namespace", &destination.namespace);
        label("destination_principal", self.destination_principal);
        label("destination_app", &destination.app);
        label("destination_version", &destination.version);
        label("destination_service", self.service_host);
        label("destination_canonical_service", &destination.canonical_service);
        label("destination_canonical_revision", revision(destination));
        label("destination_service_name", self.service_name);
        label("destination_service_namespace", namespace);
        label("destination_cluster", &destination.cluster);
        label("request_protocol", self.protocol);
        if let Some(code) = self.response_code {
            let mut text = String::new();
            // A write to a `String` cannot fail.
            let _ = write!(text, "{code}");
            label("response_code", &text);
        }
        let mut flags = vec![];
        self.flags.write_short(&mut flags);
        label("response_flags", &String::from_utf8_lossy(&flags));
        label("connection_security_policy", self.security);
        if self.response_code.is_some() {
            super::prometheus::push_label(&mut out, "grpc_response_status", self.grpc_status);
        }
        out
    }
}

/// A known workload without a revision is at Istio's default, `latest`.
fn revision(peer: &PeerMetadata) -> &str {
    match peer.canonical_revision.as_str() {
        "" if !peer.canonical_service.is_empty() => "latest",
        revision => revision,
    }
}

/// The short name in `reviews.default…` if the host is in `namespace`,
/// otherwise the host without its port.
fn service_name<'a>(host: &'a str, namespace: &str) -> &'a str {
    let bare = host.split(':').next().unwrap_or_default();
    let mut labels = bare.split('.');
    match (labels.next(), labels.next()) {
        (Some(name), Some(second)) if second == namespace => name,
        _ => bare,
    }
}

fn grpc_status<'a>(record: &HttpRecord<'a>) -> &'a str {
    let trailers = record.response_trailers.and_then(|trailers| trailers.get("grpc-status"));
    let value = trailers.or_else(|| record.response_headers.get("grpc-status"));
    let text = value.and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Anything but a short number is not a status and could be of any size.
    if text.len() <= 3 && text.bytes().all(|byte| byte.is_ascii_digit()) { text } else { "" }
}

/// xxHash with a seed of its own per process.
#[derive(Clone, Copy, Debug)]
struct XxBuild(u64);

#[derive(Debug)]
struct XxOne {
    seed: u64,
    hash: u64,
}

impl BuildHasher for XxBuild {
    type Hasher = XxOne;
    fn build_hasher(&self) -> XxOne {
        XxOne { seed: self.0, hash: 0 }
    }
}

impl Hasher for XxOne {
    fn write(&mut self, bytes: &[u8]) {
        self.hash = xxhash_rust::xxh64::xxh64(bytes, self.seed ^ self.hash);
    }
    fn write_usize(&mut self, length: usize) {
        // The length prefix of a slice.
        self.hash ^= length as u64;
    }
    fn finish(&self) -> u64 {
        self.hash
    }
}
