//! The upstream side: servers in this process, shared by both proxies.
//!
//! Both proxies must have the same upstream addresses, or hashing would place
//! requests differently. What a server saw is told apart by the case's id.
//!
//! | name | is |
//! |---|---|
//! | `a` … `f` | HTTP/1.1, or HTTP/2 by prior knowledge |
//! | `tls` | the same behind TLS; takes any client certificate or none |
//! | `mtls` | requires a client certificate |
//! | `banner` | TCP: says `hello`, echoes, says `bye` when the peer is done |
//! | `dead` | refuses connections |

mod http1;
mod http2;
mod journal;
mod orders;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::certs::Certs;
use crate::wire::Reader;
pub(crate) use journal::{Journal, find_id, id};

const PLAIN: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Running servers; they end with the runtime.
#[derive(Debug)]
pub(crate) struct Backends {
    ports: BTreeMap<&'static str, u16>,
    pub(crate) journal: Arc<Journal>,
    /// Bound and not listening, so that nobody else gets the port.
    _dead: Socket,
}

/// What a server of one name knows.
#[derive(Clone, Debug)]
struct Server {
    name: &'static str,
    journal: Arc<Journal>,
    /// The TLS facts of the connection, for the record.
    tls: Option<String>,
}

impl Backends {
    /// Starts all servers.
    pub(crate) async fn start(certs: &Certs) -> Result<Self> {
        let journal = Arc::new(Journal::default());
        let mut ports = BTreeMap::new();
        let acceptors = [("tls", certs.backend(false)?), ("mtls", certs.backend(true)?)]
            .map(|(name, config)| (name, Some(TlsAcceptor::from(Arc::new(config)))));
        let plain = PLAIN.map(|name| (name, None));
        for (name, acceptor) in plain.into_iter().chain(acceptors) {
            let listener = listen().await?;
            ports.insert(name, listener.local_addr()?.port());
            let server = Server { name, journal: journal.clone(), tls: None };
            tokio::spawn(accept(listener, server, acceptor));
        }
        let banner = listen().await?;
        ports.insert("banner", banner.local_addr()?.port());
        tokio::spawn(async move {
            while let Ok((stream, _)) = banner.accept().await {
                tokio::spawn(greet(stream));
            }
        });
        let dead = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        dead.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let address = dead.local_addr()?.as_socket().context("no IP address")?;
        ports.insert("dead", address.port());
        Ok(Self { ports, journal, _dead: dead })
    }

    /// Port of a server.
    pub(crate) fn port(&self, name: &str) -> Option<u16> {
        self.ports.get(name).copied()
    }

    /// Names and ports.
    pub(crate) fn ports(&self) -> impl Iterator<Item = (&'static str, u16)> {
        self.ports.iter().map(|(name, port)| (*name, *port))
    }
}

async fn listen() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("backend cannot listen")
}

async fn accept(listener: TcpListener, server: Server, acceptor: Option<TlsAcceptor>) {
    while let Ok((stream, _)) = listener.accept().await {
        let mut server = server.clone();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let Some(acceptor) = acceptor else { return serve(stream, server).await };
            if let Ok(stream) = acceptor.accept(stream).await {
                server.tls = Some(tls_facts(stream.get_ref().1));
                serve(stream, server).await;
            }
        });
    }
}

/// Serves HTTP/2 when the first bytes are its preface, else HTTP/1.
async fn serve<S: Ending + 'static>(stream: S, server: Server) {
    let mut reader = Reader::new(stream);
    while reader.buffer.len() < PREFACE.len() && PREFACE.starts_with(&reader.buffer) {
        if !matches!(reader.fill().await, Ok(true)) {
            return;
        }
    }
    if reader.buffer.starts_with(PREFACE) {
        http2::serve(reader, server).await;
    } else {
        http1::serve(reader, server).await;
    }
}

/// A stream that can be cut off.
trait Ending: AsyncRead + AsyncWrite + Unpin + Send {
    /// Makes the end of the stream a reset.
    fn reset(&self);
}

impl Ending for TcpStream {
    fn reset(&self) {
        // It is dropped next; without the option that is an ordinary end.
        let _ = socket2::SockRef::from(self).set_linger(Some(std::time::Duration::ZERO));
    }
}

impl Ending for tokio_rustls::server::TlsStream<TcpStream> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

fn tls_facts(connection: &rustls::ServerConnection) -> String {
    let alpn = connection.alpn_protocol().map(String::from_utf8_lossy);
    let client = connection.peer_certificates().and_then(|chain| chain.first());
    format!(
        "tls: sni={} alpn={} client={}",
        connection.server_name().unwrap_or("-"),
        alpn.as_deref().unwrap_or("-"),
        client.map_or_else(|| "-".to_owned(), |one| Certs::name_of(one.as_ref())),
    )
}

async fn greet(mut stream: TcpStream) {
    let mut buffer = vec![0; 16 * 1024];
    if stream.write_all(b"hello\n").await.is_err() {
        return;
    }
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) if stream.write_all(&buffer[..read]).await.is_ok() => {}
            _ => return,
        }
    }
    // The peer may have gone altogether.
    let _ = stream.write_all(b"bye\n").await;
    let _ = stream.shutdown().await;
}

/// The record of a request: start line, fields in the order of their names, body.
fn record(
    server: &Server,
    start: &str,
    mut fields: Vec<(String, String)>,
    body: &str,
) -> Vec<String> {
    fields.sort_by_key(|(name, _)| name.to_ascii_lowercase());
    let mut lines = vec![format!("{} {start}", server.name)];
    lines.extend(server.tls.clone());
    lines.extend(fields.into_iter().map(|(name, value)| format!("{name}: {value}")));
    lines.extend((!body.is_empty()).then(|| format!("body {body}")));
    lines
}

/// The id of a request: in its start line or any field.
fn id_of(start: &str, fields: &[(String, String)]) -> String {
    let texts = std::iter::once(start).chain(fields.iter().map(|(_, value)| value.as_str()));
    texts.into_iter().find_map(find_id).unwrap_or_default().to_owned()
}
