//! What is known of a downstream connection.

use std::net::SocketAddr;
use std::time::SystemTime;

use amime_telemetry::DownstreamRecord;

use crate::tls_facts::TlsFacts;

/// Facts of one accepted connection, fixed once its filter chain is chosen.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Number within the process.
    pub id: u64,
    pub accepted: SystemTime,
    /// Address the client dialed, after original-destination recovery.
    pub local: SocketAddr,
    /// True if `local` was recovered: it is not the listener's own.
    pub redirected: bool,
    /// The client, after the PROXY protocol.
    pub remote: SocketAddr,
    /// The peer of the socket.
    pub direct_remote: SocketAddr,
    /// The addresses are those of a PROXY header.
    pub proxied: bool,
    /// Server name that the client asked for.
    pub sni: Option<Box<str>>,
    /// Protocols that the client offers by ALPN, or that its first bytes show.
    pub application: Vec<Vec<u8>>,
    pub tls: Option<TlsFacts>,
}

impl Connection {
    /// Source and destination as the client sees them.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.remote, self.local)
    }

    pub fn record(&self) -> DownstreamRecord<'_> {
        DownstreamRecord {
            connection_id: self.id,
            local_address: Some(self.local),
            remote_address: Some(self.remote),
            direct_remote_address: Some(self.direct_remote),
            sni: self.sni.as_deref(),
            tls: self.tls.as_ref().map(TlsFacts::record),
            transport_failure: None,
            peer: None,
        }
    }
}
