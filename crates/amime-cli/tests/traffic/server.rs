//! The servers behind all pods.
//!
//! What a pod serves depends on the port: HTTP/1 and HTTP/2 on most, the same
//! over TLS, TCP where the client or the server speaks first. An answer says
//! in JSON what was asked and which pod answered; the header `x-do` orders
//! other answers. Each request is kept, for tests to ask what servers saw.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

use crate::portal;
use crate::tls::Authority;

/// HTTP over TLS.
pub(crate) const TLS: u16 = 8443;
/// TCP; answers what it gets with the pod's name before it.
pub(crate) const ECHO: u16 = 9000;
/// TCP; greets with the pod's name, then is silent.
pub(crate) const GREETING: u16 = 9001;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// Method of Envoy's rate limit service.
const RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

type Body = BoxBody<Bytes, std::io::Error>;

/// A request as a server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) pod: String,
    pub(crate) headers: HeaderMap,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// All servers.
pub(crate) struct Servers {
    seen: Mutex<Vec<Seen>>,
    tls: TlsAcceptor,
}

/// Where a connection came in.
#[derive(Clone)]
struct Place {
    pod: String,
    local: SocketAddr,
    peer: SocketAddr,
    /// Server name and client certificate of its handshake.
    tls: Option<(Option<String>, Option<String>)>,
}

impl Servers {
    pub(crate) fn new(authority: &Authority) -> Arc<Self> {
        let names = ["server.test", "*.test", "*.example", "*.com"];
        let tls = TlsAcceptor::from(authority.server(&authority.issue(&names)));
        Arc::new(Self { seen: Mutex::default(), tls })
    }

    /// Takes the connections that portals hand over, for ever.
    pub(crate) fn listen(self: &Arc<Self>, dir: &Path) -> std::io::Result<()> {
        let listener = UnixListener::bind(portal::servers_socket(dir))?;
        let servers = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let servers = Arc::clone(&servers);
                tokio::spawn(async move { servers.attend(stream).await.ok() });
            }
        });
        Ok(())
    }

    /// Requests with this value of `x-case`, in order.
    pub(crate) fn seen(&self, case: &str) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|seen| seen.header("x-case") == Some(case)).cloned().collect()
    }

    fn keep(&self, seen: Seen) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    }

    async fn attend(self: &Arc<Self>, mut stream: UnixStream) -> anyhow::Result<()> {
        let line = portal::read_line(&mut stream).await?;
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_default();
        let pod = word().to_owned();
        let place = Place { pod, local: word().parse()?, peer: word().parse()?, tls: None };
        match place.local.port() {
            TLS => self.over_tls(stream, place).await,
            ECHO => echo(stream, &format!("{} ", place.pod)).await,
            GREETING => {
                stream.write_all(format!("hello from {}\n", place.pod).as_bytes()).await?;
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await?;
                Ok(())
            }
            _ => self.http(stream, place).await,
        }
    }

    async fn over_tls(
        self: &Arc<Self>,
        stream: UnixStream,
        mut place: Place,
    ) -> anyhow::Result<()> {
        let stream = self.tls.accept(stream).await?;
        let session = stream.get_ref().1;
        let client = session.peer_certificates().and_then(|certs| certs.first());
        let client =
            client.map(|cert| base64::engine::general_purpose::STANDARD.encode(cert.as_ref()));
        place.tls = Some((session.server_name().map(str::to_owned), client));
        self.http(stream, place).await
    }

    async fn http(
        self: &Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        place: Place,
    ) -> anyhow::Result<()> {
        let servers = Arc::clone(self);
        let service = service_fn(move |request| {
            let (servers, place) = (Arc::clone(&servers), place.clone());
            async move { servers.answer(place, request).await }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http2().enable_connect_protocol();
        let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        served.map_err(|error| anyhow::anyhow!("{error}"))
    }

    async fn answer(
        &self,
        place: Place,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, std::io::Error> {
        let case = text(request.headers(), "x-case");
        let before = self.seen(&case).len();
        self.keep(Seen { pod: place.pod.clone(), headers: request.headers().clone() });
        let orders = Orders::of(&place.pod, request.headers(), before);
        tokio::time::sleep(orders.delay).await;
        if orders.hang_up {
            return Err(std::io::Error::other("told to hang up"));
        }
        if request.headers().contains_key("upgrade") || request.method() == "CONNECT" {
            return Ok(upgrade(&place, request));
        }
        let body = request.body_mut().collect().await.map(|body| body.to_bytes());
        let body = body.unwrap_or_default();
        if text(request.headers(), "content-type").starts_with("application/grpc") {
            if request.uri().path() == RATE_LIMIT {
                return Ok(orders.grpc(&place, rate_limit(&body)));
            }
            return Ok(orders.grpc(&place, body));
        }
        Ok(orders.http(&place, &request, &body))
    }
}

async fn echo(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    greeting: &str,
) -> anyhow::Result<()> {
    let mut chunk = [0; 4096];
    loop {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            return Ok(stream.shutdown().await?);
        }
        stream.write_all(&[greeting.as_bytes(), &chunk[..read]].concat()).await?;
    }
}

fn text(headers: &HeaderMap, name: &str) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

/// Switches to bytes, each piece answered with the pod's name before it, and
/// the authority of a CONNECT.
fn upgrade(place: &Place, mut request: Request<Incoming>) -> Response<Body> {
    let mut response = Response::new(empty());
    if let (Some(protocol), false) =
        (request.headers().get("upgrade"), request.method() == "CONNECT")
    {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("upgrade", protocol.clone());
        response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
    }
    let greeting = match request.method().as_str() {
        "CONNECT" => format!("{} {} ", place.pod, request.uri()),
        _ => format!("{} ", place.pod),
    };
    tokio::spawn(async move {
        if let Ok(stream) = hyper::upgrade::on(&mut request).await {
            echo(TokioIo::new(stream), &greeting).await.ok();
        }
    });
    response
}

/// A rate limit service that has enough of one user.
fn rate_limit(request: &Bytes) -> Bytes {
    const TAKEN: &[u8] = &[0, 0, 0, 0, 2, 8, 1];
    const OVER_LIMIT: &[u8] = &[0, 0, 0, 0, 2, 8, 2];
    let greedy = request.windows(b"greedy".len()).any(|piece| piece == b"greedy");
    Bytes::from_static(if greedy { OVER_LIMIT } else { TAKEN })
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never: Infallible| match never {}).boxed()
}

/// What `x-do` says, words separated by blanks.
struct Orders {
    status: StatusCode,
    delay: Duration,
    hang_up: bool,
    headers: Vec<(HeaderName, HeaderValue)>,
    grpc_status: String,
    /// The status of a call comes instead of a message.
    trailers_only: bool,
}

impl Orders {
    /// `before` requests of the same case have come before.
    fn of(pod: &str, headers: &HeaderMap, before: usize) -> Self {
        let mut orders = Self {
            status: StatusCode::OK,
            delay: Duration::ZERO,
            hang_up: false,
            headers: Vec::new(),
            grpc_status: "0".to_owned(),
            trailers_only: false,
        };
        for word in text(headers, "x-do").split(' ').filter(|word| !word.is_empty()) {
            // `word^pod`: for one pod only.
            let (word, of) = word.split_once('^').unwrap_or((word, pod));
            if of != pod {
                continue;
            }
            // `word@2`: for the first two requests of the case only.
            let (word, times) = word.split_once('@').unwrap_or((word, ""));
            if times.parse().is_ok_and(|times: usize| before >= times) {
                continue;
            }
            match word.split_once('=').unwrap_or((word, "")) {
                ("status", code) => orders.status = code.parse().expect("a status"),
                ("delay", ms) => orders.delay = Duration::from_millis(ms.parse().expect("ms")),
                ("hang-up", _) => orders.hang_up = true,
                ("trailers-only", _) => orders.trailers_only = true,
                ("grpc", status) => orders.grpc_status = status.to_owned(),
                (name, value) => orders.headers.push((
                    name.parse().expect("a name of a header"),
                    value.parse().expect("a value of a header"),
                )),
            }
        }
        orders
    }

    fn http(self, place: &Place, request: &Request<Incoming>, body: &Bytes) -> Response<Body> {
        let (sni, client) = place.tls.clone().unwrap_or_default();
        let host = text(request.headers(), "host");
        let authority = request.uri().authority().map_or(host, ToString::to_string);
        let headers: serde_json::Map<_, _> = request
            .headers()
            .keys()
            .map(|name| {
                let values = request.headers().get_all(name).iter();
                let values: Vec<_> =
                    values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
                (name.to_string(), values.join(",").into())
            })
            .collect();
        let said = json!({
            "pod": place.pod,
            "port": place.local.port(),
            "peer": place.peer.to_string(),
            "method": request.method().as_str(),
            "path": request.uri().path_and_query().map_or("", |path| path.as_str()),
            "authority": authority,
            "version": format!("{:?}", request.version()),
            "headers": headers,
            "body": String::from_utf8_lossy(body),
            "tls": place.tls.is_some(),
            "sni": sni,
            "client": client,
        });
        let body = Full::new(Bytes::from(said.to_string())).map_err(|never| match never {});
        self.finish(Response::new(body.boxed()))
    }

    /// The message comes back; the status is in the trailers.
    fn grpc(self, place: &Place, body: Bytes) -> Response<Body> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", self.grpc_status.parse().expect("a number"));
        trailers.insert("x-pod", place.pod.parse().expect("a name"));
        if self.trailers_only && self.grpc_status != "0" {
            let mut response = Response::new(empty());
            *response.headers_mut() = trailers;
            response.headers_mut().insert("content-type", GRPC);
            return response;
        }
        let frames = [Ok(Frame::data(body)), Ok(Frame::trailers(trailers))];
        let mut response =
            Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed());
        response.headers_mut().insert("content-type", GRPC);
        self.finish(response)
    }

    fn finish(self, mut response: Response<Body>) -> Response<Body> {
        *response.status_mut() = self.status;
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}
