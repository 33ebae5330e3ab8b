//! TCP inside of a request that the upstream is sent: CONNECT or POST.

use std::net::SocketAddr;

use http::uri::{Authority, Parts, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderValue, Method, Request, Version, header};

use crate::http::body::RequestBody;
use crate::http::pipe::{BodyReader, Duplex, Pipe};
use crate::listener::Connection;
use crate::upstream::connect::ConnectError;
use crate::upstream::pool::{Acquire, ConnKey, Held, Lease, acquire};
use amime_config::cluster::UpstreamProtocol;
use amime_config::tcp::Tunneling;
use amime_rules::format::FormatInput;

/// A tunnel that stands.
pub(super) struct Tunnel {
    pub(super) io: Box<dyn Duplex>,
    /// Holds the tunnel's connection or stream.
    pub(super) _held: (Option<Lease>, Held),
}

impl Tunnel {
    /// Asks the endpoint for a tunnel.
    pub(super) async fn open(
        endpoint: Acquire<'_>,
        connection: &Connection,
        config: &Tunneling,
    ) -> Result<(Self, Option<SocketAddr>), ConnectError> {
        let http2 = endpoint.cluster.config().http.protocol == UpstreamProtocol::Http2;
        let key = ConnKey::plain(http2);
        let mut lease = acquire(endpoint, key).await?;
        let local = lease.conn.facts.local;
        let tls = endpoint.host.endpoint.transport.tls().is_some();
        let (body, writer) = match &config.post {
            None => (RequestBody::Empty, None),
            Some(_) => {
                let (pipe, writer) = Pipe::new();
                (RequestBody::Pipe(pipe), Some(writer))
            }
        };
        let request = request(connection, config, (http2, tls), body)
            .ok_or_else(|| ConnectError::Failed("the tunnel's host is not a host".into()))?;
        let sent = lease.sender.send(request).await;
        let response = sent.map_err(|_| ConnectError::Failed("connection termination".into()))?;
        if !response.status().is_success() {
            let status = response.status().as_u16();
            return Err(ConnectError::Failed(format!("tunnel answered with {status}").into()));
        }
        let (io, _held): (Box<dyn Duplex>, _) = match writer {
            Some(writer) => {
                let reader = BodyReader::upstream(response.into_body());
                (Box::new(tokio::io::join(reader, writer)), (Some(lease), Held::default()))
            }
            None => {
                let bare = lease.into_tunnel(response).await;
                let failed = |error: std::io::Error| ConnectError::Failed(error.to_string().into());
                let (io, held) = bare.map_err(failed)?;
                (io, (None, held))
            }
        };
        Ok((Self { io, _held }, local))
    }
}

/// The request for a tunnel; `None` if its host is none.
fn request(
    connection: &Connection,
    config: &Tunneling,
    (http2, tls): (bool, bool),
    body: RequestBody,
) -> Option<Request<RequestBody>> {
    let input = FormatInput {
        downstream_remote: Some(connection.remote),
        downstream_local: Some(connection.local),
        sni: connection.sni.as_deref(),
        tls: connection.tls.as_ref(),
        ..FormatInput::default()
    };
    let mut headers = HeaderMap::new();
    let host = config.hostname.render(&headers, &input);
    let authority: Authority = host.as_bytes().try_into().ok()?;
    let mut parts = Parts::default();
    if !http2 {
        headers.insert(header::HOST, host);
    }
    if let Some(path) = &config.post {
        if http2 {
            parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
            parts.authority = Some(authority);
        } else {
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        parts.path_and_query = Some(PathAndQuery::clone(path));
    } else {
        parts.authority = Some(authority);
    }
    config.headers.apply(&mut headers, &input);
    let mut request = Request::new(body);
    *request.method_mut() = if config.post.is_some() { Method::POST } else { Method::CONNECT };
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    if http2 {
        *request.version_mut() = Version::HTTP_2;
    }
    *request.headers_mut() = headers;
    Some(request)
}
