//! Opening connections to endpoints: socket options, TCP, TLS.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use amime_core::unix;
use amime_identity::server_name;
use amime_net::socket::unix_name;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::proxy_header::{self, Ends};
use crate::tls::{Counted, MaybeTls, NOT_READY, TlsFailure};
use amime_config::cluster::{ClusterConfig, HappyEyeballs, Keepalive};
use amime_config::tls::{Alpn, UpstreamTls, UpstreamTransport};
use amime_rules::tls_facts::TlsFacts;

/// A connected upstream.
pub type UpstreamIo = MaybeTls<TlsStream<TcpStream>>;

/// Facts of an upstream connection.
#[derive(Debug)]
pub struct ConnectionFacts {
    /// Our end of it.
    pub local: Option<SocketAddr>,
    /// Of the handshake, if there was one.
    pub tls: Option<TlsFacts>,
}

/// Why a connection could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// Refused, unreachable and the like, in the system's words.
    Failed(Rc<str>),
    /// The same, before anything was sent, with the address.
    AtOnce(Rc<str>),
    /// The handshake failed, in [`TlsFailure`]'s words.
    Tls(Rc<TlsFailure>),
    /// Not within the cluster's `connect_timeout`.
    Timeout,
    /// A circuit breaker is open.
    Overflow,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(reason) => write!(f, "delayed connect error: {reason}"),
            Self::AtOnce(reason) => write!(f, "immediate connect error: {reason}"),
            Self::Tls(failure) => f.write_str(&failure.reason),
            Self::Timeout => f.write_str("connection timeout"),
            Self::Overflow => f.write_str("overflow"),
        }
    }
}

/// What to connect to and how.
pub struct Target<'a> {
    /// Where to.
    pub address: SocketAddr,
    /// Further addresses of the same endpoint.
    pub more: &'a [SocketAddr],
    /// Name of the endpoint, for contexts that ask for it as server name.
    pub hostname: &'a str,
    /// What the stream is wrapped in.
    pub transport: &'a UpstreamTransport,
    /// Protocols to offer.
    pub alpn: Alpn,
    /// Server name to ask for instead of the context's.
    pub sni: Option<&'a str>,
    /// Whom a PROXY header names.
    pub client: Option<Ends>,
    /// `SO_MARK` of the socket.
    pub mark: Option<u32>,
}

/// Connects within the cluster's timeout, handshake included.
///
/// Errors: every way in which a connection does not come about.
pub async fn connect(
    cluster: &ClusterConfig,
    target: Target<'_>,
) -> Result<(UpstreamIo, ConnectionFacts), ConnectError> {
    match tokio::time::timeout(cluster.connect_timeout, open(cluster, target)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout),
    }
}

async fn open(
    cluster: &ClusterConfig,
    target: Target<'_>,
) -> Result<(UpstreamIo, ConnectionFacts), ConnectError> {
    let failed = |error: io::Error| ConnectError::Failed(os_reason(&error).into());
    let stream = match target.more {
        [] => match unix::path_of(target.address) {
            None => {
                let socket = socket(cluster, &target, target.address).map_err(failed)?;
                socket.connect(target.address).await
            }
            Some(path) => match dial_unix(&path).await {
                Ok(stream) => Ok(stream),
                // Nothing has to come back for it to fail.
                Err(error) => {
                    let reason = format!("{}|remote address:{path}", os_reason(&error));
                    return Err(ConnectError::AtOnce(reason.into()));
                }
            },
        },
        _ => race(cluster, &target).await,
    };
    let mut stream = stream.map_err(failed)?;
    // Requests are written whole; waiting for more would only add delay.
    let _ = stream.set_nodelay(true);
    let local = stream.local_addr().ok();
    if let Some(version) = target.transport.proxy_header() {
        let own = (local.unwrap_or(target.address), target.address);
        let header = proxy_header::encode(version, target.client, own);
        stream.write_all(&header).await.map_err(failed)?;
    }
    match target.transport.tls() {
        None => Ok((UpstreamIo::Tcp(stream), ConnectionFacts { local, tls: None })),
        Some(tls) => {
            let (stream, facts) = handshake(tls, stream, &target).await?;
            let facts = ConnectionFacts { local, tls: Some(facts) };
            Ok((UpstreamIo::Tls(Box::new(stream)), facts))
        }
    }
}

/// Delay before the next address is tried beside those under way.
const NEXT_ADDRESS: Duration = Duration::from_millis(300);

/// Tries several addresses, families in turn; the first connection wins.
async fn race(cluster: &ClusterConfig, target: &Target<'_>) -> io::Result<TcpStream> {
    let mut waiting = in_turn(target.address, target.more, cluster.eyeballs).into_iter();
    let mut attempts = tokio::task::JoinSet::new();
    let mut last = io::Error::other("no address");
    loop {
        let next = waiting.next().map(|address| (address, unix::path_of(address)));
        match next {
            Some((_, Some(path))) => {
                attempts.spawn_local(async move { dial_unix(&path).await });
            }
            Some((address, None)) => match socket(cluster, target, address) {
                Ok(socket) => {
                    attempts.spawn_local(socket.connect(address));
                }
                Err(error) => {
                    last = error;
                    continue;
                }
            },
            None if attempts.is_empty() => return Err(last),
            None => {}
        }
        tokio::select! {
            Some(done) = attempts.join_next() => match done {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(error) => last = io::Error::other(error),
            },
            () = tokio::time::sleep(NEXT_ADDRESS), if waiting.len() > 0 => {}
        }
    }
}

/// The addresses, some of the first family and one of the other in turn.
fn in_turn(address: SocketAddr, more: &[SocketAddr], order: HappyEyeballs) -> Vec<SocketAddr> {
    let all = || std::iter::once(&address).chain(more).copied();
    let first_is_v4 = order.first_is_v4.unwrap_or(address.is_ipv4());
    let mut ones = all().filter(|address| address.is_ipv4() == first_is_v4);
    let mut others = all().filter(|address| address.is_ipv4() != first_is_v4);
    let mut turn = Vec::with_capacity(more.len() + 1);
    loop {
        let before = turn.len();
        turn.extend(ones.by_ref().take(order.count.max(1) as usize));
        turn.extend(others.next());
        if turn.len() == before {
            return turn;
        }
    }
}

async fn handshake(
    tls: &Arc<UpstreamTls>,
    stream: TcpStream,
    target: &Target<'_>,
) -> Result<(TlsStream<TcpStream>, TlsFacts), ConnectError> {
    let sni = if target.sni.is_some() {
        target.sni
    } else if tls.host_sni {
        Some(target.hostname)
    } else {
        Some(tls.sni.as_str()).filter(|sni| !sni.is_empty())
    };
    if !tls.ready() {
        let failure = TlsFailure { reason: NOT_READY.to_owned(), counted: Counted::Nowhere };
        return Err(ConnectError::Tls(Rc::new(failure)));
    }
    let connector = TlsConnector::from(tls.config(target.alpn));
    let stream = connector
        .connect(server_name(sni), stream)
        .await
        .map_err(|error| ConnectError::Tls(Rc::new(TlsFailure::of(&error))))?;
    let facts = TlsFacts::of(stream.get_ref().1, tls.local(), false);
    Ok((stream, facts))
}

/// Connects to a Unix socket.
async fn dial_unix(path: &str) -> io::Result<TcpStream> {
    as_tcp(UnixStream::connect(Path::new(&unix_name(path))).await?)
}

/// A Unix stream under the type of TCP's: a connected stream is read, written
/// and closed the same way whatever its family. What only TCP has, options and
/// addresses, answers with an error.
pub fn as_tcp(stream: UnixStream) -> io::Result<TcpStream> {
    TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(stream.into_std()?)))
}

fn socket(
    cluster: &ClusterConfig,
    target: &Target<'_>,
    address: SocketAddr,
) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(mark) = target.mark {
        // Without the privilege there is no interception to escape from.
        let _ = amime_net::socket::set_mark(&socket, mark);
    }
    if let Some(keepalive) = &cluster.keepalive {
        SockRef::from(&socket).set_tcp_keepalive(&keepalive_options(keepalive))?;
    }
    if let Some(bind) = cluster.bind
        && bind.is_ipv4() == address.is_ipv4()
    {
        socket.set_reuseaddr(true)?;
        socket.bind(bind)?;
    }
    Ok(socket)
}

/// Socket options for TCP keep-alive.
pub fn keepalive_options(value: &Keepalive) -> TcpKeepalive {
    let mut options = TcpKeepalive::new()
        .with_time(value.time.unwrap_or(Duration::from_secs(7200)))
        .with_interval(value.interval.unwrap_or(Duration::from_secs(75)));
    if let Some(probes) = value.probes {
        options = options.with_retries(probes);
    }
    options
}

/// The system's message without Rust's `(os error N)`.
fn os_reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(order: HappyEyeballs, want: &[&str]) {
        let address = |text: &&str| SocketAddr::new(text.parse().expect("an address"), 80);
        let all: Vec<_> =
            ["::1", "10.0.0.1", "::2", "10.0.0.2", "::3", "::4"].iter().map(address).collect();
        let want: Vec<_> = want.iter().map(address).collect();
        assert_eq!(in_turn(all[0], &all[1..], order), want);
    }

    #[test]
    fn families_are_tried_in_turn() {
        let order = HappyEyeballs { first_is_v4: None, count: 1 };
        check(order, &["::1", "10.0.0.1", "::2", "10.0.0.2", "::3", "::4"]);
    }

    #[test]
    fn the_first_family_may_be_chosen_and_have_several_turns() {
        let order = HappyEyeballs { first_is_v4: Some(true), count: 1 };
        check(order, &["10.0.0.1", "::1", "10.0.0.2", "::2", "::3", "::4"]);
        let order = HappyEyeballs { first_is_v4: Some(false), count: 2 };
        check(order, &["::1", "::2", "10.0.0.1", "::3", "::4", "10.0.0.2"]);
    }
}
