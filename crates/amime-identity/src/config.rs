//! rustls settings of both ends of a TLS connection.
//!
//! Sessions of a mutual-TLS hop are never resumed: a resumed session skips the
//! peer's certificate, so one that has expired or whose root was withdrawn
//! would go on being let in. Pools keep connections, so handshakes are rare.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};

use crate::live::{LiveBundle, LiveCert};
use crate::peer::PeerIdentities;
use crate::provider::provider;
use crate::verify::{ClientVerifier, PeerChecks, ServerVerifier};

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
    /// Suites and groups. Default: [`provider`].
    pub provider: Arc<CryptoProvider>,
    /// A server takes the client's preference of suites. Default: its own.
    pub client_order: bool,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            alpn: Vec::new(),
            min_version: TlsVersion::V1_2,
            max_version: TlsVersion::V1_3,
            clock: Arc::new(DefaultTimeProvider),
            provider: provider(),
            client_order: false,
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
}

/// Which sessions may be resumed without a full handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionResumption {
    /// By tickets that the client keeps; their key is rustls's, and rotated.
    pub tickets: bool,
    /// By identifier, from the server's memory.
    pub stored: bool,
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

/// Settings of a client that presents `cert` if asked, checks the server by
/// `checks`, and remembers the sessions of this many servers (0: none).
pub fn upstream_config(
    cert: Option<Arc<LiveCert>>,
    checks: PeerChecks,
    sessions: usize,
    options: &TlsOptions,
) -> Result<Arc<ClientConfig>, ConfigError> {
    let builder =
        ClientConfig::builder_with_details(options.provider.clone(), options.clock.clone())
            .with_protocol_versions(options.versions()?)
            .map_err(|source| ConfigError::Refused { source })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(checks)));
    let mut config = match cert {
        Some(cert) => builder.with_client_cert_resolver(cert),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols.clone_from(&options.alpn);
    config.resumption = match sessions {
        0 => Resumption::disabled(),
        sessions => Resumption::in_memory_sessions(sessions),
    };
    Ok(Arc::new(config))
}

/// Settings of a server that presents one of `certs`. `clients` says how their
/// certificates are checked and whether they must have one; `None` asks for none.
pub fn downstream_config(
    certs: Arc<dyn ResolvesServerCert>,
    clients: Option<(PeerChecks, bool)>,
    resumption: SessionResumption,
    options: &TlsOptions,
) -> Result<Arc<ServerConfig>, ConfigError> {
    let builder =
        ServerConfig::builder_with_details(options.provider.clone(), options.clock.clone())
            .with_protocol_versions(options.versions()?)
            .map_err(|source| ConfigError::Refused { source })?;
    let builder = match clients {
        Some((checks, mandatory)) => {
            builder.with_client_cert_verifier(Arc::new(ClientVerifier::new(checks, mandatory)))
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certs);
    config.alpn_protocols.clone_from(&options.alpn);
    config.ignore_client_order = !options.client_order;
    if !resumption.stored {
        config.session_storage = Arc::new(NoServerSessionStorage {});
    }
    if resumption.tickets {
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()
            .map_err(|source| ConfigError::Refused { source })?;
    } else if !resumption.stored {
        config.send_tls13_tickets = 0;
    }
    Ok(Arc::new(config))
}

/// Settings of a client that presents `cert` and accepts a server whose chain
/// ends in `bundle` and whose names are `expected`; its host name is not looked at.
pub fn client_config(
    cert: Arc<LiveCert>,
    bundle: Arc<LiveBundle>,
    expected: PeerIdentities,
    options: &TlsOptions,
) -> Result<Arc<ClientConfig>, ConfigError> {
    let checks = PeerChecks { roots: Some(bundle), identities: expected, ..PeerChecks::default() };
    upstream_config(Some(cert), checks, 0, options)
}

/// Settings of a server that presents `cert` and checks clients by `auth`
/// against `bundle`.
pub fn server_config(
    cert: Arc<LiveCert>,
    bundle: Arc<LiveBundle>,
    auth: ClientAuth,
    options: &TlsOptions,
) -> Result<Arc<ServerConfig>, ConfigError> {
    let (identities, mandatory) = match auth {
        ClientAuth::Require(accepted) => (accepted, true),
        ClientAuth::Optional(accepted) => (accepted, false),
        ClientAuth::None => {
            return downstream_config(cert, None, SessionResumption::default(), options);
        }
    };
    let checks = PeerChecks { roots: Some(bundle), identities, ..PeerChecks::default() };
    downstream_config(cert, Some((checks, mandatory)), SessionResumption::default(), options)
}
