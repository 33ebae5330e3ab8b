//! Paths of the admin server.

use std::sync::Arc;

use ::http::{Method, StatusCode};
use amime_telemetry::StatsFilter;
use regex::RegexBuilder;
use serde_json::json;

use super::http::{Answer, Query, answer as respond, json, not_found, post_only, text};
use super::{Context, Wish, certs, clusters, config_dump, listeners, logging, server_info};

/// Largest compiled size of a filter's expression, bytes.
const MAX_REGEX: usize = 256 * 1024;

const HELP: &str = "\
admin commands are:
  /: this page
  /certs: print certs on machine
  /clusters: upstream cluster status
      format=json
  /config_dump: dump current configs
      include_eds, resource=NAME, name_regex=REGEX
  /debug/requests: last failed or slow requests
  /drain_listeners (POST): drain listeners
  /healthcheck/fail (POST): cause the server to fail health checks
  /healthcheck/ok (POST): cause the server to pass health checks
  /help: this page
  /listeners: print listener info
      format=json
  /logging (POST): query or change log levels
      level=LEVEL, paths=TARGET:LEVEL,...
  /memory: print memory use
  /quitquitquit (POST): exit the server
  /ready: print server state, 200 if LIVE, otherwise 503
  /reopen_logs (POST): reopen access logs
  /server_info: print server version and status
  /stats: print server stats
      filter=REGEX, usedonly, format=json|prometheus
  /stats/prometheus: print server stats in prometheus format
";

/// Answers one request.
pub(super) async fn answer(context: Arc<Context>, query: Query) -> Answer {
    match query.path.as_str() {
        "/" | "/help" => text(StatusCode::OK, HELP),
        "/certs" => json(&certs::certs(&context)),
        "/clusters" if query.is_json() => json(&clusters::json(&context.runtime.dump())),
        "/clusters" => text(StatusCode::OK, clusters::text(&context.runtime.dump())),
        "/config_dump" => config_dump::answer(&context, &query).await,
        "/debug/requests" => json(&context.telemetry.debug_requests()),
        "/listeners" if query.is_json() => json(&listeners::json(&context.runtime.dump())),
        "/listeners" => text(StatusCode::OK, listeners::text(&context.runtime.dump())),
        "/memory" => json(&server_info::memory()),
        "/ready" => ready(&context),
        "/server_info" => json(&server_info::server_info(&context).await),
        "/stats" => stats(&context, &query),
        "/stats/prometheus" => prometheus(&context, &query),
        "/logging" if query.method == Method::GET => logging::list(&context),
        path @ ("/logging" | "/drain_listeners" | "/quitquitquit" | "/reopen_logs"
        | "/healthcheck/fail" | "/healthcheck/ok") => match query.method {
            Method::POST => change(&context, path, &query),
            _ => post_only(),
        },
        _ => not_found(),
    }
}

fn change(context: &Context, path: &str, query: &Query) -> Answer {
    match path {
        "/logging" => return logging::change(context, query),
        "/drain_listeners" => context.wish(Wish::Drain),
        "/quitquitquit" => context.wish(Wish::Quit),
        "/reopen_logs" => context.telemetry.reopen_logs(),
        "/healthcheck/fail" => context.ready.set_failed(true),
        _ => context.ready.set_failed(false),
    }
    text(StatusCode::OK, "OK\n")
}

fn ready(context: &Context) -> Answer {
    let state = server_info::state(context);
    let live = state == "LIVE";
    let status = if live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(status, format!("{state}\n"))
}

/// The filter that the query asks for.
pub(super) fn filter(query: &Query) -> Result<StatsFilter, Box<Answer>> {
    let name = match query.param("filter").filter(|filter| !filter.is_empty()) {
        None => None,
        Some(filter) => {
            let regex = RegexBuilder::new(filter).size_limit(MAX_REGEX).build();
            Some(regex.map_err(|error| {
                let message = format!("Invalid regex: \"{error}\"\n");
                Box::new(text(StatusCode::BAD_REQUEST, message))
            })?)
        }
    };
    Ok(StatsFilter { name, used_only: query.params.contains_key("usedonly") })
}

fn stats(context: &Context, query: &Query) -> Answer {
    server_info::refresh_gauges(context);
    let filter = match filter(query) {
        Ok(filter) => filter,
        Err(answer) => return *answer,
    };
    match query.param("format") {
        None | Some("" | "text") => text(StatusCode::OK, context.telemetry.stats_text(&filter)),
        Some("json") => json(&context.telemetry.stats_json(&filter)),
        Some("prometheus") => prometheus(context, query),
        Some(other) => {
            let error = json!({"error": format!("format {other} is not known")});
            let body = format!("{error}\n");
            respond(StatusCode::BAD_REQUEST, "application/json", body)
        }
    }
}

/// The proxy's metrics.
pub(super) fn prometheus(context: &Context, query: &Query) -> Answer {
    server_info::refresh_gauges(context);
    match filter(query) {
        Ok(filter) => {
            let body = context.telemetry.prometheus(&filter);
            respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
        }
        Err(answer) => *answer,
    }
}
