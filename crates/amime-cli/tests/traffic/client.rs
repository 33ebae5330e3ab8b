//! Requests from pods.

use std::time::Duration;

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::HeaderMap;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;

use crate::mesh::Mesh;
use crate::portal;
use crate::tls::ClientTls;

/// Longer than any answer takes, also on a busy machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Bytes both ways.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// One request to be sent.
#[derive(Clone)]
pub(crate) struct Ask<'m> {
    mesh: &'m Mesh,
    way: Way,
    method: String,
    authority: String,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
}

/// How a client reaches a server.
#[derive(Clone)]
pub(crate) struct Way {
    pod: String,
    target: String,
    http2: bool,
    tls: Option<ClientTls>,
    /// Sent before anything else.
    preamble: Vec<u8>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) trailers: HeaderMap,
    pub(crate) body: String,
    /// DER of the server's certificate.
    pub(crate) server: Option<Vec<u8>>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.get(name).and_then(|value| value.to_str().ok())
    }

    /// What the server said about the request.
    #[track_caller]
    pub(crate) fn said(&self, field: &str) -> String {
        let said: Value = match serde_json::from_str(&self.body) {
            Ok(said) => said,
            Err(_) => panic!("not from a server: {self:?}"),
        };
        match &said[field] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }

    /// The pod that answered; none: a proxy did.
    pub(crate) fn pod(&self) -> Option<String> {
        let said: Value = serde_json::from_str(&self.body).ok()?;
        said["pod"].as_str().map(str::to_owned)
    }

    /// A header of the request as the server saw it.
    #[track_caller]
    pub(crate) fn saw(&self, header: &str) -> Option<String> {
        let said: Value = serde_json::from_str(&self.body).expect("from a server");
        said["headers"][header].as_str().map(str::to_owned)
    }
}

impl Mesh {
    /// A GET from a pod, to `http://HOST:PORT/PATH` or the same with `https`.
    #[track_caller]
    pub(crate) fn get(&self, pod: &str, url: &str) -> Ask<'_> {
        let (scheme, rest) = url.split_once("://").expect("a scheme");
        let (host, path) = match rest.find('/') {
            Some(at) => (&rest[..at], &rest[at..]),
            None => (rest, "/"),
        };
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) => (name, port.parse().expect("a port")),
            None => (host, if scheme == "https" { 443_u16 } else { 80 }),
        };
        let tls = (scheme == "https").then(|| ClientTls::named(name));
        let way = Way {
            pod: pod.to_owned(),
            target: format!("{name}:{port}"),
            http2: false,
            tls,
            preamble: Vec::new(),
        };
        Ask {
            mesh: self,
            way,
            method: "GET".to_owned(),
            authority: host.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: String::new(),
        }
    }

    /// A TCP connection from a pod, and its own and its peer's address.
    pub(crate) async fn dial(
        &self,
        pod: &str,
        target: &str,
    ) -> anyhow::Result<(UnixStream, String)> {
        let socket = portal::socket_of(self.dir(), pod);
        let mut stream = UnixStream::connect(&socket).await.context("the portal")?;
        stream.write_all(format!("dial {target}\n").as_bytes()).await?;
        let line = portal::read_line(&mut stream).await?;
        let addresses = line.strip_prefix("ok ").context(format!("{pod} to {target}: {line}"))?;
        Ok((stream, addresses.to_owned()))
    }

    /// What a pod gets told about a name.
    pub(crate) fn resolve(&self, pod: &str, host: &str) -> anyhow::Result<Vec<String>> {
        self.run(async {
            let mut stream = UnixStream::connect(portal::socket_of(self.dir(), pod)).await?;
            stream.write_all(format!("resolve {host}\n").as_bytes()).await?;
            let line = portal::read_line(&mut stream).await?;
            let found = line.strip_prefix("ok ").context(format!("{host}: {line}"))?;
            Ok(found.split(' ').map(str::to_owned).collect())
        })
    }

    /// Sends bytes over a new connection and reads until the other side ends,
    /// or until `enough` bytes are there.
    pub(crate) fn talk(
        &self,
        pod: &str,
        target: &str,
        say: &[u8],
        enough: usize,
    ) -> anyhow::Result<String> {
        self.run(async {
            let (mut stream, _) = self.dial(pod, target).await?;
            exchange(&mut stream, say, enough).await
        })
    }
}

/// Writes, then reads until `enough` bytes are there or the other side ends.
pub(crate) async fn exchange(
    stream: &mut (impl Stream + ?Sized),
    say: &[u8],
    enough: usize,
) -> anyhow::Result<String> {
    stream.write_all(say).await?;
    let mut heard = Vec::new();
    let reading = async {
        while heard.len() < enough {
            if stream.read_buf(&mut heard).await? == 0 {
                break;
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(ANSWER_WITHIN, reading).await.context("no answer in time")??;
    Ok(String::from_utf8_lossy(&heard).into_owned())
}

impl<'m> Ask<'m> {
    pub(crate) fn method(mut self, method: &str) -> Self {
        self.method = method.to_owned();
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Orders to the server, see `server`.
    pub(crate) fn order(self, orders: &str) -> Self {
        self.header("x-do", orders)
    }

    /// Name under which the servers keep the request.
    pub(crate) fn case(self, case: &str) -> Self {
        self.header("x-case", case)
    }

    /// The authority, where the client does not connect to.
    pub(crate) fn host(mut self, authority: &str) -> Self {
        self.authority = authority.to_owned();
        if let Some(tls) = &mut self.way.tls {
            tls.name = authority.split(':').next().expect("a name").to_owned();
        }
        self
    }

    pub(crate) fn body(mut self, body: &str) -> Self {
        self.body = body.to_owned();
        self
    }

    pub(crate) fn http2(mut self) -> Self {
        self.way.http2 = true;
        if let Some(tls) = &mut self.way.tls {
            tls.alpn = vec!["h2"];
        }
        self
    }

    pub(crate) fn preamble(mut self, bytes: &[u8]) -> Self {
        self.way.preamble = bytes.to_vec();
        self
    }

    pub(crate) fn tls(mut self, change: impl FnOnce(&mut ClientTls)) -> Self {
        change(self.way.tls.as_mut().expect("https"));
        self
    }

    /// A gRPC call with one message.
    pub(crate) fn grpc(self) -> Self {
        let body = self.http2().method("POST").header("te", "trailers");
        body.header("content-type", "application/grpc").body("\0\0\0\0\u{4}ping")
    }

    /// The answer; there has to be one.
    #[track_caller]
    pub(crate) fn send(self) -> Answer {
        let what = format!("{} {}{} from {}", self.method, self.authority, self.path, self.way.pod);
        match self.try_send() {
            Ok(answer) => answer,
            Err(error) => panic!("{what}: {error:#}"),
        }
    }

    pub(crate) fn try_send(self) -> anyhow::Result<Answer> {
        self.mesh.run(self.exchange())
    }

    /// Over a connection of its own.
    pub(crate) async fn exchange(self) -> anyhow::Result<Answer> {
        let answered = async {
            let mut connection = Connection::open(self.mesh, &self.way).await?;
            connection.ask(self).await
        };
        tokio::time::timeout(ANSWER_WITHIN, answered).await.context("no answer in time")?
    }

    /// A connection for this and further requests.
    pub(crate) fn connect(&self) -> anyhow::Result<Connection> {
        self.mesh.run(Connection::open(self.mesh, &self.way))
    }

    /// The answer over a connection that is there already.
    pub(crate) fn over(self, connection: &mut Connection) -> anyhow::Result<Answer> {
        self.mesh.run(async {
            tokio::time::timeout(ANSWER_WITHIN, connection.ask(self))
                .await
                .context("no answer in time")?
        })
    }

    /// Sends an upgrade or CONNECT, and bytes once it was granted; the status
    /// and what came back.
    pub(crate) fn upgrade(self, say: &str, enough: usize) -> anyhow::Result<(u16, String)> {
        self.mesh.run(async {
            let mut connection = Connection::open(self.mesh, &self.way).await?;
            let response = connection.send(&self).await?;
            let status = response.status().as_u16();
            if status != 101 && status != 200 {
                return Ok((status, String::new()));
            }
            let mut stream = TokioIo::new(hyper::upgrade::on(response).await?);
            Ok((status, exchange(&mut stream, say.as_bytes(), enough).await?))
        })
    }

    fn request(&self, http2: bool) -> anyhow::Result<Request<Full<Bytes>>> {
        let scheme = if self.way.tls.is_some() { "https" } else { "http" };
        let mut request = Request::builder().method(self.method.as_str());
        if self.method == "CONNECT" {
            request = request.uri(self.path.trim_start_matches('/'));
        } else if http2 {
            let uri = format!("{scheme}://{}{}", self.authority, self.path);
            request = request.version(Version::HTTP_2).uri(uri);
        } else {
            request = request.uri(&self.path);
        }
        if !http2 {
            request = request.header("host", &self.authority);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        Ok(request.body(Full::new(Bytes::from(self.body.clone())))?)
    }
}

/// A connection of a client.
pub(crate) struct Connection {
    sender: Sender,
    /// Its own and its peer's, as access logs have them.
    addresses: String,
    server: Option<Vec<u8>>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    async fn open(mesh: &Mesh, way: &Way) -> anyhow::Result<Self> {
        let (mut stream, addresses) = mesh.dial(&way.pod, &way.target).await?;
        stream.write_all(&way.preamble).await?;
        let Some(tls) = &way.tls else {
            let sender = Self::speak(stream, way.http2).await?;
            return Ok(Self { sender, addresses, server: None });
        };
        let name = tls.name.clone().try_into().context("a server name")?;
        let stream = TlsConnector::from(tls.config()).connect(name, stream).await?;
        let session = stream.get_ref().1;
        let server = session.peer_certificates().map(|certs| certs[0].to_vec());
        if way.http2 {
            ensure!(session.alpn_protocol() == Some(b"h2"), "h2 was not agreed on");
        }
        Ok(Self { sender: Self::speak(stream, way.http2).await?, addresses, server })
    }

    async fn speak(stream: impl Stream + 'static, http2: bool) -> anyhow::Result<Sender> {
        let stream = TokioIo::new(stream);
        if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(async move { connection.await.ok() });
            return Ok(Sender::Http2(sender));
        }
        let (sender, connection) = http1::handshake(stream).await?;
        tokio::spawn(async move { connection.with_upgrades().await.ok() });
        Ok(Sender::Http1(sender))
    }

    async fn send(&mut self, ask: &Ask<'_>) -> anyhow::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                Ok(sender.send_request(ask.request(false)?).await?)
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                Ok(sender.send_request(ask.request(true)?).await?)
            }
        }
    }

    async fn ask(&mut self, ask: Ask<'_>) -> anyhow::Result<Answer> {
        let asked = OffsetDateTime::now_utc();
        let answer = self.answer(ask).await;
        answer.with_context(|| format!("asked at {asked} from and to {}", self.addresses))
    }

    async fn answer(&mut self, ask: Ask<'_>) -> anyhow::Result<Answer> {
        let response = self.send(&ask).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.context("the body")?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            trailers,
            body: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            server: self.server.clone(),
        })
    }
}
