//! What the control plane measures, under Istio's names.
//!
//! Owns the registry. Each field is one metric; the code that does the work
//! records into it. Names have no `_total` suffix because Istio's have none,
//! and dashboards ask for them as they are.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Content type of [`Metrics::encode`]'s text.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Label of what a number is about, such as `cds` or `endpoint`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TypeLabel {
    /// From a closed set.
    pub r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabel {
    version: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    component: &'static str,
    tag: &'static str,
}

/// A number that only grows.
#[derive(Clone, Debug, Default)]
pub struct Count(Arc<AtomicU64>);

impl Count {
    /// Adds one.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The number so far.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl EncodeMetric for Count {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        // As a counter it would be renamed to `…_total`.
        encoder.encode_gauge(&self.value())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Unknown
    }
}

impl prometheus_client::metrics::TypedMetric for Count {
    const TYPE: MetricType = MetricType::Unknown;
}

/// Numbers of the discovery service.
#[derive(Clone, Debug)]
pub struct XdsMetrics {
    /// Connected proxies.
    pub connected: Gauge,
    /// Responses sent, by short type (`cds`).
    pub pushes: Family<TypeLabel, Count>,
    /// Refused responses, by short type.
    pub rejects: Family<TypeLabel, Count>,
    /// Requests that named an old nonce, by short type.
    pub expired_nonces: Family<TypeLabel, Count>,
    /// Seconds from a change to the last byte sent to a proxy.
    pub convergence_seconds: Histogram,
    /// Seconds a proxy's push waited for its turn.
    pub queue_seconds: Histogram,
    /// Seconds that changes were held back to be pushed together.
    pub debounce_seconds: Histogram,
    /// Seconds to build a snapshot.
    pub snapshot_seconds: Histogram,
    /// Pushes by cause (`config`, `endpoint`).
    pub push_triggers: Family<TypeLabel, Count>,
    /// Changes received, by kind (`config`, `eds`, `svc`).
    pub inbound_updates: Family<TypeLabel, Count>,
    /// Services in the snapshot.
    pub services: Gauge,
    /// VirtualServices in the snapshot.
    pub virtual_services: Gauge,
}

/// Numbers of the certificate authority.
#[derive(Clone, Debug, Default)]
pub struct CaMetrics {
    /// Requests received.
    pub requests: Count,
    /// Certificates issued.
    pub issued: Count,
    /// Requests without an identity.
    pub unauthenticated: Count,
    /// Requests that could not be read.
    pub malformed: Count,
    /// Requests that could not be signed.
    pub failed: Count,
}

/// Everything that the control plane measures.
pub struct Metrics {
    /// Of the discovery service.
    pub xds: XdsMetrics,
    /// Of the certificate authority.
    pub ca: CaMetrics,
    /// Objects that a source delivered and that could not be used.
    pub rejected_configs: Count,
    registry: Registry,
    started: Instant,
    uptime: Gauge<f64, AtomicU64>,
    expiry: CertExpiry,
}

/// End of the CA's certificates, in seconds since 1970 and from now.
#[derive(Clone, Debug, Default)]
struct CertExpiry {
    root: Arc<AtomicU64>,
    root_timestamp: Gauge,
    root_seconds: Gauge,
    chain: Arc<AtomicU64>,
    chain_timestamp: Gauge,
    chain_seconds: Gauge,
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::default();
        let version = amime_core::build::VERSION;
        let info = Family::<VersionLabel, Gauge>::default();
        info.get_or_create(&VersionLabel { version }).set(1);
        registry.register("pilot_info", "Pilot version and build information", info);
        let build = Family::<BuildLabels, Gauge>::default();
        build.get_or_create(&BuildLabels { component: "pilot", tag: version }).set(1);
        registry.register("istio_build", "Istio component build info", build);
        let uptime = Gauge::<f64, AtomicU64>::default();
        registry.register("istiod_uptime_seconds", "Time since start", uptime.clone());
        let rejected_configs = Count::default();
        registry.register(
            "pilot_total_rejected_configs",
            "Objects that could not be used",
            rejected_configs.clone(),
        );
        let xds = XdsMetrics::register(&mut registry);
        let ca = CaMetrics::register(&mut registry);
        let expiry = CertExpiry::register(&mut registry);
        let started = Instant::now();
        Arc::new(Self { xds, ca, rejected_configs, registry, started, uptime, expiry })
    }

    /// Tells when the root and the signing certificate end.
    pub(crate) fn certificates_end(&self, root: SystemTime, signing: SystemTime) {
        self.expiry.root.store(unix_seconds(root), Ordering::Relaxed);
        self.expiry.chain.store(unix_seconds(signing), Ordering::Relaxed);
    }

    /// All metrics as text, with the ages of `now`.
    pub(crate) fn encode(&self, now: SystemTime) -> String {
        self.uptime.set(self.started.elapsed().as_secs_f64());
        self.expiry.refresh(unix_seconds(now));
        let mut out = String::new();
        if let Err(error) = text::encode(&mut out, &self.registry) {
            tracing::error!(%error, "metrics could not be encoded");
        }
        out
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl XdsMetrics {
    fn register(registry: &mut Registry) -> Self {
        // Upper bounds in seconds: from an endpoint update to a stalled proxy.
        let seconds = || Histogram::new([0.001, 0.01, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0]);
        let metrics = Self {
            connected: Gauge::default(),
            pushes: Family::default(),
            rejects: Family::default(),
            expired_nonces: Family::default(),
            convergence_seconds: seconds(),
            queue_seconds: seconds(),
            debounce_seconds: seconds(),
            snapshot_seconds: seconds(),
            push_triggers: Family::default(),
            inbound_updates: Family::default(),
            services: Gauge::default(),
            virtual_services: Gauge::default(),
        };
        let m = metrics.clone();
        registry.register("pilot_xds", "Endpoints connected over xDS", m.connected);
        registry.register("pilot_xds_pushes", "Responses sent to proxies", m.pushes);
        registry.register("pilot_total_xds_rejects", "Responses refused by proxies", m.rejects);
        registry.register(
            "pilot_xds_expired_nonce",
            "Requests with an old nonce",
            m.expired_nonces,
        );
        registry.register(
            "pilot_proxy_convergence_time",
            "Seconds between a change and the proxy receiving it",
            m.convergence_seconds,
        );
        registry.register(
            "pilot_proxy_queue_time",
            "Seconds a push waits for its turn",
            m.queue_seconds,
        );
        registry.register(
            "pilot_debounce_time",
            "Seconds changes are held back",
            m.debounce_seconds,
        );
        registry.register(
            "pilot_pushcontext_init_seconds",
            "Seconds to build a snapshot",
            m.snapshot_seconds,
        );
        registry.register("pilot_push_triggers", "Pushes by cause", m.push_triggers);
        registry.register("pilot_inbound_updates", "Changes received", m.inbound_updates);
        registry.register("pilot_services", "Services known", m.services);
        registry.register("pilot_virt_services", "Virtual services known", m.virtual_services);
        metrics
    }
}

impl CaMetrics {
    fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("citadel_server_csr_count", "Requests received", m.requests.clone());
        registry.register(
            "citadel_server_success_cert_issuance_count",
            "Certificates issued",
            m.issued.clone(),
        );
        registry.register(
            "citadel_server_authentication_failure_count",
            "Requests without an identity",
            m.unauthenticated.clone(),
        );
        registry.register(
            "citadel_server_csr_parsing_err_count",
            "Requests that could not be read",
            m.malformed.clone(),
        );
        registry.register(
            "citadel_server_csr_sign_err_count",
            "Requests that could not be signed",
            m.failed.clone(),
        );
        m
    }
}

impl CertExpiry {
    fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register(
            "citadel_server_root_cert_expiry_timestamp",
            "End of the root certificate, seconds since 1970",
            m.root_timestamp.clone(),
        );
        registry.register(
            "citadel_server_root_cert_expiry_seconds",
            "Seconds to the end of the root certificate",
            m.root_seconds.clone(),
        );
        registry.register(
            "citadel_server_cert_chain_expiry_timestamp",
            "End of the signing certificate, seconds since 1970",
            m.chain_timestamp.clone(),
        );
        registry.register(
            "citadel_server_cert_chain_expiry_seconds",
            "Seconds to the end of the signing certificate",
            m.chain_seconds.clone(),
        );
        m
    }

    fn refresh(&self, now: u64) {
        let gauges = [
            (&self.root, &self.root_timestamp, &self.root_seconds),
            (&self.chain, &self.chain_timestamp, &self.chain_seconds),
        ];
        for (end, timestamp, seconds) in gauges {
            let end = end.load(Ordering::Relaxed).cast_signed();
            timestamp.set(end);
            seconds.set(end - now.cast_signed());
        }
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
