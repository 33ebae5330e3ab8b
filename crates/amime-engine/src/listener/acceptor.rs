//! Sockets that accept: TCP, and Unix stream sockets, whose connections are
//! given the type of TCP's.
//!
//! A connected stream is read, written and closed the same way whatever its
//! family, so the data path has one type for all. What only TCP has (options,
//! addresses) answers with an error on others, which is no failure there.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use amime_core::unix;
use amime_upstream::connect::as_tcp;
use tokio::net::{TcpListener, TcpStream, UnixListener};

/// A listening socket.
pub(crate) enum Acceptor {
    Tcp(TcpListener),
    /// With the stand-in of its path.
    Unix(UnixListener, SocketAddr),
}

/// What accepting tells of a connection's addresses.
pub(super) enum Ends {
    /// The client's; ours has to be asked for.
    Tcp(SocketAddr),
    /// The stand-in of our path.
    Unix(SocketAddr),
}

impl Acceptor {
    /// Takes over a socket that listens at `address`.
    pub(crate) fn new(socket: std::net::TcpListener, address: SocketAddr) -> io::Result<Self> {
        if unix::path_of(address).is_some() {
            let socket = std::os::unix::net::UnixListener::from(OwnedFd::from(socket));
            return Ok(Self::Unix(UnixListener::from_std(socket)?, address));
        }
        TcpListener::from_std(socket).map(Self::Tcp)
    }

    pub(super) async fn accept(&self) -> io::Result<(TcpStream, Ends)> {
        match self {
            Self::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                Ok((stream, Ends::Tcp(peer)))
            }
            Self::Unix(socket, address) => {
                let (stream, _) = socket.accept().await?;
                Ok((as_tcp(stream)?, Ends::Unix(*address)))
            }
        }
    }
}

impl Ends {
    /// Our address and the client's.
    pub(super) fn known(self, stream: &TcpStream) -> io::Result<(SocketAddr, SocketAddr)> {
        match self {
            Self::Tcp(peer) => Ok((unmapped(stream.local_addr()?), unmapped(peer))),
            // Clients have no address; they go by that which they came to, as
            // in Envoy.
            Self::Unix(own) => Ok((own, own)),
        }
    }
}

/// IPv4 clients of an IPv6 socket, as the IPv4 addresses they have.
pub(super) fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
