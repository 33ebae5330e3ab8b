//! Rate limits of requests: by buckets of our own and by a service.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use amime_telemetry::ResponseFlags;
use envoy_types::pb::envoy::config::core::v3::HeaderValue as PbHeader;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3 as common;
use envoy_types::pb::envoy::service::ratelimit::v3 as pb;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::{
    Code, DescriptorStatus, rate_limit::Unit,
};
use envoy_types::pb::google::protobuf::UInt64Value;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use prost::Message;

use super::error::{FilterReply, LocalReply, ProxyError};
use super::exchange::Exchange;
use super::filters::{OnResponse, Scope};
use super::{names, prepare, response};
use crate::upstream::grpc::{self, Call};
use crate::worker::Worker;
use amime_config::global_limit::{
    GlobalConnectionLimit, GlobalLimit, GlobalLimitRoute, LimitService,
};
use amime_config::local_limit::{Buckets, LocalLimit};
use amime_rules::format::FormatInput;
use amime_rules::rate_limit::{
    Descriptor, LimitInput, LimitPolicy, OwnLimit, RouteLimits, VhostLimits,
};
use amime_rules::token_bucket::{TokenBucket, now};

/// The gRPC status that a client may be told instead of "unavailable".
const RESOURCE_EXHAUSTED: u32 = 8;

/// Buckets of one connection, by the settings that they were made from.
#[derive(Default)]
pub(super) struct OwnBuckets(RefCell<Vec<(Arc<LocalLimit>, Rc<Buckets>)>>);

impl OwnBuckets {
    fn of(&self, limit: &Arc<LocalLimit>, shared: &Buckets) -> Rc<Buckets> {
        let mut own = self.0.borrow_mut();
        if let Some((_, buckets)) = own.iter().find(|(made_from, _)| Arc::ptr_eq(made_from, limit))
        {
            return buckets.clone();
        }
        let buckets = Rc::new(shared.fresh());
        own.push((limit.clone(), buckets.clone()));
        buckets
    }
}

/// Takes a token for a request, or refuses it.
pub(super) fn local(
    exchange: &Exchange,
    scope: &Scope<'_>,
    limit: &Arc<LocalLimit>,
) -> Result<(), ProxyError> {
    let Some(shared) = &limit.buckets else { return Ok(()) };
    if !limit.enabled.draw() {
        return Ok(());
    }
    limit.stats.enabled.inc();
    let descriptors = descriptors(exchange, scope, &limit.policies, (limit.stage, limit.vhost));
    let time = now();
    let taken = if limit.per_connection {
        exchange.connection.buckets.of(limit, shared).take(&descriptors, time)
    } else {
        shared.take(&descriptors, time)
    };
    if limit.tell {
        exchange.on_response.borrow_mut().push(OnResponse::Tell(taken.bucket.clone()));
    }
    if taken.allowed {
        limit.stats.ok.inc();
        return Ok(());
    }
    limit.stats.rate_limited.inc();
    if !limit.enforced.draw() {
        let mut head = exchange.head.borrow_mut();
        prepare::apply_edits(exchange, &limit.request_edits, &mut head);
        return Ok(());
    }
    limit.stats.enforced.inc();
    let mut headers = HeaderMap::new();
    response::edit(exchange, &mut headers, limit.status.as_u16(), &[&limit.response_edits]);
    if limit.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(taken.bucket.reset_seconds(time)));
    }
    let details = "local_rate_limited";
    Err(refused(limit.status, details, limit.resource_exhausted, headers))
}

fn refused(
    status: StatusCode,
    details: &'static str,
    resource_exhausted: bool,
    headers: HeaderMap,
) -> ProxyError {
    let body = if details == "local_rate_limited" { details } else { "" };
    let reply = LocalReply {
        status,
        flags: ResponseFlags::RL,
        details: details.into(),
        body: body.into(),
        grpc: resource_exhausted.then_some(RESOURCE_EXHAUSTED),
    };
    ProxyError::Filter(Box::new(FilterReply { reply, headers, unread: false }))
}

/// Adds the state of a bucket to a response.
pub(super) fn tell(bucket: &TokenBucket, headers: &mut HeaderMap) {
    let time = now();
    headers.insert(names::RATE_LIMIT, HeaderValue::from(bucket.max()));
    headers.insert(names::RATE_REMAINING, HeaderValue::from(bucket.remaining(time)));
    headers.insert(names::RATE_RESET, HeaderValue::from(bucket.reset_seconds(time)));
}

/// Name of the cluster that the request is going to; empty if it is unknown.
pub(super) fn destination(exchange: &Exchange, scope: &Scope<'_>) -> String {
    let cluster = scope.cluster(exchange);
    cluster.map(|cluster| cluster.config().name.to_string()).unwrap_or_default()
}

fn descriptors(
    exchange: &Exchange,
    scope: &Scope<'_>,
    own: &[LimitPolicy],
    how: (u32, VhostLimits),
) -> Vec<Descriptor> {
    let none = RouteLimits::default();
    let limits = scope.route.map_or(&none, |route| &route.limits);
    if own.is_empty() && limits.route.is_empty() && limits.vhost.is_empty() {
        return Vec::new();
    }
    let head = exchange.head.borrow();
    let downstream = &exchange.connection.downstream;
    let destination = destination(exchange, scope);
    let metadata = exchange.metadata.borrow();
    let input = LimitInput {
        head: &head,
        remote: scope.admitted.remote,
        source_cluster: &exchange.connection.worker.service_cluster,
        destination_cluster: &destination,
        route_metadata: scope.route.and_then(|route| route.metadata.as_deref()),
        format: FormatInput {
            request: Some(&head),
            downstream_remote: Some(downstream.remote),
            downstream_local: Some(downstream.local),
            sni: downstream.sni.as_deref(),
            tls: downstream.tls.as_ref(),
            route_name: scope.route.map_or("", |route| &route.name),
            cluster: &destination,
            metadata: metadata.as_deref(),
            ..FormatInput::default()
        },
    };
    limits.descriptors(own, how, &input)
}

/// Asks the service about a request.
pub(super) async fn global(
    exchange: &Exchange,
    scope: &Scope<'_>,
    limit: &GlobalLimit,
    route: Option<&GlobalLimitRoute>,
) -> Result<(), ProxyError> {
    let (internal, external) = limit.applies;
    let applies = if scope.admitted.internal { internal } else { external };
    if !applies || !limit.enabled.draw() {
        return Ok(());
    }
    let own = route.map_or(&*limit.policies, |route| match &*route.policies {
        [] => &limit.policies,
        own => own,
    });
    let vhost = route.map_or(VhostLimits::Fallback, |route| route.vhost);
    let descriptors = descriptors(exchange, scope, own, (limit.stage, vhost));
    if descriptors.is_empty() {
        return Ok(());
    }
    let domain = route.and_then(|route| route.domain.as_deref()).unwrap_or(&limit.service.domain);
    let worker = &exchange.connection.worker;
    let Some(answer) = ask(worker, &limit.service, domain, &descriptors).await else {
        return failed(limit);
    };
    let over = answer.overall_code() == Code::OverLimit;
    let mut headers = header_map(&answer.response_headers_to_add);
    if limit.tell {
        describe(&answer.statuses, &mut headers);
    }
    if !over || !limit.enforced.draw() {
        let mut head = exchange.head.borrow_mut();
        head.headers.extend(header_map(&answer.request_headers_to_add));
        exchange.on_response.borrow_mut().push(OnResponse::Put(headers));
        return Ok(());
    }
    if limit.mark {
        headers.insert(names::RATE_LIMITED, HeaderValue::from_static("true"));
    }
    if limit.retry_after
        && let Some(reset) = answer.statuses.iter().filter_map(reset_seconds).max()
    {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(reset));
    }
    response::edit(exchange, &mut headers, limit.status.as_u16(), &[&limit.response_edits]);
    let mut error =
        refused(limit.status, "request_rate_limited", limit.resource_exhausted, headers);
    if let ProxyError::Filter(filter) = &mut error {
        filter.reply.body = String::from_utf8_lossy(&answer.raw_body).into_owned().into();
    }
    Err(error)
}

fn failed(limit: &GlobalLimit) -> Result<(), ProxyError> {
    if !limit.service.deny_on_failure.draw() {
        return Ok(());
    }
    let reply = LocalReply {
        status: limit.status_on_error,
        flags: ResponseFlags::RLSE,
        details: "rate_limiter_error".into(),
        body: "".into(),
        grpc: None,
    };
    Err(ProxyError::Filter(Box::new(FilterReply {
        reply,
        headers: HeaderMap::new(),
        unread: false,
    })))
}

/// True if the service lets one more connection in.
pub(crate) async fn admitted_by_service(
    worker: &Rc<Worker>,
    limit: &GlobalConnectionLimit,
) -> bool {
    match ask(worker, &limit.service, &limit.service.domain, &limit.descriptors).await {
        Some(answer) => answer.overall_code() != Code::OverLimit,
        None => !limit.service.deny_on_failure.draw(),
    }
}

/// The service's answer; `None` if there is none in time.
async fn ask(
    worker: &Rc<Worker>,
    service: &LimitService,
    domain: &str,
    descriptors: &[Descriptor],
) -> Option<pb::RateLimitResponse> {
    let cluster = worker.snapshot().cluster(service.cluster)?;
    let request = pb::RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: descriptors.iter().map(descriptor).collect(),
        hits_addend: 0,
    };
    let call = Call {
        path: "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
        authority: &service.authority,
        message: request.encode_to_vec(),
        timeout: service.timeout,
    };
    match grpc::unary(worker, &cluster, call).await {
        Ok(answer) => pb::RateLimitResponse::decode(answer).ok(),
        Err(error) => {
            tracing::debug!(cluster = %cluster.config().name, %error, "rate limit service failed");
            None
        }
    }
}

fn descriptor(value: &Descriptor) -> common::RateLimitDescriptor {
    let entry = |(key, value): &(String, String)| common::rate_limit_descriptor::Entry {
        key: key.clone(),
        value: value.clone(),
    };
    common::RateLimitDescriptor {
        entries: value.entries.iter().map(entry).collect(),
        hits_addend: value.hits.map(|value| UInt64Value { value }),
        limit: value.limit.map(|OwnLimit { requests, unit }| {
            common::rate_limit_descriptor::RateLimitOverride { requests_per_unit: requests, unit }
        }),
        ..common::RateLimitDescriptor::default()
    }
}

fn header_map(list: &[PbHeader]) -> HeaderMap {
    let pair = |header: &PbHeader| {
        let name = HeaderName::from_bytes(header.key.to_ascii_lowercase().as_bytes()).ok()?;
        let value = match header.value.as_bytes() {
            [] => &header.raw_value,
            value => value,
        };
        Some((name, HeaderValue::from_bytes(value).ok()?))
    };
    list.iter().filter_map(pair).collect()
}

fn reset_seconds(status: &DescriptorStatus) -> Option<u64> {
    let reset = status.duration_until_reset.as_ref()?;
    let reset = Duration::new(u64::try_from(reset.seconds).ok()?, 0);
    Some(reset.as_secs())
}

/// The draft's headers: the limit that is nearest, and all of them with
/// their windows.
fn describe(statuses: &[DescriptorStatus], headers: &mut HeaderMap) {
    let limited = || statuses.iter().filter(|status| status.current_limit.is_some());
    let Some(nearest) = limited().min_by_key(|status| status.limit_remaining) else { return };
    let requests = |status: &DescriptorStatus| {
        status.current_limit.as_ref().map_or(0, |it| it.requests_per_unit)
    };
    let mut text = requests(nearest).to_string();
    for limit in statuses.iter().filter_map(|status| status.current_limit.as_ref()) {
        let window = match limit.unit() {
            Unit::Unknown => continue,
            Unit::Second => 1,
            Unit::Minute => 60,
            Unit::Hour => 3600,
            Unit::Day => 86_400,
            Unit::Week => 604_800,
            Unit::Month => 2_592_000,
            Unit::Year => 31_536_000,
        };
        text.push_str(&format!(", {};w={window}", limit.requests_per_unit));
        if !limit.name.is_empty() {
            text.push_str(&format!(";name=\"{}\"", limit.name));
        }
    }
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(names::RATE_LIMIT, value);
    }
    headers.insert(names::RATE_REMAINING, HeaderValue::from(nearest.limit_remaining));
    headers.insert(names::RATE_RESET, HeaderValue::from(reset_seconds(nearest).unwrap_or(0)));
}
