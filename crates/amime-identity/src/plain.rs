//! rustls settings of TLS at the mesh's edge: gateways and `SIMPLE` or
//! `MUTUAL` destinations, where names are host names and not identities.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;

use crate::config::{ConfigError, TlsOptions};
use crate::live::{LiveBundle, LiveCert};
use crate::peer::PeerIdentities;
use crate::verify::{NameCheck, ServerVerifier, UncheckedServer};

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

/// Settings of a client towards a server outside of the mesh; `cert` is
/// presented if the server asks (`MUTUAL`).
///
/// Sessions are resumed, within this configuration only.
pub fn plain_client_config(
    cert: Option<Arc<LiveCert>>,
    check: PlainServerCheck,
    options: &TlsOptions,
) -> Result<Arc<ClientConfig>, ConfigError> {
    let verifier: Arc<dyn ServerCertVerifier> = match check {
        PlainServerCheck::ServerName(bundle) => {
            Arc::new(ServerVerifier::new(bundle, NameCheck::ServerName))
        }
        PlainServerCheck::Names(bundle, names) => {
            Arc::new(ServerVerifier::new(bundle, NameCheck::Identities(names)))
        }
        PlainServerCheck::Nothing => Arc::new(UncheckedServer::new()),
    };
    let builder = options.client_builder()?.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match cert {
        Some(cert) => builder.with_client_cert_resolver(cert),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols.clone_from(&options.alpn);
    Ok(Arc::new(config))
}

/// Settings of a server whose clients need no certificate; sessions are
/// resumed by tickets whose key rustls rotates.
///
/// A gateway in mode `MUTUAL` uses [`crate::server_config`].
pub fn plain_server_config(
    cert: Arc<LiveCert>,
    options: &TlsOptions,
) -> Result<Arc<ServerConfig>, ConfigError> {
    let mut config = options.server_builder()?.with_no_client_auth().with_cert_resolver(cert);
    config.alpn_protocols.clone_from(&options.alpn);
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()
        .map_err(|source| ConfigError::Refused { source })?;
    Ok(Arc::new(config))
}

/// The server name to start a handshake with. Nothing, and a text that is
/// neither a DNS name nor an address, give a name that sends no SNI.
pub fn server_name(sni: Option<&str>) -> ServerName<'static> {
    sni.and_then(|sni| ServerName::try_from(sni.to_owned()).ok())
        .unwrap_or_else(|| ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into()))
}
