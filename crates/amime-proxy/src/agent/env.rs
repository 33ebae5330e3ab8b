//! The environment of a workload's proxy, read once into typed settings.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use amime_core::SpiffeId;
use serde_json::Value;

/// What the proxy stands in front of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyKind {
    /// One workload.
    Sidecar,
    /// A gateway.
    Router,
}

impl ProxyKind {
    /// The type in node ids.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
        }
    }
}

/// `host:port` of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// DNS name or IP address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl HostPort {
    /// Reads `host:port` or `[v6]:port`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let valid = !host.is_empty();
        valid.then_some(Self { host: host.to_owned(), port: port.parse().ok()? })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Ports of the agent's own servers; 0 takes a free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AgentPorts {
    /// Admin, loopback only. Default 15000.
    pub admin: u16,
    /// Merged metrics, health, drain. Default 15020.
    pub status: u16,
    /// Readiness. Default 15021.
    pub ready: u16,
    /// Proxy metrics. Default 15090.
    pub metrics: u16,
    /// DNS proxy. Default 15053.
    pub dns: u16,
}

impl Default for AgentPorts {
    fn default() -> Self {
        Self { admin: 15000, status: 15020, ready: 15021, metrics: 15090, dns: 15053 }
    }
}

/// Where the application's own metrics are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AppMetrics {
    /// Port on the workload's loopback.
    pub port: u16,
    /// Path, default `/metrics`.
    pub path: String,
}

/// Settings of the agent.
#[derive(Clone, Debug)]
pub(crate) struct AgentConfig {
    /// Sidecar or gateway.
    pub kind: ProxyKind,
    /// `POD_NAME`.
    pub pod_name: String,
    /// `POD_NAMESPACE`.
    pub namespace: String,
    /// `INSTANCE_IP`, several separated by commas.
    pub instance_ips: Vec<IpAddr>,
    /// `SERVICE_ACCOUNT`. Default `default`.
    pub service_account: String,
    /// `TRUST_DOMAIN`. Default `cluster.local`.
    pub trust_domain: String,
    /// Domain of services (`--domain` in Istio). Default `NS.svc.cluster.local`.
    pub dns_domain: String,
    /// Node metadata from `ISTIO_META_*` and `ISTIO_METAJSON_*`.
    pub metadata: serde_json::Map<String, Value>,
    /// `DISCOVERY_ADDRESS`.
    pub discovery: HostPort,
    /// `CA_ADDR`. Default: the discovery address.
    pub ca: HostPort,
    /// `XDS_ROOT_CA`: PEM file with the roots of the discovery server. Without
    /// one, the connection is not encrypted.
    pub xds_root: Option<PathBuf>,
    /// `CA_ROOT_CA`: PEM file with the roots of the CA. Default: `XDS_ROOT_CA`.
    pub ca_root: Option<PathBuf>,
    /// `ISTIOD_SAN`: name the servers' certificates must carry, if it is not
    /// the host that is dialed.
    pub server_san: Option<String>,
    /// `TOKEN_PATH`: file with the bearer token; read at each connect.
    pub token_path: Option<PathBuf>,
    /// `DNS_UPSTREAM`: resolvers for other names. Default: `/etc/resolv.conf`.
    pub dns_upstream: String,
    /// `ISTIO_META_DNS_CAPTURE`: whether the DNS proxy runs. Default true for
    /// a sidecar, false for a gateway.
    pub dns_capture: bool,
    /// `AMIME_STATE_DIR`: where the last good configuration is kept.
    pub state_dir: Option<PathBuf>,
    /// `AMIME_MARK`: mark of our own packets. Default 1337; 0 sets none.
    pub mark: Option<u32>,
    /// `AMIME_IDENTITY_FD`: inherited memfd for the identity.
    pub identity_fd: Option<i32>,
    /// `PROXY_CONCURRENCY`: worker threads. Default 2.
    pub concurrency: usize,
    /// `TERMINATION_DRAIN_DURATION_SECONDS`: time to drain. Default 5 s.
    pub drain: Duration,
    /// `SECRET_TTL`: requested life of the certificate. Default 24 h.
    pub secret_ttl: Duration,
    /// `ISTIO_PROMETHEUS_ANNOTATIONS`: the application's metrics to merge.
    pub app_metrics: Option<AppMetrics>,
    /// Ports of the agent's servers.
    pub ports: AgentPorts,
}

/// What is wrong with the environment; every fault is named.
#[derive(Debug, thiserror::Error)]
#[error("environment of the proxy: {}", faults.join("; "))]
pub struct EnvError {
    /// One line a fault.
    pub faults: Vec<String>,
}

/// Reads variables and collects what is wrong with them.
struct Reader<'a> {
    vars: &'a BTreeMap<String, String>,
    faults: Vec<String>,
}

impl Reader<'_> {
    fn text(&self, name: &str) -> Option<String> {
        self.vars.get(name).filter(|value| !value.is_empty()).cloned()
    }

    fn required(&mut self, name: &str) -> String {
        self.text(name).unwrap_or_else(|| {
            self.faults.push(format!("{name} is not set"));
            String::new()
        })
    }

    fn parse<T>(&mut self, name: &str, what: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.text(name)?;
        let value = parse(&text);
        if value.is_none() {
            self.faults.push(format!("{name}: {text:?} is not {what}"));
        }
        value
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Option<T> {
        self.parse(name, "a number", |text| text.parse().ok())
    }

    fn address(&mut self, name: &str) -> Option<HostPort> {
        self.parse(name, "host:port", HostPort::parse)
    }
}

impl AgentConfig {
    /// Reads the settings from environment variables.
    ///
    /// # Errors
    /// Names every variable that is missing or malformed.
    pub(crate) fn from_env(
        kind: ProxyKind,
        vars: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, EnvError> {
        let vars: BTreeMap<_, _> = vars.into_iter().collect();
        let mut env = Reader { vars: &vars, faults: vec![] };
        let namespace = env.required("POD_NAMESPACE");
        let nowhere = || HostPort { host: String::new(), port: 0 };
        let discovery = env.address("DISCOVERY_ADDRESS");
        if discovery.is_none() && env.text("DISCOVERY_ADDRESS").is_none() {
            env.faults.push("DISCOVERY_ADDRESS is not set".into());
        }
        let discovery = discovery.unwrap_or_else(nowhere);
        let capture = env.parse("ISTIO_META_DNS_CAPTURE", "true or false", parse_bool);
        let xds_root = env.text("XDS_ROOT_CA").map(PathBuf::from);
        let config = Self {
            kind,
            pod_name: env.required("POD_NAME"),
            instance_ips: instance_ips(&mut env),
            service_account: env.text("SERVICE_ACCOUNT").unwrap_or_else(|| "default".into()),
            trust_domain: env.text("TRUST_DOMAIN").unwrap_or_else(|| "cluster.local".into()),
            dns_domain: format!("{namespace}.svc.cluster.local"),
            metadata: metadata(&mut env),
            ca: env.address("CA_ADDR").unwrap_or_else(|| discovery.clone()),
            ca_root: env.text("CA_ROOT_CA").map(PathBuf::from).or_else(|| xds_root.clone()),
            xds_root,
            server_san: env.text("ISTIOD_SAN"),
            token_path: env.text("TOKEN_PATH").map(PathBuf::from),
            dns_upstream: env.text("DNS_UPSTREAM").unwrap_or_default(),
            dns_capture: capture.unwrap_or(kind == ProxyKind::Sidecar),
            state_dir: env.text("AMIME_STATE_DIR").map(PathBuf::from),
            mark: Some(env.number("AMIME_MARK").unwrap_or(1337)).filter(|mark| *mark != 0),
            identity_fd: env.number("AMIME_IDENTITY_FD"),
            concurrency: env.number("PROXY_CONCURRENCY").filter(|n| *n > 0).unwrap_or(2),
            drain: Duration::from_secs(
                env.number("TERMINATION_DRAIN_DURATION_SECONDS").unwrap_or(5),
            ),
            secret_ttl: env
                .parse("SECRET_TTL", "a duration", parse_duration)
                .unwrap_or(Duration::from_secs(24 * 3600)),
            app_metrics: app_metrics(&mut env),
            ports: AgentPorts::default(),
            discovery,
            namespace,
        };
        if env.faults.is_empty() { Ok(config) } else { Err(EnvError { faults: env.faults }) }
    }

    /// The identity this workload asks for.
    pub(crate) fn spiffe_id(&self) -> SpiffeId {
        SpiffeId::new(&self.trust_domain, &self.namespace, &self.service_account)
    }

    /// Domain of services without the namespace, as `svc.cluster.local`.
    pub(crate) fn service_domain(&self) -> String {
        let prefix = format!("{}.", self.namespace);
        self.dns_domain.strip_prefix(&prefix).unwrap_or(&self.dns_domain).to_owned()
    }
}

fn instance_ips(env: &mut Reader<'_>) -> Vec<IpAddr> {
    let parse = |text: &str| text.split(',').map(|ip| ip.trim().parse().ok()).collect();
    let ips: Option<Vec<IpAddr>> = env.parse("INSTANCE_IP", "a list of IP addresses", parse);
    ips.unwrap_or_else(|| vec![Ipv4Addr::LOCALHOST.into()])
}

fn metadata(env: &mut Reader<'_>) -> serde_json::Map<String, Value> {
    let mut metadata = serde_json::Map::new();
    for (name, value) in env.vars {
        if let Some(key) = name.strip_prefix("ISTIO_META_") {
            metadata.insert(key.to_owned(), Value::String(value.clone()));
        } else if let Some(key) = name.strip_prefix("ISTIO_METAJSON_") {
            match serde_json::from_str(value) {
                Ok(value) => drop(metadata.insert(key.to_owned(), value)),
                Err(error) => env.faults.push(format!("{name} is not JSON: {error}")),
            }
        }
    }
    metadata
}

fn app_metrics(env: &mut Reader<'_>) -> Option<AppMetrics> {
    let text = env.text("ISTIO_PROMETHEUS_ANNOTATIONS")?;
    let Ok(Value::Object(fields)) = serde_json::from_str(&text) else {
        env.faults.push("ISTIO_PROMETHEUS_ANNOTATIONS is not a JSON object".into());
        return None;
    };
    let field = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    if field("scrape") != "true" {
        return None;
    }
    let path = match field("path") {
        "" => "/metrics",
        path => path,
    };
    Some(AppMetrics { port: field("port").parse().unwrap_or(80), path: path.to_owned() })
}

fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    text.parse::<amime_core::Duration>().ok().map(|duration| duration.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<AgentConfig, EnvError> {
        let vars = vars.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        AgentConfig::from_env(ProxyKind::Sidecar, vars)
    }

    #[test]
    fn a_sidecars_environment_is_understood() {
        let config = read(&[
            ("POD_NAME", "reviews-v1-0"),
            ("POD_NAMESPACE", "default"),
            ("INSTANCE_IP", "10.0.0.7,fd00::7"),
            ("DISCOVERY_ADDRESS", "istiod.istio-system.svc:15012"),
            ("ISTIO_META_WORKLOAD_NAME", "reviews-v1"),
            ("ISTIO_METAJSON_LABELS", r#"{"app":"reviews"}"#),
            ("ISTIO_PROMETHEUS_ANNOTATIONS", r#"{"scrape":"true","port":"9080"}"#),
            ("SECRET_TTL", "1h"),
            ("AMIME_MARK", "0"),
        ])
        .expect("valid");
        assert_eq!(config.ca.to_string(), "istiod.istio-system.svc:15012");
        assert_eq!(config.instance_ips.len(), 2);
        assert_eq!(config.metadata["LABELS"]["app"], "reviews");
        assert_eq!(config.metadata["WORKLOAD_NAME"], "reviews-v1");
        assert_eq!(config.app_metrics.expect("scraped").path, "/metrics");
        assert_eq!(config.secret_ttl, Duration::from_secs(3600));
        assert_eq!((config.mark, config.concurrency), (None, 2));
        assert!(config.dns_capture);
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let error = read(&[
            ("POD_NAME", "a"),
            ("INSTANCE_IP", "here"),
            ("DISCOVERY_ADDRESS", "istiod"),
            ("ISTIO_METAJSON_LABELS", "{"),
        ])
        .expect_err("faulty");
        let text = error.to_string();
        for name in ["POD_NAMESPACE", "INSTANCE_IP", "DISCOVERY_ADDRESS", "ISTIO_METAJSON_LABELS"] {
            assert_eq!(text.matches(name).count(), 1, "{name} in {text}");
        }
    }

    #[test]
    fn addresses_of_both_families_are_read() {
        assert_eq!(HostPort::parse("[::1]:80").expect("v6").to_string(), "[::1]:80");
        assert_eq!(HostPort::parse("a.b:80").expect("name").host, "a.b");
        assert_eq!(HostPort::parse("a.b"), None);
        assert_eq!(HostPort::parse(":80"), None);
    }
}
