//! Rules of `DestinationRule`.

use amime_api::networking::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, ConsistentHashLb, DestinationRule,
    Failover, H2UpgradePolicy, HttpSettings, LoadBalancerSettings, LocalityLoadBalancerSetting,
    OutlierDetection, Subset, TrafficPolicy,
};

use crate::problem::{At, Report};
use crate::{localities, shared, syntax};

/// Tables of Maglev are smaller than this prime.
const MAX_MAGLEV_TABLE: u64 = 5_000_011;

pub(crate) fn check(spec: &DestinationRule, at: &At, report: &mut Report) {
    report.check(&at.field("host"), syntax::wildcard_host(&spec.host));
    shared::rule_export_to(&spec.export_to, at, report);
    if let Some(policy) = &spec.traffic_policy {
        check_policy(policy, &at.field("trafficPolicy"), report);
    }
    for (index, subset) in spec.subsets.iter().enumerate() {
        let at = at.field("subsets").nth(index);
        check_subset(subset, &at, report);
        if spec.subsets[..index].iter().any(|earlier| earlier.name == subset.name) {
            report.error(&at.field("name"), format!("subset {:?} is given twice", subset.name));
        }
    }
    if let Some(selector) = &spec.workload_selector {
        let at = at.field("workloadSelector").field("matchLabels");
        shared::labels(&selector.match_labels, &at, report);
        if spec.export_to.iter().any(|item| item != ".") {
            report.error(&at, "a rule for some workloads cannot be exported to other namespaces");
        }
    }
}

fn check_subset(subset: &Subset, at: &At, report: &mut Report) {
    report.check(&at.field("name"), syntax::dns_label(&subset.name));
    shared::labels(&subset.labels, &at.field("labels"), report);
    if let Some(policy) = &subset.traffic_policy {
        check_policy(policy, &at.field("trafficPolicy"), report);
    }
}

fn check_policy(policy: &TrafficPolicy, at: &At, report: &mut Report) {
    if *policy == TrafficPolicy::default() {
        report.error(at, "at least one field is required");
    }
    let parts = Parts {
        balancer: policy.load_balancer.as_ref(),
        pool: policy.connection_pool.as_ref(),
        outliers: policy.outlier_detection.as_ref(),
        tls: policy.tls.as_ref(),
    };
    parts.check(at, report);
    let mut ports = Vec::new();
    for (at, settings) in at.each("portLevelSettings", &policy.port_level_settings) {
        let number = settings.port.as_ref().map_or(0, |port| port.number);
        report.check(&at.field("port").field("number"), syntax::port(number));
        if ports.contains(&number) {
            report.error(&at.field("port"), format!("port {number} is given twice"));
        }
        ports.push(number);
        let parts = Parts {
            balancer: settings.load_balancer.as_ref(),
            pool: settings.connection_pool.as_ref(),
            outliers: settings.outlier_detection.as_ref(),
            tls: settings.tls.as_ref(),
        };
        if parts.is_empty() {
            report.error(&at, "at least one field besides the port is required");
        }
        parts.check(&at, report);
    }
    if let Some(tunnel) = &policy.tunnel {
        let at = at.field("tunnel");
        if !matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST") {
            report.error(
                &at.field("protocol"),
                format!("{:?} is neither CONNECT nor POST", tunnel.protocol),
            );
        }
        report.check(&at.field("targetHost"), syntax::host_name(&tunnel.target_host));
        report.check(&at.field("targetPort"), syntax::port(tunnel.target_port));
        if policy.proxy_protocol.is_some() {
            report.error(&at, "cannot be given together with proxyProtocol");
        }
    }
    if let Some(percent) = policy.retry_budget.as_ref().and_then(|budget| budget.percent) {
        report.check(&at.field("retryBudget").field("percent"), syntax::percent(percent));
    }
}

/// What policies of a destination and of one port have in common.
struct Parts<'a> {
    balancer: Option<&'a LoadBalancerSettings>,
    pool: Option<&'a ConnectionPoolSettings>,
    outliers: Option<&'a OutlierDetection>,
    tls: Option<&'a ClientTlsSettings>,
}

impl Parts<'_> {
    fn is_empty(&self) -> bool {
        let Self { balancer, pool, outliers, tls } = self;
        balancer.is_none() && pool.is_none() && outliers.is_none() && tls.is_none()
    }

    fn check(&self, at: &At, report: &mut Report) {
        if let Some(balancer) = self.balancer {
            check_balancer(balancer, &at.field("loadBalancer"), report);
            let setting = balancer.locality_lb_setting.as_ref();
            if setting.is_some_and(fails_over) && self.outliers.is_none() {
                report.warning(
                    &at.field("loadBalancer").field("localityLbSetting"),
                    "fail-over has no effect without outlierDetection",
                );
            }
        }
        if let Some(pool) = self.pool {
            check_pool(pool, &at.field("connectionPool"), report);
        }
        if let Some(outliers) = self.outliers {
            check_outliers(outliers, &at.field("outlierDetection"), report);
        }
        if let Some(tls) = self.tls {
            check_tls(tls, &at.field("tls"), report);
        }
    }
}

fn fails_over(setting: &LocalityLoadBalancerSetting) -> bool {
    !setting.failover.is_empty() || !setting.failover_priority.is_empty()
}

fn check_balancer(balancer: &LoadBalancerSettings, at: &At, report: &mut Report) {
    if let Some(hash) = &balancer.consistent_hash {
        check_hash(hash, &at.field("consistentHash"), report);
    }
    if let Some(setting) = &balancer.locality_lb_setting {
        check_locality(setting, &at.field("localityLbSetting"), report);
        if balancer.zone_aware_lb_setting.is_some() {
            let at = at.field("zoneAwareLbSetting");
            report.error(&at, "cannot be given together with localityLbSetting");
        }
    }
    if let Some(setting) = &balancer.zone_aware_lb_setting {
        check_failover(&setting.failover, &at.field("zoneAwareLbSetting"), report);
    }
    if balancer.warmup_duration_secs.is_some() {
        report.deprecated(&at.field("warmupDurationSecs"), "warmup.duration");
    }
    if let Some(warmup) = &balancer.warmup {
        let at = at.field("warmup");
        match warmup.duration {
            Some(duration) => report.check(&at.field("duration"), syntax::duration(duration)),
            None => report.error(&at.field("duration"), "a duration is required"),
        }
        if let Some(percent) = warmup.minimum_percent {
            report.check(&at.field("minimumPercent"), syntax::percent(percent));
        }
        if warmup.aggression.is_some_and(|aggression| aggression < 1.0) {
            report.error(&at.field("aggression"), "must be at least 1");
        }
    }
}

fn check_hash(hash: &ConsistentHashLb, at: &At, report: &mut Report) {
    let keys = [
        hash.http_header_name.is_some(),
        hash.http_cookie.is_some(),
        hash.use_source_ip == Some(true),
        hash.http_query_parameter_name.is_some(),
    ];
    if !keys.contains(&true) {
        report.error(
            at,
            "one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName is required",
        );
    }
    if let Some(header) = &hash.http_header_name {
        report.check(&at.field("httpHeaderName"), syntax::header_name(header));
    }
    if hash.http_query_parameter_name.as_ref().is_some_and(String::is_empty) {
        report.error(&at.field("httpQueryParameterName"), "a name is required");
    }
    if hash.http_cookie.as_ref().is_some_and(|cookie| cookie.name.is_empty()) {
        report.error(&at.field("httpCookie").field("name"), "a name is required");
    }
    let attributes = hash.http_cookie.as_ref().map_or(&[][..], |cookie| &cookie.attributes);
    for (index, attribute) in attributes.iter().enumerate() {
        let at = at.field("httpCookie").field("attributes").nth(index).field("name");
        if attribute.name.is_empty() {
            report.error(&at, "a name is required");
        } else if attributes[..index].iter().any(|earlier| earlier.name == attribute.name) {
            report.error(&at, format!("attribute {:?} is given twice", attribute.name));
        }
    }
    if hash.minimum_ring_size.is_some_and(|size| size != 0)
        && (hash.ring_hash.is_some() || hash.maglev.is_some())
    {
        let at = at.field("minimumRingSize");
        report.error(&at, "cannot be given together with ringHash or maglev");
    }
    if hash.minimum_ring_size.is_some() {
        report.deprecated(&at.field("minimumRingSize"), "ringHash.minimumRingSize");
    }
    if let Some(size) = hash.maglev.as_ref().map(|maglev| maglev.table_size.unwrap_or(0))
        && (size >= MAX_MAGLEV_TABLE || !is_prime(size))
    {
        let at = at.field("maglev").field("tableSize");
        report.error(&at, format!("{size} is not a prime below {MAX_MAGLEV_TABLE}"));
    }
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|d| !number.is_multiple_of(d))
}

fn check_locality(setting: &LocalityLoadBalancerSetting, at: &At, report: &mut Report) {
    if !setting.distribute.is_empty() && fails_over(setting) {
        report.error(&at.field("distribute"), "cannot be given together with failover");
    }
    for (at, rule) in at.each("distribute", &setting.distribute) {
        if rule.from.is_empty() {
            report.error(&at.field("from"), "a locality is required");
        }
        let total: u64 = rule.to.values().map(|&weight| u64::from(weight)).sum();
        if total != 100 {
            report.error(&at.field("to"), format!("weights add up to {total}, not 100"));
        }
        for (locality, _) in rule.to.iter().filter(|(_, weight)| **weight == 0) {
            report.error(&at.field("to").key(locality), "a weight of zero is not allowed");
        }
    }
    check_failover(&setting.failover, at, report);
    localities::check_distribution(&setting.distribute, at, report);
}

fn check_failover(rules: &[Failover], at: &At, report: &mut Report) {
    for (at, rule) in at.each("failover", rules) {
        if rule.from == rule.to {
            report.error(&at, format!("region {:?} cannot take over from itself", rule.from));
        }
        for (name, region) in [("from", &rule.from), ("to", &rule.to)] {
            if region.contains(['/', '*']) {
                report.error(&at.field(name), format!("{region:?} is not a region"));
            }
        }
    }
}

pub(crate) fn check_pool(pool: &ConnectionPoolSettings, at: &At, report: &mut Report) {
    if pool.tcp.is_none() && pool.http.is_none() {
        report.error(at, "at least one of tcp and http is required");
    }
    if let Some(tcp) = &pool.tcp {
        let at = at.field("tcp");
        not_negative(tcp.max_connections, &at.field("maxConnections"), report);
        let spans = [
            ("connectTimeout", tcp.connect_timeout),
            ("maxConnectionDuration", tcp.max_connection_duration),
        ];
        for (name, value) in spans {
            if let Some(value) = value {
                report.check(&at.field(name), syntax::duration(value));
            }
        }
        if let Some(idle) = tcp.idle_timeout {
            report.check(&at.field("idleTimeout"), syntax::duration_or_zero(idle));
        }
        if let Some(keepalive) = &tcp.tcp_keepalive {
            let at = at.field("tcpKeepalive");
            for (name, value) in [("time", keepalive.time), ("interval", keepalive.interval)] {
                if let Some(value) = value {
                    report.check(&at.field(name), syntax::duration(value));
                }
            }
        }
    }
    if let Some(http) = &pool.http {
        let at = at.field("http");
        check_http_pool(http, &at, report);
        let counts = [
            ("http1MaxPendingRequests", http.http1_max_pending_requests),
            ("http2MaxRequests", http.http2_max_requests),
            ("maxRequestsPerConnection", http.max_requests_per_connection),
            ("maxRetries", http.max_retries),
            ("maxConcurrentStreams", http.max_concurrent_streams),
        ];
        for (name, value) in counts {
            not_negative(value, &at.field(name), report);
        }
    }
}

fn check_http_pool(http: &HttpSettings, at: &At, report: &mut Report) {
    if let Some(idle) = http.idle_timeout {
        report.check(&at.field("idleTimeout"), syntax::duration(idle));
    }
    if http.h2_upgrade_policy == H2UpgradePolicy::Upgrade && http.use_client_protocol {
        let at = at.field("useClientProtocol");
        report.error(&at, "cannot be given together with h2UpgradePolicy UPGRADE");
    }
    if let Some(keepalive) = &http.http2_keep_alive {
        let at = at.field("http2KeepAlive");
        for (name, value) in [("interval", keepalive.interval), ("timeout", keepalive.timeout)] {
            match value {
                Some(value) => report.check(&at.field(name), syntax::duration(value)),
                None => report.error(&at.field(name), "a duration is required"),
            }
        }
    }
}

fn not_negative(value: i32, at: &At, report: &mut Report) {
    if value < 0 {
        report.error(at, format!("{value} is negative"));
    }
}

fn check_outliers(outliers: &OutlierDetection, at: &At, report: &mut Report) {
    if outliers.consecutive_errors != 0 {
        report.deprecated(
            &at.field("consecutiveErrors"),
            "consecutiveGatewayErrors or consecutive5xxErrors",
        );
    }
    let shares = [
        ("maxEjectionPercent", outliers.max_ejection_percent),
        ("minHealthPercent", outliers.min_health_percent),
    ];
    for (name, value) in shares {
        report.check(&at.field(name), syntax::percent(f64::from(value)));
    }
    let spans =
        [("interval", outliers.interval), ("baseEjectionTime", outliers.base_ejection_time)];
    for (name, value) in spans {
        if let Some(value) = value {
            report.check(&at.field(name), syntax::duration(value));
        }
    }
    let split = outliers.split_external_local_origin_errors;
    if !split && outliers.consecutive_local_origin_failures.unwrap_or(0) > 0 {
        report.error(
            &at.field("consecutiveLocalOriginFailures"),
            "needs splitExternalLocalOriginErrors",
        );
    }
}

fn check_tls(tls: &ClientTlsSettings, at: &At, report: &mut Report) {
    let files = [
        ("clientCertificate", &tls.client_certificate),
        ("privateKey", &tls.private_key),
        ("caCertificates", &tls.ca_certificates),
        ("caCrl", &tls.ca_crl),
    ];
    let given = files.iter().filter(|(_, file)| !file.is_empty());
    if tls.insecure_skip_verify == Some(true) && !tls.ca_certificates.is_empty() {
        report
            .error(&at.field("insecureSkipVerify"), "cannot be given together with caCertificates");
    }
    if tls.insecure_skip_verify == Some(true)
        && !tls.subject_alt_names.is_empty()
        && tls.mode == ClientTlsMode::Simple
    {
        let at = at.field("subjectAltNames");
        report.error(&at, "cannot be given together with insecureSkipVerify");
    }
    match tls.mode {
        _ if !tls.credential_name.is_empty() && tls.mode != ClientTlsMode::IstioMutual => {
            for (name, _) in given {
                report.error(&at.field(name), "cannot be given together with credentialName");
            }
        }
        ClientTlsMode::Mutual => {
            for (name, file) in &files[..2] {
                if file.is_empty() {
                    report.error(&at.field(name), "mode MUTUAL needs it, or credentialName");
                }
            }
        }
        ClientTlsMode::IstioMutual => {
            for (name, _) in given {
                report.error(&at.field(name), "mode ISTIO_MUTUAL brings its own certificates");
            }
        }
        ClientTlsMode::Simple | ClientTlsMode::Disable => {}
    }
}
