//! Tunnels that end here: CONNECT requests whose bytes go to a plain
//! connection.

use std::rc::Rc;

use http::{Response, StatusCode};

use super::attempt::{Failure, InFlight};
use super::attempts::Attempts;
use super::body::DownstreamBody;
use super::deliver::Forwarded;
use super::error::ProxyError;
use super::forward::Plan;
use super::pipe::Pipe;
use super::upgrade::{Downstream, OnUpgrade, Tunnel, Upstream};
use crate::tcp::open;
use crate::upstream::connect::UpstreamIo;
use crate::upstream::open::OpenGuard;
use crate::upstream::{Host, Outcome, Resource};
use amime_rules::retry::RetryOn;

/// A connection to an upstream with what counts it.
pub(super) struct Open {
    pub(super) io: UpstreamIo,
    pub(super) _held: (InFlight, OpenGuard),
}

/// Connects and answers that the tunnel stands.
pub(super) async fn terminate(
    plan: &Plan<'_>,
    attempts: &Attempts<'_>,
    body: DownstreamBody,
    on_upgrade: Option<OnUpgrade>,
) -> Result<Forwarded, ProxyError> {
    let open = attempts.dial().await?;
    let log = &plan.exchange.log;
    log.borrow_mut().response_after = Some(plan.exchange.begun.elapsed());
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = StatusCode::OK;
    let (downstream, pipe) = match on_upgrade {
        Some(upgrade) => (Downstream::Upgrade(upgrade), None),
        None => {
            let (pipe, writer) = Pipe::new();
            (Downstream::Message(body, writer), Some(pipe))
        }
    };
    let idle = attempts.timeouts.idle;
    let tunnel = Tunnel { downstream, upstream: Upstream::Open(open), idle };
    Ok(Forwarded::tunnel(parts, tunnel, pipe))
}

impl Attempts<'_> {
    /// Connects to an endpoint, to others when that fails and may be retried.
    async fn dial(&self) -> Result<Open, ProxyError> {
        let retry = self.plan.action.retry.as_ref();
        let again = RetryOn::CONNECT_FAILURE.union(RetryOn::FIVE_XX).union(RetryOn::GATEWAY_ERROR);
        let again = again.union(RetryOn::RESET);
        let mut left = retry.filter(|retry| retry.on.contains(again)).map_or(0, |it| it.limit);
        let mut tried: Vec<Rc<Host>> = Vec::new();
        loop {
            self.plan.exchange.log.borrow_mut().attempts += 1;
            let retried = !tried.is_empty();
            let failure = match self.dial_one(&tried).await {
                Ok(open) => return Ok(open),
                Err(failure) => failure,
            };
            if left == 0 || !matches!(failure, Failure::Connect(_)) {
                return Err(failure.into_error(retried));
            }
            left -= 1;
            tried.extend(self.plan.exchange.log.borrow().host.clone());
        }
    }

    async fn dial_one(&self, tried: &[Rc<Host>]) -> Result<Open, Failure> {
        let host = self.choose_host(tried).await?;
        let exchange = self.plan.exchange;
        exchange.log.borrow_mut().host = Some(host.clone());
        if !self.cluster.take(self.priority(), Resource::Requests) {
            return Err(Failure::Overflow);
        }
        let flight = InFlight::new(self.cluster, &host, self.priority());
        let connection = &exchange.connection;
        let downstream = &connection.downstream;
        let client = downstream.proxied.then(|| downstream.ends());
        match open(&connection.worker, self.cluster, &host, client).await {
            Ok((io, _, guard)) => Ok(Open { io, _held: (flight, guard) }),
            Err(error) => {
                exchange.log.borrow_mut().transport_failure = Some(error.to_string());
                host.counters().rq_error.inc();
                self.cluster.observe(&host, Outcome::LocalOrigin);
                Err(Failure::Connect(error))
            }
        }
    }
}
