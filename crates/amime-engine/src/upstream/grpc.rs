//! Calls of gRPC services behind clusters: one message there, one back.
//!
//! Spec: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header};

use super::pool::{Acquire, ConnKey, acquire};
use super::{ClusterRuntime, LbInput};
use crate::http::body::RequestBody;
use crate::worker::Worker;
use amime_config::cluster::UpstreamProtocol;
use amime_config::tls::{Alpn, UpstreamTransport};

/// One call.
pub(crate) struct Call<'a> {
    pub(crate) path: &'static str,
    pub(crate) authority: &'a HeaderValue,
    pub(crate) message: Vec<u8>,
    pub(crate) timeout: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrpcError {
    #[error("no endpoint of the cluster is healthy")]
    NoEndpoint,
    #[error("the cluster does not speak HTTP/2")]
    NotHttp2,
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("the stream broke")]
    Broken,
    #[error("no answer in time")]
    Timeout,
    #[error("status {0}")]
    Status(String),
    #[error("the answer is not one message")]
    Malformed,
}

/// The most that an answer may take.
const MAX_ANSWER: usize = 1 << 20;

/// Length and flags before each message.
const PREFIX: usize = 5;

/// Calls a service and returns its message.
pub(crate) async fn unary(
    worker: &Rc<Worker>,
    cluster: &Rc<ClusterRuntime>,
    call: Call<'_>,
) -> Result<Bytes, GrpcError> {
    let timeout = call.timeout;
    tokio::time::timeout(timeout, answer(worker, cluster, call))
        .await
        .unwrap_or(Err(GrpcError::Timeout))
}

async fn answer(
    worker: &Rc<Worker>,
    cluster: &Rc<ClusterRuntime>,
    call: Call<'_>,
) -> Result<Bytes, GrpcError> {
    let cluster = &worker.snapshot().member(cluster);
    if cluster.config().http.protocol != UpstreamProtocol::Http2 {
        return Err(GrpcError::NotHttp2);
    }
    let host = cluster.choose(LbInput::default()).ok_or(GrpcError::NoEndpoint)?;
    let endpoint = Acquire { cluster, host: &host, priority: 0, mark: worker.mark, fresh: false };
    let key = ConnKey { alpn: Alpn::Configured, ..ConnKey::plain(true) };
    let mut lease =
        acquire(endpoint, key).await.map_err(|error| GrpcError::Connect(error.to_string()))?;
    let tls = matches!(host.endpoint.transport, UpstreamTransport::Tls(_));
    let request = request(call, tls).ok_or(GrpcError::Malformed)?;
    let response = lease.sender.send(request).await.map_err(|_| GrpcError::Broken)?;
    let mut good = succeeded(response.headers())?;
    let mut body = response.into_body();
    let mut message = BytesMut::new();
    while let Some(frame) = std::future::poll_fn(|cx| body.poll_frame(cx)).await {
        let frame = frame.map_err(|_| GrpcError::Broken)?;
        if let Some(trailers) = frame.trailers_ref() {
            good |= succeeded(trailers)?;
        }
        if let Ok(data) = frame.into_data() {
            message.extend_from_slice(&data);
        }
        if message.len() > MAX_ANSWER {
            return Err(GrpcError::Malformed);
        }
    }
    lease.release(cluster, &host);
    if !good {
        return Err(GrpcError::Broken);
    }
    unframed(message.freeze())
}

/// True if the headers say that the call succeeded, false if they say nothing.
fn succeeded(headers: &HeaderMap) -> Result<bool, GrpcError> {
    match headers.get("grpc-status") {
        None => Ok(false),
        Some(status) if status == "0" => Ok(true),
        Some(status) => {
            Err(GrpcError::Status(String::from_utf8_lossy(status.as_bytes()).into_owned()))
        }
    }
}

/// The message inside of its frame.
fn unframed(mut bytes: Bytes) -> Result<Bytes, GrpcError> {
    if bytes.len() < PREFIX || bytes.get_u8() != 0 {
        return Err(GrpcError::Malformed);
    }
    let length = bytes.get_u32() as usize;
    if bytes.len() != length {
        return Err(GrpcError::Malformed);
    }
    Ok(bytes)
}

fn request(call: Call<'_>, tls: bool) -> Option<Request<RequestBody>> {
    let mut message = BytesMut::with_capacity(PREFIX + call.message.len());
    message.put_u8(0);
    message.put_u32(u32::try_from(call.message.len()).ok()?);
    message.extend_from_slice(&call.message);
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = Some(call.authority.as_bytes().try_into().ok()?);
    parts.path_and_query = Some(PathAndQuery::from_static(call.path));
    let mut request = Request::new(RequestBody::Bytes(Some(message.freeze())));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(
        "grpc-timeout",
        HeaderValue::from_str(&format!("{}m", call.timeout.as_millis())).ok()?,
    );
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_exactly_one_message() {
        let good = Bytes::from_static(&[0, 0, 0, 0, 2, 7, 8]);
        assert_eq!(unframed(good).expect("one message"), &[7_u8, 8][..]);
        for bad in [&[0, 0, 0, 0][..], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 2, 7], &[0, 0, 0, 0, 0, 7]] {
            assert!(unframed(Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
    }
}
