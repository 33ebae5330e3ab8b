//! The downstream side: sends what a case says and notes what comes back.

mod http1;
mod http2;
mod tcp;
mod tls;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::{TcpSocket, TcpStream};

use crate::case::{Exchange, Over};
use crate::certs::Certs;
use crate::outcome::{Aspect, Outcome};

/// A request that shows whether a connection is still open.
pub(crate) const PROBE: &str = "/conformance-probe";

/// One exchange that was done.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    pub(crate) id: String,
    /// Our address, by which access log lines are found.
    pub(crate) client: SocketAddr,
    pub(crate) logged: Logged,
}

/// What has a line in the access log. Redirects that the proxy follows have
/// lines of their own, all before that of the probe.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Logged {
    pub(crate) responses: usize,
    /// Whether the probe was answered.
    pub(crate) probe: bool,
}

/// Does one exchange with the listener at `address`.
pub(crate) async fn exchange(
    exchange: &Exchange,
    id: String,
    address: SocketAddr,
    certs: &Certs,
) -> Result<Done> {
    let stream = dial(address).await?;
    stream.set_nodelay(true)?;
    let client = stream.local_addr()?;
    let mut done = Done { outcome: Outcome::default(), id, client, logged: Logged::default() };
    match &exchange.tls {
        None => talk(exchange, stream, &mut done).await?,
        Some(settings) => match tls::connect(settings, stream, certs).await {
            Ok((stream, facts)) => {
                done.outcome.add(Aspect::Tls, facts);
                talk(exchange, stream, &mut done).await?;
            }
            Err(refusal) => done.outcome.add(Aspect::Tls, refusal),
        },
    }
    Ok(done)
}

/// Connects from a port of its own: log lines are told apart by it, and the
/// kernel gives one port to connections with different peers.
async fn dial(address: SocketAddr) -> Result<TcpStream> {
    static USED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut refused = vec![];
    loop {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let port = socket.local_addr()?.port();
        if USED.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            return socket.connect(address).await.context("proxy does not listen");
        }
        // Held until another one is found, or it would come again.
        refused.push(socket);
    }
}

async fn talk<S: Stream>(exchange: &Exchange, stream: S, done: &mut Done) -> Result<()> {
    match exchange.over {
        Over::H1 => http1::talk(exchange, stream, done).await,
        Over::H2 => http2::talk(exchange, stream, done).await,
        Over::Tcp => tcp::talk(exchange, stream, done).await,
    }
}

/// A connection to the proxy, bare or within TLS.
trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static {}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static> Stream for S {}

fn patience(exchange: &Exchange) -> Duration {
    Duration::from_millis(exchange.wait_ms)
}

/// An alert that a read or write failed with is part of the handshake's result.
fn note_alert(outcome: &mut Outcome, error: &std::io::Error) {
    if let Some(alert) = tls::alert(error) {
        outcome.add(Aspect::Tls, alert);
    }
}
