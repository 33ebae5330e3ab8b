//! TCP proxies.

use std::sync::Arc;
use std::time::Duration;

use amime_telemetry::{IstioStats, ListenerTelemetry};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::{HashPolicy, hash_policy};

use http::uri::PathAndQuery;

use super::Compiler;
use super::dynamic_hosts::ServerNameHosts;
use super::names::ClusterId;
use super::unheeded;
use amime_rules::Faults;
use amime_rules::criteria::MetadataMatch;
use amime_rules::format::Format;
use amime_rules::headers::HeaderEdits;
use amime_rules::values;

/// A compiled `TcpProxy`.
#[derive(Debug)]
pub struct TcpConfig {
    pub stat_prefix: String,
    clusters: Vec<TcpCluster>,
    total: u64,
    /// `None`: no limit.
    pub idle_timeout: Option<Duration>,
    pub max_duration: Option<Duration>,
    /// Most of it that is added at random, as a fraction.
    pub max_duration_jitter: f64,
    pub connect_attempts: u32,
    /// First and longest wait between two attempts to connect.
    pub backoff: Option<(Duration, Duration)>,
    /// Log before there is an upstream.
    pub log_start: bool,
    /// Log once the upstream is connected.
    pub log_connected: bool,
    /// Log open connections this often.
    pub log_interval: Option<Duration>,
    pub telemetry: ListenerTelemetry,
    pub hash_source_ip: bool,
    /// The cluster is the one that the server name names.
    pub by_server_name: bool,
    /// The server name is resolved, for clusters whose hosts requests name.
    pub server_name_hosts: Option<ServerNameHosts>,
    /// Connections go through a tunnel that the upstream is asked for.
    pub tunneling: Option<Tunneling>,
}

/// A compiled `TunnelingConfig`.
#[derive(Debug)]
pub struct Tunneling {
    pub hostname: Format,
    /// Path of a POST request; `None`: CONNECT is used.
    pub post: Option<PathAndQuery>,
    pub headers: HeaderEdits,
}

impl Tunneling {
    fn compile(value: &pb::tcp_proxy::TunnelingConfig, faults: &mut Faults) -> Option<Self> {
        let hostname = Format::parse(&value.hostname);
        let hostname = hostname.map_err(|reason| faults.reject("hostname", reason)).ok()?;
        let path = if value.post_path.is_empty() { "/" } else { &value.post_path };
        let Ok(path) = path.parse() else {
            faults.reject("post_path", format!("`{path}` is not a path"));
            return None;
        };
        let fields = ["headers_to_add", ""];
        let headers = HeaderEdits::compile(&value.headers_to_add, &[], fields, faults);
        Some(Self { hostname, post: value.use_post.then_some(path), headers })
    }
}

/// One destination of a TCP proxy.
#[derive(Debug)]
pub struct TcpCluster {
    pub id: ClusterId,
    weight: u64,
    /// Which of the cluster's endpoints may be used.
    pub metadata_match: Option<MetadataMatch>,
}

const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

impl TcpConfig {
    pub fn compile(
        value: &pb::TcpProxy,
        mut telemetry: ListenerTelemetry,
        compiler: &mut Compiler<'_>,
    ) -> Option<Self> {
        telemetry.access_logs = compiler.access_logs(&value.access_log);
        if compiler.tcp_stats {
            telemetry.istio_stats = Some(Arc::new(IstioStats::default()));
        }
        compiler.faults.reject_if(value.on_demand.is_some(), "on_demand");
        unheeded::of_tcp_proxy(value, &mut compiler.faults);
        let log = value.access_log_options.as_ref();
        let interval = log.and_then(|log| log.access_log_flush_interval.as_ref());
        let interval = interval.or(value.access_log_flush_interval.as_ref());
        let tunneling = value.tunneling_config.as_ref().and_then(|tunneling| {
            let compile = |faults: &mut Faults| Tunneling::compile(tunneling, faults);
            compiler.faults.within("tunneling_config", compile)
        });
        let metadata_match = MetadataMatch::compile(value.metadata_match.as_ref(), None);
        let clusters: Vec<TcpCluster> = match value.cluster_specifier.as_ref() {
            Some(pb::tcp_proxy::ClusterSpecifier::Cluster(name)) => {
                vec![TcpCluster { id: compiler.names.cluster(name), weight: 1, metadata_match }]
            }
            Some(pb::tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => weighted
                .clusters
                .iter()
                .map(|entry| TcpCluster {
                    id: compiler.names.cluster(&entry.name),
                    weight: u64::from(entry.weight),
                    metadata_match: MetadataMatch::compile(
                        entry.metadata_match.as_ref(),
                        metadata_match.as_ref(),
                    ),
                })
                .collect(),
            None => {
                compiler.faults.reject("cluster_specifier", "missing");
                return None;
            }
        };
        let total = clusters.iter().map(|cluster| cluster.weight).sum();
        if total == 0 {
            compiler.faults.reject("weighted_clusters", "the sum of weights is zero");
            return None;
        }
        Some(Self {
            stat_prefix: value.stat_prefix.clone(),
            clusters,
            total,
            idle_timeout: values::timeout(
                value.idle_timeout.as_ref().or(value.downstream_idle_timeout.as_ref()),
                Some(IDLE_TIMEOUT),
            ),
            max_duration: values::timeout(value.max_downstream_connection_duration.as_ref(), None),
            max_duration_jitter: values::jitter(
                value.max_downstream_connection_duration_jitter_percentage.as_ref(),
            ),
            backoff: backoff(value.backoff_options.as_ref()),
            log_start: log.is_some_and(|log| log.flush_access_log_on_start),
            log_connected: log.is_some_and(|log| log.flush_access_log_on_connected)
                || value.flush_access_log_on_connected,
            log_interval: values::timeout(interval, None),
            connect_attempts: values::u32_or(value.max_connect_attempts.as_ref(), 1).max(1),
            telemetry,
            hash_source_ip: hash_source_ip(&value.hash_policy, &mut compiler.faults),
            by_server_name: compiler.sni_cluster,
            server_name_hosts: compiler.sni_hosts.clone(),
            tunneling,
        })
    }

    /// Draws a cluster by weight.
    pub fn cluster(&self) -> &TcpCluster {
        let [first, _, ..] = self.clusters.as_slice() else { return &self.clusters[0] };
        let mut left = fastrand::u64(0..self.total);
        for cluster in &self.clusters {
            match left.checked_sub(cluster.weight) {
                Some(rest) => left = rest,
                None => return cluster,
            }
        }
        first
    }
}

fn backoff(value: Option<&core::BackoffStrategy>) -> Option<(Duration, Duration)> {
    let value = value?;
    let base = value.base_interval.as_ref().map(values::duration)?;
    let max = value.max_interval.as_ref().map_or(base * 10, values::duration);
    Some((base, max.max(base)))
}

fn hash_source_ip(list: &[HashPolicy], faults: &mut Faults) -> bool {
    use hash_policy::PolicySpecifier;
    let mut source_ip = false;
    for (index, policy) in list.iter().enumerate() {
        match policy.policy_specifier {
            Some(PolicySpecifier::SourceIp(_)) => source_ip = true,
            _ => faults.ignore(&format!("hash_policy[{index}]"), "not supported"),
        }
    }
    source_ip
}
