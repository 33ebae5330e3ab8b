//! One encoded xDS resource with the version that its content gives it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::google::protobuf::Any;
use prost::DecodeError;

use crate::canonical::canonical;
use crate::{TypeUrl, XdsMessage};

/// A resource as it travels: encoded once, cheap to clone and to share.
#[derive(Clone, PartialEq, Eq)]
pub struct Resource {
    /// Kind of the message in `body`.
    pub type_url: TypeUrl,
    /// Name under which clients subscribe to it.
    pub name: String,
    /// Hash of the content: equal content has an equal version, also after a
    /// restart of the control plane and in another replica of it.
    pub version: Arc<str>,
    /// The encoded message (the value of the `Any`, not the `Any`).
    pub body: Bytes,
}

impl Resource {
    /// Encodes `message` under `name`.
    pub fn encode<M: XdsMessage>(name: impl Into<String>, message: &M) -> Self {
        let body = canonical(&M::full_name(), message.encode_to_vec());
        Self::from_body(M::TYPE, name, body.into())
    }

    /// Wraps an already encoded message; the version is that of its content.
    pub fn from_body(type_url: TypeUrl, name: impl Into<String>, body: Bytes) -> Self {
        let version = format!("{:016x}", xxhash_rust::xxh64::xxh64(&body, 0));
        Self { type_url, name: name.into(), version: version.into(), body }
    }

    /// Decodes the body as `M`.
    ///
    /// # Errors
    /// When the body is not a valid `M`; it may come from a peer.
    pub fn decode<M: XdsMessage>(&self) -> Result<M, DecodeError> {
        M::decode(self.body.clone())
    }

    /// The body in the envelope that a discovery response carries.
    pub fn to_any(&self) -> Any {
        Any { type_url: self.type_url.as_str().to_owned(), value: self.body.to_vec() }
    }
}

// The body is bytes that nobody can read; its length is what helps.
impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource")
            .field("type", &self.type_url.short())
            .field("name", &self.name)
            .field("version", &self.version)
            .field("bytes", &self.body.len())
            .finish()
    }
}
