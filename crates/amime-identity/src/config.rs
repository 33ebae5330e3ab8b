//! rustls settings of a mutual-TLS hop.
//!
//! Sessions are never resumed on such a hop: a resumed session skips the
//! peer's certificate, so one that has expired or whose root was withdrawn
//! would go on being let in. Pools keep connections, so handshakes are rare.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ConfigBuilder, ServerConfig, SupportedProtocolVersion, WantsVersions};

use crate::live::{LiveBundle, LiveCert};
use crate::peer::PeerIdentities;
use crate::provider::provider;
use crate::verify::{ClientVerifier, NameCheck, ServerVerifier};

static ONLY_1_2: [&SupportedProtocolVersion; 1] = [&TLS12];
static ONLY_1_3: [&SupportedProtocolVersion; 1] = [&TLS13];
static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The bounds of the TLS version exclude each other.
    #[error("minimum TLS version {min:?} is above the maximum {max:?}")]
    Versions {
        /// Lower bound asked for.
        min: TlsVersion,
        /// Upper bound asked for.
        max: TlsVersion,
    },
    /// rustls refuses the combination.
    #[error("the TLS settings are refused")]
    Refused {
        /// Its reason.
        #[source]
        source: rustls::Error,
    },
}

/// A TLS protocol version; older ones are not spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2
    V1_2,
    /// TLS 1.3
    V1_3,
}

/// What both ends of a connection may vary.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// Protocols to offer or accept, in order of preference. Default: none,
    /// which leaves ALPN out.
    pub alpn: Vec<Vec<u8>>,
    /// Default: TLS 1.2.
    pub min_version: TlsVersion,
    /// Default: TLS 1.3.
    pub max_version: TlsVersion,
    /// Tells the time for checks of validity. Default: the system's clock.
    pub clock: Arc<dyn TimeProvider>,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            alpn: Vec::new(),
            min_version: TlsVersion::V1_2,
            max_version: TlsVersion::V1_3,
            clock: Arc::new(DefaultTimeProvider),
        }
    }
}

impl TlsOptions {
    /// The defaults with these protocols.
    pub fn with_alpn<P: AsRef<[u8]>>(alpn: impl IntoIterator<Item = P>) -> Self {
        let alpn = alpn.into_iter().map(|protocol| protocol.as_ref().to_vec()).collect();
        Self { alpn, ..Self::default() }
    }

    fn versions(&self) -> Result<&'static [&'static SupportedProtocolVersion], ConfigError> {
        match (self.min_version, self.max_version) {
            (TlsVersion::V1_2, TlsVersion::V1_2) => Ok(&ONLY_1_2),
            (TlsVersion::V1_2, TlsVersion::V1_3) => Ok(&BOTH),
            (TlsVersion::V1_3, TlsVersion::V1_3) => Ok(&ONLY_1_3),
            (min, max) => Err(ConfigError::Versions { min, max }),
        }
    }

    pub(crate) fn client_builder(
        &self,
    ) -> Result<ConfigBuilder<ClientConfig, rustls::WantsVerifier>, ConfigError> {
        let builder: ConfigBuilder<ClientConfig, WantsVersions> =
            ClientConfig::builder_with_details(provider(), self.clock.clone());
        builder
            .with_protocol_versions(self.versions()?)
            .map_err(|source| ConfigError::Refused { source })
    }

    pub(crate) fn server_builder(
        &self,
    ) -> Result<ConfigBuilder<ServerConfig, rustls::WantsVerifier>, ConfigError> {
        let builder: ConfigBuilder<ServerConfig, WantsVersions> =
            ServerConfig::builder_with_details(provider(), self.clock.clone());
        builder
            .with_protocol_versions(self.versions()?)
            .map_err(|source| ConfigError::Refused { source })
    }
}

/// What a server asks of its clients.
#[derive(Clone, Debug)]
pub enum ClientAuth {
    /// A certificate of one of these peers.
    Require(PeerIdentities),
    /// None, or one of these peers; a bad certificate is refused all the same.
    Optional(PeerIdentities),
    /// Nothing.
    None,
}

/// Settings of a client that presents `cert` and accepts a server whose chain
/// ends in `bundle` and whose names are `expected`; its host name is not looked at.
pub fn client_config(
    cert: Arc<LiveCert>,
    bundle: Arc<LiveBundle>,
    expected: PeerIdentities,
    options: &TlsOptions,
) -> Result<Arc<ClientConfig>, ConfigError> {
    let verifier = ServerVerifier::new(bundle, NameCheck::Identities(expected));
    let mut config = options
        .client_builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(cert);
    config.alpn_protocols.clone_from(&options.alpn);
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Settings of a server that presents `cert` and checks clients by `auth`
/// against `bundle`.
pub fn server_config(
    cert: Arc<LiveCert>,
    bundle: Arc<LiveBundle>,
    auth: ClientAuth,
    options: &TlsOptions,
) -> Result<Arc<ServerConfig>, ConfigError> {
    let builder = options.server_builder()?;
    let builder = match auth {
        ClientAuth::Require(accepted) => {
            builder.with_client_cert_verifier(Arc::new(ClientVerifier::new(bundle, accepted, true)))
        }
        ClientAuth::Optional(accepted) => builder
            .with_client_cert_verifier(Arc::new(ClientVerifier::new(bundle, accepted, false))),
        ClientAuth::None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(cert);
    config.alpn_protocols.clone_from(&options.alpn);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
