//! The proxy's own HTTP servers: admin (15000), merged metrics and health
//! (15020), readiness (15021) and proxy metrics (15090).
//!
//! Owns routing and output formats, which are Envoy's and pilot-agent's. It
//! changes nothing but log levels and the wish to drain or end, which the
//! agent carries out.
//!
//! Invariant: nothing here runs on a worker, connections are bounded, and no
//! answer contains a private key.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/operations/admin>

mod access_log;
mod certs;
mod clusters;
mod config_dump;
mod http;
mod listeners;
mod logging;
mod mask;
mod redact;
mod routes;
mod scrape;
mod server_info;
mod status;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use amime_core::log::LogHandle;
use amime_engine::runtime::Runtime;
use amime_telemetry::Telemetry;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use tokio::sync::watch;

use crate::agent::{AppMetrics, Identity, Readiness};
use crate::json::Converter;

pub(crate) use self::access_log::AdminLog;
pub(crate) use self::http::AdminError;
pub(crate) use self::http::Server;
pub(crate) use logging::level as log_level;
pub(crate) use server_info::CommandLine;

/// What an operator asked the process to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wish {
    /// Run.
    #[default]
    Run,
    /// Close connections gracefully, but stay.
    Drain,
    /// Drain and end.
    Quit,
}

/// What the servers show and change.
pub(crate) struct Context {
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) runtime: Arc<Runtime>,
    /// The workload's own certificate; none when running from a bootstrap.
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) ready: Arc<Readiness>,
    /// Whether readiness waits for a name table.
    pub(crate) needs_names: bool,
    pub(crate) log: Option<LogHandle>,
    /// The bootstrap in force, with the node.
    pub(crate) bootstrap: Bootstrap,
    pub(crate) options: CommandLine,
    pub(crate) app_metrics: Option<AppMetrics>,
    pub(crate) wish: watch::Sender<Wish>,
    /// Prints configuration as JSON.
    pub(crate) converter: Converter,
    /// Where requests to the admin server are logged, if anywhere.
    pub(crate) access_log: Option<AdminLog>,
}

impl Context {
    /// `Ok` when traffic may come, otherwise what is missing.
    pub(crate) fn readiness(&self) -> Result<(), &'static str> {
        self.ready.check(crate::agent::Others {
            runtime_ready: self.runtime.ready(),
            certificate: self.identity.as_ref().is_none_or(|identity| identity.is_present()),
            needs_names: self.needs_names,
        })
    }

    fn wish(&self, wish: Wish) {
        self.wish.send_if_modified(|have| {
            let more = *have < wish;
            *have = wish.max(*have);
            more
        });
    }
}

/// Starts the admin server.
pub(crate) fn serve_admin(
    address: SocketAddr,
    context: &Arc<Context>,
) -> Result<Server, AdminError> {
    let context = context.clone();
    Server::start(address, move |request| logged(context.clone(), request))
}

/// The admin server at a socket that another process has bound.
pub(crate) fn serve_admin_on(
    socket: std::net::TcpListener,
    context: &Arc<Context>,
) -> std::io::Result<Server> {
    let context = context.clone();
    Server::on(socket, move |request| logged(context.clone(), request))
}

/// Answers and logs one request to the admin server.
async fn logged(context: Arc<Context>, query: http::Query) -> http::Answer {
    if context.access_log.is_none() {
        return routes::answer(context, query).await;
    }
    let (start, begun) = (std::time::SystemTime::now(), std::time::Instant::now());
    let answer = routes::answer(context.clone(), query.clone()).await;
    if let Some(log) = &context.access_log {
        log.record(&query, &answer, start, begun.elapsed());
    }
    answer
}

/// Starts the server of merged metrics, health and drain (15020).
pub(crate) fn serve_status(
    address: SocketAddr,
    context: &Arc<Context>,
) -> Result<Server, AdminError> {
    let context = context.clone();
    Server::start(address, move |request| status::answer(context.clone(), request))
}

/// Starts the readiness server (15021).
pub(crate) fn serve_ready(
    address: SocketAddr,
    context: &Arc<Context>,
) -> Result<Server, AdminError> {
    let context = context.clone();
    Server::start(address, move |request| status::answer_ready(context.clone(), request))
}

/// Starts the server of the proxy's own metrics (15090).
pub(crate) fn serve_metrics(
    address: SocketAddr,
    context: &Arc<Context>,
) -> Result<Server, AdminError> {
    let context = context.clone();
    Server::start(address, move |request| status::answer_metrics(context.clone(), request))
}
