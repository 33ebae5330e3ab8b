//! HTTP server of every role: accept, dispatch, finish on SIGTERM.
//!
//! Invariant: a request that was accepted is answered, unless it takes longer
//! than [`DRAIN`] after the signal.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::helloworld::Helloworld;
use crate::productpage::Productpage;
use crate::ratings::Ratings;
use crate::reply::Reply;
use crate::reviews::Reviews;
use crate::{details, httpbin, stop};

/// How long requests in flight may take once the process was told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// The application behind the server.
pub(crate) enum App {
    Productpage(Productpage),
    Details,
    Reviews(Reviews),
    Ratings(Ratings),
    Helloworld(Helloworld),
    Httpbin,
}

impl App {
    async fn handle(&self, peer: SocketAddr, request: Request<Incoming>) -> Reply {
        match self {
            Self::Productpage(app) => app.handle(request).await,
            Self::Details => details::handle(&request),
            Self::Reviews(app) => app.handle(&request).await,
            Self::Ratings(app) => app.handle(request).await,
            Self::Helloworld(app) => app.handle(&request),
            Self::Httpbin => httpbin::handle(peer, request).await,
        }
    }
}

/// Serves `app` until the process is told to stop.
pub(crate) async fn serve(app: Arc<App>, port: u16) -> anyhow::Result<()> {
    let listener = listen(port).await?;
    println!("listening on {}", listener.local_addr()?);
    serve_on(app, listener, stop::requested()).await
}

/// As [`serve`], on a listener and an end of the caller's choice.
pub(crate) async fn serve_on(
    app: Arc<App>,
    listener: TcpListener,
    stop: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let (stopping, _) = watch::channel(());
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let stopped = stopping.subscribe();
                    connections.spawn(connection(Arc::clone(&app), stream, peer, stopped));
                }
                // Out of descriptors or a client gone before accept: others go on.
                Err(error) => {
                    eprintln!("accept failed: {error}");
                    tokio::task::yield_now().await;
                }
            },
            Some(_) = connections.join_next() => {}
            result = &mut stop => {
                result?;
                break;
            }
        }
    }
    drop(listener);
    stopping.send_replace(());
    let drained = async { while connections.join_next().await.is_some() {} };
    tokio::time::timeout(DRAIN, drained).await.ok();
    Ok(())
}

/// Dual-stack where the kernel has IPv6, IPv4 otherwise.
pub(crate) async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .await
            .with_context(|| format!("cannot listen on port {port}")),
    }
}

async fn connection(
    app: Arc<App>,
    stream: TcpStream,
    peer: SocketAddr,
    mut stopped: watch::Receiver<()>,
) {
    stream.set_nodelay(true).ok();
    let service = service_fn(move |request| {
        let app = Arc::clone(&app);
        async move { Ok::<_, Infallible>(app.handle(peer, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // A broken connection is the client's affair.
        result = &mut connection => { result.ok(); }
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await.ok();
        }
    }
}
