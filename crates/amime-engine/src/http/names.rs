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
    EXPECTED_TIMEOUT = "x-envoy-expected-rq-timeout-ms";
    RQ_TIMEOUT = "x-envoy-upstream-rq-timeout-ms";
    RQ_PER_TRY_TIMEOUT = "x-envoy-upstream-rq-per-try-timeout-ms";
    RETRY_ON = "x-envoy-retry-on";
    RETRY_GRPC_ON = "x-envoy-retry-grpc-on";
    MAX_RETRIES = "x-envoy-max-retries";
    ATTEMPT_COUNT = "x-envoy-attempt-count";
    ORIGINAL_HOST = "x-envoy-original-host";
    ORIGINAL_PATH = "x-envoy-original-path";
    UPSTREAM_SERVICE_TIME = "x-envoy-upstream-service-time";
    PEER_METADATA = "x-envoy-peer-metadata";
    PEER_METADATA_ID = "x-envoy-peer-metadata-id";
    GRPC_STATUS = "grpc-status";
    GRPC_MESSAGE = "grpc-message";
    OVERLOADED = "x-envoy-overloaded";
    RATE_LIMITED = "x-envoy-ratelimited";
    RATE_LIMIT = "x-ratelimit-limit";
    RATE_REMAINING = "x-ratelimit-remaining";
    RATE_RESET = "x-ratelimit-reset";
    GRPC_TIMEOUT = "grpc-timeout";
}

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
