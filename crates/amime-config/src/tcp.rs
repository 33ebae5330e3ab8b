//! TCP proxies.

use std::sync::Arc;
use std::time::Duration;

use amime_telemetry::{IstioStats, ListenerTelemetry};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as pb;

use http::uri::PathAndQuery;

use super::Compiler;
use super::faults::Faults;
use super::format::Format;
use super::headers::HeaderEdits;
use super::names::ClusterId;
use super::values;

/// A compiled `TcpProxy`.
#[derive(Debug)]
pub struct TcpConfig {
    pub stat_prefix: String,
    clusters: Vec<(ClusterId, u64)>,
    total: u64,
    /// `None`: no limit.
    pub idle_timeout: Option<Duration>,
    pub max_duration: Option<Duration>,
    pub connect_attempts: u32,
    pub telemetry: ListenerTelemetry,
    pub hash_source_ip: bool,
    /// The cluster is the one that the server name names.
    pub by_server_name: bool,
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
        faults.ignore_if(value.propagate_response_headers, "propagate_response_headers");
        faults.ignore_if(value.propagate_response_trailers, "propagate_response_trailers");
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
        let tunneling = value.tunneling_config.as_ref().and_then(|tunneling| {
            let compile = |faults: &mut Faults| Tunneling::compile(tunneling, faults);
            compiler.faults.within("tunneling_config", compile)
        });
        let clusters = match value.cluster_specifier.as_ref() {
            Some(pb::tcp_proxy::ClusterSpecifier::Cluster(name)) => {
                vec![(compiler.names.cluster(name), 1)]
            }
            Some(pb::tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => weighted
                .clusters
                .iter()
                .map(|entry| (compiler.names.cluster(&entry.name), u64::from(entry.weight)))
                .collect(),
            None => {
                compiler.faults.reject("cluster_specifier", "missing");
                return None;
            }
        };
        let total = clusters.iter().map(|(_, weight)| weight).sum();
        if total == 0 {
            compiler.faults.reject("weighted_clusters", "the sum of weights is zero");
            return None;
        }
        Some(Self {
            stat_prefix: value.stat_prefix.clone(),
            clusters,
            total,
            idle_timeout: values::timeout(value.idle_timeout.as_ref(), Some(IDLE_TIMEOUT)),
            max_duration: values::timeout(value.max_downstream_connection_duration.as_ref(), None),
            connect_attempts: values::u32_or(value.max_connect_attempts.as_ref(), 1).max(1),
            telemetry,
            hash_source_ip: !value.hash_policy.is_empty(),
            by_server_name: compiler.sni_cluster,
            tunneling,
        })
    }

    /// Draws a cluster by weight.
    pub fn cluster(&self) -> ClusterId {
        if let [(only, _)] = self.clusters.as_slice() {
            return *only;
        }
        let mut left = fastrand::u64(0..self.total);
        for (cluster, weight) in &self.clusters {
            match left.checked_sub(*weight) {
                Some(rest) => left = rest,
                None => return *cluster,
            }
        }
        self.clusters[0].0
    }
}
