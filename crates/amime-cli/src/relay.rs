//! A port on this machine that stands for a port inside a pod.
//!
//! Owns only the way of a request: path in front, socket behind. Who may be
//! reached is the supervisor's to decide.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::handshake;
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, UnixStream};

use crate::target::Pod;

type Body = BoxBody<Bytes, hyper::Error>;

/// Requests to one port of one pod.
#[derive(Debug)]
pub(crate) struct Relay {
    socket: PathBuf,
    prefix: String,
}

impl Relay {
    /// A relay through the supervisor's socket.
    pub(crate) fn new(socket: &Path, pod: &Pod, port: u16) -> Self {
        let Pod { namespace, name } = pod;
        Self { socket: socket.to_owned(), prefix: format!("/v1/http/{namespace}/{name}/{port}") }
    }

    /// Sends one request and returns the answer as it is.
    pub(crate) async fn send<B>(
        &self,
        mut request: Request<B>,
    ) -> anyhow::Result<Response<Incoming>>
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let rest = request.uri().path_and_query().map_or("/", |rest| rest.as_str());
        *request.uri_mut() = format!("{}{rest}", self.prefix).parse::<Uri>()?;
        request.headers_mut().remove(CONNECTION);
        request.headers_mut().insert(HOST, HeaderValue::from_static("amime"));
        let stream = UnixStream::connect(&self.socket).await.context("the mesh has stopped")?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with the answer's body.
        tokio::spawn(async move { connection.await.ok() });
        Ok(sender.send_request(request).await?)
    }

    /// Serves the listener for ever.
    pub(crate) async fn serve(self, listener: TcpListener) -> anyhow::Result<()> {
        let relay = Arc::new(self);
        loop {
            let (client, _) = listener.accept().await.context("cannot accept connections")?;
            let relay = Arc::clone(&relay);
            let service = service_fn(move |request: Request<Incoming>| {
                let relay = Arc::clone(&relay);
                async move { Ok::<_, Infallible>(relay.answer(request).await) }
            });
            tokio::spawn(async move {
                // A client that goes away is no fault of ours.
                http1::Builder::new().serve_connection(TokioIo::new(client), service).await.ok();
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        match self.send(request).await {
            Ok(response) => response.map(BodyExt::boxed),
            Err(error) => {
                let text = Full::new(Bytes::from(format!("{error:#}\n")));
                let mut response = Response::new(text.map_err(|never| match never {}).boxed());
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                response
            }
        }
    }
}
