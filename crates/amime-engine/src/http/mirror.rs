//! Copies of requests sent elsewhere; nobody waits for their responses.

use std::rc::Rc;

use http::{HeaderValue, Version, header};

use super::body::RequestBody;
use super::exchange::Exchange;
use super::forward::{self, Plan, PreparedBody};
use super::names;
use super::replay::ReplayBody;
use super::request::append_forwarded_for;
use crate::upstream::pool::{Acquire, ConnKey, Sender, acquire};
use crate::upstream::{ClusterRuntime, LbInput};
use amime_config::cluster::UpstreamProtocol;
use amime_config::discovery::Discovery;
use amime_config::route_cluster::Mirror;

/// Starts the copies that the route asks for.
pub(super) fn send_all(plan: &Plan<'_>, body: &PreparedBody) {
    for mirror in &plan.action.mirrors {
        if !mirror.fraction.draw() {
            continue;
        }
        if let Some(cluster) = forward::find(plan.exchange, &mirror.cluster) {
            let cluster = plan.exchange.connection.worker.snapshot().member(&cluster);
            start(plan.exchange, mirror, cluster, body);
        }
    }
}

fn start(
    exchange: &Rc<Exchange>,
    mirror: &Mirror,
    cluster: Rc<ClusterRuntime>,
    body: &PreparedBody,
) {
    let mut head = exchange.head.borrow().clone();
    // The copy is a request of our own.
    head.headers.insert(names::X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    append_forwarded_for(&mut head.headers, exchange.connection.worker.address);
    if mirror.append_shadow {
        let (host, port) = match head.authority().rsplit_once(':') {
            Some((host, port)) => (host, format!(":{port}")),
            None => (head.authority(), String::new()),
        };
        if let Ok(value) = HeaderValue::from_str(&format!("{host}-shadow{port}")) {
            head.headers.insert(header::HOST, value);
        }
    }
    let replay = match body {
        PreparedBody::Repeatable(replay) => Some(replay.clone()),
        PreparedBody::Empty | PreparedBody::Once(_) => None,
    };
    let exchange = exchange.clone();
    tokio::task::spawn_local(async move {
        if replay.is_some() && exchange.completed_at().is_none() {
            // The copy goes when the original has been read, so that the two
            // do not race for the client's bytes.
            exchange.complete.notified().await;
            exchange.complete.notify_one();
        }
        let body = match &replay {
            Some(replay) if replay.borrow().repeatable() => {
                RequestBody::Replay(ReplayBody::new(replay))
            }
            Some(_) => return,
            None => RequestBody::Empty,
        };
        let host = match &cluster.config().discovery {
            Discovery::Dynamic(cache) => cluster.named(cache, head.authority(), None).await.ok(),
            _ => cluster.choose(LbInput::default()),
        };
        let Some(host) = host else { return };
        let http2 = cluster.config().http.protocol == UpstreamProtocol::Http2;
        let key = ConnKey::plain(http2);
        let mark = exchange.connection.worker.mark;
        let acquired = Acquire { cluster: &cluster, host: &host, priority: 0, mark, fresh: false };
        let Ok(mut lease) = acquire(acquired, key).await else { return };
        let mut request = http::Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.headers_mut() = head.headers.clone();
        match &lease.sender {
            Sender::H1(_) => *request.uri_mut() = head.origin_form(),
            Sender::H2 { .. } => {
                *request.version_mut() = Version::HTTP_2;
                *request.uri_mut() = super::attempt::absolute(&head, request.headers_mut());
            }
        }
        if let Ok(response) = lease.sender.send(request).await
            && response.into_body().drain().await
        {
            lease.release(&cluster, &host);
        }
    });
}
