//! The resource types that travel over ADS.
//!
//! A closed set: a type that is not in it is answered with nothing.

use std::fmt;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use prost::Name;

use crate::istio::nds::NameTable;

/// One kind of xDS resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TypeUrl {
    /// `envoy.config.cluster.v3.Cluster`
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`
    Endpoint,
    /// `envoy.config.listener.v3.Listener`
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration`
    Route,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret`
    Secret,
    /// `envoy.config.core.v3.TypedExtensionConfig`
    ExtensionConfig,
    /// `istio.networking.nds.v1.NameTable`, the agent's DNS table
    NameTable,
}

/// Order of types in one push: what is referred to goes before what refers.
///
/// A listener names extension configs and secrets, so these come first too.
pub const PUSH_ORDER: [TypeUrl; 7] = [
    TypeUrl::Cluster,
    TypeUrl::Endpoint,
    TypeUrl::ExtensionConfig,
    TypeUrl::Listener,
    TypeUrl::Route,
    TypeUrl::Secret,
    TypeUrl::NameTable,
];

impl TypeUrl {
    /// The URL on the wire, `type.googleapis.com/…`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::ExtensionConfig => {
                "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
            }
            Self::NameTable => "type.googleapis.com/istio.networking.nds.v1.NameTable",
        }
    }

    /// Short name as operators write it: `CDS`, `EDS`, `LDS`, …
    pub const fn short(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::Endpoint => "EDS",
            Self::Listener => "LDS",
            Self::Route => "RDS",
            Self::Secret => "SDS",
            Self::ExtensionConfig => "ECDS",
            Self::NameTable => "NDS",
        }
    }

    /// The type behind a URL from the wire; `None` for a type we do not serve.
    pub fn parse(url: &str) -> Option<Self> {
        PUSH_ORDER.into_iter().find(|t| t.as_str() == url)
    }

    /// Whether an empty list of names means "all of them".
    ///
    /// LDS, CDS and NDS are asked for as a whole; the others always by name.
    pub const fn is_wildcard_by_default(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener | Self::NameTable)
    }

    /// Whether a state-of-the-world response of this type replaces everything
    /// that the client has.
    pub const fn is_full_set(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener | Self::NameTable)
    }

    /// Position in [`PUSH_ORDER`].
    pub fn push_rank(self) -> usize {
        PUSH_ORDER.iter().position(|t| *t == self).unwrap_or(PUSH_ORDER.len())
    }
}

impl fmt::Display for TypeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// A message that is an xDS resource of its own.
pub trait XdsMessage: prost::Message + Name + Default {
    /// The resource type that carries this message.
    const TYPE: TypeUrl;
}

macro_rules! xds_message {
    ($($message:ty => $variant:ident),* $(,)?) => {
        $(impl XdsMessage for $message { const TYPE: TypeUrl = TypeUrl::$variant; })*
    };
}

xds_message! {
    Cluster => Cluster,
    ClusterLoadAssignment => Endpoint,
    Listener => Listener,
    RouteConfiguration => Route,
    Secret => Secret,
    TypedExtensionConfig => ExtensionConfig,
    NameTable => NameTable,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_those_of_the_messages() {
        fn check<M: XdsMessage>() {
            assert_eq!(M::TYPE.as_str(), M::type_url());
            assert_eq!(TypeUrl::parse(&M::type_url()), Some(M::TYPE));
        }
        check::<Cluster>();
        check::<ClusterLoadAssignment>();
        check::<Listener>();
        check::<RouteConfiguration>();
        check::<Secret>();
        check::<TypedExtensionConfig>();
        check::<NameTable>();
        assert_eq!(TypeUrl::parse("type.googleapis.com/nothing"), None);
    }
}
