//! HTTP/2 connections to the control plane, marked past interception.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use amime_identity::{
    LiveBundle, LiveCert, PeerIdentities, PlainServerCheck, SanMatcher, TlsOptions, TrustBundle,
    plain_client_config, server_name,
};
use http::header::AUTHORIZATION;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tonic::body::Body;

use super::env::HostPort;
use crate::dns::{Upstreams, resolve};

/// Time for TCP, TLS and the HTTP/2 preface together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pings on an idle connection find a control plane that vanished.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// A bearer token longer than this is not one.
const MAX_TOKEN: u64 = 64 * 1024;

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("address of {server} is not known")]
    Resolve {
        server: HostPort,
        #[source]
        source: io::Error,
    },
    #[error("no TCP connection to {server}")]
    Tcp {
        server: HostPort,
        #[source]
        source: io::Error,
    },
    #[error("TLS handshake with {server} failed")]
    Tls {
        server: HostPort,
        #[source]
        source: io::Error,
    },
    #[error("TLS settings for {server}")]
    TlsConfig {
        server: HostPort,
        #[source]
        source: amime_identity::ConfigError,
    },
    #[error("roots in {}", path.display())]
    Roots {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("HTTP/2 handshake with {server} failed")]
    Http2 {
        server: HostPort,
        #[source]
        source: hyper::Error,
    },
    #[error("no connection to {server} within {CONNECT_TIMEOUT:?}")]
    Timeout { server: HostPort },
}

/// Dials one server of the control plane, each time anew.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    pub(crate) server: HostPort,
    /// PEM file with the server's roots; none: no TLS.
    pub(crate) roots: Option<PathBuf>,
    /// Name in the server's certificate. Default: the host dialed.
    pub(crate) san: Option<String>,
    /// Bearer token file, read at each dial.
    pub(crate) token: Option<PathBuf>,
    /// Certificate to present once there is one.
    pub(crate) cert: Arc<LiveCert>,
    pub(crate) search: Vec<String>,
    pub(crate) upstreams: Upstreams,
}

impl Dialer {
    /// Connects, with the token and certificate of this moment.
    pub(crate) async fn dial(&self) -> Result<Channel, DialError> {
        let server = || self.server.clone();
        let connected = timeout(CONNECT_TIMEOUT, self.connect()).await;
        connected.map_err(|_| DialError::Timeout { server: server() })?
    }

    async fn connect(&self) -> Result<Channel, DialError> {
        let tcp = self.tcp().await?;
        match &self.roots {
            None => self.http2(tcp, Scheme::HTTP).await,
            Some(_) => {
                let config = self.tls_config()?;
                let name = server_name(Some(self.san.as_ref().unwrap_or(&self.server.host)));
                let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await;
                let tls =
                    tls.map_err(|source| DialError::Tls { server: self.server.clone(), source })?;
                self.http2(tls, Scheme::HTTPS).await
            }
        }
    }

    async fn tcp(&self) -> Result<TcpStream, DialError> {
        let server = || self.server.clone();
        let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let HostPort { host, port } = &self.server;
        let addresses = resolve(host, *port, &hosts, &self.search, &self.upstreams).await;
        let addresses =
            addresses.map_err(|source| DialError::Resolve { server: server(), source })?;
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            let connected = async {
                let socket =
                    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
                if let Some(mark) = self.upstreams.mark {
                    amime_net::socket::set_mark(&socket, mark)?;
                }
                socket.connect(address).await
            };
            match connected.await {
                Ok(stream) => {
                    // Small messages both ways; losing the option costs latency only.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(DialError::Tcp { server: server(), source: last })
    }

    fn tls_config(&self) -> Result<Arc<rustls::ClientConfig>, DialError> {
        let path = self.roots.clone().unwrap_or_default();
        let roots = std::fs::read(&path)
            .map_err(|source| DialError::Roots { path: path.clone(), source: source.into() })?;
        let roots = TrustBundle::from_pem(&roots)
            .map_err(|source| DialError::Roots { path, source: source.into() })?;
        let bundle = LiveBundle::new(roots);
        let check = match &self.san {
            None => PlainServerCheck::ServerName(bundle),
            Some(san) => {
                let sans = vec![SanMatcher::exact(san)];
                let names = PeerIdentities { sans, ..PeerIdentities::any() };
                PlainServerCheck::Names(bundle, names)
            }
        };
        // An expired certificate would be refused where a token is accepted.
        let valid = |cert: &amime_identity::WorkloadCert| cert.not_after() > SystemTime::now();
        let usable = self.cert.current().is_some_and(|cert| valid(&cert));
        let cert = usable.then(|| self.cert.clone());
        plain_client_config(cert, check, &TlsOptions::with_alpn([b"h2"]))
            .map_err(|source| DialError::TlsConfig { server: self.server.clone(), source })
    }

    async fn http2<S>(&self, stream: S, scheme: Scheme) -> Result<Channel, DialError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (send, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| DialError::Http2 { server: self.server.clone(), source })?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the control plane ended");
            }
        });
        let authority = self.server.to_string();
        let authority = Authority::try_from(authority)
            .unwrap_or_else(|_| Authority::from_static("control-plane"));
        Ok(Channel { send, scheme, authority, bearer: self.bearer() })
    }

    /// The token of this moment; mounted tokens are renewed under the same path.
    fn bearer(&self) -> Option<HeaderValue> {
        let path = self.token.as_ref()?;
        let small = std::fs::metadata(path).is_ok_and(|file| file.len() <= MAX_TOKEN);
        let token = small.then(|| std::fs::read_to_string(path).ok()).flatten()?;
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// One HTTP/2 connection that speaks gRPC with our credentials.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    send: http2::SendRequest<Body>,
    scheme: Scheme,
    authority: Authority,
    bearer: Option<HeaderValue>,
}

impl tower_service::Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.send.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        // Scheme and authority are given and tonic sets the path, so all
        // parts are there.
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        if let Some(bearer) = &self.bearer {
            request.headers_mut().insert(AUTHORIZATION, bearer.clone());
        }
        Box::pin(self.send.send_request(request))
    }
}
