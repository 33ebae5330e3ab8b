//! Faults that are injected: delays, aborts and slow responses.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/fault_filter>

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use amime_telemetry::{HttpStats, ResponseFlags};
use http::{HeaderName, StatusCode};

use super::error::ProxyError;
use super::exchange::Exchange;
use super::filters::{OnResponse, Scope};
use super::{names, rate_limit};
use amime_rules::bandwidth::Pace;
use amime_rules::fault_injection::{Abort, Fault};
use amime_rules::values::Fraction;

/// Delays a request, ends it, or has its response slowed down.
pub(super) async fn inject(
    exchange: &Rc<Exchange>,
    scope: &Scope<'_>,
    fault: &Fault,
) -> Result<(), ProxyError> {
    if fault.delay.is_none() && fault.abort.is_none() && fault.pace.is_none() {
        return Ok(());
    }
    let matches = fault.is_for(&exchange.head.borrow());
    let elsewhere = !fault.upstream_cluster.is_empty()
        && rate_limit::destination(exchange, scope) != fault.upstream_cluster;
    if !matches || elsewhere {
        return Ok(());
    }
    let stats = &exchange.connection.stats;
    if let Some((fraction, pace)) = pace_of(exchange, fault)
        && fraction.draw()
        && let Some(active) = ActiveFault::begin(exchange, fault)
    {
        stats.fault_response_rl_injected.inc();
        exchange.on_response.borrow_mut().push(OnResponse::Slow(pace, Some(active)));
    }
    if let Some((fraction, delay)) = delay_of(exchange, fault)
        && fraction.draw()
        && !delay.is_zero()
        && let Some(_active) = ActiveFault::begin(exchange, fault)
    {
        stats.fault_delays_injected.inc();
        exchange.log.borrow_mut().flags.insert(ResponseFlags::DI);
        tokio::time::sleep(delay).await;
    }
    if let Some((fraction, abort)) = abort_of(exchange, fault)
        && fraction.draw()
    {
        stats.fault_aborts_injected.inc();
        return Err(match abort {
            Abort::Http(status) => ProxyError::FaultAbort { status, grpc: None },
            // Also to those who do not speak gRPC.
            Abort::Grpc(code) => {
                ProxyError::FaultAbort { status: StatusCode::OK, grpc: Some(code) }
            }
            Abort::Header => return Ok(()),
        });
    }
    Ok(())
}

/// A number in a header of the request.
fn number(exchange: &Exchange, name: &HeaderName) -> Option<u32> {
    exchange.head.borrow().headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// A fault's delay, with what the request's headers say of it.
fn delay_of(exchange: &Exchange, fault: &Fault) -> Option<(Fraction, Duration)> {
    let (fraction, fixed) = fault.delay?;
    if let Some(fixed) = fixed {
        return Some((fraction, fixed));
    }
    let millis = number(exchange, &names::FAULT_DELAY)?;
    let percent = number(exchange, &names::FAULT_DELAY_PERCENT);
    let fraction = percent.map_or(fraction, |percent| fraction.at_most_percent(percent));
    Some((fraction, Duration::from_millis(millis.into())))
}

/// A fault's abort, with what the request's headers say of it.
fn abort_of(exchange: &Exchange, fault: &Fault) -> Option<(Fraction, Abort)> {
    let (fraction, abort) = fault.abort?;
    if abort != Abort::Header {
        return Some((fraction, abort));
    }
    let percent = number(exchange, &names::FAULT_ABORT_PERCENT);
    let fraction = percent.map_or(fraction, |percent| fraction.at_most_percent(percent));
    let http = number(exchange, &names::FAULT_ABORT).filter(|code| (200..600).contains(code));
    let http = http.and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
    let abort = http.map(Abort::Http);
    Some((fraction, abort.or(number(exchange, &names::FAULT_ABORT_GRPC).map(Abort::Grpc))?))
}

/// A fault's limit of the response, with what the request's headers say of it.
fn pace_of(exchange: &Exchange, fault: &Fault) -> Option<(Fraction, Arc<Pace>)> {
    let (fraction, fixed) = fault.pace?;
    if let Some(kib) = fixed {
        return Some((fraction, Pace::usual(kib)));
    }
    let kib = number(exchange, &names::FAULT_THROUGHPUT).filter(|kib| *kib > 0)?;
    let percent = number(exchange, &names::FAULT_THROUGHPUT_PERCENT);
    let fraction = percent.map_or(fraction, |percent| fraction.at_most_percent(percent));
    Some((fraction, Pace::usual(kib.into())))
}

/// A fault that lasts.
pub(crate) struct ActiveFault(Arc<HttpStats>);

impl ActiveFault {
    /// `None`, which is counted, if there are too many already.
    fn begin(exchange: &Exchange, fault: &Fault) -> Option<Self> {
        let stats = &exchange.connection.stats;
        if stats.fault_active_faults.value() >= i64::from(fault.max_active) {
            stats.fault_faults_overflow.inc();
            return None;
        }
        stats.fault_active_faults.inc();
        Some(Self(stats.clone()))
    }
}

impl Drop for ActiveFault {
    fn drop(&mut self) {
        self.0.fault_active_faults.dec();
    }
}
