//! Paths of the admin server.

use std::sync::Arc;

use ::http::{Method, StatusCode};
use amime_telemetry::{StatKind, StatsFilter};
use regex::{Regex, RegexBuilder};
use serde_json::{Value, json};

use super::http::{Answer, Query, answer as respond, json, post_only, text};
use super::{Context, Wish, certs, clusters, config_dump, listeners, logging, server_info};

/// Largest compiled size of a filter's expression, bytes.
const MAX_REGEX: usize = 256 * 1024;

const HELP: &str = "\
admin commands are:
  /: this page
  /certs: print certs on machine
  /clusters: upstream cluster status
      filter: regular expression for the names of clusters; format=json
  /config_dump: dump current configs
      resource: field with the resources to dump
      mask: fields to show, of each resource if one is given
      name_regex: show only what has a matching name
      include_eds: show endpoints too
  /debug/requests: last failed or slow requests
  /drain_listeners (POST): drain listeners
      graceful, skip_exit: as without
  /healthcheck/fail (POST): cause the server to fail health checks
  /healthcheck/ok (POST): cause the server to pass health checks
  /help: this page
  /hot_restart_version: print the hot restart compatibility version
  /init_dump: print what initialization waits for
  /listeners: print listener info
      format=json
  /logging (POST): query or change log levels
      level=LEVEL, paths=TARGET:LEVEL,...
  /memory: print memory use
  /quitquitquit (POST): exit the server
  /ready: print server state, 200 if LIVE, otherwise 503
  /reopen_logs (POST): reopen access logs
  /reset_counters (POST): reset all counters to zero
  /runtime: print runtime values
  /runtime_modify (POST): change runtime values, if there is an admin layer
  /server_info: print server version and status
  /stats: print server stats
      filter: regular expression for names; invert_filter turns it round
      usedonly, format=json|prometheus, type=Counters|Gauges|Histograms
  /stats/prometheus: print server stats in prometheus format
      filter, invert_filter, usedonly
";

/// What Envoy answers to a format that it does not know.
const FORMATS: &str = "usage: /stats?format=(json|prometheus|text)\n\n";

/// Answers one request.
pub(super) async fn answer(context: Arc<Context>, query: Query) -> Answer {
    match query.path.as_str() {
        "/" | "/help" => text(StatusCode::OK, HELP),
        "/certs" => json(&certs::certs(&context)),
        "/clusters" => clusters_page(&context, &query),
        "/config_dump" => config_dump::answer(&context, &query).await,
        "/debug/requests" => json(&context.telemetry.debug_requests()),
        "/listeners" if query.is_json() => json(&listeners::json(&context.runtime.dump())),
        "/listeners" => text(StatusCode::OK, listeners::text(&context.runtime.dump())),
        "/hot_restart_version" => text(StatusCode::OK, "disabled"),
        "/init_dump" => json(&init_dump(&context)),
        "/memory" => json(&server_info::memory()),
        "/ready" => ready(&context),
        "/runtime" => json(&json!({"entries": {}, "layers": []})),
        "/server_info" => json(&server_info::server_info(&context).await),
        "/stats" => stats(&context, &query),
        "/stats/prometheus" => prometheus(&context, &query),
        path @ ("/logging" | "/drain_listeners" | "/quitquitquit" | "/reopen_logs"
        | "/reset_counters" | "/runtime_modify" | "/healthcheck/fail"
        | "/healthcheck/ok") => match query.method {
            Method::POST => change(&context, path, &query),
            _ => post_only(&query.method),
        },
        _ => text(StatusCode::NOT_FOUND, format!("invalid path. {HELP}")),
    }
}

fn clusters_page(context: &Context, query: &Query) -> Answer {
    let name = match regex(query, "filter") {
        Ok(name) => name,
        Err(answer) => return *answer,
    };
    let mut dump = context.runtime.dump();
    dump.clusters.retain(|one| name.as_ref().is_none_or(|regex| regex.is_match(&one.name)));
    if query.is_json() {
        return json(&without_defaults(clusters::json(&dump)));
    }
    text(StatusCode::OK, clusters::text(&dump))
}

/// Leaves out what has its default value, as printers of protobuf do.
fn without_defaults(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, without_defaults(value)));
            Value::Object(fields.filter(|(_, value)| !is_default(value)).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_defaults).collect()),
        other => other,
    }
}

fn is_default(value: &Value) -> bool {
    match value {
        Value::Bool(value) => !value,
        Value::String(text) => text.is_empty() || text == "0",
        Value::Number(number) => number.as_u64() == Some(0),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// What the proxy waits for before it is live.
fn init_dump(context: &Context) -> Value {
    match context.readiness() {
        Ok(()) => json!({}),
        Err(reason) => json!({"unready_targets_dumps": [
            {"name": "init manager Server", "target_names": [reason]},
        ]}),
    }
}

fn change(context: &Context, path: &str, query: &Query) -> Answer {
    match path {
        "/logging" => return logging::change(context, query),
        "/runtime_modify" => {
            return text(StatusCode::SERVICE_UNAVAILABLE, "No admin layer specified");
        }
        "/reset_counters" => context.telemetry.reset_counters(),
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

/// The expression in one of the query's parameters.
fn regex(query: &Query, parameter: &str) -> Result<Option<Regex>, Box<Answer>> {
    let Some(text_of_it) = query.param(parameter).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match RegexBuilder::new(text_of_it).size_limit(MAX_REGEX).build() {
        Ok(regex) => Ok(Some(regex)),
        Err(error) => {
            let message = format!("Invalid re2 regex: {error}\n");
            Err(Box::new(text(StatusCode::BAD_REQUEST, message)))
        }
    }
}

/// The filter that the query asks for.
pub(super) fn filter(query: &Query) -> Result<StatsFilter, Box<Answer>> {
    let refused = |message: &str| Err(Box::new(text(StatusCode::BAD_REQUEST, message.to_owned())));
    let kind = match query.param("type") {
        None | Some("All") => None,
        Some("Counters") => Some(StatKind::Counter),
        Some("Gauges") => Some(StatKind::Gauge),
        Some("Histograms") => Some(StatKind::Histogram),
        Some(_) => return refused("usage: /stats?type=(All|Counters|Gauges|Histograms)\n\n"),
    };
    if query.param("histogram_buckets").is_some_and(|mode| mode != "summary") {
        return refused("histogram_buckets: only summary is supported\n");
    }
    Ok(StatsFilter {
        name: regex(query, "filter")?,
        inverted: query.params.contains_key("invert_filter"),
        used_only: query.params.contains_key("usedonly"),
        kind,
    })
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
        Some(_) => text(StatusCode::BAD_REQUEST, FORMATS),
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
