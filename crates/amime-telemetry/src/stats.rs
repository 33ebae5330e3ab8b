//! Envoy-style statistics: counters, gauges and histograms that one worker
//! writes and the scrape reads.
//!
//! Invariant: each block has one writing thread, so a plain load and store
//! suffices and no bus lock is paid. Blocks meant for several writers
//! ([`ServerStats`], [`DnsCacheStats`] and a cluster's shared block) are only set, or added to
//! by one thread.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU16, AtomicU64, Ordering::Relaxed};

/// Upper bounds of every histogram, Envoy's Prometheus defaults.
pub(crate) const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10000.0,
    30000.0,
    60000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// A count that only grows. One writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A level that rises and falls. One writer.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Takes one off.
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds `n`.
    pub fn add(&self, n: i64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Replaces the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// Counts per bucket and a sum. One writer.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl Histogram {
    /// Records one value, in the unit of the histogram's name.
    pub fn record(&self, value: u64) {
        let index = BOUNDS.partition_point(|bound| *bound < value as f64);
        let bucket = &self.buckets[index];
        bucket.store(bucket.load(Relaxed) + 1, Relaxed);
        self.sum.store(self.sum.load(Relaxed).wrapping_add(value), Relaxed);
    }

    /// Adds the current content to `into`.
    pub(crate) fn merge_into(&self, into: &mut HistogramValue) {
        for (have, add) in into.buckets.iter_mut().zip(&self.buckets) {
            *have += add.load(Relaxed);
        }
        into.sum = into.sum.wrapping_add(self.sum.load(Relaxed));
    }
}

/// A histogram's merged content. `buckets` are not cumulative.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HistogramValue {
    pub(crate) buckets: [u64; BOUNDS.len() + 1],
    pub(crate) sum: u64,
}

impl HistogramValue {
    /// How many values were recorded.
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Value below which the share `q` (0..=1) of the records lies,
    /// interpolated within its bucket.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let rank = q * self.count() as f64;
        let mut seen = 0.0;
        for (index, count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            let low = if index == 0 { 0.0 } else { BOUNDS[index - 1] };
            let high = BOUNDS.get(index).copied().unwrap_or(low);
            let count = *count as f64;
            if seen + count >= rank {
                return low + (high - low) * ((rank - seen) / count).clamp(0.0, 1.0);
            }
            seen += count;
        }
        0.0
    }
}

/// Responses by status: the classes exactly, single codes up to a bound.
#[derive(Debug, Default)]
pub struct ResponseCodes {
    classes: [Counter; 5],
    codes: [(AtomicU16, Counter); 12],
}

impl ResponseCodes {
    /// Counts one response. Codes outside 100..=599 are ignored.
    pub fn record(&self, code: u16) {
        let Some(class) =
            (code / 100).checked_sub(1).and_then(|i| self.classes.get(usize::from(i)))
        else {
            return;
        };
        class.inc();
        for (slot, counter) in &self.codes {
            let have = slot.load(Relaxed);
            if have == 0 {
                slot.store(code, Relaxed);
            }
            if have == 0 || have == code {
                return counter.inc();
            }
        }
    }

    fn visit(&self, of: Answers, visit: &mut dyn FnMut(StatName, StatRef<'_>)) {
        for (class, counter) in (1u16..).zip(&self.classes) {
            // A class of only some answers is shown once there was one.
            if of == Answers::All || counter.value() > 0 {
                visit(StatName::Class { class, of }, StatRef::Counter(counter.value()));
            }
        }
        for (slot, counter) in &self.codes {
            match slot.load(Relaxed) {
                0 => break,
                code => visit(StatName::Code { code, of }, StatRef::Counter(counter.value())),
            }
        }
    }
}

/// Answers by where their requests come from. Made when there is one: a
/// proxy knows many clusters that it never asks.
#[derive(Debug, Default)]
pub struct ByOrigin([OnceLock<Box<FromOrigin>>; 2]);

#[derive(Debug, Default)]
struct FromOrigin {
    codes: ResponseCodes,
    time: Histogram,
}

impl ByOrigin {
    fn of(&self, internal: bool) -> &FromOrigin {
        self.0[usize::from(internal)].get_or_init(Box::default)
    }

    /// Counts the answer to a request from within or from outside.
    pub fn record(&self, internal: bool, code: u16) {
        self.of(internal).codes.record(code);
    }

    /// Records how long one took, in milliseconds.
    pub fn record_time(&self, internal: bool, millis: u64) {
        self.of(internal).time.record(millis);
    }

    fn visit(&self, visit: &mut dyn FnMut(StatName, StatRef<'_>)) {
        for (of, own) in [Answers::External, Answers::Internal].into_iter().zip(&self.0) {
            let Some(own) = own.get() else { continue };
            own.codes.visit(of, visit);
            let completed = own.codes.classes.iter().map(Counter::value).sum();
            let name = |name| StatName::Scoped { name, of };
            visit(name("upstream_rq_completed"), StatRef::Counter(completed));
            visit(name("upstream_rq_time"), StatRef::Histogram(&own.time));
        }
    }
}

/// Which answers a stat is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Answers {
    All,
    /// Those that led to another attempt.
    Retried,
    /// Those to requests from outside.
    External,
    /// Those to requests from within.
    Internal,
}

impl Answers {
    /// What stands before the names of their stats.
    pub(crate) fn scope(self) -> &'static str {
        match self {
            Self::All => "",
            Self::Retried => "retry.",
            Self::External => "external.",
            Self::Internal => "internal.",
        }
    }
}

/// Name of a stat within its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum StatName {
    /// A plain name.
    Plain(&'static str),
    /// A plain name, of some answers.
    Scoped { name: &'static str, of: Answers },
    /// A response class, 1 to 5.
    Class { class: u16, of: Answers },
    /// A response code.
    Code { code: u16, of: Answers },
}

impl StatName {
    pub(crate) fn is_code(self) -> bool {
        matches!(self, Self::Code { .. })
    }
}

/// One stat's value as read.
#[derive(Debug)]
pub(crate) enum StatRef<'a> {
    Counter(u64),
    Gauge(i64),
    Histogram(&'a Histogram),
}

/// A block of stats that can be walked.
pub(crate) trait StatBlock: Send + Sync {
    /// Prefix of its response-code stats, as `upstream_rq`.
    const CODES: &'static str;
    /// Calls `visit` for each stat.
    fn visit(&self, visit: &mut dyn FnMut(StatName, StatRef<'_>));
}

macro_rules! stat_block {
    ($(#[$doc:meta])* $name:ident, codes $codes:literal,
     counters { $($(#[$cdoc:meta])* $counter:ident),* $(,)? }
     gauges { $($(#[$gdoc:meta])* $gauge:ident),* $(,)? }
     histograms { $($(#[$hdoc:meta])* $histogram:ident),* $(,)? }) => {
        $(#[$doc])*
        ///
        /// Field names are Envoy's stat names.
        #[derive(Debug, Default)]
        #[allow(missing_docs, reason = "the fields are Envoy's stat names, documented there")]
        pub struct $name {
            $($(#[$cdoc])* pub $counter: Counter,)*
            $($(#[$gdoc])* pub $gauge: Gauge,)*
            $($(#[$hdoc])* pub $histogram: Histogram,)*
            /// Responses by status.
            pub codes: ResponseCodes,
            /// Responses by status that led to another attempt.
            pub retry_codes: ResponseCodes,
            /// Responses by where their requests come from.
            pub by_origin: ByOrigin,
        }

        impl StatBlock for $name {
            const CODES: &'static str = $codes;
            fn visit(&self, visit: &mut dyn FnMut(StatName, StatRef<'_>)) {
                $(visit(StatName::Plain(stringify!($counter)), StatRef::Counter(self.$counter.value()));)*
                $(visit(StatName::Plain(stringify!($gauge)), StatRef::Gauge(self.$gauge.value()));)*
                $(visit(StatName::Plain(stringify!($histogram)), StatRef::Histogram(&self.$histogram));)*
                if !Self::CODES.is_empty() {
                    self.codes.visit(Answers::All, visit);
                    self.retry_codes.visit(Answers::Retried, visit);
                    self.by_origin.visit(visit);
                }
            }
        }
    };
}

stat_block! {
    /// `cluster.<name>.*`.
    ClusterStats, codes "upstream_rq",
    counters {
        assignment_stale, assignment_timeout_received, bind_errors, health_check_attempt,
        health_check_failure, health_check_network_failure, health_check_passive_failure,
        health_check_success, lb_healthy_panic,
        lb_local_cluster_not_ok, lb_recalculate_zone_structures, lb_subsets_created,
        lb_subsets_fallback, lb_subsets_fallback_panic, lb_subsets_removed,
        lb_subsets_selected, lb_zone_cluster_too_small, lb_zone_no_capacity_left,
        lb_zone_routing_all_directly, lb_zone_routing_cross_zone,
        lb_zone_routing_sampled, membership_change,
        outlier_detection_ejections_consecutive_5xx,
        outlier_detection_ejections_detected_consecutive_5xx,
        outlier_detection_ejections_detected_consecutive_gateway_failure,
        outlier_detection_ejections_detected_consecutive_local_origin_failure,
        outlier_detection_ejections_detected_failure_percentage,
        outlier_detection_ejections_detected_local_origin_failure_percentage,
        outlier_detection_ejections_detected_local_origin_success_rate,
        outlier_detection_ejections_detected_success_rate,
        outlier_detection_ejections_enforced_consecutive_5xx,
        outlier_detection_ejections_enforced_consecutive_gateway_failure,
        outlier_detection_ejections_enforced_consecutive_local_origin_failure,
        outlier_detection_ejections_enforced_failure_percentage,
        outlier_detection_ejections_enforced_local_origin_failure_percentage,
        outlier_detection_ejections_enforced_local_origin_success_rate,
        outlier_detection_ejections_enforced_success_rate,
        outlier_detection_ejections_enforced_total, outlier_detection_ejections_overflow,
        outlier_detection_ejections_success_rate, outlier_detection_ejections_total,
        retry_or_shadow_abandoned, ssl_connection_error, ssl_fail_verify_cert_hash,
        ssl_fail_verify_error, ssl_fail_verify_san, ssl_handshake, update_attempt,
        update_empty, update_failure, update_no_rebuild, update_success, upstream_cx_close_notify,
        upstream_cx_connect_attempts_exceeded, upstream_cx_connect_fail,
        upstream_cx_connect_timeout, upstream_cx_destroy, upstream_cx_destroy_local,
        upstream_cx_destroy_remote, upstream_cx_http1_total, upstream_cx_http2_total,
        upstream_cx_idle_timeout, upstream_cx_max_duration_reached, upstream_cx_max_requests, upstream_cx_none_healthy,
        upstream_cx_overflow, upstream_cx_pool_overflow, upstream_cx_protocol_error,
        upstream_cx_rx_bytes_total, upstream_cx_total, upstream_cx_tx_bytes_total,
        upstream_rq_active_overflow, upstream_rq_cancelled, upstream_rq_completed, upstream_rq_maintenance_mode,
        upstream_rq_max_duration_reached, upstream_rq_pending_failure_eject,
        upstream_rq_pending_overflow, upstream_rq_pending_total, upstream_rq_per_try_timeout,
        upstream_rq_retry, upstream_rq_retry_limit_exceeded, upstream_rq_retry_overflow,
        upstream_rq_retry_success, upstream_rq_rx_reset, upstream_rq_timeout, upstream_rq_total,
        upstream_rq_tx_reset,
    }
    gauges {
        circuit_breakers_default_cx_open, circuit_breakers_default_remaining_cx,
        circuit_breakers_default_remaining_pending, circuit_breakers_default_remaining_retries,
        circuit_breakers_default_remaining_rq, circuit_breakers_default_rq_open,
        circuit_breakers_default_rq_pending_open, circuit_breakers_default_rq_retry_open,
        circuit_breakers_high_cx_open, circuit_breakers_high_remaining_cx,
        circuit_breakers_high_remaining_pending, circuit_breakers_high_remaining_retries,
        circuit_breakers_high_remaining_rq, circuit_breakers_high_rq_open,
        circuit_breakers_high_rq_pending_open, circuit_breakers_high_rq_retry_open,
        health_check_degraded, health_check_healthy,
        max_host_weight, membership_degraded, membership_excluded, membership_healthy,
        membership_total, outlier_detection_ejections_active, upstream_cx_active,
        upstream_cx_rx_bytes_buffered, upstream_cx_tx_bytes_buffered, upstream_rq_active,
        upstream_rq_pending_active, version,
    }
    histograms { upstream_cx_connect_ms, upstream_cx_length_ms, upstream_rq_time }
}

stat_block! {
    /// `listener.<address>.*`.
    ListenerStats, codes "",
    counters {
        downstream_cx_destroy, downstream_cx_overflow, downstream_cx_overload_reject,
        downstream_cx_total, downstream_cx_transport_socket_connect_timeout,
        downstream_global_cx_overflow, downstream_pre_cx_timeout, no_filter_chain_match,
        ssl_ciphers_ecdhe_ecdsa_aes128, ssl_ciphers_ecdhe_ecdsa_aes256,
        ssl_ciphers_ecdhe_ecdsa_chacha20, ssl_ciphers_ecdhe_rsa_aes128,
        ssl_ciphers_ecdhe_rsa_aes256, ssl_ciphers_ecdhe_rsa_chacha20, ssl_ciphers_tls13_aes128,
        ssl_ciphers_tls13_aes256, ssl_ciphers_tls13_chacha20, ssl_connection_error,
        ssl_context_not_ready, ssl_fail_verify_cert_hash, ssl_fail_verify_error,
        ssl_fail_verify_no_cert,
        ssl_fail_verify_san, ssl_handshake, ssl_no_certificate, ssl_session_reused,
        ssl_versions_tls12, ssl_versions_tls13,
    }
    gauges { downstream_cx_active, downstream_pre_cx_active }
    histograms { downstream_cx_length_ms }
}

impl ListenerStats {
    /// Counts a finished handshake by version and suite, in OpenSSL's spelling.
    pub fn handshake(&self, version: &str, cipher: &str) {
        self.ssl_handshake.inc();
        match version {
            "TLSv1.2" => self.ssl_versions_tls12.inc(),
            _ => self.ssl_versions_tls13.inc(),
        }
        match cipher {
            "TLS_AES_128_GCM_SHA256" => self.ssl_ciphers_tls13_aes128.inc(),
            "TLS_AES_256_GCM_SHA384" => self.ssl_ciphers_tls13_aes256.inc(),
            "TLS_CHACHA20_POLY1305_SHA256" => self.ssl_ciphers_tls13_chacha20.inc(),
            "ECDHE-ECDSA-AES128-GCM-SHA256" => self.ssl_ciphers_ecdhe_ecdsa_aes128.inc(),
            "ECDHE-ECDSA-AES256-GCM-SHA384" => self.ssl_ciphers_ecdhe_ecdsa_aes256.inc(),
            "ECDHE-ECDSA-CHACHA20-POLY1305" => self.ssl_ciphers_ecdhe_ecdsa_chacha20.inc(),
            "ECDHE-RSA-AES128-GCM-SHA256" => self.ssl_ciphers_ecdhe_rsa_aes128.inc(),
            "ECDHE-RSA-AES256-GCM-SHA384" => self.ssl_ciphers_ecdhe_rsa_aes256.inc(),
            "ECDHE-RSA-CHACHA20-POLY1305" => self.ssl_ciphers_ecdhe_rsa_chacha20.inc(),
            _ => {}
        }
    }
}

/// Envoy's name of a stat whose name holds a value: stem, label, value.
pub(crate) fn valued(name: &str) -> Option<(&'static str, &'static str, &'static str)> {
    let cipher = |name| Some(("ssl_ciphers", "envoy_ssl_cipher", name));
    match name {
        "ssl_versions_tls12" => Some(("ssl_versions", "envoy_ssl_version", "TLSv1.2")),
        "ssl_versions_tls13" => Some(("ssl_versions", "envoy_ssl_version", "TLSv1.3")),
        "ssl_ciphers_tls13_aes128" => cipher("TLS_AES_128_GCM_SHA256"),
        "ssl_ciphers_tls13_aes256" => cipher("TLS_AES_256_GCM_SHA384"),
        "ssl_ciphers_tls13_chacha20" => cipher("TLS_CHACHA20_POLY1305_SHA256"),
        "ssl_ciphers_ecdhe_ecdsa_aes128" => cipher("ECDHE-ECDSA-AES128-GCM-SHA256"),
        "ssl_ciphers_ecdhe_ecdsa_aes256" => cipher("ECDHE-ECDSA-AES256-GCM-SHA384"),
        "ssl_ciphers_ecdhe_ecdsa_chacha20" => cipher("ECDHE-ECDSA-CHACHA20-POLY1305"),
        "ssl_ciphers_ecdhe_rsa_aes128" => cipher("ECDHE-RSA-AES128-GCM-SHA256"),
        "ssl_ciphers_ecdhe_rsa_aes256" => cipher("ECDHE-RSA-AES256-GCM-SHA384"),
        "ssl_ciphers_ecdhe_rsa_chacha20" => cipher("ECDHE-RSA-CHACHA20-POLY1305"),
        _ => None,
    }
}

stat_block! {
    /// `http.<stat_prefix>.*`.
    HttpStats, codes "downstream_rq",
    counters {
        csrf_missing_source_origin, csrf_request_invalid, csrf_request_valid,
        downstream_cx_delayed_close_timeout, downstream_cx_destroy, downstream_cx_destroy_local,
        downstream_cx_destroy_local_active_rq, downstream_cx_destroy_remote,
        downstream_cx_destroy_remote_active_rq, downstream_cx_drain_close,
        downstream_cx_http1_total, downstream_cx_http2_total, downstream_cx_http3_total,
        downstream_cx_idle_timeout, downstream_cx_overload_disable_keepalive,
        downstream_cx_max_duration_reached, downstream_cx_max_requests_reached,
        downstream_cx_protocol_error, downstream_cx_rx_bytes_total, downstream_cx_ssl_total,
        downstream_cx_total, downstream_cx_tx_bytes_total, downstream_cx_upgrades_total,
        downstream_rq_completed, downstream_rq_failed_path_normalization,
        downstream_rq_header_timeout, downstream_rq_http1_total, downstream_rq_http2_total,
        downstream_rq_http3_total,
        downstream_rq_idle_timeout, downstream_rq_max_duration_reached,
        downstream_rq_non_relative_path, downstream_rq_overload_close,
        downstream_rq_redirected_with_normalized_path, downstream_rq_response_before_rq_complete,
        downstream_rq_rx_reset, downstream_rq_timeout, downstream_rq_too_large,
        downstream_rq_too_many_premature_resets,
        downstream_rq_total, downstream_rq_tx_reset, downstream_rq_ws_on_non_ws_route,
        fault_aborts_injected, fault_delays_injected, fault_faults_overflow,
        fault_response_rl_injected, no_cluster, no_route,
        rbac_allowed, rbac_denied, rbac_shadow_allowed, rbac_shadow_denied, rq_direct_response,
        rq_redirect, rq_total,
    }
    gauges {
        downstream_cx_active, downstream_cx_http1_active, downstream_cx_http2_active,
        downstream_cx_http3_active,
        downstream_cx_ssl_active, downstream_cx_upgrades_active, downstream_rq_active,
        fault_active_faults,
    }
    histograms { downstream_cx_length_ms, downstream_rq_time }
}

stat_block! {
    /// `tcp.<stat_prefix>.*`.
    TcpStats, codes "",
    counters {
        downstream_cx_no_route, downstream_cx_rx_bytes_total, downstream_cx_total,
        downstream_cx_tx_bytes_total, idle_timeout, max_downstream_connection_duration,
    }
    gauges { downstream_cx_rx_bytes_buffered, downstream_cx_tx_bytes_buffered }
    histograms { }
}

stat_block! {
    /// `dns_cache.<name>.*`.
    DnsCacheStats, codes "",
    counters {
        cache_load, dns_query_attempt, dns_query_failure, dns_query_success, dns_query_timeout,
        dns_rq_pending_overflow, host_added, host_address_changed, host_overflow, host_removed,
    }
    gauges {
        circuit_breakers_rq_pending_open, circuit_breakers_rq_pending_remaining, num_hosts,
    }
    histograms { }
}

stat_block! {
    /// `http2.*`: what clients do over HTTP/2.
    Http2Stats, codes "",
    counters {
        inbound_empty_frames_flood, inbound_priority_frames_flood,
        inbound_window_update_frames_flood, outbound_control_flood, rx_reset, tx_flush_timeout,
    }
    gauges { }
    histograms { }
}

stat_block! {
    /// Verdicts of authorization filters of connections, by the whole prefix of
    /// their names.
    VerdictStats, codes "",
    counters { allowed, denied }
    gauges { }
    histograms { }
}

stat_block! {
    /// Stats of the process: `listener_manager.*`, `cluster_manager.*`,
    /// `server.*` and `control_plane.*`, prefix and name joined by `_`.
    ServerStats, codes "",
    counters {
        cluster_manager_cluster_added, cluster_manager_cluster_modified,
        cluster_manager_cluster_removed, cluster_manager_cds_update_attempt,
        cluster_manager_cds_update_failure, cluster_manager_cds_update_rejected,
        cluster_manager_cds_update_success, listener_manager_lds_update_attempt,
        listener_manager_lds_update_failure, listener_manager_lds_update_rejected,
        listener_manager_lds_update_success, listener_manager_listener_added,
        listener_manager_listener_create_failure, listener_manager_listener_create_success,
        listener_manager_listener_modified, listener_manager_listener_removed,
        listener_manager_listener_stopped, control_plane_connected_total,
        amime_access_log_dropped, amime_label_sets_dropped,
    }
    gauges {
        cluster_manager_active_clusters, cluster_manager_warming_clusters,
        control_plane_connected_state, listener_manager_total_filter_chains_draining,
        listener_manager_total_listeners_active, listener_manager_total_listeners_draining,
        listener_manager_total_listeners_warming, listener_manager_workers_started,
        runtime_num_keys, runtime_num_layers,
        server_concurrency, server_days_until_first_cert_expiring, server_live,
        server_memory_allocated, server_memory_heap_size, server_memory_physical_size,
        server_parent_connections, server_state,
        server_total_connections, server_uptime, server_version,
    }
    histograms { server_initialization_time_ms }
}
