//! Header names of the proxy's own, as constants.

use http::HeaderName;

macro_rules! names {
    ($($constant:ident = $name:literal;)*) => {
        $(pub(super) const $constant: HeaderName = HeaderName::from_static($name);)*
    };
}

names! {
    KEEP_ALIVE = "keep-alive";
    PROXY_CONNECTION = "proxy-connection";
    X_FORWARDED_FOR = "x-forwarded-for";
    X_FORWARDED_HOST = "x-forwarded-host";
    X_FORWARDED_PROTO = "x-forwarded-proto";
    XFCC = "x-forwarded-client-cert";
    X_REQUEST_ID = "x-request-id";
    X_ENVOY_INTERNAL = "x-envoy-internal";
    DOWNSTREAM_CLUSTER = "x-envoy-downstream-service-cluster";
    DOWNSTREAM_NODE = "x-envoy-downstream-service-node";
    EXTERNAL_ADDRESS = "x-envoy-external-address";
    EXPECTED_TIMEOUT = "x-envoy-expected-rq-timeout-ms";
    RQ_TIMEOUT = "x-envoy-upstream-rq-timeout-ms";
    RQ_PER_TRY_TIMEOUT = "x-envoy-upstream-rq-per-try-timeout-ms";
    RETRY_ON = "x-envoy-retry-on";
    RETRY_GRPC_ON = "x-envoy-retry-grpc-on";
    RETRIABLE_STATUS_CODES = "x-envoy-retriable-status-codes";
    RETRIABLE_HEADER_NAMES = "x-envoy-retriable-header-names";
    HEDGE = "x-envoy-hedge-on-per-try-timeout";
    ALT_RESPONSE = "x-envoy-upstream-rq-timeout-alt-response";
    MAX_RETRIES = "x-envoy-max-retries";
    ATTEMPT_COUNT = "x-envoy-attempt-count";
    CHECKED_CLUSTER = "x-envoy-upstream-healthchecked-cluster";
    CHECK_FAIL = "x-envoy-immediate-health-check-fail";
    ORIGINAL_HOST = "x-envoy-original-host";
    ORIGINAL_URL = "x-envoy-original-url";
    ORIGINAL_PATH = "x-envoy-original-path";
    UPSTREAM_SERVICE_TIME = "x-envoy-upstream-service-time";
    PEER_METADATA = "x-envoy-peer-metadata";
    PEER_METADATA_ID = "x-envoy-peer-metadata-id";
    GRPC_ACCEPT_ENCODING = "grpc-accept-encoding";
    GRPC_STATUS = "grpc-status";
    GRPC_MESSAGE = "grpc-message";
    OVERLOADED = "x-envoy-overloaded";
    RATE_LIMITED = "x-envoy-ratelimited";
    RATE_LIMIT = "x-ratelimit-limit";
    RATE_REMAINING = "x-ratelimit-remaining";
    RATE_RESET = "x-ratelimit-reset";
    FAULT_DELAY = "x-envoy-fault-delay-request";
    FAULT_DELAY_PERCENT = "x-envoy-fault-delay-request-percentage";
    FAULT_ABORT = "x-envoy-fault-abort-request";
    FAULT_ABORT_GRPC = "x-envoy-fault-abort-grpc-request";
    FAULT_ABORT_PERCENT = "x-envoy-fault-abort-request-percentage";
    FAULT_THROUGHPUT = "x-envoy-fault-throughput-response";
    FAULT_THROUGHPUT_PERCENT = "x-envoy-fault-throughput-response-percentage";
    GRPC_TIMEOUT = "grpc-timeout";
}

/// Headers that are for the router alone.
pub(super) const FOR_ROUTER: [HeaderName; 8] = [
    RQ_TIMEOUT,
    RQ_PER_TRY_TIMEOUT,
    RETRY_ON,
    RETRY_GRPC_ON,
    RETRIABLE_STATUS_CODES,
    RETRIABLE_HEADER_NAMES,
    HEDGE,
    MAX_RETRIES,
];

/// Headers that only internal clients may send.
pub(super) const INTERNAL_ONLY: &[&str] = &[
    "x-envoy-internal",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-ip-tags",
    "x-envoy-original-url",
    "x-envoy-hedge-on-per-try-timeout",
];

/// Headers that no client beyond the edge may send.
pub(super) const EDGE_ONLY: &[&str] = &[
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-original-path",
    "x-envoy-original-host",
];
