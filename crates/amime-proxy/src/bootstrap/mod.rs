//! Static configuration: an Envoy v3 bootstrap from a file or the command line.
//!
//! Owns reading, merging and checking; what the resources mean is the
//! runtime's business.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_api>

mod ads;
mod run;

pub(crate) use run::{BootstrapRun, run};

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use amime_xds::Resource;
use amime_xds::json::JsonError;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::core::v3::{Address, address, socket_address::PortSpecifier};
use prost::{Message, Name};

use crate::json::{Converter, Work};

/// Fields of a bootstrap that are acted on.
const HONOURED: [&str; 4] = ["node", "static_resources", "dynamic_resources", "admin"];

/// Why a bootstrap is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The file cannot be read.
    #[error("bootstrap {} cannot be read", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The text is not a bootstrap.
    #[error("{origin}:{fault}")]
    Parse {
        /// File name or option.
        origin: String,
        /// Where and why; its text starts with the position.
        fault: JsonError,
    },
    /// Nothing to run.
    #[error("neither a configuration file nor --config-yaml is given")]
    Missing,
    /// Fields without effect here.
    #[error("not supported (run with --allow-unsupported to ignore): {}", fields.join(", "))]
    Unsupported {
        /// Paths of the fields.
        fields: Vec<String>,
    },
    /// Resources that the runtime refuses.
    #[error("static resources: {}", faults.join("; "))]
    Rejected {
        /// `name: what is wrong with it`.
        faults: Vec<String>,
    },
    /// An address that is not an IP address with a port.
    #[error("{field}: not an IP address with a port")]
    Address {
        /// Where it stands.
        field: &'static str,
    },
    /// The discovery settings cannot be used.
    #[error("dynamic_resources.ads_config: {reason}")]
    Ads {
        /// Why.
        reason: String,
    },
}

/// Reads a bootstrap; `overlay` is merged over the file.
pub(crate) async fn load(
    converter: &Converter,
    path: Option<&Path>,
    overlay: Option<&str>,
) -> Result<Bootstrap, BootstrapError> {
    let parse = async |origin: String, text: &str, is_json| {
        let parsed = converter.parse(text, is_json).await;
        parsed.map_err(|fault| BootstrapError::Parse { origin, fault })
    };
    let mut bootstrap = None;
    if let Some(path) = path {
        let text = std::fs::read_to_string(path)
            .map_err(|source| BootstrapError::Read { path: path.to_owned(), source })?;
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        bootstrap = Some(parse(path.display().to_string(), &text, is_json).await?);
    }
    if let Some(text) = overlay {
        let overlay: Bootstrap = parse("--config-yaml".to_owned(), text, false).await?;
        let merged = bootstrap.get_or_insert_default();
        // Protobuf's own merge: single fields replace, lists append.
        merged.merge(overlay.encode_to_vec().as_slice()).expect("an encoded message decodes");
    }
    bootstrap.ok_or(BootstrapError::Missing)
}

/// Top-level fields that are set and have no effect here.
pub(crate) async fn unsupported(converter: &Converter, bootstrap: &Bootstrap) -> Vec<String> {
    // The static resources are the bulk of it and are looked at elsewhere.
    let shell = Bootstrap { static_resources: None, ..bootstrap.clone() };
    let mut work = Work::default();
    work.print(&Bootstrap::type_url(), shell.encode_to_vec().into());
    match converter.print(&work).await.pop() {
        Some(serde_json::Value::Object(fields)) => {
            let names = fields.keys().filter(|name| *name != "@type");
            names.filter(|name| !HONOURED.contains(&name.as_str())).cloned().collect()
        }
        _ => vec![],
    }
}

/// The static resources.
pub(crate) fn static_resources(bootstrap: &Bootstrap) -> Vec<Resource> {
    let Some(resources) = &bootstrap.static_resources else { return vec![] };
    let secrets = resources.secrets.iter().map(|one| Resource::encode(&one.name, one));
    let clusters = resources.clusters.iter().map(|one| Resource::encode(&one.name, one));
    let listeners = resources.listeners.iter().enumerate();
    let listeners = listeners.map(|(index, one)| {
        // Envoy gives a nameless listener a random name; ours must be stable.
        let name = if one.name.is_empty() { format!("listener_{index}") } else { one.name.clone() };
        Resource::encode(name, one)
    });
    secrets.chain(clusters).chain(listeners).collect()
}

/// The admin server's address, if the bootstrap asks for one.
pub(crate) fn admin_address(bootstrap: &Bootstrap) -> Result<Option<SocketAddr>, BootstrapError> {
    let address = bootstrap.admin.as_ref().and_then(|admin| admin.address.as_ref());
    let field = "admin.address";
    address.map(|it| socket_address(it).ok_or(BootstrapError::Address { field })).transpose()
}

fn socket_address(address: &Address) -> Option<SocketAddr> {
    let Some(address::Address::SocketAddress(socket)) = &address.address else { return None };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { return None };
    let ip: IpAddr = socket.address.parse().ok()?;
    Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Converter {
        Converter::default()
    }

    const BOOTSTRAP: &str = "
node: {id: n, cluster: c}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
stats_flush_interval: 5s
static_resources:
  clusters:
  - name: app
    connect_timeout: 1s
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: 80}}
";

    #[tokio::test]
    async fn a_bootstrap_is_read_merged_and_split_into_updates() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("envoy.yaml");
        std::fs::write(&file, BOOTSTRAP).expect("written");
        let overlay = "{node: {id: other}, static_resources: {clusters: [{name: more}]}}";
        let bootstrap = load(&here(), Some(&file), Some(overlay)).await.expect("valid");
        assert_eq!(bootstrap.node.as_ref().expect("node").id, "other");
        let resources = static_resources(&bootstrap);
        let names: Vec<_> = resources.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["app", "more", "listener_0"]);
        let admin = admin_address(&bootstrap).expect("valid").expect("set");
        assert_eq!(admin.to_string(), "127.0.0.1:0");
        assert_eq!(unsupported(&here(), &bootstrap).await, ["stats_flush_interval"]);
    }

    #[tokio::test]
    async fn faults_name_the_file_and_the_position() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("bad.yaml");
        std::fs::write(&file, "node:\n  idd: x\n").expect("written");
        let error = load(&here(), Some(&file), None).await.expect_err("invalid").to_string();
        assert!(error.contains("bad.yaml:") && error.contains("idd"), "{error}");
        assert!(matches!(load(&here(), None, None).await, Err(BootstrapError::Missing)));
    }
}
