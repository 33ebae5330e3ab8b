//! The node by which the control plane knows this proxy.

use std::collections::{BTreeMap, HashMap};

use amime_telemetry::PeerMetadata;
use amime_xds::extensions::OWN;
use envoy_types::pb::envoy::config::core::v3::{
    BuildVersion, Extension, Locality, Node, node::UserAgentVersionType,
};
use envoy_types::pb::envoy::r#type::v3::SemanticVersion;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};
use serde_json::{Value as Json, json};

use super::env::{AgentConfig, ProxyKind};

/// Istio's version whose configuration we understand: control planes choose
/// what they send by it.
const ISTIO_VERSION: &str = "1.28.0";

/// The node of a workload's proxy.
pub(crate) fn node(config: &AgentConfig) -> Node {
    let metadata = metadata(config);
    Node {
        id: id(config),
        cluster: service_cluster(config, &metadata),
        locality: locality(&metadata),
        metadata: Some(to_struct(&metadata)),
        user_agent_name: "amime".into(),
        user_agent_version_type: Some(user_agent_version()),
        extensions: extensions(),
        ..Node::default()
    }
}

/// Istio's node id: `type~ip~pod.namespace~domain`.
pub(crate) fn id(config: &AgentConfig) -> String {
    let AgentConfig { pod_name, namespace, dns_domain, .. } = config;
    let ip = config.instance_ips.first().map_or_else(String::new, ToString::to_string);
    format!("{}~{ip}~{pod_name}.{namespace}~{dns_domain}", config.kind.as_str())
}

/// Our own workload for telemetry and metadata exchange.
pub(crate) fn peer(config: &AgentConfig) -> PeerMetadata {
    let mut peer = PeerMetadata::from_struct(&to_struct(&metadata(config)));
    peer.principal = config.spiffe_id().to_string();
    peer
}

/// A node for a proxy that runs from a bootstrap file: what the file says,
/// with what only the program knows.
pub(crate) fn server_info_node(mut node: Node) -> Node {
    node.user_agent_name = "amime".into();
    node.user_agent_version_type = Some(user_agent_version());
    node.extensions = extensions();
    node
}

fn extensions() -> Vec<Extension> {
    let extension = |(category, name): &(&str, &str)| Extension {
        category: (*category).to_owned(),
        name: (*name).to_owned(),
        ..Extension::default()
    };
    // Only some builds can.
    let quic = ("envoy.transport_sockets.downstream", "envoy.transport_sockets.quic");
    let quic = Some(&quic).filter(|_| cfg!(feature = "http3"));
    OWN.iter().chain(quic).map(extension).collect()
}

fn user_agent_version() -> UserAgentVersionType {
    let mut parts = amime_core::build::VERSION.split(['.', '-', '+']).map(|n| n.parse().ok());
    let mut next = || parts.next().flatten().unwrap_or_default();
    let version = SemanticVersion { major_number: next(), minor_number: next(), patch: next() };
    UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
        version: Some(version),
        metadata: None,
    })
}

/// Istio's node metadata: what the environment gave, over what we know.
fn metadata(config: &AgentConfig) -> serde_json::Map<String, Json> {
    let ips: Vec<_> = config.instance_ips.iter().map(ToString::to_string).collect();
    let mut metadata = serde_json::Map::new();
    let mut known = |key: &str, value: Json| drop(metadata.insert(key.to_owned(), value));
    known("NAME", json!(config.pod_name));
    known("NAMESPACE", json!(config.namespace));
    known("SERVICE_ACCOUNT", json!(config.service_account));
    known("INSTANCE_IPS", json!(ips.join(",")));
    known("ISTIO_VERSION", json!(ISTIO_VERSION));
    known("CLUSTER_ID", json!("Kubernetes"));
    known("MESH_ID", json!(config.trust_domain));
    known("WORKLOAD_NAME", json!(config.pod_name));
    known("LABELS", json!({}));
    known("INTERCEPTION_MODE", json!("REDIRECT"));
    known("ENVOY_PROMETHEUS_PORT", json!(config.ports.metrics));
    known("ENVOY_STATUS_PORT", json!(config.ports.ready));
    known("PROXY_CONFIG", json!({}));
    if config.kind == ProxyKind::Sidecar && config.dns_capture {
        known("DNS_CAPTURE", json!("true"));
    }
    metadata.extend(config.metadata.clone());
    metadata
}

fn service_cluster(config: &AgentConfig, metadata: &serde_json::Map<String, Json>) -> String {
    let label = |name: &str| metadata["LABELS"].get(name).and_then(Json::as_str);
    let service = label("service.istio.io/canonical-name").or_else(|| label("app"));
    let workload = metadata["WORKLOAD_NAME"].as_str();
    let name = service.or(workload).unwrap_or("istio-proxy");
    format!("{name}.{}", config.namespace)
}

/// From the label `istio-locality`, as `region.zone.subzone`.
fn locality(metadata: &serde_json::Map<String, Json>) -> Option<Locality> {
    let label = metadata["LABELS"].get("istio-locality")?.as_str()?;
    let parsed = amime_core::Locality::from_label(label);
    Some(Locality { region: parsed.region, zone: parsed.zone, sub_zone: parsed.subzone })
}

fn to_struct(fields: &serde_json::Map<String, Json>) -> Struct {
    let fields: BTreeMap<_, _> =
        fields.iter().map(|(name, value)| (name.clone(), to_value(value))).collect();
    Struct { fields: HashMap::from_iter(fields) }
}

fn to_value(value: &Json) -> Value {
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(items) => {
            Kind::ListValue(ListValue { values: items.iter().map(to_value).collect() })
        }
        Json::Object(fields) => Kind::StructValue(to_struct(fields)),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AgentConfig {
        let vars = [
            ("POD_NAME", "reviews-v1-0"),
            ("POD_NAMESPACE", "default"),
            ("INSTANCE_IP", "10.0.0.7"),
            ("SERVICE_ACCOUNT", "bookinfo-reviews"),
            ("DISCOVERY_ADDRESS", "istiod:15012"),
            ("ISTIO_META_WORKLOAD_NAME", "reviews-v1"),
            ("ISTIO_METAJSON_LABELS", r#"{"app":"reviews","version":"v1"}"#),
        ];
        let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned()));
        AgentConfig::from_env(ProxyKind::Sidecar, vars).expect("valid")
    }

    #[test]
    fn the_node_follows_istios_form() {
        let node = node(&config());
        assert_eq!(node.id, "sidecar~10.0.0.7~reviews-v1-0.default~default.svc.cluster.local");
        assert_eq!(node.cluster, "reviews.default");
        assert!(node.extensions.iter().any(|extension| extension.name == "istio.stats"));
        let metadata = node.metadata.expect("metadata");
        assert!(metadata.fields.contains_key("ISTIO_VERSION"));
    }

    #[test]
    fn the_workload_is_known_to_telemetry() {
        let peer = peer(&config());
        assert_eq!(peer.workload, "reviews-v1");
        assert_eq!(peer.canonical_service, "reviews");
        assert_eq!(peer.canonical_revision, "v1");
        assert_eq!(peer.principal, "spiffe://cluster.local/ns/default/sa/bookinfo-reviews");
    }
}
