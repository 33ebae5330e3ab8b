//! HTTP/1.1 client for one upstream service, with idle connections kept.
//!
//! Invariant: a request fails only when a *fresh* connection fails; an idle
//! one that the server closed meanwhile is replaced without notice.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Idle connections kept; more are closed after use.
const MAX_IDLE: usize = 64;
/// Longest body taken from an upstream, in bytes.
const MAX_BODY: usize = 1 << 20;

type Sender = SendRequest<Empty<Bytes>>;

/// Why no usable answer came.
#[derive(Debug)]
pub(crate) enum FetchError {
    Connect(std::io::Error),
    Http(hyper::Error),
    Body(Box<dyn std::error::Error + Send + Sync>),
    Timeout(Duration),
    Request(http::Error),
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::Http(error) => write!(f, "request failed: {error}"),
            Self::Body(error) => write!(f, "response body failed: {error}"),
            Self::Timeout(after) => write!(f, "no answer within {after:?}"),
            Self::Request(error) => write!(f, "request cannot be written: {error}"),
        }
    }
}

/// One upstream service.
pub(crate) struct Upstream {
    authority: String,
    idle: Mutex<Vec<Sender>>,
}

impl Upstream {
    pub(crate) fn new(authority: &str) -> Self {
        Self { authority: authority.to_owned(), idle: Mutex::default() }
    }

    /// GETs `path`; the whole exchange has to end within `timeout`.
    pub(crate) async fn fetch(
        &self,
        path: &str,
        headers: &HeaderMap,
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes), FetchError> {
        tokio::time::timeout(timeout, self.exchange(path, headers))
            .await
            .unwrap_or(Err(FetchError::Timeout(timeout)))
    }

    async fn exchange(
        &self,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(StatusCode, Bytes), FetchError> {
        while let Some(mut sender) = self.take_idle() {
            if let Ok(response) = sender.send_request(self.request(path, headers)?).await {
                return self.finish(sender, response).await;
            }
        }
        let mut sender = self.connect().await?;
        let response =
            sender.send_request(self.request(path, headers)?).await.map_err(FetchError::Http)?;
        self.finish(sender, response).await
    }

    fn request(
        &self,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Request<Empty<Bytes>>, FetchError> {
        let mut request = Request::builder()
            .method(Method::GET)
            .version(Version::HTTP_11)
            .uri(path)
            .body(Empty::new())
            .map_err(FetchError::Request)?;
        request.headers_mut().clone_from(headers);
        let host = HeaderValue::from_str(&self.authority)
            .map_err(|error| FetchError::Request(error.into()))?;
        request.headers_mut().insert(header::HOST, host);
        Ok(request)
    }

    async fn connect(&self) -> Result<Sender, FetchError> {
        let stream = TcpStream::connect(&self.authority).await.map_err(FetchError::Connect)?;
        stream.set_nodelay(true).map_err(FetchError::Connect)?;
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(FetchError::Http)?;
        // The task ends with the connection; its error also reaches the sender.
        tokio::spawn(async move { connection.await.ok() });
        Ok(sender)
    }

    async fn finish(
        &self,
        mut sender: Sender,
        response: http::Response<hyper::body::Incoming>,
    ) -> Result<(StatusCode, Bytes), FetchError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY)
            .collect()
            .await
            .map_err(FetchError::Body)?
            .to_bytes();
        if sender.ready().await.is_ok() {
            self.keep(sender);
        }
        Ok((status, body))
    }

    fn take_idle(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().expect("no panic while held");
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.idle.lock().expect("no panic while held");
        if idle.len() < MAX_IDLE {
            idle.push(sender);
        }
    }
}
