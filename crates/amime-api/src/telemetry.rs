//! `Telemetry`: traces, metrics and access logs of the selected workloads.
//!
//! Spec: <https://istio.io/latest/docs/reference/config/telemetry/>

use std::collections::BTreeMap;

use amime_core::Duration;

use crate::meta::{PolicyTargetReference, WorkloadSelector};

messages! {
    /// Telemetry settings.
    pub struct Telemetry {
        /// Workloads; none means all in scope.
        pub selector: Option<WorkloadSelector>,
        /// Old single form of `target_refs`.
        pub target_ref: Option<PolicyTargetReference>,
        /// Gateways or services instead of a selector.
        pub target_refs: Vec<PolicyTargetReference>,
        /// Traces.
        pub tracing: Vec<Tracing>,
        /// Metrics.
        pub metrics: Vec<Metrics>,
        /// Access logs.
        pub access_logging: Vec<AccessLogging>,
    }

    /// Name of a provider in the mesh configuration.
    pub struct ProviderRef {
        /// Name.
        pub name: String,
    }

    /// Trace settings.
    pub struct Tracing {
        /// Side of the connection.
        pub r#match: Option<TracingSelector>,
        /// Where spans go; one at most.
        pub providers: Vec<ProviderRef>,
        /// Share of requests, 0 to 100.
        pub random_sampling_percentage: Option<f64>,
        /// Create no spans, still pass context on.
        pub disable_span_reporting: Option<bool>,
        /// Further tags.
        pub custom_tags: BTreeMap<String, CustomTag>,
        /// Derive the decision from the request id.
        pub use_request_id_for_trace_sampling: Option<bool>,
        /// Add Istio's own tags.
        pub enable_istio_tags: Option<bool>,
        /// Do not pass context on.
        pub disable_context_propagation: Option<bool>,
    }

    /// Side of the connection a trace setting is for.
    pub struct TracingSelector {
        /// Side.
        pub mode: WorkloadMode,
    }

    /// Value of a tag, one source of four.
    pub struct CustomTag {
        /// Fixed text.
        pub literal: Option<LiteralTag>,
        /// Environment variable of the proxy.
        pub environment: Option<NamedTag>,
        /// Request header.
        pub header: Option<NamedTag>,
        /// Access-log format string.
        pub formatter: Option<LiteralTag>,
    }

    /// Tag from a text.
    pub struct LiteralTag {
        /// The text.
        pub value: String,
    }

    /// Tag from something named.
    pub struct NamedTag {
        /// Name.
        pub name: String,
        /// Text when it is missing.
        pub default_value: String,
    }

    /// Metric settings.
    pub struct Metrics {
        /// Where metrics go.
        pub providers: Vec<ProviderRef>,
        /// Changes of single metrics.
        pub overrides: Vec<MetricsOverride>,
        /// How often they go; 5 s by default.
        pub reporting_interval: Option<Duration>,
    }

    /// Change of some metrics.
    pub struct MetricsOverride {
        /// Which.
        pub r#match: Option<MetricSelector>,
        /// Switch them off.
        pub disabled: Option<bool>,
        /// Changes of their labels.
        pub tag_overrides: BTreeMap<String, TagOverride>,
    }

    /// Which metrics an override is for.
    pub struct MetricSelector {
        /// A standard metric.
        pub metric: Option<Metric>,
        /// A metric by name.
        pub custom_metric: Option<String>,
        /// Side of the connection.
        pub mode: WorkloadMode,
    }

    /// Change of one label.
    pub struct TagOverride {
        /// How.
        pub operation: TagOperation,
        /// CEL expression of the new value.
        pub value: String,
    }

    /// Access-log settings.
    pub struct AccessLogging {
        /// Side of the connection.
        pub r#match: Option<LogSelector>,
        /// Where lines go.
        pub providers: Vec<ProviderRef>,
        /// Switch off.
        pub disabled: Option<bool>,
        /// Which requests.
        pub filter: Option<LogFilter>,
    }

    /// Side of the connection a log setting is for.
    pub struct LogSelector {
        /// Side.
        pub mode: WorkloadMode,
    }

    /// Condition of a log line.
    pub struct LogFilter {
        /// CEL expression.
        pub expression: String,
    }
}

values! {
    /// Side of a connection.
    pub enum WorkloadMode {
        /// Both.
        #[default]
        ClientAndServer,
        /// The caller's.
        Client,
        /// The callee's.
        Server,
    }

    /// Standard metrics.
    pub enum Metric {
        /// All of them.
        #[default]
        AllMetrics,
        /// `istio_requests_total`.
        RequestCount,
        /// `istio_request_duration_milliseconds`.
        RequestDuration,
        /// `istio_request_bytes`.
        RequestSize,
        /// `istio_response_bytes`.
        ResponseSize,
        /// `istio_tcp_connections_opened_total`.
        TcpOpenedConnections,
        /// `istio_tcp_connections_closed_total`.
        TcpClosedConnections,
        /// `istio_tcp_sent_bytes_total`.
        TcpSentBytes,
        /// `istio_tcp_received_bytes_total`.
        TcpReceivedBytes,
        /// `istio_request_messages_total`.
        GrpcRequestMessages,
        /// `istio_response_messages_total`.
        GrpcResponseMessages,
    }

    /// How a label changes.
    pub enum TagOperation {
        /// Set.
        #[default]
        Upsert,
        /// Remove.
        Remove,
    }
}
