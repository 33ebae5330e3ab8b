//! HTTP for operators: readiness, version, metrics, and a look inside.
//!
//! Everything here only reads. Private keys are never shown.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::discovery::Discovery;
use crate::metrics::{CONTENT_TYPE as METRICS_TYPE, Metrics};
use crate::server::debug;

/// What the operators' pages read.
#[derive(Clone)]
pub(crate) struct Monitored {
    pub(crate) discovery: Discovery,
    pub(crate) metrics: Arc<Metrics>,
    /// Of proxies that do not name theirs.
    pub(crate) cluster_id: Arc<str>,
    pub(crate) clock: fn() -> SystemTime,
}

/// `/ready` alone, for the port that probes ask.
pub(crate) fn readiness(monitored: Monitored) -> Router {
    Router::new().route("/ready", get(ready)).with_state(monitored)
}

/// Everything.
pub(crate) fn monitoring(monitored: Monitored) -> Router {
    Router::new()
        .route("/ready", get(ready))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .route("/debug", get(index))
        .route("/debug/syncz", get(debug::syncz))
        .route("/debug/distribution", get(debug::distribution))
        .route("/debug/registryz", get(debug::registryz))
        .route("/debug/endpointz", get(debug::endpointz))
        .route("/debug/configz", get(debug::configz))
        .route("/debug/mesh", get(debug::mesh))
        .route("/debug/config_dump", get(debug::config_dump))
        .with_state(monitored)
}

/// Serves `routes` until `shutdown`.
pub(crate) async fn serve(
    listener: TcpListener,
    routes: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let stopped = shutdown.clone();
    let served = axum::serve(listener, routes).with_graceful_shutdown(stopped.cancelled_owned());
    tokio::select! {
        served = served.into_future() => served,
        // A client that keeps its connection open must not hold up the exit.
        () = crate::server::drained(&shutdown) => Ok(()),
    }
}

async fn ready(State(monitored): State<Monitored>) -> Response {
    match monitored.discovery.snapshot() {
        Some(_) => StatusCode::OK.into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "waiting for the configuration source\n")
            .into_response(),
    }
}

async fn version() -> &'static str {
    amime_core::build::VERSION
}

async fn metrics(State(monitored): State<Monitored>) -> Response {
    let text = monitored.metrics.encode((monitored.clock)());
    ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response()
}

async fn index() -> Html<&'static str> {
    Html(
        "<!doctype html><title>Control plane</title><ul>\
         <li><a href=/debug/syncz>syncz</a> where each proxy stands\
         <li><a href=/debug/distribution>distribution</a> whether all proxies have it\
         <li><a href=/debug/registryz>registryz</a> services\
         <li><a href=/debug/endpointz>endpointz</a> endpoints\
         <li><a href=/debug/configz>configz</a> configuration objects in force\
         <li><a href=/debug/mesh>mesh</a> mesh-wide settings\
         <li>/debug/config_dump?proxyID=POD.NAMESPACE what a proxy is sent\
         <li><a href=/metrics>metrics</a> <li><a href=/version>version</a>\
         </ul>",
    )
}
