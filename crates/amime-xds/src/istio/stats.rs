//! `stats.PluginConfig`: configuration of the `istio.stats` filter.

use std::collections::BTreeMap;

use envoy_types::pb::google::protobuf::Duration;

use super::named;

/// Overrides for the standard metrics.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PluginConfig {
    /// Do not fall back to the host header for the destination service.
    #[prost(bool, tag = "6")]
    pub disable_host_header_fallback: bool,
    /// Time between two reports of a TCP connection; 15 s when unset.
    #[prost(message, optional, tag = "7")]
    pub tcp_reporting_duration: Option<Duration>,
    /// Overrides, applied in order.
    #[prost(message, repeated, tag = "8")]
    pub metrics: Vec<MetricConfig>,
    /// Metrics beyond the standard ones.
    #[prost(message, repeated, tag = "9")]
    pub definitions: Vec<MetricDefinition>,
    /// Whose view is reported.
    #[prost(enumeration = "Reporter", tag = "10")]
    pub reporter: i32,
    /// Time between two rotations of the metric scope; 24 h when unset.
    #[prost(message, optional, tag = "11")]
    pub rotation_interval: Option<Duration>,
    /// Time for which a rotated scope stays readable; 15 s when unset.
    #[prost(message, optional, tag = "12")]
    pub graceful_deletion_interval: Option<Duration>,
}

named!(PluginConfig, "stats", "PluginConfig");

/// Override for one metric, or for all when `name` is empty.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MetricConfig {
    /// Tag → expression that gives its value.
    #[prost(btree_map = "string, string", tag = "1")]
    pub dimensions: BTreeMap<String, String>,
    /// Metric without the `istio_` prefix.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Tags to leave out.
    #[prost(string, repeated, tag = "3")]
    pub tags_to_remove: Vec<String>,
    /// Condition; no filter acts on it.
    #[prost(string, tag = "4")]
    pub r#match: String,
    /// Do not report the metric at all.
    #[prost(bool, tag = "5")]
    pub drop: bool,
}

named!(MetricConfig, "stats", "MetricConfig");

/// One additional metric.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MetricDefinition {
    /// Name without the `istio_` prefix.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Expression that gives the value.
    #[prost(string, tag = "2")]
    pub value: String,
    /// How values are merged.
    #[prost(enumeration = "MetricType", tag = "3")]
    pub r#type: i32,
}

named!(MetricDefinition, "stats", "MetricDefinition");

/// How values of a metric are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum MetricType {
    /// Sum.
    Counter = 0,
    /// Last value.
    Gauge = 1,
    /// Distribution.
    Histogram = 2,
}

/// Which side of the request the filter stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Reporter {
    /// From the listener's traffic direction.
    Unspecified = 0,
    /// A gateway that serves many workloads.
    ServerGateway = 1,
}
