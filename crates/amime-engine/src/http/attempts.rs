//! Attempts of one request, until one is good or no more may be made.

use std::rc::Rc;

use amime_telemetry::ResponseFlags;
use bytes::{Bytes, BytesMut};
use http::HeaderValue;

use super::attempt::{self, Attempt, Failure};
use super::body::UpstreamBody;
use super::error::{ProxyError, ResetReason};
use super::filters::Wait;
use super::forward::{Plan, PreparedBody};
use super::retry::{Decision, RetrySettings, RetryState};
use super::timeouts::{Timeouts, route_timeout};
use super::{buffer, dynamic_host, grpc_web, hash, names, session};
use crate::upstream::{ClusterRuntime, Host, LbInput, Outcome, Resource, RetryInput};
use amime_config::discovery::Discovery;
use amime_config::route_action::{HostRewrite, millis_value};

pub(super) struct Attempts<'a> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) cluster: &'a Rc<ClusterRuntime>,
    pub(super) timeouts: Timeouts,
    pub(super) retry: RetrySettings,
    /// What a first attempt's endpoint depends on.
    pub(super) input: LbInput<'a>,
}

pub(super) type Answer = (http::response::Parts, UpstreamBody, Attempt);

impl Attempts<'_> {
    /// Makes attempts until one is good or no more may be made.
    pub(super) async fn run(&self, body: &PreparedBody) -> Result<Answer, ProxyError> {
        let limit = route_timeout(self.plan.exchange, self.timeouts);
        match limit {
            None => self.all(body).await,
            Some(limit) => {
                let mut limit = std::pin::pin!(limit);
                tokio::select! {
                    biased;
                    answer = self.all(body) => answer,
                    error = limit.as_mut() => {
                        self.cluster.stats.upstream_rq_timeout.inc();
                        if let Some(host) = &self.plan.exchange.log.borrow().host {
                            host.counters().rq_timeout.inc();
                            self.cluster.observe(host, Outcome::Timeout);
                        }
                        Err(error)
                    }
                }
            }
        }
    }

    /// Waits for a response's body and its trailers, which the log keeps.
    pub(super) async fn whole(
        &self,
        (mut incoming, attempt): (UpstreamBody, Attempt),
        wait: Wait,
    ) -> Result<Bytes, ProxyError> {
        let exchange = self.plan.exchange;
        let max = match wait {
            Wait::Message => grpc_web::MAX_MESSAGE,
            Wait::Whole => exchange.connection.config.buffer_limit,
        };
        let mut kept = BytesMut::new();
        let read = async {
            while let Some(frame) = std::future::poll_fn(|cx| incoming.poll_frame(cx)).await {
                let frame = frame.map_err(|_| ProxyError::Reset {
                    reason: ResetReason::ConnectionTermination,
                    retried: false,
                    begun: true,
                })?;
                if let Some(trailers) = frame.trailers_ref() {
                    exchange.response_trailers(trailers);
                }
                if let Some(data) = frame.data_ref() {
                    let room = max - kept.len();
                    if wait == Wait::Whole && data.len() > room {
                        return Err(buffer::answer_too_large());
                    }
                    kept.extend_from_slice(&data[..data.len().min(room)]);
                }
            }
            Ok(())
        };
        match route_timeout(self.plan.exchange, self.timeouts) {
            None => read.await?,
            Some(limit) => {
                let mut limit = std::pin::pin!(limit);
                tokio::select! {
                    biased;
                    read = read => read?,
                    error = limit.as_mut() => return Err(error),
                }
            }
        }
        attempt.release();
        Ok(kept.freeze())
    }

    async fn all(&self, body: &PreparedBody) -> Result<Answer, ProxyError> {
        let exchange = self.plan.exchange;
        let mut retry = RetryState::new(&self.retry, self.cluster, self.priority());
        let mut tried: Vec<Rc<Host>> = Vec::new();
        loop {
            exchange.log.borrow_mut().attempts += 1;
            let result = self.one(body, &tried).await;
            if let Some(host) = exchange.log.borrow().host.as_ref()
                && self.retry.active()
            {
                tried.push(host.clone());
            }
            let decision =
                if body.repeatable() { retry.decide(&result) } else { Decision::Deliver };
            match decision {
                Decision::Deliver => {
                    return result.map_err(|failure| failure.into_error(retry.used() > 0));
                }
                Decision::Exhausted | Decision::Overflow => {
                    let flag = match decision {
                        Decision::Overflow => ResponseFlags::UO,
                        _ => ResponseFlags::URX,
                    };
                    exchange.log.borrow_mut().flags.insert(flag);
                    return result.map_err(|failure| failure.into_error(retry.used() > 0));
                }
                Decision::Retry(back_off) => {
                    if let Ok((parts, incoming, attempt)) = result {
                        self.cluster.stats.retry_codes.record(parts.status.as_u16());
                        attempt.discard(incoming);
                    }
                    tokio::time::sleep(back_off).await;
                }
            }
        }
    }

    async fn one(&self, body: &PreparedBody, tried: &[Rc<Host>]) -> Result<Answer, Failure> {
        let host = self.choose_host(tried).await?;
        let exchange = self.plan.exchange;
        {
            let mut log = exchange.log.borrow_mut();
            log.host = Some(host.clone());
            // Of an earlier attempt.
            log.conn = None;
        }
        if !self.cluster.take(self.priority(), Resource::Requests) {
            self.cluster.stats.upstream_rq_active_overflow.inc();
            return Err(Failure::Overflow);
        }
        let attempt = attempt::Request {
            exchange,
            cluster: self.cluster,
            host: &host,
            priority: self.priority(),
            attempt_count: self.plan.route.attempt_count.in_request,
            upgrade: self.plan.upgrade.is_some(),
            once: self.retry.on_reset(),
            timeout_left: self.timeout_left(),
            endpoint_host: matches!(self.plan.action.host_rewrite, HostRewrite::Endpoint),
        };
        match self.timeouts.attempt() {
            None => attempt.send(body).await,
            Some(limit) => match tokio::time::timeout(limit, attempt.send(body)).await {
                Ok(answer) => answer,
                Err(_) => {
                    self.cluster.stats.upstream_rq_per_try_timeout.inc();
                    self.cluster.observe(&host, Outcome::Timeout);
                    Err(Failure::PerTryTimeout)
                }
            },
        }
    }

    /// What later attempts tell their upstream of the time that is left.
    fn timeout_left(&self) -> Option<HeaderValue> {
        let exchange = self.plan.exchange;
        let later = exchange.log.borrow().attempts > 1;
        let told = || exchange.head.borrow().headers.contains_key(names::EXPECTED_TIMEOUT);
        let since = exchange.completed_at().filter(|_| later && told())?;
        self.timeouts.left(since.elapsed()).map(millis_value)
    }

    pub(super) fn priority(&self) -> usize {
        usize::from(self.plan.action.high_priority)
    }

    pub(super) async fn choose_host(&self, tried: &[Rc<Host>]) -> Result<Rc<Host>, Failure> {
        if let Discovery::Dynamic(cache) = &self.cluster.config().discovery {
            return dynamic_host::host(self.plan.exchange, self.cluster, cache).await;
        }
        // Retries may leave the session's endpoint.
        if tried.is_empty()
            && let Some(host) = session::host(self.plan.exchange, self.cluster)?
        {
            return Ok(host);
        }
        let retry = self.plan.action.retry.as_deref().filter(|_| !tried.is_empty());
        let retry = retry.map(|retry| RetryInput { tried, reselect: &retry.reselect });
        let chosen = hash::host(self.plan, self.cluster, LbInput { retry, ..self.input });
        chosen.ok_or_else(|| {
            self.cluster.stats.upstream_cx_none_healthy.inc();
            Failure::NoHealthyUpstream
        })
    }
}
