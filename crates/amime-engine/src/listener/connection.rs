//! What is known of a downstream connection.

use std::net::SocketAddr;
use std::time::SystemTime;

use amime_telemetry::DownstreamRecord;

use crate::tls::TlsFacts;

/// Facts of one accepted connection, fixed once its filter chain is chosen.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Number within the process.
    pub(crate) id: u64,
    pub(crate) accepted: SystemTime,
    /// Address the client dialed, after original-destination recovery.
    pub(crate) local: SocketAddr,
    /// True if `local` was recovered: it is not the listener's own.
    pub(crate) redirected: bool,
    /// The client, after the PROXY protocol.
    pub(crate) remote: SocketAddr,
    /// The peer of the socket.
    pub(crate) direct_remote: SocketAddr,
    /// Server name that the client asked for.
    pub(crate) sni: Option<Box<str>>,
    /// Protocols that the client offers by ALPN, or that its first bytes show.
    pub(crate) application: Vec<Vec<u8>>,
    pub(crate) tls: Option<TlsFacts>,
}

impl Connection {
    pub(crate) fn record(&self) -> DownstreamRecord<'_> {
        DownstreamRecord {
            connection_id: self.id,
            local_address: Some(self.local),
            remote_address: Some(self.remote),
            direct_remote_address: Some(self.direct_remote),
            sni: self.sni.as_deref(),
            tls: self.tls.as_ref().map(TlsFacts::record),
            peer: None,
        }
    }
}
