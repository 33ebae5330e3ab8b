//! rustls settings of TLS at the mesh's edge: gateways and `SIMPLE` or
//! `MUTUAL` destinations, where names are host names and not identities.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;

use crate::config::{
    ConfigError, SessionResumption, TlsOptions, downstream_config, upstream_config,
};
use crate::live::{LiveBundle, LiveCert};
use crate::peer::PeerIdentities;
use crate::verify::{PeerChecks, ServerNameCheck};

/// How a plain TLS client checks the server.
#[derive(Clone, Debug)]
pub enum PlainServerCheck {
    /// Chain, and the handshake's server name must be in the certificate.
    ServerName(Arc<LiveBundle>),
    /// Chain, and these names; [`PeerIdentities::any`] checks the chain alone.
    Names(Arc<LiveBundle>, PeerIdentities),
    /// Nothing: `insecureSkipVerify`.
    Nothing,
}

/// Servers whose sessions a client remembers.
const SESSIONS: usize = 256;

/// Settings of a client towards a server outside of the mesh; `cert` is
/// presented if the server asks (`MUTUAL`).
///
/// Sessions are resumed, within this configuration only.
pub fn plain_client_config(
    cert: Option<Arc<LiveCert>>,
    check: PlainServerCheck,
    options: &TlsOptions,
) -> Result<Arc<ClientConfig>, ConfigError> {
    let checks = match check {
        PlainServerCheck::ServerName(bundle) => PeerChecks {
            roots: Some(bundle),
            server_name: ServerNameCheck::Also,
            ..PeerChecks::default()
        },
        PlainServerCheck::Names(bundle, identities) => {
            PeerChecks { roots: Some(bundle), identities, ..PeerChecks::default() }
        }
        PlainServerCheck::Nothing => PeerChecks::default(),
    };
    upstream_config(cert, checks, SESSIONS, options)
}

/// Settings of a server whose clients need no certificate; sessions are
/// resumed by tickets whose key rustls rotates.
///
/// A gateway in mode `MUTUAL` uses [`crate::server_config`].
pub fn plain_server_config(
    cert: Arc<LiveCert>,
    options: &TlsOptions,
) -> Result<Arc<ServerConfig>, ConfigError> {
    downstream_config(cert, None, SessionResumption { tickets: true, stored: true }, options)
}

/// The server name to start a handshake with. Nothing, and a text that is
/// neither a DNS name nor an address, give a name that sends no SNI.
pub fn server_name(sni: Option<&str>) -> ServerName<'static> {
    sni.and_then(|sni| ServerName::try_from(sni.to_owned()).ok())
        .unwrap_or_else(|| ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into()))
}
