//! The HTTP filters, in the order of the connection manager's list.
//!
//! On its way in a request passes them one after the other; each may end it,
//! and may leave something to be done to the response, which passes them the
//! other way round.

use std::rc::Rc;
use std::sync::Arc;

use amime_telemetry::ResponseFlags;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use smallvec::SmallVec;

use super::body::DownstreamBody;
use super::compress::Compression;
use super::error::{FilterReply, LocalReply, ProxyError};
use super::exchange::Exchange;
use super::fault::ActiveFault;
use super::grpc_web::WebCall;
use super::request::Admitted;
use super::session::Session;
use super::stage::{Stage, Stages};
use super::{
    buffer, compress, dynamic_host, fault, forward, grpc_bridge, grpc_web, metadata, names, pace,
    prepare, rate_limit, response, session, trailers,
};
use crate::upstream::ClusterRuntime;
use amime_config::answer_checks::AnswerChecks;
use amime_config::filters::{FilterKind, HttpFilter, PerFilter, PerRoute, Settings};
use amime_config::route::Route;
use amime_config::route_action::Action;
use amime_config::route_cluster::WeightedCluster;
use amime_rules::bandwidth::Pace;
use amime_rules::compression::Decompressor;
use amime_rules::cors::Cors;
use amime_rules::csrf::{Csrf, Verdict};
use amime_rules::header_mutation::HeaderMutation;
use amime_rules::ip_tags::IpTags;
use amime_rules::metadata::HeaderToMetadata;
use amime_rules::rbac::{Rbac, Subject};
use amime_rules::token_bucket::TokenBucket;

/// What a request's filters go by beside the request.
pub(super) struct Scope<'a> {
    pub(super) route: Option<&'a Route>,
    pub(super) weighted: Option<&'a WeightedCluster>,
    pub(super) admitted: &'a Admitted,
}

impl<'a> Scope<'a> {
    /// Where the request goes unless a filter answers it.
    pub(super) fn cluster(&self, exchange: &Exchange) -> Option<Rc<ClusterRuntime>> {
        match self.route.map(|route| &route.action)? {
            Action::Forward(action) => forward::cluster_of(exchange, action, self.weighted),
            _ => None,
        }
    }

    fn per_route(&self) -> Option<&'a PerRoute> {
        self.weighted.map(|entry| &entry.filters).or(self.route.map(|route| &route.filters))
    }
}

/// Why a request goes no further.
pub(super) enum Stop {
    Error(ProxyError),
    /// CORS answers a preflight itself, with these.
    Preflight(HeaderMap),
}

impl From<ProxyError> for Stop {
    fn from(error: ProxyError) -> Self {
        Self::Error(error)
    }
}

/// What a filter does to the response.
pub(crate) enum OnResponse {
    Put(HeaderMap),
    Mutate(Arc<HeaderMutation>),
    /// Tells the state of a bucket.
    Tell(Arc<TokenBucket>),
    /// Tells the client which endpoint its session is with.
    Session(Rc<Session>),
    GrpcWeb(WebCall),
    GrpcBridge,
    Compress(Box<Compression>),
    Decompress(Arc<Decompressor>),
    ToMetadata(Arc<HeaderToMetadata>),
    /// Tells a checker whom it has checked.
    Checked(HeaderValue),
    /// Passes no faster, perhaps as a fault.
    Slow(Arc<Pace>, Option<ActiveFault>),
}

/// What a response has behind its head.
pub(super) enum Payload<'a> {
    Nothing,
    /// All of it is there.
    Whole(&'a mut Bytes),
    /// It comes, and passes these first.
    Stream(&'a mut Vec<Box<dyn Stage>>),
}

impl Payload<'_> {
    /// Adds a change.
    pub(super) fn change(&mut self, stage: Box<dyn Stage>) {
        match self {
            Self::Nothing => {}
            // What cannot be changed is of no use to the client.
            Self::Whole(body) => {
                let whole = std::mem::take(*body);
                **body = Stages::new(vec![stage]).whole(whole).unwrap_or_default();
            }
            Self::Stream(stages) => stages.push(stage),
        }
    }
}

/// Runs the filters on a request, from a number on. Returns the number of the
/// next one where the request may have to take another route now.
pub(super) async fn run(
    exchange: &Rc<Exchange>,
    scope: &Scope<'_>,
    body: &mut DownstreamBody,
    from: usize,
) -> Result<Option<usize>, Stop> {
    let config = exchange.connection.config.clone();
    for (index, filter) in config.filters.iter().enumerate().skip(from) {
        let own = scope.per_route().and_then(|route| route.find(&filter.name));
        if own.map_or(filter.disabled, |own| own.disabled) {
            continue;
        }
        if let Err(stop) = run_one(exchange, scope, (filter, own), body).await {
            // The answer passes also those filters that never saw the request.
            for later in &config.filters[index + 1..] {
                mutate(exchange, scope, later, None);
            }
            return Err(stop);
        }
        if let FilterKind::IpTags(tags) = &filter.kind
            && tag(exchange, scope, tags)
        {
            return Ok(Some(index + 1));
        }
    }
    Ok(None)
}

/// Tells the tags of the client's address; true if headers have changed.
fn tag(exchange: &Exchange, scope: &Scope<'_>, tags: &IpTags) -> bool {
    let Admitted { remote, internal, .. } = scope.admitted;
    tags.apply(&mut exchange.head.borrow_mut().headers, *remote, *internal)
}

async fn run_one(
    exchange: &Rc<Exchange>,
    scope: &Scope<'_>,
    (filter, own): (&HttpFilter, Option<&PerFilter>),
    body: &mut DownstreamBody,
) -> Result<(), Stop> {
    let settings = own.and_then(|own| own.settings.as_ref());
    match (&filter.kind, settings) {
        (FilterKind::Fault(_), Some(Settings::Fault(fault))) | (FilterKind::Fault(fault), _) => {
            fault::inject(exchange, scope, fault).await?;
        }
        (FilterKind::Cors, _) => {
            check_origin(exchange, || policies(scope, filter))?;
        }
        (FilterKind::Rbac(_), Some(Settings::Rbac(None))) => {}
        (FilterKind::Rbac(_), Some(Settings::Rbac(Some(rbac)))) | (FilterKind::Rbac(rbac), _) => {
            authorize(exchange, rbac, scope)?;
        }
        (FilterKind::LocalLimit(_), Some(Settings::LocalLimit(limit)))
        | (FilterKind::LocalLimit(limit), _) => rate_limit::local(exchange, scope, limit)?,
        (FilterKind::GlobalLimit(limit), settings) => {
            let route = match settings {
                Some(Settings::GlobalLimit(route)) => Some(&**route),
                _ => None,
            };
            rate_limit::global(exchange, scope, limit, route).await?;
        }
        (FilterKind::DynamicHost(cache), settings) => {
            dynamic_host::resolve(exchange, scope, cache, settings).await?;
        }
        (FilterKind::Mutation(_), _) => mutate(exchange, scope, filter, Some(body)),
        (FilterKind::Session(_), Some(Settings::Session(settings)))
        | (FilterKind::Session(settings), _) => {
            if let Some(settings) = settings {
                session::begin(exchange, settings);
            }
        }
        (FilterKind::GrpcWeb, _) => grpc_web::begin(exchange, body),
        (FilterKind::GrpcBridge, _) => grpc_bridge::begin(exchange),
        (FilterKind::Buffer(_), Some(Settings::Buffer(max))) | (FilterKind::Buffer(max), _) => {
            if let Some(max) = max {
                buffer::wait(exchange, body, *max).await?;
            }
        }
        (FilterKind::Compressor(filter), settings) => {
            let own = match settings {
                Some(Settings::Compressor(own)) => Some(&**own),
                _ => None,
            };
            compress::begin(exchange, body, filter, own);
        }
        (FilterKind::Decompressor(filter), _) => compress::undo(exchange, body, filter),
        (FilterKind::HeaderToMetadata(_), Some(Settings::HeaderToMetadata(rules)))
        | (FilterKind::HeaderToMetadata(rules), _) => metadata::begin(exchange, rules),
        (FilterKind::SetMetadata(values), _) => metadata::set(exchange, values),
        (FilterKind::Csrf(_), Some(Settings::Csrf(csrf))) | (FilterKind::Csrf(csrf), _) => {
            judge_origin(exchange, csrf)?;
        }
        // It is the caller's: another route may have to be found.
        (FilterKind::IpTags(_), _) => {}
        (FilterKind::AnswerChecks(checks), _) => answer_check(exchange, checks)?,
        (FilterKind::Bandwidth(_), Some(Settings::Bandwidth(limit)))
        | (FilterKind::Bandwidth(limit), _) => pace::begin(exchange, body, limit),
    }
    Ok(())
}

/// The answer of a filter that has no more to say.
fn own_answer(status: StatusCode, details: &'static str, body: &'static str) -> Stop {
    let flags = ResponseFlags::NONE;
    let reply =
        LocalReply { status, flags, details: details.into(), body: body.into(), grpc: None };
    let reply = FilterReply { reply, headers: HeaderMap::new(), unread: false };
    Stop::Error(ProxyError::Filter(Box::new(reply)))
}

/// Refuses what another site may have made its visitor send.
fn judge_origin(exchange: &Exchange, csrf: &Csrf) -> Result<(), Stop> {
    let stats = &exchange.connection.stats;
    match csrf.judge(&exchange.head.borrow()) {
        Verdict::Passed => {}
        Verdict::Valid => stats.csrf_request_valid.inc(),
        Verdict::Invalid { sourceless, refused } => {
            match sourceless {
                true => stats.csrf_missing_source_origin.inc(),
                false => stats.csrf_request_invalid.inc(),
            }
            if refused {
                let details = "csrf_origin_mismatch";
                return Err(own_answer(StatusCode::FORBIDDEN, details, "Invalid origin"));
            }
        }
    }
    Ok(())
}

/// Answers a health check, or notes that it is one.
fn answer_check(exchange: &Exchange, checks: &AnswerChecks) -> Result<(), Stop> {
    if !checks.is_check(&exchange.head.borrow()) {
        return Ok(());
    }
    exchange.log.borrow_mut().health_check = true;
    exchange.on_response.borrow_mut().push(OnResponse::Checked(checks.cluster.clone()));
    match checks.pass_through {
        true => Ok(()),
        false => Err(own_answer(StatusCode::OK, "health_check_ok", "")),
    }
}

/// Runs a filter that edits headers, or only leaves word for the response.
fn mutate(
    exchange: &Rc<Exchange>,
    scope: &Scope<'_>,
    filter: &HttpFilter,
    mut body: Option<&mut DownstreamBody>,
) {
    let FilterKind::Mutation(own) = &filter.kind else { return };
    let levels = scope.per_route().into_iter().flat_map(|route| route.all(&filter.name));
    let by_route = levels.filter_map(|level| match &level.settings {
        Some(Settings::Mutation(mutation)) => Some(mutation),
        _ => None,
    });
    let by_route: Vec<_> = match own.specific_wins {
        true => by_route.rev().collect(),
        false => by_route.collect(),
    };
    for mutation in std::iter::once(own).chain(by_route) {
        if let Some(body) = &mut body {
            let mut head = exchange.head.borrow_mut();
            prepare::apply_edits(exchange, &mutation.request, &mut head);
            prepare::edit_query(exchange, &mutation.query, &mut head);
            drop(head);
            if !mutation.request_trailers.is_empty() && !body.is_end_stream() {
                trailers::edit_request(exchange, body, mutation);
            }
        }
        if !mutation.response.is_empty() || !mutation.response_trailers.is_empty() {
            exchange.on_response.borrow_mut().push(OnResponse::Mutate(mutation.clone()));
        }
    }
}

/// Does what filters left to be done to the response.
pub(super) fn on_response(
    exchange: &Rc<Exchange>,
    headers: &mut HeaderMap,
    status: &mut StatusCode,
    mut payload: Payload<'_>,
) {
    let steps = exchange.on_response.take();
    for step in steps.into_iter().rev() {
        match step {
            OnResponse::Put(values) => headers.extend(values),
            OnResponse::Mutate(mutation) => {
                response::edit(exchange, headers, status.as_u16(), &[&mutation.response]);
                trailers::edit_response(exchange, mutation, &mut payload);
            }
            OnResponse::Tell(bucket) => rate_limit::tell(&bucket, headers),
            OnResponse::Session(session) => session::tell(exchange, &session, headers),
            OnResponse::GrpcWeb(call) => call.answer(headers, *status, &mut payload),
            OnResponse::GrpcBridge => grpc_bridge::answer(exchange, headers, status, &payload),
            OnResponse::Compress(own) => own.answer(exchange, headers, *status, &mut payload),
            OnResponse::Decompress(own) => compress::undo_answer(&own, headers, &mut payload),
            OnResponse::ToMetadata(own) => metadata::of_headers(exchange, &own.response, headers),
            OnResponse::Checked(cluster) => {
                headers.insert(names::CHECKED_CLUSTER, cluster);
            }
            OnResponse::Slow(pace, fault) => pace::slow(pace, fault, &mut payload),
        }
    }
}

/// Why a response's head has to wait for its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// The first bytes become a message.
    Message,
    /// All of it goes to the client.
    Whole,
}

/// Whether a response's head has to wait for its body.
pub(super) fn wait(exchange: &Exchange, headers: &HeaderMap, status: StatusCode) -> Option<Wait> {
    let steps = exchange.on_response.borrow();
    steps.iter().find_map(|step| match step {
        OnResponse::GrpcWeb(_) => WebCall::wants_whole(headers, status).then_some(Wait::Message),
        OnResponse::GrpcBridge => Some(Wait::Whole),
        _ => None,
    })
}

/// CORS policies of a route, the most specific first: a field that one does
/// not set is the next one's.
fn policies<'a>(scope: &Scope<'a>, filter: &'a HttpFilter) -> SmallVec<[&'a Cors; 2]> {
    let Some(route) = scope.per_route() else { return SmallVec::new() };
    let named = route.all(&filter.name).filter_map(|level| match &level.settings {
        Some(Settings::Cors(policy)) => Some(&**policy),
        _ => None,
    });
    let mut found: SmallVec<[_; 2]> = named.collect();
    if found.is_empty() {
        found.extend(route.cors());
    }
    found
}

/// Leaves headers for the response to a request from another origin, and
/// answers preflights.
fn check_origin<'a>(
    exchange: &Exchange,
    policies: impl FnOnce() -> SmallVec<[&'a Cors; 2]>,
) -> Result<(), Stop> {
    let head = exchange.head.borrow();
    let origin = head.headers.get(header::ORIGIN).filter(|origin| !origin.is_empty());
    let Some(origin) = origin else { return Ok(()) };
    let policies = policies();
    let Some(first) = policies.first().filter(|first| first.enabled.draw()) else { return Ok(()) };
    let preflight = head.method == Method::OPTIONS
        && head.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let value = |of: fn(&Cors) -> Option<&HeaderValue>| {
        policies.iter().find_map(|policy| of(policy)).cloned()
    };
    let origins = policies.iter().find(|policy| !policy.origins.is_empty());
    let allowed = origins.is_some_and(|policy| {
        policy.origins.iter().any(|matcher| matcher.matches(origin.as_bytes()))
    });
    if !(allowed || preflight && !first.forward_unmatched_preflights) {
        return Ok(());
    }
    let mut headers = HeaderMap::with_capacity(4);
    if allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if first.credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        let expose = value(|policy| policy.expose.as_ref());
        headers.extend(expose.map(|value| (header::ACCESS_CONTROL_EXPOSE_HEADERS, value)));
        exchange.on_response.borrow_mut().push(OnResponse::Put(headers));
    }
    if !preflight {
        return Ok(());
    }
    let own = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, value(|policy| policy.methods.as_ref())),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, value(|policy| policy.headers.as_ref())),
        (header::ACCESS_CONTROL_MAX_AGE, value(|policy| policy.max_age.as_ref())),
    ];
    let own = own.into_iter().filter_map(|(name, value)| Some((name, value?)));
    Err(Stop::Preflight(own.collect()))
}

fn authorize(exchange: &Exchange, rbac: &Rbac, scope: &Scope<'_>) -> Result<(), ProxyError> {
    let head = exchange.head.borrow();
    let metadata = exchange.metadata.borrow();
    let connection = &exchange.connection.downstream;
    let subject = Subject {
        connection,
        request: Some(&head),
        remote: scope.admitted.remote,
        metadata: metadata.as_deref(),
        route_metadata: scope.route.and_then(|route| route.metadata.as_deref()),
    };
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
