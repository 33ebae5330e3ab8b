//! Paths of the health and metrics servers (15020, 15021, 15090).

use std::sync::Arc;

use ::http::{Method, StatusCode};
use amime_telemetry::StatsFilter;

use super::http::{Answer, Query, answer as respond, not_found, post_only, text};
use super::scrape::scrape;
use super::{Context, Wish, routes, server_info};

/// Answers on 15020.
pub(super) async fn answer(context: Arc<Context>, query: Query) -> Answer {
    match query.path.as_str() {
        "/healthz/ready" => ready(&context),
        "/stats/prometheus" | "/metrics" => merged(&context).await,
        path @ ("/quitquitquit" | "/drain") => {
            if query.method != Method::POST {
                return post_only(&query.method);
            }
            if !query.from.ip().to_canonical().is_loopback() {
                return text(StatusCode::FORBIDDEN, "Only requests from localhost are allowed\n");
            }
            context.wish(if path == "/drain" { Wish::Drain } else { Wish::Quit });
            text(StatusCode::OK, "OK\n")
        }
        _ => not_found(),
    }
}

/// Answers on 15021.
pub(super) async fn answer_ready(context: Arc<Context>, query: Query) -> Answer {
    match query.path.as_str() {
        "/healthz/ready" => ready(&context),
        _ => not_found(),
    }
}

/// Answers on 15090.
pub(super) async fn answer_metrics(context: Arc<Context>, query: Query) -> Answer {
    match query.path.as_str() {
        "/stats/prometheus" => routes::prometheus(&context, &query),
        _ => not_found(),
    }
}

fn ready(context: &Context) -> Answer {
    match context.readiness() {
        Ok(()) => text(StatusCode::OK, ""),
        Err(reason) => {
            let body = format!("proxy is not ready: {reason}\n");
            text(StatusCode::SERVICE_UNAVAILABLE, body)
        }
    }
}

/// The proxy's metrics with the application's behind them.
async fn merged(context: &Context) -> Answer {
    server_info::refresh_gauges(context);
    let mut body = context.telemetry.prometheus(&StatsFilter::default());
    if let Some(app) = &context.app_metrics {
        match scrape(app).await {
            Ok(metrics) => body.push_str(&metrics),
            Err(error) => tracing::debug!(%error, "application metrics not scraped"),
        }
    }
    respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
}
