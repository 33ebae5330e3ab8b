//! Exchanges with the upstream resolvers.
//!
//! Each exchange has a socket and an ID of its own, so that a forged reply has
//! to guess both.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

use super::answer::Transport;

/// Time one upstream has to reply.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest UDP reply accepted.
const MAX_UDP_REPLY: usize = 4096;

/// The resolvers that know the rest of the world.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upstreams {
    pub(crate) servers: Vec<SocketAddr>,
    /// Mark of our packets, which interception lets pass.
    pub(crate) mark: Option<u32>,
}

impl Upstreams {
    /// Resolvers of `spec` (`IP` or `IP:PORT`, separated by commas or blanks);
    /// without one, those of `/etc/resolv.conf`.
    pub(crate) fn parse(spec: &str, resolv_conf: &str, mark: Option<u32>) -> Self {
        let mut servers: Vec<SocketAddr> = spec
            .split([',', ' '])
            .filter(|server| !server.is_empty())
            .filter_map(parse_server)
            .collect();
        if servers.is_empty() {
            servers = resolv_conf
                .lines()
                .filter_map(|line| line.trim().strip_prefix("nameserver"))
                .filter_map(|server| parse_server(server.trim()))
                .collect();
        }
        Self { servers, mark }
    }

    /// Sends the query to the upstreams in random order until one replies.
    pub(super) async fn exchange(&self, query: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no upstream resolver");
        let mut order: Vec<_> = self.servers.iter().collect();
        fastrand::shuffle(&mut order);
        for server in order {
            let exchange = async {
                match transport {
                    Transport::Udp => self.udp(*server, query).await,
                    Transport::Tcp => self.tcp(*server, query).await,
                }
            };
            match timeout(UPSTREAM_TIMEOUT, exchange).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    async fn udp(&self, server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let socket = Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        self.set_mark(&socket)?;
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        socket.bind(&any.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        socket.connect(server).await?;
        let (query, id) = with_random_id(query)?;
        socket.send(&query).await?;
        let mut reply = vec![0; MAX_UDP_REPLY];
        loop {
            let len = socket.recv(&mut reply).await?;
            // A reply to someone else's ID is forged or late: wait on.
            if len >= 12 && reply[..2] == query[..2] && reply[2] & 0x80 != 0 {
                reply.truncate(len);
                reply[..2].copy_from_slice(&id);
                return Ok(reply);
            }
        }
    }

    async fn tcp(&self, server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let socket = match server {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        self.set_mark(&socket)?;
        let mut stream = socket.connect(server).await?;
        let (query, id) = with_random_id(query)?;
        let len = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        stream.write_all(&len.to_be_bytes()).await?;
        stream.write_all(&query).await?;
        let len = stream.read_u16().await?;
        let mut reply = vec![0; usize::from(len)];
        stream.read_exact(&mut reply).await?;
        if reply.len() < 12 || reply[..2] != query[..2] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        reply[..2].copy_from_slice(&id);
        Ok(reply)
    }

    fn set_mark(&self, socket: &impl std::os::fd::AsFd) -> io::Result<()> {
        self.mark.map_or(Ok(()), |mark| amime_net::socket::set_mark(socket, mark))
    }
}

/// The query under a random ID, and its own.
fn with_random_id(query: &[u8]) -> io::Result<(Vec<u8>, [u8; 2])> {
    let [a, b, ..] = query else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut sent = query.to_vec();
    sent[..2].copy_from_slice(&fastrand::u16(..).to_be_bytes());
    Ok((sent, [*a, *b]))
}

fn parse_server(text: &str) -> Option<SocketAddr> {
    let address = text.parse::<SocketAddr>().ok();
    address.or_else(|| text.parse().ok().map(|ip: std::net::IpAddr| SocketAddr::new(ip, 53)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_come_from_the_setting_before_resolv_conf() {
        let conf = "search a.b\nnameserver 10.96.0.10\nnameserver fd00::a\n";
        let list = |spec| {
            let servers = Upstreams::parse(spec, conf, None).servers;
            servers.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(list("1.1.1.1:5353,2.2.2.2"), ["1.1.1.1:5353", "2.2.2.2:53"]);
        assert_eq!(list(""), ["10.96.0.10:53", "[fd00::a]:53"]);
    }
}
