//! The smallest HTTP backends and client that the tests need.

use std::convert::Infallible;
use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// A GET request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// Where the connection goes.
    pub(crate) addr: &'a str,
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) header: Option<(&'a str, &'a str)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Answers every request on `addr` with `name`.
pub(crate) async fn serve(addr: SocketAddr, name: &'static str) {
    let listener = TcpListener::bind(addr).await.expect("the address is on lo");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepting works");
            let answer = service_fn(move |_: Request<Incoming>| async move {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(name.as_bytes()))))
            });
            tokio::spawn(async move {
                let http = hyper::server::conn::http1::Builder::new();
                // Envoy closes connections as it likes.
                let _ = http.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
}

/// One GET on a connection of its own; `None` when there was no HTTP answer.
pub(crate) async fn get(call: Call<'_>) -> Option<Reply> {
    let stream = TcpStream::connect(call.addr).await.ok()?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    let mut request = Request::builder().uri(call.path).header("host", call.host);
    if let Some((name, value)) = call.header {
        request = request.header(name, value);
    }
    let request = request.body(Full::<Bytes>::default()).expect("a valid request");
    let response = sender.send_request(request).await.ok()?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    Some(Reply { status, body: String::from_utf8_lossy(&body).into_owned() })
}
