//! Settings of the daemon and the flags that they come from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use crate::discovery::Debounce;

/// Where the daemon's configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// An object store's API on a Unix socket.
    Api(PathBuf),
    /// A directory of YAML and JSON files.
    Files(PathBuf),
}

/// Settings of the control plane.
#[derive(Clone, Debug)]
pub struct ControlPlaneConfig {
    /// Where objects come from.
    pub source: SourceConfig,
    /// Plaintext discovery. Default port 15010; nothing turns it off.
    pub grpc_addr: Option<SocketAddr>,
    /// Discovery and certificates over TLS. Default port 15012.
    pub secure_grpc_addr: SocketAddr,
    /// Readiness. Default port 8080.
    pub http_addr: SocketAddr,
    /// Metrics, version and debug pages. Default port 15014.
    pub monitoring_addr: SocketAddr,
    /// Mesh-wide settings, YAML. Default: `mesh.yaml` of a source directory,
    /// else Istio's defaults.
    pub mesh_config: Option<PathBuf>,
    /// Trust domain of all identities. Default: that of the mesh-wide settings.
    pub trust_domain: Option<String>,
    /// Keys of the CA and of workload tokens; made if the directory has none.
    pub ca_dir: PathBuf,
    /// Namespace that the control plane runs in. Default `istio-system`.
    pub namespace: String,
    /// DNS domain of services. Default `cluster.local`.
    pub domain: String,
    /// Cluster of proxies that name none. Default `Kubernetes`.
    pub cluster_id: String,
    /// Further DNS names and addresses that proxies may call us by. Default none.
    pub serving_names: Vec<String>,
    /// How long changes wait for others. Default 100 ms and 10 s.
    pub debounce: Debounce,
    /// HTTPS servers of gateways are offered over HTTP/3 too. Default: no.
    pub quic_listeners: bool,
}

impl ControlPlaneConfig {
    /// The defaults, on all addresses.
    pub fn new(source: SourceConfig, ca_dir: PathBuf) -> Self {
        let any = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        Self {
            source,
            grpc_addr: Some(any(15010)),
            secure_grpc_addr: any(15012),
            http_addr: any(8080),
            monitoring_addr: any(15014),
            mesh_config: None,
            trust_domain: None,
            ca_dir,
            namespace: "istio-system".to_owned(),
            domain: "cluster.local".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            serving_names: Vec::new(),
            debounce: Debounce::default(),
            quic_listeners: false,
        }
    }

    /// Names in the certificate that the TLS listener presents.
    pub(crate) fn all_serving_names(&self) -> Vec<String> {
        let Self { namespace, domain, .. } = self;
        let mut names: Vec<String> = ["istiod", "istiod-remote", "istio-pilot"]
            .iter()
            .map(|service| format!("{service}.{namespace}.svc"))
            .collect();
        names.push(format!("istiod.{namespace}.svc.{domain}"));
        names.push(format!("istiod.{namespace}"));
        names.push("localhost".to_owned());
        names.extend(self.serving_names.iter().cloned());
        names
    }
}

/// Flags of the control plane, named like `pilot-discovery`'s.
#[derive(Args, Clone, Debug)]
pub struct ControlPlaneArgs {
    /// Plaintext discovery address; empty turns it off
    #[arg(long = "grpcAddr", alias = "grpc-addr", default_value = ":15010", value_name = "ADDR")]
    grpc_addr: String,
    /// Discovery and certificates over TLS
    #[arg(
        long = "secureGRPCAddr",
        alias = "secure-grpc-addr",
        default_value = ":15012",
        value_name = "ADDR",
        value_parser = parse_addr
    )]
    secure_grpc_addr: SocketAddr,
    /// Readiness address
    #[arg(
        long = "httpAddr",
        alias = "http-addr",
        default_value = ":8080",
        value_name = "ADDR",
        value_parser = parse_addr
    )]
    http_addr: SocketAddr,
    /// Metrics and debug address
    #[arg(
        long = "monitoringAddr",
        alias = "monitoring-addr",
        default_value = ":15014",
        value_name = "ADDR",
        value_parser = parse_addr
    )]
    monitoring_addr: SocketAddr,
    /// File with mesh-wide settings
    #[arg(long = "meshConfig", alias = "mesh-config", value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    /// Trust domain, whatever the mesh-wide settings say
    #[arg(long = "trust-domain", alias = "trustDomain", value_name = "DOMAIN")]
    trust_domain: Option<String>,
    #[command(flatten)]
    source: SourceArgs,
    /// Directory that keeps the CA's key, or holds a CA made elsewhere
    #[arg(long = "ca-dir", alias = "caDir", value_name = "DIR", default_value = "./etc/cacerts")]
    ca_dir: PathBuf,
    /// Namespace that the control plane runs in
    #[arg(long, default_value = "istio-system", env = "POD_NAMESPACE")]
    namespace: String,
    /// DNS domain of services
    #[arg(long, default_value = "cluster.local")]
    domain: String,
    /// Cluster of proxies that name none
    #[arg(long = "clusterID", alias = "cluster-id", default_value = "Kubernetes")]
    cluster_id: String,
    /// Further DNS name or address that proxies call the control plane by
    #[arg(long = "serving-name", alias = "servingName", value_name = "NAME")]
    serving_names: Vec<String>,
    /// Offer HTTPS servers of gateways over HTTP/3 too, where their service has
    /// the port for UDP
    #[arg(long = "quic-listeners", env = "PILOT_ENABLE_QUIC_LISTENERS")]
    #[arg(value_parser = clap::builder::FalseyValueParser::new())]
    quic_listeners: bool,
}

#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
struct SourceArgs {
    /// Directory of YAML files to take the configuration from
    #[arg(long = "configDir", alias = "config-dir", value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Unix socket of an object store to take the configuration from
    #[arg(long = "api-socket", alias = "apiSocket", value_name = "SOCKET")]
    api_socket: Option<PathBuf>,
}

/// The flags do not make a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// An address that is none.
    #[error("{0}")]
    Address(String),
    /// No source, which the parser has ruled out already.
    #[error("one of --configDir and --api-socket is needed")]
    NoSource,
}

impl ControlPlaneArgs {
    /// The configuration that the flags describe.
    pub fn into_config(self) -> Result<ControlPlaneConfig, ArgsError> {
        let source = match (self.source.api_socket, self.source.config_dir) {
            (Some(socket), _) => SourceConfig::Api(socket),
            (None, Some(dir)) => SourceConfig::Files(dir),
            (None, None) => return Err(ArgsError::NoSource),
        };
        let grpc_addr = match self.grpc_addr.as_str() {
            "" => None,
            text => Some(parse_addr(text).map_err(ArgsError::Address)?),
        };
        Ok(ControlPlaneConfig {
            grpc_addr,
            secure_grpc_addr: self.secure_grpc_addr,
            http_addr: self.http_addr,
            monitoring_addr: self.monitoring_addr,
            mesh_config: self.mesh_config,
            trust_domain: self.trust_domain,
            namespace: self.namespace,
            domain: self.domain,
            cluster_id: self.cluster_id,
            serving_names: self.serving_names,
            quic_listeners: self.quic_listeners,
            ..ControlPlaneConfig::new(source, self.ca_dir)
        })
    }
}

/// Reads `:PORT` (all addresses), `ADDRESS:PORT` or `localhost:PORT`.
fn parse_addr(text: &str) -> Result<SocketAddr, String> {
    let text = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None if text.starts_with(':') => format!("0.0.0.0{text}"),
        None => text.to_owned(),
    };
    text.parse().map_err(|_| format!("{text:?} is not of the form [ADDRESS]:PORT"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        control_plane: ControlPlaneArgs,
    }

    fn check(args: &[&str]) -> Result<ControlPlaneConfig, String> {
        let args = ["amimed"].iter().chain(args);
        let cli = Cli::try_parse_from(args).map_err(|error| error.to_string())?;
        cli.control_plane.into_config().map_err(|error| error.to_string())
    }

    #[test]
    fn flags_have_pilots_names_and_defaults() {
        let config = check(&["--configDir", "conf"]).expect("valid");
        assert_eq!(config.source, SourceConfig::Files("conf".into()));
        assert_eq!(config.grpc_addr.map(|addr| addr.port()), Some(15010));
        assert_eq!(config.secure_grpc_addr.to_string(), "0.0.0.0:15012");

        let config = check(&[
            "--api-socket=/s",
            "--grpcAddr=",
            "--secure-grpc-addr=127.0.0.1:0",
            "--clusterID=c",
            "--http-addr=localhost:1",
            "--trust-domain=example.org",
        ]);
        let config = config.expect("valid");
        assert_eq!(config.trust_domain.as_deref(), Some("example.org"));
        assert_eq!((config.grpc_addr, config.cluster_id.as_str()), (None, "c"));
        assert_eq!(config.http_addr.to_string(), "127.0.0.1:1");
        assert!(!config.quic_listeners);
        let config = check(&["--configDir", "conf", "--quic-listeners"]).expect("valid");
        assert!(config.quic_listeners);
    }

    #[test]
    fn a_source_is_needed_and_addresses_are_checked() {
        assert!(check(&[]).is_err());
        assert!(check(&["--configDir=a", "--api-socket=b"]).is_err());
        assert!(check(&["--configDir=a", "--grpcAddr=nonsense"]).is_err());
        assert!(check(&["--configDir=a", "--monitoringAddr=1.2.3.4"]).is_err());
    }
}
