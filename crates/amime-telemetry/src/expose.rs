//! The scrape: merges all workers' shards and prints them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use regex::Regex;

use super::Telemetry;
use super::prometheus::{family, histogram, push_label, sample};
use super::shared::SharedName;
use super::stats::{HistogramValue, StatBlock, StatName, StatRef, valued};
use super::worker::{Blocks, Shard, lock};

/// Which stats a reader wants.
#[derive(Clone, Debug, Default)]
pub struct StatsFilter {
    /// Keeps stats whose dotted name it finds.
    pub name: Option<Regex>,
    /// Turns `name` round.
    pub inverted: bool,
    /// Leaves out what was never counted.
    pub used_only: bool,
    /// Keeps stats of one kind.
    pub kind: Option<StatKind>,
}

/// A kind of stats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatKind {
    /// Counts that only grow.
    Counter,
    /// Levels.
    Gauge,
    /// Distributions.
    Histogram,
}

impl StatsFilter {
    fn takes(&self, stat: &Stat) -> bool {
        let used = !self.used_only || stat.value.is_used();
        let named = self.name.as_ref();
        used && self.kind.is_none_or(|kind| kind == stat.value.kind())
            && named.is_none_or(|regex| regex.is_match(&stat.dotted) != self.inverted)
    }
}

/// A merged value.
#[derive(Clone, Debug)]
enum Value {
    Counter(u64),
    Gauge(i64),
    Histogram(Box<HistogramValue>),
}

impl Value {
    fn is_used(&self) -> bool {
        match self {
            Self::Counter(value) => *value != 0,
            Self::Gauge(value) => *value != 0,
            Self::Histogram(value) => value.count() != 0,
        }
    }

    fn kind(&self) -> StatKind {
        match self {
            Self::Counter(_) => StatKind::Counter,
            Self::Gauge(_) => StatKind::Gauge,
            Self::Histogram(_) => StatKind::Histogram,
        }
    }

    fn add(&mut self, stat: &StatRef<'_>) {
        match (self, stat) {
            (Self::Counter(have), StatRef::Counter(add)) => *have = have.wrapping_add(*add),
            (Self::Gauge(have), StatRef::Gauge(add)) => *have = have.wrapping_add(*add),
            (Self::Histogram(have), StatRef::Histogram(add)) => add.merge_into(have),
            // One name is one kind in every shard.
            _ => {}
        }
    }

    fn zero(stat: &StatRef<'_>) -> Self {
        match stat {
            StatRef::Counter(_) => Self::Counter(0),
            StatRef::Gauge(_) => Self::Gauge(0),
            StatRef::Histogram(_) => Self::Histogram(Box::default()),
        }
    }
}

/// One stat under both of its names.
struct Stat {
    /// Envoy's dotted name.
    dotted: String,
    /// Prometheus metric name.
    metric: String,
    labels: String,
    value: Value,
}

/// How a block's name becomes a tag.
struct Scope {
    prefix: &'static str,
    tag: &'static str,
}

impl Telemetry {
    /// All metrics in Prometheus text format.
    pub fn prometheus(&self, filter: &StatsFilter) -> String {
        let mut families: BTreeMap<String, Vec<Stat>> = BTreeMap::new();
        for stat in self.collect().into_iter().filter(|stat| filter.takes(stat)) {
            families.entry(stat.metric.clone()).or_default().push(stat);
        }
        let mut out = String::with_capacity(16 * 1024);
        for (name, stats) in families {
            let kind = match stats[0].value.kind() {
                StatKind::Counter => "counter",
                StatKind::Gauge => "gauge",
                StatKind::Histogram => "histogram",
            };
            family(&mut out, &name, kind);
            for stat in stats {
                match &stat.value {
                    Value::Counter(value) => sample(&mut out, &name, &stat.labels, value),
                    Value::Gauge(value) => sample(&mut out, &name, &stat.labels, value),
                    Value::Histogram(value) => histogram(&mut out, &name, &stat.labels, value),
                }
            }
        }
        out
    }

    /// All stats as Envoy's `/stats` prints them: `name: value`, sorted.
    pub fn stats_text(&self, filter: &StatsFilter) -> String {
        let mut stats = self.collect();
        stats.retain(|stat| filter.takes(stat));
        // Histograms last, as Envoy does.
        stats.sort_by(|a, b| {
            let last = |stat: &Stat| matches!(stat.value, Value::Histogram(_));
            (last(a), &a.dotted).cmp(&(last(b), &b.dotted))
        });
        let mut out = String::new();
        for stat in stats {
            // A write to a `String` cannot fail.
            let _ = match &stat.value {
                Value::Counter(value) => writeln!(out, "{}: {value}", stat.dotted),
                Value::Gauge(value) => writeln!(out, "{}: {value}", stat.dotted),
                Value::Histogram(value) => {
                    writeln!(out, "{}: {}", stat.dotted, quantiles(value))
                }
            };
        }
        out
    }

    /// All stats as Envoy's `/stats?format=json` prints them.
    pub fn stats_json(&self, filter: &StatsFilter) -> serde_json::Value {
        let mut stats = self.collect();
        stats.retain(|stat| filter.takes(stat));
        stats.sort_by(|a, b| a.dotted.cmp(&b.dotted));
        let mut rows: Vec<_> = stats
            .iter()
            .filter_map(|stat| match &stat.value {
                Value::Counter(value) => {
                    Some(serde_json::json!({"name": stat.dotted, "value": value}))
                }
                Value::Gauge(value) => {
                    Some(serde_json::json!({"name": stat.dotted, "value": value}))
                }
                Value::Histogram(_) => None,
            })
            .collect();
        let histograms: Vec<_> = stats.iter().filter_map(Stat::quantiles_json).collect();
        if !histograms.is_empty() {
            let supported: Vec<_> = QUANTILES.iter().map(|q| q * 100.0).collect();
            rows.push(serde_json::json!({"histograms": {
                "supported_quantiles": supported,
                "computed_quantiles": histograms,
            }}));
        }
        serde_json::json!({ "stats": rows })
    }

    /// Sets all counters to zero for those who read them. Nothing that counts
    /// is touched: what was counted so far is taken off from now on.
    pub fn reset_counters(&self) {
        let stats = self.collect_all();
        let counts = stats.into_iter().filter_map(|stat| match stat.value {
            Value::Counter(value) if value > 0 => Some((stat.dotted, value)),
            _ => None,
        });
        *lock(&self.taken_off) = counts.collect();
    }

    fn collect(&self) -> Vec<Stat> {
        let mut stats = self.collect_all();
        let taken_off = lock(&self.taken_off);
        if !taken_off.is_empty() {
            for stat in &mut stats {
                if let Value::Counter(value) = &mut stat.value
                    && let Some(before) = taken_off.get(&stat.dotted)
                {
                    // A block that went and came again counts anew.
                    *value = value.checked_sub(*before).unwrap_or(*value);
                }
            }
        }
        stats
    }

    fn collect_all(&self) -> Vec<Stat> {
        let shards = self.shards();
        self.refresh_server(&shards);
        let mut stats = vec![];
        let tag = |istio, envoy| if self.options.istio_tags { istio } else { envoy };
        let mut scope = Scope { prefix: "cluster", tag: tag("cluster_name", "envoy_cluster_name") };
        self.blocks(&shards, |shard| &shard.clusters, &scope, &mut stats);
        scope =
            Scope { prefix: "listener", tag: tag("listener_address", "envoy_listener_address") };
        self.blocks(&shards, |shard| &shard.listeners, &scope, &mut stats);
        scope = Scope {
            prefix: "http",
            tag: tag("http_conn_manager_prefix", "envoy_http_conn_manager_prefix"),
        };
        self.blocks(&shards, |shard| &shard.http, &scope, &mut stats);
        scope = Scope { prefix: "tcp", tag: tag("tcp_prefix", "envoy_tcp_prefix") };
        self.blocks(&shards, |shard| &shard.tcp, &scope, &mut stats);
        // Envoy has no tag for it: the name is in the metric's.
        scope = Scope { prefix: "dns_cache", tag: "" };
        self.blocks(&shards, |shard| &shard.dns_caches, &scope, &mut stats);
        let mut named = |name: &SharedName, value| {
            stats.push(Stat {
                dotted: name.dotted.clone(),
                metric: name.metric.clone(),
                labels: name.labels.clone(),
                value,
            });
        };
        self.counters.each(|name, counter| named(name, Value::Counter(counter.value())));
        self.gauges.each(|name, gauge| named(name, Value::Gauge(gauge.value())));
        untagged(&shards, &mut stats);
        self.server_stats(&mut stats);
        istio_http(&shards, &mut stats);
        istio_tcp(&shards, &mut stats);
        stats
    }

    fn refresh_server(&self, shards: &[Arc<Shard>]) {
        let server = self.server();
        server.server_uptime.set(i64::try_from(self.uptime().as_secs()).unwrap_or(i64::MAX));
        server.server_live.set(1);
        let dropped = &server.amime_access_log_dropped;
        dropped.add(self.writers.dropped().saturating_sub(dropped.value()));
        let overflowed: u64 = shards
            .iter()
            .map(|shard| shard.overflowed.load(std::sync::atomic::Ordering::Relaxed))
            .sum();
        let sets = &server.amime_label_sets_dropped;
        sets.add(overflowed.saturating_sub(sets.value()));
    }

    fn server_stats(&self, stats: &mut Vec<Stat>) {
        self.server().visit(&mut |name, stat| {
            let StatName::Plain(name) = name else { return };
            let mut value = Value::zero(&stat);
            value.add(&stat);
            stats.push(Stat {
                dotted: server_name(name),
                metric: format!("envoy_{name}"),
                labels: String::new(),
                value,
            });
        });
        let mut labels = String::new();
        push_label(&mut labels, "component", "proxy");
        push_label(&mut labels, "tag", amime_core::build::VERSION);
        stats.push(Stat {
            dotted: "istio_build".into(),
            metric: "istio_build".into(),
            labels,
            value: Value::Gauge(1),
        });
    }

    fn blocks<T: StatBlock + Default>(
        &self,
        shards: &[Arc<Shard>],
        pick: fn(&Shard) -> &Blocks<T>,
        scope: &Scope,
        stats: &mut Vec<Stat>,
    ) {
        let mut merged: BTreeMap<Arc<str>, BTreeMap<StatName, Value>> = BTreeMap::new();
        for shard in shards {
            pick(shard).each(|name, block| {
                let values = merged.entry(name.clone()).or_default();
                block.visit(&mut |name, stat| {
                    values.entry(name).or_insert_with(|| Value::zero(&stat)).add(&stat);
                });
            });
        }
        for (block, values) in merged {
            // Single codes are counted for clusters only.
            let shown = |name: &StatName| scope.prefix == "cluster" || !name.is_code();
            for (name, value) in values.into_iter().filter(|(name, _)| shown(name)) {
                stats.push(self.block_stat::<T>(scope, &block, name, value));
            }
        }
    }

    fn block_stat<T: StatBlock>(
        &self,
        scope: &Scope,
        block: &str,
        name: StatName,
        value: Value,
    ) -> Stat {
        let (prefix, codes) = (scope.prefix, T::CODES);
        let istio = self.options.istio_tags;
        let mut labels = String::new();
        let (leaf, metric) = match name {
            StatName::Plain(name) => plain_name(prefix, name, &mut labels),
            StatName::Scoped { name, of } => {
                let scope = of.scope();
                let metric = format!("envoy_{prefix}_{}{name}", scope.replace('.', "_"));
                (format!("{scope}{name}"), metric)
            }
            StatName::Class { class, of } => {
                // Istio's tag pattern keeps the `xx`, Envoy's does not.
                let (tag, value) = if istio {
                    ("response_code_class", format!("{class}xx"))
                } else {
                    ("envoy_response_code_class", class.to_string())
                };
                push_label(&mut labels, tag, &value);
                let scope = of.scope();
                let metric = format!("envoy_{prefix}_{}{codes}_xx", scope.replace('.', "_"));
                (format!("{scope}{codes}_{class}xx"), metric)
            }
            StatName::Code { code, of } => {
                let tag = if istio { "response_code" } else { "envoy_response_code" };
                push_label(&mut labels, tag, &code.to_string());
                let scope = of.scope();
                let metric = format!("envoy_{prefix}_{}{codes}", scope.replace('.', "_"));
                (format!("{scope}{codes}_{code}"), metric)
            }
        };
        let metric = match scope.tag {
            "" => format!("envoy_{prefix}_{}_{leaf}", metric_name(block)),
            tag => {
                push_label(&mut labels, tag, block);
                metric
            }
        };
        Stat { dotted: format!("{prefix}.{block}.{}", scoped(&leaf)), metric, labels, value }
    }
}

/// A name as part of a metric's.
fn metric_name(name: &str) -> String {
    name.chars().map(|char| if char.is_ascii_alphanumeric() { char } else { '_' }).collect()
}

/// Envoy's dotted name within a block: some stats have a scope of their own.
fn scoped(leaf: &str) -> String {
    const SCOPES: [(&str, &str); 9] = [
        ("circuit_breakers_rq_", "circuit_breakers.rq_"),
        ("outlier_detection_", "outlier_detection."),
        ("health_check_", "health_check."),
        ("circuit_breakers_default_", "circuit_breakers.default."),
        ("circuit_breakers_high_", "circuit_breakers.high."),
        ("csrf_", "csrf."),
        ("fault_", "fault."),
        ("rbac_", "rbac."),
        ("ssl_", "ssl."),
    ];
    let scoped = SCOPES
        .iter()
        .find_map(|(joined, dotted)| Some(format!("{dotted}{}", leaf.strip_prefix(joined)?)));
    scoped.unwrap_or_else(|| leaf.to_owned())
}

/// Verdicts and codecs have no tag: all of their names is said by the
/// configuration, or by Envoy.
fn untagged(shards: &[Arc<Shard>], stats: &mut Vec<Stat>) {
    let mut merged: BTreeMap<String, Value> = BTreeMap::new();
    for shard in shards {
        shard.verdicts.each(|prefix, block| merge(&mut merged, prefix, block));
        merge(&mut merged, "http2.", &*shard.http2);
    }
    for (dotted, value) in merged {
        let name = dotted.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        stats.push(Stat { metric: format!("envoy_{name}"), labels: String::new(), dotted, value });
    }
}

fn merge(merged: &mut BTreeMap<String, Value>, prefix: &str, block: &impl StatBlock) {
    block.visit(&mut |name, stat| {
        let StatName::Plain(name) = name else { return };
        merged.entry(format!("{prefix}{name}")).or_insert_with(|| Value::zero(&stat)).add(&stat);
    });
}

/// Leaf and metric name of a stat with a plain name.
fn plain_name(prefix: &str, name: &str, labels: &mut String) -> (String, String) {
    if let Some((stem, tag, value)) = valued(name) {
        push_label(labels, tag, value);
        let leaf = format!("{}.{value}", stem.replace('_', "."));
        return (leaf, format!("envoy_{prefix}_{stem}"));
    }
    // TLS has a scope of its own below its block.
    let leaf = name.strip_prefix("ssl_").map(|leaf| format!("ssl.{leaf}"));
    (leaf.unwrap_or_else(|| name.to_owned()), format!("envoy_{prefix}_{name}"))
}

/// Envoy's dotted name of a process-wide stat.
fn server_name(name: &str) -> String {
    const SCOPES: [(&str, &str); 8] = [
        ("cluster_manager_cds_", "cluster_manager.cds."),
        ("cluster_manager_", "cluster_manager."),
        ("listener_manager_lds_", "listener_manager.lds."),
        ("listener_manager_", "listener_manager."),
        ("control_plane_", "control_plane."),
        ("runtime_", "runtime."),
        ("server_", "server."),
        ("amime_", "amime."),
    ];
    let scoped = SCOPES.iter().find_map(|(joined, dotted)| {
        name.strip_prefix(joined).map(|leaf| format!("{dotted}{leaf}"))
    });
    scoped.unwrap_or_else(|| name.to_owned())
}

/// The quantiles that Envoy prints.
const QUANTILES: [f64; 10] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0];

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

impl Stat {
    /// Envoy's JSON form of a histogram; there is no interval here, only all
    /// of the time.
    fn quantiles_json(&self) -> Option<serde_json::Value> {
        let Value::Histogram(histogram) = &self.value else { return None };
        let values = QUANTILES.iter().map(|q| {
            let cumulative = (histogram.count() > 0).then(|| rounded(histogram.quantile(*q)));
            serde_json::json!({"interval": null, "cumulative": cumulative})
        });
        let values: Vec<_> = values.collect();
        Some(serde_json::json!({"name": self.dotted, "values": values}))
    }
}

fn quantiles(value: &HistogramValue) -> String {
    if value.count() == 0 {
        return "No recorded values".into();
    }
    let mut out = String::new();
    for q in QUANTILES {
        let value = rounded(value.quantile(q));
        // A write to a `String` cannot fail.
        let _ = write!(out, "P{}(nan,{value}) ", q * 100.0);
    }
    out.trim_end().to_owned()
}

fn istio_stat(name: &str, labels: &str, value: Value) -> Stat {
    Stat {
        dotted: format!("istiocustom.{name}.{{{labels}}}"),
        metric: name.to_owned(),
        labels: labels.to_owned(),
        value,
    }
}

fn istio_http(shards: &[Arc<Shard>], stats: &mut Vec<Stat>) {
    let series: Vec<_> = shards.iter().flat_map(|shard| lock(&shard.http_series).clone()).collect();
    let mut merged: BTreeMap<&str, (u64, [Box<HistogramValue>; 3])> = BTreeMap::new();
    for one in &series {
        let (requests, histograms) = merged.entry(&one.labels).or_default();
        *requests += one.requests.value();
        let sources = [&one.duration_ms, &one.request_bytes, &one.response_bytes];
        for (into, from) in histograms.iter_mut().zip(sources) {
            from.merge_into(into);
        }
    }
    for (labels, (requests, [duration, request, response])) in merged {
        stats.push(istio_stat("istio_requests_total", labels, Value::Counter(requests)));
        let mut push =
            |name, histogram| stats.push(istio_stat(name, labels, Value::Histogram(histogram)));
        push("istio_request_duration_milliseconds", duration);
        push("istio_request_bytes", request);
        push("istio_response_bytes", response);
    }
}

fn istio_tcp(shards: &[Arc<Shard>], stats: &mut Vec<Stat>) {
    let series: Vec<_> = shards.iter().flat_map(|shard| lock(&shard.tcp_series).clone()).collect();
    let mut merged: BTreeMap<&str, [u64; 4]> = BTreeMap::new();
    for one in &series {
        let sums = merged.entry(&one.labels).or_default();
        let values = [&one.opened, &one.closed, &one.sent, &one.received];
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value.value();
        }
    }
    for (labels, [opened, closed, sent, received]) in merged {
        let mut push = |name, value| stats.push(istio_stat(name, labels, Value::Counter(value)));
        push("istio_tcp_connections_opened_total", opened);
        push("istio_tcp_connections_closed_total", closed);
        push("istio_tcp_sent_bytes_total", sent);
        push("istio_tcp_received_bytes_total", received);
    }
}
