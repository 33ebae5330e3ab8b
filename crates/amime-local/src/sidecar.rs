//! Injection as the local platform does it, and the command lines and
//! environments of the mesh's own programs.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use amime_api::Object;
use amime_api::k8s::{Container, PodSpec};
use amime_api::meta::{ObjectMeta, StringMap};
use serde_json::json;

use crate::address::NAME_SERVER;
use crate::cluster::{MESH_NAMESPACE, TRUST_DOMAIN};
use crate::environment::account;
use crate::interception::MARK;
use crate::service::DOMAIN;

/// Name of the proxy's container.
pub(crate) const PROXY_CONTAINER: &str = "istio-proxy";
/// Image of the proxy's container; `image` knows it.
const PROXY_IMAGE: &str = "amime-proxy";
/// Port and path of a proxy's readiness.
pub(crate) const READY_PORT: u16 = 15021;
pub(crate) const READY_PATH: &str = "/healthz/ready";

const INJECT: &str = "sidecar.istio.io/inject";
const STATUS: &str = "sidecar.istio.io/status";
const CONFIG: &str = "proxy.istio.io/config";

/// What a proxy stands in front of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyKind {
    Sidecar,
    Router,
}

impl ProxyKind {
    fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
        }
    }
}

/// True if a pod of a namespace with these labels gets a sidecar: the pod's
/// own wish, as label or annotation, beats the namespace's.
pub(crate) fn wants_sidecar(pod: &Object<PodSpec>, namespace: &StringMap) -> bool {
    let meta = &pod.metadata;
    let is_gateway =
        meta.annotations.get("inject.istio.io/templates").is_some_and(|t| t == "gateway");
    if pod.spec.host_network || is_gateway {
        return false;
    }
    let wish = meta.labels.get(INJECT).or_else(|| meta.annotations.get(INJECT));
    match (wish.map(String::as_str), namespace.get("istio-injection").map(String::as_str)) {
        (Some("true" | "y" | "yes" | "on"), _) => true,
        (Some("false" | "n" | "no" | "off"), _) | (_, Some("disabled")) => false,
        (_, Some("enabled")) => true,
        _ => namespace.contains_key("istio.io/rev"),
    }
}

/// True if the pod has its sidecar already.
pub(crate) fn is_injected(meta: &ObjectMeta) -> bool {
    meta.annotations.contains_key(STATUS)
}

/// The pod with its sidecar and the labels that tell others of it.
pub(crate) fn inject(pod: &Object<PodSpec>) -> Object<PodSpec> {
    let mut spec = pod.spec.clone();
    spec.containers.push(Container {
        name: PROXY_CONTAINER.to_owned(),
        image: PROXY_IMAGE.to_owned(),
        ..Container::default()
    });
    let meta = &pod.metadata;
    let mut injected = Object::new(meta.namespace.clone(), meta.name.clone(), spec);
    injected.metadata = meta.clone();
    injected.source = pod.source.clone();
    injected.status = pod.status.clone();
    let label = |keys: &[&str]| keys.iter().find_map(|key| meta.labels.get(*key).cloned());
    let name = label(&["app.kubernetes.io/name", "app"]).unwrap_or_else(|| workload_name(meta));
    let revision =
        label(&["app.kubernetes.io/version", "version"]).unwrap_or_else(|| "latest".to_owned());
    let labels = &mut injected.metadata.labels;
    labels.insert("security.istio.io/tlsMode".to_owned(), "istio".to_owned());
    labels.entry("service.istio.io/canonical-name".to_owned()).or_insert(name);
    labels.entry("service.istio.io/canonical-revision".to_owned()).or_insert(revision);
    let status = json!({"containers": [PROXY_CONTAINER], "revision": "default"}).to_string();
    injected.metadata.annotations.insert(STATUS.to_owned(), status);
    injected
}

/// Name of what manages the pod: its Deployment, other owner, or itself.
pub(crate) fn workload_name(meta: &ObjectMeta) -> String {
    owner(meta).1
}

/// Kind and name of what manages the pod.
fn owner(meta: &ObjectMeta) -> (String, String) {
    let Some(owner) = meta.owner_references.iter().find(|o| o.controller == Some(true)) else {
        return ("Pod".to_owned(), meta.name.clone());
    };
    let hash = meta.labels.get("pod-template-hash").filter(|_| owner.kind == "ReplicaSet");
    let name = hash.and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-'));
    match name {
        Some(name) => ("Deployment".to_owned(), name.to_owned()),
        None => (owner.kind.clone(), owner.name.clone()),
    }
}

/// Files that a proxy of one pod uses.
pub(crate) struct ProxyFiles {
    pub(crate) token: PathBuf,
    pub(crate) root_cert: PathBuf,
    pub(crate) state: PathBuf,
}

/// Command line of a proxy.
pub(crate) fn proxy_command(self_exe: &Path, kind: ProxyKind) -> Vec<String> {
    [self_exe.to_string_lossy().as_ref(), "proxy", kind.name()].map(str::to_owned).to_vec()
}

/// Command line of the control plane.
pub(crate) fn control_plane_command(self_exe: &Path, api: &Path, ca: &Path) -> Vec<String> {
    [
        self_exe.to_string_lossy().as_ref(),
        "control-plane",
        "--api-socket",
        api.to_string_lossy().as_ref(),
        "--ca-dir",
        ca.to_string_lossy().as_ref(),
        "--trust-domain",
        TRUST_DOMAIN,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Why a pod's proxy cannot be configured.
#[derive(Debug, thiserror::Error)]
#[error("annotation {CONFIG}: {0}")]
pub(crate) struct ProxyConfigError(String);

/// Settings of its own that a pod's annotation gives its proxy.
fn proxy_config(
    meta: &ObjectMeta,
) -> Result<serde_json::Map<String, serde_json::Value>, ProxyConfigError> {
    let text = meta.annotations.get(CONFIG).map_or("", String::as_str);
    match amime_api::mesh::decode_proxy_config(&meta.name, text) {
        Ok(settings) => Ok(settings),
        Err(errors) => {
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            Err(ProxyConfigError(errors.join("; ")))
        }
    }
}

/// Node metadata among the settings, which stand in the environment.
fn metadata_of(
    settings: &serde_json::Map<String, serde_json::Value>,
) -> impl Iterator<Item = (String, String)> {
    let given = settings.get("proxyMetadata").and_then(serde_json::Value::as_object);
    let own = given.into_iter().flatten().filter(|(name, _)| name.starts_with("ISTIO_META_"));
    own.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
}

/// Environment of a proxy, in Istio's names.
///
/// # Errors
/// When the pod's own settings of its proxy cannot be read.
pub(crate) fn proxy_env(
    pod: &Object<PodSpec>,
    address: Ipv4Addr,
    kind: ProxyKind,
    files: &ProxyFiles,
) -> Result<Vec<(String, String)>, ProxyConfigError> {
    let meta = &pod.metadata;
    let (owner_kind, workload) = owner(meta);
    let plural = format!("{}s", owner_kind.to_lowercase());
    let api = if owner_kind == "Pod" { "v1" } else { "apis/apps/v1" };
    let owner_url = format!("kubernetes://{api}/namespaces/{}/{plural}/{workload}", meta.namespace);
    let labels = serde_json::to_string(&meta.labels).unwrap_or_default();
    let istiod = format!("istiod.{MESH_NAMESPACE}.svc");
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let ports: Vec<_> = pod
        .spec
        .containers
        .iter()
        .flat_map(|container| &container.ports)
        .map(|port| json!({"name": port.name, "containerPort": port.container_port}))
        .collect();
    let settings = proxy_config(meta)?;
    let variables = [
        ("PROXY_TYPE", kind.name().to_owned()),
        ("POD_NAME", meta.name.clone()),
        ("POD_NAMESPACE", meta.namespace.clone()),
        ("INSTANCE_IP", address.to_string()),
        ("SERVICE_ACCOUNT", account(&pod.spec).to_owned()),
        ("TRUST_DOMAIN", TRUST_DOMAIN.to_owned()),
        ("DISCOVERY_ADDRESS", format!("{istiod}:15012")),
        ("CA_ADDR", format!("{istiod}:15012")),
        ("XDS_ROOT_CA", path(&files.root_cert)),
        ("CA_ROOT_CA", path(&files.root_cert)),
        ("TOKEN_PATH", path(&files.token)),
        ("AMIME_STATE_DIR", path(&files.state)),
        ("AMIME_MARK", MARK.to_string()),
        ("DNS_UPSTREAM", format!("{NAME_SERVER}:53")),
        ("ISTIO_META_DNS_CAPTURE", (kind == ProxyKind::Sidecar).to_string()),
        // Nobody writes addresses into the status of service entries here.
        ("ISTIO_META_DNS_AUTO_ALLOCATE", (kind == ProxyKind::Sidecar).to_string()),
        ("ISTIO_META_WORKLOAD_NAME", workload),
        ("ISTIO_META_OWNER", owner_url),
        ("ISTIO_META_MESH_ID", TRUST_DOMAIN.to_owned()),
        ("ISTIO_META_CLUSTER_ID", "Kubernetes".to_owned()),
        ("ISTIO_META_NODE_NAME", crate::environment::NODE.to_owned()),
        ("ISTIO_META_INTERCEPTION_MODE", "REDIRECT".to_owned()),
        ("ISTIO_META_APP_CONTAINERS", app_containers(&pod.spec)),
        ("ISTIO_META_POD_PORTS", serde_json::Value::from(ports).to_string()),
        ("ISTIO_METAJSON_LABELS", labels),
        ("ISTIO_METAJSON_PROXY_CONFIG", serde_json::Value::from(settings.clone()).to_string()),
        ("DNS_DOMAIN", format!("{}.svc.{DOMAIN}", meta.namespace)),
    ];
    let ours = variables.into_iter().map(|(name, value)| (name.to_owned(), value));
    // The last of one name counts.
    Ok(ours.chain(metadata_of(&settings)).collect())
}

fn app_containers(spec: &PodSpec) -> String {
    let names = spec.containers.iter().map(|container| container.name.as_str());
    names.filter(|name| *name != PROXY_CONTAINER).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Object<PodSpec> {
        let map = |pairs: &[(&str, &str)]| -> StringMap {
            pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
        };
        let mut pod = Object::new("default", "reviews-v1-abc-xyz", PodSpec::default());
        pod.metadata.labels = map(labels);
        pod.metadata.annotations = map(annotations);
        pod
    }

    #[track_caller]
    fn check(
        labels: &[(&str, &str)],
        annotations: &[(&str, &str)],
        ns: &[(&str, &str)],
        want: bool,
    ) {
        let namespace = ns.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        assert_eq!(wants_sidecar(&pod(labels, annotations), &namespace), want);
    }

    #[test]
    fn the_pods_wish_beats_the_namespaces() {
        let enabled = [("istio-injection", "enabled")];
        check(&[], &[], &[], false);
        check(&[], &[], &enabled, true);
        check(&[], &[], &[("istio.io/rev", "default")], true);
        check(&[(INJECT, "false")], &[], &enabled, false);
        check(&[], &[(INJECT, "false")], &enabled, false);
        check(&[(INJECT, "true")], &[(INJECT, "false")], &[], true);
        check(&[], &[("inject.istio.io/templates", "gateway")], &enabled, false);
    }

    #[test]
    fn a_pod_has_settings_of_its_own_for_its_proxy() {
        let config = |text: &str| proxy_config(&pod(&[], &[(CONFIG, text)]).metadata);
        let given = "gatewayTopology:\n  numTrustedProxies: 2\n";
        let got = config(given).expect("settings");
        assert_eq!(got["gatewayTopology"]["numTrustedProxies"], 2);
        assert_eq!(got.len(), 1, "{got:?}");
        assert!(config("").expect("none").is_empty());
        let error = config("gatewayTopology: {numTrustedProxies: many}").expect_err("no number");
        assert!(error.to_string().contains("numTrustedProxies"), "{error}");
    }

    #[test]
    fn node_metadata_of_the_annotation_is_the_proxys_environment() {
        let text = "proxyMetadata: {ISTIO_META_ENABLE_SELF_DISCOVERY: 'true', PATH: /x}";
        let settings = proxy_config(&pod(&[], &[(CONFIG, text)]).metadata).expect("settings");
        let got: Vec<_> = metadata_of(&settings).collect();
        let want = ("ISTIO_META_ENABLE_SELF_DISCOVERY".to_owned(), "true".to_owned());
        assert_eq!(got, [want], "what is no metadata is none of the annotation's business");
    }

    #[test]
    fn an_injected_pod_says_so() {
        let injected = inject(&pod(&[("app", "reviews"), ("version", "v1")], &[]));
        assert!(is_injected(&injected.metadata));
        let labels = &injected.metadata.labels;
        assert_eq!(labels["security.istio.io/tlsMode"], "istio");
        assert_eq!(labels["service.istio.io/canonical-name"], "reviews");
        assert_eq!(labels["service.istio.io/canonical-revision"], "v1");
        assert!(injected.raw["spec"]["containers"].to_string().contains(PROXY_CONTAINER));
    }
}
