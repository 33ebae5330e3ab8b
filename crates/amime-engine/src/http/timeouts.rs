//! How long a request and its parts may take.

use std::rc::Rc;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use super::body::BodyLimits;
use super::error::ProxyError;
use super::exchange::Exchange;
use super::forward::Plan;
use super::names;
use super::upgrade::is_websocket;
use amime_config::route_action::{Forward, millis_value};
use amime_rules::head::RequestHead;

/// Limits of one request, `None` for none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// From the request's end to the response's end.
    pub(super) route: Option<Duration>,
    pub(super) per_try: Option<Duration>,
    per_try_idle: Option<Duration>,
    pub(super) idle: Option<Duration>,
    /// Until the request has been read.
    pub(super) request: Option<Duration>,
    pub(super) stream_deadline: Option<Instant>,
    /// The new value of `grpc-timeout`.
    pub(super) grpc: Option<Duration>,
    overridden: bool,
    /// Nothing of the request is awaited: its handshake is all that the client
    /// sends before it is answered.
    handshake: bool,
}

impl Timeouts {
    /// Route settings under the headers by which trusted clients change them.
    pub(super) fn of(plan: &Plan<'_>) -> Self {
        let action = plan.action;
        let config = &plan.exchange.connection.config;
        let head = plan.exchange.head.borrow();
        let header = |name| {
            let millis: u64 = head.headers.get(name)?.to_str().ok()?.parse().ok()?;
            Some(Duration::from_millis(millis))
        };
        let mut route = action.timeout;
        let mut overridden = false;
        if let Some(grpc) = action.grpc_timeout_max
            && let Some(asked) = grpc_timeout(&head)
        {
            let capped = if grpc.is_zero() { asked } else { asked.min(grpc) };
            route = Some(capped).filter(|timeout| !timeout.is_zero());
            overridden = true;
        }
        if let Some(timeout) = header(names::RQ_TIMEOUT) {
            route = Some(timeout).filter(|timeout| !timeout.is_zero());
            overridden = true;
        }
        let per_try = action.retry.as_ref().and_then(|retry| retry.per_try_timeout);
        let idle = action.idle_timeout.or(config.timeouts.stream_idle);
        let asked = grpc_timeout(&head);
        let life = match (action.grpc_stream_max, asked) {
            (Some(max), Some(asked)) if max.is_zero() => Some(asked),
            (Some(max), Some(asked)) => Some(asked.min(max)),
            _ => action.max_stream_duration.or(config.timeouts.max_stream),
        };
        // What the upstream is told of a deadline that was changed.
        let grpc = match (action.grpc_stream_max, action.grpc_timeout_max, asked) {
            (Some(_), _, Some(_)) => life,
            (None, Some(_), Some(_)) => route,
            _ => None,
        };
        Self {
            route,
            per_try: header(names::RQ_PER_TRY_TIMEOUT).or(per_try),
            per_try_idle: action.retry.as_ref().and_then(|retry| retry.per_try_idle_timeout),
            idle: idle.filter(|idle| !idle.is_zero()),
            request: config.timeouts.request,
            stream_deadline: life
                .filter(|life| !life.is_zero())
                .map(|life| Instant::from_std(plan.exchange.begun + life)),
            grpc,
            overridden,
            handshake: plan.upgrade.is_some() && is_websocket(&head),
        }
    }

    pub(super) fn body(&self) -> BodyLimits {
        let idle = self.idle.into_iter().chain(self.per_try_idle).min();
        BodyLimits { timeout: self.route, deadline: self.stream_deadline, idle }
    }

    /// How long an attempt may take to begin its response; until then an
    /// attempt is idle all the time.
    pub(super) fn attempt(&self) -> Option<Duration> {
        self.per_try.into_iter().chain(self.per_try_idle).min()
    }

    /// What is left of the timeout for an attempt that begins after `elapsed`.
    pub(super) fn left(&self, elapsed: Duration) -> Option<Duration> {
        let Some(route) = self.route else { return self.per_try };
        let left = route.saturating_sub(elapsed).max(Duration::from_millis(1));
        Some(self.per_try.map_or(left, |per_try| per_try.min(left)))
    }

    /// The value of `x-envoy-expected-rq-timeout-ms`.
    pub(super) fn expected(&self, action: &Forward) -> Option<HeaderValue> {
        match (self.per_try, self.route) {
            (Some(per_try), Some(route)) if per_try < route => Some(millis_value(per_try)),
            (Some(per_try), None) => Some(millis_value(per_try)),
            (_, Some(route)) if self.overridden => Some(millis_value(route)),
            (_, Some(_)) => action.timeout_header.clone(),
            (None, None) => None,
        }
    }
}

/// Reads `grpc-timeout`, such as `250m`.
fn grpc_timeout(head: &RequestHead) -> Option<Duration> {
    let text = head.headers.get(names::GRPC_TIMEOUT)?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u32 = number.parse().ok().filter(|_| number.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(3600) * number,
        "M" => Duration::from_secs(60) * number,
        "S" => Duration::from_secs(1) * number,
        "m" => Duration::from_millis(u64::from(number)),
        "u" => Duration::from_micros(u64::from(number)),
        "n" => Duration::from_nanos(u64::from(number)),
        _ => return None,
    })
}

/// Waits for the request's end; false if that took too long.
async fn read_in_time(exchange: &Exchange, limit: Option<Duration>) -> bool {
    let read = async {
        exchange.complete.notified().await;
        // Others may wait as well.
        exchange.complete.notify_one();
    };
    match limit {
        None => {
            read.await;
            true
        }
        Some(limit) => tokio::time::timeout(limit, read).await.is_ok(),
    }
}

/// Resolves when nothing of the request's body has come for `idle`.
async fn stopped(exchange: &Exchange, idle: Option<Duration>) {
    let Some(idle) = idle else { return std::future::pending().await };
    let mut before = exchange.received();
    loop {
        tokio::time::sleep(idle).await;
        let now = exchange.received();
        if now == before {
            return;
        }
        before = now;
    }
}

/// Resolves when the route's timeout or the stream's life is over; `None` if
/// neither is limited.
pub(super) fn route_timeout(
    exchange: &Rc<Exchange>,
    timeouts: Timeouts,
) -> Option<impl Future<Output = ProxyError> + use<>> {
    let Timeouts { route, idle, request, stream_deadline, .. } = timeouts;
    if route.or(idle).or(request).is_none() && stream_deadline.is_none() {
        return None;
    }
    let exchange = exchange.clone();
    Some(async move {
        let deadline = timeouts.stream_deadline;
        let by_life = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
            ProxyError::StreamDuration
        };
        let by_route = async {
            // The clock of the route starts when the request has been read.
            if !timeouts.handshake && exchange.completed_at().is_none() {
                tokio::select! {
                    read = read_in_time(&exchange, timeouts.request) => if !read {
                        return ProxyError::RequestTimeout;
                    },
                    () = stopped(&exchange, timeouts.idle) => return ProxyError::RequestIdle,
                }
            }
            match (timeouts.route, timeouts.idle) {
                (Some(route), idle) if idle.is_none_or(|idle| route <= idle) => {
                    tokio::time::sleep(route).await;
                    ProxyError::ResponseTimeout
                }
                (_, Some(idle)) => {
                    tokio::time::sleep(idle).await;
                    ProxyError::StreamIdle
                }
                _ => std::future::pending().await,
            }
        };
        if deadline.is_none() {
            return by_route.await;
        }
        tokio::select! {
            error = by_life => error,
            error = by_route => error,
        }
    })
}
