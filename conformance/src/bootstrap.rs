//! From the short form that cases are written in to an Envoy bootstrap.
//!
//! The short form only leaves out what every bootstrap repeats: the README
//! has its rules. Everything else is Envoy's own configuration, passed on.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::backend::Backends;

/// Short names of extensions: short, full, type, type on a route.
type Extension = (&'static str, &'static str, &'static str, &'static str);

const EXTENSIONS: &[Extension] = &[
    ("router", "envoy.filters.http.router", "filters.http.router.v3.Router", ""),
    (
        "cors",
        "envoy.filters.http.cors",
        "filters.http.cors.v3.Cors",
        "filters.http.cors.v3.CorsPolicy",
    ),
    (
        "fault",
        "envoy.filters.http.fault",
        "filters.http.fault.v3.HTTPFault",
        "filters.http.fault.v3.HTTPFault",
    ),
    (
        "rbac",
        "envoy.filters.http.rbac",
        "filters.http.rbac.v3.RBAC",
        "filters.http.rbac.v3.RBACPerRoute",
    ),
    (
        "local_ratelimit",
        "envoy.filters.http.local_ratelimit",
        "filters.http.local_ratelimit.v3.LocalRateLimit",
        "filters.http.local_ratelimit.v3.LocalRateLimit",
    ),
    ("grpc_web", "envoy.filters.http.grpc_web", "filters.http.grpc_web.v3.GrpcWeb", ""),
    ("grpc_stats", "envoy.filters.http.grpc_stats", "filters.http.grpc_stats.v3.FilterConfig", ""),
    (
        "buffer",
        "envoy.filters.http.buffer",
        "filters.http.buffer.v3.Buffer",
        "filters.http.buffer.v3.BufferPerRoute",
    ),
    (
        "compressor",
        "envoy.filters.http.compressor",
        "filters.http.compressor.v3.Compressor",
        "filters.http.compressor.v3.CompressorPerRoute",
    ),
    (
        "decompressor",
        "envoy.filters.http.decompressor",
        "filters.http.decompressor.v3.Decompressor",
        "",
    ),
    (
        "grpc_http1_bridge",
        "envoy.filters.http.grpc_http1_bridge",
        "filters.http.grpc_http1_bridge.v3.Config",
        "",
    ),
    (
        "header_to_metadata",
        "envoy.filters.http.header_to_metadata",
        "filters.http.header_to_metadata.v3.Config",
        "filters.http.header_to_metadata.v3.Config",
    ),
    ("set_metadata", "envoy.filters.http.set_metadata", "filters.http.set_metadata.v3.Config", ""),
    (
        "csrf",
        "envoy.filters.http.csrf",
        "filters.http.csrf.v3.CsrfPolicy",
        "filters.http.csrf.v3.CsrfPolicy",
    ),
    (
        "header_mutation",
        "envoy.filters.http.header_mutation",
        "filters.http.header_mutation.v3.HeaderMutation",
        "filters.http.header_mutation.v3.HeaderMutationPerRoute",
    ),
    (
        "bandwidth_limit",
        "envoy.filters.http.bandwidth_limit",
        "filters.http.bandwidth_limit.v3.BandwidthLimit",
        "filters.http.bandwidth_limit.v3.BandwidthLimit",
    ),
    ("ip_tagging", "envoy.filters.http.ip_tagging", "filters.http.ip_tagging.v3.IPTagging", ""),
    (
        "health_check",
        "envoy.filters.http.health_check",
        "filters.http.health_check.v3.HealthCheck",
        "",
    ),
    ("on_demand", "envoy.filters.http.on_demand", "filters.http.on_demand.v3.OnDemand", ""),
    (
        "stateful_session",
        "envoy.filters.http.stateful_session",
        "filters.http.stateful_session.v3.StatefulSession",
        "filters.http.stateful_session.v3.StatefulSessionPerRoute",
    ),
    (
        "dynamic_forward_proxy",
        "envoy.filters.http.dynamic_forward_proxy",
        "filters.http.dynamic_forward_proxy.v3.FilterConfig",
        "filters.http.dynamic_forward_proxy.v3.PerRouteConfig",
    ),
    ("hcm", "envoy.filters.network.http_connection_manager", HCM, ""),
    ("tcp_proxy", "envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", ""),
    ("network_rbac", "envoy.filters.network.rbac", "filters.network.rbac.v3.RBAC", ""),
    (
        "sni_cluster",
        "envoy.filters.network.sni_cluster",
        "filters.network.sni_cluster.v3.SniCluster",
        "",
    ),
    (
        "network_local_ratelimit",
        "envoy.filters.network.local_ratelimit",
        "filters.network.local_ratelimit.v3.LocalRateLimit",
        "",
    ),
    (
        "sni_dynamic_forward_proxy",
        "envoy.filters.network.sni_dynamic_forward_proxy",
        "filters.network.sni_dynamic_forward_proxy.v3.FilterConfig",
        "",
    ),
    (
        "tls_inspector",
        "envoy.filters.listener.tls_inspector",
        "filters.listener.tls_inspector.v3.TlsInspector",
        "",
    ),
    (
        "http_inspector",
        "envoy.filters.listener.http_inspector",
        "filters.listener.http_inspector.v3.HttpInspector",
        "",
    ),
    (
        "proxy_protocol",
        "envoy.filters.listener.proxy_protocol",
        "filters.listener.proxy_protocol.v3.ProxyProtocol",
        "",
    ),
];

const HCM: &str = "filters.network.http_connection_manager.v3.HttpConnectionManager";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Access log of every connection manager and TCP proxy that has none. The
/// client's address comes first, so that lines are found by connection.
const LOG_FORMAT: &str = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%|%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% \
    %PROTOCOL% code=%RESPONSE_CODE% flags=%RESPONSE_FLAGS% details=%RESPONSE_CODE_DETAILS% route=%ROUTE_NAME% \
    cluster=%UPSTREAM_CLUSTER% attempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT% received=%BYTES_RECEIVED% \
    sent=%BYTES_SENT% terminated=%CONNECTION_TERMINATION_DETAILS%\n";

/// Expands a bootstrap in its short form.
pub(crate) fn expand(short: Value) -> Result<Value> {
    let Value::Object(mut short) = short else { bail!("the bootstrap is not a mapping") };
    let mut resources = Map::new();
    let mut listeners = vec![];
    for (name, listener) in object(short.remove("listeners"), "listeners")? {
        listeners
            .push(self::listener(&name, listener).with_context(|| format!("listener {name}"))?);
    }
    let mut clusters = vec![];
    for (name, cluster) in object(short.remove("clusters"), "clusters")? {
        clusters.push(self::cluster(&name, cluster).with_context(|| format!("cluster {name}"))?);
    }
    resources.insert("listeners".into(), listeners.into());
    resources.insert("clusters".into(), clusters.into());
    short.entry("admin").or_insert_with(|| json!({"address": address(0)}));
    short.entry("node").or_insert_with(|| json!({"id": "conformance", "cluster": "conformance"}));
    short.insert("static_resources".into(), resources.into());
    let mut whole = Value::Object(short);
    complete_types(&mut whole);
    Ok(whole)
}

/// Replaces the placeholders of one run.
pub(crate) fn place(value: &mut Value, backends: &Backends, dir: &str, log: &str) -> Result<()> {
    match value {
        Value::Array(items) => {
            items.iter_mut().try_for_each(|item| place(item, backends, dir, log))?;
        }
        Value::Object(fields) => {
            fields.values_mut().try_for_each(|field| place(field, backends, dir, log))?;
        }
        Value::String(text) if text.contains("{{") => {
            *text = text.replace("{{certs}}", dir).replace("{{log}}", log);
            let name = text.strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
            let Some(name) = name.filter(|name| !name.starts_with(PORT)) else {
                return place_ports(value, backends);
            };
            let port = backends.port(name).with_context(|| format!("no backend {name}"))?;
            *value = json!({"address": address(port)});
        }
        _ => {}
    }
    Ok(())
}

/// Begins a placeholder for no more than a backend's port.
const PORT: &str = "port ";

/// Replaces `{{port a}}` within a text; a text of nothing else becomes a number.
fn place_ports(value: &mut Value, backends: &Backends) -> Result<()> {
    let Value::String(text) = &*value else { return Ok(()) };
    let mut parts = text.split("{{port ");
    let mut placed = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").context("a placeholder without an end")?;
        let port = backends.port(name).with_context(|| format!("no backend {name}"))?;
        if placed.is_empty() && rest.is_empty() {
            *value = port.into();
            return Ok(());
        }
        placed.push_str(&format!("{port}{rest}"));
    }
    *value = placed.into();
    Ok(())
}

fn object(value: Option<Value>, what: &str) -> Result<Map<String, Value>> {
    match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(fields)) => Ok(fields),
        Some(_) => bail!("{what} is not a mapping"),
    }
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn listener(name: &str, short: Value) -> Result<Value> {
    let mut listener = object(Some(short), "the listener")?;
    let chains = match listener.remove("chains") {
        Some(Value::Array(chains)) => chains,
        Some(_) => bail!("chains is not a list"),
        None => {
            let parts = ["match", "tls", "network_filters", "hcm", "tcp_proxy"];
            let chain: Map<_, _> =
                parts.iter().filter_map(|part| listener.remove_entry(*part)).collect();
            vec![chain.into()]
        }
    };
    let chains =
        chains.into_iter().map(|chain| self::chain(name, chain)).collect::<Result<Vec<_>>>()?;
    listener.insert("name".into(), name.into());
    listener.entry("address").or_insert_with(|| address(0));
    listener.insert("filter_chains".into(), chains.into());
    if let Some(Value::Array(filters)) = listener.get_mut("listener_filters") {
        filters.iter_mut().try_for_each(extension)?;
    }
    Ok(listener.into())
}

fn chain(name: &str, short: Value) -> Result<Value> {
    let mut short = object(Some(short), "the chain")?;
    let mut filters = match short.remove("network_filters") {
        Some(Value::Array(filters)) => filters,
        _ => vec![],
    };
    filters.iter_mut().try_for_each(extension)?;
    if let Some(hcm) = short.remove("hcm") {
        filters.push(self::hcm(name, hcm)?);
    }
    if let Some(proxy) = short.remove("tcp_proxy") {
        let mut proxy = object(Some(proxy), "tcp_proxy")?;
        defaults(&mut proxy, name);
        let mut filter = json!({"tcp_proxy": proxy});
        extension(&mut filter)?;
        filters.push(filter);
    }
    if let Some(rule) = short.remove("match") {
        short.insert("filter_chain_match".into(), rule);
    }
    if let Some(tls) = short.remove("tls") {
        let tls = object(Some(tls), "tls")?;
        short.insert("transport_socket".into(), transport_tls("Downstream", tls));
    }
    short.insert("filters".into(), filters.into());
    Ok(short.into())
}

fn defaults(fields: &mut Map<String, Value>, name: &str) {
    fields.entry("stat_prefix").or_insert_with(|| name.into());
    fields.entry("access_log").or_insert_with(|| {
        json!([{
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": "access_loggers.file.v3.FileAccessLog",
                "path": "{{log}}",
                "log_format": {"text_format_source": {"inline_string": LOG_FORMAT}},
            },
        }])
    });
}

fn hcm(name: &str, short: Value) -> Result<Value> {
    let mut hcm = object(Some(short), "hcm")?;
    defaults(&mut hcm, name);
    hcm.entry("server_name").or_insert_with(|| "proxy".into());
    if let Some(routes) = hcm.remove("routes") {
        let all = json!([{"name": "all", "domains": ["*"], "routes": routes}]);
        hcm.insert("virtual_hosts".into(), all);
    }
    if let Some(hosts) = hcm.remove("virtual_hosts") {
        let config = hcm.entry("route_config").or_insert_with(|| json!({"name": "routes"}));
        config["virtual_hosts"] = hosts;
    }
    let mut filters = match hcm.remove("filters") {
        Some(Value::Array(filters)) => filters,
        _ => vec![],
    };
    if !filters.iter().any(|filter| filter.get("router").is_some()) {
        filters.push(json!({"router": {}}));
    }
    filters.iter_mut().try_for_each(extension)?;
    hcm.insert("http_filters".into(), filters.into());
    let mut filter = json!({ "hcm": hcm });
    per_route(&mut filter);
    extension(&mut filter)?;
    Ok(filter)
}

/// `{short: {…}}` becomes `{name, typed_config}`; what has a name stays.
fn extension(filter: &mut Value) -> Result<()> {
    let Value::Object(fields) = &*filter else { bail!("a filter is not a mapping") };
    if fields.contains_key("name") {
        return Ok(());
    }
    let (short, config) = fields.iter().next().context("an empty filter")?;
    let (_, name, kind, _) = find(short).with_context(|| format!("no filter is called {short}"))?;
    let mut config = object(Some(config.clone()), short)?;
    config.insert("@type".into(), (*kind).into());
    *filter = json!({"name": name, "typed_config": config});
    Ok(())
}

fn find(short: &str) -> Option<&'static Extension> {
    EXTENSIONS.iter().find(|(other, ..)| *other == short)
}

/// Short names in `typed_per_filter_config`, at any depth.
fn per_route(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(per_route),
        Value::Object(fields) => {
            fields.values_mut().for_each(per_route);
            let Some(Value::Object(configs)) = fields.get_mut("typed_per_filter_config") else {
                return;
            };
            let short = std::mem::take(configs);
            for (key, mut config) in short {
                match find(&key) {
                    None => configs.insert(key, config),
                    Some((_, name, _, kind)) => {
                        if config.get("@type").is_none() {
                            config["@type"] = (*kind).into();
                        }
                        configs.insert((*name).into(), config)
                    }
                };
            }
        }
        _ => {}
    }
}

fn transport_tls(side: &str, mut context: Map<String, Value>) -> Value {
    if let Some(Value::String(name)) = context.remove("cert") {
        let common = context.entry("common_tls_context").or_insert_with(|| json!({}));
        common["tls_certificates"] = json!([{
            "certificate_chain": {"filename": format!("{{{{certs}}}}/{name}.pem")},
            "private_key": {"filename": format!("{{{{certs}}}}/{name}.key")},
        }]);
    }
    if context.remove("verify").is_some() {
        let common = context.entry("common_tls_context").or_insert_with(|| json!({}));
        common["validation_context"]["trusted_ca"] = json!({"filename": "{{certs}}/ca.pem"});
    }
    context.insert("@type".into(), format!("transport_sockets.tls.v3.{side}TlsContext").into());
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}

fn cluster(name: &str, short: Value) -> Result<Value> {
    let mut cluster = object(Some(short), "the cluster")?;
    let backends = cluster.remove("backends").unwrap_or_else(|| json!([name]));
    if !cluster.contains_key("load_assignment") && !cluster.contains_key("cluster_type") {
        let Value::Array(backends) = backends else { bail!("backends is not a list") };
        let endpoints = backends.iter().map(|backend| match backend {
            Value::String(name) => json!({"endpoint": format!("{{{{{name}}}}}")}),
            other => other.clone(),
        });
        let endpoints: Vec<_> = endpoints.collect();
        cluster
            .insert("load_assignment".into(), json!({"endpoints": [{"lb_endpoints": endpoints}]}));
    }
    if let Some(assignment) = cluster.get_mut("load_assignment") {
        assignment["cluster_name"] = name.into();
    }
    cluster.insert("name".into(), name.into());
    cluster.entry("type").or_insert_with(|| "STATIC".into());
    cluster.entry("connect_timeout").or_insert_with(|| "1s".into());
    if cluster.contains_key("cluster_type") {
        cluster.remove("type");
    }
    if let Some(mut options) = cluster.remove("http") {
        options["@type"] = format!("type.googleapis.com/{HTTP_OPTIONS}").into();
        cluster.insert("typed_extension_protocol_options".into(), json!({HTTP_OPTIONS: options}));
    }
    if let Some(tls) = cluster.remove("tls") {
        let tls = object(Some(tls), "tls")?;
        cluster.insert("transport_socket".into(), transport_tls("Upstream", tls));
    }
    Ok(cluster.into())
}

/// Types without a host are extensions of Envoy.
fn complete_types(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(complete_types),
        Value::Object(fields) => {
            for (key, field) in fields {
                match field {
                    Value::String(kind) if key == "@type" && !kind.contains('/') => {
                        *kind = format!("type.googleapis.com/envoy.extensions.{kind}");
                    }
                    _ => complete_types(field),
                }
            }
        }
        _ => {}
    }
}
