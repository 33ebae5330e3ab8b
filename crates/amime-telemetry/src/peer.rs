//! Who a peer workload is: the metadata that proxies exchange in
//! `x-envoy-peer-metadata`.
//!
//! The header is the base64 form of a `google.protobuf.Struct` with Istio's
//! keys. It comes from the peer, so it is bounded and never trusted for more
//! than labels.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose::STANDARD};
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use prost::Message;

/// Header that carries the metadata.
pub const PEER_METADATA_HEADER: &str = "x-envoy-peer-metadata";
/// Header that carries the sender's node id.
pub const PEER_METADATA_ID_HEADER: &str = "x-envoy-peer-metadata-id";

/// Longest header value that is decoded, bytes.
const MAX_HEADER: usize = 16 * 1024;
/// Peers remembered by one worker.
const MAX_CACHED: usize = 1024;
/// Longest single label kept, bytes.
const MAX_LABEL: usize = 256;

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A workload as telemetry labels name it. Empty strings mean unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerMetadata {
    /// Name of the pod or workload instance.
    pub instance: String,
    /// Name of the workload, as `reviews-v1`.
    pub workload: String,
    /// Kind of the workload: `deployment`, `statefulset`, ...
    pub workload_kind: String,
    /// Namespace.
    pub namespace: String,
    /// Canonical service name.
    pub canonical_service: String,
    /// Canonical revision.
    pub canonical_revision: String,
    /// `app` label.
    pub app: String,
    /// `version` label.
    pub version: String,
    /// Cluster ID.
    pub cluster: String,
    /// SPIFFE ID the workload claims; labels take the TLS peer's if there is one.
    pub principal: String,
}

impl PeerMetadata {
    /// Decodes a header value; `None` if it is malformed or too long.
    pub fn decode(header: &[u8]) -> Option<Self> {
        if header.len() > MAX_HEADER {
            return None;
        }
        let bytes = LENIENT.decode(header).ok()?;
        Some(Self::from_struct(&Struct::decode(bytes.as_slice()).ok()?))
    }

    /// Reads Istio's keys of a node's or peer's metadata.
    pub fn from_struct(metadata: &Struct) -> Self {
        let field = |name: &str| text(&metadata.fields, name);
        let labels = match metadata.fields.get("LABELS").and_then(|v| v.kind.as_ref()) {
            Some(Kind::StructValue(labels)) => &labels.fields,
            _ => &HashMap::new(),
        };
        let first = |names: &[&str]| {
            names.iter().map(|name| text(labels, name)).find(|v| !v.is_empty()).unwrap_or_default()
        };
        let workload = field("WORKLOAD_NAME");
        let canonical =
            first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
        Self {
            instance: field("NAME"),
            workload_kind: owner_kind(&field("OWNER")),
            namespace: field("NAMESPACE"),
            canonical_service: if canonical.is_empty() { workload.clone() } else { canonical },
            canonical_revision: first(&[
                "service.istio.io/canonical-revision",
                "app.kubernetes.io/version",
                "version",
            ]),
            app: first(&["app", "app.kubernetes.io/name", "service.istio.io/canonical-name"]),
            version: first(&[
                "version",
                "app.kubernetes.io/version",
                "service.istio.io/canonical-revision",
            ]),
            cluster: field("CLUSTER_ID"),
            principal: field("IDENTITY"),
            workload,
        }
    }

    /// Reads the endpoint metadata `istio.workload`, which is
    /// `workload;namespace;canonical;revision;cluster`.
    pub fn from_endpoint(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(bounded);
        let workload = parts.next().filter(|name| !name.is_empty())?;
        let mut next = || parts.next().unwrap_or_default();
        let (namespace, canonical_service, canonical_revision, cluster) =
            (next(), next(), next(), next());
        Some(Self {
            app: canonical_service.clone(),
            version: canonical_revision.clone(),
            workload,
            namespace,
            canonical_service,
            canonical_revision,
            cluster,
            ..Self::default()
        })
    }

    /// The header value that tells peers who we are.
    pub fn encode(&self) -> String {
        let mut fields = BTreeMap::new();
        put(&mut fields, "CLUSTER_ID", &self.cluster);
        put(&mut fields, "IDENTITY", &self.principal);
        put(&mut fields, "NAME", &self.instance);
        put(&mut fields, "NAMESPACE", &self.namespace);
        put(&mut fields, "WORKLOAD_NAME", &self.workload);
        if !self.workload_kind.is_empty() {
            let Self { namespace, workload_kind: kind, workload, .. } = self;
            let owner =
                format!("kubernetes://apis/apps/v1/namespaces/{namespace}/{kind}s/{workload}");
            put(&mut fields, "OWNER", &owner);
        }
        let mut labels = BTreeMap::new();
        put(&mut labels, "app", &self.app);
        put(&mut labels, "service.istio.io/canonical-name", &self.canonical_service);
        put(&mut labels, "service.istio.io/canonical-revision", &self.canonical_revision);
        put(&mut labels, "version", &self.version);
        let labels = SortedStruct { fields: labels };
        let labels = SortedValue { structure: Some(labels), ..SortedValue::default() };
        fields.insert("LABELS".to_owned(), labels);
        STANDARD.encode(SortedStruct { fields }.encode_to_vec())
    }
}

/// `google.protobuf.Struct` with its keys in order, so that equal metadata
/// gives equal bytes and peers can cache by them.
#[derive(Clone, PartialEq, prost::Message)]
struct SortedStruct {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, SortedValue>,
}

/// The kinds of `google.protobuf.Value` that metadata uses.
#[derive(Clone, PartialEq, prost::Message)]
struct SortedValue {
    #[prost(string, optional, tag = "3")]
    string: Option<String>,
    #[prost(message, optional, tag = "5")]
    structure: Option<SortedStruct>,
}

fn put(fields: &mut BTreeMap<String, SortedValue>, name: &str, value: &str) {
    if !value.is_empty() {
        let string = Some(value.to_owned());
        fields.insert(name.to_owned(), SortedValue { string, ..SortedValue::default() });
    }
}

fn text(fields: &HashMap<String, Value>, name: &str) -> String {
    match fields.get(name).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => bounded(text),
        _ => String::new(),
    }
}

fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_LABEL)].to_owned()
}

/// `deployment` of `kubernetes://apis/apps/v1/namespaces/ns/deployments/name`.
fn owner_kind(owner: &str) -> String {
    let kind = owner.rsplit('/').nth(1).unwrap_or_default();
    kind.strip_suffix('s').unwrap_or(kind).to_owned()
}

/// Decoded peers by header value, bounded.
///
/// The key is the metadata itself, not the id beside it: a peer could claim
/// another's id and so put its own labels under that id.
#[derive(Debug, Default)]
pub struct PeerCache {
    peers: HashMap<Box<[u8]>, Option<Arc<PeerMetadata>>>,
}

impl PeerCache {
    /// The peer that `header` describes; allocates at first sight only.
    pub fn decode(&mut self, header: &[u8]) -> Option<Arc<PeerMetadata>> {
        if let Some(known) = self.peers.get(header) {
            return known.clone();
        }
        let peer = PeerMetadata::decode(header).map(Arc::new);
        if header.len() <= MAX_HEADER {
            if self.peers.len() >= MAX_CACHED {
                self.peers.clear();
            }
            self.peers.insert(header.into(), peer.clone());
        }
        peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reviews() -> PeerMetadata {
        PeerMetadata {
            instance: "reviews-v1-0".into(),
            workload: "reviews-v1".into(),
            workload_kind: "deployment".into(),
            namespace: "default".into(),
            canonical_service: "reviews".into(),
            canonical_revision: "v1".into(),
            app: "reviews".into(),
            version: "v1".into(),
            cluster: "Kubernetes".into(),
            principal: String::new(),
        }
    }

    #[test]
    fn metadata_survives_its_header() {
        let header = reviews().encode();
        assert_eq!(PeerMetadata::decode(header.as_bytes()), Some(reviews()));
        assert_eq!(header, reviews().encode(), "equal metadata gives equal bytes");
        let unpadded = header.trim_end_matches('=');
        assert_eq!(PeerMetadata::decode(unpadded.as_bytes()), Some(reviews()));
    }

    #[test]
    fn canonical_name_falls_back_to_labels_then_workload() {
        let bare = PeerMetadata { workload: "w".into(), ..PeerMetadata::default() };
        let read = PeerMetadata::decode(bare.encode().as_bytes()).expect("decodes");
        assert_eq!(read.canonical_service, "w");
        let app = PeerMetadata { workload: "w".into(), app: "a".into(), ..PeerMetadata::default() };
        let read = PeerMetadata::decode(app.encode().as_bytes()).expect("decodes");
        assert_eq!(read.canonical_service, "a");
    }

    #[test]
    fn endpoint_metadata_names_the_workload() {
        let peer = PeerMetadata::from_endpoint("reviews-v1;default;reviews;v1;Kubernetes");
        let peer = peer.expect("parses");
        assert_eq!((peer.workload.as_str(), peer.cluster.as_str()), ("reviews-v1", "Kubernetes"));
        assert_eq!(PeerMetadata::from_endpoint(""), None);
    }

    #[test]
    fn garbage_is_refused_and_remembered() {
        let mut cache = PeerCache::default();
        assert!(cache.decode(b"!!!").is_none());
        assert!(cache.decode(b"!!!").is_none());
        assert!(cache.decode(&vec![b'A'; MAX_HEADER + 1]).is_none());
        assert_eq!(cache.peers.len(), 1, "an oversized header is not kept");
        let header = reviews().encode();
        let (a, b) = (cache.decode(header.as_bytes()), cache.decode(header.as_bytes()));
        assert!(Arc::ptr_eq(&a.expect("decodes"), &b.expect("decodes")));
    }
}
