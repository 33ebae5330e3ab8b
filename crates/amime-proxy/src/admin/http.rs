//! A small HTTP/1.1 server for operators.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Open connections of one server.
const MAX_CONNECTIONS: usize = 64;
/// Time for a request's head, and so for an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a handler sees of a request; bodies are not read.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// Path with query, as asked for.
    pub(crate) target: String,
    pub(crate) params: BTreeMap<String, String>,
    pub(crate) from: SocketAddr,
}

impl Query {
    pub(super) fn of<B>(request: &http::Request<B>, from: SocketAddr) -> Self {
        let query = request.uri().query().unwrap_or_default();
        let params = query.split('&').filter(|pair| !pair.is_empty());
        let params = params.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(name), percent_decode(value))
        });
        Self {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            target: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
            params: params.collect(),
            from,
        }
    }

    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str)
    }

    pub(crate) fn is_json(&self) -> bool {
        self.param("format") == Some("json")
    }
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let hex = |bytes: &mut std::str::Bytes<'_>| {
            let mut next = || bytes.next().and_then(|b| char::from(b).to_digit(16));
            Some((next()? * 16 + next()?) as u8)
        };
        match byte {
            b'+' => out.push(b' '),
            b'%' => out.push(hex(&mut bytes).unwrap_or(b'%')),
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// An answer.
pub(crate) type Answer = Response<Full<Bytes>>;

/// A text answer.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=UTF-8", body)
}

/// A JSON answer, indented as Envoy's.
pub(crate) fn json(value: &serde_json::Value) -> Answer {
    let body = serde_json::to_vec_pretty(value).unwrap_or_default();
    answer(StatusCode::OK, "application/json", body)
}

/// An answer of some content type.
pub(crate) fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    answer
}

/// The answer to a path that does not exist.
pub(crate) fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "not found\n")
}

/// The answer to a change that was not asked for by POST.
pub(crate) fn post_only(method: &Method) -> Answer {
    let message = format!("Method {method} not allowed, POST required.");
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, message);
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
    answer
}

/// A running server; dropping it closes its listener and connections.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    /// For a process that takes over.
    socket: std::net::TcpListener,
    _task: JoinSet<()>,
}

impl Server {
    /// Listens on `address` and answers with `handler` on the current runtime.
    pub(crate) fn start<H, F>(address: SocketAddr, handler: H) -> Result<Self, AdminError>
    where
        H: Fn(Query) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let socket = std::net::TcpListener::bind(address)
            .map_err(|source| AdminError::Bind { address, source })?;
        Self::on(socket, handler).map_err(|source| AdminError::Bind { address, source })
    }

    /// Answers what comes to `socket`.
    pub(crate) fn on<H, F>(socket: std::net::TcpListener, handler: H) -> io::Result<Self>
    where
        H: Fn(Query) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let listener = TcpListener::from_std(socket.try_clone()?)?;
        let mut task = JoinSet::new();
        task.spawn(accept(listener, handler));
        Ok(Self { address, socket, _task: task })
    }

    /// The socket, for a process that takes over.
    pub(crate) fn copy_socket(&self) -> io::Result<std::net::TcpListener> {
        self.socket.try_clone()
    }

    /// The address bound.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept<H, F>(listener: TcpListener, handler: H)
where
    H: Fn(Query) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                let serving = serve(stream, from, handler.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "admin connection not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve<H, F>(stream: TcpStream, from: SocketAddr, handler: H)
where
    H: Fn(Query) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let service = service_fn(move |request: http::Request<Incoming>| {
        let answer = handler(Query::of(&request, from));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "admin connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_bad_escapes_kept() {
        let request = http::Request::get("/stats?filter=a%5C.b+c&usedonly&x=%zz").body(());
        let query = Query::of(&request.expect("valid"), ([127, 0, 0, 1], 1).into());
        assert_eq!(query.path, "/stats");
        assert_eq!(query.param("filter"), Some("a\\.b c"));
        assert_eq!(query.param("usedonly"), Some(""));
        assert!(query.param("x").is_some_and(|value| value.starts_with('%')));
    }
}
