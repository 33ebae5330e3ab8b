//! Extension providers: external authorizers, tracers, metric and log sinks, by name.

use amime_core::Duration;
use serde_json::Value;

use crate::meta::StringMap;

messages! {
    /// A named service; one of the kinds.
    pub struct ExtensionProvider {
        /// Name that objects use.
        pub name: String,
        /// Authorizer over HTTP.
        pub envoy_ext_authz_http: Option<ExtAuthzHttpProvider>,
        /// Authorizer over gRPC.
        pub envoy_ext_authz_grpc: Option<ExtAuthzGrpcProvider>,
        /// Zipkin.
        pub zipkin: Option<ZipkinProvider>,
        /// Lightstep.
        pub lightstep: Option<LightstepProvider>,
        /// Datadog.
        pub datadog: Option<DatadogProvider>,
        /// Stackdriver.
        pub stackdriver: Option<StackdriverProvider>,
        /// OpenCensus.
        pub opencensus: Option<OpenCensusProvider>,
        /// SkyWalking.
        pub skywalking: Option<SkyWalkingProvider>,
        /// OpenTelemetry traces.
        pub opentelemetry: Option<OpenTelemetryProvider>,
        /// Prometheus.
        pub prometheus: Option<PrometheusProvider>,
        /// Access log file.
        pub envoy_file_access_log: Option<EnvoyFileAccessLogProvider>,
        /// HTTP access logs over gRPC.
        pub envoy_http_als: Option<EnvoyHttpGrpcV3LogProvider>,
        /// TCP access logs over gRPC.
        pub envoy_tcp_als: Option<EnvoyTcpGrpcV3LogProvider>,
        /// OpenTelemetry access logs.
        pub envoy_otel_als: Option<EnvoyOpenTelemetryLogProvider>,
        /// Secrets.
        pub sds: Option<SdsProvider>,
    }

    /// Authorizer over HTTP.
    pub struct ExtAuthzHttpProvider {
        /// Service `[namespace/]host`.
        pub service: String,
        /// Port.
        pub port: u32,
        /// Limit of a call; 600 s.
        pub timeout: Option<Duration>,
        /// Prefix of the path.
        pub path_prefix: String,
        /// Allow if the authorizer is down.
        pub fail_open: bool,
        /// Answer if the authorizer is down.
        pub status_on_error: String,
        /// Clear cached routes after a change of headers.
        pub clear_route_cache: Option<bool>,
        /// Old list of headers to send.
        pub include_headers_in_check: Vec<String>,
        /// Request headers to send.
        pub include_request_headers_in_check: Vec<String>,
        /// Fixed headers to send.
        pub include_additional_headers_in_check: StringMap,
        /// Body to send.
        pub include_request_body_in_check: Option<ExtAuthzRequestBody>,
        /// Answer headers that go upstream.
        pub headers_to_upstream_on_allow: Vec<String>,
        /// Answer headers that go downstream on denial.
        pub headers_to_downstream_on_deny: Vec<String>,
        /// Answer headers that go downstream on allowance.
        pub headers_to_downstream_on_allow: Vec<String>,
    }

    /// Authorizer over gRPC.
    pub struct ExtAuthzGrpcProvider {
        /// Service `[namespace/]host`.
        pub service: String,
        /// Port.
        pub port: u32,
        /// Limit of a call; 600 s.
        pub timeout: Option<Duration>,
        /// Allow if the authorizer is down.
        pub fail_open: bool,
        /// Clear cached routes after a change of headers.
        pub clear_route_cache: Option<bool>,
        /// Answer if the authorizer is down.
        pub status_on_error: String,
        /// Body to send.
        pub include_request_body_in_check: Option<ExtAuthzRequestBody>,
    }

    /// Body sent to an authorizer.
    pub struct ExtAuthzRequestBody {
        /// Most bytes.
        pub max_request_bytes: u32,
        /// Send a part of longer ones.
        pub allow_partial_message: bool,
        /// Send as bytes.
        pub pack_as_bytes: bool,
    }


    /// Zipkin tracer.
    pub struct ZipkinProvider {
        /// Service `[namespace/]host`.
        pub service: String,
        /// Port.
        pub port: u32,
        /// Longest path in a tag.
        pub max_tag_length: Option<u32>,
        /// 64-bit trace ids.
        pub enable64bit_trace_id: bool,
        /// Path of the collector.
        pub path: String,
        /// Limit of a call.
        pub timeout: Option<Duration>,
        /// Headers to send.
        pub headers: Vec<HttpServiceHeader>,
        /// Context formats.
        pub trace_context_option: Option<String>,
    }

    /// Lightstep tracer.
    pub struct LightstepProvider {
        /// Service `[namespace/]host`.
        pub service: String,
        /// Port.
        pub port: u32,
        /// Token.
        pub access_token: String,
        /// Longest path in a tag.
        pub max_tag_length: Option<u32>,
    }

    /// Datadog tracer.
    pub struct DatadogProvider {
        /// Service `[namespace/]host`.
        pub service: String,
        /// Port.
        pub port: u32,
        /// Longest path in a tag.
        pub max_tag_length: Option<u32>,
    }

    /// SkyWalking tracer.
    pub struct SkyWalkingProvider {
        /// Service `[namespace/]host`.
        pub service: String,
        /// Port.
        pub port: u32,
        /// Token.
        pub access_token: String,
    }

    /// Stackdriver.
    pub struct StackdriverProvider {
        /// Print spans too.
        pub debug: bool,
        /// Most attributes of a span.
        pub max_number_of_attributes: Option<i64>,
        /// Most annotations of a span.
        pub max_number_of_annotations: Option<i64>,
        /// Most events of a span.
        pub max_number_of_message_events: Option<i64>,
        /// Longest path in a tag.
        pub max_tag_length: Option<u32>,
        /// Logs.
        pub logging: Option<StackdriverLogging>,
    }

    /// Labels of Stackdriver logs.
    pub struct StackdriverLogging {
        /// CEL expressions by label.
        pub labels: StringMap,
    }

    /// OpenCensus tracer.
    pub struct OpenCensusProvider {
        /// Service `[namespace/]host`.
        pub service: String,
        /// Port.
        pub port: u32,
        /// Context formats.
        pub context: Vec<String>,
        /// Longest path in a tag.
        pub max_tag_length: Option<u32>,
    }

    /// OpenTelemetry tracer.
    pub struct OpenTelemetryProvider {
        /// Service `[namespace/]host`.
        pub service: String,
        /// Port.
        pub port: u32,
        /// Longest path in a tag.
        pub max_tag_length: Option<u32>,
        /// Send over HTTP.
        pub http: Option<HttpService>,
        /// Send over gRPC.
        pub grpc: Option<GrpcService>,
        /// What describes the workload.
        pub resource_detectors: Option<ResourceDetectors>,
        /// Sampler of Dynatrace.
        pub dynatrace_sampler: Option<Value>,
        /// Source of the service's name.
        pub service_attribute_enrichment: Option<String>,
    }

    /// Calls over HTTP.
    pub struct HttpService {
        /// Path.
        pub path: String,
        /// Limit of a call.
        pub timeout: Option<Duration>,
        /// Headers to send.
        pub headers: Vec<HttpServiceHeader>,
    }

    /// Header to send.
    pub struct HttpServiceHeader {
        /// Name.
        pub name: String,
        /// Value.
        pub value: Option<String>,
        /// Environment variable with the value.
        pub env_name: Option<String>,
    }

    /// Calls over gRPC.
    pub struct GrpcService {
        /// Limit of a call.
        pub timeout: Option<Duration>,
        /// Metadata to send.
        pub initial_metadata: Vec<HttpServiceHeader>,
    }

    /// What describes the workload.
    pub struct ResourceDetectors {
        /// Environment.
        pub environment: Option<Value>,
        /// Dynatrace.
        pub dynatrace: Option<Value>,
    }

    /// Prometheus.
    pub struct PrometheusProvider {
    }

    /// Access log file.
    pub struct EnvoyFileAccessLogProvider {
        /// Path, such as `/dev/stdout`.
        pub path: String,
        /// Format.
        pub log_format: Option<FileLogFormat>,
        /// Leave out unset JSON values.
        pub omit_empty_values: Option<bool>,
    }

    /// Format of a log file, one of the two.
    pub struct FileLogFormat {
        /// Text.
        pub text: Option<String>,
        /// JSON.
        pub labels: Option<Value>,
    }

    /// HTTP access logs over gRPC.
    pub struct EnvoyHttpGrpcV3LogProvider {
        /// Service `[namespace/]host`.
        pub service: String,
        /// Port.
        pub port: u32,
        /// Name of the log.
        pub log_name: String,
        /// Filter state to add.
        pub filter_state_objects_to_log: Vec<String>,
        /// Request headers to add.
        pub additional_request_headers_to_log: Vec<String>,
        /// Response headers to add.
        pub additional_response_headers_to_log: Vec<String>,
        /// Response trailers to add.
        pub additional_response_trailers_to_log: Vec<String>,
    }


    /// TCP access logs over gRPC.
    pub struct EnvoyTcpGrpcV3LogProvider {
        /// Service `[namespace/]host`.
        pub service: String,
        /// Port.
        pub port: u32,
        /// Name of the log.
        pub log_name: String,
        /// Filter state to add.
        pub filter_state_objects_to_log: Vec<String>,
    }

    /// OpenTelemetry access logs.
    pub struct EnvoyOpenTelemetryLogProvider {
        /// Service `[namespace/]host`.
        pub service: String,
        /// Port.
        pub port: u32,
        /// Name of the log.
        pub log_name: String,
        /// Format.
        pub log_format: Option<OpenTelemetryLogFormat>,
        /// Filter state to add.
        pub filter_state_objects_to_log: Vec<String>,
    }

    /// Format of OpenTelemetry logs.
    pub struct OpenTelemetryLogFormat {
        /// Body.
        pub text: String,
        /// Attributes.
        pub labels: Option<Value>,
    }


    /// Secrets from elsewhere.
    pub struct SdsProvider {
        /// Name that credentials start with.
        pub name: String,
        /// Service `[namespace/]host`.
        pub service: String,
        /// Port.
        pub port: u32,
    }
}
