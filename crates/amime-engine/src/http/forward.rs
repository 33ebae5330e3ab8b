//! Forwarding a request: cluster, edits, attempts, retries.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;

use http::HeaderName;

use super::attempts::Attempts;
use super::body::{DownstreamBody, RequestBody};
use super::deliver::{Forwarded, deliver};
use super::error::ProxyError;
use super::exchange::{Exchange, answered};
use super::filters::Payload;
use super::prepare::prepare;
use super::replay::{Replay, ReplayBody};
use super::request::Admitted;
use super::retry::RetrySettings;
use super::timeouts::Timeouts;
use super::upgrade::Upgrade;
use super::{connect, hash, metadata, mirror, redirect, response, upgrade};
use crate::upstream::{ClusterRuntime, LbInput};
use amime_config::names::ClusterId;
use amime_config::route::RouteRef;
use amime_config::route_action::{Action, Forward};
use amime_config::route_cluster::{ClusterChoice, Destination, WeightedCluster};
use amime_rules::headers::HeaderEdits;

/// What is to be forwarded and how.
pub(super) struct Plan<'a> {
    pub(super) exchange: &'a Rc<Exchange>,
    pub(super) route: &'a RouteRef,
    pub(super) action: &'a Forward,
    pub(super) admitted: &'a Admitted,
    pub(super) destination: Destined<'a>,
    pub(super) upgrade: Option<Upgrade>,
}

/// Where a request goes, from the moment on at which its route was chosen:
/// filters may take their time, and by then the route and all that it names
/// may be gone.
pub(super) struct Destined<'a> {
    /// The destination drawn, if the action has several.
    pub(super) weighted: Option<&'a WeightedCluster>,
    /// The cluster, unless a header names it, which filters may still change.
    cluster: Option<Rc<ClusterRuntime>>,
}

impl<'a> Destined<'a> {
    pub(super) fn of(
        exchange: &Exchange,
        route: Option<&RouteRef>,
        weighted: Option<&'a WeightedCluster>,
    ) -> Self {
        let named = match route.map(|route| &route.action) {
            Some(Action::Forward(action)) => named(action, weighted),
            _ => None,
        };
        let settled = named.filter(|named| matches!(named, Named::Id(_)));
        let cluster = settled.and_then(|named| named.find(exchange));
        Self { weighted, cluster }
    }
}

/// Forwards the request and returns the response that the client is to get;
/// none if the request has become another one.
pub(super) async fn forward(
    plan: Plan<'_>,
    mut body: DownstreamBody,
    on_upgrade: Option<upgrade::OnUpgrade>,
) -> Result<Option<Forwarded>, ProxyError> {
    let exchange = plan.exchange;
    let weighted = plan.destination.weighted;
    let cluster = arrive(&plan).await?;
    // Logs name the cluster of the route, also where a member of it serves.
    begin(&plan, &cluster, &mut body)?;
    let cluster = exchange.connection.worker.snapshot().member(&cluster);
    let timeouts = Timeouts::of(&plan);
    let retry = RetrySettings::of(&plan);
    prepare(&plan, &timeouts);
    let hash = hash::of(&plan, &cluster);
    let metadata = match weighted {
        Some(entry) => entry.metadata_match.as_ref(),
        None => plan.action.metadata_match.as_ref(),
    };
    let merged = metadata::criteria(exchange, metadata);
    let metadata = merged.as_ref().or(metadata);
    let input = LbInput { hash: hash.value, metadata, retry: None };
    let attempts = Attempts { plan: &plan, cluster: &cluster, timeouts, retry, input };
    let own = weighted.map(|entry| &entry.response_edits);
    let edits: Vec<&HeaderEdits> = own.into_iter().chain([&plan.route.response_edits]).collect();
    if plan.upgrade == Some(Upgrade::Terminate) {
        let mut forwarded = connect::terminate(&plan, &attempts, body, on_upgrade).await?;
        let details = Cow::Borrowed("via_upstream");
        answered(&mut exchange.log.borrow_mut(), forwarded.parts.status, details);
        response::from_upstream(exchange, &mut forwarded.parts, &edits, Payload::Nothing);
        return Ok(Some(forwarded));
    }
    let body = PreparedBody::of(&plan, body, attempts.retry.active());
    mirror::send_all(&plan, &body);
    let (parts, incoming, attempt) = attempts.run(&body).await?;
    if redirect::follow(&plan, &body, &parts) {
        attempt.discard(incoming);
        return Ok(None);
    }
    let answer = (parts, incoming, attempt);
    deliver(&attempts, answer, (&edits, hash.cookies), on_upgrade).await.map(Some)
}

/// The cluster that the request goes to. One that is not in force yet is
/// waited for: its endpoints are being looked up.
async fn arrive(plan: &Plan<'_>) -> Result<Rc<ClusterRuntime>, ProxyError> {
    if let Some(cluster) = &plan.destination.cluster {
        return Ok(cluster.clone());
    }
    let exchange = plan.exchange;
    let worker = &exchange.connection.worker;
    let cluster = match named(plan.action, plan.destination.weighted) {
        // Apart, so that requests that need not wait do not carry its state.
        Some(Named::Id(id)) => Box::pin(worker.warm_cluster(id)).await,
        Some(Named::Header(name)) => by_header(exchange, name),
        None => None,
    };
    cluster.ok_or_else(|| {
        exchange.connection.stats.no_cluster.inc();
        ProxyError::ClusterNotFound(plan.action.cluster_not_found)
    })
}

/// Notes the cluster, and looks at what has come of the request's body.
fn begin(
    plan: &Plan<'_>,
    cluster: &Rc<ClusterRuntime>,
    body: &mut DownstreamBody,
) -> Result<(), ProxyError> {
    let exchange = plan.exchange;
    {
        let mut log = exchange.log.borrow_mut();
        log.cluster = Some(cluster.clone());
        log.virtual_cluster = plan.route.virtual_cluster_of(&exchange.head.borrow());
    }
    if let DownstreamBody::Held(held) = body {
        held.look_ahead();
        if let Some(error) = exchange.take_refusal() {
            // The attempt that it would have been.
            exchange.log.borrow_mut().attempts = 1;
            return Err(error);
        }
    }
    Ok(())
}

/// How a cluster is named.
enum Named<'a> {
    Id(ClusterId),
    Header(&'a HeaderName),
}

impl<'a> Named<'a> {
    fn of(destination: &'a Destination) -> Self {
        match destination {
            Destination::Cluster(id) => Self::Id(*id),
            Destination::Header(name) => Self::Header(name),
        }
    }

    fn find(self, exchange: &Exchange) -> Option<Rc<ClusterRuntime>> {
        match self {
            Self::Id(id) => exchange.connection.worker.snapshot().cluster(id),
            Self::Header(name) => by_header(exchange, name),
        }
    }
}

/// What the destination drawn, or else the action, names.
fn named<'a>(action: &'a Forward, weighted: Option<&'a WeightedCluster>) -> Option<Named<'a>> {
    match (&action.cluster, weighted) {
        (_, Some(entry)) => Some(Named::of(&entry.cluster)),
        (ClusterChoice::One(id), None) => Some(Named::Id(*id)),
        (ClusterChoice::Weighted { .. }, None) => None,
        (ClusterChoice::Header(name), None) => Some(Named::Header(name)),
    }
}

/// The cluster that a route's action names, if there is one.
pub(super) fn cluster_of(
    exchange: &Exchange,
    action: &Forward,
    weighted: Option<&WeightedCluster>,
) -> Option<Rc<ClusterRuntime>> {
    named(action, weighted)?.find(exchange)
}

/// The cluster of one destination.
pub(super) fn find(exchange: &Exchange, destination: &Destination) -> Option<Rc<ClusterRuntime>> {
    Named::of(destination).find(exchange)
}

fn by_header(exchange: &Exchange, name: &HeaderName) -> Option<Rc<ClusterRuntime>> {
    let head = exchange.head.borrow();
    let name = head.headers.get(name)?.to_str().ok()?;
    exchange.connection.worker.snapshot().cluster_by_name(name)
}

/// The request's body in the form that its attempts need.
pub(super) enum PreparedBody {
    Empty,
    /// Goes to the one attempt.
    Once(RefCell<Option<DownstreamBody>>),
    Repeatable(Rc<RefCell<Replay>>),
}

impl PreparedBody {
    fn of(plan: &Plan<'_>, body: DownstreamBody, retries: bool) -> Self {
        if plan.upgrade.is_some() {
            // It has not ended: what follows is the tunnel.
            return Self::Empty;
        }
        if body.is_end_stream() {
            plan.exchange.request_is_bodiless();
            return Self::Empty;
        }
        if !retries && plan.action.mirrors.is_empty() {
            return Self::Once(RefCell::new(Some(body)));
        }
        let limit = plan.route.buffer_limit.of(plan.exchange.connection.config.buffer_limit);
        Self::Repeatable(Replay::new(body, plan.exchange.clone(), limit))
    }

    pub(super) fn attempt(&self, exchange: &Rc<Exchange>) -> RequestBody {
        match self {
            Self::Empty => RequestBody::Empty,
            Self::Once(body) => match body.borrow_mut().take() {
                Some(incoming) => RequestBody::Stream(incoming, exchange.clone()),
                None => RequestBody::Empty,
            },
            Self::Repeatable(replay) => RequestBody::Replay(ReplayBody::new(replay)),
        }
    }

    pub(super) fn repeatable(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(body) => body.borrow().is_some(),
            Self::Repeatable(replay) => replay.borrow().repeatable(),
        }
    }
}
