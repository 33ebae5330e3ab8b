//! One check of one endpoint.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Job;
use crate::LocalExecutor;
use crate::connect::{Target, UpstreamIo, connect};
use amime_config::health_check::{HealthCheck, HttpProbe, Probe};
use amime_config::tls::Alpn;

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good {
        degraded: bool,
    },
    /// A bad answer; one that must come several times if `retriable`.
    Bad {
        retriable: bool,
    },
    /// No answer.
    Network {
        timeout: bool,
    },
}

const BROKEN: Verdict = Verdict::Network { timeout: false };

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Checks one endpoint, on a connection that may be kept.
pub(super) struct Prober<'a> {
    job: &'a Job,
    check: &'a HealthCheck,
    kept: Option<Sender>,
}

/// The most that is read of an answer.
const MAX_ANSWER: usize = 64 * 1024;

impl<'a> Prober<'a> {
    pub(super) fn new(job: &'a Job, check: &'a HealthCheck) -> Self {
        Self { job, check, kept: None }
    }

    /// Closes the connection that was kept.
    pub(super) fn forget(&mut self) {
        self.kept = None;
    }

    /// Checks once.
    pub(super) async fn ask(&mut self) -> Verdict {
        match &self.check.probe {
            Probe::Tcp { send, receive } => self.tcp(send, receive).await,
            Probe::Http(probe) => self.http(probe).await,
            Probe::Grpc { service, authority, metadata } => {
                self.grpc(service, authority, metadata).await
            }
        }
    }

    fn address(&self) -> SocketAddr {
        let checked_as = &self.job.endpoint.checked_as;
        let mut address = checked_as.address.unwrap_or(self.job.endpoint.address);
        if let Some(port) = checked_as.port {
            address.set_port(port);
        }
        address
    }

    async fn connect(&self) -> Option<UpstreamIo> {
        let endpoint = &self.job.endpoint;
        let target = Target {
            address: self.address(),
            more: &[],
            hostname: &endpoint.hostname,
            transport: &endpoint.transport,
            alpn: Alpn::Configured,
            sni: None,
            client: None,
            mark: self.job.mark,
        };
        connect(&self.job.cluster, target).await.ok().map(|(io, _)| io)
    }

    async fn tcp(&self, send: &[u8], receive: &[Vec<u8>]) -> Verdict {
        let Some(mut io) = self.connect().await else { return BROKEN };
        if !send.is_empty() && io.write_all(send).await.is_err() {
            return BROKEN;
        }
        let mut seen = Vec::new();
        while !in_order(&seen, receive) {
            match io.read_buf(&mut seen).await {
                Ok(count) if count > 0 && seen.len() <= MAX_ANSWER => {}
                _ => return BROKEN,
            }
        }
        Verdict::Good { degraded: false }
    }

    /// Sends a request and takes the response's head.
    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
        http2: bool,
    ) -> Option<(Response<Incoming>, Sender)> {
        let kept = self.kept.take().filter(|kept| match kept {
            Sender::Http1(sender) => !sender.is_closed(),
            Sender::Http2(sender) => !sender.is_closed(),
        });
        let mut sender = match kept {
            Some(kept) => kept,
            None => self.open(http2).await?,
        };
        let sent = match &mut sender {
            Sender::Http1(sender) => {
                sender.ready().await.ok()?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                sender.ready().await.ok()?;
                sender.send_request(request).await
            }
        };
        Some((sent.ok()?, sender))
    }

    async fn open(&self, http2: bool) -> Option<Sender> {
        let io = TokioIo::new(self.connect().await?);
        Some(if http2 {
            let (sender, driver) = http2::handshake(LocalExecutor, io).await.ok()?;
            tokio::task::spawn_local(driver);
            Sender::Http2(sender)
        } else {
            let (sender, driver) = http1::handshake(io).await.ok()?;
            tokio::task::spawn_local(driver);
            Sender::Http1(sender)
        })
    }

    async fn http(&mut self, probe: &HttpProbe) -> Verdict {
        let host = self.authority(&probe.host);
        let Some(mut request) = self.request(&probe.method, &probe.path, &host, probe.http2) else {
            return Verdict::Bad { retriable: false };
        };
        for name in &probe.remove {
            request.headers_mut().remove(name);
        }
        request.headers_mut().extend(probe.headers.clone());
        let Some((response, sender)) = self.send(request, probe.http2).await else {
            return BROKEN;
        };
        let (parts, mut body) = response.into_parts();
        if drain(&mut body, None).await.is_none() {
            return BROKEN;
        }
        let closes = parts.headers.get(header::CONNECTION).is_some_and(|value| value == "close");
        if self.check.reuse_connection && !closes {
            self.kept = Some(sender);
        }
        let status = parts.status.as_u16();
        if probe.expects(status) {
            if parts.headers.contains_key("x-envoy-immediate-health-check-fail") {
                self.job.endpoint.state.exclude();
                return Verdict::Bad { retriable: false };
            }
            return Verdict::Good { degraded: parts.headers.contains_key("x-envoy-degraded") };
        }
        Verdict::Bad { retriable: probe.may_retry(status) }
    }

    async fn grpc(&mut self, service: &str, authority: &str, metadata: &HeaderMap) -> Verdict {
        let host = self.authority(authority);
        let path = "/grpc.health.v1.Health/Check";
        let Some(mut request) = self.request(&Method::POST, path, &host, true) else {
            return Verdict::Bad { retriable: false };
        };
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.extend(metadata.clone());
        *request.body_mut() = Full::new(health_request(service));
        let Some((response, sender)) = self.send(request, true).await else { return BROKEN };
        let (parts, mut body) = response.into_parts();
        let mut message = BytesMut::new();
        let Some(trailers) = drain(&mut body, Some(&mut message)).await else { return BROKEN };
        if self.check.reuse_connection {
            self.kept = Some(sender);
        }
        let status = trailers.get("grpc-status").or_else(|| parts.headers.get("grpc-status"));
        if parts.status == 200 && status.is_some_and(|status| status == "0") && serving(&message) {
            Verdict::Good { degraded: false }
        } else {
            Verdict::Bad { retriable: false }
        }
    }

    /// The name to ask for: that of the check, the endpoint or the cluster.
    fn authority(&self, configured: &str) -> String {
        let endpoint = &self.job.endpoint.checked_as.hostname;
        let names = [endpoint.as_str(), configured, &self.job.cluster.name];
        names.into_iter().find(|name| !name.is_empty()).unwrap_or_default().to_owned()
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        host: &str,
        http2: bool,
    ) -> Option<Request<Full<Bytes>>> {
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.method_mut() = method.clone();
        let agent = HeaderValue::from_static("Envoy/HC");
        request.headers_mut().insert(header::USER_AGENT, agent);
        if http2 {
            let scheme = if self.job.endpoint.transport.tls().is_some() { "https" } else { "http" };
            let uri = Uri::builder().scheme(scheme).authority(host).path_and_query(path);
            *request.uri_mut() = uri.build().ok()?;
        } else {
            *request.uri_mut() = path.parse().ok()?;
            request.headers_mut().insert(header::HOST, HeaderValue::from_str(host).ok()?);
        }
        Some(request)
    }
}

/// Reads a body to its end, into `keep`; its trailers.
async fn drain(body: &mut Incoming, mut keep: Option<&mut BytesMut>) -> Option<HeaderMap> {
    let mut trailers = HeaderMap::new();
    let mut length = 0;
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        match frame.ok()?.into_data() {
            Ok(data) => {
                length += data.len();
                if length > MAX_ANSWER {
                    return None;
                }
                if let Some(keep) = keep.as_mut() {
                    keep.extend_from_slice(&data);
                }
            }
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    Some(trailers)
}

/// True if all parts are found, each after the one before it.
fn in_order(seen: &[u8], parts: &[Vec<u8>]) -> bool {
    let mut rest = seen;
    parts.iter().filter(|part| !part.is_empty()).all(|part| {
        let at = rest.windows(part.len()).position(|window| window == part.as_slice());
        at.is_some_and(|at| {
            rest = &rest[at + part.len()..];
            true
        })
    })
}

/// `grpc.health.v1.HealthCheckRequest` in its frame.
fn health_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        prost::encode_length_delimiter(service.len(), &mut message).expect("a buffer grows");
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&message);
    frame.freeze()
}

/// True if the frame holds a `HealthCheckResponse` with the status SERVING.
fn serving(frame: &[u8]) -> bool {
    let mut frame = frame;
    if frame.len() < 5 || frame.get_u8() != 0 || frame.get_u32() as usize != frame.len() {
        return false;
    }
    frame == [0x08, 0x01]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_answer_come_in_order() {
        let parts = [b"ab".to_vec(), b"cd".to_vec()];
        assert!(in_order(b"xabxcdx", &parts));
        assert!(!in_order(b"cdab", &parts));
        assert!(in_order(b"", &[]), "a connection is enough");
    }

    #[test]
    fn only_serving_is_healthy() {
        assert!(serving(&[0, 0, 0, 0, 2, 8, 1]));
        assert!(!serving(&[0, 0, 0, 0, 2, 8, 2]));
        assert!(!serving(&[0, 0, 0, 0, 0]));
    }
}
