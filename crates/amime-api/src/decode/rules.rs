//! What the shape of a struct does not say: oneofs, old spellings, and how strict to be.

use crate::k8s::fields;

/// Members of messages of which at most one may be given.
///
/// Table, by struct name; a struct may appear several times.
const ONEOFS: &[(&str, &[&str])] = &[
    ("StringMatchFields", &["exact", "prefix", "regex"]),
    ("HttpBody", &["string", "bytes"]),
    ("HttpRedirect", &["uri", "prefixRewrite"]),
    ("HttpRedirect", &["port", "derivePort"]),
    ("Delay", &["fixedDelay", "exponentialDelay"]),
    ("Abort", &["httpStatus", "grpcStatus", "http2Error"]),
    ("LoadBalancerSettings", &["simple", "consistentHash", "backendUtilization"]),
    (
        "ConsistentHashLb",
        &["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"],
    ),
    ("ConsistentHashLb", &["ringHash", "maglev"]),
    ("ReadinessProbe", &["httpGet", "tcpSocket", "exec", "grpc"]),
    ("EnvoyConfigObjectMatch", &["listener", "routeConfiguration", "cluster", "waypoint"]),
    ("CustomTag", &["literal", "environment", "header", "formatter"]),
    ("MetricSelector", &["metric", "customMetric"]),
    ("TrafficExtension", &["wasm", "lua"]),
    ("TracingCustomTag", &["literal", "environment", "header"]),
    ("TracingSettings", &["zipkin", "lightstep", "datadog", "stackdriver", "openCensusAgent"]),
    ("PrivateKeyProvider", &["cryptomb", "qat"]),
    ("CertificateData", &["pem", "spiffeBundleUrl"]),
    ("NetworkEndpoints", &["fromCidr", "fromRegistry"]),
    ("IstioNetworkGateway", &["registryServiceName", "address"]),
    ("FileLogFormat", &["text", "labels"]),
    ("OpenTelemetryProvider", &["http", "grpc"]),
    ("HttpServiceHeader", &["value", "envName"]),
    (
        "ExtensionProvider",
        &[
            "envoyExtAuthzHttp",
            "envoyExtAuthzGrpc",
            "zipkin",
            "lightstep",
            "datadog",
            "stackdriver",
            "opencensus",
            "skywalking",
            "opentelemetry",
            "prometheus",
            "envoyFileAccessLog",
            "envoyHttpAls",
            "envoyTcpAls",
            "envoyOtelAls",
            "sds",
        ],
    ),
    ("Probe", &["httpGet", "tcpSocket", "exec", "grpc"]),
];

/// Groups of mutually exclusive fields of a struct.
pub(crate) fn oneofs(struct_name: &str) -> impl Iterator<Item = &'static [&'static str]> + use<'_> {
    ONEOFS.iter().filter(move |(name, _)| *name == struct_name).map(|(_, members)| *members)
}

/// The declared field that `key` spells: as is, or in snake_case as proto3-JSON allows.
pub(crate) fn field_for(key: &str, declared: &'static [&'static str]) -> Option<&'static str> {
    let same = |name: &str| declared.iter().copied().find(|field| *field == name);
    same(key).or_else(|| if key.contains('_') { same(&camel(key)) } else { None })
}

fn camel(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    let mut upper = false;
    for c in key.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                out.push(c.to_ascii_uppercase());
                upper = false;
            }
            c => out.push(c),
        }
    }
    out
}

/// True if upstream has a field of this name that our type has no place for.
pub(crate) fn is_known_elsewhere(struct_name: &str, key: &str) -> bool {
    fields::UNTYPED.iter().any(|(name, keys)| *name == struct_name && keys.contains(&key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snake_case_names_the_camel_case_field() {
        const FIELDS: &[&str] = &["fixedDelay", "http1MaxPendingRequests", "host"];
        assert_eq!(field_for("fixed_delay", FIELDS), Some("fixedDelay"));
        assert_eq!(
            field_for("http1_max_pending_requests", FIELDS),
            Some("http1MaxPendingRequests")
        );
        assert_eq!(field_for("fixeddelay", FIELDS), None);
        assert_eq!(field_for("host", FIELDS), Some("host"));
    }
}
