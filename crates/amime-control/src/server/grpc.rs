//! Accept loops that feed gRPC services.
//!
//! TLS is ours and not the gRPC library's, because the peer's verified
//! identity has to reach the services as a typed value.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use amime_core::SpiffeId;
use amime_identity::peer_spiffe_id;
use axum::Router;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tower::Service;

use crate::server::DRAIN;
use crate::server::auth::Authenticator;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes that may be under way; more wait in the kernel's queue.
const MAX_HANDSHAKES: usize = 512;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Serves `routes` over TLS until `shutdown`, to callers that `auth` knows;
/// others get `UNAUTHENTICATED`.
pub async fn serve_tls(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    auth: Authenticator,
    routes: Router,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let connections = TaskTracker::new();
    while let Some(stream) = accept(&listener, &shutdown).await {
        let permit = tokio::select! {
            () = shutdown.cancelled() => break,
            permit = handshakes.clone().acquire_owned() => permit,
        };
        let Ok(permit) = permit else { break };
        let (acceptor, auth) = (acceptor.clone(), auth.clone());
        let (routes, shutdown) = (routes.clone(), shutdown.clone());
        connections.spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
            drop(permit);
            let stream = match handshake {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => return tracing::debug!("TLS handshake timed out"),
            };
            let peer = stream.get_ref().1.peer_certificates().and_then(peer_spiffe_id);
            let call = move |request| authenticated(&auth, peer.as_ref(), &routes, request);
            serve_connection(stream, call, shutdown).await;
        });
    }
    drain(&connections).await;
}

/// Serves `routes` without TLS and without authentication until `shutdown`.
pub async fn serve_plaintext(listener: TcpListener, routes: Router, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    while let Some(stream) = accept(&listener, &shutdown).await {
        let (routes, shutdown) = (routes.clone(), shutdown.clone());
        connections.spawn(async move {
            let call = move |request| call(&routes, request);
            serve_connection(stream, call, shutdown).await;
        });
    }
    drain(&connections).await;
}

/// The next connection; nothing once `shutdown` is asked for.
async fn accept(listener: &TcpListener, shutdown: &CancellationToken) -> Option<TcpStream> {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                // Pushes are small and must not wait for a full segment.
                let _ = stream.set_nodelay(true);
                return Some(stream);
            }
            Err(error) => {
                // Out of file descriptors: busy looping would make it worse.
                tracing::warn!(%error, "connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection<I, F, R>(stream: I, call: F, shutdown: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<axum::body::Body>> + Send + 'static,
{
    let service = service_fn(|request| {
        let response = call(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

async fn drain(connections: &TaskTracker) {
    connections.close();
    // Discovery streams never end by themselves; what is left is cut.
    let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
}

fn authenticated(
    auth: &Authenticator,
    peer: Option<&SpiffeId>,
    routes: &Router,
    mut request: Request<Incoming>,
) -> impl Future<Output = Response<axum::body::Body>> + Send + use<> {
    let verdict = auth.caller(peer, request.headers()).map(|caller| {
        request.extensions_mut().insert(caller);
        call(routes, request)
    });
    async move {
        match verdict {
            Ok(response) => response.await,
            Err(error) => {
                tracing::debug!(%error, "caller refused");
                Status::unauthenticated(error.to_string()).into_http()
            }
        }
    }
}

fn call(
    routes: &Router,
    request: Request<Incoming>,
) -> impl Future<Output = Response<axum::body::Body>> + Send + use<> {
    let mut routes = routes.clone();
    async move {
        match routes.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}
