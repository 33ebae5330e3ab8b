//! Connections that leave HTTP: bytes pass both ways.
//!
//! An upgrade that comes as extended CONNECT over HTTP/2 is an upgrade of
//! HTTP/1 to all but the codecs, as in Envoy.

use std::io;
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::oneshot;

use super::attempt::Attempt;
use super::body::{DownstreamBody, UpstreamBody};
use super::connect::Open;
use super::error::ProxyError;
use super::exchange::{End, Exchange, ExchangeGuard};
use super::h1;
use super::pipe::{BodyReader, Duplex};
use super::request::Admitted;
use crate::tcp::copy::{Copied, CopyEnd, copy_both};
use amime_config::route::RouteRef;
use amime_config::route_action::{Action, RouteUpgrade};
use amime_rules::head::RequestHead;

/// What becomes of a request that wants to leave HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// The upstream is asked.
    Forward,
    /// The tunnel ends here; its bytes go to the upstream bare.
    Terminate,
}

/// Whether the request is an upgrade, and one that its route allows.
pub(super) fn wanted(
    exchange: &Exchange,
    admitted: &Admitted,
    route: &RouteRef,
) -> Result<Option<Upgrade>, ProxyError> {
    let upgrades: &[RouteUpgrade] = match &route.action {
        Action::Forward(forward) => &forward.upgrades,
        _ => &[],
    };
    let head = exchange.head.borrow();
    if !admitted.upgrade {
        let post = head.method == Method::POST
            && upgrades.iter().any(|it| it.terminate.is_some_and(|it| it.allow_post));
        return Ok(post.then_some(Upgrade::Terminate));
    }
    let kind = match head.method {
        Method::CONNECT => "connect".to_owned(),
        _ => {
            let kind = head.headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
            kind.unwrap_or_default().to_ascii_lowercase()
        }
    };
    let by_route = upgrades.iter().find(|upgrade| upgrade.kind == kind);
    let allowed = match by_route {
        Some(upgrade) => upgrade.enabled,
        None => exchange.connection.config.upgrades.contains(&kind),
    };
    if !allowed {
        return Err(ProxyError::UpgradeRefused);
    }
    let terminate = head.method == Method::CONNECT
        && by_route.is_some_and(|upgrade| upgrade.terminate.is_some());
    Ok(Some(if terminate { Upgrade::Terminate } else { Upgrade::Forward }))
}

/// True if a request to leave HTTP is one for a WebSocket.
pub(super) fn is_websocket(head: &RequestHead) -> bool {
    let kind = head.headers.get(header::UPGRADE);
    kind.is_some_and(|kind| kind.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// True if the response agrees to the upgrade. One over HTTP/2 is given the
/// form that it has over HTTP/1.
pub(super) fn accepted(exchange: &Exchange, parts: &mut http::response::Parts) -> bool {
    let head = exchange.head.borrow();
    if head.method == Method::CONNECT {
        return parts.status.is_success();
    }
    let http2 = exchange.log.borrow().conn.as_ref().is_some_and(|conn| conn.is_http2());
    if http2
        && parts.status == StatusCode::OK
        && let Some(kind) = head.headers.get(header::UPGRADE)
    {
        parts.status = StatusCode::SWITCHING_PROTOCOLS;
        parts.headers.insert(header::UPGRADE, kind.clone());
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    parts.status == StatusCode::SWITCHING_PROTOCOLS
}

/// Gives an accepted upgrade the form that the client's protocol has for it.
pub(super) fn for_client(exchange: &Exchange, parts: &mut http::response::Parts) {
    let http2 = exchange.head.borrow().version >= http::Version::HTTP_2;
    if http2 && parts.status == StatusCode::SWITCHING_PROTOCOLS {
        parts.status = StatusCode::OK;
        parts.headers.remove(header::UPGRADE);
        parts.headers.remove(header::CONNECTION);
    }
}

/// The client's stream, once its codec lets go of it.
pub(crate) enum OnUpgrade {
    H1(oneshot::Receiver<h1::Upgraded>),
    H2(hyper::upgrade::OnUpgrade),
}

impl OnUpgrade {
    async fn bare(self) -> io::Result<Box<dyn Duplex>> {
        Ok(match self {
            Self::H1(upgraded) => Box::new(upgraded.await.map_err(io::Error::other)?),
            Self::H2(upgrade) => Box::new(TokioIo::new(upgrade.await.map_err(io::Error::other)?)),
        })
    }
}

/// The client's end of a tunnel.
pub(super) enum Downstream {
    Upgrade(OnUpgrade),
    /// The tunnel is inside of a message.
    Message(DownstreamBody, DuplexStream),
}

/// The upstream's end of a tunnel.
pub(super) enum Upstream {
    /// The response that agrees to the tunnel.
    Upgrade(Box<(http::Response<UpstreamBody>, Attempt)>),
    Open(Open),
}

/// Both ends of a tunnel, not yet joined.
pub(super) struct Tunnel {
    pub(super) downstream: Downstream,
    pub(super) upstream: Upstream,
    pub(super) idle: Option<Duration>,
}

impl Tunnel {
    /// Joins the two ends once the codecs have let go of them.
    pub(super) fn run(self, mut guard: ExchangeGuard) {
        tokio::task::spawn_local(async move {
            let stats = guard.exchange().connection.stats.clone();
            stats.downstream_cx_upgrades_total.inc();
            stats.downstream_cx_upgrades_active.inc();
            let copied = self.join().await;
            stats.downstream_cx_upgrades_active.dec();
            let mut end = End::Complete;
            if let Ok(copied) = copied {
                let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
                guard.exchange().count_received(bytes(copied.up));
                guard.exchange().count_sent(bytes(copied.down));
                if copied.by_client || copied.end == CopyEnd::DownstreamFailed {
                    end = End::DownstreamGone;
                }
            }
            guard.finish(end);
        });
    }

    async fn join(self) -> io::Result<Copied> {
        let downstream = async {
            Ok(match self.downstream {
                Downstream::Upgrade(upgrade) => upgrade.bare().await?,
                Downstream::Message(incoming, writer) => {
                    let both = tokio::io::join(BodyReader::downstream(incoming), writer);
                    Box::new(both) as Box<dyn Duplex>
                }
            })
        };
        match self.upstream {
            Upstream::Upgrade(agreed) => {
                let (response, attempt) = *agreed;
                let upstream = attempt.into_tunnel(response);
                let (downstream, (upstream, _held)) = tokio::try_join!(downstream, upstream)?;
                Ok(copy_both(downstream, upstream, self.idle).await)
            }
            Upstream::Open(open) => {
                let Open { io, _held } = open;
                Ok(copy_both(downstream.await?, io, self.idle).await)
            }
        }
    }
}
