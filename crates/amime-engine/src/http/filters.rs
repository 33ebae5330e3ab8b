//! The HTTP filters: fault injection, CORS, access control.
//!
//! They run in the order of the connection manager's list and may end a
//! request; none needs its body.

use std::net::IpAddr;
use std::rc::Rc;

use amime_telemetry::ResponseFlags;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::error::ProxyError;
use super::exchange::Exchange;
use amime_config::filters::{Abort, Cors, Fault};
use amime_config::hcm::HttpFilter;
use amime_config::rbac::{Rbac, Subject};
use amime_config::route::RouteRef;

/// What filters decide for a request that they let pass, or answer.
#[derive(Default)]
pub(super) struct Passed {
    /// Headers that CORS adds to the response.
    pub(super) cors: Option<HeaderMap>,
    /// CORS answers a preflight itself.
    pub(super) preflight: bool,
}

/// Runs the filters on a request.
pub(super) async fn run(
    exchange: &Rc<Exchange>,
    route: Option<&RouteRef>,
    remote: IpAddr,
) -> Result<Passed, ProxyError> {
    let mut passed = Passed::default();
    let config = exchange.connection.config.clone();
    for filter in &config.filters {
        match filter {
            HttpFilter::Fault(own) => {
                let fault = route.and_then(|route| route.filters.fault.as_deref()).unwrap_or(own);
                inject(exchange, fault).await?;
            }
            HttpFilter::Cors => {
                if let Some(cors) = route.and_then(|route| route.filters.cors.as_deref()) {
                    check_origin(exchange, cors, &mut passed);
                    if passed.preflight {
                        return Ok(passed);
                    }
                }
            }
            HttpFilter::Rbac(own) => {
                let rbac = match route.map(|route| &route.filters.rbac) {
                    Some(Some(overridden)) => overridden.as_deref(),
                    _ => Some(&**own),
                };
                if let Some(rbac) = rbac {
                    authorize(exchange, rbac, remote)?;
                }
            }
        }
    }
    Ok(passed)
}

async fn inject(exchange: &Rc<Exchange>, fault: &Fault) -> Result<(), ProxyError> {
    if fault.delay.is_none() && fault.abort.is_none() {
        return Ok(());
    }
    let matches = {
        let head = exchange.head.borrow();
        fault.headers.iter().all(|header| header.matches(&head))
    };
    if !matches || !fault.upstream_cluster.is_empty() {
        return Ok(());
    }
    let stats = &exchange.connection.stats;
    if let Some((fraction, delay)) = fault.delay
        && fraction.draw()
        && !delay.is_zero()
    {
        if stats.fault_active_faults.value() >= i64::from(fault.max_active) {
            stats.fault_faults_overflow.inc();
        } else {
            stats.fault_delays_injected.inc();
            exchange.log.borrow_mut().flags.insert(ResponseFlags::DI);
            let _active = ActiveFault::new(exchange);
            tokio::time::sleep(delay).await;
        }
    }
    if let Some((fraction, abort)) = fault.abort
        && fraction.draw()
    {
        stats.fault_aborts_injected.inc();
        return Err(match abort {
            Abort::Http(status) => ProxyError::FaultAbort { status, grpc: None },
            Abort::Grpc(code) => {
                ProxyError::FaultAbort { status: http_of_grpc(code), grpc: Some(code) }
            }
        });
    }
    Ok(())
}

struct ActiveFault<'a>(&'a Exchange);

impl<'a> ActiveFault<'a> {
    fn new(exchange: &'a Exchange) -> Self {
        exchange.connection.stats.fault_active_faults.inc();
        Self(exchange)
    }
}

impl Drop for ActiveFault<'_> {
    fn drop(&mut self) {
        self.0.connection.stats.fault_active_faults.dec();
    }
}

/// The HTTP status that stands for a gRPC one.
fn http_of_grpc(code: u32) -> StatusCode {
    let status = match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    };
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn check_origin(exchange: &Exchange, cors: &Cors, passed: &mut Passed) {
    let head = exchange.head.borrow();
    let Some(origin) = head.headers.get(header::ORIGIN) else { return };
    if origin.is_empty() || !cors.enabled.draw() {
        return;
    }
    let preflight = head.method == Method::OPTIONS
        && head.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let allowed = cors.origins.iter().any(|matcher| matcher.matches(origin.as_bytes()));
    if !allowed {
        if preflight && !cors.forward_unmatched_preflights {
            passed.preflight = true;
            passed.cors = Some(HeaderMap::new());
        }
        return;
    }
    let mut headers = HeaderMap::with_capacity(6);
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.credentials {
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    let mut put = |name, value: &Option<HeaderValue>| {
        if let Some(value) = value {
            headers.insert(name, value.clone());
        }
    };
    if preflight {
        passed.preflight = true;
        put(header::ACCESS_CONTROL_ALLOW_METHODS, &cors.methods);
        put(header::ACCESS_CONTROL_ALLOW_HEADERS, &cors.headers);
        put(header::ACCESS_CONTROL_MAX_AGE, &cors.max_age);
    } else {
        put(header::ACCESS_CONTROL_EXPOSE_HEADERS, &cors.expose);
    }
    passed.cors = Some(headers);
}

fn authorize(exchange: &Exchange, rbac: &Rbac, remote: IpAddr) -> Result<(), ProxyError> {
    let head = exchange.head.borrow();
    let subject =
        Subject { connection: &exchange.connection.downstream, request: Some(&head), remote };
    let stats = &exchange.connection.stats;
    if let Some(shadow) = &rbac.shadow {
        if shadow.check(subject).allowed {
            stats.rbac_shadow_allowed.inc();
        } else {
            stats.rbac_shadow_denied.inc();
        }
    }
    let Some(rules) = &rbac.rules else { return Ok(()) };
    let verdict = rules.check(subject);
    if verdict.allowed {
        stats.rbac_allowed.inc();
        Ok(())
    } else {
        stats.rbac_denied.inc();
        Err(ProxyError::Denied { policy: verdict.policy })
    }
}
