//! A typed client for the API of a running mesh.
//!
//! Objects (`apply`, `get`, `delete`, `label`, watch) go through
//! [`Client::objects`], which is `amime_control`'s client on the same socket.

use std::io;
use std::path::PathBuf;

use amime_control::api::{ApiClient, Failure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::frame::{Frame, PROTOCOL};
use crate::state::StateDir;
use crate::status::MeshStatus;

/// Largest answer that is not streamed: a proxy's `/config_dump` fits many
/// times.
const MAX_ANSWER_BYTES: usize = 256 << 20;
const CHUNK: usize = 32 << 10;

/// Why the mesh did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No mesh runs on this state directory.
    #[error("no mesh is running here ({} does not answer); start one with `amime up`", .socket.display())]
    NotRunning {
        /// The API socket.
        socket: PathBuf,
        /// Why it could not be connected.
        #[source]
        source: io::Error,
    },
    /// The mesh answered with an error.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// What the mesh says.
        message: String,
    },
    /// The connection broke.
    #[error("the connection to the mesh broke")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer was not understood.
    #[error("the mesh's answer was not understood")]
    Answer(#[source] serde_json::Error),
    /// The caller's own streams failed.
    #[error("could not copy the output")]
    Output(#[source] io::Error),
}

/// A command to run in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Container whose environment the command gets; none: the application's
    /// first.
    #[serde(default)]
    pub container: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// Which log to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Container; none: the application's first.
    pub container: Option<String>,
    /// Wait for more.
    pub follow: bool,
    /// Only this many of the last lines.
    pub tail: Option<usize>,
}

/// The mesh of one state directory.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client; nothing is connected yet.
    pub fn new(state: &StateDir) -> Self {
        Self { socket: state.api_socket() }
    }

    /// The client for objects.
    pub fn objects(&self) -> ApiClient {
        ApiClient::new(self.socket.clone())
    }

    /// What runs, and how it is doing.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<MeshStatus, ClientError> {
        let body = self.send(Method::GET, "/v1/status", Bytes::new()).await?;
        serde_json::from_slice(&body).map_err(ClientError::Answer)
    }

    /// Tells the mesh to stop; it has not when this returns.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn shutdown(&self) -> Result<(), ClientError> {
        self.send(Method::POST, "/v1/shutdown", Bytes::new()).await.map(|_| ())
    }

    /// Sets the number of replicas of a Deployment or StatefulSet.
    ///
    /// # Errors
    /// [`ClientError`], `Refused` with 404 if there is none of that name.
    pub async fn scale(
        &self,
        namespace: &str,
        name: &str,
        replicas: u32,
    ) -> Result<(), ClientError> {
        let path = format!("/v1/scale/{namespace}/{name}?replicas={replicas}");
        self.send(Method::POST, &path, Bytes::new()).await.map(|_| ())
    }

    /// An HTTP GET on a port of the pod's loopback; returns the body of a
    /// successful answer.
    ///
    /// # Errors
    /// [`ClientError`], `Refused` also for an error status of the pod itself.
    pub async fn pod_get(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
        path: &str,
    ) -> Result<Bytes, ClientError> {
        self.pod_request(Method::GET, (namespace, pod, port), path, Bytes::new()).await
    }

    /// As [`Client::pod_get`] with any method and a body.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn pod_request(
        &self,
        method: Method,
        (namespace, pod, port): (&str, &str, u16),
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let slash = if path.starts_with('/') { "" } else { "/" };
        self.send(method, &format!("/v1/http/{namespace}/{pod}/{port}{slash}{path}"), body).await
    }

    /// Copies a log to `out`; with `follow` until the pod is gone.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn logs(
        &self,
        request: &LogRequest,
        out: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), ClientError> {
        let LogRequest { namespace, pod, container, follow, tail } = request;
        let container = container.as_deref().unwrap_or_default();
        let mut path = format!("/v1/logs/{namespace}/{pod}?container={container}&follow={follow}");
        if let Some(tail) = tail {
            path.push_str(&format!("&tail={tail}"));
        }
        let request = self.request(Method::GET, &path, Bytes::new())?;
        let response = self.open(request).await?;
        let mut body = success(response).await?.into_body();
        while let Some(frame) = body.frame().await {
            if let Ok(bytes) = frame.map_err(broken)?.into_data() {
                out.write_all(&bytes).await.map_err(ClientError::Output)?;
                out.flush().await.map_err(ClientError::Output)?;
            }
        }
        Ok(())
    }

    /// Runs a command in a pod; returns its exit code.
    ///
    /// # Errors
    /// [`ClientError`], `Refused` if the command could not be started.
    pub async fn exec(
        &self,
        request: &ExecRequest,
        mut stdin: impl AsyncRead + Unpin,
        stdout: &mut (impl AsyncWrite + Unpin),
        stderr: &mut (impl AsyncWrite + Unpin),
    ) -> Result<i32, ClientError> {
        let body = serde_json::to_vec(request).map_err(ClientError::Answer)?;
        let mut request = self.request(Method::POST, "/v1/exec", body.into())?;
        request.headers_mut().insert(CONNECTION, "upgrade".parse().map_err(broken)?);
        request.headers_mut().insert(UPGRADE, PROTOCOL.parse().map_err(broken)?);
        let response = self.open(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            success(response).await?;
            return Err(broken("the mesh did not switch protocols"));
        }
        let stream = TokioIo::new(hyper::upgrade::on(response).await.map_err(broken)?);
        let (mut reader, mut writer) = tokio::io::split(stream);
        let input = async {
            let mut chunk = vec![0; CHUNK];
            loop {
                let read = stdin.read(&mut chunk).await.unwrap_or(0);
                let sent = Frame::Stdin(chunk[..read].to_vec()).write(&mut writer).await;
                if read == 0 || sent.is_err() {
                    return;
                }
            }
        };
        let output = async {
            while let Some(frame) = Frame::read(&mut reader).await.map_err(broken)? {
                match frame {
                    Frame::Stdout(bytes) => write(stdout, &bytes).await?,
                    Frame::Stderr(bytes) => write(stderr, &bytes).await?,
                    Frame::Exit(code) => return Ok(code),
                    Frame::Stdin(_) => {}
                }
            }
            Err(broken("the mesh went away before the command ended"))
        };
        tokio::pin!(output);
        tokio::select! {
            code = &mut output => code,
            () = input => output.await,
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "amime")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(broken)
    }

    async fn open(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::NotRunning { socket: self.socket.clone(), source })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with the answer.
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(broken)
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let response = success(self.open(self.request(method, path, body)?).await?).await?;
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
        Ok(body.collect().await.map_err(ClientError::Connection)?.to_bytes())
    }
}

async fn write(out: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), ClientError> {
    out.write_all(bytes).await.map_err(ClientError::Output)?;
    out.flush().await.map_err(ClientError::Output)
}

async fn success(response: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let body = body.collect().await.map_err(ClientError::Connection)?.to_bytes();
    let message = match serde_json::from_slice::<Failure>(&body) {
        Ok(failure) => failure.error,
        Err(_) => format!("{status}: {}", String::from_utf8_lossy(&body).trim()),
    };
    Err(ClientError::Refused { status, message })
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
    ClientError::Connection(error.into())
}
