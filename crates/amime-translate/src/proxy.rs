//! The proxy that configuration is made for.
//!
//! Owns reading what a proxy says about itself: an xDS node, or the JSON file
//! of an offline translation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use amime_api::networking::CaptureMode;
use amime_core::Locality;
use amime_model::{AddressView, Labels};
use amime_xds::extensions;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value as ProtoValue};
use serde_json::Value;

/// The transport socket that QUIC takes.
pub(crate) const QUIC_SOCKET: &str = "envoy.transport_sockets.quic";

/// What a proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// Beside one workload.
    Sidecar,
    /// A gateway.
    Router,
}

/// How traffic reaches a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interception {
    /// Redirected, the original address comes from the socket.
    Redirect,
    /// Redirected with the client's source address kept.
    Tproxy,
    /// Not at all: the workload dials the proxy.
    None,
}

/// A proxy as far as its configuration depends on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// Unique name, `POD.NAMESPACE` for pods.
    pub id: String,
    /// What it does.
    pub kind: ProxyKind,
    /// Addresses of the workload, the primary one first.
    pub ips: Vec<String>,
    /// Namespace whose configuration applies.
    pub namespace: String,
    /// Search domain, `NAMESPACE.svc.cluster.local`.
    pub dns_domain: String,
    /// Labels of the workload.
    pub labels: Labels,
    /// Service account of the workload.
    pub service_account: String,
    /// Cluster it runs in; empty if unknown.
    pub cluster_id: String,
    /// Where it runs.
    pub locality: Locality,
    /// Everything else it said, Istio's keys.
    pub metadata: Value,
    /// Names of the extensions that it has, and types of their configurations
    /// as far as it says; `None` = unknown, send everything.
    pub extensions: Option<BTreeSet<String>>,
    /// HTTPS servers of gateways are offered over HTTP/3 too, as far as the
    /// proxy can: a setting of the control plane.
    pub quic_listeners: bool,
}

/// A proxy description that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The node ID is not `TYPE~IP~ID~DOMAIN`.
    #[error("node ID {id:?} is not of the form TYPE~IP~ID~DOMAIN")]
    NodeId {
        /// The text that was read.
        id: String,
    },
    /// Neither a sidecar nor a router.
    #[error("proxy type {kind:?} is neither sidecar nor router")]
    Kind {
        /// The text that was read.
        kind: String,
    },
    /// The proxy file is not JSON.
    #[error("proxy description is not valid JSON")]
    Json(#[source] serde_json::Error),
}

impl Proxy {
    /// Reads the node that an xDS client sends.
    ///
    /// # Errors
    /// When the node ID does not follow Istio's form.
    pub fn from_node(node: &Node) -> Result<Self, ProxyError> {
        let parts: Vec<&str> = node.id.split('~').collect();
        let [kind, ip, id, dns_domain] = parts[..] else {
            return Err(ProxyError::NodeId { id: node.id.clone() });
        };
        let metadata = node.metadata.as_ref().map_or(Value::Null, struct_to_json);
        let mut ips = strings(&metadata, "INSTANCE_IPS");
        if ips.is_empty() {
            ips.push(ip.to_owned());
        }
        let mut proxy = Self::new(parse_kind(kind)?, id, dns_domain, ips, metadata);
        if let Some(locality) = &node.locality {
            proxy.locality = Locality {
                region: locality.region.clone(),
                zone: locality.zone.clone(),
                subzone: locality.sub_zone.clone(),
            };
        }
        if !node.extensions.is_empty() {
            let names = node.extensions.iter().map(|e| e.name.clone());
            let types = node.extensions.iter().flat_map(|e| e.type_urls.iter().cloned());
            proxy.extensions = Some(names.chain(types).collect());
        }
        Ok(proxy)
    }

    /// Reads the description of an offline translation: `type`, `ips`, `id`,
    /// `dns_domain`, `config_namespace`, `labels`, `metadata`, `extensions`,
    /// `quic_listeners`.
    ///
    /// # Errors
    /// When it is not JSON or the type is unknown.
    pub fn from_json(text: &str) -> Result<Self, ProxyError> {
        let json: Value = serde_json::from_str(text).map_err(ProxyError::Json)?;
        let text = |key: &str| json.get(key).and_then(Value::as_str).unwrap_or_default();
        let kind = match text("type") {
            "" => ProxyKind::Sidecar,
            kind => parse_kind(kind)?,
        };
        let metadata = json.get("metadata").cloned().unwrap_or(Value::Null);
        let ips = strings(&json, "ips");
        let mut proxy = Self::new(kind, text("id"), text("dns_domain"), ips, metadata);
        if !text("config_namespace").is_empty() {
            proxy.namespace = text("config_namespace").to_owned();
        }
        if json.get("labels").is_some() {
            proxy.labels = labels(&json, "labels");
        }
        if json.get("extensions").is_some() {
            proxy.extensions = Some(strings(&json, "extensions").into_iter().collect());
        }
        proxy.quic_listeners = json.get("quic_listeners").and_then(Value::as_bool) == Some(true);
        Ok(proxy)
    }

    fn new(kind: ProxyKind, id: &str, dns_domain: &str, ips: Vec<String>, metadata: Value) -> Self {
        let text =
            |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let namespace = match text("NAMESPACE") {
            ns if ns.is_empty() => {
                id.split_once('.').map_or(String::new(), |(_, ns)| ns.to_owned())
            }
            ns => ns,
        };
        Self {
            id: id.to_owned(),
            kind,
            ips,
            namespace,
            dns_domain: dns_domain.to_owned(),
            labels: labels(&metadata, "LABELS"),
            service_account: text("SERVICE_ACCOUNT"),
            cluster_id: text("CLUSTER_ID"),
            locality: Locality::default(),
            metadata,
            extensions: None,
            quic_listeners: false,
        }
    }

    /// True if it has an IPv4 address, or none that we know of.
    pub fn supports_v4(&self) -> bool {
        let mut known = self.ips.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()).peekable();
        known.peek().is_none() || known.any(|ip| ip.is_ipv4())
    }

    /// True if it has an IPv6 address.
    pub fn supports_v6(&self) -> bool {
        self.ips.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()).any(|ip| ip.is_ipv6())
    }

    /// Which service addresses make sense to it.
    pub fn address_view(&self) -> AddressView {
        AddressView {
            in_cluster: !self.cluster_id.is_empty(),
            v4: self.supports_v4(),
            v6: self.supports_v6(),
            uses_allocated: self.flag("DNS_CAPTURE"),
            uses_derived: self.flag("DNS_AUTO_ALLOCATE"),
        }
    }

    /// How traffic reaches it.
    pub fn interception(&self) -> Interception {
        match self.text("INTERCEPTION_MODE") {
            "TPROXY" => Interception::Tproxy,
            "NONE" => Interception::None,
            _ => Interception::Redirect,
        }
    }

    /// True if a listener that is declared this way needs a socket of its own.
    pub(crate) fn binds(&self, capture: CaptureMode) -> bool {
        match capture {
            CaptureMode::Default => self.interception() == Interception::None,
            CaptureMode::Iptables => false,
            CaptureMode::None => true,
        }
    }

    /// True if it has the extension, or did not say which it has.
    pub(crate) fn has_extension(&self, name: &str) -> bool {
        self.extensions.as_ref().is_none_or(|names| names.contains(name))
    }

    /// True if it is to have listeners for QUIC, and can.
    pub(crate) fn takes_quic(&self) -> bool {
        self.quic_listeners && self.has_extension(QUIC_SOCKET)
    }

    /// True if it said which extensions it has.
    pub(crate) fn names_extensions(&self) -> bool {
        self.extensions.is_some()
    }

    /// True if it has an extension with this type of configuration, or did not
    /// say which it has.
    pub(crate) fn has_extension_of(&self, type_url: &str) -> bool {
        let Some(own) = &self.extensions else { return true };
        let full_name = type_url.rsplit('/').next().unwrap_or(type_url);
        own.contains(full_name)
            || extensions::name_of(type_url).is_some_and(|name| own.contains(&name))
    }

    /// True if it listens on privileged ports in vain.
    pub(crate) fn is_unprivileged(&self) -> bool {
        self.flag("UNPRIVILEGED_POD")
    }

    /// A text from the metadata; empty if absent.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.metadata.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number from the metadata, written as a number or as text.
    pub(crate) fn number(&self, key: &str) -> Option<u32> {
        let value = self.metadata.get(key)?;
        let number = match value {
            Value::String(text) => text.parse().ok()?,
            other => other.as_f64()?,
        };
        (number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number))
            .then_some(number as u32)
    }

    /// A truth value from the metadata, in any of the spellings in use.
    pub(crate) fn flag(&self, key: &str) -> bool {
        match self.metadata.get(key) {
            Some(Value::Bool(value)) => *value,
            Some(Value::String(text)) => matches!(text.as_str(), "true" | "1"),
            _ => false,
        }
    }

    /// Addresses to bind for "anywhere", the primary one first.
    pub(crate) fn wildcards(&self) -> Vec<String> {
        self.by_family("0.0.0.0", "::")
    }

    /// Loopback addresses, the primary one first.
    pub(crate) fn loopbacks(&self) -> Vec<String> {
        self.by_family("127.0.0.1", "::1")
    }

    fn by_family(&self, v4: &str, v6: &str) -> Vec<String> {
        let mut addresses = Vec::new();
        if self.supports_v4() {
            addresses.push(v4.to_owned());
        }
        if self.supports_v6() {
            addresses.push(v6.to_owned());
        }
        addresses
    }
}

fn parse_kind(kind: &str) -> Result<ProxyKind, ProxyError> {
    match kind {
        "sidecar" => Ok(ProxyKind::Sidecar),
        "router" => Ok(ProxyKind::Router),
        other => Err(ProxyError::Kind { kind: other.to_owned() }),
    }
}

/// A list of texts, or one text with commas (Istio writes `INSTANCE_IPS` so).
fn strings(json: &Value, key: &str) -> Vec<String> {
    match json.get(key) {
        Some(Value::Array(items)) => {
            items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        Some(Value::String(text)) if !text.is_empty() => {
            text.split(',').map(|item| item.trim().to_owned()).collect()
        }
        _ => Vec::new(),
    }
}

fn labels(json: &Value, key: &str) -> Labels {
    let map = json.get(key).and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect::<BTreeMap<_, _>>()
}

fn struct_to_json(fields: &Struct) -> Value {
    let entries = fields.fields.iter().map(|(key, value)| (key.clone(), value_to_json(value)));
    Value::Object(entries.collect())
}

fn value_to_json(value: &ProtoValue) -> Value {
    match &value.kind {
        Some(Kind::BoolValue(value)) => Value::Bool(*value),
        Some(Kind::NumberValue(number)) => number_to_json(*number),
        Some(Kind::StringValue(text)) => Value::from(text.as_str()),
        Some(Kind::StructValue(fields)) => struct_to_json(fields),
        Some(Kind::ListValue(list)) => list.values.iter().map(value_to_json).collect(),
        Some(Kind::NullValue(_)) | None => Value::Null,
    }
}

/// Protobuf has floating point only; what was an integer is one again, or
/// nobody could read it as such.
fn number_to_json(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() < EXACT {
        return Value::from(number as i64);
    }
    Value::from(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_integers() {
        assert_eq!(number_to_json(2.0).as_u64(), Some(2));
        assert_eq!(number_to_json(-2.0).as_i64(), Some(-2));
        assert_eq!(number_to_json(0.5).as_f64(), Some(0.5));
        assert!(number_to_json(1e300).is_f64());
    }

    #[test]
    fn a_node_is_read() {
        let text = |text: &str| ProtoValue { kind: Some(Kind::StringValue(text.to_owned())) };
        let fields = [("NAMESPACE", text("default")), ("INSTANCE_IPS", text("10.0.0.1,fd00::1"))];
        let node = Node {
            id: "sidecar~10.0.0.1~reviews-v1-x.default~default.svc.cluster.local".into(),
            metadata: Some(Struct {
                fields: fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            }),
            ..Default::default()
        };
        let proxy = Proxy::from_node(&node).expect("a valid node");
        assert_eq!(
            (proxy.id.as_str(), proxy.namespace.as_str()),
            ("reviews-v1-x.default", "default")
        );
        assert_eq!(proxy.ips, ["10.0.0.1", "fd00::1"]);
        assert_eq!(proxy.wildcards(), ["0.0.0.0", "::"]);
    }

    #[test]
    fn a_foreign_node_is_refused() {
        let node = Node { id: "envoy-1".into(), ..Default::default() };
        assert!(matches!(Proxy::from_node(&node), Err(ProxyError::NodeId { .. })));
        assert!(matches!(Proxy::from_json(r#"{"type":"ztunnel"}"#), Err(ProxyError::Kind { .. })));
        assert!(matches!(Proxy::from_json("{"), Err(ProxyError::Json(_))));
    }

    #[test]
    fn a_proxy_without_addresses_counts_as_ipv4() {
        let proxy = Proxy::from_json("{}").expect("an empty description");
        assert_eq!(proxy.wildcards(), ["0.0.0.0"]);
    }
}
