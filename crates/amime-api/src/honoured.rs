//! Fields that are accepted but not acted on yet: one table, so that nothing is ignored in silence.
//!
//! Paths are those of the object's JSON: `[]` stands for any list index, `*` for any key, and `x*`
//! for keys that start with `x`. `path=value` means that only this value has no effect.
//!
//! The table is about our own control plane and proxy together: what one of them drops has no
//! effect, even if the other knows it.

use std::fmt;

use serde_json::{Map, Value};

use crate::kind::Kind;
use crate::mesh::MeshConfig;
use crate::resource::Resource;

/// A field that was given and has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldWarning {
    /// Kind and name of the object.
    pub object: String,
    /// Path of the field.
    pub path: String,
    /// Why, or what happens instead.
    pub reason: &'static str,
}

impl fmt::Display for FieldWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.path, self.reason)
    }
}

/// Table: kind, path below the object, reason.
const UNHONOURED: &[(Kind, &str, &str)] = &[
    // Whole kinds.
    (Kind::AuthorizationPolicy, "spec", "authorization policies are not enforced yet"),
    (Kind::RequestAuthentication, "spec", "request tokens are not verified yet"),
    (Kind::Telemetry, "spec", "telemetry settings other than the mesh's are not applied yet"),
    (Kind::WasmPlugin, "spec", "extensions are not run yet"),
    (Kind::TrafficExtension, "spec", "extensions are not run yet"),
    (Kind::ProxyConfig, "spec", "proxies take their settings from the mesh configuration only"),
    (Kind::WorkloadGroup, "spec", "workloads do not register themselves yet"),
    // Ingress.
    (Kind::Ingress, "spec.defaultBackend", DEFAULT_BACKEND),
    (Kind::Ingress, "spec.backend", DEFAULT_BACKEND),
    (Kind::Ingress, "spec.rules.[].http.paths.[].backend.resource", "backends are services only"),
    // HTTPRoute.
    (Kind::HTTPRoute, "spec.hostnames", "only gateways read them, and routes have services yet"),
    (Kind::HTTPRoute, "spec.rules.[].sessionPersistence", "sessions do not stick yet"),
    (Kind::HTTPRoute, "spec.rules.[].filters.[].cors", "use a VirtualService for it"),
    (Kind::HTTPRoute, "spec.rules.[].filters.[].extensionRef", "there are no such extensions"),
    // VirtualService.
    (Kind::VirtualService, "spec.http.[].match.[].headers.@request.auth.*", TOKENS),
    (Kind::VirtualService, "spec.http.[].match.[].withoutHeaders.@request.auth.*", TOKENS),
    (Kind::VirtualService, "spec.tcp.[].match.[].sourceSubnet", "upstream never implemented it"),
    // Gateway.
    (Kind::Gateway, "spec.servers.[].defaultEndpoint", "upstream never implemented it"),
    // EnvoyFilter.
    (
        Kind::EnvoyFilter,
        "spec.configPatches.[].applyTo=BOOTSTRAP",
        "the bootstrap of a running proxy cannot be patched",
    ),
    (Kind::EnvoyFilter, "spec.configPatches.[].match.context=WAYPOINT", AMBIENT),
    (Kind::EnvoyFilter, "spec.configPatches.[].match.waypoint", AMBIENT),
    (Kind::EnvoyFilter, "spec.configPatches.[].match.listener.portName", NOT_READ),
    (Kind::EnvoyFilter, "spec.configPatches.[].patch.filterClass", NOT_READ),
    (Kind::EnvoyFilter, "spec.targetRefs.[].kind=Service", AMBIENT),
    (Kind::EnvoyFilter, "spec.targetRefs.[].kind=ServiceEntry", AMBIENT),
    (Kind::EnvoyFilter, "spec.targetRefs.[].kind=GatewayClass", AMBIENT),
];

const SPANS: &str = "spans are not reported yet";
const POLLED: &str = "configuration is pushed, not polled";
const PROXY_START: &str = "proxies are started with settings of their own";
const STATISTICS: &str = "proxies keep all statistics, under their full names";
const AMBIENT: &str = "there is no ambient mode yet";
const NOT_READ: &str = "upstream does not read it either";
const DEFAULT_BACKEND: &str = "only rules count; upstream ignores it too";
const TOKENS: &str = "request tokens are not verified yet, so no request matches";

/// Table: field of the mesh configuration, reason.
const UNHONOURED_MESH: &[(&str, &str)] = &[
    ("defaultConfig.tracing", SPANS),
    ("extensionProviders", "external services are not called yet"),
    ("defaultProviders", "external services are not called yet"),
    ("enableEnvoyAccessLogService", "access logs go to files only"),
    ("ca", "the control plane signs with its own key only"),
    ("configSources", "configuration comes from files and the local API only"),
    ("serviceSettings", "there is one cluster only"),
    ("serviceScopeConfigs", AMBIENT),
    ("hboneIdleTimeout", AMBIENT),
    ("certificates", "certificates are for workloads only"),
    ("authPolicy", "PeerAuthentication decides about mutual TLS"),
    ("rdsRefreshDelay", POLLED),
    ("caCertificates", "only the control plane's own roots are trusted yet"),
    ("enablePrometheusMerge", "metrics of applications are not merged into the proxy's yet"),
    ("defaultConfig.configPath", PROXY_START),
    ("defaultConfig.binaryPath", PROXY_START),
    ("defaultConfig.serviceCluster", PROXY_START),
    ("defaultConfig.parentShutdownDuration", PROXY_START),
    ("defaultConfig.availabilityZone", PROXY_START),
    ("defaultConfig.controlPlaneAuthPolicy", PROXY_START),
    ("defaultConfig.meshId", PROXY_START),
    ("defaultConfig.discoveryRefreshDelay", POLLED),
    ("defaultConfig.tracingServiceName", SPANS),
    ("defaultConfig.zipkinAddress", SPANS),
    ("defaultConfig.statsdUdpAddress", "metrics are scraped only"),
    ("verifyCertificateAtClient", "certificates of servers are always verified"),
    ("defaultConfig.concurrency", PROXY_START),
    ("defaultConfig.proxyMetadata", PROXY_START),
    ("defaultConfig.discoveryAddress", PROXY_START),
    ("defaultConfig.proxyAdminPort", PROXY_START),
    ("defaultConfig.statusPort", PROXY_START),
    ("defaultConfig.interceptionMode", PROXY_START),
    ("defaultConfig.drainDuration", PROXY_START),
    ("defaultConfig.terminationDrainDuration", PROXY_START),
    ("defaultConfig.holdApplicationUntilProxyStarts", PROXY_START),
    ("defaultConfig.readinessProbe", PROXY_START),
    ("defaultConfig.caCertificatesPem", PROXY_START),
    ("defaultConfig.runtimeValues", PROXY_START),
    ("defaultConfig.fileFlushInterval", PROXY_START),
    ("defaultConfig.fileFlushMinSizeKb", PROXY_START),
    ("defaultConfig.statNameLength", STATISTICS),
    ("defaultConfig.extraStatTags", STATISTICS),
    ("defaultConfig.proxyStatsMatcher", STATISTICS),
    ("defaultConfig.statsCompression", STATISTICS),
    ("defaultConfig.privateKeyProvider", "keys are used in software only"),
    ("defaultConfig.image", "there is one image only"),
    ("defaultConfig.connectionSettings.clusterPerConnectionBufferLimitBytes", NOT_READ),
    ("defaultConfig.connectionSettings.listenerConnectionLimit", NOT_READ),
    ("defaultConfig.connectionSettings.globalDownstreamConnectionLimit", NOT_READ),
    ("defaultConfig.proxyBootstrapTemplatePath", "the bootstrap cannot be replaced"),
    ("defaultConfig.customConfigFile", "the bootstrap cannot be replaced"),
    ("defaultConfig.envoyAccessLogService", "access logs go to files only"),
    ("defaultConfig.envoyMetricsService", "metrics are scraped only"),
];

/// Fields of `resource` that are accepted but not acted on, in table order.
pub fn unhonoured(resource: &Resource) -> Vec<FieldWarning> {
    let object = match resource.namespace() {
        "" => format!("{} {}", resource.kind(), resource.name()),
        namespace => format!("{} {}.{namespace}", resource.kind(), resource.name()),
    };
    let entries = UNHONOURED.iter().filter(|(kind, ..)| *kind == resource.kind());
    let parents = foreign_parents(resource).map(|path| FieldWarning {
        object: object.clone(),
        path,
        reason: "routes are attached to services only yet",
    });
    let fields = entries.flat_map(|(_, pattern, reason)| {
        let (path, value) = pattern.split_once('=').map_or((*pattern, None), |(p, v)| (p, Some(v)));
        let segments: Vec<&str> = path.split('.').collect();
        let mut found = Vec::new();
        descend(resource.raw(), "", &Pattern { segments: &segments, value }, &mut found);
        found.into_iter().map(|path| FieldWarning { object: object.clone(), path, reason })
    });
    fields.chain(parents).collect()
}

/// Parents of a route that are no services; mostly the kind that is meant by
/// default, which no field names.
fn foreign_parents(resource: &Resource) -> impl Iterator<Item = String> {
    let parents = match resource {
        Resource::HTTPRoute(route) => route.spec.parent_refs.as_slice(),
        _ => &[],
    };
    let foreign = parents.iter().enumerate().filter(|(_, parent)| !parent.is_service());
    foreign.map(|(index, _)| format!("spec.parentRefs[{index}]"))
}

/// Fields of the mesh configuration that differ from their default and are not acted on.
pub fn unhonoured_mesh(config: &MeshConfig) -> Vec<FieldWarning> {
    let json = |config: &MeshConfig| serde_json::to_value(config).unwrap_or_default();
    let (given, default) = (json(config), json(&MeshConfig::default()));
    let at = |value: &'_ Value, path: &str| {
        path.split('.').try_fold(value.clone(), |value, key| value.get(key).cloned())
    };
    let differs = UNHONOURED_MESH.iter().filter(|(path, _)| at(&given, path) != at(&default, path));
    differs
        .map(|&(path, reason)| FieldWarning {
            object: "MeshConfig".to_owned(),
            path: path.to_owned(),
            reason,
        })
        .collect()
}

/// What is left of a table path.
struct Pattern<'a> {
    segments: &'a [&'a str],
    value: Option<&'a str>,
}

/// Collects the paths below `fields` that match `pattern`.
fn descend(
    fields: &Map<String, Value>,
    path: &str,
    pattern: &Pattern<'_>,
    found: &mut Vec<String>,
) {
    let [segment, rest @ ..] = pattern.segments else { return };
    // Header names contain dots, so the last segment takes all that is left of the pattern.
    let joined = pattern.segments.join(".");
    for (key, value) in fields {
        let rest: &[&str] = match names(segment, key) {
            true => rest,
            false if joined.starts_with('@') && names(&joined, key) => &[],
            false => continue,
        };
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        walk(value, path, &Pattern { segments: rest, value: pattern.value }, found);
    }
}

fn names(segment: &str, key: &str) -> bool {
    match segment.strip_suffix('*') {
        Some(prefix) => key.starts_with(prefix),
        None => key == segment,
    }
}

fn walk(value: &Value, path: String, pattern: &Pattern<'_>, found: &mut Vec<String>) {
    match (value, pattern.segments) {
        (Value::Null, _) => {}
        (Value::Array(items), ["[]", rest @ ..]) => {
            for (index, item) in items.iter().enumerate() {
                let pattern = Pattern { segments: rest, value: pattern.value };
                walk(item, format!("{path}[{index}]"), &pattern, found);
            }
        }
        (value, []) if pattern.value.is_none_or(|wanted| value.as_str() == Some(wanted)) => {
            found.push(path);
        }
        (Value::Object(fields), _) => descend(fields, &path, pattern, found),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &[&str]) {
        let decoded = crate::decode::decode("f", text);
        assert_eq!(decoded.errors, []);
        let paths: Vec<_> = decoded.warnings.iter().map(|warning| warning.path.as_str()).collect();
        assert_eq!(paths, want);
    }

    #[test]
    fn only_fields_in_the_table_are_reported() {
        check(
            "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec:
  hosts: [a]
  http:
  - match:
    - headers: {end-user: {exact: x}}
    - headers: {'@request.auth.claims.sub': {exact: x}}
    route: [{destination: {host: a}, weight: 100}]
    timeout: 1s
",
            &["spec.http[0].match[1].headers.@request.auth.claims.sub"],
        );
        check(
            "
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: a}
spec: {configPatches: [{applyTo: CLUSTER}]}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: b}
spec: {configPatches: [{applyTo: BOOTSTRAP}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: a}
spec: {}
",
            &["spec.configPatches[0].applyTo", "spec"],
        );
    }

    #[test]
    fn patterns_name_fields_that_exist() {
        // A typo in the table would silence a warning for good.
        let mut missing = Vec::new();
        for (kind, pattern, _) in UNHONOURED {
            let path = pattern.split('=').next().unwrap_or_default();
            let mut value = Value::String("x".to_owned());
            for segment in
                path.split('.').rev().filter(|s| !s.contains(['@', '*']) && !matches!(*s, "auth"))
            {
                value = match segment {
                    "[]" => Value::Array(vec![value]),
                    key => Value::Object(Map::from_iter([(key.to_owned(), value)])),
                };
            }
            let Value::Object(mut object) = value else { continue };
            object.insert("apiVersion".to_owned(), kind.api_version().into());
            object.insert("kind".to_owned(), kind.name().into());
            object.insert("metadata".to_owned(), serde_json::json!({"name": "a"}));
            let errors = crate::decode::from_json("", &Value::Object(object)).err();
            let errors = errors.unwrap_or_default();
            missing.extend(
                errors.iter().map(ToString::to_string).filter(|e| e.contains("unknown field")),
            );
        }
        assert_eq!(missing, Vec::<String>::new());
        let mut config = MeshConfig::default();
        config.default_config.connection_settings = Some(Default::default());
        let config = serde_json::to_value(config).expect("plain data");
        for (path, _) in UNHONOURED_MESH {
            let found = path.split('.').try_fold(&config, |value, key| value.get(key));
            assert!(found.is_some(), "{path}");
        }
    }

    #[test]
    fn routes_have_services_as_parents() {
        check(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: a}
spec:
  parentRefs: [{group: '', kind: Service, name: web}, {name: edge}]
  rules: [{matches: [{path: {type: Exact, value: /}}], backendRefs: [{name: web, port: 80}]}]
",
            &["spec.parentRefs[1]"],
        );
    }

    #[test]
    fn mesh_settings_are_reported_when_they_differ_from_the_default() {
        assert_eq!(unhonoured_mesh(&MeshConfig::default()), []);
        let config = MeshConfig { enable_envoy_access_log_service: true, ..Default::default() };
        let paths: Vec<_> = unhonoured_mesh(&config).into_iter().map(|w| w.path).collect();
        assert_eq!(paths, ["enableEnvoyAccessLogService"]);
    }
}
