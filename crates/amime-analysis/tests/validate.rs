//! What single objects are refused for.

use std::path::{Path, PathBuf};

use amime_analysis::{Delegates, Severity, validate, validate_with};
use amime_api::decode::decode;
use expect_test::{Expect, expect};

/// Checks the problems of one object, given as its kind and spec.
#[track_caller]
fn check(api_version: &str, kind: &str, spec: &str, want: Expect) {
    let spec: String = spec.trim().lines().map(|line| format!("  {line}\n")).collect();
    check_all(
        &format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n{spec}"),
        want,
    );
}

#[track_caller]
fn check_all(text: &str, want: Expect) {
    let decoded = decode("f", text);
    assert_eq!(decoded.errors, [], "the fixture decodes");
    let delegates = Delegates::of(&decoded.resources);
    let problems = decoded.resources.iter().flat_map(|r| validate_with(r, &delegates));
    want.assert_eq(&problems.map(|p| p.to_string()).collect::<Vec<_>>().join("\n"));
}

const NETWORKING: &str = "networking.istio.io/v1";
const SECURITY: &str = "security.istio.io/v1";

#[test]
fn a_virtual_service_needs_hosts_and_routes() {
    check(
        NETWORKING,
        "VirtualService",
        "gateways: [gw]",
        expect![[r#"
        Error [IST0106] spec.hosts: at least one host is required, unless another VirtualService delegates to this one, and none does
        Error [IST0106] spec: at least one of http, tls and tcp is required"#]],
    );
    check(
        NETWORKING,
        "VirtualService",
        "hosts: ['*', reviews, reviews, 'a.*.b']",
        expect![[r#"
            Error [IST0106] spec.hosts[0]: "*" needs a gateway: sidecars (gateway "mesh") cannot take over every host
            Error [IST0106] spec.hosts[1]: covers the same names as "*"
            Error [IST0106] spec.hosts[2]: covers the same names as "*"
            Error [IST0106] spec.hosts[3]: "a.*.b" is not a host name
            Error [IST0106] spec: at least one of http, tls and tcp is required"#]],
    );
}

#[test]
fn only_delegates_lack_hosts() {
    check_all(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: root, namespace: a}
spec: {hosts: [x], http: [{delegate: {name: leaf, namespace: b}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: leaf, namespace: b}
spec: {http: [{match: [{uri: {regex: x}}], route: [{destination: {host: x}}]}], gateways: [g]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: stray, namespace: b}
spec: {http: [{route: [{destination: {host: x}}]}]}
",
        expect![[r#"
            Error [IST0106] spec.gateways: a delegate has the gateways of its root
            Error [IST0106] spec.http[0].match[0].uri.regex: patterns cannot be merged between root and delegate
            Error [IST0106] spec.hosts: at least one host is required, unless another VirtualService delegates to this one, and none does"#]],
    );
}

#[test]
fn weights_must_be_able_to_work() {
    let spec = |first: i32, second: i32| {
        format!(
            "hosts: [a]\nhttp:\n- route:\n  - {{destination: {{host: a, subset: v1}}, weight: {first}}}\n  \
             - {{destination: {{host: a, subset: v2}}, weight: {second}}}"
        )
    };
    check(
        NETWORKING,
        "VirtualService",
        &spec(0, 0),
        expect![
            "Error [IST0106] spec.http[0].route: all weights are zero, so no destination would get a request"
        ],
    );
    check(
        NETWORKING,
        "VirtualService",
        &spec(-10, 110),
        expect!["Error [IST0106] spec.http[0].route[0].weight: -10 is negative"],
    );
    check(NETWORKING, "VirtualService", &spec(80, 0), expect![[""]]);
    check(NETWORKING, "VirtualService", &spec(50, 70), expect![[""]]);
}

#[test]
fn http_routes_are_checked_in_every_part() {
    check(
        NETWORKING,
        "VirtualService",
        "
hosts: [a]
http:
- redirect: {redirectCode: 200}
  route: [{destination: {host: a}}]
  rewrite: {uri: /}
- {}
- match:
  - uri: {regex: '('}
    method: {}
    headers: {'a b': {exact: x}, '@request.auth.claims.sub': {exact: x}}
    port: 70000
    sourceLabels: {'a/b/c': x}
  route: [{destination: {host: '*', subset: V1, port: {number: 0}}}]
  timeout: 0.0001s
  retries: {attempts: 3, retryOn: '5xx, 503, sometimes'}
  fault: {delay: {percentage: {value: 101}}, abort: {httpStatus: 99}}
- route: [{destination: {host: a}}]
  headers: {request: {set: {':path': /, host: b}, remove: [Host]}}
  rewrite: {authority: c, uriRegexRewrite: {match: '['}}
  mirror: {host: m}
  mirrors: [{destination: {host: m}, percentage: {value: -1}}]
  corsPolicy: {allowOrigins: [{exact: ''}], allowMethods: [get]}
  retries: {attempts: 0, perTryTimeout: 1s}
- directResponse: {status: 100, body: {}}
",
        expect![[r#"
            Error [IST0106] spec.http[0].redirect: cannot be given together with route
            Error [IST0106] spec.http[0].rewrite: cannot be given together with redirect
            Error [IST0106] spec.http[0].redirect: at least one of uri, prefixRewrite, authority, scheme and port is required
            Error [IST0106] spec.http[0].redirect.redirectCode: 200 is none of 301, 302, 303, 307, 308
            Error [IST0106] spec.http[1]: one of route, redirect, directResponse and delegate is required
            Error [IST0106] spec.http[2].match[0].uri.regex: "(" is not a valid pattern: unclosed group
            Error [IST0106] spec.http[2].match[0].method: one of exact, prefix and regex is required
            Error [IST0106] spec.http[2].match[0].headers["a b"]: "a b" is not a header name
            Error [IST0106] spec.http[2].match[0].port: port 70000 is not in 1 to 65535
            Error [IST0106] spec.http[2].match[0].sourceLabels["a/b/c"]: "a/b/c" is not a label name
            Error [IST0106] spec.http[2].route[0].destination.host: a destination cannot be "*"
            Error [IST0106] spec.http[2].route[0].destination.subset: "V1" is not a name of at most 63 lower-case letters, digits and inner dashes
            Error [IST0106] spec.http[2].route[0].destination.port.number: port 0 is not in 1 to 65535
            Error [IST0106] spec.http[2].timeout: 0.0001s is shorter than 1ms
            Error [IST0106] spec.http[2].retries.retryOn: " 503" is neither a retry condition nor a status code
            Error [IST0106] spec.http[2].retries.retryOn: " sometimes" is neither a retry condition nor a status code
            Error [IST0106] spec.http[2].fault.delay.percentage.value: 101 is not in 0 to 100
            Error [IST0106] spec.http[2].fault.delay.fixedDelay: a delay is required
            Warning [IST0133] spec.http[2].fault.abort.percentage: without it no request is aborted
            Error [IST0106] spec.http[2].fault.abort.httpStatus: status 99 is not in 200 to 599
            Error [IST0106] spec.http[2].match[0].headers["@request.auth.claims.sub"]: claims are matched by gateways only
            Error [IST0106] spec.http[3].headers.request.set[":path"]: header ":path" cannot be changed this way
            Error [IST0106] spec.http[3].headers.request.remove[0]: header "Host" cannot be changed this way
            Error [IST0106] spec.http[3]: the host is rewritten in several places
            Error [IST0106] spec.http[3].rewrite.uriRegexRewrite.match: "[" is not a valid pattern: unclosed character class
            Error [IST0106] spec.http[3].rewrite.uriRegexRewrite.rewrite: a replacement is required
            Error [IST0106] spec.http[3].retries.attempts: zero switches retries off, so nothing else may be set
            Error [IST0106] spec.http[3].mirrors: cannot be given together with mirror
            Error [IST0106] spec.http[3].mirrors[0].percentage.value: -1 is not in 0 to 100
            Error [IST0106] spec.http[3].corsPolicy.allowOrigins[0]: one of exact, prefix and regex is required
            Error [IST0106] spec.http[3].corsPolicy.allowMethods[0]: "get" is not an HTTP method
            Error [IST0106] spec.http[4].directResponse.status: status 100 is not in 200 to 599
            Error [IST0106] spec.http[4].directResponse.body: one of string and bytes is required"#]],
    );
}

#[test]
fn tls_and_tcp_routes_are_checked() {
    check(
        NETWORKING,
        "VirtualService",
        "
hosts: ['*.a.com']
gateways: [ns/gw, a/b/c]
exportTo: ['*', x]
tls:
- route: [{destination: {host: a}}]
- match: [{sniHosts: [x.b.com]}, {port: 443}]
tcp:
- match: [{destinationSubnets: [10.0.0.0/99], port: 3306}]
",
        expect![[r#"
            Error [IST0106] spec.gateways[1]: "a/b/c" is not of the form name or namespace/name
            Error [IST0106] spec.exportTo: "*" cannot be given together with others
            Error [IST0106] spec.tls[0].match: at least one match is required
            Error [IST0106] spec.tls[1].match[0].sniHosts[0]: "x.b.com" is not among the hosts of the rule
            Error [IST0106] spec.tls[1].match[1].sniHosts: at least one server name is required
            Error [IST0106] spec.tls[1].route: at least one destination is required
            Error [IST0106] spec.tcp[0].match[0].destinationSubnets[0]: "10.0.0.0/99" is neither an IP address nor a CIDR range
            Error [IST0106] spec.tcp[0].route: at least one destination is required"#]],
    );
}

#[test]
fn destination_rules_are_checked() {
    check(
        NETWORKING,
        "DestinationRule",
        "
host: reviews
trafficPolicy:
  tls: {mode: MUTUAL}
  connectionPool: {}
  outlierDetection: {maxEjectionPercent: 120, interval: 0.1ms, consecutiveErrors: 3}
  loadBalancer:
    consistentHash: {maglev: {tableSize: 10}}
    localityLbSetting: {distribute: [{from: a, to: {b: 50}}], failover: [{from: a, to: a}]}
  portLevelSettings: [{port: {number: 80}}, {port: {number: 80}}, {tls: {mode: ISTIO_MUTUAL, privateKey: k}}]
subsets:
- {name: v1, labels: {version: 'v*'}}
- {name: v1}
- {name: V_2, trafficPolicy: {}}
",
        expect![[r#"
            Error [IST0106] spec.trafficPolicy.loadBalancer.consistentHash: one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName is required
            Error [IST0106] spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 10 is not a prime below 5000011
            Error [IST0106] spec.trafficPolicy.loadBalancer.localityLbSetting.distribute: cannot be given together with failover
            Error [IST0106] spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to: weights add up to 50, not 100
            Error [IST0106] spec.trafficPolicy.loadBalancer.localityLbSetting.failover[0]: region "a" cannot take over from itself
            Error [IST0106] spec.trafficPolicy.connectionPool: at least one of tcp and http is required
            Warning [IST0002] spec.trafficPolicy.outlierDetection.consecutiveErrors: deprecated, use consecutiveGatewayErrors or consecutive5xxErrors instead
            Error [IST0106] spec.trafficPolicy.outlierDetection.maxEjectionPercent: 120 is not in 0 to 100
            Error [IST0106] spec.trafficPolicy.outlierDetection.interval: 0.0001s is shorter than 1ms
            Error [IST0106] spec.trafficPolicy.tls.clientCertificate: mode MUTUAL needs it, or credentialName
            Error [IST0106] spec.trafficPolicy.tls.privateKey: mode MUTUAL needs it, or credentialName
            Error [IST0106] spec.trafficPolicy.portLevelSettings[0]: at least one field besides the port is required
            Error [IST0106] spec.trafficPolicy.portLevelSettings[1].port: port 80 is given twice
            Error [IST0106] spec.trafficPolicy.portLevelSettings[1]: at least one field besides the port is required
            Error [IST0106] spec.trafficPolicy.portLevelSettings[2].port.number: port 0 is not in 1 to 65535
            Error [IST0106] spec.trafficPolicy.portLevelSettings[2].tls.privateKey: mode ISTIO_MUTUAL brings its own certificates
            Error [IST0106] spec.subsets[0].labels["version"]: "v*": wildcards are not supported
            Error [IST0106] spec.subsets[1].name: subset "v1" is given twice
            Error [IST0106] spec.subsets[2].name: "V_2" is not a name of at most 63 lower-case letters, digits and inner dashes
            Error [IST0106] spec.subsets[2].trafficPolicy: at least one field is required"#]],
    );
}

#[test]
fn gateways_are_checked() {
    check(
        NETWORKING,
        "Gateway",
        "
selector: {istio: ingressgateway}
servers:
- port: {number: 80, name: http, protocol: HTTP}
  hosts: ['*', 'ns/*.com', 'Bad_Ns/x']
  tls: {mode: SIMPLE}
- port: {number: 443, name: http, protocol: HTTPS}
  hosts: [a.com]
- port: {number: 444, name: https, protocol: HTTPS}
  hosts: [a.com]
  tls: {mode: MUTUAL, serverCertificate: c, privateKey: k}
- port: {number: 0, protocol: QUIC}
",
        expect![[r#"
            Error [IST0106] spec.servers[0].hosts[2]: "Bad_Ns" is not a name of at most 63 lower-case letters, digits and inner dashes
            Error [IST0106] spec.servers[0].tls: only httpsRedirect is allowed on ports of other protocols than HTTPS and TLS
            Error [IST0106] spec.servers[1].tls: ports of protocol HTTPS and TLS need it
            Error [IST0106] spec.servers[1].port.name: port name "http" is given twice
            Error [IST0106] spec.servers[2].tls.caCertificates: the mode needs it, or credentialName
            Error [IST0106] spec.servers[3].port.number: port 0 is not in 1 to 65535
            Error [IST0106] spec.servers[3].port.name: a name is required
            Error [IST0106] spec.servers[3].port.protocol: unknown protocol "QUIC", expected one of HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, MYSQL, REDIS, TCP, TLS, UDP
            Error [IST0106] spec.servers[3].hosts: at least one host is required"#]],
    );
    check(
        NETWORKING,
        "Gateway",
        "selector: {a: b}",
        expect!["Error [IST0106] spec.servers: at least one server is required"],
    );
}

#[test]
fn service_entries_are_checked() {
    check(
        NETWORKING,
        "ServiceEntry",
        "
hosts: ['*.a.com']
addresses: [10.0.0.0/8, nowhere]
ports:
- {number: 80, name: http, protocol: HTTP}
- {number: 80, name: http, protocol: QUIC}
resolution: DNS
",
        expect![[r#"
            Error [IST0106] spec.addresses[0]: a range needs resolution NONE or STATIC
            Error [IST0106] spec.addresses[1]: "nowhere" is neither an IP address nor a CIDR range
            Error [IST0106] spec.ports[1].protocol: unknown protocol "QUIC", expected one of HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, MYSQL, REDIS, TCP, TLS, UDP
            Error [IST0106] spec.ports[1].name: port name "http" is given twice
            Error [IST0106] spec.ports[1].number: port 80 is given twice
            Error [IST0106] spec.hosts: a wildcard cannot be resolved without endpoints"#]],
    );
    check(
        NETWORKING,
        "ServiceEntry",
        "
hosts: [a.com]
ports: [{number: 80, name: http, protocol: HTTP}]
resolution: STATIC
endpoints: [{address: b.com}, {address: 1.2.3.4, ports: {https: 1}}, {}]
workloadSelector: {labels: {a: b}}
",
        expect![[r#"
            Error [IST0106] spec.endpoints: cannot be given together with workloadSelector
            Error [IST0106] spec.endpoints[0].address: resolution STATIC needs an IP address or a Unix socket
            Error [IST0106] spec.endpoints[1].ports["https"]: the service has no port of this name
            Error [IST0106] spec.endpoints[2].address: an address is required, unless network is given"#]],
    );
}

#[test]
fn sidecars_are_checked() {
    check(
        NETWORKING,
        "Sidecar",
        "
ingress:
- port: {number: 80, protocol: HTTP, name: a}
  defaultEndpoint: 10.0.0.1:80
- port: {number: 80, protocol: HTTP, name: b}
egress:
- hosts: ['*/*']
- hosts: [reviews]
  port: {number: 9080, protocol: HTTP}
",
        expect![[r#"
            Error [IST0106] spec.ingress[0].defaultEndpoint: "10.0.0.1:80" is not 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT or unix://PATH
            Error [IST0106] spec.ingress[1].port: port 80 is given twice
            Error [IST0106] spec.egress[0]: the listener without a port must be the last
            Error [IST0106] spec.egress[1].hosts[0]: "reviews" is not of the form namespace/host"#]],
    );
}

#[test]
fn security_kinds_are_checked() {
    check(
        SECURITY,
        "PeerAuthentication",
        "portLevelMtls: {0: {mode: STRICT}}",
        expect![[r#"
        Error [IST0106] spec.portLevelMtls: needs a selector: ports belong to workloads
        Error [IST0106] spec.portLevelMtls["0"]: port 0 is not in 1 to 65535"#]],
    );
    check(
        SECURITY,
        "RequestAuthentication",
        "jwtRules: [{}, {issuer: i, jwks: '{}', jwksUri: ftp://x, fromHeaders: [{}]}]",
        expect![[r#"
            Error [IST0106] spec.jwtRules[0].issuer: an issuer is required, unless jwksUri is given
            Error [IST0106] spec.jwtRules[1].jwks: cannot be given together with jwksUri
            Error [IST0106] spec.jwtRules[1].jwksUri: "ftp://x" is not an HTTP URL
            Error [IST0106] spec.jwtRules[1].fromHeaders[0].name: a header name is required"#]],
    );
    check(
        SECURITY,
        "AuthorizationPolicy",
        "
action: CUSTOM
rules:
- from: [{}, {source: {ipBlocks: [x], serviceAccounts: [a/*], principals: [p]}}]
  to: [{operation: {}}, {operation: {ports: [http], paths: ['']}}]
  when: [{key: source.port, values: [x]}, {key: 'request.headers[a]'}, {key: source.ip, values: [nowhere]}]
",
        expect![[r#"
            Error [IST0106] spec.provider.name: action CUSTOM needs a provider
            Error [IST0106] spec.rules[0].from[0].source: at least one field is required
            Error [IST0106] spec.rules[0].from[1].source.ipBlocks[0]: "x" is neither an IP address nor a CIDR range
            Error [IST0106] spec.rules[0].from[1].source.serviceAccounts: cannot be given together with principals or namespaces
            Error [IST0106] spec.rules[0].from[1].source.serviceAccounts[0]: wildcards are not supported
            Error [IST0106] spec.rules[0].to[0].operation: at least one field is required
            Error [IST0106] spec.rules[0].to[1].operation.paths[0]: must not be empty
            Error [IST0106] spec.rules[0].to[1].operation.ports[0]: "http" is not a port number
            Error [IST0106] spec.rules[0].when[0].key: unknown attribute "source.port"
            Error [IST0106] spec.rules[0].when[1]: one of values and notValues is required
            Error [IST0106] spec.rules[0].when[2].values[0]: "nowhere" is neither an IP address nor a CIDR range"#]],
    );
    check(
        SECURITY,
        "AuthorizationPolicy",
        "action: DENY",
        expect!["Warning [IST0133] spec.rules: action DENY without rules never matches"],
    );
    check(SECURITY, "AuthorizationPolicy", "{}", expect![[""]]);
}

#[test]
fn extension_kinds_are_checked() {
    check(
        "extensions.istio.io/v1alpha1",
        "WasmPlugin",
        "{url: 'ftp://x', sha256: ab, match: [{ports: [{number: 0}]}]}",
        expect![[r#"
            Error [IST0106] spec.url: scheme "ftp" is none of oci, http, https, file
            Error [IST0106] spec.sha256: is not 64 hexadecimal digits
            Error [IST0106] spec.match[0].ports[0].number: port 0 is not in 1 to 65535"#]],
    );
    check(
        "networking.istio.io/v1alpha3",
        "EnvoyFilter",
        "configPatches: [{}, {applyTo: CLUSTER, patch: {operation: REPLACE}}]",
        expect![[r#"
            Error [IST0106] spec.configPatches[0].applyTo: is required
            Error [IST0106] spec.configPatches[0].patch: is required
            Error [IST0106] spec.configPatches[1].patch.value: every operation but REMOVE needs a value
            Error [IST0106] spec.configPatches[1].patch.operation: REPLACE is for filters and virtual hosts only"#]],
    );
    check(
        "telemetry.istio.io/v1",
        "Telemetry",
        "
tracing: [{randomSamplingPercentage: 200}]
metrics: [{overrides: [{tagOverrides: {a: {operation: UPSERT}}}]}]
",
        expect![[r#"
            Error [IST0106] spec.tracing[0].randomSamplingPercentage: 200 is not in 0 to 100
            Error [IST0106] spec.metrics[0].overrides[0].tagOverrides["a"].value: operation UPSERT needs a value"#]],
    );
}

#[test]
fn platform_kinds_are_checked() {
    check(
        "v1",
        "Service",
        "{ports: [{port: 0}, {port: 80}, {port: 80, name: a}]}",
        expect![[r#"
            Error [IST0106] spec.ports[0].port: port 0 is not in 1 to 65535
            Error [IST0106] spec.ports[0].name: a name is required if there are several ports
            Error [IST0106] spec.ports[1].name: a name is required if there are several ports
            Error [IST0106] spec.ports[2].port: port 80 is given twice"#]],
    );
    check(
        "apps/v1",
        "Deployment",
        "
replicas: -1
selector: {matchLabels: {app: a}}
template:
  metadata: {labels: {app: b}}
  spec: {containers: [{name: A, image: ''}]}
",
        expect![[r#"
            Error [IST0106] spec.replicas: must not be negative
            Error [IST0106] spec.template.metadata.labels: the selector does not select the template
            Error [IST0106] spec.template.spec.containers[0].name: "A" is not a name of at most 63 lower-case letters, digits and inner dashes
            Error [IST0106] spec.template.spec.containers[0].image: an image is required"#]],
    );
}

#[test]
fn upstream_samples_have_no_errors() {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let shared = std::env::var_os("AMIME_SHARED").map_or_else(default, PathBuf::from);
    for release in ["current", "1.6.4", "1.1.0", "1.0.0"] {
        let bookinfo = shared.join("data/istio-samples").join(release).join("bookinfo");
        let networking = bookinfo.join("networking");
        let files = std::fs::read_dir(&networking).unwrap_or_else(|error| {
            panic!(
                "{} must hold upstream samples ({error}); set AMIME_SHARED",
                networking.display()
            )
        });
        let files = files.map(|entry| entry.expect("readable folder").path());
        for file in files.chain([bookinfo.join("platform/kube/bookinfo.yaml")]) {
            let text = std::fs::read_to_string(&file).expect("readable sample");
            for resource in decode(&file.to_string_lossy(), &text).resources {
                let errors: Vec<String> = validate(&resource)
                    .into_iter()
                    .filter(|problem| problem.severity == Severity::Error)
                    .map(|problem| problem.to_string())
                    .collect();
                assert!(errors.is_empty(), "{}: {}", file.display(), errors.join("\n"));
            }
        }
    }
}

#[test]
fn patches_have_to_fit_what_they_apply_to() {
    check(
        "networking.istio.io/v1alpha3",
        "EnvoyFilter",
        r"
configPatches:
- applyTo: CLUSTER
  match: {listener: {portNumber: 80}}
  patch: {operation: MERGE, value: {connect_timeout: soon}}
- applyTo: NETWORK_FILTER
  match: {listener: {filterChain: {filter: {name: envoy.filters.network.tcp_proxy, subFilter: {name: a}}}}}
  patch: {operation: INSERT_BEFORE, value: {name: a, typed_config: {'@type': type.googleapis.com/envoy.Nothing}}}
- applyTo: HTTP_FILTER
  match: {proxy: {proxyVersion: '['}, listener: {filterChain: {filter: {name: other, subFilter: {}}}}}
  patch: {operation: INSERT_FIRST, value: {name: lua, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}}}
- applyTo: LISTENER
  patch: {operation: MERGE, value: {per_connection_buffer: 1}}
",
        expect![[r#"
            Error [IST0106] spec.configPatches[0].match.listener: has to be a match of cluster here
            Error [IST0106] spec.configPatches[0].patch.value: not of type envoy.config.cluster.v3.Cluster: failed to parse duration
            Error [IST0106] spec.configPatches[1].match.listener.filterChain.filter.subFilter: is for applyTo HTTP_FILTER only
            Error [IST0106] spec.configPatches[1].patch.value: not of type envoy.config.listener.v3.Filter: message 'envoy.Nothing' not found
            Error [IST0106] spec.configPatches[2].match.proxy.proxyVersion: "[" is not a valid pattern: unclosed character class
            Error [IST0106] spec.configPatches[2].match.listener.filterChain.filter.name: only envoy.filters.network.http_connection_manager has subfilters
            Error [IST0106] spec.configPatches[2].match.listener.filterChain.filter.subFilter.name: is required
            Warning [IST0133] spec.configPatches[2].patch.value: amime's proxy has no envoy.filters.http.lua: it is left out for such proxies, others get it
            Warning [IST0133] spec.configPatches[3].patch.value: not of type envoy.config.listener.v3.Listener: unrecognized field name 'per_connection_buffer'; the field is left out"#]],
    );
}

/// Specs, one a line, each of which has to be refused.
#[track_caller]
fn refused(kind: &str, specs: &str) {
    for spec in specs.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: {kind}\n\
             metadata: {{name: a, namespace: default}}\nspec: {{{spec}}}\n"
        );
        let decoded = amime_api::decode::decode("f", &text);
        assert_eq!(decoded.errors, [], "{spec}");
        let problems = validate(&decoded.resources[0]);
        assert!(problems.iter().any(|p| p.severity == Severity::Error), "{kind} {spec}");
    }
}

#[test]
fn routes_that_upstream_refuses_are_refused() {
    refused(
        "VirtualService",
        r#"
        hosts: [a_b], http: [{route: [{destination: {host: a}}]}]
        hosts: [a], exportTo: ["~"], http: [{route: [{destination: {host: a}}]}]
        hosts: [a], http: [{match: [{headers: {":foo": {exact: a}}}], route: [{destination: {host: a}}]}]
        hosts: [a], http: [{match: [{headers: {"@request.auth.claims.a": {exact: x}}}], route: [{destination: {host: a}}]}]
        hosts: [a], http: [{match: [{uri: {exact: /x}}], redirect: {prefixRewrite: /x}}]
        hosts: [a], http: [{directResponse: {status: 200}, fault: {abort: {httpStatus: 500}}}]
        hosts: [a], http: [{headers: {request: {set: {a: "%"}}}, route: [{destination: {host: a}}]}]
        hosts: [a], http: [{headers: {response: {add: {a: "%UPSTREAM_HOST"}}}, route: [{destination: {host: a}}]}]
        hosts: [a], http: [{timeout: 0s, route: [{destination: {host: a}}]}]
        hosts: [a], http: [{retries: {attempts: 1, retryOn: "5xx, 503"}, route: [{destination: {host: a}}]}]
        hosts: [a], http: [{retries: {attempts: 1, perTryTimeout: 0s}, route: [{destination: {host: a}}]}]
        hosts: [a], http: [{fault: {delay: {fixedDelay: 1s, percentage: {value: 0.00001}}}, route: [{destination: {host: a}}]}]
        hosts: [a], http: [{corsPolicy: {maxAge: 0s}, route: [{destination: {host: a}}]}]
        "#,
    );
}

#[test]
fn policies_that_upstream_refuses_are_refused() {
    refused(
        "DestinationRule",
        r"
        host: a, exportTo: ['~']
        host: a, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {}}}}
        host: a, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, minimumRingSize: 5, ringHash: {}}}}
        host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: a, attributes: [{name: x}, {name: x}]}}}}
        host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: a/*, to: {a/*/c: 100}}]}}}
        host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 50, b/c: 50}}]}}}
        host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: a//c, to: {b: 100}}]}}}
        host: a, trafficPolicy: {loadBalancer: {zoneAwareLbSetting: {enabled: true}, localityLbSetting: {enabled: true}}}
        host: a, trafficPolicy: {connectionPool: {tcp: {tcpKeepalive: {time: 0s}}}}
        host: a, trafficPolicy: {connectionPool: {http: {idleTimeout: 0s}}}
        host: a, trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE, useClientProtocol: true}}}
        host: a, trafficPolicy: {connectionPool: {http: {http2KeepAlive: {interval: 1s}}}}
        host: a, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [a]}}
        host: a, trafficPolicy: {portLevelSettings: [{port: {number: 80}}]}
        ",
    );
}

#[test]
fn listeners_that_upstream_refuses_are_refused() {
    refused(
        "Gateway",
        r"
        selector: {a: b}, servers: [{port: {number: 80, name: h, protocol: HTTP, targetPort: 81}, hosts: ['*']}]
        selector: {a: b}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: [~/a.com]}]
        selector: {a: b}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*'], bind: 'unix:///x'}]
        selector: {a: b}, servers: [{port: {number: 443, name: h, protocol: TCP}, hosts: ['*'], tls: {httpsRedirect: true}}]
        selector: {a: b}, servers: [{port: {number: 443, name: h, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: c, serverCertificate: /c, privateKey: /k}}]
        selector: {a: b}, servers: [{port: {number: 443, name: h, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, tlsCertificates: [{serverCertificate: /c}]}}]
        selector: {a: b}, servers: [{port: {number: 443, name: h, protocol: HTTPS}, hosts: ['*'], tls: {mode: MUTUAL, tlsCertificates: [{serverCertificate: /c, privateKey: /k}]}}]
        ",
    );
    refused(
        "Sidecar",
        r"
        workloadSelector: {labels: {a: b}}
        egress: [{port: {number: 80, name: h, protocol: HTTP}, hosts: [./*]}, {port: {number: 80, name: h, protocol: HTTP}, hosts: [./*]}]
        egress: [{port: {number: 0, name: h, protocol: HTTP}, bind: 'unix:///x', captureMode: IPTABLES, hosts: [./*]}]
        inboundConnectionPool: {tcp: {maxConnections: -1}}
        outboundTrafficPolicy: {egressProxy: {host: a.com, port: {number: 80}}}
        outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: a.com}}
        ingress: [{port: {number: 80, name: h, protocol: HTTP}, bind: 'unix:///x'}]
        ingress: [{port: {number: 443, name: h, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: c}}]
        ",
    );
    refused(
        "ServiceEntry",
        "hosts: [a.com], ports: [{number: 80, name: h, protocol: HTTP}], resolution: DNS, endpoints: [{address: 'unix:///x'}]",
    );
}
