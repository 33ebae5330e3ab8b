//! Traffic policies applied to clusters.

use amime_api::mesh::H2Upgrade;
use amime_api::networking::{
    ConnectionPoolSettings, H2UpgradePolicy, OutlierDetection as OutlierSettings, ProxyProtocol,
    ProxyProtocolVersion, RetryBudget as BudgetSettings, TcpKeepalive as KeepaliveSettings,
    TcpSettings, TrafficPolicy,
};
use amime_model::{MtlsMode, Port, Service};
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::thresholds::RetryBudget;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{DiscoveryType, LbPolicy};
use envoy_types::pb::envoy::config::cluster::v3::{
    CircuitBreakers, OutlierDetection, UpstreamConnectionOptions,
};
use envoy_types::pb::envoy::config::common::matcher::v3::match_predicate::{MatchSet, Rule};
use envoy_types::pb::envoy::config::common::matcher::v3::{HttpHeadersMatch, MatchPredicate};
use envoy_types::pb::envoy::config::core::v3::proxy_protocol_config::Version;
use envoy_types::pb::envoy::config::core::v3::{
    KeepaliveSettings as Http2Keepalive, ProxyProtocolConfig, TcpKeepalive, TransportSocket,
};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::OutlierDetection as HttpOutlierDetection;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::Duration;

use super::outbound::discovery_type;
use super::{Draft, load_balancer, tls};
use crate::context::Context;
use crate::proto::{duration, exact, transport_socket, u32_value};
use crate::proxy::ProxyKind;

/// Everything that decides how a cluster connects.
pub(super) struct ClusterPolicy<'a> {
    pub(super) policy: Option<&'a TrafficPolicy>,
    pub(super) port: Option<&'a Port>,
    pub(super) service: Option<&'a Service>,
    /// Server name for mesh mutual TLS.
    pub(super) sni: String,
    /// False if connections are encrypted by somebody else already.
    pub(super) terminates: bool,
    /// What mutual TLS to assume without a setting; `None` for none.
    pub(super) assumed_mtls: Option<MtlsMode>,
    /// The rule behind it is for selected clients only.
    pub(super) selects_workloads: bool,
}

impl ClusterPolicy<'_> {
    /// Applies the whole policy to an outbound cluster.
    pub(super) fn apply_outbound(&self, context: &Context<'_>, draft: &mut Draft) {
        let pool = self.policy.and_then(|policy| policy.connection_pool.clone());
        let pool = pool.unwrap_or_default();
        if upgrades_to_http2(context, self.port, &pool) {
            draft.use_http2();
        }
        let budget = self.policy.and_then(|policy| policy.retry_budget.as_ref());
        apply_connection_pool(context, draft, &pool, budget);
        if let Some(outlier) = self.policy.and_then(|policy| policy.outlier_detection.as_ref()) {
            apply_outlier_detection(draft, outlier, self.service);
        }
        let lb = self.policy.and_then(|policy| policy.load_balancer.as_ref());
        load_balancer::apply(context, draft, lb, self.service);
        if self.terminates {
            tls::apply(context, draft, self);
            if let Some(header) = self.policy.and_then(|policy| policy.proxy_protocol.as_ref()) {
                wrap_in_proxy_protocol(draft, header);
            }
        }
        if draft.cluster.cluster_discovery_type == Some(discovery_type(DiscoveryType::OriginalDst))
        {
            draft.cluster.lb_policy = LbPolicy::ClusterProvided.into();
        }
    }
}

/// The policy with the mesh's defaults for blocks that it leaves open.
pub(crate) fn with_mesh_default(
    context: &Context<'_>,
    policy: Option<TrafficPolicy>,
) -> Option<TrafficPolicy> {
    let Some(default) = &context.mesh.default_traffic_policy else { return policy };
    let mut policy = policy.unwrap_or_default();
    policy.connection_pool = policy.connection_pool.or_else(|| default.connection_pool.clone());
    policy.outlier_detection =
        policy.outlier_detection.or_else(|| default.outlier_detection.clone());
    Some(policy)
}

/// HTTP version to the upstream, by the port's protocol.
pub(super) fn choose_protocol(context: &Context<'_>, draft: &mut Draft, port: &Port) {
    draft.carries_http = port.protocol.is_http() || port.protocol.is_auto();
    if port.protocol.is_http2() {
        draft.use_http2();
    } else if port.protocol.is_auto() && context.proxy.kind == ProxyKind::Sidecar {
        // A sidecar detected what the client speaks; the upstream gets the
        // same. A gateway always offers HTTP/2 and knows nothing of the kind.
        draft.use_downstream_protocol();
    }
}

fn upgrades_to_http2(
    context: &Context<'_>,
    port: Option<&Port>,
    pool: &ConnectionPoolSettings,
) -> bool {
    if let Some(http) = &pool.http {
        match http.h2_upgrade_policy {
            _ if http.use_client_protocol => return false,
            H2UpgradePolicy::Upgrade => return true,
            H2UpgradePolicy::DoNotUpgrade => return false,
            H2UpgradePolicy::Default => {}
        }
    }
    port.is_none_or(|port| port.protocol.is_http())
        && context.mesh.h2_upgrade_policy == H2Upgrade::Upgrade
}

/// The mesh's connect timeout.
pub(super) fn connect_timeout(context: &Context<'_>) -> Option<Duration> {
    context.mesh.connect_timeout.map(|timeout| duration(timeout.std()))
}

/// Limits and timeouts of connections; without settings there are no limits.
pub(super) fn apply_connection_pool(
    context: &Context<'_>,
    draft: &mut Draft,
    pool: &ConnectionPoolSettings,
    budget: Option<&BudgetSettings>,
) {
    let http = pool.http.clone().unwrap_or_default();
    let tcp = pool.tcp.clone().unwrap_or_default();
    draft.cluster.connect_timeout = match tcp.connect_timeout {
        Some(timeout) => Some(duration(timeout.std())),
        None => connect_timeout(context),
    };
    draft.cluster.circuit_breakers = Some(CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: limit(tcp.max_connections),
            max_pending_requests: limit(http.http1_max_pending_requests),
            max_requests: limit(http.http2_max_requests),
            max_retries: limit(http.max_retries),
            retry_budget: budget.map(retry_budget),
            ..Default::default()
        }],
        ..Default::default()
    });
    apply_keepalive(context, draft, &tcp);
    if let Some(idle) = http.idle_timeout.or(tcp.idle_timeout) {
        draft.common().idle_timeout = Some(duration(idle.std()));
    }
    if let Some(requests) = positive(http.max_requests_per_connection) {
        draft.common().max_requests_per_connection = u32_value(requests);
    }
    if let Some(life) = tcp.max_connection_duration {
        draft.common().max_connection_duration = Some(duration(life.std()));
    }
    if let Some(options) = draft.http2() {
        if let Some(streams) = positive(http.max_concurrent_streams) {
            options.max_concurrent_streams = u32_value(streams);
        }
        options.connection_keepalive = http.http2_keep_alive.map(|keepalive| Http2Keepalive {
            interval: keepalive.interval.map(|d| duration(d.std())),
            timeout: keepalive.timeout.map(|d| duration(d.std())),
            ..Default::default()
        });
    }
    if http.use_client_protocol {
        draft.use_downstream_protocol();
    }
}

fn positive(number: i32) -> Option<u32> {
    u32::try_from(number).ok().filter(|number| *number > 0)
}

/// The limit, or as good as none: Envoy's own defaults are too low for a mesh.
fn limit(number: i32) -> Option<envoy_types::pb::google::protobuf::UInt32Value> {
    u32_value(positive(number).unwrap_or(u32::MAX))
}

fn retry_budget(budget: &BudgetSettings) -> RetryBudget {
    let concurrency =
        if budget.min_retry_concurrency > 0 { budget.min_retry_concurrency } else { 3 };
    RetryBudget {
        budget_percent: Some(Percent { value: budget.percent.unwrap_or(20.0) }),
        budget_interval: budget.budget_interval.map(|d| duration(d.std())),
        min_retry_concurrency: u32_value(concurrency),
    }
}

fn apply_keepalive(context: &Context<'_>, draft: &mut Draft, tcp: &TcpSettings) {
    let settings = [context.mesh.tcp_keepalive.as_ref(), tcp.tcp_keepalive.as_ref()];
    let mut settings = settings.into_iter().flatten().peekable();
    if settings.peek().is_none() {
        return;
    }
    let mut keepalive = TcpKeepalive::default();
    for KeepaliveSettings { probes, time, interval } in settings {
        let seconds = |d: &amime_core::Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX);
        if *probes > 0 {
            keepalive.keepalive_probes = u32_value(*probes);
        }
        if let Some(time) = time {
            keepalive.keepalive_time = u32_value(seconds(time));
        }
        if let Some(interval) = interval {
            keepalive.keepalive_interval = u32_value(seconds(interval));
        }
    }
    let options =
        UpstreamConnectionOptions { tcp_keepalive: Some(keepalive), ..Default::default() };
    draft.cluster.upstream_connection_options = Some(options);
}

fn apply_outlier_detection(
    draft: &mut Draft,
    settings: &OutlierSettings,
    service: Option<&Service>,
) {
    let enforced = |errors: Option<u32>| errors.map(|errors| if errors > 0 { 100 } else { 0 });
    let mut outlier = OutlierDetection {
        // Success rates are not what anybody configures here.
        enforcing_success_rate: u32_value(0),
        consecutive_5xx: settings.consecutive_5xx_errors.and_then(u32_value),
        enforcing_consecutive_5xx: enforced(settings.consecutive_5xx_errors).and_then(u32_value),
        consecutive_gateway_failure: settings.consecutive_gateway_errors.and_then(u32_value),
        enforcing_consecutive_gateway_failure: enforced(settings.consecutive_gateway_errors)
            .and_then(u32_value),
        interval: settings.interval.map(|d| duration(d.std())),
        base_ejection_time: settings.base_ejection_time.map(|d| duration(d.std())),
        max_ejection_percent: positive(settings.max_ejection_percent).and_then(u32_value),
        ..Default::default()
    };
    if settings.split_external_local_origin_errors {
        outlier.split_external_local_origin_errors = true;
        if let Some(failures) = settings.consecutive_local_origin_failures.filter(|n| *n > 0) {
            outlier.consecutive_local_origin_failure = u32_value(failures);
            outlier.enforcing_consecutive_local_origin_failure = u32_value(100);
        }
        outlier.enforcing_local_origin_success_rate = u32_value(0);
    }
    draft.cluster.outlier_detection = Some(outlier);
    if !settings.outlier_detection_http_error_codes.is_empty() {
        let codes = settings.outlier_detection_http_error_codes.iter();
        draft.http().outlier_detection = Some(HttpOutlierDetection {
            error_matcher: Some(any_status(codes.map(status).collect())),
        });
    }
    if settings.min_health_percent >= 0 {
        let forced = service.is_some_and(|service| service.publish_not_ready);
        let percent = if forced { 0 } else { settings.min_health_percent };
        let common = draft.cluster.common_lb_config.get_or_insert_default();
        common.healthy_panic_threshold = Some(Percent { value: f64::from(percent) });
    }
}

/// Holds for answers with this status.
fn status(code: &u32) -> MatchPredicate {
    let value = HeaderMatchSpecifier::StringMatch(exact(&code.to_string()));
    let header = HeaderMatcher {
        name: ":status".to_owned(),
        header_match_specifier: Some(value),
        ..Default::default()
    };
    let headers = HttpHeadersMatch { headers: vec![header] };
    MatchPredicate { rule: Some(Rule::HttpResponseHeadersMatch(headers)) }
}

fn any_status(mut rules: Vec<MatchPredicate>) -> MatchPredicate {
    match rules.len() {
        1 => rules.swap_remove(0),
        _ => MatchPredicate { rule: Some(Rule::OrMatch(MatchSet { rules })) },
    }
}

fn wrap_in_proxy_protocol(draft: &mut Draft, header: &ProxyProtocol) {
    let version = match header.version {
        ProxyProtocolVersion::V1 => Version::V1,
        ProxyProtocolVersion::V2 => Version::V2,
    };
    let wrap = |inner: Option<TransportSocket>| {
        let inner = inner.unwrap_or_else(tls::raw_buffer);
        let config = ProxyProtocolUpstreamTransport {
            config: Some(ProxyProtocolConfig { version: version.into(), ..Default::default() }),
            transport_socket: Some(inner),
            ..Default::default()
        };
        Some(transport_socket("envoy.transport_sockets.upstream_proxy_protocol", &config))
    };
    let cluster = &mut draft.cluster;
    if cluster.transport_socket_matches.is_empty() || cluster.transport_socket.is_some() {
        cluster.transport_socket = wrap(cluster.transport_socket.take());
    }
    for choice in &mut cluster.transport_socket_matches {
        choice.transport_socket = wrap(choice.transport_socket.take());
    }
}
