//! Requests whose upstream is the host that they name: waiting until it is
//! resolved, and what is answered when it is not.
//!
//! The filter and the cluster may each have a cache of their own; both wait,
//! and each answers in its own words.

use std::borrow::Cow;
use std::rc::Rc;

use amime_telemetry::ResponseFlags;
use http::{HeaderMap, StatusCode, header};

use super::attempt::Failure;
use super::error::{FilterReply, LocalReply, ProxyError};
use super::exchange::Exchange;
use super::filters::Scope;
use crate::upstream::{ClusterRuntime, Host};
use amime_config::discovery::Discovery;
use amime_config::dynamic_hosts::NewHost;
use amime_config::filters::Settings;
use amime_config::host_cache::{self, HostCache, HostFailure};

/// The filter: waits for the host if the request goes to a cluster of such.
pub(super) async fn resolve(
    exchange: &Exchange,
    scope: &Scope<'_>,
    cache: &HostCache,
    settings: Option<&Settings>,
) -> Result<(), ProxyError> {
    let Some(cluster) = scope.cluster(exchange) else { return Ok(()) };
    let Discovery::Dynamic(own) = &cluster.config().discovery else { return Ok(()) };
    if let Some(Settings::NewHost(new)) = settings {
        rename(exchange, new);
    }
    let authority = {
        let head = exchange.head.borrow();
        let authority = head.authority();
        // Known to this worker, so there is nothing to wait for.
        if std::ptr::eq(&raw const **own, cache)
            && cache.settings.max_pending > 0
            && cluster.named_now(authority).is_some()
        {
            return Ok(());
        }
        authority.to_owned()
    };
    if authority.is_empty() {
        return Err(answer(StatusCode::BAD_REQUEST, "empty_host_header", "Empty host header"));
    }
    let port = cluster.default_port();
    let key = host_cache::key(&authority, port);
    cache.find_with_room(&key, port).await.map(drop).map_err(|failure| refusal(&failure))
}

/// The host that the route wants.
fn rename(exchange: &Exchange, new: &NewHost) {
    let mut head = exchange.head.borrow_mut();
    let host = match new {
        NewHost::Literal(host) => Some(host.clone()),
        // Of several values, which the client may have sent, the first.
        NewHost::Header(name) => head.headers.get(name).cloned(),
    };
    if let Some(host) = host {
        head.headers.insert(header::HOST, host);
    }
}

fn refusal(failure: &HostFailure) -> ProxyError {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    match failure {
        HostFailure::Overflow => answer(unavailable, "dns_cache_overflow", "DNS cache overflow"),
        HostFailure::PendingOverflow => answer(
            unavailable,
            "dynamic_forward_proxy_pending_request_overflow",
            "Dynamic forward proxy pending request overflow",
        ),
        HostFailure::Unresolved { .. } => {
            let mut error = answer(unavailable, details(failure), "DNS resolution failure");
            if let ProxyError::Filter(filter) = &mut error {
                filter.reply.flags = ResponseFlags::DF;
            }
            error
        }
    }
}

fn answer(
    status: StatusCode,
    details: impl Into<Cow<'static, str>>,
    body: &'static str,
) -> ProxyError {
    let reply = LocalReply {
        status,
        flags: ResponseFlags::NONE,
        details: details.into(),
        body: body.into(),
        grpc: None,
    };
    let unread = status == StatusCode::BAD_REQUEST;
    ProxyError::Filter(Box::new(FilterReply { reply, headers: HeaderMap::new(), unread }))
}

/// What the access log says of a request that found no host.
pub(super) fn details(failure: &HostFailure) -> Cow<'static, str> {
    match failure {
        HostFailure::Overflow => "dns_cache_overflow".into(),
        HostFailure::PendingOverflow => "dns_cache_pending_requests_overflow".into(),
        HostFailure::Unresolved { reason, .. } => {
            format!("dns_resolution_failure{{{reason}}}").into()
        }
    }
}

/// The cluster: the endpoint that the request names.
pub(super) async fn host(
    exchange: &Exchange,
    cluster: &ClusterRuntime,
    cache: &HostCache,
) -> Result<Rc<Host>, Failure> {
    let authority = {
        let head = exchange.head.borrow();
        if let Some(host) = cluster.named_now(head.authority()) {
            return Ok(host);
        }
        head.authority().to_owned()
    };
    if authority.is_empty() {
        return Err(Failure::NoHealthyUpstream);
    }
    cluster.named(cache, &authority, None).await.map_err(Failure::NoHost)
}
