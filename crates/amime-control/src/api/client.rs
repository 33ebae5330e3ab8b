//! A client of the API over its Unix socket.

use std::io;
use std::path::{Path, PathBuf};

use axum::body::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{Deleted, Failure, LabelRequest, Labelled, Objects, WatchLine};
use crate::store::{Applied, Apply, Rejected, ResumePoint};

/// Largest answer and largest watch line that is read.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves the socket.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the API broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The request cannot be expressed.
    #[error("the request is not valid")]
    Request(#[source] http::Error),
    /// The answer is not what it should be.
    #[error("the API's answer cannot be read")]
    Answer(#[source] serde_json::Error),
    /// The API refused; the text is for people.
    #[error("{error}")]
    Refused {
        /// Kind of refusal.
        status: StatusCode,
        /// What the API said.
        error: String,
    },
    /// An apply was refused as a whole.
    #[error("{}", .0.errors.join("\n"))]
    Rejected(Rejected),
}

impl ClientError {
    fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Broken(error.into())
    }
}

/// Calls the API on one socket; a connection a call.
#[derive(Clone, Debug)]
pub struct ApiClient {
    socket: PathBuf,
}

impl ApiClient {
    /// A client of the API that listens on `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `POST /v1/apply`
    pub async fn apply(&self, apply: &Apply) -> Result<Applied, ClientError> {
        let response = self.send(Method::POST, "/v1/apply", body_of(apply)?).await?;
        if response.status() == StatusCode::UNPROCESSABLE_ENTITY {
            let body = collect(response).await?;
            return Err(match serde_json::from_slice(&body) {
                Ok(rejected) => ClientError::Rejected(rejected),
                Err(_) => refused(StatusCode::UNPROCESSABLE_ENTITY, &body),
            });
        }
        read(response).await
    }

    /// `GET /v1/objects/{kind}`; nothing means all namespaces or names.
    pub async fn objects(
        &self,
        kind: &str,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> Result<Objects, ClientError> {
        let mut query = form(&[("namespace", namespace), ("name", name)]);
        if !query.is_empty() {
            query.insert(0, '?');
        }
        let path = format!("/v1/objects/{}{query}", escape(kind));
        read(self.send(Method::GET, &path, Bytes::new()).await?).await
    }

    /// `DELETE /v1/objects/…`; without a namespace for cluster-wide kinds.
    pub async fn delete(
        &self,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Deleted, ClientError> {
        let parts: Vec<String> =
            [Some(kind), namespace, Some(name)].into_iter().flatten().map(escape).collect();
        let path = format!("/v1/objects/{}", parts.join("/"));
        read(self.send(Method::DELETE, &path, Bytes::new()).await?).await
    }

    /// `POST /v1/label`
    pub async fn label(&self, request: &LabelRequest) -> Result<Labelled, ClientError> {
        read(self.send(Method::POST, "/v1/label", body_of(request)?).await?).await
    }

    /// `GET /v1/watch`; a refusal with 410 means: watch from the present on.
    pub async fn watch(&self, from: Option<&ResumePoint>) -> Result<WatchStream, ClientError> {
        let path = match from {
            Some(ResumePoint { instance, revision }) => {
                format!("/v1/watch?instance={}&since={revision}", escape(instance))
            }
            None => "/v1/watch".to_owned(),
        };
        let response = self.send(Method::GET, &path, Bytes::new()).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(refused(status, &collect(response).await?));
        }
        Ok(WatchStream { body: response.into_body(), buffer: Vec::new(), scanned: 0 })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Connect { path: self.socket.clone(), source })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(ClientError::broken)?;
        // Ends with the response's body or with the sender.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "API connection ended");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "amime")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(ClientError::Request)?;
        sender.send_request(request).await.map_err(ClientError::broken)
    }
}

/// The lines of one watch.
#[derive(Debug)]
pub struct WatchStream {
    body: Incoming,
    buffer: Vec<u8>,
    /// Bytes of `buffer` without a line end.
    scanned: usize,
}

impl WatchStream {
    /// The next line; nothing when the server ends the watch.
    pub async fn next(&mut self) -> Result<Option<WatchLine>, ClientError> {
        loop {
            if let Some(length) = self.buffer[self.scanned..].iter().position(|b| *b == b'\n') {
                let end = self.scanned + length;
                let line = serde_json::from_slice(&self.buffer[..end]);
                self.buffer.drain(..=end);
                self.scanned = 0;
                return line.map(Some).map_err(ClientError::Answer);
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > MAX_BYTES {
                return Err(ClientError::broken("a watch line is too long"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(ClientError::broken)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

fn body_of(value: &impl Serialize) -> Result<Bytes, ClientError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(ClientError::Answer)
}

async fn read<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, ClientError> {
    let status = response.status();
    let body = collect(response).await?;
    if !status.is_success() {
        return Err(refused(status, &body));
    }
    serde_json::from_slice(&body).map_err(ClientError::Answer)
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let limited = Limited::new(response.into_body(), MAX_BYTES);
    Ok(limited.collect().await.map_err(ClientError::broken)?.to_bytes())
}

fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    let error = match serde_json::from_slice::<Failure>(body) {
        Ok(failure) => failure.error,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    ClientError::Refused { status, error }
}

fn form(fields: &[(&str, Option<&str>)]) -> String {
    let given = fields.iter().filter_map(|(name, value)| Some((name, (*value)?)));
    given.map(|(name, value)| format!("{name}={}", escape(value))).collect::<Vec<_>>().join("&")
}

/// Percent-encodes all but what a path segment and a query value may hold.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
